"""Runs of stages on two processes, one after another in the same two: `torchrun -m tests.stages.pair FILE`.

FILE holds a JSON list of what follows `lit-align`. Libraries are imported once for all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lit_align.data.trajectory import Trajectory
from lit_align.rollout.callback import RolloutCallback

ROOT = Path(__file__).parents[2]
STRATEGIES = {
    "ddp": ["--config=configs/trainer/ddp.yaml"],
    "fsdp": ["--config=configs/trainer/fsdp.yaml"],
    "file": ["--config=configs/trainer/fsdp.yaml", "--trainer.strategy.init_args.sharded_checkpoints=false"],
}
TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2"]


def torchrun(arguments: list[str], log: Path) -> None:
    """`torchrun --nproc_per_node 2 ARGUMENTS`; fails with the end of what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    with log.open("w") as file:
        done = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=1800)
    assert done.returncode == 0, log.read_text()[-4000:]


def pairs_of(runs: list[list[str]], folder: Path) -> None:
    """Runs all of them on two processes."""
    (folder / "runs.json").write_text(json.dumps(runs))
    torchrun(["-m", "tests.stages.pair", str(folder / "runs.json")], folder / "pair.log")


class Played(RolloutCallback):
    """Writes down what each process played.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        judge = pl_module.judge

        def listen(trajectories: list[Trajectory]) -> Any:
            self.folder.mkdir(parents=True, exist_ok=True)
            kept = {t.id: (torch.from_numpy(t.actions), torch.from_numpy(t.frames)) for t in trajectories}
            torch.save(kept, self.folder / f"{trainer.current_epoch}-{trainer.global_rank}.pt")
            return judge(trajectories)

        pl_module.judge = listen
        super().on_train_epoch_start(trainer, pl_module)
        pl_module.judge = judge


class Stored(RolloutCallback):
    """Takes an iteration's episodes from a file, as `judge` gets them.

    Args:
        file: With all episodes, as `write` wrote them.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    @staticmethod
    def write(trajectories: list[Trajectory], file: Path) -> None:
        fields = ("frames", "actions", "vectors", "rewards", "log_probs", "positions")
        content = []
        for t in trajectories:
            arrays = {name: torch.from_numpy(getattr(t, name)) for name in fields}
            content.append({**arrays, "id": t.id, "seed": t.seed, "outcome": t.outcome, "terminated": t.terminated})
        torch.save(content, file)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        mine = {episode for episode, _ in data.deal(trainer.current_epoch)}
        made = []
        for kept in torch.load(self.file, weights_only=True):
            if kept["id"] in mine:
                fields: dict[str, Any] = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in kept.items()}
                made.append(Trajectory(**fields))
        assert len(made) == len(mine)
        pl_module.player()
        data.fill(trainer.current_epoch, pl_module.judge(made))
        pl_module.report(made, 1.0, 0)


class Gradient(pl.Callback):
    """Keeps the first step's loss, over all processes, and its gradient.

    Args:
        file: Where to.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.found: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self.found:
            for name, parameter in sorted(pl_module.named_parameters()):
                if parameter.grad is not None:
                    grad: Any = parameter.grad
                    self.found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        if "loss" not in self.found:
            loss = outputs["loss"].detach().double()
            if trainer.world_size > 1:
                torch.distributed.all_reduce(loss)
            self.found["loss"] = loss / trainer.world_size
            if trainer.is_global_zero:
                torch.save(self.found, self.file)


if __name__ == "__main__":
    from lit_align.cli import main

    for argv in json.loads(Path(sys.argv[1]).read_text()):
        code = main(argv)
        if code:
            sys.exit(f"{code}: {' '.join(argv)}")
