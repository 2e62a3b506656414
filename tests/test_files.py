"""A file is written whole or not at all."""

import stat

import pytest

from lit_align import files


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "results.json"
    files.write_whole(path, "old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def broken(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
