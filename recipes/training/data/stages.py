"""The stages of a mixture: weights as they are written, to exact shares by step."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from recipes.training.data.order import Stage, as_shares
from recipes.training.typed import suggest

ENGLISH = "en"
Sources = Mapping[str, tuple[float, str | None]]  # name -> (weight, language)


@dataclass
class StageConfig:
    """Weights that hold from a step on; the first stage starts at step 0."""

    from_step: int | None = None
    from_tokens: int | None = None
    """In place of from_step: the first step behind that many tokens of the run."""
    weights: dict[str, float] | None = None
    """Of every source, any scale; null: the sources' `weight`."""
    english_replay: float | None = None
    """null: the mixture's."""
    ramp_steps: int | None = None
    """Steps over which the shares move to these from the stage before, linearly; null: at once."""
    ramp_tokens: int | None = None
    """In place of ramp_steps."""


def resolve_stages(
    stages: Sequence[StageConfig],
    sources: Sources,
    english_replay: float | None,
    tokens_per_step: int,
    problems: list[str],
) -> tuple[Stage, ...]:
    """Returns the stages with their shares; adds everything that is wrong with them to `problems`.

    Args:
        stages: at least one.
        sources: in the order of the shares.
        english_replay: of stages that state none.
        tokens_per_step: of the global batch.
        problems: gets a line for each weight, ratio or border that cannot be used; the result is then void.
    """
    before, resolved = len(problems), []
    for number, stage in enumerate(stages):
        where = f"stages[{number}]"
        start = _in_steps(stage.from_step, stage.from_tokens, tokens_per_step, f"{where}.from", problems)
        ramp = _in_steps(stage.ramp_steps, stage.ramp_tokens, tokens_per_step, f"{where}.ramp", problems)
        if number and stage.from_step is None and stage.from_tokens is None:
            problems.append(
                f"{where}: does not say where it starts; all but the first must; set from_step or from_tokens"
            )
        shares = _shares(stage, sources, english_replay, where, problems)
        resolved.append(Stage(start, shares, ramp))
    if len(problems) == before:
        problems += _border_problems(resolved)
        for index, name in enumerate(sources):
            if not any(stage.shares[index] for stage in resolved):
                problems.append(
                    f"{name}: weight 0 in every stage is not a number above 0 anywhere; set one, or remove the source"
                )
    return tuple(resolved)


def _in_steps(steps: int | None, tokens: int | None, tokens_per_step: int, key: str, problems: list[str]) -> int:
    """Returns a number of steps or tokens as steps, rounded up; 0 if neither is given."""
    if steps is not None and tokens is not None:
        problems.append(f"{key}: is {steps} steps and {tokens} tokens; one of the two says it; remove the other")
    value = -(-tokens // tokens_per_step) if tokens is not None else steps or 0
    if value < 0:
        problems.append(f"{key}: {steps if tokens is None else tokens} is below 0; 0 or more is expected; raise it")
    return value


def _shares(
    stage: StageConfig, sources: Sources, english_replay: float | None, where: str, problems: list[str]
) -> tuple[Fraction, ...]:
    weights = {name: weight for name, (weight, _) in sources.items()} if stage.weights is None else stage.weights
    found = [
        f"{where}.weights.{name}: no such source; {suggest(name, sources)}" for name in weights if name not in sources
    ]
    found += [
        f"{where}.weights: lacks {name}; every source needs one; give 0 to leave it out"
        for name in sources
        if name not in weights
    ]
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            found.append(f"{where}: weight {weight!r} of {name} is not a number above 0; set one, or 0 to leave it out")
    if not found and not any(weights.values()):
        found.append(f"{where}: all weights are 0; at least one above 0 is needed; give some source a weight")
    replay = english_replay if stage.english_replay is None else stage.english_replay
    if replay is not None:
        found += _replay_problems(replay, weights, sources, where) if not found else []
    problems += found
    if found:
        return ()
    shares = as_shares([weights[name] for name in sources])
    return shares if replay is None else _with_replay(shares, replay, sources)


def _with_replay(shares: Sequence[Fraction], replay: float, sources: Sources) -> tuple[Fraction, ...]:
    is_english = [lang == ENGLISH for _, lang in sources.values()]
    english = Fraction(str(replay))
    total = {flag: sum(s for s, e in zip(shares, is_english, strict=True) if e is flag) for flag in (True, False)}
    part = {True: english, False: 1 - english}
    return tuple(part[e] * s / total[e] if part[e] else Fraction(0) for s, e in zip(shares, is_english, strict=True))


def _replay_problems(replay: float, weights: Mapping[str, float], sources: Sources, where: str) -> list[str]:
    if not 0 <= replay <= 1:
        return [f"{where}: english_replay {replay} is not between 0 and 1; set it within"]
    if unknown := [name for name, (_, lang) in sources.items() if lang is None]:
        return [
            f"{where}: english_replay is {replay}, but {', '.join(unknown)} has no lang; "
            "it must be known which sources are English; add lang: en or lang: ko"
        ]
    problems = []
    for is_english, share in ((True, replay), (False, 1 - replay)):
        if share > 0 and not any(weights[n] for n, (_, lang) in sources.items() if (lang == ENGLISH) is is_english):
            kind = "English" if is_english else "other than English"
            problems.append(
                f"{where}: english_replay {replay} leaves {share:g} to sources {kind}, none has a weight above 0; "
                f"add one, or set english_replay to {0 if is_english else 1}"
            )
    return problems


def _border_problems(stages: Sequence[Stage]) -> list[str]:
    problems = []
    if stages[0].from_step != 0 or stages[0].ramp_steps != 0:
        problems.append(
            f"stages[0]: starts at step {stages[0].from_step} with a ramp of {stages[0].ramp_steps}; the first stage "
            "starts at step 0 without one; put the weights of the start there, and the ramp on the stage after"
        )
    for number, (stage, following) in enumerate(itertools.pairwise(stages)):
        if following.from_step <= stage.from_step:
            problems.append(
                f"stages[{number + 1}]: starts at step {following.from_step}, the one before at {stage.from_step}; "
                "stages stand in rising order, each of at least one step; reorder them or move one"
            )
        elif stage.from_step + stage.ramp_steps > following.from_step:
            problems.append(
                f"stages[{number}]: its ramp ends at step {stage.from_step + stage.ramp_steps}; stages[{number + 1}] "
                f"starts at {following.from_step}; shorten the ramp or move the stage"
            )
    return problems
