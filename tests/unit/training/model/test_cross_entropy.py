"""The chunked loss and its gradients against fp64, whatever the chunk, and what it holds in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from recipes.training.model import weights
from recipes.training.model.cross_entropy import Scratch, _loss_and_gradient, linear_cross_entropy
from recipes.training.model.decoder import Architecture, build_model
from recipes.training.model.loss import IGNORE

ROWS, VOCAB, DIM = (2, 37), 90, 24


def inputs(dtype=torch.float32, ignored=0.3, size=ROWS):
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(*size, DIM, generator=random).to(dtype)
    weight = (torch.randn(VOCAB, DIM, generator=random) * 0.4).to(dtype)
    targets = torch.randint(0, VOCAB, size, generator=random)
    targets[torch.rand(size, generator=random) < ignored] = IGNORE
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def reference(hidden, weight, targets, z_loss):
    """Both sums and the gradients in fp64, in the plain form."""
    hidden, weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    logits = hidden @ weight.t()
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    objective = loss + z_loss * (logits.logsumexp(-1)[targets != IGNORE] ** 2).sum()
    objective.backward()
    return float(objective.detach()), float(loss.detach()), hidden.grad, weight.grad


@pytest.mark.parametrize("chunk", [0, 1, 7, 16, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 0.05])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_fp32_loss_and_gradients_are_those_of_fp64(chunk, z_loss, ignored):
    hidden, weight, targets = inputs(ignored=ignored)
    objective, loss = linear_cross_entropy(hidden, weight, targets, chunk, z_loss)
    (objective / 3).backward()
    expected = reference(hidden, weight, targets, z_loss)
    assert float(objective.detach()) == pytest.approx(expected[0], rel=1e-6)
    assert float(loss) == pytest.approx(expected[1], rel=1e-6)
    torch.testing.assert_close(hidden.grad.double(), expected[2] / 3, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight.grad.double(), expected[3] / 3, rtol=1e-4, atol=1e-6)


def test_bf16_is_no_further_from_fp64_than_the_plain_form_and_its_loss_is_summed_in_fp32():
    def errors(chunk):
        hidden, weight, targets = inputs(torch.bfloat16, size=(4, 2048))
        objective, _ = linear_cross_entropy(hidden, weight, targets, chunk)
        objective.backward()
        exact = reference(hidden, weight, targets, 0.0)
        gradients = zip((hidden.grad, weight.grad), exact[2:], strict=True)
        return abs(float(objective.detach()) / exact[0] - 1), *(
            float((found.double() - wanted).norm() / wanted.norm()) for found, wanted in gradients
        )

    plain, chunked = errors(0), errors(64)
    assert chunked[0] < 1e-4  # summed in bf16 it would be some percent off
    assert all(ours < 1.3 * theirs + 1e-4 for ours, theirs in zip(chunked, plain, strict=True))


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operator returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        tensors = [t for t in (result if isinstance(result, tuple | list) else [result]) if torch.is_tensor(t)]
        self.elements = max([self.elements, *(t.numel() for t in tensors)])
        return result


def test_the_largest_tensor_does_not_grow_with_the_batch():
    sizes = {}
    for rows in (64, 640):
        hidden, weight, targets = inputs(size=(1, rows))
        narrow = [t[..., :2].detach().requires_grad_() for t in (hidden, weight)]
        with Largest() as largest:
            linear_cross_entropy(*narrow, targets, 32)[0].backward()
        sizes[rows] = largest.elements
    assert sizes[64] == 32 * VOCAB
    assert sizes[640] == 32 * VOCAB
    with Largest() as largest:
        linear_cross_entropy(*inputs(size=(1, 640)), 0)[0].backward()
    assert largest.elements == 640 * VOCAB


@pytest.mark.parametrize("chunk", [0, 16])
def test_without_targets_the_loss_and_all_gradients_are_zero(chunk):
    hidden, weight, targets = inputs()
    objective, loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE), chunk, 0.1)
    objective.backward()
    assert float(objective.detach()) == float(loss) == 0
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("z_loss", [0.0, 0.05])
def test_positions_that_a_gpu_does_not_leave_out_have_no_loss_and_no_gradient(z_loss):
    random = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(5, VOCAB, generator=random), torch.tensor([3, IGNORE, 0, IGNORE, VOCAB - 1])
    counted, alone = logits[targets != IGNORE], logits.clone()
    sums = _loss_and_gradient(alone, targets, z_loss, all_count=False)
    torch.testing.assert_close(sums, _loss_and_gradient(counted, targets[targets != IGNORE], z_loss, all_count=True))
    assert (alone[targets == IGNORE] == 0).all()
    torch.testing.assert_close(alone[targets != IGNORE], counted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_memory_changes_no_number_and_is_taken_again(dtype):
    scratch, places = Scratch(), set()
    for ignored, rows in ((0.3, 37), (0.0, 20), (0.3, 37)):  # its values of the step before must not be seen
        found = []
        for memory in (scratch, None):
            hidden, weight, targets = inputs(dtype, ignored, size=(2, rows))
            objective, _ = linear_cross_entropy(hidden, weight, targets, 16, 0.01, memory)
            objective.backward()
            found.append([objective, hidden.grad, weight.grad])
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))
        places.add(scratch.take(16, VOCAB, weight, torch.float32).data_ptr())
    assert len(places) == 1


def test_memory_kept_by_a_validation_serves_the_step_after_it():
    scratch, (hidden, weight, targets) = Scratch(), inputs()
    with torch.inference_mode():
        linear_cross_entropy(hidden, weight, targets, 16, 0.0, scratch)
    linear_cross_entropy(hidden, weight, targets, 16, 0.0, scratch)[0].backward()
    assert hidden.grad.isfinite().all()


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, targets = inputs()
    linear_cross_entropy(hidden, weight.detach(), targets, 16)[0].backward()
    assert hidden.grad is not None
    with torch.no_grad():
        objective, _ = linear_cross_entropy(hidden, weight, targets, 16)
    assert not objective.requires_grad
    assert weight.grad is None


def test_a_second_backward_pass_is_refused_instead_of_being_wrong():
    objective, _ = linear_cross_entropy(*inputs(), 16)
    objective.backward(torch.tensor(0.5), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        objective.backward()


def test_a_loss_of_large_logits_stays_finite():
    hidden, weight, targets = inputs()
    expected = reference(hidden * 1000, weight, targets, 0.0)
    objective, _ = linear_cross_entropy((hidden * 1000).detach().requires_grad_(), weight, targets, 16)
    objective.backward()
    assert float(objective.detach()) == pytest.approx(expected[0], rel=1e-5)
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_models_loss_and_gradients_are_those_of_its_logits(tied):
    shape = Architecture(
        vocab_size=50, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=16, intermediate_dim=32, max_seq_len=32,
        tied_embeddings=tied,
    )  # fmt: skip
    tokens = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(1))
    targets = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(2))
    targets[0, 5:] = IGNORE
    gradients = []
    for chunk in (None, 8):
        model = build_model(shape)
        weights.initialise(model, 0)
        if chunk:
            loss, _ = model(tokens, targets=targets, loss_chunk=chunk)
        else:
            loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
        loss.backward()
        gradients.append({"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()})
    assert ("output.weight" in gradients[0]) is not tied
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-5, msg=name)
