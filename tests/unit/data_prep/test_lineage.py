from pathlib import Path

import pytest

from data_prep.lineage import whole_file


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.txt"
    with whole_file(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(UnicodeEncodeError), whole_file(path, of_process=True) as partial:
        partial.write_text("half of the sec\ud800", encoding="utf-8")
    assert path.read_text() == "first"
