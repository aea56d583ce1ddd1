"""Decides whether a step may change the weights, from its loss and its gradient's norm."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST_SPREAD = 0.05
"""Share of the mean that counts as standard deviation at least: a quiet run's noise is no spike."""


@dataclass
class GuardSettings:
    """When a step is skipped, and when the run gives up."""

    spike_sigmas: float | None = 6.0
    """A loss or gradient norm this many standard deviations above its mean is a spike; null allows any finite value."""
    window_steps: int = 128
    """Steps over which the mean is taken; spikes are looked for once half of them are done."""
    max_skips: int = 10
    """More skipped steps than this within `window_steps` end the run."""


class Guard:
    """The losses and gradient norms of the last steps, and which of those steps were skipped.

    All ranks give it the same reduced numbers, so that all come to the same verdict.

    Source: the rule of OLMo-core's skip-step optimizers (mean + 6 standard deviations over 128 steps), with a floor
    under the deviation.
    """

    def __init__(self, settings: GuardSettings, state: list[list[Any]] | None = None) -> None:
        """Starts anew, or from what `state` returned."""
        self._settings = settings
        self._rows: deque[list[Any]] = deque(state or [], maxlen=settings.window_steps)

    @property
    def state(self) -> list[list[Any]]:
        """[loss, gradient norm, whether it was skipped] of each step of the window; None stands for not finite."""
        return [list(row) for row in self._rows]

    @property
    def num_skips(self) -> int:
        """Skipped steps within the window."""
        return sum(row[2] for row in self._rows)

    @property
    def gives_up(self) -> bool:
        """Whether more steps were skipped than allowed."""
        return self.num_skips > self._settings.max_skips

    def judge(self, loss: float, grad_norm: float) -> str:
        """Returns why a step must not change the weights, empty if it may, and remembers its numbers.

        A finite spike counts towards the mean that later steps are held to, so that a lasting change of level, as
        of a mixture's next stage, skips a few steps and not all that follow.
        """
        values = {"loss": loss, "gradient norm": grad_norm}
        reasons = [reason for index, name in enumerate(values) if (reason := self._reason(name, index, values[name]))]
        row = [value if math.isfinite(value) else None for value in values.values()]
        self._rows.append([*row, bool(reasons)])
        return "; ".join(reasons)

    def _reason(self, name: str, index: int, value: float) -> str:
        if not math.isfinite(value):
            return f"{name} is {value}"
        earlier = [row[index] for row in self._rows if row[index] is not None]
        if self._settings.spike_sigmas is None or len(earlier) < max(2, self._settings.window_steps // 2):
            return ""
        mean = float(np.mean(earlier))
        spread = max(float(np.std(earlier)), SMALLEST_SPREAD * abs(mean))
        limit = mean + self._settings.spike_sigmas * spread
        return f"{name} is {value:.4g}, above {limit:.4g}" if value > limit else ""
