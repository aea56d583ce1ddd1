"""Loading reads the bytes of the rank's own shard and no others, and holds little beside the shard."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from data_prep.hf_directory import TensorWriter
from recipes.training.distributed import leave, process_group
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model, build_sharded_model, plain_name
from tests.support import launch

# an embedding of 80 MB in bf16, of which two blocks would be most; with three ranks a shard holds parts of heads
SHAPE = Architecture(
    vocab_size=40_000, num_layers=1, num_heads=8, num_kv_heads=2, embed_dim=1024, intermediate_dim=512,
    max_seq_len=64,
)  # fmt: skip
SLACK_BYTES = 24 * 2**20
"""For the interpreter's own growth while it loads."""


def write_model(folder: Path) -> None:
    """Writes random bf16 weights in two files."""
    parameters = dict(_meta().named_parameters())
    planned = [(weights.hf_name(name), "BF16", tuple(p.shape)) for name, p in parameters.items()]
    random = np.random.default_rng(0)
    with TensorWriter(folder, planned, max_shard_bytes=100 * 10**6) as writer:
        for name, _, shape in planned:
            values = torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).bfloat16()
            writer.write(name, values.view(torch.uint8).numpy().reshape(-1))
        writer.finish()
    (folder / "config.json").write_text(json.dumps(SHAPE.to_hf(0, [1], "bfloat16")))


def main(folder: str) -> None:
    """Loads, and writes what this rank read and how far its memory rose; rank 0 also the values."""
    directory, architecture = open_weights(folder)
    with process_group("cpu") as world:
        model = build_sharded_model(architecture, world, "fp32", "none")
        local = [(p.to_local() if isinstance(p, DTensor) else p).detach() for p in model.parameters()]
        for part in local:
            part.zero_()  # so that the shard itself is there before
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what it holds now
        before, read = _status("VmHWM"), _bytes_read()
        weights.load(model, directory, architecture)
        facts = {"read": _bytes_read() - read, "rose": _status("VmHWM") - before}
        facts["own"] = sum(part.numel() for part in local) * 2
        (Path(folder) / f"rank-{world.rank}.json").write_text(json.dumps(facts))
        whole = {
            plain_name(name): p.full_tensor() if isinstance(p, DTensor) else p.data
            for name, p in model.named_parameters()
        }
        if world.rank == 0:
            torch.save(whole, Path(folder) / "loaded.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_rank_reads_its_own_bytes_and_holds_one_block_beside_its_shard(tmp_path, ranks):
    write_model(tmp_path)
    script = ["-m", "tests.distributed.test_loading", str(tmp_path)]
    if ranks == 1:
        launch(sys.executable, *script)
    else:
        launch("torchrun", "--standalone", "--nproc_per_node", str(ranks), *script)
    facts = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
    for rank in facts:
        assert rank["own"] <= rank["read"] < rank["own"] + 65_536, rank  # what else is read is /proc and imports
        assert rank["rose"] < weights.BLOCK_BYTES + SLACK_BYTES, rank
    assert sum(rank["own"] for rank in facts) == sum(p.numel() for p in _meta().parameters()) * 2
    loaded = torch.load(tmp_path / "loaded.pt", weights_only=True)
    assert loaded.keys() == dict(_meta().named_parameters()).keys()
    for name, values in loaded.items():
        assert torch.equal(values, _reference(tmp_path, name)), name


def _reference(folder: Path, name: str) -> torch.Tensor:
    """Reads a tensor with another library, and permutes its heads by torchtune's formula."""
    from safetensors import safe_open

    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            if weights.hf_name(name) in tensors.keys():  # noqa: SIM118 - it is no mapping
                values = tensors.get_tensor(weights.hf_name(name)).float()
    heads = {"q_proj": SHAPE.num_heads, "k_proj": SHAPE.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return values
    return values.view(heads, 2, -1, SHAPE.embed_dim).transpose(1, 2).reshape(values.shape)


def _meta() -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(SHAPE)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


if __name__ == "__main__":
    main(sys.argv[1])
    leave(0)
