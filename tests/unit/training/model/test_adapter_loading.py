"""A base is quantised as it is read: beside the packed model, loading holds a matrix, not the model in bf16."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.hf_directory import TensorWriter
from recipes.training.distributed import process_group
from recipes.training.loop import open_weights
from recipes.training.model.adapter_files import load_base
from recipes.training.model.adapters import AdapterSettings
from recipes.training.model.decoder import Architecture, build_model, build_sharded_model
from recipes.training.model.weights import hf_name
from tests.support import launch

SHAPE = Architecture(
    vocab_size=1000, num_layers=16, num_heads=16, num_kv_heads=4, embed_dim=1024, intermediate_dim=3584
)


def write_base(folder):
    """Writes 430 MB of random bf16 weights; returns the bytes, and those of the largest tensor."""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in build_model(SHAPE).named_parameters()}
    some = torch.randn(2**16, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16().view(torch.uint8).numpy()
    sizes = {name: 2 * int(np.prod(shape)) for name, shape in shapes.items()}
    with TensorWriter(folder, [(hf_name(name), "BF16", shape) for name, shape in shapes.items()]) as writer:
        for name, size in sizes.items():
            writer.write(hf_name(name), np.resize(some, size))
        writer.finish()
    (folder / "config.json").write_text(json.dumps(SHAPE.to_hf(0, [1], "bfloat16")))
    return sum(sizes.values()), max(sizes.values())


def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main(folder, quantize):
    """Prints the bytes of the loaded model, and what the process held at its peak above what it had before."""
    with process_group("cpu") as world:
        directory, architecture = open_weights(folder)
        adapter = AdapterSettings(quantize_base="nf4" if quantize else None)
        model = build_sharded_model(architecture, world, "bf16", "full", torch.bfloat16, adapter=adapter)
        before = memory("VmRSS")
        load_base(model, directory, architecture, seed=0)
        print(json.dumps({"own": sum(p.nbytes for p in model.parameters()), "held": memory("VmHWM") - before}))


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's figures of a process")
def test_quantising_holds_a_matrix_beside_the_model(tmp_path):
    total, largest = write_base(tmp_path)
    script = [sys.executable, "-m", "tests.unit.training.model.test_adapter_loading", str(tmp_path)]
    packed, plain = (json.loads(launch(*script, mode).stdout.splitlines()[-1]) for mode in ("nf4", "bf16"))
    assert plain["own"] > total
    assert packed["own"] < 0.33 * total
    beside = packed["held"] - packed["own"]
    assert beside < largest + 150 * 2**20, "a matrix, and what packing `CHUNK` weights of it takes"
    assert packed["held"] < 0.75 * total < plain["held"]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "nf4")
