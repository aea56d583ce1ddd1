"""Learning rate over the steps of a run."""

import math


def warmup_cosine(step: int, steps: int, warmup_steps: int, floor: float) -> float:
    """Returns the factor on the configured learning rate at a step.

    Args:
        step: 0 for the first optimizer step.
        steps: number of steps of the whole run.
        warmup_steps: the factor rises linearly to 1 over these.
        floor: the factor the cosine ends at, 0 to 1.

    Source: Loshchilov & Hutter 2017 (SGDR), equation 5, with a linear warm-up.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
