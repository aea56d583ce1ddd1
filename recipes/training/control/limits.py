"""Time limits of a run and of its phases, all keys of `limits`."""

from dataclasses import dataclass, fields

from omegaconf import DictConfig

from configs.loader import positive

COMPUTE = ("step", "validation")
"""Phases of which the first in a process may compile."""


@dataclass
class LimitSettings:
    """When the run ends itself, and how long a phase may take before the run counts as hung."""

    run_minutes: float | None = None
    """This start of the run saves and leaves before so many minutes; the job's own end is kept to in any case."""
    margin_seconds: float = 60.0
    """Kept free before the end beside a slow step and the checkpoint; Slurm looks at its limits every 30 s."""
    detect_hangs: bool = True
    """Whether a phase that takes too long ends the run; false: under a debugger."""
    step_seconds: float = 600.0
    """A step, or a batch of a validation."""
    first_step_seconds: float = 1800.0
    """The first of either in a process, which may compile."""
    load_seconds: float = 3600.0
    """Reading weights or a checkpoint, until the first step."""
    save_seconds: float = 1800.0
    """How long a save holds the loop up; the end of the run too."""
    collective_seconds: float = 7200.0
    """Timeout of every process group, more than any phase may take: it can end a run, but it names nobody."""

    def of(self, phase: str, is_first: bool) -> float:
        """Returns the limit of a phase in seconds."""
        if phase in COMPUTE:
            return self.first_step_seconds if is_first else self.step_seconds
        return self.load_seconds if phase == "load" else self.save_seconds


def limit_problems(cfg: DictConfig) -> list[str]:
    """Returns the problems of the key `limits`."""
    names = [field.name for field in fields(LimitSettings) if field.name.endswith(("_seconds", "_minutes"))]
    problems = positive(cfg, *(f"limits.{name}" for name in names if name != "margin_seconds"))
    if cfg.limits.margin_seconds < 0:
        problems.append(f"limits.margin_seconds: {cfg.limits.margin_seconds} is negative; set it to 0 or more")
    phases = {n: cfg.limits[n] for n in ("step_seconds", "first_step_seconds", "load_seconds", "save_seconds")}
    longest = max(phases, key=lambda name: phases[name])
    if cfg.limits.collective_seconds <= phases[longest]:
        problems.append(
            f"limits.collective_seconds: {cfg.limits.collective_seconds:g} is not above {longest}={phases[longest]:g}; "
            "the process groups would end the run before the watchdog can tell which rank hangs; "
            f"set it to {2 * phases[longest]:g}"
        )
    return problems
