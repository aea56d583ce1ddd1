"""A training on a real Slurm, and a job a checkpoint beside it that scores it."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from data_prep.document import Document, as_row, write_jsonl
from tests.recipes.conftest import write_cpt_config
from tests.slurm.conftest import Cluster
from tests.support import ROOT, TEXTS

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(900)]


def test_every_checkpoint_gets_a_job_that_scores_it_although_the_run_deletes_them(
    healthy: Cluster, tmp_path, base, shards
):
    rows = [as_row(Document(id=str(n), text=text, lang="ko")) for n, text in enumerate(TEXTS[1::2])]
    write_jsonl(tmp_path / "ko" / "documents-00000.jsonl.zst", rows)
    settings = {
        "run": str(tmp_path / "run"),
        "documents": {"ko": str(tmp_path / "ko")},
        "seq_len": 64,
        "device": "cpu",
        "poll_seconds": 0.2,
    }
    (tmp_path / "follow.yaml").write_text(yaml.safe_dump(settings))
    config = write_cpt_config(tmp_path, base, shards)
    words = ("--config", config, "save_every_steps=2", "keep_checkpoints=1")
    training = healthy.sbatch("cpt.sbatch", *words, options=("--nodes=1", "--time=00:10:00"), KOTUNE_PREFLIGHT="0")
    command = [sys.executable, "-m", "slurm.checkpoint_jobs", "--config", str(tmp_path / "follow.yaml"), "--gpus=0"]
    command += ["--cluster", "tests/slurm/cluster.yaml"]
    environment = {**os.environ, **healthy.environment}
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert told.returncode == 0, told.stderr + healthy.log(training)
    run = tmp_path / "run"
    jobs = json.loads((run / "evaluations/jobs.json").read_text())
    assert {"00000000", "00000006"} <= set(jobs) <= {"00000000", "00000002", "00000004", "00000006"}
    states = healthy.wait(*jobs.values())
    logs = "\n".join(path.read_text() for path in (run / "evaluations").glob("job-*.log"))
    assert set(states) == {"COMPLETED"}, logs
    found = [json.loads(line)["step"] for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert found == sorted(map(int, jobs))
    best = json.loads((run / "best.json").read_text())
    assert (run / best["checkpoint"] / "state.json").is_file()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (again.returncode, again.stdout) == (0, "")
