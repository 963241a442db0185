"""Fetch what is to be converted, and pretrained models."""
import contextlib
import pathlib

from models.pretrained import (
    URLS,
    cached_path,
    check_npz,
    obtain,
    pretrained_path,
    record_sha256,
)
from models.utils.errors import DownloadError, InputError, without_secrets
from models.utils.files import atomic_path, locked

ZOO = 'zoo'  # stands for the official archive of a dataset


def fetch(pretrained_model) -> pathlib.Path:
    """Return the path of the npz of a pretrained model.

    It is a key of `models.pretrained.URLS`, downloaded at the first use, from
    the official archive where the npz is unavailable; or a path. Raise
    InputError where that fails.
    """
    from models.deeplab_v3_plus import check_weights
    with contextlib.suppress(DownloadError):
        return pretrained_path(pretrained_model, check_weights)
    _convert_archive(pretrained_model, check_weights)
    return cached_path(pretrained_model)


def _convert_archive(name, check_weights):
    """Download the official archive of a model and convert its graph."""
    from convert.conversion import check, write
    from convert.sources import open_source
    conversion = None

    def check_archive(part):
        nonlocal conversion
        conversion = check(open_source(part), name)

    def convert(part, path):
        with atomic_path(path) as temporary:
            write(conversion, temporary)
            check_npz(name, temporary, check_weights)
            record_sha256(temporary, path)
        part.unlink()

    obtain(name, 'archive', check_archive, convert)


@contextlib.contextmanager
def opened(source, dataset, *options):
    """Open a source as `open_source` does, after downloading it if need be.

    Args:
        source (str): a path, an http(s) address, or `ZOO`.
        dataset (str): of the model of the zoo.

    Yields:
        the source. A downloaded file is removed at the end; where the body
        raises, it stays for the next attempt.

    Raises:
        InputError: it cannot be downloaded or opened.
    """
    from convert.sources import open_source
    if source != ZOO and not source.startswith(('http://', 'https://')):
        yield open_source(source, *options)
        return
    if source == ZOO and dataset not in URLS:
        raise InputError(f'the zoo has models of {", ".join(URLS)}, and none '
                         f'of {dataset}')
    from models.utils.download import download_and_use, file_name_of
    url = URLS[dataset]['archive'] if source == ZOO else source
    folder, found = cached_path(next(iter(URLS))).parent, {}

    def check(part):
        found['source'] = open_source(part, *options)
        found['part'] = part

    shown, name = without_secrets(url), file_name_of(url)
    with locked(folder / (name or 'download')):
        try:
            download_and_use(url, folder, check, lambda part: None,
                             mirrored=source == ZOO)
        except DownloadError as error:
            raise InputError(f'{shown} cannot be downloaded ({error}): '
                             'download it in another way and give the file'
                             ) from None
        result = found['source']
        result.path = shown
        if result.file_name == found['part'].name:
            result.file_name = name
        yield result
        found['part'].unlink()
