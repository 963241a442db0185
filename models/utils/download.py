"""Download over http(s): tried again, resumed where it broke off, checked."""
import errno
import http.client
import os
import shutil
import socket
import ssl
import sys
import time
import urllib.parse
import urllib.request
import zlib

import requests
from urllib3.exceptions import HTTPError

from .errors import DownloadError, InputError, describe, without_secrets

MIRROR = 'DEEPLAB_MIRROR'  # environment: address of a folder of the files
TIMEOUT = 30  # seconds without a byte
RETRIES = 4  # in a row, after attempts without progress
BACKOFF = 1  # second before the first of these, then twice as long each time
MAX_ATTEMPTS = 50  # for one file, however much each brings
MAX_BYTES = 2 << 30
BLOCK = 1 << 18
NETWORK_ERRORS = requests.RequestException, HTTPError
# Retrying does not help: an unknown host, an invalid certificate.
FINAL_ERRORS = (socket.gaierror, ssl.SSLCertVerificationError,
                requests.TooManyRedirects)
BUSY = {408, 429}  # HTTP statuses that may pass, as all from 500 on


def download_and_use(url, folder, check, use, mirrored=True):
    """Download a file from the mirror, or from `url` where that fails.

    Args:
        url, folder, check: see `download`.
        use (callable): called with the path of the file; it may rename it.
        mirrored (bool): false for an address of the user's own.

    Raises:
        DownloadError: neither has the file; the message is the last address
            and the reason.
    """
    for address in _addresses(url) if mirrored else [url]:
        shown = without_secrets(address)
        print(f'downloading {shown} to {folder}', file=sys.stderr, flush=True)
        try:
            use(download(address, folder, check))
            return
        except (InputError, OSError) as error:
            reason = f'{shown}: {describe(error)}'
            print(reason, file=sys.stderr, flush=True)
    raise DownloadError(reason)


def _addresses(url):
    """Yield the addresses of a file, the mirror's first."""
    if mirror := os.environ.get(MIRROR):
        folder = urllib.parse.urlsplit(mirror)
        yield folder._replace(path=f'{folder.path.rstrip("/")}/'
                              f'{file_name_of(url)}').geturl()
    yield url


def file_name_of(url):
    """Return the name of the file that an address leads to."""
    try:
        return urllib.parse.urlsplit(url).path.rpartition('/')[2]
    except ValueError:
        raise InputError(f'{without_secrets(url)} is no valid address'
                         ) from None


def download(url, folder, check):
    """Download a file; resume what an earlier attempt left.

    Args:
        url (str): http, https or file. Proxies come from the environment.
        folder (pathlib.Path): for the incomplete file.
        check (callable): called with the path of the whole file; raises
            InputError for a wrong one, which is then downloaded once more.

    Returns:
        pathlib.Path: the file, under a temporary name.

    Raises:
        InputError: the file is unavailable or wrong.
        OSError: it cannot be read (file:) or written.
    """
    # Named after the address: two hosts may have different files.
    part = folder / f'.{zlib.crc32(url.encode()):08x}.part'
    kind = 'resumed' if part.exists() else 'downloaded'
    for is_last in (False, True):
        _complete(url, part)
        try:
            check(part)
        except InputError as error:
            part.unlink()
            if is_last:
                raise InputError(f'the downloaded file is corrupt: {error}'
                                 ) from None
            print(f'the {kind} file is corrupt; downloading it again',
                  file=sys.stderr, flush=True)
        else:
            return part


def read_url(url, max_bytes, is_start=False):
    """Return what an http(s) address holds, as bytes, or its start; raise
    InputError where it is unavailable or larger than max_bytes.
    """
    data = bytearray()
    try:
        with _get(url) as response:
            while block := response.raw.read1(BLOCK):
                data += block
                if len(data) > max_bytes and is_start:
                    break
                if len(data) > max_bytes:
                    raise InputError(f'more than {max_bytes} bytes')
    except (_Interrupted, *NETWORK_ERRORS) as error:
        raise InputError(_reason(_cause(error))) from None
    return bytes(data)


class _Interrupted(Exception):  # noqa: N818  (a state, not an error)
    """The file is incomplete, and another attempt may complete it."""


def _complete(url, part):
    """Request the file until it is whole."""
    scheme = url.partition('://')[0].lower()
    if scheme == 'file':
        shutil.copyfile(urllib.request.url2pathname(
            urllib.parse.urlsplit(url).path), part)
        return
    if scheme not in {'http', 'https'}:
        raise InputError('an address begins with http://, https:// or file://')
    failures = 0
    for _ in range(MAX_ATTEMPTS):
        before = _size(part)
        try:
            _transfer(url, part)
            return
        except (_Interrupted, *NETWORK_ERRORS) as error:
            cause = _cause(error)
        failures = 0 if _size(part) > before else failures + 1
        if isinstance(cause, FINAL_ERRORS) or failures > RETRIES:
            raise InputError(_reason(cause))
        print(f'{_reason(cause)}: trying again', file=sys.stderr, flush=True)
        time.sleep(BACKOFF * 2 ** max(0, failures - 1))
    raise InputError(f'broken off {MAX_ATTEMPTS} times')


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _get(url, **headers):
    """Send a request; raise InputError for a status that will not change."""
    try:
        response = requests.get(url, stream=True, timeout=TIMEOUT, headers={
            'Accept-Encoding': 'identity', **headers})
    except ValueError:  # whose message would show all of it
        raise InputError('no valid address') from None
    if not response.ok and response.status_code != 416:
        response.close()
        message = f'HTTP {response.status_code} {response.reason}'
        if response.status_code in BUSY or response.status_code >= 500:
            raise _Interrupted(message)
        raise InputError(message)
    return response


def _transfer(url, part):
    """Append what is missing; raise `_Interrupted` while the file is not whole.
    """
    have = _size(part)
    headers = {'Range': f'bytes={have}-'} if have else {}
    with _get(url, **headers) as response:
        status, found = response.status_code, response.headers.get(
            'Content-Range', '')
        if status == 416 and found == f'bytes */{have}':
            return  # nothing after what is here
        if status not in {206, 416}:
            have = 0
        elif status == 416 or not found.startswith(f'bytes {have}-'):
            part.unlink(missing_ok=True)
            raise _Interrupted('the host has another file, or part, than asked')
        length = response.headers.get('Content-Length', '')
        response.raw.enforce_content_length = False  # _receive checks it
        _receive(response.raw, part, have,
                 have + int(length) if length.isdigit() else None)


def _receive(raw, part, have, total):
    from tqdm import tqdm
    if (total or 0) > MAX_BYTES:
        raise InputError(f'the file has {total} bytes, and at most '
                         f'{MAX_BYTES} are downloaded')
    if total is not None:
        print(f'{total / 1e6:.1f} MB' + (
            f', {have / 1e6:.1f} of them are here' if have else ''),
            file=sys.stderr, flush=True)
        check_space(part.parent, total - have)
    with (open(part, 'r+b' if have else 'wb') as file,
          tqdm(total=total, initial=have, unit='B', unit_scale=True,
               disable=not sys.stderr.isatty()) as progress):
        file.seek(have)
        while block := raw.read1(BLOCK):
            file.write(block)
            progress.update(len(block))
            if file.tell() > (total or MAX_BYTES):
                part.unlink()
                raise InputError('the host sent more than it announced')
        size = file.tell()
    if total is not None and size < total:
        raise _Interrupted(f'broken off after {size} of {total} bytes')


def check_space(folder, n_bytes):
    """Raise OSError where a folder has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OSError(errno.ENOSPC, f'{n_bytes / 1e6:.0f} MB are needed, and '
                      f'{free / 1e6:.0f} MB are free', str(folder))


def _cause(error):
    """Return the first of the errors that requests and urllib3 wrapped."""
    while inner := error.__cause__ or next(filter(
            lambda each: isinstance(each, Exception),
            (getattr(error, 'reason', None), *error.args)), None):
        error = inner
    return error


def _reason(cause):
    if isinstance(cause, (http.client.HTTPException, HTTPError, ValueError)):
        return 'broken off'  # also inside a chunked transfer
    return getattr(cause, 'strerror', None) or str(cause)
