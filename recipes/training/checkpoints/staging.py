"""Copies a run's state to CPU memory, so that steps may go on while the copy is written."""

import copy
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Staging:
    """Buffers for one copy of a state, filled anew by each `copy`; pinned where the state is on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """Returns the state with every tensor on the CPU; it holds until the next call.

        Args:
            state: nested dicts of tensors and plain values. Of sharded tensors the own part is copied, of quantised
                ones each part as it is.
        """
        copied: dict[str, Any] = self._copy(state, "")
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # the copies do not wait for one another
        return copied

    def _copy(self, value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: self._copy(inner, f"{name}/{key}") for key, inner in value.items()}
        if is_traceable_wrapper_subclass(value):  # DTensor, torchao's quantised states
            names, context = value.__tensor_flatten__()
            parts = {part: self._copy(getattr(value, part), f"{name}/{part}") for part in names}
            return type(value).__tensor_unflatten__(parts, context, value.size(), value.stride())
        if isinstance(value, torch.Tensor):
            return self._buffer(name, value).copy_(value, non_blocking=True)
        return copy.deepcopy(value)

    def _buffer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer
