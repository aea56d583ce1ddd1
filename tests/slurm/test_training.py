"""A training over two nodes of a real Slurm: it finishes, and what interrupts it changes no loss."""

import json
import re
import time
from pathlib import Path

import pytest
import yaml

from tests.recipes.conftest import write_cpt_config
from tests.slurm.conftest import Cluster
from tests.support import losses, tune_run

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(900)]
QUICK = {"KOTUNE_PREFLIGHT": "0"}
FEW_MINUTES = "--time=00:10:00"


@pytest.fixture
def config(tmp_path, base, shards) -> Path:
    """Far more steps than a test waits for; a checkpoint every 20."""
    path = write_cpt_config(tmp_path, base, shards)
    settings = yaml.safe_load(path.read_text()) | {"steps": 100_000, "save_every_steps": 20, "keep_checkpoints": 2}
    path.write_text(yaml.safe_dump(settings))
    return path


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def attempts(cluster: Cluster, job: str) -> list[dict]:
    path = cluster.folder / "jobs" / job / "attempts.json"
    return json.loads(path.read_text()) if path.exists() else []


def test_two_nodes_give_the_losses_of_two_local_ranks(healthy, config, tmp_path):
    words = ("--config", config, "steps=8", "save_every_steps=4")
    job = healthy.sbatch("cpt.sbatch", *words, f"output_dir={tmp_path}/job", options=(FEW_MINUTES,), **QUICK)
    tune_run(2, "cpt", config, *words[2:], f"output_dir={tmp_path}/local")
    assert healthy.wait(job) == ["COMPLETED"], healthy.log(job)
    assert losses(tmp_path / "job") == losses(tmp_path / "local")
    assert re.search(r"starts on n\d n\d behind step 0", healthy.log(job))
    assert (tmp_path / "job/checkpoints/step-00000008/state.json").exists()


def test_a_time_limit_saves_requeues_and_goes_on_with_the_same_losses(healthy, config, tmp_path):
    """The limit is Slurm's own: three minutes, of which the warning takes one and Slurm's rounding up to half a one."""
    straight, limited = tmp_path / "straight", tmp_path / "limited"
    jobs = [
        healthy.sbatch("cpt.sbatch", "--config", config, f"output_dir={straight}", options=(FEW_MINUTES,), **QUICK),
        healthy.sbatch(
            "cpt.sbatch", "--config", config, f"output_dir={limited}",
            options=("--time=3", "--signal=B:USR1@60"), **QUICK,
        ),
    ]  # fmt: skip
    tell = lambda: [healthy.log(job) for job in jobs]  # noqa: E731
    healthy.until(lambda: any(one["from_step"] for one in attempts(healthy, jobs[1])), 600, tell)
    resumed_at = attempts(healthy, jobs[1])[-1]["from_step"]
    assert "requeue: checkpoint written" in healthy.log(jobs[1])
    assert attempts(healthy, jobs[1])[0]["exit_code"] == 85
    healthy.until(lambda: min(steps(straight), steps(limited)) > resumed_at + 5, 400, tell)
    healthy.run("scancel", *jobs)
    common = min(steps(straight), steps(limited))
    assert common > resumed_at
    assert losses(limited)[:common] == losses(straight)[:common]


def test_scancel_leaves_a_cancelled_job_and_a_folder_that_goes_on(healthy, config, tmp_path):
    run = tmp_path / "cancelled"
    job = healthy.sbatch("cpt.sbatch", "--config", config, f"output_dir={run}", options=(FEW_MINUTES,), **QUICK)
    healthy.until(lambda: steps(run) > 25, 300, lambda: healthy.log(job))
    healthy.run("scancel", job)
    assert healthy.wait(job) == ["CANCELLED"]
    time.sleep(12)  # longer than a requeued job is held back here
    assert healthy.states()[job] == "CANCELLED"
    reached = int(max((run / "checkpoints").glob("step-*/state.json")).parent.name.split("-")[1])
    before = losses(run)[:reached]
    again = healthy.sbatch(
        "cpt.sbatch", "--config", config, f"output_dir={run}", f"steps={reached + 100_000}",
        options=(FEW_MINUTES,), **QUICK,
    )  # fmt: skip
    healthy.until(lambda: f"behind step {reached}" in healthy.log(again), 120, lambda: healthy.log(again))
    healthy.until(lambda: steps(run) > reached + 3, 200, lambda: healthy.log(again))
    assert losses(run)[:reached] == before


def test_a_node_that_dies_is_replaced_and_changes_no_loss(healthy, config, tmp_path):
    """Node 2 of the job loses slurmd, slurmstepd and rank at once; no other sign reaches Slurm."""
    straight, crashed = tmp_path / "straight", tmp_path / "crashed"
    watch = {**QUICK, "KOTUNE_FAIL_GRACE": "5"}
    job = healthy.sbatch("cpt.sbatch", "--config", config, f"output_dir={crashed}", options=(FEW_MINUTES,), **watch)
    healthy.until(lambda: steps(crashed) > 25, 300, lambda: healthy.log(job))
    lost = attempts(healthy, job)[0]["nodes"][1]
    healthy.mini("crash", lost)
    healthy.until(lambda: len(attempts(healthy, job)) > 1, 200, lambda: healthy.log(job))
    second = attempts(healthy, job)[1]
    assert lost not in second["nodes"]
    assert second["from_step"] >= 20
    healthy.until(lambda: steps(crashed) > second["from_step"] + 5, 300, lambda: healthy.log(job))
    healthy.run("scancel", job)
    enough = second["from_step"] + 3
    other = healthy.sbatch("cpt.sbatch", "--config", config, f"output_dir={straight}", options=(FEW_MINUTES,), **QUICK)
    healthy.until(lambda: steps(straight) > enough, 300, lambda: healthy.log(other))
    assert losses(crashed)[:enough] == losses(straight)[:enough]


def test_a_run_folder_that_another_job_took_is_left_to_it(healthy, config, tmp_path):
    run = tmp_path / "taken"
    job = healthy.sbatch("cpt.sbatch", "--config", config, f"output_dir={run}", options=(FEW_MINUTES,), **QUICK)
    healthy.until(lambda: steps(run) > 25, 300, lambda: healthy.log(job))
    (run / "attempt").write_text("999.0\n")
    assert healthy.wait(job) == ["FAILED"]  # so that no job behind it starts on half a run
    assert "left: another attempt owns the run folder" in healthy.log(job)
    checkpoints = sorted((run / "checkpoints").glob("step-*/state.json"))
    assert checkpoints
    assert len(attempts(healthy, job)) == 1
