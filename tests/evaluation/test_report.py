"""The report of a made-up run: everything it links to is there, and what is missing is said."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lit_align.errors import UserError
from lit_align.evaluation.difference import compare
from lit_align.evaluation.gather import gather
from lit_align.evaluation.report import build_report
from lit_align.evaluation.results import agent_result, build, read, write
from tests.evaluation import synthetic


class Links(HTMLParser):
    """Collects what a page refers to, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.files: set[str] = set()
        self.anchors: set[str] = set()
        self.ids: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "source"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(str(value))
            if name in ("src", "srcset", "poster", "href"):
                (self.anchors if str(value).startswith("#") else self.files).add(str(value).lstrip("#"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def links(page: Path) -> Links:
    found = Links()
    found.feed(page.read_text())
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.run_folder(tmp_path_factory.mktemp("run"), count=25)


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return build_report(run, run / "report")


def test_all_links_resolve_inside_the_report(page: Path) -> None:
    found = links(page)
    assert len(found.files) > 20
    for file in found.files:
        assert "://" not in file
        assert ".." not in file
        assert (page.parent / file).is_file(), file
    assert found.anchors <= found.ids


def test_page_tells_the_story(page: Path) -> None:
    text = page.read_text()
    for words in ("shadow-boxed", "Aligned left", "paper 98.7", "Wilson 95 %", "Time for each stage", "5 min 12 s"):
        assert words in text
    assert "1 min 01 s" in text, "the pipeline's clock"
    assert "9999" not in text
    assert "not run" not in text


def test_results_are_merged_and_valid(page: Path) -> None:
    merged = read(page.parent / "results.json")
    assert set(merged["agents"]) == set(synthetic.MIX)
    assert merged["reward_models"]["left"]["agent"]["50"]["accuracy"] == 0.93
    assert merged["agents"]["align_left"]["episode_seeds"][:2] == [1000, 1001]


def test_building_again_replaces_and_changes_nothing(run: Path, page: Path) -> None:
    before = {path.name: path.read_bytes() for path in page.parent.iterdir() if path.is_file()}
    (page.parent / "stale.png").write_text("")
    build_report(run, page.parent)
    after = {path.name: path.read_bytes() for path in page.parent.iterdir() if path.is_file()}
    assert after == before
    assert not list(run.glob(".report-*"))


def test_nothing_but_a_report_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="not a report"):
        build_report(tmp_path, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_a_folder_with_nothing_in_it_is_an_error_and_makes_no_page(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "notes.txt").write_text("nothing that a stage leaves")
    with pytest.raises(UserError, match=r"found nothing to report in .*; expected the folder of a pipeline"):
        build_report(tmp_path, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def began(folder: Path) -> None:
    """One stage that ended, of which there is nothing to show."""
    (folder / ".pipeline").mkdir()
    (folder / ".pipeline" / "play.json").write_text('{"fingerprint": "x", "state": "done", "seconds": 3.0}')


def test_a_run_that_just_began_says_what_was_not_run(tmp_path: Path) -> None:
    began(tmp_path)
    page = build_report(tmp_path, tmp_path / "report")
    text = page.read_text()
    for part in ("Evaluation", "Reward model", "Alignment", "Training", "Videos"):
        assert f"{part}: not run." in text
    assert links(page).files == {"results.json"}


def test_one_evaluation_alone_is_enough(tmp_path: Path) -> None:
    synthetic.evaluation_folder(tmp_path, "pretrain", 10, videos=False)
    text = build_report(tmp_path, tmp_path / "out").read_text()
    assert "Reward model: not run." in text
    assert "success.png" in text


def test_damaged_parts_become_notes(tmp_path: Path) -> None:
    synthetic.evaluation_folder(tmp_path, "pretrain", 10, videos=False)
    synthetic.evaluation_folder(tmp_path, "finetune", 10, videos=False)
    (tmp_path / "eval_finetune" / "results.json").write_text("{")
    (tmp_path / "eval_pretrain" / "episodes.npz").write_bytes(b"PK")
    text = build_report(tmp_path, tmp_path / "report").read_text()
    assert "not whole JSON" in text
    assert "episodes.npz cannot be read" in text


def test_blanked_agents_never_stand_among_the_headlines(tmp_path: Path) -> None:
    seen = agent_result({"left": 19, "none": 1}, seed=0)
    blank = agent_result({"left": 1, "none": 19}, seed=0, blank=True)
    for name, entry in (("eval_align_left", seen), ("eval_blank_left", blank)):
        write(build("LitAlign/Jumppads-v0", {"align_left": entry}), tmp_path / name / "results.json")
    found = gather(tmp_path)
    assert found.results["agents"] == {"align_left": seen}
    assert found.results["ablations"] == {"align_left_blank": blank}
    assert "picture blanked" in build_report(tmp_path, tmp_path / "report").read_text()


def test_a_control_takes_neither_the_comparisons_of_agents_nor_needs_reward_models(tmp_path: Path) -> None:
    seen, other = (agent_result({"left": left, "none": 4 - left}, seed=0) for left in (4, 3))
    blank = agent_result({"left": 4, "none": 0}, seed=0, blank=True)
    compared = compare(dict.fromkeys(range(4), "left"), {**dict.fromkeys(range(3), "left"), 3: "none"})
    same = compare(dict.fromkeys(range(4), "left"), dict.fromkeys(range(4), "left"))
    agents = {"a": seen, "b": other, "dark": blank}
    write(build("W", agents, paired={"b": {"a": compared}, "dark": {"a": same}}), tmp_path / "eval_all/results.json")
    # As `evaluate --blank --out` leaves it: the agent that is compared with has a file of its own.
    alone = build("W", {"b": blank}, paired={"b": {"a": same}})
    del alone["reward_models"]  # type: ignore[misc]  # others may write files without
    (tmp_path / "eval_b").mkdir()
    (tmp_path / "eval_b" / "results.json").write_text(json.dumps(alone))
    found = gather(tmp_path)
    assert not found.notes
    assert found.results["agents"] == {"a": seen, "b": other}
    assert found.results["ablations"] == {"dark_blank": blank, "b_blank": blank}
    assert found.results["paired"] == {"b": {"a": compared}, "dark_blank": {"a": same}, "b_blank": {"a_blank": same}}


def test_reward_models_are_read_from_their_own_folders(tmp_path: Path) -> None:
    info = {"target": "left", "start": "agent", "comparisons": 50, "accuracy": 0.92, "pairs": 211}
    for name, accuracy in (("reward_left", 0.92), ("reward_left_b", 0.5)):
        (tmp_path / name / "reward_model").mkdir(parents=True)
        text = json.dumps({"kind": "reward_model", "info": {**info, "accuracy": accuracy}})
        (tmp_path / name / "reward_model" / "config.json").write_text(text)
    found = gather(tmp_path).results
    assert found["reward_models"] == {"left": {"agent": {"50": {"accuracy": 0.92, "pairs": 211}}}}
    assert found["ablations"]["reward_left_b"]["reward_model"]["accuracy"] == 0.5


def test_what_a_reward_model_knows_of_itself_comes_into_the_results(tmp_path: Path) -> None:
    by_gap = {"1": {"accuracy": 0.8, "pairs": 100, "gap": [1, 1]}, "2": {"accuracy": 1.0, "pairs": 111, "gap": [2, 2]}}
    known = {"accuracy": 0.92, "pairs": 211, "ece": 0.0625, "by_gap": by_gap, "best_accuracy": 0.875}
    info = {"target": "left", "start": "random", "comparisons": 1000, "stage": "reward", **known}
    (tmp_path / "reward_left" / "reward_model").mkdir(parents=True)
    text = json.dumps({"kind": "reward_model", "info": info})
    (tmp_path / "reward_left" / "reward_model" / "config.json").write_text(text)
    assert gather(tmp_path).results["reward_models"] == {"left": {"random": {"1000": known}}}
    page = build_report(tmp_path, tmp_path / "report").read_text()
    assert "<td><b>92.0 %</b></td><td>87.5 %</td><td>6.2 %</td><td>211</td>" in page


def test_an_outcome_that_an_agent_never_came_to_is_0_of_its_episodes(tmp_path: Path) -> None:
    """Outside the island only outcomes that were seen are counted by name."""
    for name, outcomes in (("pretrain", {"goal": 1, "none": 9}), ("finetune", {"goal": 10}), ("align_goal", {"x": 10})):
        write(build("My/World-v0", {name: agent_result(outcomes, seed=0)}), tmp_path / f"eval_{name}" / "results.json")
    text = build_report(tmp_path, tmp_path / "report").read_text()
    never = "<b>0.0 %</b><span>{}</span><small>95 %: 0 to 28"
    assert never.format("go goal when aligned to goal") in text
    assert never.format("after fine-tuning") in text
    cell = "<td><b>0.0</b> <small>0-28</small></td>"
    assert f"{2 * cell}<td>10</td>" in text, "of goal and none, in the aligned agent's row"


def aligned(folder: Path, env_args: dict[str, object]) -> None:
    """What an alignment's run folder says of its world."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"data": {"env": "LitAlign/Jumppads-v0", "env_args": env_args}}))


def test_worlds_made_with_other_arguments_never_stand_among_the_headlines(tmp_path: Path) -> None:
    plain = agent_result({"left": 19, "none": 1}, seed=0)
    fenced, short = ({"env_args": change} for change in ({"fenced": True}, {"max_steps": 60, "sky": "dusk"}))
    parts = {
        "eval_align_left": plain,
        "eval_align_left_fenced": agent_result({"left": 20}, seed=0, **fenced),
        "eval_short": agent_result({"left": 3, "none": 17}, seed=0, **short),
    }
    for name, entry in parts.items():
        write(build("LitAlign/Jumppads-v0", {"align_left": entry}), tmp_path / name / "results.json")
    for _ in range(2):  # as it stands, and with the alignment's own word for it
        found = gather(tmp_path)
        assert not found.notes
        assert found.results["agents"] == {"align_left": plain}
        assert found.results["ablations"] == {
            "align_left_fenced-True": parts["eval_align_left_fenced"],
            "align_left_dusk_max-steps-60": parts["eval_short"],
        }
        text = build_report(tmp_path, tmp_path / "report").read_text()
        assert text.index("where they never trained") < text.index("align_left_fenced-True")
        if not (tmp_path / "align_left").exists():
            aligned(tmp_path / "align_left", {"size": 64})


def test_the_world_that_a_run_aligned_in_is_its_headline_and_the_page_says_what_it_was(tmp_path: Path) -> None:
    aligned(tmp_path / "align_left", {"size": 64, "max_steps": 60})
    entries = {
        "eval_align_left": agent_result({"left": 3, "none": 17}, seed=0, env_args={"max_steps": 60}),
        "eval_longer": agent_result({"left": 9, "none": 11}, seed=0, env_args={"max_steps": 240}),
    }
    for name, entry in entries.items():
        write(build("LitAlign/Jumppads-v0", {"align_left": entry}), tmp_path / name / "results.json")
    found = gather(tmp_path).results
    assert found["agents"] == {"align_left": entries["eval_align_left"]}
    assert found["ablations"] == {"align_left_max-steps-240": entries["eval_longer"]}
    assert "made with max_steps 60" in build_report(tmp_path, tmp_path / "report").read_text()


def test_names_from_a_run_are_escaped(tmp_path: Path) -> None:
    synthetic.evaluation_folder(tmp_path, "pretrain", 5, videos=False)
    path = tmp_path / "eval_pretrain" / "results.json"
    path.write_text(path.read_text().replace("LitAlign/Jumppads-v0", "<script>x</script>"))
    assert "<script>x" not in build_report(tmp_path, tmp_path / "report").read_text()
