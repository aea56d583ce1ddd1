"""Sums in words: dialogues to learn from, and other sums that are held out."""

from itertools import product
from random import Random
from typing import Any

from data_prep.sample.dialogues import Dialogue
from data_prep.sample.korean import particle

HELD_SHARE = 0.1
# operation -> (Korean word, English word, how numbers are chosen, result)
_OPERATIONS: dict[str, tuple[str, str]] = {"+": ("더하기", "plus"), "-": ("빼기", "minus"), "*": ("곱하기", "times")}
_ASK = {
    "ko": ["{sum_of:은} 얼마인가요?", "{sum_of:은} 몇입니까?", "{sum_of:을} 계산해 주세요."],
    "en": ["What is {sum_of}?", "How much is {sum_of}?", "Calculate {sum_of}."],
}


def sums(seed: int) -> tuple[list[tuple[int, str, int]], list[tuple[int, str, int]]]:
    """Returns the sums to train on and the held-out ones; `a + b` and `b + a` are on the same side."""
    rng = Random(f"{seed}/arithmetic")
    numbers = range(1, 13)
    every = [(a, op, b) for op in _OPERATIONS for a, b in product(numbers, numbers) if op != "-" or a >= b]
    held = {(op, frozenset((a, b))) for a, op, b in every if rng.random() < HELD_SHARE / 2}
    train = [s for s in every if (s[1], frozenset((s[0], s[2]))) not in held]
    return train, [s for s in every if (s[1], frozenset((s[0], s[2]))) in held]


def sum_turns(sum_: tuple[int, str, int], variant: int) -> dict[str, list[str]]:
    """Returns the question and the answer in both languages."""
    a, operation, b = sum_
    result = {"+": a + b, "-": a - b, "*": a * b}[operation]
    spoken = {lang: f"{a} {word} {b}" for lang, word in zip(("ko", "en"), _OPERATIONS[operation], strict=True)}
    number = str(b)
    ko_ask = _ASK["ko"][variant % 3]
    for mark in ("은", "을"):
        ko_ask = ko_ask.replace(f"{{sum_of:{mark}}}", spoken["ko"] + particle(number, mark))
    return {
        "ko": [ko_ask, f"{spoken['ko']}{particle(number, '은')} {result}입니다."],
        "en": [_ASK["en"][variant % 3].format(sum_of=spoken["en"]), f"{spoken['en']} is {result}."],
    }


def arithmetic_dialogues(seed: int) -> list[Dialogue]:
    """Returns one dialogue for every training sum."""
    rng = Random(f"{seed}/sums")
    return [Dialogue(sum_turns(sum_, rng.randrange(3)), frozenset()) for sum_ in sums(seed)[0]]


def held_sums(seed: int, limit: int) -> list[dict[str, Any]]:
    """Returns question rows for up to `limit` held-out sums in each language."""
    rng = Random(f"{seed}/held sums")
    held = sums(seed)[1]
    rows = []
    for number, sum_ in enumerate(rng.sample(held, min(limit, len(held))), start=1):
        for lang, (asked, said) in sum_turns(sum_, rng.randrange(3)).items():
            short = said.removesuffix("입니다.").removesuffix(".").split()[-1]
            answers = [said, short, f"{short}입니다." if lang == "ko" else f"{short}."]
            message = {"role": "user", "content": asked}
            rows.append({"id": f"sum-{number:03}-{lang}", "lang": lang, "messages": [message], "answers": answers})
    return rows
