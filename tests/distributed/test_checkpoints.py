"""What two ranks write, any layout reads, tensor for tensor; and what befalls one rank, all are told."""

import json
import resource
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from recipes.training.checkpoints.checkpoint import CheckpointStore
from recipes.training.checkpoints.folder import CheckpointError, Retention, file_problems, read_state
from recipes.training.distributed import leave, process_group
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_sharded_model, plain_name
from recipes.training.model.layout import LayoutSettings
from recipes.training.optimization.adamw import KahanAdamW
from tests.support import launch

SHAPE = Architecture(
    vocab_size=130, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=64, intermediate_dim=160, max_seq_len=32
)
LAYOUTS = {"plain": LayoutSettings(), "replicas": LayoutSettings(replicas=2)}


def build(world, kind, layout, seed):
    """A model with two steps of its optimizer behind it, the same on any layout for the same seed."""
    stored = torch.bfloat16 if kind == "kahan" else torch.float32
    model = build_sharded_model(SHAPE, world, "bf16" if kind == "kahan" else "fp32", "none", stored, layout=layout)
    weights.initialise(model, seed)
    optimizer = optimizer_of(kind, model)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = parameter.detach() * 0.1 + 0.01
        optimizer.step()
    return model, optimizer


def optimizer_of(kind, model):
    if kind == "kahan":
        return KahanAdamW(model.parameters(), lr=1e-2)
    if kind == "8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit(model.parameters(), lr=1e-2)
    return torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)


def whole_state(model, optimizer):
    """All tensors of model and optimizer by name, whole, as plain numbers."""
    found = {}
    for name, parameter in model.named_parameters():
        found[plain_name(name)] = gathered(parameter)
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                found[f"{plain_name(name)} {key}"] = gathered(value)
    return found


def gathered(tensor):
    if not isinstance(tensor, DTensor):
        return plain(tensor)
    local = plain(tensor.to_local())
    spec = tensor.device_mesh, tensor.placements
    return DTensor.from_local(local, *spec, shape=tensor.size(), stride=tensor.stride()).full_tensor()


def plain(tensor):
    tensor = tensor.detach()
    return tensor.dequantize() if hasattr(tensor, "codes") else tensor.clone()


def write(folder, kind, layout):
    """Writes a checkpoint and its values, then fails to write another, as rank 1 alone has no room."""
    with process_group("cpu") as world:
        model, optimizer = build(world, kind, LAYOUTS[layout], seed=0)
        with CheckpointStore(folder / "checkpoints", {}, world, Retention(1)) as store:
            store.save(model, optimizer, {"step": 2})
            expected = whole_state(model, optimizer)
            for parameter in model.parameters():
                parameter.data.zero_()  # what is being written is a copy
            store.wait()
            if world.rank == 0:
                torch.save(expected, folder / "expected.pt")
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))
            store.save(model, optimizer, {"step": 3})
            try:
                store.wait()
                told = "nothing"
            except CheckpointError as error:
                told = str(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
            (folder / f"rank-{world.rank}.txt").write_text(told)


def read(folder, kind, layout):
    """Reads it with other weights in the model before, and writes how far each tensor is off."""
    with process_group("cpu") as world:
        model, optimizer = build(world, kind, LAYOUTS[layout], seed=1)
        with CheckpointStore(folder / "checkpoints", {}, world, Retention(1)) as store:
            state = store.restore(store.newest_sound(), model, optimizer)
        assert state["step"] == 2
        found, expected = whole_state(model, optimizer), torch.load(folder / "expected.pt", weights_only=True)
        assert found.keys() == expected.keys()
        off = {name: float((found[name].float() - expected[name].float()).abs().max()) for name in found}
        if world.rank == 0:
            (folder / "off.json").write_text(json.dumps(off))


def start(ranks, *arguments):
    script = ["-m", "tests.distributed.test_checkpoints", *map(str, arguments)]
    if ranks == 1:
        launch(sys.executable, *script)
    else:
        launch("torchrun", "--standalone", "--nproc_per_node", str(ranks), *script)


@pytest.mark.parametrize("kind", ["adamw", pytest.param("kahan", marks=pytest.mark.slow)])
def test_a_checkpoint_of_two_ranks_is_read_by_one_and_by_replicas(tmp_path, kind):
    start(2, "write", tmp_path, kind, "plain")
    told = {(tmp_path / f"rank-{rank}.txt").read_text() for rank in (0, 1)}
    assert len(told) == 1, "both ranks are told the same"
    assert "cannot be written by rank 1: OSError: [Errno 27] File too large; the older checkpoints" in told.pop()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    newest = tmp_path / "checkpoints/step-00000002"
    files = read_state(newest)["files"]
    assert files.keys() == {"__0_0.distcp", "__1_0.distcp", ".metadata"}
    assert list(file_problems(newest, files)) == []
    for ranks, layout in ((1, "plain"), (2, "replicas")):
        start(ranks, "read", tmp_path, kind, layout)
        off = json.loads((tmp_path / "off.json").read_text())
        assert set(off.values()) == {0.0}, f"{ranks} ranks, {layout}"
        assert len(off) > 40


@pytest.mark.slow
def test_quantised_moments_are_kept_by_the_same_ranks_and_near_by_others(tmp_path):
    start(2, "write", tmp_path, "8bit", "plain")
    for ranks, bound in ((2, 0.0), (1, 2e-4)):  # the moments are about 2e-3
        start(ranks, "read", tmp_path, "8bit", "plain")
        off = json.loads((tmp_path / "off.json").read_text())
        assert max(off.values()) <= bound, max(off, key=off.get)
        assert max(value for name, value in off.items() if " " not in name) == 0.0, "weights are not quantised"


if __name__ == "__main__":
    action, where, *rest = sys.argv[1:]
    {"write": write, "read": read}[action](Path(where), *rest)
    sys.exit(leave(0))
