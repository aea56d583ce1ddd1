"""A step that the guard objects to leaves weights and optimizer as they were, and counts its tokens as skipped."""

import copy

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from recipes.training.data.batches import collate
from recipes.training.data.packing import Sample
from recipes.training.distributed import process_group
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_sharded_model
from recipes.training.optimization.guard import Guard, GuardSettings
from recipes.training.optimization.schedule import Schedule
from recipes.training.step import Run, clip_gradients, largest_loss, train_step
from tests.support import whole

SHAPE = Architecture(
    vocab_size=50, num_layers=1, num_heads=2, num_kv_heads=1, embed_dim=16, intermediate_dim=32, max_seq_len=32
)
CFG = OmegaConf.create({"clip_grad_norm": 1.0, "global_batch_tokens": 32, "loss_chunk": 8, "z_loss": 0.0})


class OneBatch:
    """The same sequence of 30 tokens and 2 of padding at every step."""

    def micro_batches(self, step, device):
        sample = Sample.empty(32)
        sample.tokens[:30] = np.random.default_rng(0).integers(0, 50, 30)
        sample.targets[:29], sample.documents[:30] = sample.tokens[1:30], 0
        return [collate([sample])]


@pytest.fixture
def run():
    with process_group("cpu") as world:
        model = build_sharded_model(SHAPE, world, "fp32", "none")
        weights.initialise(model, 0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        guard = Guard(GuardSettings(window_steps=4))
        yield Run(model, optimizer, OneBatch(), Schedule("cosine", steps=10), [1e-2], guard), world


def state(run):
    parameters = [whole(p) for p in run.model.parameters()]
    moments = [whole(run.optimizer.state[p]["exp_avg"]) for p in run.model.parameters()]
    return parameters + moments


def test_a_skipped_step_changes_neither_weights_nor_moments(run):
    run, world = run
    first = train_step(run, CFG, world, False)
    assert not first.skipped
    before = state(run)
    run.guard = Guard(GuardSettings(window_steps=4), [[0.1, 0.1, False]] * 4)
    result = train_step(run, CFG, world, True)
    assert result.skipped.startswith("loss is ")
    assert result.stopping
    assert all(torch.equal(*pair) for pair in zip(state(run), before, strict=True))
    assert all(p.grad is None for p in run.model.parameters())
    assert run.ledger == {"tokens": 64, "trained": 29, "masked": 1, "padded": 2, "skipped": 32}
    assert run.step == 2
    assert result.metrics["train/skipped_steps"] == 1
    run.guard = Guard(GuardSettings())
    assert not train_step(run, CFG, world, False).skipped
    assert not any(torch.equal(*pair) for pair in zip(state(run), before, strict=True))


def test_gradients_are_clipped_to_their_global_norm_taken_in_fp32(run):
    run, _ = run
    model = copy.deepcopy(list(run.model.parameters()))
    for scale, limit in ((3.0, 1.0), (1e-4, 1.0)):
        for parameter in run.model.parameters():
            parameter.grad = torch.full_like(parameter, scale)
        elements = sum(p.numel() for p in model)
        norm = float(clip_gradients(run.model, limit))
        assert norm == pytest.approx(scale * elements**0.5, rel=1e-6)
        largest = max(float(whole(p.grad).max()) for p in run.model.parameters())
        assert largest == pytest.approx(scale * min(1.0, limit / norm), rel=1e-4)
    linear = torch.nn.Linear(4000, 3, bias=False, dtype=torch.bfloat16)
    linear.weight.grad = torch.full_like(linear.weight, 0.1)
    assert float(clip_gradients(linear, 1e9)) == pytest.approx(
        float(torch.tensor(0.1).bfloat16()) * 12000**0.5, rel=1e-5
    )


class HostReads(TorchDispatchMode):
    """Counts the values that Python asks tensors for; on a GPU, each waits for all that was queued before."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_asks_the_device_for_its_numbers_once(run, monkeypatch):
    run, world = run
    run.optimizer = torch.optim.AdamW(run.model.parameters(), lr=1e-2, fused=True)
    ready = run.batches.micro_batches(0, world.device)  # making one reads tensors, of the CPU
    monkeypatch.setattr(run.batches, "micro_batches", lambda step, device: ready, raising=False)
    lists, plain = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(tensor.shape) or plain(tensor))
    with HostReads() as reads:
        result = train_step(run, CFG, world, False)
    assert reads.count == 0
    assert len(lists) == 1
    assert result.metrics["train/loss_max_over_ranks"] == result.metrics["train/loss"]
    assert 0 < result.metrics["time/data_wait"] < 1
    assert result.metrics["memory/peak_rss_gib"] > 0.01


def test_the_largest_loss_leaves_out_ranks_without_targets_and_shows_what_is_not_finite():
    rows = [{"loss": 6.0, "targets": 3.0}, {"loss": 0.0, "targets": 0.0}, {"loss": 5.0, "targets": 1.0}]
    assert largest_loss(rows) == 5
    assert largest_loss(rows[1:2]) == 0
    assert np.isnan(largest_loss([*rows, {"loss": np.nan, "targets": 2.0}]))
