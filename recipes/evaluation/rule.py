"""A rule on the gain of one language and the loss of another: which checkpoint is the best, and when to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BITS = "bits_per_byte_"
RULE = (
    "of the checkpoints whose {guard} bits per byte are at most {rise:.1%} above the start's, the one with the fewest "
    "{gain} bits per byte"
)


@dataclass
class RuleSettings:
    """The best checkpoint, and early stopping."""

    gain: str = "ko"
    """Language that is learnt, of `documents`: its bits per byte decide among the checkpoints that keep `guard`."""
    patience: int | None = None
    """Evaluations in a row without a better checkpoint after which the run is asked to save and to end for good;
    null: it is left alone."""


@dataclass(frozen=True)
class Choice:
    """The best checkpoint, and whether the run should end."""

    step: int | None
    """None: no checkpoint will do."""
    reason: str
    rule: str
    end: str | None = None
    """Why the run should end; None: it should go on."""


def choose(rows: Sequence[dict[str, Any]], rule: RuleSettings, guard: str, max_rise: float) -> Choice:
    """Returns the best checkpoint by the rule.

    Args:
        rows: of an evaluation, with `step` and bits per byte; the first is what the others are compared with. Step 0,
            what the run started from, is no candidate.
        rule: what counts.
        guard: language that must not be forgotten; without text in it every checkpoint keeps it.
        max_rise: its largest rise over the first row, as a share of that row's bits per byte.
    """
    told = RULE.format(guard=guard, rise=max_rise, gain=rule.gain)
    start, scored = rows[0], [row for row in rows if row["step"] > 0]

    def rise(row: dict[str, Any]) -> float:
        return row[BITS + guard] / start[BITS + guard] - 1 if BITS + guard in row else 0.0

    best, since = None, 0
    for row in scored:
        if rise(row) <= max_rise and (best is None or row[BITS + rule.gain] < best[BITS + rule.gain]):
            best, since = row, 0
        else:
            since += 1
    if best is None:
        worst = f"; the least {guard} rises by is {min(map(rise, scored)):.1%}" if scored else ""
        reason = f"none of {len(scored)} checkpoints keeps {guard} within {max_rise:.1%}{worst}"
    else:
        reason = f"{rule.gain} {best[BITS + rule.gain]:.4f} bits per byte, {guard} {rise(best):+.1%}"
    end = None
    if rule.patience is not None and since >= rule.patience:
        over = sum(rise(row) > max_rise for row in scored[-since:])
        after = f"since step {best['step']}" if best else "at all"
        end = f"no better checkpoint {after}, in {since} evaluations, {over} of them with {guard} above {max_rise:.1%}"
    return Choice(None if best is None else best["step"], reason, told, end)
