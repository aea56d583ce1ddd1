"""Which generated dialogues are kept: judged in the order of their seeds, whatever order the answers came in."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_prep.dialogue.answers import ASK_AGAIN, Duplicates, read_dialogue
from data_prep.dialogue.topics import Seed

Row = dict[str, Any]


class Judge:
    """Keeps sound dialogues and counts the others by reason.

    A seed is judged once all before it are, so that of two that are alike the same one stays at any
    concurrency.

    Args:
        seeds: all that may be asked.
        wanted: dialogues to keep; those beyond are dropped as `not_needed`.
        max_turn_chars: longest turn, in characters.
        near_duplicate_threshold: least similarity of a near duplicate.
    """

    def __init__(
        self, seeds: Sequence[Seed], wanted: int, max_turn_chars: int, near_duplicate_threshold: float
    ) -> None:
        self.kept: list[Row] = []
        self.rejected: list[Row] = []
        self.dropped: Counter[str] = Counter()  # of seeds
        self._seeds, self._wanted, self._max_turn_chars = seeds, wanted, max_turn_chars
        self._duplicates = Duplicates(near_duplicate_threshold)
        self._waiting: dict[int, list[Row]] = {}
        self._next = 0

    @property
    def num_judged(self) -> int:
        """Seeds judged so far."""
        return len(self.kept) + self.dropped.total()

    @property
    def num_possible(self) -> int:
        """Dialogues kept, and answered seeds that wait for one before them."""
        return len(self.kept) + len(self._waiting)

    def verdict(self, seed: Seed, answer: Row) -> tuple[list[str], list[str]] | str:
        """Returns the turns of one answer, or why it is dropped; duplicates are not looked for."""
        return read_dialogue(answer["text"], answer["finish"], seed.turns, self._max_turn_chars)

    def is_settled(self, seed: Seed, answers: Sequence[Row], most: int) -> bool:
        """Whether a seed needs no further answer: the last one has the right form, or there are `most`."""
        return len(answers) >= most or (bool(answers) and self.verdict(seed, answers[-1]) not in ASK_AGAIN)

    def add(self, number: int, answers: list[Row]) -> None:
        """Takes the answers of a seed, the last of which counts; none for a seed without an answer."""
        self._waiting[number] = answers
        while self._next in self._waiting:
            self._judge(self._seeds[self._next], self._waiting.pop(self._next))
            self._next += 1

    def close(self) -> None:
        """Judges what still waits for seeds that will not be answered."""
        for number in sorted(self._waiting):
            self._judge(self._seeds[number], self._waiting.pop(number))

    def _judge(self, seed: Seed, answers: list[Row]) -> None:
        reason = "no_answer"
        for position, answer in enumerate(answers):
            is_last = position + 1 == len(answers)
            verdict = self.verdict(seed, answer)
            if is_last and not isinstance(verdict, str):
                en, ko = verdict
                is_enough = len(self.kept) >= self._wanted
                verdict = "not_needed" if is_enough else self._duplicates.fault(en, ko) or verdict
                if not isinstance(verdict, str):
                    self.kept.append(_kept_row(seed, answer, en, ko))
                    return
            reason = verdict if isinstance(verdict, str) else "asked_again"
            self.rejected.append({**_seed_row(seed), "reason": reason, "is_last": is_last, **_raw(answer)})
        self.dropped[reason] += 1


def _seed_row(seed: Seed) -> Row:
    return {"seed": seed.number, "field": seed.field, "topic": seed.topic, "style": seed.style, "angle": seed.angle}


def _kept_row(seed: Seed, answer: Row, en: list[str], ko: list[str]) -> Row:
    origin = {name: value for name, value in _seed_row(seed).items() if name != "seed"}
    return {"id": f"generated-{seed.number:06d}", "en": en, "ko": ko, **origin, "model": answer["model"]}


def _raw(answer: Row) -> Row:
    return {name: answer[name] for name in ("finish", "model", "text")}
