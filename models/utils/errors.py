"""One clear line for a user's mistake, at the command line and from Python."""
import contextlib
import difflib
import logging
import os
import sys
import warnings

SHOWN = 3  # items of a list in one line
INTERRUPTED = 130  # exit code, as shells have it: 128 and SIGINT


class InputError(ValueError):
    """The user's input is invalid.

    The message is one line: what was given, what is allowed, what to do.
    """


class Interrupted(InputError):  # noqa: N818  (not an error)
    """Ctrl-C ended the work; the message says what was done."""


class BackendError(InputError):
    """This backend is unavailable; another may work."""


class DownloadError(InputError):
    """No host has the file."""


@contextlib.contextmanager
def report_errors():
    """End a script with one line on stderr for an error its user can fix.

    Other errors keep their traceback. Warnings take one line as well.
    """
    for name in 'matplotlib', 'urllib3':  # their log lines help no user
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.formatwarning = lambda message, *args, **kwargs: (
        f'warning: {_joined(message)}\n')
    if hasattr(sys.stdout, 'reconfigure'):  # file names may be no UTF-8
        sys.stdout.reconfigure(errors='surrogateescape')
    try:
        yield
    except Interrupted as error:
        print(error_line(error), file=sys.stderr)
        sys.exit(INTERRUPTED)
    except InputError as error:
        sys.exit(error_line(error))
    except ModuleNotFoundError as error:
        sys.exit(error_line(
            f'{sys.executable} has no module {error.name!r}: run `make setup` '
            'and use .venv/bin/python, or install requirements.txt'))
    except MemoryError as error:
        sys.exit(error_line(f'out of memory {error}'))
    except BrokenPipeError:
        drop_output()
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        sys.exit(error_line(describe(error)))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(INTERRUPTED)


def drop_output():
    """Print no more: the reader of stdout has left, as `| head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe(error):
    """Return an error as text; of an `OSError`, 'path: reason'."""
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error)
    return f'{error.filename}: {reason}' if error.filename else reason


def error_line(message):
    """Return 'error: ' and a message in one line."""
    return f'error: {_joined(message)}'


def _joined(message):
    return ' '.join(str(message).split())


def shortened(items, separator=', '):
    """Join the first three items; a count stands for the others."""
    items = list(map(str, items))
    more = len(items) - SHOWN
    return separator.join(items[:SHOWN]) + (
        f'{separator}and {more} more' if more > 0 else '')


def describe_differences(missing, unknown, known, others):
    """Return one line on missing and unknown (name, shape) pairs.

    `known` are candidates for an unknown name, `others` further differences;
    the line has the first three and a count, or is empty.
    """
    lines = [f'{name} {shape} is missing' for name, shape in missing]
    for name, shape in unknown:
        near = difflib.get_close_matches(name, known, 1) if (
            len(lines) < SHOWN) else []  # slow
        lines.append(f'{name} {shape} is unknown' + (
            f' (nearest name: {near[0]})' if near else ''))
    return shortened(lines + others, '; ')
