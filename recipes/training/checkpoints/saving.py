"""When a run saves: the keys that say so, and which of them holds at a step."""

from omegaconf import DictConfig

from configs.loader import positive

KEYS = ("save_every_steps", "save_every_minutes", "keep_checkpoints", "keep_every_steps", "ephemeral_every_steps")


def saving_problems(cfg: DictConfig) -> list[str]:
    """Returns the problems of the keys that say when checkpoints are written and which are kept."""
    problems = positive(cfg, *KEYS)
    if problems:
        return problems
    if (kept := cfg.keep_every_steps) and kept % cfg.save_every_steps:
        fitting = max(1, round(kept / cfg.save_every_steps)) * cfg.save_every_steps
        problems.append(
            f"keep_every_steps: {kept} is no multiple of save_every_steps={cfg.save_every_steps}, so that such a step "
            f"is not saved; use {fitting}"
        )
    if (often := cfg.ephemeral_every_steps) and often >= cfg.save_every_steps:
        problems.append(
            f"ephemeral_every_steps: {often} is not below save_every_steps={cfg.save_every_steps}; ephemeral "
            "checkpoints lie between the others; lower it, or set it to null"
        )
    return problems


def due(cfg: DictConfig, step: int, is_asked: bool) -> str | None:
    """Returns the kind of the checkpoint that is written behind a step: `kept`, `ephemeral`, or None for none.

    Args:
        cfg: `TrainSettings`, checked.
        step: counted from 1.
        is_asked: a rank asked for one: the minutes are over, or the run ends here.
    """
    if is_asked or step == cfg.steps or step % cfg.save_every_steps == 0:
        return "kept"
    return "ephemeral" if cfg.ephemeral_every_steps and step % cfg.ephemeral_every_steps == 0 else None
