"""What `slurm.status` says of stages that wait, run, ended, or were never submitted; and a job's nodes."""

import json
from pathlib import Path

import pytest
import yaml

from configs.loader import ConfigError, load
from data_prep import stages
from data_prep.pipeline import PipelineConfig, check, plan
from slurm import status
from slurm.commands import SlurmError, slurm
from slurm.job import Job
from slurm.job import _count as job_count
from slurm.launch import launch_of
from slurm.status import duration, progress, rows
from slurm.submissions import submitted


@pytest.fixture
def cfg(tmp_path):
    """One training and a copy of its checkpoint, submitted as jobs 12 and 13; an array that is not submitted."""
    (tmp_path / "cpt.yaml").write_text(yaml.safe_dump({"output_dir": str(tmp_path / "run")}))
    entries = [
        {
            "name": "cpt", "command": f"tune run --nproc_per_node 2 recipes/cpt.py --config {tmp_path}/cpt.yaml",
            "config": f"{tmp_path}/cpt.yaml", "outputs": [f"{tmp_path}/run"],
        },
        {"name": "export", "command": "cp a b", "inputs": [f"{tmp_path}/run"], "outputs": [f"{tmp_path}/made/b"]},
        {"name": "part", "items": ["x"], "command": "touch {item}", "outputs": [f"{tmp_path}/made/{{item}}"]},
    ]  # fmt: skip
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"output_dir": str(tmp_path / "out"), "stages": entries}))
    folder = tmp_path / "out/.submissions/20260101-000000"
    (folder / "logs").mkdir(parents=True)
    jobs = [
        {"job": "12", "name": "cpt", "stages": ["cpt"], "waits_for": []},
        {"job": "13", "name": "export", "stages": ["export"], "waits_for": ["cpt"]},
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return load(PipelineConfig, tmp_path / "pipeline.yaml", [], check)


def write_run(run: Path) -> None:
    run.mkdir()
    (run / "config.yaml").write_text("steps: 100\nglobal_batch_tokens: 2048\n")
    figures = [
        {"step": step, "train/loss": 3.0 - step / 100, "speed/step_seconds": 10.0, "speed/tokens_per_second": 204.8}
        for step in range(1, 41)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in figures) + '{"step": 41, "tr')


def test_a_running_training_shows_how_far_it_is_and_how_long_it_takes(cfg, tmp_path):
    write_run(tmp_path / "run")
    states = {"12": ("RUNNING", "n1"), "13": ("PENDING", "(Dependency)")}
    assert rows(cfg, states) == [
        ["cpt", "RUNNING", "12", "40/100", "81,920", "2.6000", "205", "10 min 00 s", "on n1"],
        ["export", "PENDING", "13", "-", "-", "-", "-", "-", "(Dependency)"],
        ["part-x", "-", "-", "-", "-", "-", "-", "-", "not submitted"],
    ]


def test_a_stage_that_ended_says_why_and_where_its_log_is(cfg, tmp_path):
    folder = tmp_path / "out/.submissions/20260101-000000"
    (folder / "logs/cpt-12.log").write_text("")
    (folder / "jobs/cpt").mkdir(parents=True)
    (folder / "jobs/cpt/attempts.json").write_text('[{"attempt": "12.0", "verdict": "failed", "why": "exit code 1"}]')
    found = rows(cfg, {"13": ("CANCELLED", "")})
    assert found[0][1] == "ended"  # Slurm has forgotten it
    assert found[0][-1] == f"exit code 1; log: {folder}/logs/cpt-12.log"
    assert found[1][1] == "CANCELLED"
    assert "before it started" in found[1][-1]


def test_a_stamp_says_done_whatever_slurm_remembers(cfg, tmp_path):
    write_run(tmp_path / "run")
    stamps = stages.Stamps(tmp_path / "out")
    stage = plan(cfg)[0]
    stamps.end(stage, stamps.dependencies(stage), 1.0)
    assert rows(cfg, {})[0][:4] == ["cpt", "done", "12", "40/100"]
    assert rows(cfg, {})[0][-2] == "-"  # no time left
    assert [job.job for job in submitted(tmp_path / "out")] == ["12", "13"]


def test_a_run_that_has_not_begun_has_no_figures(tmp_path):
    assert progress(tmp_path / "nowhere", is_running=True) == progress(None, is_running=True) == ["-"] * 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "0 min 05 s"), (125, "2 min 05 s"), (3725, "1 h 02 min"), (2 * 86400 + 3600, "49 h 00 min")],
)
def test_a_duration_reads_as_one_says_it(seconds, text):
    assert duration(seconds) == text


def test_without_slurm_the_way_to_a_login_node_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="squeue is not on PATH; Slurm's commands are expected; go to a login node"):
        slurm("squeue")
    with pytest.raises(SlurmError, match="squeue is not on PATH"):
        status.job_states()


def job(nodes: list[str], num_nodes: int) -> Job:
    launch = launch_of(["python", "-m", "recipes.cpt", "--config", "c.yaml"])
    return Job("7", 0, nodes, launch, Path("x"), None, num_nodes, 1, 1, has_preflight=True)


def test_spare_nodes_stand_in_for_bad_ones_as_long_as_there_are_enough():
    one = job(["n1", "n2", "n3", "n4"], 2)
    assert one.drop(["n2"])
    assert one.nodes == ["n1", "n3", "n4"]
    assert one.drop(["n1"])
    assert not one.drop(["n4"])
    assert one.bad_nodes == ["n2", "n1", "n4"]


def test_a_count_that_is_no_number_is_named():
    assert job_count({"KOTUNE_SPARE_NODES": "2"}, "KOTUNE_SPARE_NODES", 0) == 2
    assert job_count({"KOTUNE_RANKS_PER_NODE": ""}, "KOTUNE_RANKS_PER_NODE", 8) == 8
    with pytest.raises(ConfigError, match="KOTUNE_SPARE_NODES: 'one' is no whole number"):
        job_count({"KOTUNE_SPARE_NODES": "one"}, "KOTUNE_SPARE_NODES", 0)


def test_a_supervisor_outside_a_job_says_so():
    with pytest.raises(ConfigError, match="SLURM_JOB_ID is not set; it runs inside a job; submit it by sbatch"):
        Job.from_environment({}, ["recipes.cpt"])
