"""The documented command: one process, several processes, `tune run`, and its refusals."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recipes.chat_vector
from data_prep.lineage import ROOT
from tests.support import run_here, tiny_llama, tiny_tokenizer

TUNE = str(Path(sys.executable).parent / "tune")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    roles = enumerate(("target", "plus", "minus"))
    return [f"{role}={tiny_llama(tiny_tokenizer(root / role), seed=seed)}" for seed, role in roles]


def launch(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": os.pathsep.join([str(Path(TUNE).parent), os.environ["PATH"]]), **environment}
    return subprocess.run([*command], cwd=ROOT, env=env, capture_output=True, text=True)


CONFIG = ("--config", "configs/chat_vector/llama3_8b_ko.yaml")
MODULE = (sys.executable, "-m", "recipes.chat_vector", *CONFIG)


def test_tune_run_with_two_processes_merges_once_and_a_second_run_says_so(keys: list[str], tmp_path: Path) -> None:
    out = f"output_dir={tmp_path / 'out'}"
    result = launch(TUNE, "run", "--nproc_per_node", "2", "recipes/chat_vector.py", *CONFIG, *keys, out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done in") == 1
    assert "has no chat template" in result.stdout
    assert "| tensor | scale | change | target | ratio |" in result.stdout
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["merge"]["vectors"][0]["scale"] == 1.0
    assert manifest["merge"]["vectors"][0]["embeddings_scale"] is None
    again = launch(*MODULE, *keys, out)
    assert again.returncode == 0
    assert "merged from the same inputs before, nothing to do" in again.stdout
    other = launch(*MODULE, *keys, out, "scale=0.5")
    assert other.returncode == 1
    assert "error: " in other.stderr
    assert "holds another merge" in other.stderr


def test_a_plan_writes_nothing(keys: list[str], tmp_path: Path) -> None:
    config, out = ROOT / CONFIG[1], f"output_dir={tmp_path / 'out'}"
    result = run_here(recipes.chat_vector.main, config, *keys, out, "--plan", "workers=3")
    assert result.returncode == 0, result.stderr
    assert "tensors: 21 get the vector, 0 pass through bit for bit" in result.stdout
    assert re.search(r"memory: at most 0\.\d+ GB with 3 workers", result.stdout)
    assert "disk: enough" in result.stdout
    assert not list(tmp_path.iterdir())


def test_settings_that_cannot_be_used_are_named_together(keys: list[str]) -> None:
    wrong = ["target=nowhere", "scale=.inf", "workers=0", "vocabulary=some"]
    result = run_here(recipes.chat_vector.main, ROOT / CONFIG[1], *keys[1:], *wrong)
    assert result.returncode == 2
    assert "target: nowhere does not exist" in result.stderr
    assert "scale: inf is no finite number" in result.stderr
    assert "workers: 0 is not positive" in result.stderr
    assert "vocabulary: 'some' is not known" in result.stderr
