"""Every way to spare activations gives the same gradients, and does compute again what it says."""

import collections

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recipes.training.model import weights
from recipes.training.model.activations import memory_budget, spare_activations
from recipes.training.model.decoder import Architecture, build_model, plain_name

SHAPE = Architecture(
    vocab_size=64, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=32, intermediate_dim=96, max_seq_len=64
)


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[str(operator).rpartition(".")[0]] += 1
        return operator(*args, **(kwargs or {}))


def run(mode, compiled=False):
    """Returns loss with gradients, the operators called, and the bytes kept for the backward pass."""
    model = build_model(SHAPE)
    weights.initialise(model, 0)
    spare_activations(model.layers, mode)
    for layer in model.layers if compiled else ():
        layer.compile(fullgraph=True, backend="aot_eager_decomp_partition")  # divides as inductor does, and is quick
    random = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(0, 64, (2, 64), generator=random) for _ in range(2))
    inputs = {"mask": torch.ones(2, 64, 64, dtype=torch.bool).tril(), "input_pos": torch.arange(64).expand(2, 64)}
    kept: dict[int, int] = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    calls = Calls()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        if compiled:
            loss, _ = model(tokens, targets=targets, loss_chunk=16, **inputs)
            loss.backward()
        else:
            with calls:
                loss, _ = model(tokens, targets=targets, loss_chunk=16, **inputs)
                loss.backward()
    results = {"loss": loss.detach()} | {plain_name(name): p.grad for name, p in model.named_parameters()}
    return results, calls.counts, sum(kept.values())


def test_each_mode_gives_the_same_bits_and_computes_again_what_it_says():
    plain, counts, _ = run("none")
    for mode in ("full", "selective"):
        results, again, _ = run(mode)
        for name, expected in plain.items():
            assert torch.equal(results[name], expected), f"{mode}: {name}"
        assert again["aten.silu"] == 2 * counts["aten.silu"]
        products, attention = again["aten.mm"] - counts["aten.mm"], "aten._scaled_dot_product_flash_attention_for_cpu"
        if mode == "full":  # up to the last product, whose result nothing needs
            assert products == SHAPE.num_layers * 6
            assert again[attention] == 2 * counts[attention] > 0
        else:
            assert products == 0
            assert again[attention] == counts[attention]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # the compiler's own
def test_a_memory_budget_gives_the_same_gradients_and_keeps_less():
    plain, _, _ = run("none")
    kept = {}
    for mode in ("none", "0.2"):
        torch.compiler.reset()
        with torch._functorch.config.patch(activation_memory_budget=1.0):
            results, _, kept[mode] = run(mode, compiled=True)
        for name, expected in plain.items():
            torch.testing.assert_close(results[name], expected, rtol=1e-3, atol=1e-4, msg=name)
    torch.compiler.reset()
    assert kept["0.2"] < 0.8 * kept["none"]


@pytest.mark.parametrize("mode", ["False", "all", "1.5", "-0.1", "nan"])
def test_another_mode_is_refused(mode):
    message = f"'{mode}' is not known; one of none, full, selective, or a memory budget from 0 to 1"
    with pytest.raises(ValueError, match=message):
        memory_budget(mode)


def test_modes_and_budgets_are_told_apart():
    assert [memory_budget(mode) for mode in ("none", "full", "selective", "0.7", "1")] == [None, None, None, 0.7, 1.0]
