"""`lit-align export`: what a run would leave if it ended at a checkpoint, without training; an agent as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lit_align.errors import UserError
from lit_align.files import beside, empty_place, put_folder

ALONE = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": "32-true",
    "logger": "false",
    "callbacks": "null",
    "plugins": "null",
}
"""The run's Trainer, as one process on the CPU."""


TOLERANCE = 1e-4
"""How far log-probabilities of an ONNX file may be from torch's."""


def run(checkpoint: str, out: str, format: Literal["folder", "onnx"] = "folder", worlds: int | None = None) -> None:
    """Writes the agent or the reward model of a checkpoint as a folder, or an agent as an ONNX file.

    `folder`: as the run itself does at its end. Weights that were sharded over processes are put together. The settings
    are those of the run's `config.yaml`, so the folders that it names have to be there. A reward model is normalised on
    its trajectories.

    `onnx`: an agent's step with its KV cache, in float32. It is played against torch before the command ends. Needs
    `pip install 'lit-align[onnx]'`.

    Args:
        checkpoint: A run's folder, whose last checkpoint is meant, or a checkpoint in its `checkpoints/`: a file, or a
            folder of shards. For `onnx`: an agent's folder, or its name on the Hugging Face Hub.
        out: Folder to write, which must not exist or be empty; for `onnx` a file, which is replaced.
        format: `folder` or `onnx`.
        worlds: How many worlds a step of the ONNX file is of, where it is always the same; None leaves it open.
    """
    if format == "onnx":
        _write_onnx(checkpoint, Path(out), worlds)
    elif worlds is not None:
        raise UserError(f"--worlds {worlds} is for --format onnx; leave it out")
    else:
        _write_folder(checkpoint, out)


def _write_onnx(agent: str, target: Path, worlds: int | None) -> None:
    """Exports an agent and plays the file against it."""
    from lit_align.models.onnx_export import export_onnx, need_onnx, put_in_place

    if target.suffix != ".onnx" or target.is_dir():
        raise UserError(f"--out is {target}; expected a file that ends in .onnx")
    need_onnx()
    from lit_align.hub import fetch
    from lit_align.models.agent import Agent
    from lit_align.models.onnx_check import largest_difference

    folder = fetch(agent)
    if (folder / "checkpoints").is_dir():
        raise UserError(
            f"'{agent}' is a run; expected an agent's folder: {folder / 'agent'}, or what 'lit-align export {agent} "
            "--out FOLDER' makes of its last checkpoint"
        )
    player = Agent.load(folder).eval().requires_grad_(False)
    steps = player.config.context + 8
    with beside(target) as aside:
        file = export_onnx(player, aside / target.name, worlds)
        apart = largest_difference(player, file, steps)
        if not apart <= TOLERANCE:  # so written, NaN is refused too
            raise UserError(
                f"the ONNX file was {apart:.1e} away from torch in log-probability, expected at most {TOLERANCE:.0e}; "
                f"it was removed, and {target} is as it was: try other versions of torch and onnxruntime"
            )
        size = put_in_place(aside, target)
    print(  # noqa: T201  what was asked
        f"{target}: {size / 1e6:.1f} MB; over {steps} steps its log-probabilities are at most {apart:.1e} from torch's"
    )


def _write_folder(checkpoint: str, out: str) -> None:
    """Exports what a checkpoint holds."""
    from lit_align.commands.run_folder import RunFolder
    from lit_align.commands.stage import CLASSES, StageCLI

    folder, resume = _find(Path(checkpoint))
    target = empty_place(out, f"--out {out}")
    path = RunFolder(folder).checkpoint(resume)
    assert path is not None
    content = _read(path)
    stage = content.get("lit_align", {}).get("stage")
    if stage not in CLASSES:
        raise UserError(f"the checkpoint of {checkpoint} is of stage {stage!r}; expected one of {', '.join(CLASSES)}")
    argv = [f"--config={folder / 'config.yaml'}", f"--out={folder}", f"--resume={path}"]
    cli = StageCLI(stage, "validate", [*argv, *(f"--trainer.{k}={v}" for k, v in ALONE.items())], CLASSES[stage])
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    model.trainer, trainer.datamodule, data.trainer = trainer, data, trainer
    if stage == "reward":
        data.prepare_data()
        data.setup("validate")
    model.configure_model()
    model.on_load_checkpoint(content)
    model.load_state_dict(_weights(content, path, model))
    with beside(target) as aside:
        model.export(aside)
        put_folder(aside / model.folder, target)
    print(f"{out}: {model.folder} of {stage}, after {content['global_step']} optimizer steps")  # noqa: T201


def _find(path: Path) -> tuple[Path, str]:
    """The run's folder, and its checkpoint as `--resume` takes it."""
    if (path / "config.yaml").is_file():
        return path, "last"
    if not path.exists():
        raise UserError(f"there is no '{path}'; expected a run's folder or a checkpoint")
    folder = path.absolute().parent.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"there is no config.yaml in '{path}' nor in '{folder}'; expected a run's folder, or a checkpoint in its "
            "checkpoints/"
        )
    return folder, str(path)


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's content; of sharded weights, the names with nothing behind them."""
    from lit_align.stages.checkpoints import AtomicCheckpointIO
    from lit_align.stages.shards import is_shards, read_facts, weight_names

    if is_shards(path):
        return {**read_facts(path), "state_dict": dict.fromkeys(weight_names(path))}
    return AtomicCheckpointIO().load_checkpoint(path)


def _weights(content: dict[str, Any], path: Path, model: Any) -> dict[str, Any]:
    from lit_align.stages.shards import is_shards, read_into

    if not is_shards(path):
        return dict(content["state_dict"])
    state = {"state_dict": dict(model.state_dict())}
    read_into(state, path, alone=True)
    return state["state_dict"]
