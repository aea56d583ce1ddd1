"""Ranks that share matrices compute, score, load and resume as one rank does, at any layout."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from data_prep.lineage import sha256_file
from data_prep.tokens.shards import Shards, ShardWriter
from recipes.training.data.held_out import open_held_out
from recipes.training.distributed import World, leave, process_group
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model, build_sharded_model, plain_name
from recipes.training.model.layout import LayoutSettings
from recipes.training.model.loss import IGNORE
from recipes.training.monitoring.validation import batches_of, free_gathered, score
from recipes.training.optimization.guard import Guard, GuardSettings
from recipes.training.optimization.schedule import Schedule
from recipes.training.step import Run, train_step
from tests.distributed.test_gradients import ROWS, SEQ_LEN, Rows, documents_of_rows, whole_batch
from tests.distributed.test_loading import _bytes_read, _reference, write_model
from tests.recipes.conftest import write_cpt_config
from tests.support import launch, losses, metrics, random_shards, tiny_llama, tiny_tokenizer, tune_run, whole

# as many heads of keys and values as ranks that share; with two of them, parts of unequal size for FSDP
GROUPED = Architecture(
    vocab_size=54, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=16, intermediate_dim=36, max_seq_len=32
)
TIED = replace(GROUPED, tied_embeddings=True, num_kv_heads=4)
FOUR = replace(GROUPED, vocab_size=52, num_kv_heads=4)
VOCAB = 50
"""Of the tokens in the data."""
Z_LOSS = 0.05
JOBS = {
    "shared": (GROUPED, LayoutSettings(tensor_parallel=2), {}),
    "replicas": (GROUPED, LayoutSettings(replicas=2), {}),
    "selective": (TIED, LayoutSettings(tensor_parallel=2), {"activations": "selective", "loss_chunk": 0}),
    "shared and sharded": (GROUPED, LayoutSettings(tensor_parallel=2, prefetch_layers=1), {"micro_batch": 2}),
    "shared in replicas": (TIED, LayoutSettings(tensor_parallel=2, replicas=2), {}),
    "shared by four": (FOUR, LayoutSettings(tensor_parallel=4, reduce_every_micro_batch=True), {}),
    "compiled": (GROUPED, LayoutSettings(tensor_parallel=2), {"activations": "0.7", "compiled": True}),
    "compiled replicas": (GROUPED, LayoutSettings(replicas=2), {"compiled": True}),
}


def main(out: str, *jobs: str) -> None:
    """Does the jobs; rank 0 writes what came out."""
    results = {}
    with process_group("cpu") as world:
        for job in jobs:
            shape, layout, options = JOBS[job]
            results[job] = train_and_score(
                shape, layout, replace(world, tensor_parallel=layout.tensor_parallel), **options
            )
        if world.rank == 0:
            torch.save(results, out)


def train_and_score(
    shape: Architecture, layout: LayoutSettings, world: World,
    micro_batch: int = 1, activations: str = "full", compiled: bool = False, loss_chunk: int = 7,
) -> dict:  # fmt: skip
    """One step of plain gradient descent at learning rate 1: what the weights lose is the gradient. Before, a score."""
    model = build_sharded_model(shape, world, "fp32", activations, compiled=compiled, layout=layout)
    weights.initialise(model, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = {plain_name(n): whole(p).clone() for n, p in model.named_parameters()}
    cfg = settings(micro_batch, loss_chunk)
    text = held_out(Path(sys.argv[1]).parent / "held-out")
    scored = score(model, text, batches_of(text, micro_batch, world), cfg, world, [])
    free_gathered(model)
    rows = Rows(world.data_rank, world.data_size, micro_batch)
    run = Run(model, optimizer, rows, Schedule("cosine", steps=1, floor=1.0), [1.0], Guard(GuardSettings()))
    values = train_step(run, cfg, world, False).metrics
    gradients = {plain_name(n): before[plain_name(n)] - whole(p) for n, p in model.named_parameters()}
    return {"scored": scored, "metrics": values, "gradients": gradients, "ledger": run.ledger}


def load_shared(folder: str) -> None:
    """Loads where matrices are shared and sharded, and writes what this rank read; rank 0 also the values."""
    directory, architecture = open_weights(folder)
    with process_group("cpu", tensor_parallel=2) as world:
        model = build_sharded_model(architecture, world, "fp32", "none", layout=LayoutSettings(tensor_parallel=2))
        read = _bytes_read()
        weights.load(model, directory, architecture)
        facts = {"read": _bytes_read() - read, "own": sum(p.to_local().numel() for p in model.parameters()) * 2}
        (Path(folder) / f"rank-{world.rank}.json").write_text(json.dumps(facts))
        values = {plain_name(name): p.full_tensor() for name, p in model.named_parameters()}
        if world.rank == 0:
            torch.save(values, Path(folder) / "loaded.pt")


def settings(micro_batch: int, loss_chunk: int):
    keys = {"clip_grad_norm": 1e9, "global_batch_tokens": SEQ_LEN * ROWS, "z_loss": Z_LOSS}
    return OmegaConf.create(keys | {"micro_batch": micro_batch, "loss_chunk": loss_chunk})


def held_out(folder: Path):
    return open_held_out("ko", Shards.open(folder), SEQ_LEN, None, None)


def reference(shape: Architecture) -> tuple[float, float, dict[str, torch.Tensor]]:
    """The cross-entropy and z-loss of the batch and their gradients, without any of our loop."""
    model = build_model(shape)
    weights.initialise(model, 0)
    batch, documents = whole_batch(), documents_of_rows()
    mask = (documents[:, :, None] == documents[:, None, :]).tril()
    logits = model(batch.tokens, mask=mask, input_pos=batch.positions).flatten(0, 1)
    targets = batch.targets.flatten()
    cross_entropy = F.cross_entropy(logits, targets, ignore_index=IGNORE)
    z_loss = Z_LOSS * (logits.logsumexp(1)[targets != IGNORE] ** 2).mean()
    (cross_entropy + z_loss).backward()
    return float(cross_entropy.detach()), float(z_loss.detach()), {n: p.grad for n, p in model.named_parameters()}


def check(folder: Path, ranks: int, *jobs: str) -> None:
    """Runs jobs on some ranks and compares with one rank, and with the reference."""
    write_held_out(folder / "held-out")
    script = ["-m", "tests.distributed.test_tensor_parallel", str(folder / "out.pt"), *jobs]
    launch("torchrun", "--standalone", "--nproc_per_node", str(ranks), *script, timeout=600)
    results = torch.load(folder / "out.pt", weights_only=False)
    text = held_out(folder / "held-out")
    for job, found in results.items():
        shape = JOBS[job][0]
        cross_entropy, z_loss, gradients = reference(shape)
        assert found["metrics"]["train/loss"] == pytest.approx(cross_entropy, rel=1e-5), job
        assert found["metrics"]["train/z_loss"] == pytest.approx(z_loss, rel=1e-4), job
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        assert found["metrics"]["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4), job
        assert found["gradients"].keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found["gradients"][name], gradient, atol=2e-6, rtol=1e-4, msg=f"{job}: {name}")
        valid = int((whole_batch().targets != IGNORE).sum())
        assert (found["ledger"]["tokens"], found["ledger"]["trained"]) == (SEQ_LEN * ROWS, valid)
        with process_group("cpu") as world:
            model = build_sharded_model(shape, world, "fp32", "none")
            weights.initialise(model, 0)
            nats, targets = score(model, text, batches_of(text, 2, world), settings(2, 7), world, [])
        assert found["scored"][1] == targets == text.num_tokens
        assert found["scored"][0] == pytest.approx(nats, rel=1e-6), job


def write_held_out(folder: Path) -> None:
    """Writes documents whose sequences do not divide over the ranks."""
    random = np.random.default_rng(0)
    with ShardWriter(folder) as writer:
        for length in random.integers(2, 40, 11).tolist():
            writer.add(random.integers(0, VOCAB, length).astype(np.uint32))
        made = {"settings": {"bos": True, "eos": True}, "sources": [{"source": "x", "lang": "ko", "utf8_bytes": 1000}]}
        writer.finish({}, tokenizer={"sha256": "none", "vocab_size": VOCAB}, **made)


def test_two_ranks_that_share_matrices_or_hold_a_model_each_are_one_rank(tmp_path):
    check(tmp_path, 2, "shared", "replicas", "selective")


def test_four_ranks_share_shard_and_replicate(tmp_path):
    check(tmp_path, 4, "shared and sharded", "shared in replicas", "shared by four")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_layers_share_matrices_too(tmp_path):
    check(tmp_path, 2, "compiled", "compiled replicas")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_reads_its_own_rows_and_columns_and_no_others(tmp_path):
    write_model(tmp_path)
    script = ["-m", "tests.distributed.test_tensor_parallel", "load", str(tmp_path)]
    launch("torchrun", "--standalone", "--nproc_per_node", "4", *script)
    for rank in range(4):
        facts = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert facts["own"] <= facts["read"] < facts["own"] + 65_536, facts  # what else is read is /proc and imports
    for name, values in torch.load(tmp_path / "loaded.pt", weights_only=True).items():
        assert torch.equal(values, _reference(tmp_path, name)), name


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    base = tiny_llama(tiny_tokenizer(folder / "base"), num_key_value_heads=4)
    shards = random_shards(folder / "shards", sha256=sha256_file(base / "tokenizer.json"))
    return write_cpt_config(folder, base, shards)


def run(config: Path, ranks: int, out: Path, *overrides: str) -> list[float]:
    """Runs the documented command; returns the losses of all its steps."""
    tune_run(ranks, "cpt", config, f"output_dir={out}", *overrides)
    return losses(out)


def cut_back(source: Path, out: Path) -> Path:
    """Copies a run as it was behind step 3."""
    shutil.copytree(source, out)
    shutil.rmtree(out / "checkpoints/step-00000006")
    return out


SHARED = ["layout.tensor_parallel=2", "micro_batch=1"]


@pytest.mark.slow
def test_a_run_goes_on_at_another_layout(config, tmp_path):
    straight = run(config, 1, tmp_path / "one")
    assert run(config, 4, tmp_path / "two-by-two", *SHARED) == pytest.approx(straight, rel=1e-5)
    rows = [metrics(tmp_path / name) for name in ("one", "two-by-two")]
    for ours, theirs in zip(*rows, strict=True):
        assert theirs["train/grad_norm"] == pytest.approx(ours["train/grad_norm"], rel=1e-4)
        same = ("train/tokens", "train/targets", "train/lr")
        assert [theirs[name] for name in same] == [ours[name] for name in same]
        assert theirs["speed/tokens_per_second"] == pytest.approx(4 * theirs["speed/tokens_per_second_per_rank"])
    alone = cut_back(tmp_path / "two-by-two", tmp_path / "alone")
    assert run(config, 1, alone) == pytest.approx(straight, rel=1e-5)


KAHAN = ["precision=bf16", "optimizer._component_=recipes.training.optimization.adamw.KahanAdamW", "optimizer.lr=1e-3"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("optimizer", "tolerance"), [([], 1e-5), (KAHAN, 2e-3)], ids=["adamw", "kahan"])
def test_one_by_four_two_by_two_four_and_one_go_on_from_one_another(config, tmp_path, optimizer, tolerance):
    straight = run(config, 1, tmp_path / "straight", *optimizer)
    last = tmp_path / "straight"
    layouts = [(4, "layout.tensor_parallel=4"), (4, SHARED[0]), (2, SHARED[0]), (4, "layout.replicas=2"), (1, "seed=0")]
    for number, (ranks, layout) in enumerate(layouts):
        last = cut_back(last, tmp_path / str(number))
        found = run(config, ranks, last, "micro_batch=1", layout, *optimizer)
        assert found == pytest.approx(straight, rel=tolerance), layout
    assert straight[-1] < straight[0] - 0.2


def test_what_cannot_be_shared_is_refused_before_a_model_is_built(config, tmp_path):
    result = tune_run(2, "cpt", config, f"output_dir={tmp_path}", "layout.tensor_parallel=3", check=False)
    assert (
        "layout.tensor_parallel: 3 do not divide 2 ranks; every group needs as many; set one of 1, 2" in result.stderr
    )
    assert "3 does not divide num_heads=4, num_kv_heads=4, intermediate_dim=160, vocab_size=512; each" in result.stderr


if __name__ == "__main__":
    if sys.argv[1] == "load":
        load_shared(sys.argv[2])
    else:
        main(*sys.argv[1:])
    leave(0)
