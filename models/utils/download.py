"""Download a large file without losing what has come."""
import http.client
import re
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib

from .errors import InputError

TIMEOUT = 30  # seconds without a byte
PAUSES = (1, 2, 4, 8)  # seconds before each try after one that brought nothing
MAX_TRIES = 50  # of one address, however much each brought
MAX_BYTES = 2 << 30
BLOCK = 1 << 18


def download(url, folder, check):
    """Download a file, going on where an earlier try was broken off.

    Args:
        url (str): http, https or file; proxies come from the environment.
        folder (pathlib.Path): where the file lies while it is incomplete.
        check (callable): called with the path of the whole file; raises
            InputError where it is not what was wanted. It is then downloaded
            once more.

    Returns:
        pathlib.Path: the file, under a temporary name.

    Raises:
        InputError: it is not to be had, or not what was wanted.
        OSError: it cannot be written.

    """
    if urllib.parse.urlsplit(url).scheme not in {'http', 'https', 'file'}:
        raise InputError('not an address that begins with http://, https:// '
                         'or file://')
    # Named after the address: what two hosts have may differ.
    part = folder / f'.{zlib.crc32(url.encode()):08x}.part'
    resumed = part.exists()
    for is_last in (False, True):
        _complete(url, part)
        try:
            check(part)
        except InputError as error:
            part.unlink()
            if is_last:
                raise InputError(f'what came is not usable: {error}'
                                 ) from None
            print('what came is not usable'
                  f'{" after going on" if resumed else ""}: once more',
                  file=sys.stderr, flush=True)
        else:
            return part


def _complete(url, part):
    """Try until the file is whole."""
    failures = 0
    for _ in range(MAX_TRIES):
        before = _size(part)
        try:
            _try(url, part)
        except _Broken as error:
            failures = failures + 1 if _size(part) <= before else 0
            if failures > len(PAUSES):
                raise InputError(str(error)) from None
            pause = PAUSES[max(failures - 1, 0)]
            print(f'{error}: trying again in {pause} s', file=sys.stderr,
                  flush=True)
            time.sleep(pause)
        else:
            return
    raise InputError(f'broken off {MAX_TRIES} times')


class _Broken(Exception):  # noqa: N818  (a state, not an error)
    """A try failed, and another may succeed."""


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _try(url, part):
    """Fetch what is missing of the file.

    Raises:
        _Broken: it is not whole yet.
        InputError: it never will be.

    """
    have = _size(part)
    headers = {'Range': f'bytes={have}-'} if have else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing after what is there
            if _total(error.headers) == have:
                return
            part.unlink()
            raise _Broken('the file has changed') from None
        _raise_http(error)
    except (OSError, http.client.HTTPException, ValueError) as error:
        _raise_unreachable(error)
    with response:
        resumes = response.status == 206
        if resumes and _start(response.headers) != have:
            part.unlink()
            raise _Broken('the host sent another part than was asked for')
        _receive(response, part, have if resumes else 0)


def _raise_http(error):
    message = f'HTTP {error.code} {error.reason}'
    if error.code in {408, 429} or error.code >= 500:
        raise _Broken(message) from None
    raise InputError(message) from None


def _raise_unreachable(error):
    reason = getattr(error, 'reason', error)
    if isinstance(reason, (socket.gaierror, FileNotFoundError, ValueError,
                           IsADirectoryError, NotADirectoryError,
                           PermissionError)):
        raise InputError(f'{reason}') from None
    raise _Broken(f'{reason or type(error).__name__}') from None


def _total(headers):
    """Return the whole file's length, or None."""
    match = re.search(r'/(\d+)$', headers.get('Content-Range') or '')
    return int(match[1]) if match else None


def _start(headers):
    match = re.match(r'bytes (\d+)-', headers.get('Content-Range') or '')
    return int(match[1]) if match else None


def _receive(response, part, have):
    from tqdm import tqdm
    length = response.headers.get('Content-Length') or ''
    total = _total(response.headers) or (
        have + int(length) if length.isdigit() else None)
    if (total or 0) > MAX_BYTES:
        raise InputError(f'it has {total} bytes, and at most {MAX_BYTES} are '
                         'taken')
    with (open(part, 'r+b' if have else 'wb') as file,
          tqdm(total=total, initial=have, unit='B', unit_scale=True,
               disable=not sys.stderr.isatty()) as progress):
        file.seek(have)
        while block := _block(response):
            file.write(block)
            progress.update(len(block))
            if file.tell() > (total or MAX_BYTES):
                part.unlink()
                raise InputError('more came than was announced')
        size = file.tell()
    if total is not None and size < total:
        raise _Broken(f'broken off after {size} of {total} bytes')


def _block(response):
    try:
        return response.read1(BLOCK) if hasattr(response, 'read1') else (
            response.read(BLOCK))
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f'broken off ({error or type(error).__name__})'
                      ) from None
