"""Keeps an attempt of a run that was given up, but lives on behind a broken network, from writing checkpoints."""

import os
import re
from pathlib import Path

from recipes.training.checkpoints.folder import CheckpointError

FILE = "attempt"
"""In the run folder: the id of the attempt that may write; the batch script writes it before it starts."""
VARIABLE = "KOTUNE_ATTEMPT"
"""Environment variable with this process's own attempt."""


def check_attempt(run: Path) -> None:
    """Checks that this process belongs to the attempt that a run folder names; without file or variable it does.

    Raises:
        CheckpointError: it does not.
    """
    file, own = run / FILE, os.environ.get(VARIABLE)
    if own is not None and file.exists() and (current := file.read_text(encoding="utf-8").strip()) != own:
        raise CheckpointError(
            f"{run}: fenced: this process is attempt {own!r}, {file} names {current!r}, which alone may write; "
            f"nothing is written by this one; let it end, or set {VARIABLE}={current}"
        )


def attempt_suffix() -> str:
    """Returns what sets this attempt's half-written folders apart from another's, as part of a file name."""
    own = os.environ.get(VARIABLE)
    return "" if own is None else "." + re.sub(r"[^\w-]", "_", own)
