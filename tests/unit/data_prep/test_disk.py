import errno
from pathlib import Path

import pytest

from data_prep.disk import DiskFullError, check_free, disk_full, free_bytes
from data_prep.document import CorpusError


def test_the_estimate_is_compared_with_the_room_there_is(tmp_path: Path) -> None:
    place = tmp_path / "not" / "there" / "yet"
    check_free(place, 1, "nothing")
    with pytest.raises(
        CorpusError, match=r"yet: [\d,]+ MB are free; a corpus needs about [\d,]+ MB; make room or write"
    ):
        check_free(place, free_bytes(place) + 10**12, "a corpus")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_the_errors_of_a_full_disk_are_one(tmp_path: Path, number: int) -> None:
    message = r"cannot be written: .*, [\d,]+ bytes are free; what is complete is kept"
    with pytest.raises(DiskFullError, match=message), disk_full(tmp_path):
        raise OSError(number, "full")


def test_a_real_full_device_is_noticed(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with pytest.raises(DiskFullError, match=r"No space left on device"), disk_full(tmp_path):
        Path("/dev/full").write_bytes(b"x")


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_full(tmp_path):
        (tmp_path / "no").read_bytes()
