"""The page with all results."""
import os

import numpy as np
import pytest
from fixture_images import write_image

from media.inputs import Input
from media.results_page import ResultsPage
from media.visualization import Style
from models.classes import label_colors, label_names

CHECK_PAGE = '''<script>
const painted = () => {
  const canvas = document.querySelector('canvas');
  const data = canvas.getContext('2d').getImageData(
    0, 0, canvas.width, canvas.height).data;
  return data.filter((value, i) => i % 4 == 3 && value).length;
};
const check = () => {
  if (!painted()) {
    setTimeout(check, 20);
    return;
  }
  const button = document.querySelector('button');
  const found = [painted()];
  button.focus();
  button.click();  // what Enter does
  found.push(painted());
  button.click();
  button.dispatchEvent(new Event('pointerenter'));
  found.push(painted());
  const slider = document.querySelector('input');
  slider.value = 20;
  slider.dispatchEvent(new Event('input'));
  found.push(document.querySelector('canvas').style.clipPath);
  found.push(document.documentElement.scrollWidth <= innerWidth);
  document.title = JSON.stringify(found);
};
addEventListener('load', check);
</script>'''


@pytest.mark.slow
def test_page(demo, tmp_path):
    picture = write_image(tmp_path / 'a <b>.png')
    result = demo(picture, '--html', 'a.html')
    assert result.returncode == 0, result.stderr
    assert os.listdir(demo.folder) == ['a.html']
    page = (demo.folder / 'a.html').read_text()
    assert 'a &lt;b&gt;.png' in page
    assert 'http' not in page


def test_page_in_a_browser(browse, tmp_path):
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(19, size=(3, 4)), np.ones((24, 24), int))
    each = Input('a', 'a')
    page = ResultsPage(tmp_path / 'a.html', [each], Style(
        label_names('cityscapes'), label_colors('cityscapes')))
    page.add(each, np.zeros((3, 72, 96), np.float32), label)
    page.write()
    most = np.bincount(label.ravel()).max()
    assert browse(tmp_path / 'a.html', CHECK_PAGE, 500) == (
        f'[{label.size},{label.size - most},{most},"inset(0px 0px 0px 20%)",'
        'true]')


@pytest.mark.slow
def test_page_beside_pictures(demo, tmp_path):
    picture = write_image(tmp_path / 'a.png')
    result = demo(picture, '--html', 'a.html', '--output', 'out')
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(demo.folder)) == ['a.html', 'out']
    assert os.listdir(demo.folder / 'out') == ['a.png']


CHECK_MANY = '''<script>
const canvases = [...document.querySelectorAll('canvas')];
const painted = () => canvases.map((canvas, i) => canvas.width && canvas
  .getContext('2d').getImageData(0, 0, 1, 1).data[3] ? i : -1)
  .filter((i) => i >= 0);
const found = [];
const check = () => {
  const now = painted();
  const last = canvases.length - 1, wanted = found.length ? last : 0;
  if (!now.includes(wanted) || now.includes(last - wanted)) {
    setTimeout(check, 20);
    return;
  }
  found.push(now.length < 30);
  if (found.length == 2) document.title = JSON.stringify(found);
  else {
    canvases[last].scrollIntoView();
    check();
  }
};
addEventListener('load', check);
</script>'''


def page_of(path, inputs):
    """Write the page of black images."""
    image, label = np.zeros((3, 30, 40), np.float32), np.zeros((30, 40), int)
    page = ResultsPage(path, inputs, Style(label_names('voc'),
                                           label_colors('voc')))
    for each in inputs:
        page.add(each, image, label)
    page.write()


def test_results_are_in_the_order_of_the_inputs(tmp_path):
    page_of(tmp_path / 'new/a #1.html', [Input(name, name) for name in 'abc'])
    assert [path.name for path in (tmp_path / 'new').iterdir()] == [
        'a #1.html']
    text = (tmp_path / 'new/a #1.html').read_text()
    assert text.index('>a<') < text.index('>b<') < text.index('>c<')


def test_many_results(browse, tmp_path):
    """Only those in sight, or nearly so, are held as pixels."""
    page_of(tmp_path / 'a.html', [Input(f'{i}.jpg', i) for i in range(500)])
    assert browse(tmp_path / 'a.html', CHECK_MANY, 800) == '[true,true]'
