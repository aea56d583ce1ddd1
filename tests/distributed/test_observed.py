"""Several ranks score the same text as one, stop together, and report the largest loss among them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data_prep.tokens.shards import Shards, ShardWriter
from recipes.training.data.batches import collate
from recipes.training.data.held_out import open_held_out
from recipes.training.data.packing import Sample
from recipes.training.distributed import leave, process_group
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_sharded_model
from recipes.training.monitoring.validation import batches_of, score
from recipes.training.optimization.guard import Guard, GuardSettings
from recipes.training.optimization.schedule import Schedule
from recipes.training.step import Run, losses_of, train_step
from tests.support import launch

SHAPE = Architecture(
    vocab_size=50, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=16, intermediate_dim=32, max_seq_len=32
)
CFG = OmegaConf.create(
    {"micro_batch": 2, "loss_chunk": 7, "clip_grad_norm": 1e9, "global_batch_tokens": 96, "z_loss": 0.0}
)
NUM_TARGETS = (31, 7, 0)
"""Of the ranks' sequences; the last has none."""


def sequence(rank):
    """32 tokens of which some are targets."""
    random, sample = np.random.default_rng(rank), Sample.empty(32)
    sample.tokens[:], sample.documents[:] = random.integers(0, 50, 32), 0
    sample.targets[: NUM_TARGETS[rank]] = sample.tokens[1 : 1 + NUM_TARGETS[rank]]
    return sample


class OneSequence:
    """A rank's batch at every step."""

    def __init__(self, rank):
        self.batch = collate([sequence(rank)])

    def micro_batches(self, step, device):
        return [self.batch]


def main(shards, out):
    """Scores the text, is asked to stop on rank 1 alone, then trains a step."""
    with process_group("cpu") as world:
        model = build_sharded_model(SHAPE, world, "fp32", "none")
        weights.initialise(model, 0)
        text = open_held_out("ko", Shards.open(Path(shards)), 32, None, None)
        loader = batches_of(text, CFG.micro_batch, world)
        result = {"sequences": text.num_sequences, "scored": score(model, text, loader, CFG, world, [])}
        result["stopped"] = score(model, text, loader, CFG, world, [15] if world.rank == 1 else [])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        schedule, guard = Schedule("cosine", steps=1), Guard(GuardSettings())
        run = Run(model, optimizer, OneSequence(world.rank), schedule, [0.0], guard)
        step = train_step(run, CFG, world, world.rank == 1)
        result |= {"step": step.metrics, "stopping": step.stopping}
        Path(out).with_suffix(f".{world.rank}").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("observed") / "shards", np.random.default_rng(0)
    with ShardWriter(folder) as writer:
        for length in random.integers(2, 90, 17).tolist():
            writer.add(random.integers(0, 50, length).astype(np.uint32))
        settings, sources = {"bos": True, "eos": True}, [{"source": "x", "lang": "ko", "utf8_bytes": 1000}]
        writer.finish({}, tokenizer={"sha256": "none", "vocab_size": 50}, settings=settings, sources=sources)
    return folder


def test_three_ranks_score_and_report_what_one_does(shards, tmp_path):
    script = ["-m", "tests.distributed.test_observed", str(shards)]
    launch("torchrun", "--standalone", "--nproc_per_node", "3", *script, str(tmp_path / "three"))
    ranks = [json.loads((tmp_path / f"three.{rank}").read_text()) for rank in range(3)]
    with process_group("cpu") as world:
        model = build_sharded_model(SHAPE, world, "fp32", "none")
        weights.initialise(model, 0)
        text = open_held_out("ko", Shards.open(shards), 32, None, None)
        nats, targets = score(model, text, batches_of(text, 2, world), CFG, world, [])
        losses = [float(losses_of(model, collate([sequence(rank)]), 0)[1]) for rank in range(3)]
    assert text.num_sequences % (3 * 2)  # in the last round, ranks have less to do than others
    for one in ranks:
        assert one["scored"][1] == targets == text.num_tokens
        assert one["scored"][0] == pytest.approx(nats, rel=1e-6)
        assert one["stopped"] is None
        assert one["stopping"] is True
        assert one["step"]["train/loss"] == pytest.approx(sum(losses) / sum(NUM_TARGETS), rel=1e-5)
        assert one["step"]["train/loss_max_over_ranks"] == pytest.approx(
            max(losses[0] / NUM_TARGETS[0], losses[1] / NUM_TARGETS[1]), rel=1e-5
        )
        assert one["step"] == ranks[0]["step"]  # all ranks come to the same numbers, and to the same verdict


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
