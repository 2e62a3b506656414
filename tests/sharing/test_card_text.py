"""Whatever things are called, a card's YAML and Markdown stay what they are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lit_align.evaluation.results import agent_result
from lit_align.sharing.hub_rules import faults
from lit_align.sharing.measured import Evaluation
from lit_align.sharing.metadata import data_head, model_head
from lit_align.sharing.results_text import outcomes_table
from lit_align.sharing.sections import actions
from lit_align.sharing.text import cell, code, command_line, fenced, plain, table, without_paths
from lit_align.spaces import ActionCodec, gamepad_space

NAMES = st.text(max_size=40) | st.sampled_from(
    ["|", "a\\|b", "`", "``x`", "---", "\n---\n", "null", "1e3", "&#124;", "\ud800"]
)
COUNTS = st.dictionaries(NAMES, st.integers(0, 10**6), min_size=1, max_size=5).filter(lambda c: sum(c.values()) > 0)
QUICK = settings(deadline=None, max_examples=40)
MARKDOWN = MarkdownIt("commonmark").enable("table")


def cells_of(markdown: str) -> list[list[str]]:
    """The texts of the only thing in some Markdown, a table, as another program reads them."""
    tokens = MARKDOWN.parse(markdown)
    assert tokens[0].type == "table_open"
    assert tokens[-1].type == "table_close"
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            assert {c.type for c in token.children} <= {"text", "code_inline", "text_special"}, token.children
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def evaluation(counts: dict[str, int], world: str) -> Evaluation:
    entry = dict(agent_result(counts, seed=0, env_args={"size": 64, "odd": float("nan")}))
    return Evaluation("a", world, entry, Path("results.json"))


@QUICK
@given(COUNTS, NAMES, NAMES)
def test_any_outcomes_make_valid_metadata(counts, world, name):
    head = model_head(name, "mit", [world, name], [], [], [evaluation(counts, world)])
    assert not re.search(r"^---", head, re.MULTILINE)
    read = yaml.safe_load(head)
    assert faults(read, "model") == []
    metrics = read["model-index"][0]["results"][0]["metrics"]
    assert [metric["args"]["outcome"] for metric in metrics] == [plain(outcome) for outcome in counts]


@QUICK
@given(NAMES, NAMES, st.integers(0, 10**13))
def test_any_data_make_valid_metadata(name, tag, rows):
    head = yaml.safe_load(data_head(name, None, [tag], rows, {"train": "data/train-*.parquet"}, True))
    assert faults(head, "dataset") == []


@QUICK
@given(COUNTS)
def test_any_outcomes_make_a_table(counts):
    rows = cells_of(outcomes_table(evaluation(counts, "w")))
    assert rows[0] == ["outcome", "episodes", "share", "95 % interval"]
    assert [row[0] for row in rows[1:]] == [plain(name) or "(empty)" for name in counts]
    assert [row[1] for row in rows[1:]] == [f"{count:,}" for count in counts.values()]


@QUICK
@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4))
def test_lines_of_a_table_are_of_one_width(rows):
    narrow = [[cell(a), cell(b)] for a, b in rows if (plain(a) + plain(b)).isascii()]
    lines = table(["one", "another"], narrow, right={1}).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_wide_characters_take_two_columns():
    lines = table(["name"], [["世界"], ["ab"]]).splitlines()
    assert lines[2] == "| 世界 |"
    assert lines[3] == "| ab   |"


@QUICK
@given(NAMES)
def test_a_name_in_code_is_nothing_but_code(name):
    (paragraph,) = [token for token in MARKDOWN.parse(f"x {code(name)} y") if token.type == "inline"]
    kinds = [child.type for child in paragraph.children]
    assert kinds == ["text", "code_inline", "text"]
    assert paragraph.children[1].content == (plain(name) or "(empty)")


@QUICK
@given(st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from(" \n`~"), max_size=60))
def test_nothing_ends_a_block_of_code(text):
    tokens = MARKDOWN.parse(f"{fenced(text)}\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]


@QUICK
@given(st.lists(st.from_regex(r"[A-Za-z0-9_.+-]{1,12}", fullmatch=True), min_size=1, max_size=6), NAMES)
def test_no_absolute_path_is_left(parts, more):
    path = "/" + "/".join(parts)
    for text in (path, f"--x={path}", f'["{path}"]', f"file://{path}", f"a:{path}", "C:\\" + "\\".join(parts)):
        left = without_paths(text)
        assert not re.search(r"(?<![\w.])/|[A-Z]:\\", left), left
    assert without_paths(without_paths(f"{path} {more}")) == without_paths(f"{path} {more}")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/runs/ours/tuned/agent", "ours/tuned/agent"),
        ("--a=[/runs/ours/play, /data/x/play]", "--a=[ours/play, .../play]"),
        ("/home/jane/agent", ".../agent"),
        ("/home/jane/base/agent", ".../base/agent"),
        ("LitAlign/Jumppads-v0", "LitAlign/Jumppads-v0"),
        ("https://arxiv.org/abs/2406.04208", "https://arxiv.org/abs/2406.04208"),
        ("my_worlds:Kitchen-v0", "my_worlds:Kitchen-v0"),
        ("outputs/mine/../x", "outputs/mine/../x"),
        ("~/mine/x", "~/mine/x"),
    ],
)
def test_what_is_left_of_a_path(text, left):
    assert without_paths(text, Path("/runs/ours")) == left


def test_a_command_can_be_typed_again():
    words = ["lit-align", "pretrain", "fit", "--out=a b", *(f"--data.x{i}={'y' * 20}" for i in range(9)), '--z=["q"]']
    echoed = subprocess.run(["sh", "-c", f"printf '%s\\0' {command_line(words)}"], capture_output=True, check=True)
    assert echoed.stdout.decode().split("\0")[:-1] == words
    assert max(map(len, command_line(words).splitlines())) <= 125


def test_an_action_space_in_words():
    rows = cells_of(actions(ActionCodec(gamepad_space()).to_dict()).split("\n\n")[1])
    assert [row[:4] for row in rows[1:]] == [
        ["buttons", "button", "12", "2"],
        ["left_stick", "axis", "2", "11"],
        ["right_stick", "axis", "2", "11"],
    ]
    assert actions({"kind": "Sphere"}) == "The action space is unknown."


def test_a_title_is_one_line():
    assert plain("a\n# b\r\n\u2028---\x00\ud800") == "a # b ---"
