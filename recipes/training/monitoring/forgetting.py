"""The alarm that a model forgets its first language, and the share of replay it suggests."""

REPLAY = (0.05, 0.1, 0.25, 0.5)
"""Shares of replayed text to choose from.

Source: Ibrahim et al. 2024 (arXiv 2403.08763) replay old text under a weak shift of distribution (English to English)
and a strong one (English to German), which needs more. The rungs, and which rise counts as which shift, are a rule of
thumb of this project.
"""
STRONG_SHIFT = 0.25
"""The share from which a strong shift is answered."""
STRONG_RISE = 2.0
"""A rise of more than this many times the limit counts as a strong shift."""


class ForgettingAlarm:
    """Watches one text's bits per byte; raised once each time they go above the limit."""

    def __init__(self, max_rise: float, state: float | None = None) -> None:
        """Starts anew, or from what `state` returned; `max_rise` is a share of the baseline."""
        self._max_rise, self._worst = max_rise, state

    @property
    def state(self) -> float | None:
        """The largest rise since the limit was passed, None below it."""
        return self._worst

    def look(self, rise: float) -> bool:
        """Takes in the next rise over the baseline, as a share of it; returns whether to raise the alarm now."""
        before = self._worst
        self._worst = max(rise, before or rise) if rise > self._max_rise else None
        return before is None and self._worst is not None

    def figures(self, replay: float | None) -> dict[str, float]:
        """Returns what the metrics say: whether the text is above the limit, and if so the replay suggested."""
        figures = {"validation/forgetting": float(self._worst is not None)}
        suggested = None if self._worst is None else suggest_replay(self._worst, self._max_rise, replay)
        return figures if suggested is None else figures | {"validation/suggested_replay": suggested}

    def message(self, lang: str, now: float, baseline: tuple[float, int], replay: float | None) -> str:
        """Returns the warning.

        Args:
            lang: of the text.
            now: its bits per byte.
            baseline: its bits per byte at the start, and at which step that was.
            replay: the share of training text in that language now, None if unknown.
        """
        before, step = baseline
        rise = now / before - 1
        reads = f"an unknown share of {lang}; name each source's lang" if replay is None else f"{replay:.0%} {lang}"
        suggested = suggest_replay(rise, self._max_rise, replay)
        advice = (
            "more replay than half is not known to help: lower optimizer.lr"
            if suggested is None
            else f"suggested replay: {suggested:.0%} (english_replay: {suggested:g} in a mixture)"
        )
        return (
            f"held-out {lang} is at {now:.4f} bits per byte, {rise:.1%} above the {before:.4f} of step {step}; "
            f"validation.max_rise is {self._max_rise:.1%}: the model is forgetting; it now reads {reads}; {advice}"
        )


def suggest_replay(rise: float, max_rise: float, replay: float | None) -> float | None:
    """Returns the share of replay to try next, or None if half of the text is replayed already.

    It is the next of `REPLAY` above the present share; one of at least `STRONG_SHIFT` where the rise is strong, as
    the rise is how a strong shift shows. One rung at a time, as replay costs tokens of the new language.

    Args:
        rise: over the baseline, as a share of it.
        max_rise: the limit it is above.
        replay: present share, None if unknown, which counts as none.
    """
    least = STRONG_SHIFT if rise > STRONG_RISE * max_rise else 0.0
    return next((share for share in REPLAY if share >= least and share > (replay or 0.0) + 1e-9), None)
