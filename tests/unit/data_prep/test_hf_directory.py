"""Safetensors headers read and planned by hand, against the library that defines them."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.loader import ConfigError
from data_prep.hf_directory import INDEX, ModelDirectory, plan_shards, read_header, write_index


def write(path: Path, header: dict[str, object], data: bytes = bytes(8)) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2]}, r"damaged safetensors header: KeyError\('data_offsets'\); copy it again"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "a has 8 bytes, 12 by its shape and dtype; copy it"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, r"has \d+ bytes where its header says \d+; copy it"),
    ],
)
def test_a_damaged_header_is_an_error(tmp_path: Path, entry: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_header(write(tmp_path / "model.safetensors", {"a": entry}))


def test_planned_shards_are_what_safetensors_reads(tmp_path: Path) -> None:
    planned = [("a", "F32", (5,)), ("b", "I64", (2, 2)), ("c", "F32", ()), ("d", "U8", (100,))]
    shards = plan_shards(planned, max_shard_bytes=55)
    assert [list(shard.tensors) for shard in shards] == [["a", "b"], ["c"], ["d"]]
    for shard in shards:
        (tmp_path / shard.name).write_bytes(shard.header + bytes(shard.num_bytes - len(shard.header)))
    write_index(tmp_path, shards)
    (tmp_path / "config.json").write_text("{}")
    found = {name: tensor for shard in shards for name, tensor in load_file(tmp_path / shard.name).items()}
    assert {name: tensor.shape for name, tensor in found.items()} == {name: shape for name, _, shape in planned}
    assert found["b"].dtype == np.int64
    assert list(ModelDirectory.open(tmp_path).tensors) == ["a", "b", "c", "d"]
    assert json.loads((tmp_path / INDEX).read_text())["metadata"] == {"total_size": 156}
    assert plan_shards(planned)[0].name == "model.safetensors"
