"""The command line: what it imports, what it says when something is mistyped, and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from lit_align.cli import main
from lit_align.commands import COMMANDS, LISTS, PIPELINE, STAGES, VERBS
from lit_align.commands.function import check_function, run_function
from lit_align.errors import UserError


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


HEAVY = ("torch", "lightning", "datasets", "wandb", "gymnasium", "vizdoom", "jsonargparse", "omegaconf", "numpy")


@pytest.mark.parametrize("argv", [["--help"], [], ["--version"], ["pretrian"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    done = python(
        "import sys; from lit_align.cli import main; main(" + repr(argv) + ")\n"
        "assert not (found := set(sys.modules) & set(" + repr(HEAVY) + ")), found"
    )
    assert done.returncode == 0, done.stderr


def test_the_package_and_its_environments_import_no_torch() -> None:
    code = "import sys, lit_align, lit_align.envs; assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    assert python(code).returncode == 0


def test_a_pipeline_is_checked_without_torch(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("out: x\nstages: {one: {run: colect}}\n")
    done = python(
        "import sys; from lit_align.cli import main\n"
        f"code = main(['pipeline', '--config', {str(tmp_path / 'p.yaml')!r}])\n"
        "assert code == 2 and 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr
    assert "did you mean collect?" in done.stderr


def test_help_names_every_verb(capsys: Any) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb}" in text and about in text for verb, about in VERBS.items())
    assert set(VERBS) == set(PIPELINE) | set(STAGES) | set(COMMANDS) | set(LISTS)


def test_an_unknown_verb_is_one_clear_error(capsys: Any) -> None:
    assert main(["pretrian", "fit"]) == 2
    assert "did you mean pretrain?" in capsys.readouterr().err


def evaluate(
    agents: list[str],
    episodes: int = 100,
    kind: Literal["a", "b"] = "a",
    mix: dict[str, float] | None = None,
    out: str = "o",
) -> None:
    """Stands in for a command.

    Args:
        agents: their folders.
        episodes: how many each.
        kind: of what.
        mix: shares.
        out: folder.
    """
    seen.append({"agents": agents, "episodes": episodes, "kind": kind, "mix": mix, "out": out})
    if episodes == 0:
        raise UserError("episodes is 0, expected 1 or more")


seen: list[dict[str, Any]] = []


def call(*argv: str) -> dict[str, Any]:
    run_function("evaluate", evaluate, list(argv))
    return seen[-1]


def test_leading_words_are_the_first_parameter() -> None:
    assert call("x=run/a", "run/b", "--episodes", "3")["agents"] == ["x=run/a", "run/b"]
    assert call("--agents=[c, d]")["agents"] == ["c", "d"]


@pytest.mark.parametrize(
    ("verb", "words"),
    [("evaluate", "AGENTS ..."), ("play", "AGENT"), ("push", "FOLDER TO"), ("compare", "TRAJECTORIES OUT")],
)
def test_help_shows_the_words_that_a_verb_takes_without_their_names(capsys: Any, verb: str, words: str) -> None:
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"usage: lit-align {verb} {words} [--option VALUE ...]"


def test_config_files_overlay_each_other_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text("agents: [a]\nepisodes: 5\nout: results/${episodes}/${kind}\nmix: {goal: 0.5}\n")
    (tmp_path / "2.yaml").write_text("kind: b\n")
    files = ["--config", str(tmp_path / "1.yaml"), "--config", str(tmp_path / "2.yaml")]
    assert call(*files)["out"] == "results/5/b"
    found = call(*files, "--episodes", "7", "--mix.stuck=0.25")
    assert found["out"] == "results/7/b"
    assert found["mix"]["stuck"] == 0.25


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a", "--episods", "3"], "unknown option --episods; did you mean --episodes?"),
        (["a", "--episode", "3"], "unknown option --episode; did you mean --episodes?"),
        (["a", "--episodes", "many"], "episodes: expected int, found many"),
        (["a", "--kind", "c"], "kind: expected one of 'a', 'b', found c"),
        (["--config", "absent.yaml"], "--config absent.yaml: there is no such file"),
        ([], "the following arguments are required: agents"),
    ],
)
def test_a_mistake_is_one_line_with_a_suggestion(argv: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_function("evaluate", evaluate, argv)
    assert said in str(error.value)
    assert "usage" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_all_unknown_keys_of_all_files_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text("episods: 5\nknd: a\n")
    (tmp_path / "2.yaml").write_text("agnets: [a]\n")
    with pytest.raises(UserError) as error:
        call("--config", str(tmp_path / "1.yaml"), f"--config={tmp_path / '2.yaml'}")
    for word in ("episodes", "kind", "agents"):
        assert f"did you mean {word}?" in str(error.value)


def test_print_config_can_be_read_back(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        call("x", "--episodes", "9", "--print_config")
    assert end.value.code == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert call("--config", str(tmp_path / "again.yaml"))["episodes"] == 9


@pytest.mark.parametrize(
    ("raised", "code"), [(UserError("no"), 2), (KeyboardInterrupt(), 130), (SystemExit(1), 1), (None, 0)]
)
def test_exit_codes(raised: BaseException | None, code: int, monkeypatch: Any, capsys: Any) -> None:
    def run(argv: list[str]) -> None:
        if raised is not None:
            raise raised

    monkeypatch.setattr("lit_align.cli.run_verb", run)
    assert main(["collect"]) == code
    assert "Traceback" not in capsys.readouterr().err
