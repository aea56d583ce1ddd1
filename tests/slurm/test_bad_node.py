"""A node that sees other data than the rest: preflight names it, and the run goes without it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from data_prep.lineage import sha256_file
from slurm.commands import excluded_nodes
from slurm.job import Job
from tests.recipes.conftest import write_cpt_config
from tests.slurm.conftest import Cluster
from tests.support import losses, random_shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="a node's own view of a folder needs root"),
]


@pytest.fixture
def stale_data_on_n2(healthy: Cluster, tmp_path, base, shards):
    """On n2, and there alone, another folder lies where the shards are: as a stale cache of a file system."""
    other = random_shards(tmp_path / "other", seed=1, sha256=sha256_file(base / "tokenizer.json"))
    slurmd = (healthy.folder / "run/slurmd-n2.pid").read_text().split()[0]
    inside = ("nsenter", "--target", slurmd, "--mount")
    subprocess.run([*inside, "mount", "--bind", other, shards], check=True)
    yield
    healthy.run("scancel", "--me")
    subprocess.run([*inside, "umount", "--lazy", shards], check=True)


@pytest.mark.parametrize(("spare", "batch", "nodes"), [(1, 512, ["n1", "n3"]), (0, 384, ["n1", "n3", "n4"])])
def test_a_bad_node_is_left_out_or_excluded_at_the_requeue(
    healthy,
    tmp_path,
    base,
    shards,
    stale_data_on_n2,
    spare,
    batch,
    nodes,
):
    config, run = write_cpt_config(tmp_path, base, shards), tmp_path / "run"
    job = healthy.sbatch(
        "cpt.sbatch", "--config", config, f"global_batch_tokens={batch}", "steps=4",
        options=("--nodes=3", "--time=00:10:00"), KOTUNE_SPARE_NODES=str(spare),
    )  # fmt: skip
    assert healthy.wait(job, timeout=600) == ["COMPLETED"], healthy.log(job)
    attempts = json.loads((healthy.folder / "jobs" / job / "attempts.json").read_text())
    assert attempts[0]["nodes"] == ["n1", "n2", "n3"]
    assert f"starts on {' '.join(nodes)} behind step 0" in healthy.log(job)
    assert len(attempts) == 2 - spare
    table = next(Path(healthy.folder / "jobs" / job / "attempt-0").glob("preflight-0.log")).read_text()
    assert "n2: " in table
    assert len(losses(run)) == 4


@pytest.mark.parametrize(
    ("num_nodes", "bad", "excluded", "told"),
    [
        (2, ["n2"], ["n1", "n2"], ""),
        (2, ["n2", "n3"], ["n1"], "n2 n3 not excluded: 1 nodes of the partition would remain, 2 are needed\n"),
        (3, ["n2"], ["n1"], "n2 not excluded: 2 nodes of the partition would remain, 3 are needed\n"),
    ],
)
def test_nodes_are_excluded_beside_those_that_are_already_while_enough_remain(
    healthy, monkeypatch, capfd, num_nodes, bad, excluded, told
):
    for name, value in healthy.environment.items():
        monkeypatch.setenv(name, value)
    job = healthy.sbatch("cpt.sbatch", "--config", "none.yaml", options=("--hold", "--exclude=n1", "--nodes=2"))
    allocation = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": f"n[2-{1 + num_nodes}]"}
    attempt = Job.from_environment(allocation, ["command", "true"])
    attempt.drop(bad)
    capfd.readouterr()
    attempt.exclude_bad_nodes()
    assert excluded_nodes(job) == excluded
    assert capfd.readouterr().err == told
