"""What --inspect says."""
import json

from tensorboard.compat.proto.graph_pb2 import GraphDef


def test_inspect(skeleton, tmp_path, run_script):
    (tmp_path / 'g.pb').write_bytes(skeleton)
    result = run_script('tf2npz.py', '--inspect', tmp_path / 'g.pb', '--json')
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found['problem'] is None
    expected = {
        'dataset': 'voc', 'classes': 21, 'outputs': 21,
        'backbone': 'xception_65', 'output_stride': 8,
        'atrous_rates': [12, 24, 36],
        'min_input_size': [513, 513],
        'parameters': 41258213, 'dropped': [], 'kind': 'frozen graph'}
    assert {key: found[key] for key in expected} == expected
    assert len(found['weights']) == 732
    assert found['weights']['aspp0/weights'] == {
        'shape': [1, 1, 2048, 256], 'target': 'aspp/conv1x1/conv/W',
        'target_shape': [256, 2048, 1, 1]}
    text = run_script('tf2npz.py', '--inspect', tmp_path / 'g.pb').stdout
    assert 'atrous rates   12, 24, 36\n' in text
    assert ('aspp0/weights 1x1x2048x256 -> aspp/conv1x1/conv/W '
            '256x2048x1x1\n') in text


def test_inspect_another_network(tmp_path, run_script):
    graph = GraphDef()
    for name in 'MobilenetV2/Conv/weights', 'logits/semantic/weights':
        graph.node.add(name=name, op='Const')
        graph.node.add(name=f'{name}/Conv2D', op='Conv2D', input=['', name])
    (tmp_path / 'g.pb').write_bytes(graph.SerializeToString())
    result = run_script('tf2npz.py', '--inspect', tmp_path / 'g.pb')
    assert result.returncode == 1
    assert 'backbone       MobilenetV2\n' in result.stdout
    assert 'another network' in result.stderr
