"""Token shards are compared with their checksums before a run's first step."""

import re
from types import SimpleNamespace

import pytest
import torch

from data_prep.document import CorpusError
from data_prep.tokens.shards import Shards
from recipes.training.data.packing import TokenStream
from recipes.training.data.verification import verify_shards
from recipes.training.distributed import World
from tests.support import random_shards

ALONE = World(0, 1, torch.device("cpu"), None)


@pytest.fixture
def sources(tmp_path):
    chat = SimpleNamespace(fingerprint="a chat source has no shards")
    return [
        TokenStream(Shards.open(random_shards(tmp_path / name, seed=seed)), 64, 0) for seed, name in enumerate("ab")
    ] + [chat]


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_whole_shards_pass(sources):
    verify_shards(sources, ALONE)


@pytest.mark.parametrize("name", ["shard-00000.bin", "shard-00000.idx"])
def test_a_flipped_bit_is_named_by_its_file(sources, tmp_path, name):
    flip(tmp_path / "b" / name, 8)
    with pytest.raises(CorpusError, match=re.escape(f"{tmp_path / 'b' / name} has SHA-256 ")):
        verify_shards(sources, ALONE)


def test_every_damaged_file_is_named(sources, tmp_path):
    flip(tmp_path / "a/shard-00000.bin", 0)
    (tmp_path / "b/shard-00000.idx").unlink()
    with pytest.raises(CorpusError, match=r"a/shard-00000.bin has SHA-256 .*b/shard-00000.idx is missing"):
        verify_shards(sources, ALONE)
