"""Who takes part in speed.py: this project, others, and the floor.

Each contender takes the files of one model (see speed.py's `describe`), loads
it, and returns a function from an image, float32 CHW RGB, to labels (H, W); or
a link with `predict`. What is not installed raises ImportError.
"""
import os
import pathlib

import numpy as np


def floor(files):
    products = [(rng_array(m, k), rng_array(k, n), np.empty((m, n), 'f'))
                for m, k, n in matrix_products(files['onnx'], files['size'])]

    def run(image):
        for a, b, out in products:
            np.matmul(a, b, out=out)

    return run


def rng_array(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def matrix_products(path, size):
    """Return (m, k, n) of each dense convolution, as a matrix product."""
    import onnx
    model = onnx.load(path)
    for side, dim in zip(
            size, model.graph.input[0].type.tensor_type.shape.dim[2:],
            strict=True):
        dim.dim_value = side
    kernels = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {value.name: [dim.dim_value for dim
                           in value.type.tensor_type.shape.dim]
              for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type == 'Conv':
            out_channels, in_channels, kh, kw = kernels[node.input[1]]
            if in_channels > 1:  # not depthwise
                _, _, height, width = shapes[node.output[0]]
                yield out_channels, in_channels * kh * kw, height * width


def openvino(files):
    return ours(files).to_openvino().freeze()


def chainer(files):
    return ours(files).to_chainer()


def ours(files):
    from models import DeepLabV3plusXception65
    return DeepLabV3plusXception65(pretrained_model=files['npz'])


def chainercv(files):
    import models  # noqa: F401, I001  (before Chainer)
    import chainer
    from chainercv.links import DeepLabV3plusXception65

    from models.head import HEAD_EPS
    from models.xception import BACKBONE_EPS
    chainer.config.train = False
    return DeepLabV3plusXception65(
        files['n_class'], files['npz'], files['size'],
        extractor_kwargs={'bn_kwargs': {'eps': BACKBONE_EPS}},
        aspp_kwargs={'bn_kwargs': {'eps': HEAD_EPS}},
        decoder_kwargs={'bn_kwargs': {'eps': HEAD_EPS}})


def tensorflow(files):
    import os
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import tensorflow as tf
    data = pathlib.Path(files['pb']).read_bytes()
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(
            tf.compat.v1.GraphDef.FromString(data), name='')
    session = tf.compat.v1.Session(graph=graph)

    def run(image):
        image = image.transpose(1, 2, 0)[np.newaxis].astype(np.uint8)
        return session.run('SemanticPredictions:0', {'ImageTensor:0': image})[0]

    return run


def onnxruntime(files):
    os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
    import onnxruntime as ort

    from models.label_map import label_map
    session = ort.InferenceSession(
        files['onnx'], providers=['CPUExecutionProvider'])

    def run(image):
        logits, = session.run(None, {'image': prepare(image)[None]})
        return label_map([logits[0]], image.shape[1:], image.shape[1:])

    return run


def pytorch(files):
    import onnx
    import torch
    model = onnx.load(files['onnx'])
    constants = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in model.graph.initializer}

    @torch.inference_mode()
    def run(image):
        x = torch.from_numpy(prepare(image)[None])
        logits = run_in_pytorch(model.graph.node, {**constants, 'image': x})
        logits = torch.nn.functional.interpolate(
            logits, x.shape[2:], mode='bilinear', align_corners=True)
        return logits[0].argmax(0).numpy()

    return run


def run_in_pytorch(nodes, tensors):
    """Run the nodes of a graph of models/onnx_graph.py; return the last."""
    import onnx
    import torch
    import torch.nn.functional as F
    uses = {name: i for i, node in enumerate(nodes) for name in node.input}
    for i, node in enumerate(nodes):
        x, *others = (tensors.get(name) for name in node.input)
        options = {attribute.name: onnx.helper.get_attribute_value(attribute)
                   for attribute in node.attribute}
        if node.op_type == 'Conv':
            y = F.conv2d(x, *others, options['strides'], options['pads'][:2],
                         options['dilations'], options['group'])
        elif node.op_type == 'Shape':
            y = torch.tensor(x.shape)[options.get('start', 0):options['end']]
        elif node.op_type == 'Concat':
            y = torch.cat([x, *others], options['axis'])
        elif node.op_type == 'Resize':
            y = F.interpolate(x, others[-1][2:].tolist(), mode='bilinear',
                              align_corners=True)
        else:
            y = {'Relu': torch.relu, 'Add': torch.add,
                 'Expand': lambda x, size: x.expand(-1, -1, *size[2:].tolist()),
                 'GlobalAveragePool': lambda x: x.mean((2, 3), keepdim=True),
                 'Identity': lambda x: x}[node.op_type](x, *others)
        tensors[node.output[0]] = y
        for name in node.input:
            if uses[name] == i:  # the last use
                tensors.pop(name, None)
    return y


def prepare(image):
    from models.constants import OFFSET, SCALE
    return image * np.float32(SCALE) - OFFSET


OURS, FLOOR = 'this project, OpenVINO', 'matrix products alone (floor)'
CONTENDERS = {  # in the order of the table
    OURS: openvino,
    'ONNX Runtime, exported file': onnxruntime,
    'PyTorch, same graph': pytorch,
    'TensorFlow, frozen graph': tensorflow,
    'this project, Chainer': chainer,
    'ChainerCV': chainercv,
    FLOOR: floor,
}
