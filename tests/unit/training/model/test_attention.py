"""Attention within documents: every backend against arithmetic in fp64, and torchtune's layer."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from recipes.training.model.attention import (
    WHOLE_ROW_KERNELS,
    Documents,
    SelfAttention,
    attend,
    choose_backend,
    rotate,
    use_own_attention,
)
from recipes.training.model.decoder import Architecture, build_model

OTHERS = torch.tensor([[0, 0, 0, 0, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 1, -1]])  # as many documents, of other lengths
TOKENS = torch.arange(16).view(2, 8)
POSITIONS = torch.arange(8).expand(2, 8)
CPU = torch.device("cpu")
NUMBERS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, -1, -1]])


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 8, heads, 4, generator=generator, dtype=dtype).requires_grad_() for heads in (4, 2, 2)]


def reference(q, k, v, numbers):
    """Softmax attention, written out position by position."""
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = [s for s in range(t + 1) if numbers[b, s] == numbers[b, t]]
            for head in range(q.shape[2]):
                keys, values = (x[b, seen, head // 2] for x in (k, v))
                out[b, t, head] = torch.softmax(keys @ q[b, t, head] / 2, 0) @ values
    return out


@pytest.mark.parametrize("backend", ["per_document", "mask"])
def test_output_and_gradients_are_those_of_the_definition(backend):
    tensors, same = inputs(), inputs()
    out = attend(*tensors, Documents.of(NUMBERS, CPU), backend)
    wanted = reference(*same, NUMBERS)
    torch.testing.assert_close(out, wanted)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    (out * weight).sum().backward()
    (wanted * weight).sum().backward()
    for mine, theirs in zip(tensors, same, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_documents_end_at_changes_and_at_the_end_of_each_row():
    documents = Documents.of(NUMBERS, CPU)
    assert documents.ends == (3, 5, 8, 9, 14, 16)
    assert documents.offsets.tolist() == [0, 3, 5, 8, 9, 14, 16, 16]
    assert documents.offsets.dtype == torch.int32
    assert not documents.are_rows
    assert not Documents.of(torch.tensor([[0, 0, 0, 0], [1, 1, 2, 2]]), CPU).are_rows
    whole = Documents.of(torch.zeros(1, 8, dtype=torch.int64), CPU)
    assert whole.offsets.tolist() == [0, 8]
    assert whole.are_rows
    assert Documents.of(torch.tensor([[3, 3], [3, 3]]), CPU).are_rows  # a row's end ends a document


@pytest.mark.parametrize("backend", ["per_document", "mask"])
def test_no_document_sees_another(backend):
    q, k, v = inputs()
    documents = Documents.of(NUMBERS, CPU)
    before = attend(q, k, v, documents, backend)
    with torch.no_grad():
        for tensor in (q, k, v):
            tensor[0, 3:5] += 1  # document 1 of the first row
    after = attend(q, k, v, documents, backend)
    changed = (before != after).flatten(2).any(2)
    assert changed.nonzero().tolist() == [[0, 3], [0, 4]]


def test_the_layer_equals_torchtunes_with_its_mask():
    torch.manual_seed(0)
    model = build_model(Architecture(64, 1, 4, 2, 32, 64, max_seq_len=8)).double()
    stock = model.layers[0].attn
    ours = SelfAttention(stock, "per_document")
    assert ours.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(2, 8, 32, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2], [0, 0, 1, 2, 3, 4, 0, 1]])
    mask = (NUMBERS[:, :, None] == NUMBERS[:, None]).tril()
    wanted = stock(x, x, mask=mask, input_pos=positions)
    torch.testing.assert_close(ours(x, x, mask=Documents.of(NUMBERS, CPU), input_pos=positions), wanted)


@pytest.mark.parametrize("scale_factor", [1, 8], ids=["llama3", "llama3.1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rotation_and_its_gradient_are_torchtunes(dtype, scale_factor):
    shape = Architecture(64, 1, 4, 2, 64, 64, max_seq_len=32, rope_scale_factor=scale_factor)
    embedding = build_model(shape).layers[0].attn.pos_embeddings
    random = torch.Generator().manual_seed(0)
    positions = torch.randint(0, 32, (2, 8), generator=random)
    tensors = [torch.randn(2, 8, heads, 16, generator=random).to(dtype).requires_grad_() for heads in (4, 2)]
    for tensor, turned in zip(tensors, rotate(embedding, positions, *tensors), strict=True):
        wanted = embedding(tensor, input_pos=positions)
        assert turned.dtype == dtype
        torch.testing.assert_close(turned, wanted)
        weight = torch.randn(wanted.shape, generator=random).to(dtype)
        mine, theirs = (torch.autograd.grad((out * weight).sum(), tensor)[0] for out in (turned, wanted))
        torch.testing.assert_close(mine, theirs)


def attended(monkeypatch, takes_rows, numbers):
    """Returns a layer's output, and how often attention by documents was called."""
    torch.manual_seed(0)
    layers = build_model(Architecture(64, 1, 4, 2, 32, 64, max_seq_len=8)).layers
    use_own_attention(layers, "mask", takes_rows)
    calls, by_documents = [], layers[0].attn._attend
    monkeypatch.setattr(layers[0].attn, "_attend", lambda *args: calls.append(1) or by_documents(*args))
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    return layers[0].attn(x, x, mask=Documents.of(numbers, CPU), input_pos=POSITIONS), len(calls)


def test_rows_of_one_document_are_attended_to_without_documents_and_give_the_same(monkeypatch):
    rows = torch.tensor([[4] * 8, [7] * 8])
    wanted, num_calls = attended(monkeypatch, False, rows)
    assert num_calls == 1
    found, num_calls = attended(monkeypatch, True, rows)
    assert num_calls == 0
    torch.testing.assert_close(found, wanted)
    _, num_calls = attended(monkeypatch, True, NUMBERS)
    assert num_calls == 1


def test_auto_takes_what_runs_and_a_backend_that_cannot_run_says_why():
    assert choose_backend("auto", "cpu", "bf16", compiled=False) == "per_document"
    assert choose_backend("auto", "cpu", "bf16", compiled=True) == "mask"
    assert choose_backend("auto", "cuda", "fp32", compiled=False) == "per_document"
    assert choose_backend("auto", "cuda", "bf16", compiled=True) == "varlen"
    assert choose_backend("mask", "cuda", "bf16", compiled=True) == "mask"
    with pytest.raises(ValueError, match=r"varlen on device=cpu; its kernel needs cuda; set attention=auto"):
        choose_backend("varlen", "cpu", "bf16", compiled=False)
    with pytest.raises(ValueError, match=r"varlen with precision=fp32; its kernel computes in bf16"):
        choose_backend("varlen", "cuda", "fp32", compiled=False)
    with pytest.raises(ValueError, match=r"per_document with compile=true would compile every batch anew"):
        choose_backend("per_document", "cpu", "fp32", compiled=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # the compiler's own
def test_a_compiled_layer_has_one_form_for_documents_and_one_for_whole_rows():
    model = build_model(Architecture(64, 1, 4, 2, 32, 64, max_seq_len=8))
    batches = [NUMBERS, torch.zeros(2, 8, dtype=torch.int64), OTHERS, torch.ones(2, 8, dtype=torch.int64)]
    use_own_attention(model.layers, "mask", takes_rows=True)
    plain = [model(TOKENS, mask=Documents.of(n, CPU), input_pos=POSITIONS).detach() for n in batches]
    compilations = CompileCounter()
    model.layers[0].compile(fullgraph=True, backend=compilations)
    for wanted, numbers in zip(plain, batches, strict=True):
        torch.testing.assert_close(model(TOKENS, mask=Documents.of(numbers, CPU), input_pos=POSITIONS), wanted)
    assert compilations.frame_count == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # the compiler's own
def test_a_compiled_layer_takes_layer_takes_the_documents_of_any_batch_without_compiling_again():
    model = build_model(Architecture(64, 1, 4, 2, 32, 64, max_seq_len=8))
    use_own_attention(model.layers, "mask")
    plain = [model(TOKENS, mask=Documents.of(n, CPU), input_pos=POSITIONS).detach() for n in (NUMBERS, OTHERS)]
    compilations = CompileCounter()
    model.layers[0].compile(fullgraph=True, backend=compilations)
    for wanted, numbers in zip(plain, (NUMBERS, OTHERS), strict=True):
        torch.testing.assert_close(model(TOKENS, mask=Documents.of(numbers, CPU), input_pos=POSITIONS), wanted)
    assert compilations.frame_count == 1


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", WHOLE_ROW_KERNELS)
def test_each_kernel_for_whole_rows_equals_the_mask_on_a_gpu(kernel):
    q, k, v = (t.detach().to("cuda", torch.bfloat16) for t in inputs(torch.float32))
    q, k, v = (t.repeat(1, 16, 1, 16) for t in (q, k, v))  # the kernels want heads of 64 columns
    documents = Documents.of(torch.zeros(2, 128, dtype=torch.int64), torch.device("cuda"))
    with torch.nn.attention.sdpa_kernel(kernel):
        heads = (t.transpose(1, 2) for t in (q, k, v))
        found = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found.transpose(1, 2), attend(q, k, v, documents, "mask"), atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
def test_varlen_equals_the_mask_on_a_gpu():
    device = torch.device("cuda")
    tensors = [t.detach().to(device, torch.bfloat16) for t in inputs(torch.float32)]
    documents = Documents.of(NUMBERS, device)
    torch.testing.assert_close(
        attend(*tensors, documents, "varlen"), attend(*tensors, documents, "mask"), atol=2e-2, rtol=2e-2
    )
