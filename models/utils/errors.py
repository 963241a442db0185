"""One clear line for a user's mistake, at the command line and from Python."""
import contextlib
import errno
import io
import logging
import os
import signal
import sys
import urllib.parse
import warnings

SHOWN = 3  # items of a list in one line
ENDING_SIGNALS = signal.SIGTERM, signal.SIGHUP  # treated as Ctrl-C


class InputError(ValueError):
    """What was given, what is allowed, what to do: in one line, for a user."""


class Interrupted(InputError):  # noqa: N818  (not an error)
    """A signal ended the work: what was done; `code` is the exit code."""

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


class BackendError(InputError):
    """This backend is unavailable; another may work."""


class DownloadError(InputError):
    """No host has the file."""


@contextlib.contextmanager
def report_errors():
    """End a script with one line on stderr for an error its user can fix.

    Other errors keep their traceback. Warnings take one line as well. SIGTERM
    and SIGHUP do what Ctrl-C does. Where a standard stream is closed or cannot
    be written, the script works on without it.
    """
    for name in 'matplotlib', 'urllib3':  # their log lines help no user
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.formatwarning = lambda message, *args, **kwargs: (
        f'warning: {_joined(message)}\n')
    warnings.filterwarnings(  # of Chainer's own code, which no user can fix
        'ignore', category=SyntaxWarning, module='.*chainer')
    _open_streams()
    _heed_signals()
    try:
        yield
    except Interrupted as error:
        print(error_line(error), file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt as error:
        print('interrupted', file=sys.stderr)
        sys.exit(exit_code(error))
    except (InputError, ModuleNotFoundError, MemoryError, OSError) as error:
        if isinstance(error, OSError) and not (error.filename or error.errno):
            raise
        sys.exit(error_line(describe(error)))


def exit_code(interrupt):
    """Return what shells give after a KeyboardInterrupt: 128 + the signal."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _heed_signals():
    """Have the first of `ENDING_SIGNALS` raise KeyboardInterrupt."""
    def interrupt(number, frame):
        for each in ENDING_SIGNALS:  # later ones must not end the tidying up
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for each in ENDING_SIGNALS:
        if signal.getsignal(each) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(each, interrupt)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see command_line
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_streams():
    """Make the standard streams safe to use."""
    for name, mode in ('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w'):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by >&-: no file may take its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == 'w' and stream is getattr(sys, f'__{name}__'):
            setattr(sys, name, io.TextIOWrapper(
                io.BufferedWriter(_Output(stream.fileno(), 'w', closefd=False)),
                stream.encoding, 'backslashreplace', line_buffering=True))


class _Output(io.FileIO):
    """A standard stream whose output is dropped once it cannot be written."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:  # the reader has left, the disk is full
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self.fileno() == 1 and error.errno != errno.EPIPE:
                print(f'warning: standard output: {error.strerror}',
                      file=sys.stderr)
            return len(data)


def describe(error, name=''):
    """Return an error as text, with the name of what it is about."""
    match error:
        case InputError():
            text = str(error)
        case OSError():
            text = error.strerror or str(error)
            text = f'{error.filename}: {text}' if error.filename else text
        case MemoryError():
            text = f'out of memory {error}'
        case ModuleNotFoundError():
            text = (f'{sys.executable} has no module {error.name!r}: run `make '
                    'setup` and use .venv/bin/python, or install '
                    'requirements.txt')
        case _:
            text = f'{type(error).__name__}: {error}'
    return text if name in text else f'{name}: {text}'


def error_line(message):
    """Return 'error: ' and a message in one line."""
    return f'error: {_joined(message)}'


def without_secrets(address):
    """Return an address without user, password and all after a '?' or ';'; and
    a path as it is.
    """
    scheme, mark, _ = address.partition('://')
    if not mark:
        return address
    try:
        _, host, *rest = parts = urllib.parse.urlsplit(address)
        if (parts.port or ':' in host) and '@' in ''.join(rest):
            raise ValueError('a password may be there')
    except ValueError:
        return f'{scheme}://...'
    return f'{scheme}://{host.rpartition("@")[2]}{parts.path.partition(";")[0]}'


def _joined(message):
    return ' '.join(str(message).split())


def shortened(items, separator=', '):
    """Join the first three items; a count stands for the others."""
    items = list(map(str, items))
    more = len(items) - SHOWN
    return separator.join(items[:SHOWN]) + (
        f'{separator}and {more} more' if more > 0 else '')


def describe_differences(found, wanted, others=()):
    """Return one line on how `found`, name -> shape, differs from `wanted`, and
    on `others`, further differences; empty if there are none.
    """
    lines = [f'{name} {wanted[name]} is missing'
             for name in sorted(wanted.keys() - found.keys())]
    lines += [f'{name} {found[name]} is unknown'
              for name in sorted(found.keys() - wanted.keys())]
    lines += [f'{name} has shape {found[name]}, and must have {wanted[name]}'
              for name in sorted(wanted.keys() & found.keys())
              if found[name] != wanted[name]]
    return shortened([*lines, *others], '; ')
