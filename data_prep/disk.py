"""Room on the disk: an estimate before long work, and one clear message when it runs out."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.document import CorpusError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, or a file's limit


class DiskFullError(CorpusError):
    """Nothing more can be written; whatever else runs would fail likewise."""


def free_bytes(path: Path) -> int:
    """Returns what can still be written below `path`, which need not exist yet."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_free(path: Path, needed_bytes: int, what: str) -> None:
    """Compares an estimate with the room there is.

    Args:
        path: file or folder that will be written.
        needed_bytes: the estimate.
        what: what is going to be written, for the message.

    Raises:
        CorpusError: there is less room than the estimate.
    """
    if (free := free_bytes(path)) < needed_bytes:
        raise CorpusError(
            f"{path}: {free / 1e6:,.0f} MB are free; {what} needs about {needed_bytes / 1e6:,.0f} MB; "
            "make room or write to another disk"
        )


@contextmanager
def disk_full(path: Path) -> Iterator[None]:
    """Turns the system's errors for a full disk into one message.

    Raises:
        DiskFullError: the block met ENOSPC, EDQUOT or EFBIG.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(
            f"{path} cannot be written: {os.strerror(error.errno)}, {free_bytes(path):,} bytes are free; what is "
            "complete is kept; make room and start the same command again"
        ) from None
