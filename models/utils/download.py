"""Download over http(s): a mirror first, resumed where it broke off."""
import errno
import os
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.parse
import urllib.request
import zlib

import requests
from tqdm import tqdm
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
# Retrying does not help: an unknown host, an invalid certificate, a loop.
FINAL_ERRORS = (socket.gaierror, ssl.SSLCertVerificationError,
                requests.TooManyRedirects)
BUSY = {408, 429}  # HTTP statuses that may pass, as all from 500 on


def download(url, folder, use, mirrored=True):
    """Download a file, from the mirror first; resume what an earlier attempt
    left.

    Args:
        url (str): http, https or file. Proxies come from the environment.
        folder (pathlib.Path): for the incomplete file.
        use (callable): called with the path of the whole file, which it may
            rename or remove; raises InputError for a wrong one, which is then
            downloaded once more.
        mirrored (bool): false for an address of the user's own.

    Returns:
        what `use` returns.

    Raises:
        DownloadError: no host has the file, or it cannot be written; the
            message is the last address and the reason.
    """
    mirror = os.environ.get(MIRROR) if mirrored else None
    for address in [_in_mirror(mirror, url), url] if mirror else [url]:
        shown = without_secrets(address)
        _say(f'downloading {shown} to {folder}')
        try:
            return _use(address, folder, use)
        except (InputError, OSError) as error:
            reason = f'{shown}: {describe(error)}'
            _say(reason)
    raise DownloadError(reason)


def file_name_of(url):
    """Return the name of the file that an address leads to."""
    path = url.partition('://')[2].partition('/')[2]
    return re.split('[?#]', path)[0].rpartition('/')[2]


def read_url(url, max_bytes, is_start=False):
    """Return what an http(s) address holds, as bytes, or its start; raise
    InputError where it is unavailable or larger than max_bytes.
    """
    data = bytearray()
    try:
        with _get(url) as response:
            while len(data) <= max_bytes and (  # `read` hides a broken end
                    block := response.raw.read1(BLOCK)):
                data += block
    except NETWORK_ERRORS as error:
        raise InputError(describe(_cause(error))) from None
    if len(data) > max_bytes and not is_start:
        raise InputError(f'more than {max_bytes} bytes')
    return bytes(data)


def check_space(folder, n_bytes):
    """Raise OSError where a folder has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OSError(errno.ENOSPC, f'{n_bytes / 1e6:.0f} MB are needed, and '
                      f'{free / 1e6:.0f} MB are free', str(folder))


def _say(line):
    print(line, file=sys.stderr)


def _in_mirror(mirror, url):
    folder = urllib.parse.urlsplit(mirror)
    path = f'{folder.path.rstrip("/")}/{file_name_of(url)}'
    return folder._replace(path=path).geturl()


def _use(url, folder, use):
    """Return what `use` makes of a file, which is downloaded twice at most."""
    # Named after the address: two hosts may have different files.
    part = folder / f'.{zlib.crc32(url.encode()):08x}.part'
    for is_last in False, True:
        _complete(url, part)
        try:
            return use(part)
        except InputError as error:
            part.unlink()
            if is_last:
                raise InputError(f'the downloaded file is corrupt: {error}'
                                 ) from None
            _say('the downloaded file is corrupt; downloading it again')


def _complete(url, part):
    """Request the file until it is whole."""
    if url.lower().startswith('file://'):
        shutil.copyfile(urllib.request.url2pathname(
            urllib.parse.urlsplit(url).path), part)
        return
    failures = 0
    for _ in range(MAX_ATTEMPTS):
        before = _size(part)
        try:
            return _transfer(url, part)
        except NETWORK_ERRORS as error:
            cause = _cause(error)
        failures = 0 if _size(part) > before else failures + 1
        if isinstance(cause, FINAL_ERRORS) or failures > RETRIES:
            break
        _say(f'{describe(cause)}: trying again')
        time.sleep(BACKOFF * 2 ** max(0, failures - 1))
    raise InputError(describe(cause))


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _get(url, **headers):
    """Send a request; raise InputError for a status that will not change."""
    try:
        response = requests.get(url, stream=True, timeout=TIMEOUT, headers={
            'Accept-Encoding': 'identity', **headers})
    except ValueError:  # whose message would show all of it
        raise InputError('no valid address, which begins with http://, '
                         'https:// or file://') from None
    status = response.status_code
    if response.ok or status == 416:
        return response
    response.close()
    raise (requests.HTTPError if status in BUSY or status >= 500 else
           InputError)(f'HTTP {status} {response.reason}')


def _transfer(url, part):
    """Append what is missing; raise an error while the file is not whole."""
    have = _size(part)
    headers = {'Range': f'bytes={have}-'} if have else {}
    with _get(url, **headers) as response:
        found = response.headers.get('Content-Range', '')
        if found == f'bytes */{have}':
            return  # nothing after what is here
        if response.status_code not in {206, 416}:
            have = 0
        elif not found.startswith(f'bytes {have}-'):
            part.unlink(missing_ok=True)
            raise requests.HTTPError('the host has another file than before')
        total = response.raw.length_remaining  # None: the host does not say
        if total is not None:
            check_space(part.parent, total)
            total += have
            _say(f'{have / 1e6:.1f} of {total / 1e6:.1f} MB are here')
        with (open(part, 'ab' if have else 'wb') as file,
              tqdm(total=total, initial=have, unit='B', unit_scale=True,
                   disable=None) as progress):  # shown on a terminal
            while block := response.raw.read1(BLOCK):
                file.write(block)
                progress.update(len(block))
                if max(file.tell(), total or 0) > MAX_BYTES:
                    part.unlink()
                    raise InputError(f'it has more than {MAX_BYTES} bytes')


def _cause(error):
    """Return the OSError that requests and urllib3 wrapped, or one like it."""
    while inner := error.__cause__ or next(
            (each for each in error.args if isinstance(each, Exception)), None):
        error = inner
    return error if isinstance(error, OSError) else OSError('broken off')
