"""Embeddings that learn alone get the gradients they have when all learns, at any layout; the layers stay."""

import sys
from dataclasses import replace

import pytest
import torch

from recipes.training.distributed import leave, process_group
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import build_sharded_model, plain_name
from recipes.training.model.freezing import EMBEDDINGS
from recipes.training.model.layout import LayoutSettings
from recipes.training.optimization.guard import Guard, GuardSettings
from recipes.training.optimization.schedule import Schedule
from recipes.training.step import Run, train_step
from tests.distributed.test_gradients import SETTINGS, Rows
from tests.support import launch, tiny_llama, whole

JOBS = {  # trainable, precision, storage of what learns, layout, compiled
    "all": ("all", "fp32", torch.float32, {}, False),
    "alone": ("embeddings", "fp32", torch.float32, {}, False),
    "compiled": ("embeddings", "fp32", torch.float32, {}, True),
    "shared": ("embeddings", "fp32", torch.float32, {"tensor_parallel": 2}, False),
    "gathered once": ("embeddings", "fp32", torch.float32, {"reshard_after_forward": False}, False),
    "all, bf16": ("all", "bf16", torch.float32, {}, False),
    "alone, bf16": ("embeddings", "bf16", torch.float32, {}, False),
    "alone, stored in bf16": ("embeddings", "bf16", torch.bfloat16, {}, False),
}
NORMAL = ["all", "alone", "all, bf16", "alone, bf16", "alone, stored in bf16"]
SLOW = ["all", "alone", "compiled", "shared", "gathered once"]


def main(base: str, out: str, *jobs: str) -> None:
    """One step of plain gradient descent at learning rate 1 for each job: what the weights lose is the gradient."""
    results = {}
    with process_group("cpu") as world:
        for job in jobs:
            trainable, precision, storage, layout, compiled = JOBS[job]
            shared = replace(world, tensor_parallel=layout.get("tensor_parallel", 1))
            directory, architecture = open_weights(base)
            keys = {"layout": LayoutSettings(**layout), "trainable": trainable}
            model = build_sharded_model(architecture, shared, precision, "full", storage, compiled, **keys)
            weights.load(model, directory, architecture)
            parameters = {plain_name(name): p for name, p in model.named_parameters()}
            before = {name: whole(p) for name, p in parameters.items()}
            optimizer = torch.optim.SGD([p for p in parameters.values() if p.requires_grad], lr=1.0)
            rows = Rows(shared.data_rank, shared.data_size, 2)
            run = Run(model, optimizer, rows, Schedule("cosine", steps=1, floor=1.0), [1.0], Guard(GuardSettings()))
            values = train_step(run, SETTINGS, shared, False).metrics
            results[job] = {
                "loss": values["train/loss"],
                "norm": values["train/grad_norm"],
                "dtypes": {name: p.dtype for name, p in parameters.items()},
                "gradients": {name: (before[name] - whole(p)).detach() for name, p in parameters.items()},
            }
        if world.rank == 0:
            torch.save(results, out)


def results_of(folder, ranks, jobs, tied=False):
    base = tiny_llama(folder / f"base-{tied}", vocab_size=50, intermediate_size=192, tie_word_embeddings=tied)
    out = folder / f"{ranks}.pt"
    if ranks == 1:
        main(str(base), str(out), *jobs)
    else:
        script = ["-m", "tests.distributed.test_freezing", str(base), str(out), *jobs]
        launch("torchrun", "--standalone", "--nproc_per_node", str(ranks), *script)
    return torch.load(out, weights_only=False)


def check(result, reference, rtol, atol):
    assert result["loss"] == pytest.approx(reference["loss"], rel=rtol)
    squares = 0.0
    for name, gradient in result["gradients"].items():
        if name in EMBEDDINGS:
            torch.testing.assert_close(gradient, reference["gradients"][name], rtol=rtol, atol=atol)
            assert gradient.any()
            squares += float((gradient.double() ** 2).sum())
        else:
            assert not gradient.any(), f"{name} was changed"
    assert result["norm"] == pytest.approx(squares**0.5, rel=20 * rtol)


@pytest.mark.parametrize("ranks", [1, 2])
def test_embeddings_alone_have_the_gradients_of_all(tmp_path, ranks):
    results = results_of(tmp_path, ranks, NORMAL)
    check(results["alone"], results["all"], 1e-4, 1e-6)
    check(results["alone, bf16"], results["all, bf16"], 1e-2, 1e-3)
    assert results["alone, stored in bf16"]["loss"] == pytest.approx(results["all, bf16"]["loss"], rel=1e-2)
    dtypes = results["alone, bf16"]["dtypes"]
    assert {dtypes[name] for name in EMBEDDINGS} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if name not in EMBEDDINGS} == {torch.bfloat16}
    assert set(results["alone, stored in bf16"]["dtypes"].values()) == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_so_they_have_compiled_shared_and_tied(tmp_path, tied):
    results = results_of(tmp_path, 2, SLOW, tied)
    for job in SLOW[1:]:
        check(results[job], results["all"], 1e-4, 1e-6)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
