"""The pipeline: order, what is skipped and what runs again, failures, and that nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_verbs
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lit_align import workers
from lit_align.errors import UserError
from lit_align.pipeline import StageSpec, as_word, commands_of, flatten, load_pipeline, sort_stages
from lit_align.progress import Progress
from lit_align.scheduler import run_pipeline


class Case:
    """A pipeline in a temporary folder, and a way to run it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "run"

    def load(self, stages: dict[str, Any], *overrides: str, **top: Any) -> Any:
        file = self.folder / "pipeline.yaml"
        file.write_text(
            yaml.safe_dump({"out": str(self.out), "seed": 3, "jobs": 1, "stages": stages, **top}, sort_keys=False)
        )
        return load_pipeline([str(file)], overrides, fake_verbs.VERBS)

    def run(self, stages: dict[str, Any], *overrides: str, **top: Any) -> tuple[int, str]:
        pipeline = self.load(stages, *overrides, **top)
        printed = self.folder / "printed.txt"
        with printed.open("w") as file:
            progress = Progress(len(pipeline.stages), 8, file.fileno())
            try:
                code = run_pipeline(pipeline, fake_verbs.run, fake_verbs.check, lambda run: run[0] == "train", progress)
            finally:
                progress.close()
        return code, printed.read_text()

    def options(self, stage: str) -> dict[str, Any]:
        return json.loads((self.out / stage / "options.json").read_text())

    def runs(self, stage: str) -> int:
        file = self.out / f"runs-{stage}"
        return len(file.read_text()) if file.exists() else 0


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


DIAMOND = {
    "last": {"run": "write", "args": {"reads": ["${stage:left}", "${stage:right}"]}},
    "left": {"run": "write", "args": {"from": "${stage:first}"}},
    "right": {"run": "write", "needs": "first"},
    "first": {"run": "write", "args": {"seed": "${seed}", "deep": {"er": {"x": 1.5, "on": True, "off": None}}}},
}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stage_runs_after_all_it_needs(case: Case, jobs: int) -> None:
    code, printed = case.run(DIAMOND, jobs=jobs)
    assert code == 0
    times = {name: case.options(name) for name in DIAMOND}
    for stage, need in [("left", "first"), ("right", "first"), ("last", "left"), ("last", "right")]:
        assert times[stage]["began"] >= times[need]["ended"]
    assert [line.split()[-3] for line in printed.splitlines()][0] == "first"
    assert "first is well" in printed
    assert set(json.loads((case.out / "timings.json").read_text())) == set(DIAMOND)


def test_arguments_arrive_as_words(case: Case) -> None:
    case.run(DIAMOND)
    first = case.options("first")
    assert (first["seed"], first["deep.er.x"], first["deep.er.on"], first["deep.er.off"]) == (
        "3",
        "1.5",
        "true",
        "null",
    )
    assert json.loads(case.options("last")["reads"]) == [str(case.out / "left"), str(case.out / "right")]


def test_two_jobs_run_side_by_side_in_processes_of_their_own(case: Case) -> None:
    slow = {"run": "write", "args": {"seconds": 1.5}}
    case.run({"one": slow, "two": slow, "after": {"run": "write", "needs": ["one", "two"]}}, jobs=2)
    one, two, after = (case.options(name) for name in ("one", "two", "after"))
    assert max(one["began"], two["began"]) < min(one["ended"], two["ended"])
    assert one["process"] != two["process"]
    assert after["process"] in (one["process"], two["process"])
    available = len(os.sched_getaffinity(0))
    assert one["threads"] == after["threads"] == str(max(1, available // 2))  # whatever runs beside it


def test_one_job_runs_in_this_process_and_threads_can_be_set(case: Case) -> None:
    available = len(os.sched_getaffinity(0))
    case.run({"one": {"run": "write", "threads": 1}, "two": {"run": "write", "threads": available + 5}})
    assert case.options("one")["process"] == os.getpid()
    assert case.options("one")["threads"] == "1"
    assert case.options("two")["threads"] == str(available)  # more would wait for each other


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_output_of_a_stage_and_its_children_is_in_its_log(case: Case, jobs: int, capfd: Any) -> None:
    case.run({"one": {"run": "write"}}, jobs=jobs)
    assert (case.out / "one" / "log.txt").read_text() == "said by one\nsaid by a child\n"
    assert "said" not in capfd.readouterr().out


def test_what_is_done_is_skipped_until_its_inputs_change(case: Case) -> None:
    config = case.folder / "left.yaml"
    config.write_text("x: 1\n")
    stages = {**DIAMOND, "left": {**DIAMOND["left"], "config": [str(config)]}}
    case.run(stages)
    code, printed = case.run(stages)
    assert code == 0
    assert printed.count("same") == 4
    assert {name: case.runs(name) for name in DIAMOND} == dict.fromkeys(DIAMOND, 1)
    config.write_text("x: 2\n")
    (case.out / "left" / "stale").write_text("of the run before")
    case.run(stages)
    assert {name: case.runs(name) for name in DIAMOND} == {"first": 1, "right": 1, "left": 2, "last": 2}
    assert not (case.out / "left" / "stale").exists()
    case.run(stages, "seed=4")
    assert {name: case.runs(name) for name in DIAMOND} == {"first": 2, "right": 2, "left": 3, "last": 3}


def test_recordings_outside_the_run_that_change_are_read_again(case: Case) -> None:
    recordings = case.folder / "recordings"
    (recordings / ".cache").mkdir(parents=True)
    (recordings / "meta.json").write_text("{}")
    stages = {"one": {"run": "write", "args": {"reads": [str(recordings)]}}, "two": {"run": "write"}}
    case.run(stages)
    (recordings / ".cache" / "frames").write_text("decoded")
    case.run(stages)
    assert (case.runs("one"), case.runs("two")) == (1, 1)
    (recordings / "meta.json").write_text('{"episodes": 2}')
    case.run(stages)
    assert (case.runs("one"), case.runs("two")) == (2, 1)


def test_a_moved_run_is_still_done(case: Case) -> None:
    case.run(DIAMOND)
    case.out.rename(case.folder / "moved")
    _, printed = case.run(DIAMOND, f"out={case.folder / 'moved'}")
    assert printed.count("same") == 4


def test_config_files_are_found_from_the_pipelines_folder_too(case: Case) -> None:
    (case.folder / "left.yaml").write_text("x: 1\n")
    pipeline = case.load({"one": {"run": "write", "config": "left.yaml"}})
    assert pipeline.stages["one"].config == [str(case.folder / "left.yaml")]


def test_a_result_that_was_removed_is_made_again(case: Case) -> None:
    case.run({"one": {"run": "write"}})
    for file in (case.out / "one").iterdir():
        file.unlink()
    (case.out / "one").rmdir()
    case.run({"one": {"run": "write"}})
    assert case.runs("one") == 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_stops_what_depends_on_it_and_nothing_else(case: Case, jobs: int) -> None:
    stages = {
        "bad": {"run": "fail"},
        "child": {"run": "write", "args": {"from": "${stage:bad}"}},
        "other": {"run": "write"},
    }
    code, printed = case.run(stages, jobs=jobs)
    assert code == 1
    assert (case.runs("child"), case.runs("other")) == (0, 1)
    assert "ValueError: it went wrong" in printed
    assert f"the whole log: {case.out / 'bad' / 'log.txt'}" in printed
    assert "blocked" in printed
    stages["bad"]["run"] = "write"
    assert case.run(stages, jobs=jobs)[0] == 0
    assert (case.runs("child"), case.runs("other")) == (1, 1)


def test_a_worker_that_dies_is_a_failed_stage(case: Case) -> None:
    code, printed = case.run({"bad": {"run": "die"}, "other": {"run": "write"}}, jobs=2)
    assert code == 1
    assert "exit code 3" in printed
    assert case.runs("other") == 1


def test_an_interrupted_training_goes_on(case: Case) -> None:
    stages = {"one": {"run": "train"}, "two": {"run": "write", "needs": "one"}}
    with pytest.raises(KeyboardInterrupt):
        case.run(stages)
    (case.out / "one" / "checkpoint").write_text("kept")
    code, _ = case.run(stages)
    assert code == 0
    assert case.options("one")["resume"] == "auto"
    assert (case.out / "one" / "checkpoint").exists()
    with pytest.raises(KeyboardInterrupt):  # with other inputs it starts afresh
        case.run(stages, "stages.one.args.lr=2")
    assert not (case.out / "one" / "checkpoint").exists()


def cell(case: Case, stages: dict[str, Any], **top: Any) -> str:
    """Writes the pipeline of a cell; returns its file."""
    file = case.folder / "cell.yaml"
    content = {"out": str(case.folder / "alone"), "seed": 0, "jobs": 1, "stages": stages, **top}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(file)


CELL = {
    "one": {"run": "write", "args": {"seed": "${seed}", "from": "${start}/first"}},
    "two": {"run": "write", "args": {"from": "${stage:one}"}},
}


def study(case: Case, **changes: Any) -> dict[str, Any]:
    """A pipeline of a stage and two cells, which read its folder."""
    file = cell(case, {**CELL, **changes}, start="nowhere")
    args = {"start": "${out}"}
    return {
        "first": {"run": "write"},
        **{
            name: {"run": "pipeline", "config": file, "needs": "first", "args": {**args, "seed": seed}}
            for name, seed in (("cell_0", 0), ("cell_1", 1))
        },
    }


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cell_runs_as_a_pipeline_of_its_own(case: Case, jobs: int) -> None:
    stages = study(case)
    case.run(stages, jobs=jobs)
    assert case.run(stages, jobs=jobs)[1].count("same") == 3
    for name, seed in (("cell_0", "0"), ("cell_1", "1")):
        one = case.options(f"{name}/one")
        assert (one["seed"], one["from"]) == (seed, str(case.out / "first"))
        assert case.options(f"{name}/two")["from"] == str(case.out / name / "one")
        assert "done     one" in (case.out / name / "log.txt").read_text()
        assert (case.out / name / "runs-two").read_text() == "x"


@pytest.mark.parametrize("share", [None, "1"])
def test_pipelines_inside_a_pipeline_use_no_more_threads_than_there_are_cores(
    case: Case, monkeypatch: pytest.MonkeyPatch, share: str | None
) -> None:
    """Two cells, two at a time, of three stages each, two at a time; with a share, inside a pipeline themselves."""
    if share is not None:
        monkeypatch.setenv(workers.SHARE, share)
    inner = {f"s{i}": {"run": "write", "args": {"seconds": 0.4}} for i in range(3)}
    stages = {name: {"run": "pipeline", "config": cell(case, inner, jobs=2)} for name in ("cell_0", "cell_1")}
    assert case.run(stages, jobs=2)[0] == 0
    ran = [case.options(f"{name}/{stage}") for name in stages for stage in inner]
    busy = [sum(int(b["threads"]) for b in ran if b["began"] <= a["began"] < b["ended"]) for a in ran]
    assert max(busy) <= int(share or len(os.sched_getaffinity(0)))
    assert os.environ.get(workers.SHARE) == share


def test_the_threads_of_a_pipeline_alone_are_as_before(case: Case) -> None:
    """Sums round otherwise with other threads: more jobs than cores get a thread each, as they always did."""
    available = len(os.sched_getaffinity(0))
    stages = {f"s{i}": {"run": "write", "args": {"seconds": 0.8}} for i in range(available + 1)}
    case.run(stages, jobs=available + 1)
    ran = [case.options(name) for name in stages]
    assert {one["threads"] for one in ran} == {"1"}
    assert len({one["process"] for one in ran}) == available + 1


def test_a_cell_that_failed_goes_on_with_what_it_lacks(case: Case) -> None:
    code, printed = case.run(study(case, two={"run": "fail"}))
    assert code == 1
    assert "ended with exit code 1" in printed
    assert (case.out / "cell_0" / "runs-one").read_text() == "x"
    assert case.run(study(case))[0] == 0
    assert (case.out / "cell_0" / "runs-one").read_text() == "x"
    assert (case.out / "cell_0" / "runs-two").read_text() == "x"


def test_a_cell_that_was_interrupted_resumes_its_training(case: Case) -> None:
    stages = study(case, two={"run": "train", "needs": "one"})
    for _ in range(2):  # a cell each time
        with pytest.raises(KeyboardInterrupt):
            case.run(stages)
    assert case.run(stages)[0] == 0
    for name in ("cell_0", "cell_1"):
        assert case.options(f"{name}/two")["resume"] == "auto"
        assert (case.out / name / "runs-one").read_text() == "x"


def test_a_cell_that_was_run_by_itself_is_taken_over(case: Case) -> None:
    stages = study(case)
    case.run({"first": {"run": "write"}})
    file = stages["cell_0"]["config"]
    fake_verbs.run(["pipeline", "--config", file, f"--out={case.out / 'cell_0'}", f"--start={case.out}", "--seed=0"])
    assert case.run(stages)[0] == 0
    assert (case.out / "cell_0" / "runs-one").read_text() == "x"


def test_a_folder_of_something_else_is_no_cell(case: Case) -> None:
    (case.out / "cell_0").mkdir(parents=True)
    (case.out / "cell_0" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no pipeline made it"):
        case.run(study(case))


def test_the_fingerprint_of_a_cell_is_of_all_that_its_files_include(case: Case) -> None:
    inner, config, stages = case.folder / "cell.yaml", case.folder / "one.yaml", study(case)
    config.write_text("x: 1\n")

    def prints(**changes: Any) -> dict[str, str]:
        return case.load(study(case, **changes)).fingerprints()

    def differ(before: dict[str, str], after: dict[str, str]) -> set[str]:
        return {name for name in stages if before[name] != after[name]}

    plain = prints()
    with_config = {**CELL["one"], "config": [str(config)]}
    before = prints(one=with_config)
    assert differ(plain, before) == {"cell_0", "cell_1"}
    config.write_text("x: 2\n")
    assert differ(before, prints(one=with_config)) == {"cell_0", "cell_1"}
    assert differ(plain, prints()) == set()
    inner.rename(case.folder / "base.yaml")
    (case.folder / "cell.yaml").write_text("base: base.yaml\n# said otherwise\n")
    assert differ(plain, case.load(stages).fingerprints()) == set()
    (case.folder / "cell.yaml").write_text("base: base.yaml\nstages: {two: {args: {more: 1}}}\n")
    assert differ(plain, case.load(stages).fingerprints()) == {"cell_0", "cell_1"}
    stages["cell_1"]["args"]["seed"] = 7
    (case.folder / "cell.yaml").write_text("base: base.yaml\n")
    assert differ(plain, case.load(stages).fingerprints()) == {"cell_1"}


def test_what_a_cell_reads_in_the_same_run_is_known_by_what_made_it(case: Case) -> None:
    """A folder that is there only once its stage has run does not make a finished cell stale."""
    stages = study(case)
    before = case.load(stages).fingerprints()
    case.run(stages)
    assert case.load(stages).fingerprints() == before
    stages["first"]["args"] = {"x": 1}
    assert all(case.load(stages).fingerprints()[name] != before[name] for name in stages)


def test_what_is_wrong_in_a_cell_is_said_before_anything_runs(case: Case) -> None:
    with pytest.raises(UserError, match=r"cell_0: stage two: there is no verb 'wrte'"):
        case.load(study(case, two={"run": "wrte"}))
    with pytest.raises(UserError, match="unknown option --typo"):
        case.run(study(case, two={"run": "write", "args": {"typo": 1}}))
    assert case.runs("first") == 0
    with pytest.raises(UserError, match="has no `config:`"):
        case.load({"one": {"run": "pipeline"}})
    with pytest.raises(UserError, match="a cell is the whole of a pipeline"):
        case.load({"one": {"run": "pipeline", "config": cell(case, CELL, start="x"), "args": {"only": "one"}}})
    with pytest.raises(UserError, match="is a cell of itself"):
        case.load({"one": {"run": "pipeline", "config": str(case.folder / "pipeline.yaml")}})


def test_commands_that_differ_in_numbers_alone_are_checked_once() -> None:
    def stage(name: str, *config: str, **args: Any) -> StageSpec:
        return StageSpec(name, ["write"], Path("out") / name, args=args, config=list(config))

    same = [stage("a_1", x=1), stage("a_2", x=22)]
    assert commands_of(same) == [same[0].argv]
    others = [
        stage("a_3", x="one"),
        stage("a_4", y=1),
        stage("a_5", x=1.5),
        stage("a_6", "1.yaml"),
        stage("a_7", "2.yaml"),
    ]
    assert len(commands_of([*same, *others])) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("jobs", "within"), [(1, None), (2, None), (1, 1), (1, 2), (2, 2)])
def test_no_process_outlives_the_pipeline(case: Case, number: int, jobs: int, within: int | None) -> None:
    """Alone, and `within` a pipeline of so many jobs."""
    if (jobs if within is None else max(jobs, within)) == 1 and number == signal.SIGKILL:
        pytest.skip("a killed process cannot end the children that it started itself")
    if within is None:
        case.load({"one": {"run": "hang"}}, jobs=jobs)
    else:
        inner = cell(case, {"one": {"run": "hang"}}, jobs=jobs)
        case.load({"cell": {"run": "pipeline", "config": inner}}, jobs=within)
    script = (
        "import sys, fake_verbs\n"
        "from lit_align.pipeline import load_pipeline\n"
        "from lit_align.progress import Progress\n"
        "from lit_align.scheduler import run_pipeline\n"
        "if __name__ == '__main__':\n"
        "    pipeline = load_pipeline([sys.argv[1]], [], fake_verbs.VERBS)\n"
        "    run_pipeline(pipeline, fake_verbs.run, fake_verbs.check, lambda run: False, Progress(1, 8))\n"
    )
    program = case.folder / "program.py"
    program.write_text(script)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent / "support")])
    process = subprocess.Popen(
        [sys.executable, program, case.folder / "pipeline.yaml"],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pids_file = (case.out if within is None else case.out / "cell") / "one" / "pids.json"
    try:
        _until(lambda: pids_file.exists() and bool(pids_file.read_text()))
        process.send_signal(number)
        process.wait(20)
    finally:
        process.kill()
    for pid in json.loads(pids_file.read_text()):
        _until(lambda pid=pid: not _alive(pid))


def _until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_everything_that_is_wrong_is_said_before_anything_runs(case: Case) -> None:
    stages = {
        "first": {"run": "wrte", "nedds": []},
        "second": {"run": "write", "needs": ["frst"], "config": ["absent.yaml"], "threads": 0},
        "third": {"run": "write", "args": {"out": "x"}},
    }
    with pytest.raises(UserError) as error:
        case.load(stages)
    for text in (
        "did you mean write?",
        "unknown key 'nedds'; did you mean needs?",
        "needs 'frst', which is no stage; did you mean first?",
        "no config file absent.yaml",
        "threads is 0",
        "`args.out` cannot be given",
    ):
        assert text in str(error.value)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_late_stage_with_a_wrong_option_stops_the_first_from_running(case: Case, jobs: int) -> None:
    with pytest.raises(UserError, match="unknown option --typo"):
        case.run({"one": {"run": "write"}, "two": {"run": "write", "needs": "one", "args": {"typo": 1}}}, jobs=jobs)
    assert case.runs("one") == 0


def test_a_circle_is_named(case: Case) -> None:
    stages = {name: {"run": "write", "needs": need} for name, need in [("a", "b"), ("b", "c"), ("c", "a")]}
    with pytest.raises(UserError, match="a -> b -> c -> a"):
        case.load(stages)


def test_unknown_overrides_are_refused(case: Case) -> None:
    with pytest.raises(UserError, match="did you mean seed"):
        case.load(DIAMOND, "sed=1")
    with pytest.raises(UserError, match="did you mean first"):
        case.load(DIAMOND, "stages.frist.args.x=1")
    with pytest.raises(UserError, match="jobs is 'many'"):
        case.load(DIAMOND, "jobs=many")


def test_own_values_may_be_referred_to(case: Case) -> None:
    pipeline = case.load({"one": {"run": "write", "args": {"frames": "${frames}"}}}, "frames=8", frames=64)
    assert "--frames=8" in pipeline.stages["one"].argv


def test_a_base_is_read_first(case: Case) -> None:
    case.load(DIAMOND)
    (case.folder / "small.yaml").write_text("base: pipeline.yaml\nstages: {first: {args: {seed: 9}}}\n")
    pipeline = load_pipeline([str(case.folder / "small.yaml")], [], fake_verbs.VERBS)
    assert "--seed=9" in pipeline.stages["first"].argv
    assert "--deep.er.x=1.5" in pipeline.stages["first"].argv


def test_only_takes_what_is_needed_too(case: Case) -> None:
    pipeline = case.load(DIAMOND)
    assert list(pipeline.only(["left"]).stages) == ["first", "left"]
    with pytest.raises(UserError, match="did you mean right"):
        pipeline.only(["rihgt"])


def test_a_folder_that_is_not_ours_is_left_alone(case: Case) -> None:
    (case.out / "first").mkdir(parents=True)
    (case.out / "first" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no pipeline made it"):
        case.run(DIAMOND)
    assert (case.out / "first" / "thesis.tex").read_text() == "years of work"


NAMES = st.text("abcdef", min_size=1, max_size=3)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(NAMES, VALUES, max_size=4))
def test_equal_inputs_and_only_those_have_equal_fingerprints(one: dict[str, Any], two: dict[str, Any]) -> None:
    from lit_align.pipeline import Pipeline

    def fingerprint(args: dict[str, Any]) -> str:
        first = StageSpec("first", ["write"], Path("out/first"), args=args)
        second = StageSpec("second", ["write"], Path("out/second"), needs=["first"])
        return Pipeline(Path("out"), 1, {"first": first, "second": second}).fingerprints()["second"]

    same = [(key, as_word(value)) for key, value in one.items()] == [
        (key, as_word(value)) for key, value in two.items()
    ]
    assert (fingerprint(one) == fingerprint(two)) == same


@given(
    st.recursive(
        st.dictionaries(NAMES, VALUES, max_size=3),
        lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3),
        max_leaves=6,
    )
)
def test_flatten_loses_nothing(nested: dict[str, Any]) -> None:
    rebuilt: dict[str, Any] = {}
    for key, value in flatten(nested):
        *groups, last = key.split(".")
        at = rebuilt
        for group in groups:
            at = at.setdefault(group, {})
        at[last] = value
    assert rebuilt == nested


@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(
            st.permutations(range(n)), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=12)
        )
    )
)
def test_sorting_respects_every_need(case: tuple[list[int], list[tuple[int, int]]]) -> None:
    order, pairs = case
    needs: dict[int, set[int]] = {index: set() for index in order}
    for low, high in pairs:
        if low < high:  # such a graph has no circle
            needs[high].add(low)
    stages = {str(i): StageSpec(str(i), ["write"], Path(str(i)), needs=[str(need) for need in needs[i]]) for i in order}
    at = {stage.name: position for position, stage in enumerate(sort_stages(stages))}
    assert set(at) == set(stages)
    assert all(at[need] < at[stage.name] for stage in stages.values() for need in stage.needs)
