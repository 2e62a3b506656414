"""`metrics.csv`: what a full disk or a kill cuts short costs that row alone."""

import csv
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.stages.metrics_csv import MetricsTable, last_values


def row(step: int) -> dict[str, float]:
    return {"epoch": 0, "train/loss": 1.25 + step, "train/accuracy": 0.5}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, strict=True))


@pytest.fixture
def room():
    """Sets how many bytes a file of this process may have; SIGXFSZ, which would kill it, is ignored."""
    resource = pytest.importorskip("resource")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits of files")
@pytest.mark.parametrize("bytes_left", [0, 6, 13])
def test_a_row_that_finds_no_room_is_not_begun(tmp_path, room, bytes_left):
    table = MetricsTable(tmp_path / "metrics.csv")
    for step in range(3):
        table.log_metrics(row(step), step)
    whole = table.path.read_bytes()
    room(len(whole) + bytes_left)
    with pytest.raises(OSError):  # noqa: PT011  of which kind depends on what refuses: a limit, a quota, the disk
        table.log_metrics(row(3), 3)
    room(None)
    assert table.path.read_bytes() == whole
    table.log_metrics(row(3), 3)
    assert [line["step"] for line in read(table.path)] == ["0", "1", "2", "3"]


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 200), at=st.integers(0, 5), column=st.booleans())
def test_what_was_cut_anywhere_is_gone_on_from(tmp_path_factory, cut, at, column):
    path = tmp_path_factory.mktemp("cut") / "metrics.csv"
    before = MetricsTable(path)
    for step in range(5):
        before.log_metrics(row(step), step)
    content = path.read_bytes()[:-cut]
    path.write_bytes(content)
    whole = max(0, content.count(b"\n") - 1)
    after = MetricsTable(path)
    after.rewind(at, at)
    left = min(whole, at)
    assert after.rows == left
    after.log_metrics(row(9) | ({"val/loss": 2.0} if column else {}), 9)
    found = read(path)
    assert [line["step"] for line in found] == [*map(str, range(left)), "9"]
    assert all(float(line["train/loss"]) == row(int(line["step"]))["train/loss"] for line in found)
    assert last_values(path.parent)["train/loss"] == row(9)["train/loss"]
    MetricsTable(path).rewind(0, 0)
    assert read(path) == []
