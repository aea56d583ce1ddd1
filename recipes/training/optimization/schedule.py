"""Learning rate over the steps of a run."""

import math
from dataclasses import dataclass

from omegaconf import DictConfig

SCHEDULES = ("cosine", "warmup_stable_decay")


@dataclass(frozen=True)
class Schedule:
    """The factor on the configured learning rate at each step.

    Attributes:
        kind: one of `SCHEDULES`.
        steps: number of steps of the whole run.
        warmup_steps: the factor rises linearly to 1 over these.
        floor: the factor at the end, 0 to 1.
        decay_steps: of `warmup_stable_decay`, the last steps, over which the factor falls.
        start_step: the schedule begins here; above 0 it warms a trained model up again, from `floor`.

    Source: cosine: Loshchilov & Hutter 2017 (SGDR), equation 5. Warm-up, stable, decay: Hu et al. 2024 (MiniCPM),
    with the decay 1 - sqrt(progress) of Hägele et al. 2024, section 3. Warming up again: Ibrahim et al. 2024.
    """

    kind: str
    steps: int
    warmup_steps: int = 0
    floor: float = 0.0
    decay_steps: int = 0
    start_step: int = 0

    @classmethod
    def of(cls, cfg: DictConfig) -> "Schedule":
        """Reads it from `TrainSettings`."""
        sizes = (cfg.steps, cfg.warmup_steps, cfg.min_lr_ratio, cfg.decay_steps, cfg.schedule_start_step)
        return cls(cfg.schedule, *sizes)

    def factor(self, step: int) -> float:
        """Returns the factor at a step; 0 is the run's first."""
        step -= self.start_step
        if step < self.warmup_steps:
            bottom = self.floor if self.start_step else 0.0
            return bottom + (1 - bottom) * (step + 1) / self.warmup_steps
        steps = self.steps - self.start_step
        first = self.warmup_steps if self.kind == "cosine" else steps - self.decay_steps
        progress = min(1.0, max(0, step - first) / max(1, steps - first))
        fall = 0.5 * (1 - math.cos(math.pi * progress)) if self.kind == "cosine" else math.sqrt(progress)
        return self.floor + (1 - self.floor) * (1 - fall)
