"""DeepLabV3+ on an Xception65 backbone.

The network of Chen et al., "Encoder-Decoder with Atrous Separable Convolution
for Semantic Image Segmentation" (ECCV 2018), as the official TensorFlow code
builds it, under ChainerCV's parameter names. Layouts are NCHW, float32.
It joins the backbone (xception.py) and the head (head.py).
"""
import contextlib
import copy
import math
import numbers
import warnings
from collections.abc import Iterable, Sequence
from os import PathLike

import chainer
import numpy as np
from chainer.backends import cuda

from . import constants, gpu, memory
from .chainer_engine import ChainerEngine, Engine
from .cupy_engine import CuPyEngine
from .head import Decoder, SeparableASPP
from .openvino_engine import OpenVINOEngine
from .pretrained import pretrained_path
from .resizing import resize_image, resize_labels
from .utils.errors import BackendError, InputError
from .weights import WeightsFile, leave_unset
from .xception import Xception65


class DeepLabV3plusXception65(chainer.Chain):
    """DeepLabV3+ with Xception65, with ChainerCV's interface and names.

    Args:
        n_class (int): number of classes; by default the pretrained model's.
        pretrained_model (str or pathlib.Path): 'voc', 'cityscapes' or
            'ade20k' (downloaded at the first use), or the path of an npz.
        min_input_size (int or (int, int)): height and width in pixels to
            which smaller images are padded. The default is the pretrained
            model's (see `models.weights.WeightsFile`), else 513.
        scales (tuple of floats): scales whose softmax outputs are averaged.
            The default is the pretrained model's, else (1.0,).
        flip (bool): also average over the mirrored image. The default is as
            the pretrained model's graph does, else not.
        output_stride (int): 8 or 16. Weights fit both; 16 is three times as
            fast and costs 0.2 to 0.3 mIoU. The default is the pretrained
            model's, else 8.
        atrous_rates (three ints): dilations of the ASPP at this output
            stride. The default is the pretrained model's, else 12, 24, 36 at
            8 and 6, 12, 18 at 16.
        initialW: Chainer's initializer of the convolution weights, used
            without a pretrained model.

    ChainerCV's `extractor_kwargs`, `aspp_kwargs` and `decoder_kwargs` are not
    taken: epsilons are those of TensorFlow's graph.

    On a CPU `predict` runs the network through OpenVINO where that is
    installed, several times as fast as Chainer; `to_openvino` and
    `to_chainer` choose. On a GPU it runs the network through CuPy: `to_gpu` is
    enough. Everything else runs on Chainer: a call of the link, training.

    Attributes:
        metadata (dict): what the npz says, see `models.weights`; may be empty.
        resize_range (models.resizing.ResizeRange): to which images are
            resized first, as the pretrained model's graph does; mostly None.
        background_outputs (numpy.ndarray, (K, 257), float32): kernels and
            biases of outputs that are no classes, with which `predict`
            averages as the pretrained model's graph does; mostly None.

    Raises:
        InputError: an argument is invalid, or the model is missing or does
            not fit.
    """

    def __init__(self, n_class: int | None = None,
                 pretrained_model: str | PathLike | None = None,
                 min_input_size: int | tuple[int, int] | None = None,
                 scales: Sequence[float] | None = None,
                 flip: bool | None = None, *, output_stride: int | None = None,
                 initialW=None, atrous_rates: Sequence[int] | None = None):
        super().__init__()
        known = WeightsFile()
        if pretrained_model is not None:
            known = WeightsFile(pretrained_path(pretrained_model))
            initialW = leave_unset
        self.metadata, self.resize_range = known.metadata, known.resize_range
        self.background_outputs = known.background_outputs
        self.n_class = _either(n_class, known.n_class)
        size = _either(min_input_size, known.min_input_size)
        self.min_input_size = tuple(size) if np.ndim(size) else (size, size)
        self.scales = tuple(_either(scales, known.scales))
        self.flip = bool(_either(flip, known.flip))
        self.output_stride = _either(output_stride, known.output_stride)
        check_settings(self)
        if atrous_rates is None:
            atrous_rates = known.atrous_rates(self.output_stride)
        self.atrous_rates = rates = tuple(atrous_rates)
        check('atrous_rates', rates, are_integers(rates, 3, constants.MAX_RATE),
              f'three integers, 1 to {constants.MAX_RATE}')
        with self.init_scope():
            self.feature_extractor = Xception65(self.output_stride, initialW)
            self.aspp = SeparableASPP(2048, 256, rates, initialW)
            self.decoder = Decoder(256, self.n_class, initialW=initialW)
        self.cleargrads()
        if pretrained_model is not None:
            known.load_into(self)
        self.to_openvino(required=False)

    def forward(self, x):
        """Compute logits.

        Args:
            x (array or Variable, (B, 3, H, W), float32): prepared images.

        Returns:
            Variable, (B, n_class, ceil(H/4), ceil(W/4)), float32.
        """
        iter(self._children)  # refuses if frozen
        low_level, high_level = self.feature_extractor(x)
        return self.decoder(low_level, self.aspp(high_level))

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resize an image to `resize_range`, if there is one, pad it to
        `min_input_size` and scale it for the network.

        Args:
            image (numpy.ndarray, (3, H, W)): RGB in [0, 255].

        Returns:
            numpy.ndarray, (3, max(H, min H), max(W, min W)), float32 in
            [-1, 1]. The image is at the top left; the padding is 0. (H, W) is
            `resized_size` of the image.

        Raises:
            InputError: the image is no such array.
        """
        check_image(image)
        H, W = size = self.resized_size(*image.shape[1:])
        padded = np.full((3, *map(max, size, self.min_input_size)),
                         constants.PAD_VALUE, np.float32)
        padded[:, :H, :W] = resize_image(image, size)
        padded *= np.float32(constants.SCALE)
        padded -= np.float32(constants.OFFSET)
        return padded

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size that an image has after `resize_range`."""
        if self.resize_range is None:
            return height, width
        return tuple(self.resize_range.size(height, width).tolist())

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size that an image has after `prepare`."""
        return tuple(map(max, self.resized_size(height, width),
                         self.min_input_size))

    def predict(self, imgs: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Segment images.

        Args:
            imgs (iterable of numpy.ndarray, (3, H, W)): RGB in [0, 255],
                each of any size.

        Returns:
            list of numpy.ndarray, (H, W), int32: the class of each pixel.

        Raises:
            InputError: an image is no such array or needs more memory than is
                free, or a required backend is unavailable.
        """
        if not isinstance(imgs, Iterable):
            check_image(imgs)
        network, labels = self.compile(), []
        for img in imgs:
            check_image(img)
            labels.append(resize_labels(network.label_map(self, img),
                                        img.shape[1:]))
        return labels

    def to_openvino(self, threads: int | None = None, required: bool = True,
                    precision: str = 'float32') -> 'DeepLabV3plusXception65':
        """Have `predict` run the network through OpenVINO on a CPU.

        A new link does, with `required=False`, and so does one that comes back
        from a GPU. Changed weights are noticed at each `predict`.

        Args:
            threads (int): number of threads; by default one for each core.
            required (bool): raise BackendError where OpenVINO is not installed
                or cannot run the link; if false, warn and use Chainer. On a
                GPU it is always raised.
            precision (str): 'float32', or 'bfloat16', twice as fast, for
                processors that have it; some labels then differ.

        Returns:
            The link itself.
        """
        iter(self._children)  # refuses if frozen
        if self.xp is not np:
            raise BackendError('OpenVINO runs on a CPU, and the link is on a '
                               'GPU: call to_cpu first')
        self._engine = OpenVINOEngine(threads, precision)
        self._engine_is_required = required
        if required:
            self._engine.check_usable()
        return self

    def to_chainer(self) -> 'DeepLabV3plusXception65':
        """Have `predict` run the network through Chainer, on a CPU or GPU;
        return the link.
        """
        iter(self._children)  # refuses if frozen
        self._engine = None
        return self

    @property
    def precision(self) -> str:
        """'float32', or 'bfloat16', see `to_openvino`; or 'tf32' on a GPU."""
        return 'float32' if self._engine is None else self._engine.precision

    @contextlib.contextmanager
    def in_float32(self):
        """In the body, have `predict` compute in float32."""
        engine = self._engine
        self._engine = engine and engine.in_float32()
        try:
            yield
        finally:
            self._engine = engine

    def freeze(self) -> 'DeepLabV3plusXception65':
        """Give the weights up once OpenVINO or CuPy has them, 165 MB, and
        return the link: it can then do nothing but `predict`, as it is.

        Where `predict` runs on Chainer, this does nothing.
        """
        if self.compile() is self._engine and self._children:
            for name in list(self._children):
                delattr(self, name)
            self._children = FrozenChildren()
        return self

    def compile(self) -> Engine:
        """Return the network on the chosen backend, with present weights; raise
        BackendError, see `to_openvino`.

        It is a callable from a prepared image (1, 3, H, W) to logits (1,
        n_class, ceil(H/4), ceil(W/4)), both arrays, float32, and never in
        training mode; with more channels where `with_background` has them.
        """
        if self._engine is not None and self._children:  # none: it is frozen
            try:
                self._check_own('forward')
                if self.xp is not np:  # that engine prepares images itself
                    self._check_own('prepare')
                self._engine.update(self.with_background())
            except BackendError as error:
                if self._engine_is_required:
                    raise
                warnings.warn(f'{error}: predict runs on Chainer instead, '
                              'several times as slow', stacklevel=3)
                self.to_chainer()
        return self._engine or ChainerEngine(self.with_background())

    def with_background(self) -> 'DeepLabV3plusXception65':
        """Return the link whose logits `predict` averages: where there are
        several scales and `background_outputs`, one with these as channels
        behind the classes, which shares all else; mostly the link itself.
        """
        outputs = self.background_outputs
        if outputs is None or (len(self.scales) == 1 and not self.flip):
            return self
        link, decoder, conv = map(copy.copy, (
            self, self.decoder, self.decoder.conv_logits))
        link.decoder, decoder.conv_logits = decoder, conv
        for name, more in ('W', outputs[:, :-1, None, None]), (
                'b', outputs[:, -1]):
            known = cuda.to_cpu(getattr(conv, name).array)
            setattr(conv, name, chainer.Parameter(
                self.device.send(np.concatenate([known, more]))))
        return link

    def onnx_model(self, *args, **kwargs) -> bytes:
        """Return the network as an ONNX model; see `onnx_graph.onnx_model`."""
        from .onnx_graph import onnx_model
        self._check_own('forward')
        return onnx_model(self, *args, **kwargs)

    def memory_needed(self, height: int, width: int) -> float:
        """Return about how many more bytes `predict` takes for an image, once
        the network is compiled; on a GPU this compiles it.
        """
        network = (self._engine or ChainerEngine(self) if self.xp is np else
                   self.compile())
        return network.memory_needed(self, *self.padded_size(height, width))

    def free_memory(self) -> float:
        """Return the bytes that are free where the link is."""
        return memory.free_memory(self)

    def device_resident_accept(self, visitor):
        """Move as Chainer does. `predict` then runs on what suits the device,
        unless `to_chainer` was called.
        """
        was_on_cpu = self.xp is np
        super().device_resident_accept(visitor)
        if self.xp is cuda.cupy:
            with chainer.using_device(self.device):
                gpu.set_up()
                if self._engine is not None:
                    self._engine_is_required = False
                    self._engine = CuPyEngine(
                        'tf32' if gpu.uses_tf32() else 'float32')
        elif self._engine is not None and not was_on_cpu:
            self.to_openvino(required=False)

    def copy(self, mode='share'):
        """Copy the link as Chainer does; the copy compiles its own network."""
        link = super().copy(mode)
        link._engine = copy.copy(self._engine)
        return link

    def _check_own(self, name):
        """Raise BackendError where a subclass has a method of its own."""
        if getattr(type(self), name) is not getattr(
                DeepLabV3plusXception65, name):
            raise BackendError(f'{type(self).__name__} has a `{name}` of its '
                               'own, which has no form as a graph')


class FrozenChildren:
    """In place of the names of a frozen link's children: there are none, and
    nobody may save, load, copy or train them.
    """

    def refuse(self, *_):
        raise InputError('the link was frozen, and can only predict: load it '
                         'again')

    __iter__ = __reduce__ = refuse

    def __len__(self):
        return 0


def _either(given, known):
    return known if given is None else given


def check_image(image):
    """Raise InputError for anything but an array (3, H, W) of real numbers."""
    is_array = isinstance(image, np.ndarray)
    check('an image', f'{image.dtype} of shape {image.shape}' if is_array else
          f'of type {type(image).__name__}',
          is_array and image.dtype.kind in 'biuf' and image.ndim == 3
          and image.shape[0] == 3 and image.size > 0,
          'a numpy.ndarray (3, H, W) of real numbers, RGB in [0, 255]; predict '
          'takes a list of them')


def check_settings(link):
    """Raise InputError for values that no network has."""
    check('n_class', link.n_class, are_integers([link.n_class], 1, math.inf),
          'a positive integer, or that of a pretrained model')
    check('min_input_size', link.min_input_size,
          are_integers(link.min_input_size, 2, constants.MAX_INPUT_SIDE),
          f'one integer or two, 1 to {constants.MAX_INPUT_SIDE} pixels')
    check('scales', link.scales, link.scales and all(
        0 < scale <= constants.MAX_SCALE for scale in link.scales),
        f'one or more positive numbers up to {constants.MAX_SCALE}')
    check('output_stride', link.output_stride,
          link.output_stride in constants.OUTPUT_STRIDES,
          ' or '.join(map(str, constants.OUTPUT_STRIDES)))


def check(name, value, is_valid, form):
    if not is_valid:
        raise InputError(f'{name} is {value}, and must be {form}')


def are_integers(values, count, maximum):
    return len(values) == count and all(
        isinstance(value, numbers.Integral) and 0 < value <= maximum
        for value in values)
