"""A save holds the state of its step, whatever happens to the model meanwhile; damage is found and stepped over."""

import os
import resource
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from recipes.training.checkpoints.checkpoint import CheckpointStore, load_tensors
from recipes.training.checkpoints.folder import CheckpointError, Retention, check_files
from recipes.training.checkpoints.staging import Staging
from recipes.training.checkpoints.writing import check_room, state_tensors, whole_bytes
from recipes.training.distributed import process_group

IDENTITY = {"data": "abc", "seq_len": 64}


@pytest.fixture(scope="module")
def world():
    with process_group("cpu") as world:
        yield world


@pytest.fixture
def store(tmp_path, world):
    with CheckpointStore(tmp_path / "checkpoints", IDENTITY, world, Retention(newest=3)) as store:
        yield store


def trained(seed=0):
    """A model and an optimizer with moments."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, 64)).square().mean().backward()
    optimizer.step()


def values(model, optimizer):
    states = [optimizer.state[p][name] for p in model.parameters() for name in ("step", "exp_avg", "exp_avg_sq")]
    return [t.detach().clone() for t in (*model.parameters(), *states)]


def saved(store, *steps):
    """Writes checkpoints of these steps; returns the values of each."""
    model, optimizer = trained()
    written = {}
    for number in steps:
        store.save(model, optimizer, {"step": number})
        written[number] = values(model, optimizer)
        step(model, optimizer)
    store.wait()
    return written


def restored(store, path):
    model, optimizer = trained(seed=1)
    store.restore(path, model, optimizer)
    return values(model, optimizer)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_checkpoint_holds_its_step_though_training_went_on(tmp_path, world, in_background):
    with CheckpointStore(tmp_path / "checkpoints", IDENTITY, world, Retention(3), in_background) as store:
        assert store.save_seconds == 0.0
        written = saved(store, 1, 2, 3)
        for number, expected in written.items():
            path = store.folder / f"step-{number:08d}"
            check_files(path)
            assert all(map(torch.equal, restored(store, path), expected))
        figures = store.figures()
        assert 0 < figures["time/save_blocked"] <= figures["time/save"] <= store.save_seconds
        assert figures["checkpoint/bytes"] == sum(f.stat().st_size for f in path.iterdir() if f.name != "state.json")
        assert store.figures() == {}


def test_the_estimate_of_the_bytes_is_that_of_the_files_but_for_names(store):
    model = nn.Linear(1000, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    tensors = state_tensors(model, optimizer)
    store.save(model, optimizer, {"step": 1})
    store.wait()
    assert whole_bytes(tensors) <= store.figures()["checkpoint/bytes"] < 1.02 * whole_bytes(tensors)


def test_frozen_parameters_are_not_saved_and_stay(store):
    def frozen_first(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
        model[0].requires_grad_(False)
        optimizer = torch.optim.AdamW(model[1].parameters(), lr=1e-2)
        step(model, optimizer)
        return model, optimizer

    model, optimizer = frozen_first(0)
    assert state_tensors(model, optimizer)["model"].keys() == {"1.weight", "1.bias"}
    store.save(model, optimizer, {"step": 1})
    store.wait()
    other, moments = frozen_first(1)
    before = other[0].weight.clone()
    store.restore(store.newest_sound(), other, moments)
    assert torch.equal(other[0].weight, before)
    assert torch.equal(other[1].weight, model[1].weight)
    assert torch.equal(moments.state[other[1].weight]["exp_avg"], optimizer.state[model[1].weight]["exp_avg"])


def test_a_tensor_that_the_checkpoint_lacks_is_an_error(store):
    saved(store, 1)
    larger = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 8), nn.Linear(8, 8))
    with pytest.raises(CheckpointError, match=r"step-00000001 is damaged: .*2\.weight"):
        store.restore(store.newest_sound(), larger, torch.optim.AdamW(larger.parameters()))


def test_staging_fills_the_same_buffers_again_and_copies_what_is_no_tensor():
    state = {"a": {"b": torch.arange(4)}, "lr": [1.0]}
    staging = Staging()
    first = staging.copy(state)
    state["a"]["b"] += 1
    assert first["a"]["b"].tolist() == [0, 1, 2, 3]
    second = staging.copy(state)
    assert second["a"]["b"].tolist() == [1, 2, 3, 4]
    assert second["a"]["b"].data_ptr() == first["a"]["b"].data_ptr()
    assert second["lr"] == [1.0]
    assert second["lr"] is not state["lr"]


DAMAGES = {
    "cut": lambda path: os.truncate(path / "__0_0.distcp", 1000),
    "flipped": lambda path: flip_a_byte(path / "__0_0.distcp"),
    "missing": lambda path: (path / "__0_0.distcp").unlink(),
    "contents": lambda path: flip_a_byte(path / ".metadata"),
    "state": lambda path: (path / "state.json").write_text('{"step": 3'),
    "no state": lambda path: (path / "state.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(store, capsys, damage):
    written = saved(store, 1, 2, 3)
    newest = store.folder / "step-00000003"
    DAMAGES[damage](newest)
    sound = store.newest_sound()
    assert sound.name == "step-00000002"
    assert f"warning: checkpoint {newest} is damaged and not used: " in capsys.readouterr().err
    assert all(map(torch.equal, restored(store, sound), written[2]))
    saved(store, 4, 5, 6)
    present = sorted(path.name for path in store.folder.iterdir())
    assert present == [f"step-0000000{number}" for number in (3, 4, 5, 6)], (
        "the damaged one is neither counted nor gone"
    )


def test_a_damaged_checkpoint_is_replaced_when_the_run_comes_to_its_step_again(store):
    saved(store, 1, 2)
    newest = store.folder / "step-00000002"
    flip_a_byte(newest / "__0_0.distcp")
    assert store.newest_sound().name == "step-00000001"
    assert (newest / "damaged.txt").read_text().startswith("__0_0.distcp differs from its checksum")
    saved(store, 2)
    assert store.newest_sound() == newest


def test_with_all_damaged_nothing_starts_from_scratch(store):
    saved(store, 1, 2)
    for number in (1, 2):
        flip_a_byte(store.folder / f"step-0000000{number}/__0_0.distcp")
    for _ in range(2):  # the second time they are marked
        with pytest.raises(CheckpointError, match=r"all 2 checkpoints are damaged \(step-00000002: .*; step-00000001"):
            store.newest_sound()


def test_leftovers_of_a_kill_go_at_the_start(store):
    saved(store, 1)
    (store.folder / "step-00000002.tmp").mkdir()
    (store.folder / "step-00000002.7_0.tmp").mkdir()
    (store.folder / "step-00000000.old.tmp").mkdir()
    assert store.newest_sound().name == "step-00000001"
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]


def test_nothing_found_is_a_fresh_start(store):
    assert store.newest_sound() is None


@contextmanager
def files_up_to(num_bytes):
    """The system refuses to let a file grow beyond, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_reaches_the_loop_and_leaves_the_older_ones(store):
    saved(store, 1)
    model, optimizer = trained()
    with files_up_to(20_000):
        store.save(model, optimizer, {"step": 2})
        while not store.asks(None)["wait"]:
            pass
    with pytest.raises(CheckpointError, match=r"cannot be written by rank 0: OSError: .*File too large; .*; make room"):
        store.wait()
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
    assert store.newest_sound().name == "step-00000001"
    assert not store.asks(None)["wait"]
    saved(store, 3)
    assert store.newest_sound().name == "step-00000003"


def test_too_little_room_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"GB are free, a checkpoint needs 1,020,000,000.000 GB"):
        check_room(tmp_path, 10**18)


def test_another_attempt_that_took_over_during_the_write_keeps_this_one_out(store, monkeypatch):
    monkeypatch.setenv("KOTUNE_ATTEMPT", "old")
    attempt = store.folder.parent / "attempt"
    attempt.write_text("old")
    saved(store, 1)
    model, optimizer = trained()
    partial = store.folder / "step-00000002.old.tmp"
    write = store._write

    def slow(*args):
        assert partial.is_dir()
        attempt.write_text("new")
        write(*args)

    monkeypatch.setattr(store, "_write", slow)
    store.save(model, optimizer, {"step": 2})
    with pytest.raises(CheckpointError, match="fenced: this process is attempt 'old'"):
        store.wait()
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
    with pytest.raises(CheckpointError, match="fenced"):
        store.save(model, optimizer, {"step": 3})
    with pytest.raises(CheckpointError, match="fenced"):
        store.newest_sound()


def test_minutes_count_from_the_last_save_by_rank_zeros_clock(store, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("recipes.training.checkpoints.checkpoint.time.monotonic", lambda: now[0])
    saved(store, 1)
    assert not store.asks(2.0)["save"]
    now[0] += 121
    assert store.asks(2.0)["save"]
    assert not store.asks(None)["save"]
    saved(store, 2)
    assert not store.asks(2.0)["save"]


def test_another_identity_is_refused_naming_both_values(store, world):
    saved(store, 1)
    other = CheckpointStore(store.folder, IDENTITY | {"seq_len": 32}, world, Retention(1))
    with other, pytest.raises(CheckpointError, match="was written with seq_len=64, this run has seq_len=32"):
        other.restore(store.folder / "step-00000001", *trained())


def test_one_tensor_can_be_read_alone(store):
    expected = saved(store, 1)[1][0]
    tensor = torch.empty(256, 64)
    load_tensors(store.folder / "step-00000001", {"model": {"0.weight": tensor}}, alone=True)
    assert torch.equal(tensor, expected)


def test_a_folder_that_cannot_be_written_is_told(tmp_path, world):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with CheckpointStore(tmp_path / "checkpoints", IDENTITY, world, Retention(1)) as store:
        message = r"checkpoints cannot be written: FileExistsError: .*; a writable folder with room is expected"
        with pytest.raises(CheckpointError, match=message):
            store.save(*trained(), {"step": 1})
