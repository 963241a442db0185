"""One clear line for a user's mistake, at the command line and from Python."""
import contextlib
import os
import sys
import warnings


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
    line as well.
    """
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
    except BrokenPipeError:  # the reader has seen enough, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        sys.exit(_one_line(describe_os_error(error)))
    except KeyboardInterrupt:
        sys.exit('interrupted')


def describe_os_error(error):
    """Return 'path: reason' of an `OSError`."""
    reason = error.strerror or str(error)
    return f'{error.filename}: {reason}' if error.filename else reason


def _one_line(message):
    return f'error: {_joined(message)}'


def _joined(message):
    return ' '.join(str(message).split())
