"""Plays an exported agent with NumPy and ONNX Runtime, without torch: what a program in any language has to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_align.errors import UserError
from lit_align.models.observations import check_sampling, check_worlds, read, world_numbers
from lit_align.spaces import ActionCodec

if TYPE_CHECKING:
    from lit_align.models.observations import Observation, Worlds

FACTS, SCHEMA = "lit_align", 1


class OnnxAgent:
    """An agent that `lit-align export --format onnx` wrote, with the same `act` and `reset` as an `Agent`.

    Args:
        path: The file.
        providers: ONNX Runtime's execution providers in their order; the CPU by default.
        threads: Of a step on the CPU; None leaves ONNX Runtime's own number.
        seed: Of the noise that actions are drawn with.

    Raises:
        ValueError: ONNX Runtime is missing, or the file is missing, unreadable or not an agent's.

    Attributes:
        facts: What the file says of itself (see `docs/acting.md`).
        codec: The action space.
    """

    def __init__(
        self, path: str | Path, providers: list[str] | None = None, threads: int | None = None, seed: int = 0
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("playing an ONNX file needs onnxruntime: pip install 'lit-align[onnx]'") from error
        if not Path(path).is_file():
            raise UserError(f"there is no file '{path}'; make one by: lit-align export AGENT --out FILE --format onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers or ["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no class in common
            raise UserError(f"'{path}' cannot be read by ONNX Runtime: {str(error).strip().splitlines()[0]}") from error
        self.facts = _facts(self.session, path)
        self.codec = ActionCodec.from_dict(self.facts["actions"])
        self._wants = {put.name for put in self.session.get_inputs()}
        self._noise = np.random.default_rng(seed)
        self._single = True
        self._cache: NDArray[np.float32] | None = None
        self._steps: NDArray[np.int64] = np.zeros(0, np.int64)

    def act(self, observation: Observation, temperature: float = 1.0, top_p: float = 1.0) -> Any:
        """What to do now; arguments, results and errors as of `Agent.act`."""
        check_sampling(temperature, top_p)
        seen = read(observation, self.facts["image_size"], self.facts["vector_size"])
        count = len(seen.frames)
        if self._cache is None:
            self._begin(count, seen.single)
        check_worlds((count, seen.single), (len(self._steps), self._single), "act")
        uniform = self._noise.random((count, len(self.codec.heads)), np.float32)
        classes = self.step(np.asarray(seen.frames), np.asarray(seen.vectors), uniform, temperature, top_p)["actions"]
        decoded = [self.codec.decode(row) for row in classes]
        return decoded[0] if seen.single else decoded

    def reset(self, worlds: Worlds | None = None, seed: int | None = None) -> None:
        """Begins new episodes; arguments and errors as of `Agent.reset`."""
        if seed is not None:
            self._noise = np.random.default_rng(seed)
        if worlds is None:
            self._cache = None
            return
        numbers = world_numbers(worlds, None if self._cache is None else len(self._steps))
        if self._cache is not None:
            self._steps[numbers] = 0  # the cache stays as it is: what was not written since is not looked at

    def step(
        self,
        frames: NDArray[np.uint8],
        vectors: NDArray[np.float32],
        uniform: NDArray[np.float32],
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> dict[str, NDArray[Any]]:
        """One step of all worlds with given noise; moves the cache on.

        Args:
            frames: `(B, size, size, 3)`, uint8; not looked at if the agent sees no pixels.
            vectors: `(B, V)`, float32; not looked at if the agent sees no vector.
            uniform: Noise `(B, heads)` in [0, 1), float32.
            temperature: Divides the logits; 0 takes the likeliest class of every head.
            top_p: Draw from the smallest set of classes that holds this much probability.

        Returns:
            `actions` `(B, heads)`, `log_prob` `(B,)` and `log_probs` `(B, heads, widest)`; see `docs/acting.md`.
        """
        if self._cache is None:
            self._begin(len(uniform), False)
        given: dict[str, Any] = {
            "frames": frames,
            "vectors": vectors,
            "cache": self._cache,
            "steps": self._steps,
            "uniform": uniform,
            "temperature": np.float32(temperature),
            "top_p": np.float32(top_p),
        }
        got = self.session.run(None, {name: np.asarray(part) for name, part in given.items() if name in self._wants})
        actions, log_prob, log_probs, self._cache, self._steps = got
        return {"actions": actions, "log_prob": log_prob, "log_probs": log_probs}

    def _begin(self, count: int, single: bool) -> None:
        layers, pair, fixed, *rest = self.facts["cache"]
        if fixed not in (None, count):
            raise UserError(f"the file is for {fixed} worlds at a time, and {count} were given: export it for {count}")
        self._cache, self._single = np.zeros((layers, pair, count, *rest), np.float32), single
        self._steps = np.zeros(count, np.int64)


def _facts(session: Any, path: str | Path) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(FACTS)
    if text is None:
        raise UserError(f"'{path}' does not say what it is; expected a file that lit-align export wrote")
    facts: dict[str, Any] = json.loads(text)
    if facts.get("schema") != SCHEMA:
        raise UserError(f"'{path}' has schema {facts.get('schema')!r}; this version plays schema {SCHEMA}")
    return facts
