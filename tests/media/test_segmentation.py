"""Segmentation within the memory, in tiles."""
import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
from fixture_images import write_image

from media.images import read_image
from media.segmentation import Segmenter, grid_of, predict_within
from models import DeepLabV3plusXception65
from models.resizing import ResizeRange
from models.utils.errors import InputError


def test_another_precision_is_compared_once():
    """Of 40 labels, 10 are others in float32."""
    class Model:
        precision, resize_range = 'bfloat16', None

        def memory_needed(self, height, width):
            return 1

        def predict(self, images):
            label = np.zeros((4, 10), np.int32)
            label[0] = self.precision == 'float32'
            return [label for _ in images]

        @contextlib.contextmanager
        def in_float32(self):
            self.precision = 'float32'
            yield
            self.precision = 'bfloat16'

    segmenter = Segmenter(Model(), memory=9)
    said = []
    for _ in range(2):
        label, record, notes = segmenter.segment(np.zeros((3, 4, 10), 'f'))
        assert record['precision'] == 'bfloat16'
        assert not label.any()
        said += notes
    assert said == ['in bfloat16, labels 75.00% equal to float32']


@pytest.mark.parametrize(('stride', 'scales', 'grid'), [
    (8, (1,), 8), (16, (1,), 16), (8, (0.75, 1, 1.25), 32),
    (16, (0.5, 1.75), 64), (8, (1.3,), 80), (8, (0.99,), 8)])
def test_tiles_begin_where_the_network_samples(stride, scales, grid):
    model = SimpleNamespace(output_stride=stride, scales=scales)
    assert grid_of(model) == grid
    for scale in scales:
        assert scale == 0.99 or (grid * scale) % stride == pytest.approx(0)


@pytest.mark.slow
@pytest.mark.parametrize(('output_stride', 'scales'), [
    (8, (1,)), (16, (1,)), (16, (0.75, 1, 1.25))])
def test_tiles_agree_with_the_whole(palette_graphs, tmp_path, output_stride,
                                    scales):
    _, npz = palette_graphs('cityscapes')
    image = read_image(write_image(tmp_path / 'a.png', size=(321, 449)))
    model = DeepLabV3plusXception65(
        pretrained_model=npz, min_input_size=65, output_stride=output_stride,
        scales=scales)
    whole, count = predict_within(model, image, 8e9)
    assert count == 1
    model.to_openvino()  # has held nothing yet
    label, count = predict_within(
        model, image, model.memory_needed(265, 265))
    assert count >= 6
    np.testing.assert_array_equal(label, whole)
    with pytest.raises(InputError, match='even a small tile'):
        predict_within(model.to_openvino(), image, 1e6)
    model.resize_range = ResizeRange(129)
    with pytest.raises(InputError, match='that resizes images cannot work in'):
        predict_within(model, image, 1e6)
