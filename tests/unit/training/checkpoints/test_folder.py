"""Which checkpoints are complete, sound, and kept."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from recipes.training.checkpoints import folder as folders
from recipes.training.checkpoints.fence import check_attempt
from recipes.training.checkpoints.folder import CheckpointError, Retention
from recipes.training.checkpoints.saving import due, saving_problems

SAVING = {
    "steps": 100,
    "save_every_steps": 10,
    "save_every_minutes": None,
    "keep_checkpoints": 2,
    "keep_every_steps": None,
    "ephemeral_every_steps": None,
}


def write(folder, step, ephemeral=False):
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "shard").write_bytes(b"0123456789")
    files = {"shard": folders.facts(path / "shard")}
    folders.write_state(path, {"step": step, "ephemeral": ephemeral, "files": files})
    return path


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 4), st.none() | st.integers(2, 4))
def test_the_newest_k_every_nth_and_one_ephemeral_stay(kinds, newest, every):
    """The checkpoints are written one after the other, outdated ones going at each, as in a run."""
    present, written = {}, []
    for step, ephemeral in enumerate(kinds, 1):
        written.append((step, ephemeral))
        present[step] = {"step": step, "ephemeral": ephemeral}
        for gone in Retention(newest, every).outdated(present):
            del present[gone]
        regular = [s for s, is_ephemeral in written if not is_ephemeral]
        expected = {*regular[-newest:], *(s for s in regular if every and s % every == 0), step}
        assert set(present) == expected


def test_a_checkpoint_is_complete_by_its_name_its_state_and_no_note_of_damage(tmp_path):
    whole, cut, marked, empty = (write(tmp_path, step) for step in (1, 2, 3, 4))
    write(tmp_path, 5).rename(tmp_path / "step-00000005.tmp")
    write(tmp_path, 6).rename(tmp_path / "step-00000006.old")
    (cut / "state.json").write_text((cut / "state.json").read_text()[:-5])
    folders.mark_damaged(marked, "shard differs")
    (empty / "state.json").unlink()
    assert folders.complete_checkpoints(tmp_path) == [whole]
    assert folders.latest_checkpoint(tmp_path) == whole
    assert folders.latest_checkpoint(tmp_path / "absent") is None
    assert folders.known_problem(marked) == "marked by damaged.txt: shard differs"
    assert folders.known_problem(empty).startswith("state.json cannot be used (FileNotFoundError")


def test_a_number_changed_within_the_state_is_found(tmp_path):
    path = write(tmp_path, 12)
    assert folders.read_state(path)["step"] == 12
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"step": 12', '"step": 13'))
    with pytest.raises(CheckpointError, match=r"state.json differs from its own checksum [0-9a-f]{12}; give another"):
        folders.read_state(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"012345678", "shard has 9 bytes, 10 were written"),
        (b"0123456780", "shard differs from its checksum 84d89877f0d4"),
        (None, "shard cannot be read (No such file or directory)"),
    ],
)
def test_every_damage_to_a_file_is_named(tmp_path, content, problem):
    path = write(tmp_path, 1)
    folders.check_files(path)
    (path / "shard").unlink()
    if content is not None:
        (path / "shard").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{path} is damaged: {problem}; ")):
        folders.check_files(path)


def test_files_outside_the_folder_are_not_read(tmp_path):
    problems = list(folders.file_problems(tmp_path, {"../secret": {"bytes": 1, "sha256": ""}}))
    assert problems == ["'../secret' lies outside the folder"]


def test_what_is_half_deleted_is_no_checkpoint(tmp_path, monkeypatch):
    path = write(tmp_path, 1)

    def killed(folder):
        (folder / "shard").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(folders.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        folders.remove(path)
    monkeypatch.undo()
    assert folders.step_folders(tmp_path) == []
    folders.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_new_checkpoint_takes_the_place_of_a_damaged_one_of_its_step(tmp_path):
    old = write(tmp_path, 1)
    (old / "shard").write_bytes(b"damaged")
    partial = write(tmp_path / "elsewhere", 1).rename(tmp_path / "step-00000001.tmp")
    folders.put_in_place(partial, old)
    folders.check_files(old)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000001"]


def test_only_the_named_attempt_writes(tmp_path, monkeypatch):
    monkeypatch.delenv("KOTUNE_ATTEMPT", raising=False)
    (tmp_path / "attempt").write_text("7.1\n")
    check_attempt(tmp_path)
    monkeypatch.setenv("KOTUNE_ATTEMPT", "7.1")
    check_attempt(tmp_path)
    monkeypatch.setenv("KOTUNE_ATTEMPT", "7.0")
    with pytest.raises(CheckpointError, match=r"fenced: this process is attempt '7.0', .* names '7.1', which alone"):
        check_attempt(tmp_path)
    (tmp_path / "attempt").unlink()
    check_attempt(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_every_steps": 0}, "save_every_steps"),
        ({"save_every_minutes": -1.0}, "save_every_minutes"),
        ({"keep_every_steps": 24}, "keep_every_steps: 24 is no multiple of save_every_steps=10, .*; use 20"),
        ({"ephemeral_every_steps": 10}, "ephemeral_every_steps: 10 is not below save_every_steps=10"),
    ],
)
def test_keys_that_contradict_one_another_are_refused(changes, message):
    (problem,) = saving_problems(OmegaConf.create(SAVING | changes))
    assert re.search(message, problem)


def test_what_is_saved_when():
    cfg = OmegaConf.create(SAVING | {"ephemeral_every_steps": 4, "steps": 23})
    assert saving_problems(cfg) == []
    kinds = {step: due(cfg, step, is_asked=step == 13) for step in range(1, 24)}
    assert {s for s, kind in kinds.items() if kind == "kept"} == {10, 13, 20, 23}
    assert {s for s, kind in kinds.items() if kind == "ephemeral"} == {4, 8, 12, 16}


def test_the_state_is_plain_json(tmp_path):
    state = json.loads((write(tmp_path, 3) / "state.json").read_text())
    assert state["files"]["shard"]["bytes"] == 10
    assert len(state["state_sha256"]) == 64
