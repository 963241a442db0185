// Kernels of cupy_engine.py, in CUDA C. An array (C, h, w) has a row for each
// channel; rows begin `pitch` numbers apart. blockIdx.y is a thread's row of y,
// and EACH gives it some of the numbers there.

#define KERNEL extern "C" __global__ void
#define INPUT const float *x, int pitch, int height, int width
#define OUTPUT float *y, int y_pitch, int y_height, int y_width
#define N_THREADS (gridDim.x * blockDim.x)
#define THREAD (blockIdx.x * blockDim.x + threadIdx.x)
#define EACH(i, n) for (unsigned i = THREAD; i < (unsigned)(n); i += N_THREADS)
#define ROW(array, row, pitch) ((array) + (long long)(row) * (pitch))
#define INSIDE(row, column) \
  ((unsigned)(row) < (unsigned)height && (unsigned)(column) < (unsigned)width)
#define STRIP 8  // numbers for a thread of `depthwise`

// Pixels, 0 to 255, of an image at the top left of y; around it is 0. They lie
// as (H, W, 3) or as (3, H, W).
KERNEL prepare(const void *pixels, int is_bytes, int channels_last, int height,
               int width, float scale, float offset, float *y, int y_height,
               int y_width) {
  EACH(i, y_height * y_width) {
    const int row = i / y_width, column = i % y_width;
    const long long pixel = row * 1LL * width + column;
    const long long at = channels_last ? pixel * 3 + blockIdx.y
                         : blockIdx.y * 1LL * height * width + pixel;
    float value = 0;
    if (row < height && column < width)
      value = (is_bytes ? ((const unsigned char *)pixels)[at]
                        : ((const float *)pixels)[at]) * scale - offset;
    ROW(y, blockIdx.y, y_height * y_width)[i] = value;
  }
}

// Store a number; or, for a product in parts, what TF32 holds of it, `apart`
// numbers further, and here the rest.
__device__ void store(float *y, float value, long long apart) {
  if (apart) {
    y[apart] = __uint_as_float((__float_as_uint(value) + 0x1000) & 0xffffe000);
    value -= y[apart];
  }
  *y = value;
}

// What `depthwise` and `columns` read may still lack bias and ReLU: `shift` is
// added, and at least `least` is left, 0 or minus infinity. Outside the image a
// number is -shift, which makes 0.

// `depthwise` on n numbers of a column of y, `step` rows apart, so that they
// share rows of x where there are several: the stride is then 1.
template <int n> __device__ void strips(
    const float *x, int height, int width, float add, float least, int stride,
    int pad, int dilate, const float *weights, float bias, float y_least,
    long long apart, float *y, int y_height, int y_width) {
  float w[9], in[n + 2][3];
  for (int k = 0; k < 9; k++) w[k] = weights[k];
  const int step = n > 1 ? dilate : 1;
  const int n_strips = (y_height + n * step - 1) / (n * step) * step * y_width;
  EACH(i, n_strips) {
    const int strip = i / y_width, column = i % y_width;
    const int first = strip / step * n * step + strip % step;
    const int top = first * stride - pad, left = column * stride - pad;
    const float *from = x + top * width + left;
#pragma unroll
    for (int k = 0; k < n + 2; k++, from += dilate * width)
#pragma unroll
      for (int j = 0; j < 3; j++)
        in[k][j] = INSIDE(top + k * dilate, left + j * dilate)
            ? from[j * dilate] : -add;
#pragma unroll
    for (int k = 0; k < 3 * (n + 2); k++)
      in[k / 3][k % 3] = fmaxf(in[k / 3][k % 3] + add, least);
    float *to = y + first * y_width + column;
#pragma unroll
    for (int j = 0; j < n; j++, to += step * y_width) {
      float sum = bias;
#pragma unroll
      for (int k = 0; k < 9; k++) sum += w[k] * in[j + k / 3][k % 3];
      if (first + j * step < y_height) store(to, fmaxf(sum, y_least), apart);
    }
  }
}

KERNEL depthwise(INPUT, const float *shift, float least, int stride, int pad,
                 int dilate, const float *weights, const float *bias,
                 float y_least, int in_parts, OUTPUT) {
  x = ROW(x, blockIdx.y, pitch);
  y = ROW(y, blockIdx.y, y_pitch);
  weights += 9 * blockIdx.y;
  const float add = shift[blockIdx.y], b = bias[blockIdx.y];
  const long long apart = in_parts ? (long long)gridDim.y * y_pitch : 0;
  if (stride == 1)
    strips<STRIP>(x, height, width, add, least, 1, pad, dilate, weights, b,
                  y_least, apart, y, y_height, y_width);
  else
    strips<1>(x, height, width, add, least, stride, pad, dilate, weights, b,
              y_least, apart, y, y_height, y_width);
}

// Row k of y is what number k of (C, ksize, ksize) weights meets at each pixel
// of the output: a convolution is the product of its weights and these rows.
// Where ksize and stride are 1, y may be x, which then gets its bias and ReLU.
KERNEL columns(INPUT, const float *shift, float least, int ksize, int stride,
               int pad, int dilate, OUTPUT) {
  const int tap = blockIdx.y % (ksize * ksize);
  const int channel = blockIdx.y / (ksize * ksize);
  const float *from = ROW(x, channel, pitch), add = shift[channel];
  EACH(i, y_height * y_width) {
    const int row = i / y_width * stride + tap / ksize * dilate - pad;
    const int column = i % y_width * stride + tap % ksize * dilate - pad;
    ROW(y, blockIdx.y, y_pitch)[i] = fmaxf(
        (INSIDE(row, column) ? from[row * width + column] : -add) + add, least);
  }
}

// Number k of n in a row of y is the sum of every n-th number of x from k on,
// or its share of the mean.
KERNEL add_up(INPUT, int divided, OUTPUT) {
  const int count = height * width, n = y_height * y_width;
  EACH(k, n) {
    float sum = 0;
    for (int i = k; i < count; i += n) sum += ROW(x, blockIdx.y, pitch)[i];
    ROW(y, blockIdx.y, y_pitch)[k] = divided ? sum / count : sum;
  }
}

// Where pixel i of a side resized to `resized` is among its n: corners aligned.
__device__ float between(int i, int n, int resized, int *before, int *after) {
  const double position = i * ((n - 1.) / max(resized - 1, 1));
  *before = min((int)position, n - 1);
  *after = min(*before + 1, n - 1);
  return (float)(position - *before);
}

// Pixel (row, column) of an image (height, width) resized to (h, w).
__device__ float resized(const float *image, int height, int width, int row,
                         int column, int h, int w) {
  int top, bottom, left, right;
  const float down = between(row, height, h, &top, &bottom);
  const float across = between(column, width, w, &left, &right);
  const float *above = image + top * width, *below = image + bottom * width;
  const float a = above[left] + across * (above[right] - above[left]);
  const float b = below[left] + across * (below[right] - below[left]);
  return a + down * (b - a);
}

KERNEL resize(INPUT, int mirrored, OUTPUT) {
  EACH(i, y_height * y_width)
    ROW(y, blockIdx.y, y_pitch)[i] = resized(
        ROW(x, blockIdx.y, pitch), height, width, i / y_width,
        mirrored ? y_width - 1 - i % y_width : i % y_width, y_height, y_width);
}

// The best of the first n_class channels at the top left of logits resized to
// (h, w). A map is {address, height, width} of logits. Of several maps softmax,
// of all channels, is added up; `work` has the logarithm of its divisor for each
// map and thread.
KERNEL labels(const long long *maps, int n_class, int channels, int n_maps,
              int h, int w, int *y, int y_height, int y_width, float *work) {
  EACH(i, y_height * y_width) {
    auto logit = [=](int map, int c) {
      const int height = maps[3 * map + 1], width = maps[3 * map + 2];
      return resized(ROW((const float *)maps[3 * map], c, height * width),
                     height, width, i / y_width, i % y_width, h, w);
    };
    for (int map = 0; n_maps > 1 && map < n_maps; map++) {
      float most = logit(map, 0), sum = 0;
      for (int c = 1; c < channels; c++) most = fmaxf(most, logit(map, c));
      for (int c = 0; c < channels; c++) sum += expf(logit(map, c) - most);
      ROW(work, map, N_THREADS)[THREAD] = most + logf(sum);
    }
    float best = 0;
    int label = 0;
    for (int c = 0; c < n_class; c++) {
      float score = n_maps > 1 ? 0 : logit(0, c);
      for (int map = 0; n_maps > 1 && map < n_maps; map++)
        score += expf(logit(map, c) - ROW(work, map, N_THREADS)[THREAD]);
      if (c == 0 || score > best) best = score, label = c;
    }
    y[i] = label;
  }
}

// A sum, from 0, of each array {address, words}: any changed bit changes it.
KERNEL digest(const long long *arrays, unsigned long long *sums) {
  const unsigned *words = (const unsigned *)arrays[2 * blockIdx.y];
  unsigned long long sum = 0;
  EACH(i, arrays[2 * blockIdx.y + 1]) {  // SplitMix64's last steps
    unsigned long long z = (unsigned long long)i << 32 | words[i];
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    sum += z ^ z >> 31;
  }
  atomicAdd(sums + blockIdx.y, sum);
}
