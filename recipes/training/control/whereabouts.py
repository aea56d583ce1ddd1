"""Where each rank of a hung run is, and which of them the others wait for."""

import gc
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch

from recipes.training.distributed import process_groups

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Whereabouts:
    """A rank's sign of life."""

    rank: int
    host: str
    pid: int
    ticks: int
    """Signs of life so far."""
    phase: str
    step: int
    seconds: float
    """Since the phase began."""
    where: str
    """What its main thread does."""
    collectives: dict[str, int]
    """Process group -> collectives entered."""
    has_dumped: bool = False
    """It has seen the hang and written its stacks; what it says afterwards is not waited for."""

    def to_json(self) -> str:
        """Returns it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Whereabouts":
        """Reads what `to_json` returned."""
        return cls(**json.loads(text))

    def told(self) -> str:
        """Returns who and where, for a message."""
        return f"rank {self.rank} ({self.host}, pid {self.pid}), {self.phase} {self.step}"


def verdict(before: Mapping[int, Whereabouts], after: Mapping[int, Whereabouts], world_size: int) -> list[str]:
    """Returns one line for each rank that the others wait for, and one for what the others do.

    A rank is to blame when it gives no sign of life any more, or else when it entered fewer collectives of a group
    than another member has.

    Args:
        before: last sign of life by rank when the hang was seen.
        after: the same some ticks later.
        world_size: number of ranks.
    """
    silent = [rank for rank in range(world_size) if not lives(before.get(rank), after.get(rank))]
    alive = [after[rank] for rank in range(world_size) if rank not in silent]
    most: dict[str, int] = {}
    for one in after.values():
        for group, count in one.collectives.items():
            most[group] = max(count, most.get(group, 0))
    late = [one for one in alive if any(count < most[group] for group, count in one.collectives.items())]
    lines = []
    for rank in silent:
        told = after[rank].told() if rank in after else f"rank {rank}"
        lines.append(
            f"{told} gives no sign of life: its process is stopped, killed or without network; "
            "look at its node, and exclude it if this comes again"
        )
    lines += [f"{one.told()} is not where the others wait for it: {one.where}" for one in late]
    if waiting := [one for one in alive if one not in late]:
        first = waiting[0]
        ranks = ", ".join(str(one.rank) for one in waiting[:8]) + (", ..." if len(waiting) > 8 else "")
        lines.append(f"rank {ranks} waits in {first.phase} {first.step}: {first.where}")
    if not silent and not late and world_size > 1:
        lines.append("all ranks entered the same collectives: the network or a device is stuck, no rank is to blame")
    return lines


def lives(before: Whereabouts | None, after: Whereabouts | None) -> bool:
    """Whether a rank has given a sign of life since the hang was seen."""
    return after is not None and (after.has_dumped or before is None or after.ticks > before.ticks)


def where(thread: int | None) -> str:
    """Returns what a thread does: the collective it is in, if any, and the innermost line of this project."""
    frame = frames().get(thread or 0)
    collective = own = ""
    while frame is not None and not own:
        collective = collective or collective_of(frame)
        own = own_line(frame)
        frame = frame.f_back
    return f"{collective or 'outside a collective'}, {own or 'outside this project'}"


def frames() -> dict[int, FrameType]:
    """Returns the innermost frame of each thread.

    Garbage collection waits meanwhile: where it begins inside the interpreter's own function, which holds the lock of
    its list of threads, a process of several threads can stand still for ever. CPython issue 106883; 3.11.9 is mended.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if was_enabled:
            gc.enable()


def collective_of(frame: FrameType) -> str:
    """Returns the name of the function of torch.distributed that runs in the frame, empty for another."""
    path = Path(frame.f_code.co_filename)
    is_logger = path.name == "c10d_logger.py"  # a decorator around each collective
    return frame.f_code.co_name if "torch/distributed/" in path.as_posix() and not is_logger else ""


def own_line(frame: FrameType) -> str:
    """Returns `path:line in function` of a frame of this project, empty for another."""
    path = Path(frame.f_code.co_filename)
    is_own = path.is_relative_to(ROOT) and "site-packages" not in path.parts
    return f"{path.relative_to(ROOT)}:{frame.f_lineno} in {frame.f_code.co_name}" if is_own else ""


def num_collectives() -> dict[str, int]:
    """Returns how many collectives this rank entered in each of its process groups, which torch counts itself."""
    counts: dict[str, int] = {}
    for group in process_groups():
        with suppress(RuntimeError):  # a backend that does not count
            counts[group.group_name] = group._get_sequence_number_for_group()  # type: ignore[attr-defined]
    return counts


def flight_recorder(path: Path) -> None:
    """Writes NCCL's record of the last collectives as JSON where NCCL is used; see TORCH_FR_BUFFER_SIZE."""
    dump = getattr(torch._C._distributed_c10d, "_dump_nccl_trace_json", None)
    if dump is not None and torch.cuda.is_available():
        path.write_bytes(dump())
