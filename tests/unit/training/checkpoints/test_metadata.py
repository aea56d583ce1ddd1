"""A checkpoint from somebody else cannot run code: its pickled table of contents and values are read by a list."""

import pickle
import re
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict

from recipes.training.checkpoints.checkpoint import CheckpointError, load_tensors
from recipes.training.checkpoints.metadata import UnsafeCheckpointError, read_metadata


class Bomb:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a model and its AdamW, with the trace that a bomb would leave beside it."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25, betas=(0.9, 0.95))
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    save(dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)), tmp_path / "step")
    return tmp_path / "step"


def save(tensors, folder):
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one process writes alone
        dcp.save(tensors, checkpoint_id=str(folder), no_dist=True)


def rewrite(checkpoint, change):
    found = read_metadata(checkpoint)
    change(found)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(found))


def test_the_list_has_all_that_a_checkpoint_holds(checkpoint):
    wanted = {"model": {"weight": torch.zeros(4, 4)}, "optimizer": {"param_groups": [{"lr": 0.0, "betas": None}]}}
    load_tensors(checkpoint, wanted, alone=True)
    assert wanted["model"]["weight"].abs().sum() > 0
    assert wanted["optimizer"]["param_groups"] == [{"lr": 0.25, "betas": (0.9, 0.95)}]
    with (checkpoint / ".metadata").open("rb") as file:
        assert read_metadata(checkpoint) == pickle.load(file)  # what this test wrote


@pytest.mark.parametrize("place", ["instead of the table", "within the table"])
def test_a_table_of_contents_that_calls_a_function_is_refused_uncalled(checkpoint, tmp_path, place):
    trace = tmp_path / "trace"
    bomb = Bomb(trace)
    if place == "instead of the table":
        (checkpoint / ".metadata").write_bytes(pickle.dumps(bomb))
    else:
        rewrite(checkpoint, lambda found: setattr(found, "planner_data", bomb))
    with pytest.raises(CheckpointError, match=r"names _?io\.open, which could run code"):
        load_tensors(checkpoint, {"model": {"weight": torch.zeros(4, 4)}}, alone=True)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "torch.hub.load", "pathlib.os"])
def test_a_global_outside_the_list_is_refused(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    (tmp_path / ".metadata").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(UnsafeCheckpointError, match=re.escape(f"names {name}, which could run code")):
        read_metadata(tmp_path)


def test_a_value_that_is_no_tensor_cannot_run_code_either(tmp_path):
    trace = tmp_path / "trace"
    save({"optimizer": {"lr": Bomb(trace)}}, tmp_path / "step")
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(tmp_path / "step", {"optimizer": {"lr": 0.0}}, alone=True)
    assert not trace.exists()


def test_an_object_does_not_take_the_place_of_a_tensor(checkpoint):
    def change(found):
        found.state_dict_metadata["model.weight"] = BytesStorageMetadata()

    rewrite(checkpoint, change)
    with pytest.raises(CheckpointError, match=r"model\.weight is stored as an object; a tensor is expected"):
        load_tensors(checkpoint, {"model": {"weight": torch.zeros(4, 4)}}, alone=True)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", "part/file"])
def test_a_data_file_outside_the_checkpoint_is_refused(checkpoint, name):
    def change(found):
        for place in found.storage_data.values():
            place.relative_path = name

    rewrite(checkpoint, change)
    with pytest.raises(CheckpointError, match=re.escape(f"in the file {name!r}; files of the checkpoint's own folder")):
        load_tensors(checkpoint, {"model": {"weight": torch.zeros(4, 4)}}, alone=True)


def test_parts_that_leave_a_tensor_unfilled_are_refused(checkpoint):
    rewrite(checkpoint, lambda found: found.state_dict_metadata["model.weight"].chunks.clear())
    with pytest.raises(UnsafeCheckpointError, match=r"parts of model\.weight with 0 numbers in all; 16 are expected"):
        read_metadata(checkpoint)


def test_no_flipped_or_missing_byte_of_the_table_ends_in_another_error(checkpoint):
    path = checkpoint / ".metadata"
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        for damaged in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]):
            path.write_bytes(damaged)
            try:
                read_metadata(checkpoint)
            except UnsafeCheckpointError:
                refused += 1
    assert refused > len(whole) / 14
