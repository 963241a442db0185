"""DeepLabV3+ on an Xception65 backbone.

The network of Chen et al., "Encoder-Decoder with Atrous Separable Convolution
for Semantic Image Segmentation" (ECCV 2018), as the official TensorFlow code
builds it, under ChainerCV's parameter names. Layouts are NCHW, float32.

`DeepLabV3plusXception65` joins the backbone (xception.py) and the head
(head.py), and turns images into labels.
"""
import contextlib
import copy
import math
import numbers
import warnings
from collections.abc import Iterable, Sequence
from os import PathLike

import chainer
import chainer.functions as F
import numpy as np
from chainer.backends import cuda

from . import memory
from .constants import (
    LOGITS_STRIDE,
    MAX_INPUT_SIDE,
    MAX_RATE,
    OFFSET,
    OUTPUT_STRIDES,
    PAD_VALUE,
    SCALE,
)
from .cupy_engine import CuPyEngine
from .head import Decoder, SeparableASPP
from .label_map import label_map
from .openvino_engine import OpenVINOEngine
from .pretrained import pretrained_path
from .resize_range import resize_image, resize_labels
from .utils.errors import BackendError, InputError
from .weights import NoWeights, WeightsFile, leave_unset
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
    `to_chainer` choose. On a GPU it runs the network through CuPy; `to_gpu` is
    enough. Everything else runs on Chainer: a call of the link, training.

    Attributes:
        metadata (dict): what the npz says, see `models.weights`; may be empty.
        resize_range (models.resize_range.ResizeRange): to which images are
            resized first, as the pretrained model's graph does; mostly None.

    Raises:
        InputError: an argument is invalid, or the model is missing or does
            not fit.
    """

    _gpu_engine = None  # where the link is on a GPU

    def __init__(self, n_class: int | None = None,
                 pretrained_model: str | PathLike | None = None,
                 min_input_size: int | tuple[int, int] | None = None,
                 scales: Sequence[float] | None = None,
                 flip: bool | None = None, *, output_stride: int | None = None,
                 initialW=None, atrous_rates: Sequence[int] | None = None):
        super().__init__()
        known = NoWeights()
        if pretrained_model is not None:
            known = WeightsFile(
                pretrained_path(pretrained_model, check_weights))
            initialW = leave_unset
        self.metadata, self._is_frozen = known.metadata, False
        self.n_class = check_class_count(n_class, known.n_class)
        self.min_input_size = check_height_and_width(
            _either(min_input_size, known.min_input_size))
        self.scales = check_scales(_either(scales, known.scales))
        self.flip = bool(_either(flip, known.flip))
        self.resize_range = known.resize_range
        self.output_stride = check_output_stride(
            _either(output_stride, known.output_stride))
        if atrous_rates is None:
            atrous_rates = known.atrous_rates(self.output_stride)
        with self.init_scope():
            self.feature_extractor = Xception65(self.output_stride, initialW)
            self.aspp = SeparableASPP(
                2048, 256, check_atrous_rates(atrous_rates), initialW)
            self.decoder = Decoder(256, self.n_class, initialW=initialW)
        self.cleargrads()
        known.load_into(self)
        self.to_openvino(required=False)

    @property
    def atrous_rates(self) -> tuple[int, int, int]:
        """Dilations of the ASPP's branches."""
        return tuple(self.aspp[f'atrous{i}'].depthwise.dilate[0]
                     for i in (1, 2, 3))

    def forward(self, x):
        """Compute logits.

        Args:
            x (array or Variable, (B, 3, H, W), float32): prepared images.

        Returns:
            Variable, (B, n_class, ceil(H/4), ceil(W/4)), float32.
        """
        self._check_not_frozen()
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
            InputError: the image has another shape.
        """
        image = self._resized(image)
        _, H, W = image.shape
        padded = np.full((3, *self._padded_size(H, W)), PAD_VALUE, np.float32)
        padded[:, :H, :W] = image
        padded *= np.float32(SCALE)
        padded -= np.float32(OFFSET)
        return padded

    def _resized(self, image):
        """Check an image (3, H, W) and resize it to `resize_range`."""
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise InputError(f'an image has shape {image.shape}, and must be '
                             'CHW with three channels (RGB)')
        size = self.resized_size(*image.shape[1:])
        return image if size == image.shape[1:] else resize_image(image, size)

    def _padded_size(self, height, width):
        return (max(height, self.min_input_size[0]),
                max(width, self.min_input_size[1]))

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size that an image has after `resize_range`."""
        if self.resize_range is None:
            return height, width
        return tuple(self.resize_range.size(height, width).tolist())

    def predict(self, imgs: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Segment images.

        Args:
            imgs (iterable of numpy.ndarray, (3, H, W)): RGB in [0, 255],
                each of any size.

        Returns:
            list of numpy.ndarray, (H, W), int32: the class of each pixel.

        Raises:
            InputError: an image has another shape or needs more memory than
                is free, or a required backend is unavailable.
        """
        network = self.compile()
        with _inference():
            return [self._predict_one(img, network) for img in imgs]

    def to_openvino(self, threads: int | None = None, required: bool = True,
                    precision: str = 'float32') -> 'DeepLabV3plusXception65':
        """Have `predict` run the network through OpenVINO on a CPU.

        A new link does, with `required=False`. Changed weights are noticed at
        each `predict`.

        Args:
            threads (int): number of threads; by default one for each core.
            required (bool): raise BackendError where OpenVINO is not installed
                or cannot run the link; if false, warn and use Chainer.
            precision (str): 'float32', or 'bfloat16', twice as fast, for
                processors that have it; some labels then differ.

        Returns:
            The link itself.
        """
        self._check_not_frozen()
        self._engine = OpenVINOEngine(threads, precision)
        self._engine_is_required = required
        if required:
            self._engine.check_usable()
        return self

    def to_chainer(self) -> 'DeepLabV3plusXception65':
        """Have `predict` run the network through Chainer; return the link."""
        self._check_not_frozen()
        self._engine = None
        return self

    @property
    def precision(self) -> str:
        """'float32', or 'bfloat16', see `to_openvino`; or 'tf32' on a GPU."""
        engine = self._present_engine
        return 'float32' if engine is None else engine.precision

    @property
    def _present_engine(self):
        """The engine where the link is now; None for Chainer."""
        if self.xp is np or self._engine is None:
            return self._engine
        return self._gpu_engine

    @contextlib.contextmanager
    def in_float32(self):
        """In the body, have `predict` compute in float32."""
        engine = self._present_engine
        name = '_engine' if self.xp is np else '_gpu_engine'
        if engine is not None:
            setattr(self, name, engine.in_float32())
        try:
            yield
        finally:
            if engine is not None:
                setattr(self, name, engine)

    def freeze(self) -> 'DeepLabV3plusXception65':
        """Give the weights up once OpenVINO or CuPy has them, 165 MB, and
        return the link: it can then do nothing but `predict`, as it is.

        Where `predict` runs on Chainer, this does nothing.
        """
        if self.compile() is self._present_engine and not self._is_frozen:
            for name in list(self._children):
                delattr(self, name)
            self._is_frozen = True
        return self

    def compile(self):
        """Return the network on the chosen backend, with present weights.

        It is a callable from a prepared image (1, 3, H, W) to logits (1,
        n_class, ceil(H/4), ceil(W/4)), both arrays, float32, and never in
        training mode.
        Raise BackendError, see `to_openvino`.
        """
        engine = self._present_engine
        if self._is_frozen:
            return engine
        if engine is not None:
            try:
                self._check_forward()
                engine.update(self)
                return engine
            except BackendError as error:
                if self._engine_is_required and self.xp is np:
                    raise
                warnings.warn(f'{error}: predict runs on Chainer instead, '
                              'several times as slow', stacklevel=3)
                self.to_chainer()
        return self._run_chainer

    def onnx_model(self, metadata: dict[str, str] | None = None,
                   **options) -> bytes:
        """Return the network as an ONNX model; see `onnx_graph.onnx_model`."""
        from .onnx_graph import onnx_model
        self._check_not_frozen()
        self._check_forward()
        return onnx_model(self, metadata, **options)

    def memory_needed(self, height: int, width: int) -> float:
        """Return about how many more bytes `predict` takes for an image.

        On a CPU it is known after `compile`.
        """
        if self.xp is not np:
            self.compile()
        return memory.memory_needed(self, self._present_engine, height, width)

    def free_memory(self) -> float:
        """Return the bytes that are free where the link is."""
        return memory.free_memory(self)

    def device_resident_accept(self, visitor):
        """Move as Chainer does; on a GPU, choose Chainer's settings for it."""
        self._check_not_frozen()
        super().device_resident_accept(visitor)
        self._gpu_engine = None
        if self.xp is cuda.cupy:
            from . import gpu
            with chainer.using_device(self.device):
                gpu.set_up()
                self._gpu_engine = CuPyEngine(
                    'tf32' if gpu.uses_tf32() else 'float32')

    def copy(self, mode='share'):
        """Copy the link as Chainer does; the copy compiles its own network."""
        self._check_not_frozen()
        link = super().copy(mode)
        link._engine = copy.copy(self._engine)
        link._gpu_engine = copy.copy(self._gpu_engine)
        return link

    def _check_forward(self):
        if type(self).forward is not DeepLabV3plusXception65.forward:
            raise BackendError(f'{type(self).__name__} has a `forward` of its '
                               'own, which has no form as a graph')

    def _check_not_frozen(self):
        if self._is_frozen:
            raise InputError('the link was frozen, and can only predict: load '
                             'it again')

    def __reduce_ex__(self, protocol):
        """Pickle, or copy deeply, as Chainer does."""
        self._check_not_frozen()
        return super().__reduce_ex__(protocol)

    def serialize(self, serializer):
        """Save or load the weights as Chainer does."""
        self._check_not_frozen()
        super().serialize(serializer)

    def copyparams(self, link, copy_persistent=True):
        """Take another link's weights as Chainer does."""
        self._check_not_frozen()
        super().copyparams(link, copy_persistent)

    def addgrads(self, link):
        """Add another link's gradients as Chainer does."""
        self._check_not_frozen()
        super().addgrads(link)

    def params(self, include_uninit=True):
        """Yield the parameters as Chainer does, for optimizers say."""
        self._check_not_frozen()
        yield from super().params(include_uninit)

    def namedparams(self, include_uninit=True):
        """Yield the parameters with their paths as Chainer does."""
        self._check_not_frozen()
        yield from super().namedparams(include_uninit)

    def _run_chainer(self, x):
        if self.xp is np:
            height, width = x.shape[2:]
            memory.check_memory(f'an image of {height} x {width} pixels',
                                memory.chainer_memory(self, height, width))
        with _inference():
            return self(x).array

    def _predict_one(self, img, network):
        if self.xp is not np:
            memory.make_room(memory.memory_needed(
                self, self._present_engine, *img.shape[1:]))
        if isinstance(network, CuPyEngine):
            resized = self._resized(img)
            label = network.label_map(
                resized, self._padded_size(*resized.shape[1:]), self.scales,
                self.flip)
            return resize_labels(label, img.shape[1:])
        x = self.xp.asarray(self.prepare(img)[np.newaxis])  # (1, 3, h, w)
        logits = list(self._logits(x, network))
        label = label_map(logits, x.shape[2:],
                          self.resized_size(*img.shape[1:]))
        return resize_labels(label, img.shape[1:])

    def _logits(self, x, network):
        """Yield logits (n_class, h, w) at each scale, also of x mirrored."""
        for scale in self.scales:
            scaled = x if scale == 1.0 else F.resize_images(
                x, [int((side - 1) * scale + 1) for side in x.shape[2:]]).array
            for step in (1, -1) if self.flip else (1,):
                y = network(scaled[:, :, :, ::step])[:, :, :, ::step]
                if scale < 1:  # first to the size at scale 1, as officially
                    y = F.resize_images(y, [math.ceil(side / LOGITS_STRIDE)
                                            for side in x.shape[2:]]).array
                yield y[0]


def check_weights(path):
    """Raise InputError where the weights in an npz do not fit the link."""
    DeepLabV3plusXception65(pretrained_model=path)


def _either(given, known):
    return known if given is None else given


@contextlib.contextmanager
def _inference():
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield


def check_class_count(n_class, known):
    """Take n_class, else the known count of the pretrained model."""
    if n_class is None and known is None:
        raise InputError('n_class is needed without a pretrained model')
    if n_class is not None and not _is_count(n_class):
        raise InputError(f'n_class is {n_class}, and must be a positive '
                         'integer')
    if None not in (n_class, known) and n_class != known:
        raise InputError(f'n_class is {n_class}, but the pretrained model has '
                         f'{known} classes: leave n_class out')
    return known if n_class is None else n_class


def check_height_and_width(size):
    sides = tuple(size) if np.ndim(size) else (size, size)
    if len(sides) != 2 or not all(
            _is_count(side) and side <= MAX_INPUT_SIDE for side in sides):
        raise InputError(
            f'min_input_size is {size}, and must be one integer or two, 1 to '
            f'{MAX_INPUT_SIDE} pixels')
    return int(sides[0]), int(sides[1])


def _is_count(value):
    return isinstance(value, numbers.Integral) and value > 0


def check_scales(scales):
    scales = tuple(scales)
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise InputError(f'scales are {scales}, and must be one or more '
                         'positive numbers')
    return scales


def check_atrous_rates(rates):
    rates = tuple(rates)
    if len(rates) != 3 or not all(
            _is_count(rate) and rate <= MAX_RATE for rate in rates):
        raise InputError(f'atrous_rates are {rates}, and must be three '
                         f'integers, 1 to {MAX_RATE}')
    return rates


def check_output_stride(output_stride):
    if output_stride not in OUTPUT_STRIDES:
        raise InputError(f'output_stride is {output_stride}, and must be '
                         f'{" or ".join(map(str, OUTPUT_STRIDES))}')
    return output_stride
