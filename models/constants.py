"""Numbers of the network that more than one file must know; quickly imported.

Sizes are in pixels, (height, width).
"""

# The network reads pixel * SCALE - OFFSET, in [-1, 1].
SCALE, OFFSET = 2 / 255, 1
PAD_VALUE = 127.5  # grey level around small images; becomes 0 in the network
INPUT_SIZE = 513, 513  # to which images are padded where nothing else is known
MAX_INPUT_SIDE = 1 << 14
OUTPUT_STRIDE = 8  # where nothing else is known
# What the output stride (input size / ASPP input size) sets: the stride of
# entry flow block 3, and the dilations of what follows it.
OUTPUT_STRIDES = {
    8: {'stride': 1, 'middle': 2, 'exit': 4, 'aspp': (12, 24, 36)},
    16: {'stride': 2, 'middle': 1, 'exit': 2, 'aspp': (6, 12, 18)},
}
LOGITS_STRIDE = 4  # input size / size of the logits
MIDDLE_BLOCKS = range(1, 17)  # numbers of the middle flow's blocks
