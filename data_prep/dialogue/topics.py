"""What the dialogues are asked about: seeds, each a topic with a style, an angle and a number of turns."""

import itertools
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random

PLACEHOLDERS = ("field", "topic", "style", "angle", "turns")


@dataclass(frozen=True)
class Seed:
    """What one dialogue is asked for; `number` is its place in the order."""

    number: int
    field: str
    topic: str
    style: str
    angle: str
    turns: int


def make_seeds(
    fields: Mapping[str, Sequence[str]], styles: Sequence[str], angles: Sequence[str], turns: Sequence[int], seed: int
) -> list[Seed]:
    """Returns every topic in every style from every angle, no two alike, in an order that `seed` fixes.

    Every run of as many seeds as there are topics, from the first on, holds each topic once, so that
    any beginning of the list is as varied as can be.

    Args:
        fields: field -> its topics.
        styles: how the two speak.
        angles: what the user is after.
        turns: numbers of turns, counted over both speakers; one is drawn for each seed.
        seed: of the order and of the drawn turns.
    """
    topics = [(field, topic) for field, names in fields.items() for topic in names]
    variants = {}
    for pair in topics:
        variants[pair] = list(itertools.product(styles, angles))
        Random(f"{seed}:{pair}").shuffle(variants[pair])
    rng = Random(f"{seed}:order")
    seeds: list[Seed] = []
    for rank in range(len(styles) * len(angles)):
        rng.shuffle(topics)
        for field, topic in topics:
            style, angle = variants[field, topic][rank]
            seeds.append(Seed(len(seeds), field, topic, style, angle, rng.choice(turns)))
    return seeds


def fill_prompt(template: str, seed: Seed) -> str:
    """Returns the prompt of one seed; `$topic` and the like stand for its parts, `$$` for a dollar sign."""
    return string.Template(template).substitute({name: asdict(seed)[name] for name in PLACEHOLDERS})


def prompt_problems(template: str) -> list[str]:
    """Returns what is wrong with a prompt: a placeholder that no seed has, or none of the topic."""
    pattern = string.Template(template)
    known = ", ".join(f"${name}" for name in PLACEHOLDERS)
    if not pattern.is_valid():
        return [f"prompt: holds a lone $; {known} are known; write $$ for a dollar sign"]
    problems = [
        f"prompt: ${name} is not known; {known} are; mend its name"
        for name in pattern.get_identifiers()
        if name not in PLACEHOLDERS
    ]
    missing = [name for name in ("topic", "turns") if name not in pattern.get_identifiers()]
    return problems + [f"prompt: lacks ${name}; each dialogue is asked by it; write ${name} in" for name in missing]
