"""Files of a followed run: which checkpoints are to be scored, what they scored, and the best one, kept.

    RUN/evaluations/step-00000500.json    figures and answers; a checkpoint is scored when this file is there
    RUN/evaluations/pinned/step-00000500/ a checkpoint that is being scored, as hard links: the run may delete its own
    RUN/evaluations.jsonl                 the figures, a row a checkpoint
    RUN/best/step-00000500/, best.json    the best checkpoint by the rule, as hard links, and why
    RUN/retention.json, retention.md      bits per byte by language beside those of the start

Every file has its name only when it is whole, so that a follower that is killed goes on where it was.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs.loader import ConfigError
from data_prep.lineage import whole_file, write_json
from recipes.evaluation.retention import as_markdown, retention
from recipes.evaluation.rule import Choice, choose

FOLDER, PINNED, BEST, STOP, FINISHED = "evaluations", "evaluations/pinned", "best", "stop", "finished.json"
NAME = re.compile(r"step-(\d{8,})")
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK)
"""A file system that has no hard links, or no more of them."""


def step_of(path: Path) -> int:
    """Returns the step in a checkpoint's name."""
    return int(path.name.split("-")[1].removesuffix(".json"))


def recorded(run: Path) -> list[dict[str, Any]]:
    """Returns what was scored, in the order of the steps; step 0 is what the run started from."""
    files = sorted((run / FOLDER).glob("step-*.json"), key=step_of)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def begin(run: Path, scoring: str, *, is_alone: bool) -> None:
    """Checks that what was scored before was scored as this configuration says, so that rows compare.

    Args:
        run: run folder.
        scoring: identity of what is asked and how.
        is_alone: no other follower is at work, so that what a killed one left half-made goes.

    Raises:
        ConfigError: it was not.
    """
    for path in (run / PINNED).glob("*.tmp") if is_alone else ():
        shutil.rmtree(path)
    for row in recorded(run):
        if row["scoring"] != scoring:
            problem = (
                f"step {row['step']} was scored on other texts or settings ({row['scoring'][:12]}) than this "
                f"configuration's ({scoring[:12]}), and rows would not compare; restore them, or move the folder away"
            )
            raise ConfigError(run / FOLDER, [problem])


def waiting(run: Path, checkpoints: Sequence[Path]) -> list[Path]:
    """Returns the checkpoints without a result, oldest first: pinned ones, those of the run, and the one kept as best.

    Args:
        run: run folder.
        checkpoints: the run's own that are to be scored.
    """
    done = {step_of(file) for file in (run / FOLDER).glob("step-*.json")}
    kept = [path for place in (BEST, PINNED) for path in (run / place).glob("step-*") if NAME.fullmatch(path.name)]
    found = {step_of(path): path for path in [*checkpoints, *kept]}  # pinned ones last: they win
    return [path for step, path in sorted(found.items()) if step not in done]


def pin(run: Path, checkpoint: Path) -> Path | None:
    """Gives a checkpoint a second place within the run folder, by hard links, so that its own may be deleted.

    Where the file system has no links its files are copied.

    Returns:
        The place; None if the checkpoint was deleted meanwhile.
    """
    if checkpoint.parent == run / PINNED:
        return checkpoint
    final = run / PINNED / checkpoint.name
    partial = final.with_name(f"{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _link_files(checkpoint, partial)
        partial.rename(final)
    except FileNotFoundError:
        shutil.rmtree(partial)
        return None
    return final


def _link_files(source: Path, target: Path) -> None:
    for file in list(source.iterdir()):  # one that is being deleted has another name first
        try:
            os.link(file, target / file.name)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copy2(file, target / file.name)


def record(run: Path, row: dict[str, Any], answers: Sequence[str]) -> list[dict[str, Any]]:
    """Writes down what a checkpoint scored, once; returns all that is recorded.

    Args:
        run: run folder.
        row: its figures, with `step`.
        answers: to the prompts, in their order.
    """
    write_json(run / FOLDER / f"step-{row['step']:08d}.json", {**row, "answers": list(answers)})
    rows = recorded(run)
    lines = [{key: value for key, value in one.items() if key != "answers"} for one in rows]
    with whole_file(run / "evaluations.jsonl", of_process=True) as partial:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        partial.write_text(text, encoding="utf-8")
    return rows


@contextmanager
def one_at_a_time(run: Path) -> Iterator[None]:
    """Lets one follower of a run at a time do what the block does; the others wait."""
    (run / FOLDER).mkdir(exist_ok=True)
    with (run / FOLDER / "lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # ends with the file, however the process ends
        yield


def conclude(
    cfg: DictConfig,
    row: dict[str, Any],
    answers: Sequence[str],
    suggest: Callable[[float, float, float | None], float | None],
) -> None:
    """Writes down what a checkpoint scored, and what follows: the best one, what is kept, whether the run shall end.

    Args:
        cfg: `run`, `rule`, `guard` and `max_rise`.
        row: the figures, with `step` and `model`.
        answers: to the prompts, in their order.
        suggest: rise, its limit, present share of replay -> the share to try next.
    """
    with one_at_a_time(Path(cfg.run)):
        _conclude(cfg, Path(cfg.run), row, answers, suggest)


def _conclude(
    cfg: DictConfig,
    run: Path,
    row: dict[str, Any],
    answers: Sequence[str],
    suggest: Callable[[float, float, float | None], float | None],
) -> None:
    known = {one["step"]: one for one in recorded(run)} | {row["step"]: row}
    rows = [known[step] for step in sorted(known)]
    has_base = 0 in known or not OmegaConf.load(run / "config.yaml").weights  # jobs of their own end in any order
    choice = choose(rows, cfg.rule, cfg.guard, cfg.max_rise) if has_base else None
    if choice and rows[-1]["step"] > 0:
        keep_best(run, choice)  # before the row: killed in between, the checkpoint is scored again
    record(run, row, answers)
    if choice is None:
        return  # the best may be any of them: all stay pinned
    for step in known:
        unpin(run, step)
    replay = replay_share(run, cfg.guard)
    table = retention(rows, cfg.guard, cfg.max_rise, lambda rise: suggest(rise, cfg.max_rise, replay))
    write_retention(run, table, choice.step)
    print(as_markdown(table) if table else f"{row['model']}: scored", flush=True)
    if choice.end:
        ask_to_end(run, choice.end)
        print(f"{run} is asked to end: {choice.end}", flush=True)


def replay_share(run: Path, lang: str) -> float | None:
    """Returns the share of a language in all that a run reads; None where a source does not name its language."""
    file = run / "mixture.json"
    sources = json.loads(file.read_text(encoding="utf-8"))["sources"].values() if file.is_file() else []
    if not sources or any(one["lang"] is None for one in sources):
        return None
    total = sum(one["tokens"] for one in sources)
    return sum(one["tokens"] for one in sources if one["lang"] == lang) / total


def unpin(run: Path, step: int) -> None:
    """Removes the second place of a checkpoint that is scored."""
    shutil.rmtree(run / PINNED / f"step-{step:08d}", ignore_errors=True)


def keep_best(run: Path, choice: Choice) -> None:
    """Keeps the chosen checkpoint as `RUN/best/step-*`, says so in best.json, and lets go of the one before."""
    if choice.step is None:
        write_json(run / "best.json", {"step": None, "checkpoint": None, "reason": choice.reason, "rule": choice.rule})
        return
    name = f"step-{choice.step:08d}"
    final = run / BEST / name
    if not final.exists():
        places = (run / PINNED / name, run / "checkpoints" / name)
        source = next((path for path in places if path.exists()), None)
        pinned = source and pin(run, source)
        if pinned:
            final.parent.mkdir(exist_ok=True)
            pinned.rename(final)
    checkpoint = f"{BEST}/{name}" if final.exists() else None
    reason = choice.reason + ("" if checkpoint else "; its checkpoint was deleted before it could be kept")
    told = {"step": choice.step, "checkpoint": checkpoint, "reason": reason, "rule": choice.rule}
    write_json(run / "best.json", told)
    for other in (run / BEST).glob("step-*"):
        if other != final:
            shutil.rmtree(other)


def write_retention(run: Path, table: dict[str, Any] | None, best: int | None) -> None:
    """Writes retention.json and retention.md; nothing without a table."""
    if table is None:
        return
    for row in table["rows"]:
        row["best"] = row["step"] is not None and row["step"] == best
    write_json(run / "retention.json", table)
    with whole_file(run / "retention.md") as partial:
        partial.write_text(as_markdown(table), encoding="utf-8")


def ask_to_end(run: Path, reason: str) -> None:
    """Asks a run that is not finished to save and to end for good; see `recipes.training.control.stopping`."""
    if not (run / FINISHED).exists():
        with whole_file(run / STOP, of_process=True) as partial:
            partial.write_text(f"end: {reason}\n", encoding="utf-8")
