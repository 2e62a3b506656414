"""One of one or two processes that train or play together, on a core of its own; engines stay on it too."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

wanted = json.loads(sys.argv[1])
# Before anything starts a thread or an engine: these keep what they are born with.
os.sched_setaffinity(0, {wanted["core"]})
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
if wanted["ranks"] > 1:
    # As torchrun tells its processes who they are.
    told = {"RANK": wanted["rank"], "LOCAL_RANK": wanted["rank"], "GROUP_RANK": 0, "MASTER_PORT": wanted["port"]}
    told |= {"WORLD_SIZE": wanted["ranks"], "LOCAL_WORLD_SIZE": wanted["ranks"], "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in told.items()} | {"TORCHELASTIC_RUN_ID": "bench"}
sys.path = [str(Path(__file__).parents[3]), *sys.path[1:]]

from tools.bench._peers.serve import serve, settings, timed  # noqa: E402


def pretrain() -> None:
    """The quickstart's training step, DDP over gloo where there are two processes; the run times itself."""
    import yaml

    from tools.bench._imitation import through_lightning
    from tools.bench._machine import ROOT

    content = yaml.safe_load((ROOT / "configs" / "jumppads" / "pretrain.yaml").read_text())
    config = {"model": content["model"], "trainer": content["trainer"]}
    processes = {"devices": wanted["ranks"], "strategy": "ddp"} if wanted["ranks"] > 1 else {}
    data = {name: wanted[name] for name in ("windows", "frames", "warm_up", "steps")}
    data["image_size"] = content["model"]["backbone"]["image_size"]
    serve(
        lambda: None,
        lambda _: through_lightning(config, data, wanted["seed"], processes),
        image_size=data["image_size"],
    )


def align() -> None:
    """Play as `align` plays, each process in its own islands, with the `tiny` agent."""
    from lit_align.envs.gym import make
    from lit_align.models.agent import Agent
    from lit_align.rollout.sampler import Sampler
    from lit_align.spaces import ActionCodec, gamepad_space
    from tools.bench._sizes import load_size

    agent = Agent(load_size("tiny"), ActionCodec(gamepad_space())).eval()
    worlds, steps = wanted["worlds"], wanted["steps"]
    seeds = [wanted["seed"] + wanted["rank"] * worlds + i for i in range(worlds)]
    played: list[int] = []

    with Sampler(
        agent, lambda: make("LitAlign/Jumppads-v0", size=agent.config.image_size, max_steps=steps), worlds
    ) as sampler:
        serve(
            lambda: played.append(sum(len(t) for t in sampler.play(list(enumerate(seeds))))),
            lambda work: {**timed(work), "amount": float(played[-1])},
        )


if __name__ == "__main__":
    settings()
    pretrain() if wanted["what"] == "pretrain" else align()
