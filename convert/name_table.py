"""TensorFlow's name of each weight, and the link's: one table."""
from models.constants import MIDDLE_BLOCKS

# TensorFlow's name of a weight below its scope -> the link's below its path,
# and the axes of the transposition between them (None: none).
CONV = {'weights': ('W', (3, 2, 0, 1))}  # HWIO -> OIHW
DEPTHWISE = {'depthwise_weights': ('W', (2, 3, 0, 1))}  # HWC1 -> C1HW
BIAS = {'biases': ('b', None)}
BATCH_NORM = {'gamma': ('gamma', None), 'beta': ('beta', None),
              'moving_mean': ('avg_mean', None),
              'moving_variance': ('avg_var', None)}
LOGITS = 'logits/semantic'  # scope of the last convolution

# A layer has parts: suffix of the scope, suffix of the path, weights.
CONV_BN = (('', '/conv', CONV), ('/BatchNorm', '/bn', BATCH_NORM))
SEPARABLE = (
    ('_depthwise', '/depthwise', DEPTHWISE),
    ('_depthwise/BatchNorm', '/dw_bn', BATCH_NORM),
    ('_pointwise', '/pointwise', CONV),
    ('_pointwise/BatchNorm', '/pw_bn', BATCH_NORM))
CLASSIFIER = (('', '', {**CONV, **BIAS}),)


def layers():
    """Yield (TensorFlow scope, link path, parts) of every layer."""
    backbone = 'feature_extractor'
    for i in (1, 2):
        yield (f'xception_65/entry_flow/conv1_{i}',
               f'{backbone}/entryflow_conv{i}', CONV_BN)
    blocks = [
        *((f'entry_flow/block{i}/unit_1', f'entryflow_block{i}', True)
          for i in (1, 2, 3)),
        *((f'middle_flow/block1/unit_{i}', f'middleflow_block{i}', False)
          for i in MIDDLE_BLOCKS),
        ('exit_flow/block1/unit_1', 'exitflow_block1', True),
        ('exit_flow/block2/unit_1', 'exitflow_block2', False),
    ]
    for unit, block, has_shortcut in blocks:
        scope = f'xception_65/{unit}/xception_module'
        for i in (1, 2, 3):
            yield (f'{scope}/separable_conv{i}',
                   f'{backbone}/{block}/separable{i}', SEPARABLE)
        if has_shortcut:
            yield f'{scope}/shortcut', f'{backbone}/{block}/conv', CONV_BN
    yield 'image_pooling', 'aspp/image_pooling_conv', CONV_BN
    yield 'aspp0', 'aspp/conv1x1', CONV_BN
    for i in (1, 2, 3):
        yield f'aspp{i}', f'aspp/atrous{i}', SEPARABLE
    yield 'concat_projection', 'aspp/proj', CONV_BN
    yield 'decoder/feature_projection0', 'decoder/feature_proj', CONV_BN
    yield 'decoder/decoder_conv0', 'decoder/conv1', SEPARABLE
    yield 'decoder/decoder_conv1', 'decoder/conv2', SEPARABLE
    yield LOGITS, 'decoder/conv_logits', CLASSIFIER


def weight_table():
    """Return TensorFlow weight -> (link array, axes)."""
    table = {}
    for scope, path, parts in layers():
        for scope_suffix, path_suffix, weights in parts:
            for name, (target, axes) in weights.items():
                table[f'{scope}{scope_suffix}/{name}'] = (
                    f'{path}{path_suffix}/{target}', axes)
    return table
