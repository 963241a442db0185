"""Fetch a pretrained model: its npz, or the official archive, converted."""
import contextlib
import pathlib

from convert.conversion import check, write
from convert.sources import open_source
from models.pretrained import (
    cached_path,
    check_npz,
    obtain,
    pretrained_path,
    record_sha256,
)
from models.utils.errors import DownloadError
from models.utils.files import atomic_path


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
