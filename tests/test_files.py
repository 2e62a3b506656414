"""A file is written whole or not at all."""

import stat

import pytest

from lit_align import files
from lit_align.errors import UserError


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


def bomb(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, levels))])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bomb(30), "stands for more than 200000 values"),
        ("a: &a [*a]", "an alias of what it stands in"),
        ("a: &a {b: *a}", "an alias of what it stands in"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
        ("[" * 5000, "nested too deeply|is not valid YAML"),
        ("a: 2020-99-99", "is not valid YAML"),
        ("a: " + "9" * 5000, "is not valid YAML"),
        ("? [a]\n: {}", "is not valid YAML"),
        ("a: \tb: c", "is not valid YAML"),
        (b"a: \xff", "not text in UTF-8"),
        (b"#" * (5 << 20), "4194304 at most"),
    ],
)
def test_yaml_that_is_not_a_configuration_is_refused_in_words(tmp_path, content, said):
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said) as error:
        files.read_yaml(path)
    assert str(path) in str(error.value)


def test_other_yaml_is_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"{bomb(4)}\nb: 1.5e-3\nc: {{<<: {{d: 1}}}}")
    content = files.read_yaml(path)
    assert len(content["a3"][7][7][7]) == 8
    assert content["c"] == {"d": 1}


def test_what_was_there_stays_where_the_new_folder_cannot_take_its_place(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "kept").touch()
    with pytest.raises(FileNotFoundError), files.beside(target) as scratch:
        files.replace_folder(scratch / "never made", target)
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "kept"]
