"""Convert graphs, tampered with or not, for several tests."""
import numpy as np
from conftest import SMALL, convert
from fixture_graph import FixtureGraph
from fixture_weights import random_weights
from tensorboard.compat.proto.graph_pb2 import GraphDef

from convert.frozen_graph import FrozenGraph
from convert.verification import built_in_image, verify


def equal_labels(source, tmp_path):
    """Convert a graph; compare with TensorFlow on the graph itself."""
    conversion = convert(source, 'voc', tmp_path / 'a.npz')
    found, = verify(conversion, tmp_path / 'a.npz', {
        'built-in': built_in_image(conversion.min_input_size)})
    return found['equal_labels']


def written(tmp_path, **options):
    """Write a graph with random weights, made with options."""
    weights = options.pop('weights', None) or random_weights(21)
    graph = FixtureGraph(weights, 21, options.pop('crop', SMALL), **options)
    path = tmp_path / 'g.pb'
    path.write_bytes(graph.graph.SerializeToString())
    return path


def tampered(graph, change):
    graph = GraphDef.FromString(graph.SerializeToString())
    nodes = {node.name: node for node in graph.node}
    change(graph, nodes)
    return FrozenGraph(graph.SerializeToString(), 'g.pb')


def ones(name, shape):
    return np.ones(shape, np.float32)
