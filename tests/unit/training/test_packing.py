"""Packed documents do not see one another, and their packed loss is their loss alone."""

import numpy as np
import pytest
import torch

from recipes.training.data.batches import collate
from recipes.training.data.packing import PADDING, Sample
from recipes.training.model import weights
from recipes.training.model.attention import use_own_attention
from recipes.training.model.decoder import Architecture, build_model
from recipes.training.model.loss import IGNORE, summed_cross_entropy

SHAPE = Architecture(
    vocab_size=50, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=32, intermediate_dim=64, max_seq_len=64
)
LENGTHS = (11, 5, 20)


@pytest.fixture(scope="module")
def stock():
    """The decoder of torchtune itself, for documents that stand alone."""
    model = build_model(SHAPE)
    weights.initialise(model, 0)
    return model.eval()


@pytest.fixture(params=["per_document", "mask"])
def model(request):
    """The decoder as it is trained."""
    model = build_model(SHAPE)
    use_own_attention(model.layers, request.param)
    weights.initialise(model, 0)
    return model.eval()


def packed(documents):
    sample = Sample.empty(48)
    start = 0
    for number, ids in enumerate(documents):
        end = start + len(ids)
        sample.tokens[start:end], sample.documents[start:end] = ids, number
        sample.targets[start : end - 1] = ids[1:]
        start = end
    return collate([sample])


def documents(seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 50, n) for n in LENGTHS]


def logits_of(model, batch):
    with torch.no_grad():
        return model(batch.tokens, mask=batch.documents, input_pos=batch.positions)


def test_packed_loss_is_the_sum_of_the_documents_losses(model, stock):
    batch = packed(documents())
    assert batch.padding == 48 - sum(LENGTHS)
    alone = 0.0
    for ids in documents():
        row = torch.from_numpy(ids)[None]
        with torch.no_grad():
            alone += float(summed_cross_entropy(stock(row[:, :-1]), row[:, 1:]))
    assert float(summed_cross_entropy(logits_of(model, batch), batch.targets)) == pytest.approx(alone, rel=1e-5)


def test_changing_one_document_moves_no_logit_of_the_others(model):
    changed = documents()
    changed[1] = (changed[1] + 7) % 50
    before, after = (logits_of(model, packed(d))[0] for d in (documents(), changed))
    first, second = LENGTHS[0], LENGTHS[0] + LENGTHS[1]
    assert torch.equal(before[:first], after[:first])
    assert not torch.allclose(before[first:second], after[first:second])
    assert torch.equal(before[second : sum(LENGTHS)], after[second : sum(LENGTHS)])


def test_logits_and_gradients_are_those_of_torchtunes_decoder_with_a_dense_mask(model, stock):
    batch = packed(documents())
    numbers = torch.bucketize(torch.arange(48), torch.tensor(batch.documents.ends), right=True)
    dense = (numbers[:, None] == numbers).tril()[None]
    wanted = stock(batch.tokens, mask=dense, input_pos=batch.positions)
    found = model(batch.tokens, mask=batch.documents, input_pos=batch.positions)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    loss = summed_cross_entropy(wanted, batch.targets)
    gradients = torch.autograd.grad(loss, list(stock.parameters()))
    objective, _ = model(
        batch.tokens, targets=batch.targets, loss_chunk=7, mask=batch.documents, input_pos=batch.positions
    )
    objective.backward()
    ours = dict(model.named_parameters())
    for (name, _), gradient in zip(stock.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(ours[name].grad, gradient, rtol=1e-4, atol=1e-5)


def test_padding_is_no_target_and_gives_no_nan(model):
    batch = packed(documents()[:1])
    assert (batch.targets[0, LENGTHS[0] - 1 :] == IGNORE).all()
    assert logits_of(model, batch).isfinite().all()
    assert PADDING < 0


def test_a_batch_without_targets_has_loss_zero_and_zero_gradients(model):
    batch = packed(documents())
    targets = torch.full_like(batch.targets, IGNORE)
    loss = summed_cross_entropy(model(batch.tokens, mask=batch.documents, input_pos=batch.positions), targets)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all((p.grad == 0).all() for p in model.parameters())
