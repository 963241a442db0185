"""Read the next item while the present one is computed."""
import contextlib
import queue
import threading

END = object()
PATIENCE = 1  # second for the thread to end


def prefetch(read, items):
    """Call `read` on items in a thread, one item ahead; so is `items` taken.

    Yield (item, callable): the callable returns what `read` returned, or
    raises what it raised. What `items` raises is raised. Once the generator is
    closed (`contextlib.closing`), the thread reads no more; only where it
    waits, for a slow address say, it is left behind, and ends with the program.
    """
    ready, stopped = queue.Queue(1), threading.Event()

    def put(value):
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(value, timeout=0.1)

    def work():
        try:
            for item in items:
                put((item, _outcome(read, item)))
                if stopped.is_set():
                    return
            put(END)
        except BaseException as error:  # it is raised where it is awaited
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not END:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stopped.set()
        thread.join(PATIENCE)


def _outcome(read, item):
    try:
        value = read(item)
    except Exception as error:
        failure = error

        def outcome():
            raise failure
        return outcome
    return lambda: value
