"""The text of an agent's or a reward model's card."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_align.sharing import sections
from lit_align.sharing.facts import Facts, mapping, number_or_none, text_or_none
from lit_align.sharing.lineage import Origin
from lit_align.sharing.measured import HEATMAP, REPLAY, Measured, accuracy_of
from lit_align.sharing.results_text import agent_results, reward_results
from lit_align.sharing.sections import count
from lit_align.sharing.text import code, command_line, fenced, plain, quoted
from lit_align.sharing.what import MODELS

_SHOWN = 16
"""Hexadecimal digits of a fingerprint that are shown."""


@dataclass(frozen=True)
class Told:
    """All that a model's card is made from.

    Attributes:
        title: What it is called.
        address: What `lit_align.load` takes: the Hub id, or the folder.
        kind: `agent` or `reward_model`.
        facts: What its folder and its run tell.
        origin: Its lineage.
        measured: What was measured of it.
        licence: Identifier; None where none was chosen.
        files: Of the card.
        ended: How the episode of the replay ended, if there is one and it is known.
        watch: What an alignment says of its own reward, if it does.
    """

    title: str
    address: str
    kind: str
    facts: Facts
    origin: Origin
    measured: Measured
    licence: str | None
    files: dict[str, Path]
    ended: str = ""
    watch: str = ""

    @property
    def worlds(self) -> list[str]:
        """The worlds that it acts in, those with most of its episodes first; empty where none is known."""
        if own := text_or_none(self.facts.info.get("env")):
            return [own]
        played = self.measured.evaluations or self.measured.controls
        return _worlds_of(self.origin) or [one.environment for one in played[:1]]

    @property
    def world(self) -> str | None:
        """The first of them."""
        return next(iter(self.worlds), None)

    @property
    def vector_size(self) -> Any:
        """Numbers in its vector; 0 or None where it sees none."""
        return self.backbone.get("vector_size")

    @property
    def image_size(self) -> Any:
        """Pixels of its frames; 0 or None where it sees none."""
        return self.backbone.get("image_size")

    @property
    def backbone(self) -> dict[str, Any]:
        """Its architecture."""
        return mapping(self.facts.content.get("backbone"))


def _worlds_of(origin: Origin) -> list[str]:
    """The worlds of the data nearest to a model, those with most episodes first."""
    near = [one for parent in origin.parents if parent.kind in sections.DATA for one in parent.walk()]
    episodes: Counter[str] = Counter()
    for one in near:
        if world := text_or_none(one.meta.get("env")):
            episodes[world] += int(number_or_none(one.meta.get("episodes")) or 0)
    if episodes:
        return [world for world, _ in episodes.most_common()]
    further = (_worlds_of(parent) for parent in reversed(origin.parents) if parent.kind in MODELS)
    return next(filter(None, further), [])


def _named(worlds: list[str]) -> str:
    """Worlds in words: `A`, `B` and `C`."""
    *others, last = map(code, worlds)
    return f"{', '.join(others)} and {last}" if others else last


def body(told: Told) -> str:
    """The card without its metadata."""
    parts = [f"# {plain(told.title) or 'unnamed'}", _summary(told), *_pictures(told)]
    parts += ["## Use it", *_use(told), "## What it is", "\n".join(_what(told))]
    if told.kind == "agent":
        parts.append(sections.actions(told.facts.content.get("actions")))
        parts += ["## Results", *agent_results(told)]
    else:
        parts += ["## Results", *reward_results(told.facts.info)]
    lines = sections.data_lines(told.origin.walk())
    root = told.facts.folder.parent.parent
    parts += ["## Lineage", *_lineage(told.origin), "## Data", "\n".join(lines) or "What it learned from is unknown."]
    parts += ["## How it was made", sections.commands(told.origin.walk(), root)]
    if told.facts.config:
        parts += ["What decided what was learned, as the last run resolved it:", sections.settings(told.facts, root)]
    parts.append("\n".join(sections.machine(told.facts)))
    parts += ["## Limits", "\n".join(f"- {line}" for line in _limits(told))]
    parts += sections.licence_and_citation(told.licence, " ".join(told.worlds))
    return "\n\n".join(parts) + "\n"


def _summary(told: Told) -> str:
    what = {"pixels": told.image_size, "a vector of numbers": told.vector_size or not told.image_size}
    seen = f"sees {' and '.join(name for name, size in what.items() if size)}"
    place = f" in {_named(told.worlds)}" if told.worlds else ""
    if told.kind == "agent":
        return f"An agent that {seen} and acts{place}, {_made(told)}. Made with lit_align."
    target = text_or_none(told.facts.info.get("target"))
    liked = f"prefers {code(target)}" if target else "was learned from comparisons"
    return f"A reward model that {seen}, scores whole trajectories{place}, and {liked}. Made with lit_align."


def _made(told: Told) -> str:
    """The stage that made an agent, in words."""
    facts, stage = told.facts, told.facts.stage
    chosen = any(facts.setting("data", "select", key) is not None for key in ("scores", "top", "at_least"))
    if stage == "finetune":
        if mapping(facts.info.get("parent")).get("random_init"):
            return "trained by imitation of chosen play from random weights, without pre-training"
        return "fine-tuned by imitation of " + (
            "the episodes that a reward model ranks best" if chosen else "chosen play"
        )
    words = {
        "pretrain": "pre-trained by imitation of recorded play",
        "prefer": f"tuned on comparisons, without a reward model ({plain(facts.info.get('loss', 'unknown'))})",
        "align": f"aligned by online reinforcement learning ({plain(facts.info.get('estimator', 'unknown'))})",
    }
    return words.get(stage or "", f"left by the stage {code(stage)}" if stage else "by a stage that is not told")


def _pictures(told: Told) -> list[str]:
    parts = []
    if HEATMAP in told.files:
        parts.append(f"![Where it went in its evaluation episodes, seen from above]({HEATMAP})")
    if REPLAY in told.files:
        ended = f", which ended {code(told.ended)}" if told.ended else ""
        parts.append(f"One evaluation episode{ended}: [{REPLAY}]({REPLAY}).")
    return parts


def _use(told: Told) -> list[str]:
    if told.kind == "reward_model":
        size = "H, W" if told.image_size else "0, 0"
        lines = [
            "import lit_align",
            "",
            f"model = lit_align.load({quoted(told.address)})",
            f"# frames (B, T, {size}, 3) uint8, lengths (B,)" + ", vectors (B, T, V) float32" * bool(told.vector_size),
            f"reward = model.normalise(model(frames, lengths{', vectors' * bool(told.vector_size)})).mean(1)  # (B,)",
        ]
        return [fenced("\n".join(lines), "python")]
    if not told.world:
        lines = [
            "import lit_align",
            "",
            f"agent = lit_align.load({quoted(told.address)})",
            "action = agent.act(observation)",
        ]
        return [fenced("\n".join(lines), "python"), "`agent.reset()` begins a new episode."]
    lines = [
        "import lit_align",
        "from lit_align.envs.gym import make",
        "",
        f"agent = lit_align.load({quoted(told.address)})",
        f"world = {sections.make_world(told.world, told.image_size)}",
        "frame, info, over = *world.reset(seed=0), False",
        "while not over:",
        "    frame, reward, terminated, truncated, info = world.step(agent.act(frame))",
        "    over = terminated or truncated",
        'print(info.get("outcome"))',
    ]
    watch = fenced(command_line(["lit-align", "play", told.address, "--env", told.world]), "bash")
    return [fenced("\n".join(lines), "python"), "`agent.reset()` begins a new episode. To watch it:", watch]


def _what(told: Told) -> list[str]:
    facts, net = told.facts, told.backbone
    info = facts.info
    stage = code(facts.stage) if facts.stage else "unknown"
    lines = [f"- stage: {stage}, {_made(told)}" if told.kind == "agent" else f"- stage: {stage}"]
    several = "environments, most episodes first" if len(told.worlds) > 1 else "environment"
    lines.append(f"- {several}: {_named(told.worlds) if told.worlds else 'unknown'}")
    lines.append(f"- observations: {sections.observations(net.get('image_size'), net.get('vector_size'))}")
    if (fps := number_or_none(info.get("fps"))) is not None:
        lines.append(f"- speed: learned from {fps:g} env steps a second of the world")
    lines.append(f"- network: {_network(net)}")
    size = info.get("parameters") if number_or_none(info.get("parameters")) else facts.parameters
    lines.append(f"- parameters: {count(size)}")
    if told.kind == "reward_model":
        lines.append(
            f"- heads: {count(facts.content.get('heads'))}, readout {code(facts.content.get('readout', 'unknown'))}"
        )
        lines.append(f"- comparisons learned from: {count(info.get('comparisons'))}, {_target(info)}")
    else:
        depends = mapping(facts.content.get("policy")).get("heads")
        lines.append(f"- action heads: {code(depends) if depends else 'independent of each other'}")
    seconds = number_or_none(info.get("train_seconds"))
    learned = "in an unknown time" if seconds is None else f"in {seconds:,.0f} s of learning"
    lines.append(f"- learned from: {count(info.get('train_frames'))} frames {learned}, all its stages together")
    if number_or_none(info.get("env_steps")):
        lines.append(f"- played while it was aligned: {count(info['env_steps'])} env steps")
    if number_or_none(info.get("best_iteration")) is not None:
        lines.append(f"- weights: those that played iteration {count(info['best_iteration'])}, the best")
    if told.origin.fingerprint:
        lines.append(f"- fingerprint of architecture and weights: `{told.origin.fingerprint}`")
    return lines


def _target(info: dict[str, Any]) -> str:
    target = text_or_none(info.get("target"))
    return f"rule {code(target) if target else 'unknown'}, annotator {sections.annotator(info)}"


def _network(net: dict[str, Any]) -> str:
    if not net:
        return "unknown"
    seen = f"{code(net.get('encoder'))} encoder" if net.get("image_size") else "no encoder"
    if text_or_none(net.get("pretrained")):
        seen += f" {code(Path(net['pretrained']).name if Path(net['pretrained']).is_absolute() else net['pretrained'])}"
    layers, context = number_or_none(net.get("layers")), number_or_none(net.get("context"))
    reach = f", which sees {layers * (context - 1) + 1:.0f} frames back" if layers and context else ""
    return (
        f"{seen}, causal transformer of {count(layers)} layers, width {count(net.get('width'))}, "
        f"{count(net.get('heads'))} heads, attention to {count(context)} frames{reach}"
    )


def _lineage(origin: Origin) -> list[str]:
    chain = [one for one in origin.walk() if one.kind == "agent" or one is origin]
    names = " -> ".join(code(one.name) for one in chain)
    judges = [code(one.name) for one in origin.parents if one.how == "was rewarded by"]
    first = f"{names}{', rewarded by ' + ', '.join(judges) if judges else ''}" if len(chain) > 1 else ""
    note = f"Fingerprints are the first {_SHOWN} digits of `lit_align.models.folder.fingerprint`."
    return [*([first] if first else []), "\n".join(_branch(origin, 0, set())), note]


def _branch(one: Origin, depth: int, seen: set[tuple[str, str, str | None]]) -> list[str]:
    words = [f"{one.how} {code(one.name)}" if one.how else f"{code(one.name)}, this one"]
    if one.repository and one.repository != one.name:
        words.append(f"on the Hub as {code(one.repository)}")
    words += [f"revision {code(one.revision)}"] if one.revision else []
    words += [f"stage {code(one.stage)}"] if one.stage else [one.kind.replace("_", " ")]
    if one.kind in MODELS:
        words.append(f"fingerprint `{one.fingerprint[:_SHOWN]}`" if one.fingerprint else "fingerprint unknown")
    again = one.key in seen and bool(one.parents)
    words += ["see above"] if again else []
    words += [f"further back unknown: {one.unknown}"] if one.unknown else []
    lines = [f"{'  ' * depth}- {', '.join(words)}"]
    seen.add(one.key)
    for parent in () if again else one.parents:
        lines += _branch(parent, depth + 1, seen)
    return lines


def _limits(told: Told) -> list[str]:
    facts, info, measured = told.facts, told.facts.info, told.measured
    worlds = f"{len(told.worlds)} worlds" if len(told.worlds) > 1 else "One world"
    worlds += f", {_named(told.worlds) if told.worlds else 'an unknown world'}"
    lines = []
    if told.kind == "reward_model":
        lines.append(
            "It was judged on held-out comparisons of the same trajectories by the same annotator. What it says of "
            "episodes that another agent plays, such as one that is optimised against it, was not measured."
        )
        if accuracy_of(info) is None:
            lines.append("Its accuracy was not measured.")
    elif measured.evaluations:
        first = measured.evaluations[0]
        widest = max(rate.high - rate.low for rate in first.rates.values())
        lines.append(
            f"The shares above are of {first.episodes:,} episodes: their widest 95 % interval spans "
            f"{100 * widest:.1f} points, and smaller differences are not told apart."
        )
        lines.append(f"It was measured as said above alone ({first.under}); not at other temperatures or speeds.")
    else:
        lines.append("It was not evaluated: how its episodes end is not known.")
    other = "beside the controls above, " if measured.controls else ""
    lines.append(f"{worlds}: {other}what it does in another one, or on frames drawn otherwise, was not measured.")
    seed = facts.run.get("seed", facts.setting("seed"))
    told_seed = "unknown" if seed is None else plain(seed)
    lines.append(f"One training run (seed {told_seed}): how much another seed differs was not measured.")
    if facts.stage == "align" or facts.setting("data", "select", "scores"):
        lines.append(
            "It does what its reward prefers, not what people want: where the reward is wrong, so is the agent."
        )
    if any(one.unknown for one in told.origin.walk()):
        lines.append("The lineage is not whole: see what is said to be unknown there.")
    if sections.lacks_licence(told.origin.walk()):
        lines.append("The licence of what it learned from is unknown.")
    return [*lines, *(f"{plain(note)}." for note in measured.notes)]
