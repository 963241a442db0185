"""One clear line for a user's mistake, at the command line and from Python."""
import contextlib
import difflib
import logging
import os
import sys
import warnings

SHOWN = 3  # names in a line


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: what was given, what is allowed, what to do.
    """


class BackendError(InputError):
    """A way to run the network is not to be had; another may be."""


@contextlib.contextmanager
def report_errors():
    """End a script with one line on stderr where its user can mend the cause.

    An error that is not the user's keeps its traceback; warnings take one
    line as well, and Matplotlib, which ChainerCV loads, does not tell where it
    keeps its cache.
    """
    logging.getLogger('matplotlib').setLevel(logging.ERROR)
    warnings.formatwarning = lambda message, *args, **kwargs: (
        f'warning: {_joined(message)}\n')
    if hasattr(sys.stdout, 'reconfigure'):  # names may be in any encoding
        sys.stdout.reconfigure(errors='surrogateescape')
    try:
        yield
    except InputError as error:
        sys.exit(_one_line(error))
    except ModuleNotFoundError as error:
        sys.exit(_one_line(
            f'{sys.executable} has no module {error.name!r}: run `make setup` '
            'and use .venv/bin/python, or install requirements.txt'))
    except MemoryError as error:
        sys.exit(_one_line(f'the memory does not suffice {error}'))
    except BrokenPipeError:
        drop_output()
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        sys.exit(_one_line(describe_os_error(error)))
    except KeyboardInterrupt:
        sys.exit('interrupted')


def drop_output():
    """Print no more: who reads it has seen enough, as with `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def names_that_differ(missing, unknown, known, others):
    """Return one line on names that do not fit.

    Args:
        missing, unknown (list of (str, tuple)): names and shapes.
        known (collection of str): what an unknown name may have been meant
            to be.
        others (list of str): further differences.

    Returns:
        str: the first three of all and how many there are beyond; empty
        where there is none.

    """
    lines = [f'{name} {shape} is missing' for name, shape in missing]
    for name, shape in unknown:
        near = difflib.get_close_matches(name, known, 1) if (
            len(lines) < SHOWN) else []  # it takes a while
        lines.append(f'{name} {shape} is unknown' + (
            f' (nearest name: {near[0]})' if near else ''))
    lines += others
    more = len(lines) - SHOWN
    return '; '.join(lines[:SHOWN]) + (f'; and {more} more' if more > 0 else '')


def describe_os_error(error):
    """Return 'path: reason' of an `OSError`."""
    reason = error.strerror or str(error)
    return f'{error.filename}: {reason}' if error.filename else reason


def _one_line(message):
    return f'error: {_joined(message)}'


def _joined(message):
    return ' '.join(str(message).split())
