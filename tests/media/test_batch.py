"""Many inputs: reading ahead, and what comes of each."""
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fixture_images import write_image

from media.batch import Batch, in_turn, prefetch
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


def test_several_read_at_once_and_in_order():
    together, most, count = threading.Barrier(4), 0, 0
    lock = threading.Lock()

    def items():
        nonlocal count, most
        for i in range(12):
            with lock:
                count += 1
                most = max(most, count)
            time.sleep(0.005)  # another thread must not ask meanwhile
            yield i

    def read(i):
        nonlocal count
        together.wait(10)  # for three others
        time.sleep(0.01 * (i % 3))
        with lock:
            count -= 1
        return -i

    assert [(i, result()) for i, result in prefetch(read, items(), 4)] == [
        (i, -i) for i in range(12)]
    assert 4 <= most <= 5  # with the one that is awaited


def test_results_in_turn_whoever_is_first():
    found, behind = [], []
    with ThreadPoolExecutor(3) as pool:
        def begun():
            for i in range(9):
                behind.append(i - len(found))
                yield pool.submit(lambda i=i: time.sleep(0.02 * (3 - i % 3))
                                  or i)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            found.extend(in_turn(begun(), 3))
    assert found == list(range(9))  # also those that were begun before
    assert max(behind) == 4


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
