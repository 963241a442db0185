"""What the benchmarks share; importing it makes the project importable."""
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]


def convert(source, dataset, target):
    """Convert a graph as tf2npz.py does, in this process."""
    from convert.conversion import check, write
    from convert.sources import open_source
    write(check(open_source(source), dataset), target)


def write_voc_model(folder):
    """Write voc.pb and voc.npz with stand-in weights."""
    from fixture_weights import write_palette_graph
    write_palette_graph(folder / 'voc.pb', 'voc', (513, 513))
    convert(folder / 'voc.pb', 'voc', folder / 'voc.npz')


def memory(field='VmRSS'):
    """Return bytes of this process: VmRSS now, or VmHWM at its highest."""
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


def report(what, value, bound):
    print(f'{what:48}{value:8.2f}   bound {bound}', flush=True)
