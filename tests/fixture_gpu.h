// What a C++ compiler needs to take cupy_kernels.cu: a thread of a GPU is a
// round of the loop in `each_thread`.
#include <algorithm>
#include <cmath>
#include <cstring>

using std::max;
using std::min;

#define __global__
#define __device__ static

struct Dim3 { unsigned x, y, z; };
static thread_local Dim3 blockIdx, threadIdx, gridDim, blockDim;

template <class To, class From> static To bits_of(From from) {
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// As fmaxf where b is a number; a compiler calls that one out of line.
static inline float larger(float a, float b) { return a > b ? a : b; }

#define fmaxf larger
#define __float_as_uint bits_of<unsigned>
#define __uint_as_float bits_of<float>

static unsigned long long atomicAdd(unsigned long long *at,
                                    unsigned long long value) {
  const unsigned long long before = *at;
  *at += value;
  return before;
}

template <class Kernel>
void each_thread(const int *grid, const int *block, Kernel kernel) {
  gridDim = {(unsigned)grid[0], (unsigned)grid[1], 1};
  blockDim = {(unsigned)block[0], 1, 1};
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
      for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) kernel();
}
