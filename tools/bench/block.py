"""Training throughput of our transformer against GPT-2's in Hugging Face Transformers and, where given, nanoGPT's.

Embeddings in, a mean squared error out; forward, backward and one AdamW step, no dropout, batch 12; in float32, and
under bfloat16 autocast as our stages train. Same shapes, same number of parameters, same batch, same optimizer, same
precision for all. `--peer-src DIR` names a folder that holds nanoGPT's
model.py; it is run as it is found.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lit_align.models.config import BackboneConfig
from lit_align.models.transformer import Transformer
from tools.bench._bench import Bench, Result
from tools.bench._peer import Peer, peer_python
from tools.bench._peers.serve import timed
from tools.bench._peers.training import Training
from tools.bench._race import from_timings, interleave
from tools.bench._sizes import load_size

BENCH = Bench("block", "tokens/s", __doc__)
BATCH = 12
AIM_TRANSFORMERS, AIM_NANOGPT = 1.2, 1.0


def shapes(quick: bool) -> dict[str, tuple[BackboneConfig, int, int, bool]]:
    """Name of each case: our config, frames in a sequence, optimizer steps in a run, whether under bfloat16."""

    def plain(like: BackboneConfig, frames: int) -> BackboneConfig:
        return BackboneConfig(width=like.width, layers=like.layers, heads=like.heads, context=frames)

    middle = BackboneConfig(width=256, layers=4, heads=8)
    if quick:
        return {"256 wide, T=64": (plain(middle, 64), 64, 2, False)}
    return {
        "256 wide, T=64": (plain(middle, 64), 64, 8, False),
        "256 wide, T=64, bf16": (plain(middle, 64), 64, 8, True),
        "256 wide, T=256": (plain(middle, 256), 256, 2, False),
        "256 wide, T=256, bf16": (plain(middle, 256), 256, 2, True),
        "small, T=64": (plain(load_size("small"), 64), 64, 4, False),
    }


def measure(options: argparse.Namespace) -> Result:
    """Races every shape against every peer."""
    python = peer_python("transformers")
    source = options.peer_src
    if source is None:
        print("block: nanoGPT is skipped: --peer-src DIR names a folder with its model.py", file=sys.stderr)
    result = Result({})
    for name, (config, frames, steps, bf16) in shapes(options.quick).items():
        network = Transformer(config).train()
        settings: dict[str, Any] = {
            "shape": (BATCH, frames, config.width),
            "layers": config.layers,
            "heads": config.heads,
            "steps": steps,
            "threads": options.threads,
            "seed": options.seed,
            "bf16": bf16,
        }
        train = Training(network, network.parameters(), settings["shape"], steps, options.seed, bf16)
        with ExitStack() as stack:
            peers = {
                f"transformers_{kind}": stack.enter_context(Peer("gpt2", python, attention=kind, **settings))
                for kind in ("eager", "sdpa")
            }
            aim = dict.fromkeys(peers, AIM_TRANSFORMERS)
            if source is not None:
                peers["nanogpt"] = stack.enter_context(Peer("nanogpt", sys.executable, file=str(source), **settings))
                aim["nanogpt"] = AIM_NANOGPT
            timings = interleave({"ours": lambda train=train: timed(train), **peers}, options.repeats)
            parameters = {"ours": sum(p.numel() for p in network.parameters())}
            parameters |= {peer: worker.facts["parameters"] for peer, worker in peers.items()}
            result.versions |= peers["transformers_eager"].facts["versions"]
        if len(set(parameters.values())) > 1:
            result.failures.append(f"{name}: the networks differ in size: {parameters}")
        facts = {"shape": settings["shape"], "parameters": parameters}
        result.cases[name] = from_timings(timings, BATCH * frames * steps, aim=aim, facts=facts)
    return result


def nanogpt(folder: str) -> Path:
    """The file to import, for argparse."""
    path = Path(folder).resolve() / "model.py"
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no {path}; expected a folder that holds nanoGPT's model.py")
    return path


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    parser = BENCH.parser()
    parser.add_argument("--peer-src", type=nanogpt, metavar="DIR", help="folder with nanoGPT's model.py")
    return BENCH.main(measure, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
