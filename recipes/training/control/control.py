"""The loop's one link to the outside: where it is, whether it is asked to stop, how long things take."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from configs.loader import ConfigError
from recipes.training.control.hang import Watchdog
from recipes.training.control.heartbeat import Heartbeat, note_finished
from recipes.training.control.limits import LimitSettings
from recipes.training.control.stopping import StopRequests, Timings, deadline_of
from recipes.training.distributed import World


@dataclass
class Control:
    """Ready to be told of each phase; `watchdog` is None without hang detection, `heartbeat` off rank 0."""

    folder: Path
    limits: LimitSettings
    timings: Timings
    stop: StopRequests
    heartbeat: Heartbeat | None
    watchdog: Watchdog | None
    _seen: set[str] = field(default_factory=set)

    def enter(self, phase: str, step: int) -> None:
        """A phase of the step (counted from 1) begins: `load`, `step`, `validation` (each batch), `save` or `end`."""
        limit = self.limits.of(phase, phase not in self._seen)
        self._seen.add(phase)
        if self.watchdog:
            self.watchdog.enter(phase, step, limit)
        if self.heartbeat:
            self.heartbeat.beat(phase, step, limit if self.watchdog else None)

    def begin_step(self, step: int, validation_is_due: bool, save_seconds: float) -> None:
        """A step begins.

        Args:
            step: counted from 1.
            validation_is_due: whether one follows it.
            save_seconds: of a whole save; 0: none is measured yet.
        """
        self.stop.validation_is_due, self.timings.save = validation_is_due, save_seconds
        self.enter("step", step)

    def conclude(self, step: int, is_done: bool) -> bool:
        """Writes down behind the last checkpoint that the run is over, or tells why it stopped; for rank 0.

        Returns:
            Whether it is over: all steps are done, or it was asked to end for good.
        """
        ended = self.stop.take_back()
        if is_done:
            note_finished(self.folder, step)
            return True
        if ended:
            note_finished(self.folder, step, ended)
            text = f"ended behind step {step}: {ended}"
        else:
            why = self.stop.reason or "another rank was asked to"
            text = f"stopped behind step {step}: {why}; start again to go on"
        logging.getLogger("kotune").info(text)
        print(text, flush=True)
        return bool(ended)


class ValidationStop:
    """The control's `stop`, for a validation: each look at it also starts the clock of another batch."""

    def __init__(self, control: Control, step: int) -> None:
        """Of the validation behind `step`."""
        self._control, self._step = control, step

    def __bool__(self) -> bool:
        """Whether this rank is asked to stop."""
        self._control.enter("validation", self._step)
        return bool(self._control.stop)


@contextmanager
def open_control(cfg: DictConfig, world: World, received: list[int]) -> Iterator[Control]:
    """Yields the control of a run; every rank must call it.

    Args:
        cfg: `TrainSettings`.
        world: the ranks.
        received: what `stop_signals` yields.

    Raises:
        ConfigError: the job's end in the environment is no number.
    """
    folder, limits, timings = Path(cfg.output_dir), LimitSettings(**cfg.limits), Timings()
    try:
        deadline = deadline_of(os.environ, limits.run_minutes, time.time())
    except ValueError as error:
        raise ConfigError("environment", [str(error)]) from None
    stop = StopRequests(folder, received, timings, deadline=deadline, margin=limits.margin_seconds, rank=world.rank)
    watchdog = Watchdog(world, folder / "logs") if limits.detect_hangs else None
    control = Control(folder, limits, timings, stop, Heartbeat(folder) if world.rank == 0 else None, watchdog)
    if watchdog:
        watchdog.start()
    try:
        control.enter("load", 0)
        yield control
    finally:
        if watchdog:
            watchdog.stop()
