"""A merge that was killed goes on, and gives what a straight one gives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.lineage import ROOT
from data_prep.run_folder import locked
from recipes.merging import tensors
from recipes.merging.errors import MergeError
from tests.unit.merging.small_models import FILE, rewrite, run, same_bits, weights

SHARD_BYTES = 60_000  # several tensors a shard; the embedding has one of its own
PROGRAM = """
import os, pathlib, signal, sys
from recipes.merging import tensors
from recipes.merging.directory import merge
from recipes.merging.plan import plan_merge
from recipes.merging.settings import MergeConfig

whole = tensors._merge_shard
def killed(handles, plan, shard, *rest):
    if shard.name.startswith("model-00004"):
        print("reached", flush=True)
        (pathlib.Path(sys.argv[1] + ".tmp") / (shard.name + ".tmp")).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(handles, plan, shard, *rest)
tensors._merge_shard = killed
models = dict(zip(("target", "plus", "minus"), sys.argv[2:]))
merge(pathlib.Path(sys.argv[1]), plan_merge(MergeConfig(**models, scale=0.7), 60_000), 2, lambda n: None)
"""


@pytest.fixture
def killed(models: dict[str, Path], tmp_path: Path) -> Path:
    """The folder of a merge that got SIGKILL in its fourth shard."""
    paths = [str(models[role]) for role in ("target", "plus", "minus")]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "out"), *paths],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not (tmp_path / "out").exists()
    return tmp_path / "out.tmp"


def finished(folder: Path) -> dict[str, int]:
    """Returns the shards that have their final names, and when they were written."""
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("model-*.safetensors")}


def test_finished_shards_are_kept_and_the_result_is_that_of_a_straight_merge(
    killed: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    before = finished(killed)
    assert before
    merged = run(tmp_path / "out", models, shard_bytes=SHARD_BYTES, scale=0.7)
    after = finished(tmp_path / "out")
    assert all(after[name] == written for name, written in before.items())
    assert same_bits(merged, run(tmp_path / "straight", models, shard_bytes=SHARD_BYTES, scale=0.7))
    for name in ("norms.json", "manifest.json", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert not killed.exists()


def test_a_damaged_shard_is_written_again(killed: Path, models: dict[str, Path], tmp_path: Path) -> None:
    name = min(finished(killed))
    content = bytearray((killed / name).read_bytes())
    content[-1] ^= 1
    (killed / name).write_bytes(content)
    merged = run(tmp_path / "out", models, shard_bytes=SHARD_BYTES, scale=0.7)
    assert same_bits(merged, run(tmp_path / "straight", models, shard_bytes=SHARD_BYTES, scale=0.7))


@pytest.mark.parametrize("change", ["scale", "input"])
def test_shards_of_other_settings_or_inputs_are_not_used(
    killed: Path, models: dict[str, Path], tmp_path: Path, change: str
) -> None:
    if change == "input":
        rewrite(models["plus"], {name: 2 * tensor for name, tensor in weights(models["plus"]).items()})
    scale = 0.5 if change == "scale" else 0.7
    before = finished(killed)
    merged = run(tmp_path / "out", models, shard_bytes=SHARD_BYTES, scale=scale)
    assert not before.items() & finished(tmp_path / "out").items()
    assert same_bits(merged, run(tmp_path / "straight", models, shard_bytes=SHARD_BYTES, scale=scale))


def test_a_folder_without_a_journal_is_begun_anew(originals: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "model-00001-of-00009.safetensors.tmp").write_text("half")
    run(tmp_path / "out", originals)
    assert not list((tmp_path / "out").glob("*-of-*"))
    assert not (tmp_path / "out.tmp").exists()


def test_two_merges_do_not_write_one_folder(originals: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out.tmp").mkdir()
    with locked(tmp_path / "out.tmp"), pytest.raises(MergeError, match="being written by another merge; one at a time"):
        run(tmp_path / "out", originals)


def test_an_input_that_shrinks_meanwhile_ends_the_merge(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = tensors.begin
    monkeypatch.setattr(
        "recipes.merging.directory.begin", lambda *a: (os.truncate(models["plus"] / FILE, 5000), begin(*a))[1]
    )
    with pytest.raises(
        MergeError, match=r"plus/model.safetensors ends at byte 5000; more was there at the start; keep"
    ):
        run(tmp_path / "out", models)
