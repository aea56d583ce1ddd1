"""One and two ranks give the adapters the same gradients, over a base that FSDP2 shards in fp32 or in NF4."""

import sys

import pytest
import torch

from recipes.training.distributed import leave, process_group
from recipes.training.loop import open_weights
from recipes.training.model.adapter_files import load_base
from recipes.training.model.adapters import AdapterSettings, is_adapter
from recipes.training.model.decoder import build_sharded_model, plain_name
from recipes.training.model.weights import fill_rows
from recipes.training.optimization.guard import Guard, GuardSettings
from recipes.training.optimization.schedule import Schedule
from recipes.training.step import Run, train_step
from tests.distributed.test_gradients import SETTINGS, Rows
from tests.support import launch, tiny_llama, whole

CASES = {
    "lora": AdapterSettings(rank=3),
    "qlora": AdapterSettings(rank=4, quantize_base="nf4", modules=["q_proj", "k_proj", "down_proj"]),
    "qdora": AdapterSettings(rank=4, kind="dora", quantize_base="nf4"),
}


def main(base: str, out: str) -> None:
    """One step of plain gradient descent at learning rate 1 for each case: what the adapters lose is the gradient."""
    results = {}
    with process_group("cpu") as world:
        for case, adapter in CASES.items():
            directory, architecture = open_weights(base)
            model = build_sharded_model(architecture, world, "fp32", "full", torch.float32, adapter=adapter)
            load_base(model, directory, architecture, seed=0)
            random = torch.Generator().manual_seed(0)
            parameters = {plain_name(name): p for name, p in model.named_parameters()}
            for name, parameter in parameters.items():
                if name.endswith("lora_b"):  # zeros would hide A's gradient
                    noise = torch.randn(parameter.shape, generator=random) * 0.05
                    fill_rows(parameter, lambda start, stop, noise=noise: noise[start:stop])
            before = {name: whole(p) for name, p in parameters.items()}
            optimizer = torch.optim.SGD([p for p in parameters.values() if p.requires_grad], lr=1.0)
            rows = Rows(world.rank, world.size, 2)
            run = Run(model, optimizer, rows, Schedule("cosine", steps=1, floor=1.0), [1.0], Guard(GuardSettings()))
            values = train_step(run, SETTINGS, world, False).metrics
            after = {name: whole(p) for name, p in parameters.items()}
            results[case] = {
                "loss": values["train/loss"],
                "norm": values["train/grad_norm"],
                "before": before,
                "after": after,
            }
    if world.rank == 0:
        torch.save(results, out)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    base = tiny_llama(folder / "base", vocab_size=50, intermediate_size=192)
    script = ["-m", "tests.distributed.test_adapters", str(base)]
    main(str(base), str(folder / "1.pt"))
    launch("torchrun", "--standalone", "--nproc_per_node", "2", *script, str(folder / "2.pt"))
    return [torch.load(folder / f"{ranks}.pt", weights_only=True) for ranks in (1, 2)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_gradients_of_one_and_leave_the_base_alone(results, case):
    one, two = (result[case] for result in results)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["norm"] == pytest.approx(one["norm"], rel=1e-4)
    assert one["before"].keys() == two["before"].keys()
    moved = 0
    for name, before in one["before"].items():
        assert torch.equal(two["before"][name], before), f"{name} is loaded differently by two ranks"
        gradients = [before - result["after"][name] for result in (one, two)]
        if is_adapter(name):
            torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)
            moved += bool(gradients[0].any())
        else:
            assert torch.equal(two["after"][name], before), f"{name} was changed"
            assert not gradients[0].any(), f"{name} was changed"
    parts = 3 if CASES[case].kind == "dora" else 2
    assert moved == 2 * len(CASES[case].modules) * parts


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    leave(0)
