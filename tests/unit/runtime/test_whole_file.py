"""A file that is replaced as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.runtime.whole_file import FileReplacer


def test_what_was_put_there_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "below" / "kept"
    file = FileReplacer(path)
    assert file.read() is None
    assert not path.parent.exists(), "nothing is touched before the first replace"
    file.replace(b"one")
    file.replace(b"other")
    assert file.read() == FileReplacer(path).read() == b"other"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["kept"]


def test_what_could_not_be_written_leaves_it_as_it_was(tmp_path: Path) -> None:
    file = FileReplacer(tmp_path / "kept")
    file.replace(b"one")
    (tmp_path / "kept.new").mkdir()  # so that the new one cannot be written
    with pytest.raises(OSError, match="directory"):
        file.replace(b"other")
    assert file.read() == b"one"


def test_a_new_one_that_a_crash_left_behind_is_never_read(tmp_path: Path) -> None:
    file = FileReplacer(tmp_path / "kept")
    file.replace(b"one")
    (tmp_path / "kept.new").write_bytes(b"half of")
    assert file.read() == b"one"
    file.replace(b"two")
    assert file.read() == b"two"
