"""Numbers of the network and its datasets that several files need.

Sizes are (height, width) in pixels.
"""

# The network reads pixel * SCALE - OFFSET, in [-1, 1].
SCALE, OFFSET = 2 / 255, 1
PAD_VALUE = 127.5  # grey around small images; 0 after SCALE and OFFSET
MAX_INPUT_SIDE = 1 << 14
MAX_SCALE = 8  # of an image
MAX_RATE = 1024  # dilation of a convolution
OUTPUT_STRIDE = 8  # default
# The output stride (input size / ASPP input size) sets the stride of entry
# flow block 3 and the dilations after it.
OUTPUT_STRIDES = {
    8: {'stride': 1, 'middle': 2, 'exit': 4, 'aspp': (12, 24, 36)},
    16: {'stride': 2, 'middle': 1, 'exit': 2, 'aspp': (6, 12, 18)},
}
LOGITS_STRIDE = 4  # input size / size of the logits
# Batch norm's epsilon, as in TensorFlow's graph. In the head the official code
# has 1e-5, which TensorFlow 1 raised to cuDNN's minimum.
BACKBONE_EPS, HEAD_EPS = 1e-3, 1.001e-5
MIDDLE_BLOCKS = range(1, 17)  # numbers of the middle flow's blocks

MIN_INPUT_SIZE = 513, 513  # default; smaller images are padded
# The official models. The first `background_offset` outputs of the TensorFlow
# graph are no classes: ADE20K's output 0 is "other".
DATASETS = {
    'voc': {'n_class': 21, 'background_offset': 0,
            'min_input_size': MIN_INPUT_SIZE},
    'cityscapes': {'n_class': 19, 'background_offset': 0,
                   'min_input_size': (1025, 2049)},
    'ade20k': {'n_class': 150, 'background_offset': 1,
               'min_input_size': MIN_INPUT_SIZE},
}
