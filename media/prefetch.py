"""Read the next item while the present one is computed."""
from concurrent.futures import ThreadPoolExecutor


def prefetch(read, items):
    """Call `read` on items in a thread, one item ahead.

    Yield (item, callable): the callable returns what `read` returned, or
    raises what it raised.
    """
    with ThreadPoolExecutor(1) as thread:
        previous = None
        for item in items:
            coming = item, thread.submit(read, item).result
            if previous is not None:
                yield previous
            previous = coming
        if previous is not None:
            yield previous
