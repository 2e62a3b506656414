"""Numbers that all processes of a run agree on, without one of them, or its GPU, waiting for the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


class Agreement:
    """The largest of what the processes say, one asking later.

    What is asked is reduced in the background, while the next step is computed, and read when the processes ask again.
    They ask after the same steps, so that all of them read the same, at the same step. On a GPU nothing waits for the
    step that is being computed: the result comes over a stream of its own, and the step that is waited for is the one
    before.
    """

    def __init__(self) -> None:
        self._asked: tuple[torch.Tensor, Any] | None = None
        self._stream: Any = None

    def ask(self, values: Sequence[int], device: torch.device, wait: bool = False) -> list[int]:
        """Asks, and returns the largest of what was said when this was asked before; zeros the first time.

        Args:
            values: of this process; as many at every call.
            device: that the processes' backend reduces on.
            wait: for the answer to this one, which is returned; what was asked before is dropped.
        """
        asked, self._asked = self._asked, self._begin(values, device)
        if wait:
            asked, self._asked = self._asked, None
        return [0] * len(values) if asked is None else _read(*asked)

    def _begin(self, values: Sequence[int], device: torch.device) -> tuple[torch.Tensor, Any]:
        if device.type != "cuda":
            told = torch.tensor(list(values), device=device)
            return told, dist.all_reduce(told, op=dist.ReduceOp.MAX, async_op=True)
        # Filled on the GPU: a copy from memory that is not pinned would wait for all that the GPU has still to do.
        told = torch.stack([torch.full((), value, device=device) for value in values])
        work: Any = dist.all_reduce(told, op=dist.ReduceOp.MAX, async_op=True)
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            work.wait()  # this stream waits for the reduction, the process does not
            answer = torch.empty(len(values), dtype=told.dtype, pin_memory=True)
            answer.copy_(told, non_blocking=True)
            told.record_stream(self._stream)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return answer, done


def _read(answer: torch.Tensor, done: Any) -> list[int]:
    done.synchronize() if isinstance(done, torch.cuda.Event) else done.wait()
    return [int(each) for each in answer.tolist()]
