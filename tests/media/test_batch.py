"""Many inputs: reading ahead, and what comes of each."""
import contextlib
import threading
import time

import pytest
from fixture_images import write_image

from media.batch import Batch, prefetch
from media.inputs import find_inputs


def test_one_ahead_and_in_order():
    def read(i):
        if i == 2:
            raise ValueError(i)
        return -i

    n_threads = threading.active_count()
    for i, result in prefetch(read, range(5)):
        if i == 2:
            with pytest.raises(ValueError, match='2'):
                result()
        else:
            assert result() == -i
    assert threading.active_count() == n_threads


def test_no_thread_outlives_what_it_reads():
    read, n_threads = [], threading.active_count()

    def fail():
        with contextlib.closing(prefetch(read.append, range(100))) as items:
            for i, _ in items:
                if i == 3:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert threading.active_count() == n_threads
    assert len(read) < 7


def test_a_read_that_waits_holds_nothing_up():
    ended = threading.Event()
    begun = time.monotonic()
    with contextlib.closing(prefetch(
            lambda i: i and ended.wait(60), range(3))) as items:
        next(items)
    assert time.monotonic() - begun < 3
    ended.set()


def test_images_that_vanish_after_the_plan(tmp_path):
    found = [find_inputs([str(write_image(tmp_path / name))])[0][0]
             for name in ('a.png', 'b.png')]
    for each in found:
        each.path.unlink()
    outcomes = list(Batch(None, None, {each: {} for each in found}).run())
    assert [outcome.error for outcome in outcomes] == [
        f'{each.path}: No such file or directory' for each in found]
