"""Forty rounds of faults in a run of two ranks: it resumes every time, and ends with the undisturbed run's weights.

`-s` prints the table that stands in tests/benchmarks/results/ as chaos_*.md.
"""

import random
import resource
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml

from data_prep.lineage import sha256_file
from recipes.training.checkpoints.checkpoint import load_tensors, read_state
from recipes.training.checkpoints.metadata import read_metadata
from tests.distributed.chaos import (
    DAMAGES,
    Launch,
    damage,
    describe,
    flip,
    full_disk,
    good_steps,
    kill,
    read_only,
    rows,
    small_disk,
    started_behind,
    truncate,
)
from tests.recipes.conftest import write_cpt_config
from tests.support import random_shards, tiny_llama, tiny_tokenizer

ROUNDS = 40
STEPS = 260
END_SECONDS = 300
"""Longest wait for an end, on a machine that is busy with other things."""
SEED = 20
SAME = ("step", "train/loss", "train/grad_norm", "train/targets")
"""Columns of metrics.jsonl that must be the straight run's; the others are times and what follows from them."""


@dataclass
class Chaos:
    """A run that is disturbed again and again, and what has been done to it."""

    config: Path
    run: Path
    shards: Path
    log: Path
    random: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    resumed: list[int] = field(default_factory=list)

    def launch(self) -> Launch:
        """Starts the documented command."""
        return Launch(self.config, self.run, self.log)


def plan(random_: random.Random, has_disk: bool) -> list[str]:
    """Returns the faults of all rounds, each kind at least three times, in a random order."""
    kinds = [f"kill {whom}: {moment}" for whom in ("one rank", "all") for moment in ("start", "step", "save")]
    kinds += ["kill the launcher: step", "SIGTERM: step", "damaged token shard: start"]
    kinds += ["full disk: step", "read-only checkpoints: step", "read-only run folder: start"] if has_disk else []
    chosen = kinds * 3 + random_.choices(kinds, k=ROUNDS - 3 * len(kinds))
    random_.shuffle(chosen)
    return chosen


def play(chaos: Chaos, fault: str) -> None:
    """Plays one round: perhaps a damaged checkpoint, a start, a fault in it, and what undoes the fault."""
    chaos.faults[fault] += 1
    if len(good_steps(chaos.run)) > 2 and chaos.random.random() < 0.4:
        newest, how = chaos.run / f"checkpoints/step-{good_steps(chaos.run)[-1]:08d}", chaos.random.choice(DAMAGES)
        chaos.faults[f"damaged checkpoint: {how}"] += 1
        damage(newest, how, chaos.random)
    expected, starts = good_steps(chaos.run)[-1], len(started_behind(chaos.run))
    disturb(chaos, *fault.split(": "))
    for behind in started_behind(chaos.run)[starts:]:
        chaos.resumed.append(behind)
        assert behind == expected, f"{fault}: resumed behind step {behind}; {expected} is the newest good checkpoint"
    assert good_steps(chaos.run)[-1] >= expected, f"{fault}: the checkpoint of step {expected} is lost"


def disturb(chaos: Chaos, kind: str, moment: str) -> None:
    """Starts the run, disturbs it, waits for its end, and undoes what outlives it."""
    if kind == "damaged token shard":
        path = chaos.shards / "shard-00000.bin"
        whole = chaos.random.choice([truncate, flip])(path, chaos.random)
        assert refused(chaos.launch(), str(path))
        path.write_bytes(whole)
    elif kind == "read-only run folder":
        with read_only(chaos.run):
            assert refused(chaos.launch(), "Read-only file system")
    elif kind in ("full disk", "read-only checkpoints"):
        running = chaos.launch()
        running.wait_for(moment, chaos.random)
        fault = full_disk(chaos.run, chaos.random) if kind == "full disk" else read_only(chaos.run / "checkpoints")
        with fault:
            assert running.end(END_SECONDS) not in (None, 0), f"{kind}: went on as if nothing had happened"
    else:
        running = chaos.launch()
        running.wait_for(moment, chaos.random)
        if kind == "SIGTERM":
            running.launcher.send_signal(signal.SIGTERM)
        else:
            one, launcher, everyone = chaos.random.choice(running.ranks()), running.launcher.pid, running.everyone()
            kill({"kill one rank": [one], "kill the launcher": [launcher], "kill all": everyone}[kind])
        assert running.end(END_SECONDS) is not None, f"{kind}: the others were still there after {END_SECONDS} s"


def refused(running: Launch, reason: str) -> bool:
    """Whether a start ends by itself, with an error that holds `reason` and no traceback."""
    code, told = running.end(END_SECONDS), running.log.read_text(encoding="utf-8")
    assert code not in (None, 0), f"exit code {code}:\n{told}"
    assert reason in told, told
    assert "]: Traceback" not in told, told  # torchrun marks what a rank prints; its own trace follows a failed rank
    return True


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_forty_rounds_of_faults_lose_and_repeat_nothing(tmp_path):
    started, random_ = time.monotonic(), random.Random(SEED)
    base, shards = tiny_llama(tiny_tokenizer(tmp_path / "base")), tmp_path / "shards"
    random_shards(shards, sha256=sha256_file(base / "tokenizer.json"))
    config = write_cpt_config(tmp_path, base, shards)
    settings = yaml.safe_load(config.read_text()) | {"steps": STEPS, "micro_batch": 4, "keep_checkpoints": 3}
    config.write_text(yaml.safe_dump(settings | {"save_every_steps": STEPS}))
    straight, log = tmp_path / "run", tmp_path / "log.txt"
    assert Launch(config, straight, log).end(900) == 0, log.read_text()
    with small_disk(tmp_path / "disk") as has_disk:
        run = tmp_path / "disk/run"
        run.mkdir()
        config.write_text(yaml.safe_dump(settings | {"output_dir": str(run), "save_every_steps": 2}))
        chaos = Chaos(config, run, shards, log, random_)
        for number, fault in enumerate(plan(random_, has_disk), 1):
            play(chaos, fault)
            print(
                f"round {number}, {time.monotonic() - started:.0f} s: {fault}, at step {good_steps(run)[-1]}",
                flush=True,
            )
        assert chaos.launch().end(600) == 0, chaos.log.read_text()
        assert_same(run, straight)
        steps = [row["step"] for row in rows(run)]
        assert steps == list(range(1, STEPS + 1))
    if not has_disk:
        print("not played, as mounting a small file system is not permitted here: full disk, read-only folders")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\n{ROUNDS} rounds, {chaos.faults.total()} faults, {len(chaos.resumed) + 1} starts that came to train, "
        f"{STEPS} steps; {time.monotonic() - started:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time\n"
        f"| fault | times |\n|---|---|\n{describe(chaos.faults)}"
    )


def assert_same(run: Path, straight: Path) -> None:
    """Compares losses, ledgers, weights and optimizer states bit for bit."""
    mine, other = ([{key: row[key] for key in SAME} for row in rows(folder)] for folder in (run, straight))
    assert mine == other
    ends = [folder / f"checkpoints/step-{STEPS:08d}" for folder in (run, straight)]
    mine, other = (read_state(end)["ledger"] for end in ends)
    assert mine == other
    mine, other = (tensors(end) for end in ends)
    assert len(mine) > 50
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors of a checkpoint."""
    entries = read_metadata(checkpoint).state_dict_metadata.items()
    found = {name: torch.empty(e.size, dtype=e.properties.dtype) for name, e in entries if hasattr(e, "size")}
    load_tensors(checkpoint, found, alone=True)
    return found
