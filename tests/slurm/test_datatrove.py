"""datatrove's Slurm executor on a real Slurm: clean, dedup and tokens equal the local run byte for byte."""

import sys
from pathlib import Path

import pytest
import yaml

from slurm.commands import ENDED
from tests.slurm.conftest import Cluster
from tests.support import tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(900)]


def write_config(folder: Path, sample: Path, out: Path) -> Path:
    """Writes a configuration of two dumps in several parts each."""
    dumps = {"new": "kowiki-sample", "old": "kowiki-heldout"}
    settings = {
        "output_dir": str(out),
        "clean": {
            name: f"--dump {sample}/{dump}-pages-articles-multistream.xml.bz2 --min-chars 80 --shard-mb 0.05"
            for name, dump in dumps.items()
        },
        "dedup": "--threshold 0.8",
        "tokens": f"--tokenizer {folder}/tokenizer",
        "max_tasks": 3,
        "slurm": {
            "partition": "main", "time": "00:10:00", "mem_per_cpu_gb": 1, "choose_mem_gb": 1, "single_cpus": 2,
            "venv": f"{sys.prefix}/bin/activate",
        },
    }  # fmt: skip
    path = folder / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files of the corpus but the logs."""
    places = [folder / place for place in ("documents", "dedup", "tokens")]
    files = sorted(path for place in places for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_corpus_of_slurms_executor_is_that_of_one_machine(healthy: Cluster, tmp_path):
    sample = tmp_path / "sample"
    healthy.run("python", "-m", "data_prep", "sample", "--out", sample)
    tiny_tokenizer(tmp_path / "tokenizer")
    cluster = ("python", "-m", "data_prep", "cluster", "--config")
    out, far = tmp_path / "out", tmp_path / "far"  # the same place for both: manifests name it
    config = write_config(tmp_path, sample, out)
    before = set(healthy.states())
    said = healthy.run(*cluster, config, "--executor", "slurm").stdout
    assert said.endswith(f"when all jobs have ended: {out}\n")

    def mine() -> dict[str, str]:
        return {job: state for job, state in healthy.states().items() if job not in before}

    healthy.until(lambda: all(state in ENDED for state in mine().values()), 600, mine)
    assert set(mine().values()) == {"COMPLETED"}
    assert len(mine()) > 7  # arrays of several tasks among the seven stages
    out.rename(far)
    healthy.run(*cluster, config, "--workers", "1")
    assert contents(far) == contents(out)
    assert {"dedup/manifest.json", "tokens/manifest.json"} <= contents(far).keys()
