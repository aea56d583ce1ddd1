"""Which checkpoints of a run still need a job, and what sbatch is told."""

import json

import pytest
import yaml

from configs.loader import load
from recipes.training.checkpoints.folder import write_state
from slurm import checkpoint_jobs, cluster


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text("weights: base\n")
    (tmp_path / "evaluations").mkdir()
    for step in (10, 20):
        path = tmp_path / "checkpoints" / f"step-{step:08d}"
        path.mkdir(parents=True)
        write_state(path, {"step": step, "ephemeral": step == 20})
    return tmp_path


def test_the_start_and_each_regular_checkpoint_need_a_job_until_they_are_scored(run):
    assert sorted(checkpoint_jobs.unscored(run)) == [0, 10]
    for step in (0, 10):
        (run / "evaluations" / f"step-{step:08d}.json").write_text(json.dumps({"step": step}))
    assert checkpoint_jobs.unscored(run) == {}


def test_a_run_from_no_weights_has_no_start_to_score(run):
    (run / "config.yaml").write_text("weights: null\n")
    assert sorted(checkpoint_jobs.unscored(run)) == [10]


def test_a_job_counts_while_it_lives_or_has_left_a_result(run, monkeypatch):
    states = {"7": ("RUNNING", "n1"), "8": ("FAILED", ""), "9": ("COMPLETED", "")}
    monkeypatch.setattr(checkpoint_jobs, "job_states", lambda: states)
    (run / "evaluations" / "step-00000030.json").write_text("{}")
    jobs = {"00000010": "7", "00000020": "8", "00000030": "9", "00000040": "6"}
    assert checkpoint_jobs.still_there(run, jobs) == {"00000010": "7", "00000030": "9"}
    assert checkpoint_jobs.still_there(run, {}) == {}


def test_sbatch_is_told_the_clusters_settings_and_the_step(run):
    (run / "cluster.yaml").write_text(
        yaml.safe_dump({"gpu_partition": "gpu", "partition": "cpu", "account": "lab", "sbatch": {"mem": "9G"}})
    )
    settings = load(cluster.ClusterSettings, run / "cluster.yaml", [], cluster.check)
    words = checkpoint_jobs.options(run, 500, 1, settings)
    assert {"--job-name=kotune-evaluate-500", "--partition=gpu", "--gpus-per-node=1", "--account=lab"} <= set(words)
    assert {"--mem=9G", f"--output={run}/evaluations/job-%j.log"} <= set(words)
    assert "--partition=cpu" in checkpoint_jobs.options(run, 500, 0, settings)
    assert not any("gpus" in word for word in checkpoint_jobs.options(run, 500, 0, settings))
