"""Say what a source is, where it is another network than the link."""
import re

from models.utils.errors import InputError, shortened

BACKBONE = re.compile(r'xception_\d+|MobilenetV\d\w*|resnet_v\d_\d+\w*')
VARIABLE_OPS = {'Variable', 'VariableV2', 'VarHandleOp'}
# A prefix of names of weights, whether there must be some, and what it means
# if that is not so; the first one that applies is said.
PARTS = [
    ('meta_architecture/', False, 'has a dense prediction cell '
     '(--dense_prediction_cell_json), which the link has not'),
    ('concat_projection/', True, 'is a backbone without the head, as '
     'pretrained on ImageNet: take a model trained for segmentation'),
    ('decoder/', True, 'has no decoder: train and export it with '
     '--decoder_output_stride=4'),
    ('image_pooling/', True, 'has no image pooling '
     '(--add_image_level_feature=false), which the link has'),
    ('aspp1/', False, 'has plain convolutions in the ASPP '
     '(--aspp_with_separable_conv=false), and the link separable ones'),
    ('aspp1_depthwise/', True, 'has no atrous branches: train and export it '
     'with --atrous_rates'),
    ('decoder/decoder_conv0/', False, 'has plain convolutions in the decoder '
     '(--decoder_use_separable_conv=false), and the link separable ones'),
]


def backbones(source):
    """Return the names of the backbones that a source has."""
    found = map(BACKBONE.match, source.weights)
    return sorted({match[0] for match in found if match})


def check_network(source):
    """Raise InputError unless a source is DeepLabV3+ with Xception65; say
    what it is.
    """
    if source.is_graph and not source.weights and any(
            node.op in VARIABLE_OPS for node in source.nodes.values()):
        raise InputError(
            f'{source.path} is a graph that is not frozen, its weights are in '
            'a checkpoint: convert that (model.ckpt), or export a frozen graph '
            'with export_model.py')
    found = backbones(source)
    if found != ['xception_65']:
        scopes = sorted({name.partition('/')[0] for name in source.weights})
        kind = ' and '.join(found) or (
            f'its weights: {shortened(scopes) or "no weights"}')
        raise InputError(f'{source.path} is another network ({kind}); only '
                         'DeepLabV3+ with xception_65 is supported')
    for prefix, wanted, meaning in PARTS:
        if any(name.startswith(prefix) for name in source.weights) != wanted:
            raise InputError(f'{source.path} {meaning}')
