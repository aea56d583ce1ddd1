"""NF4 is torchao's, bit for bit; products with it are those with the unpacked matrix."""

import pytest
import torch
from torchao.dtypes.nf4tensor import to_nf4

from recipes.training.model import nf4


def matrix(rows, columns, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    return (torch.randn(rows, columns, generator=random) * torch.rand(rows, 1, generator=random)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [nf4.CHUNK, 3000])
def test_packed_and_unpacked_as_torchao_does(dtype, chunk, monkeypatch):
    monkeypatch.setattr(nf4, "CHUNK", chunk)
    weight = matrix(256, 512, dtype)
    parts, theirs = nf4.pack(weight), to_nf4(weight.float())
    assert {name: (part.shape, part.dtype) for name, part in parts.items()} == nf4.packed_shapes(256, 512)
    assert torch.equal(parts["weight"].flatten(), theirs.quantized_data)
    assert torch.equal(parts["scales"].flatten(), theirs.quantized_scalers)
    assert torch.equal(parts["factors"].view(torch.float32)[:-1], theirs.quantization_factor)
    assert torch.equal(nf4.unpack(**parts, dtype=torch.float32), theirs.get_original_weight())
    rounded = nf4.unpack(**parts, dtype=torch.bfloat16)
    assert torch.equal(rounded, theirs.get_original_weight().bfloat16())


def test_each_weight_becomes_a_level_next_to_it():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    unpacked = nf4.unpack(**nf4.pack(weight), dtype=torch.float32)
    scale = weight.unflatten(1, (-1, nf4.BLOCK)).abs().amax(2, keepdim=True)
    error = (unpacked - weight).unflatten(1, (-1, nf4.BLOCK)) / scale
    widest = max(b - a for a, b in zip(nf4.LEVELS, nf4.LEVELS[1:], strict=False))
    assert error.abs().max() < widest / 2 + 0.02  # and the rounding of the scale
    assert error.square().mean().sqrt() > 0.02, "nothing was quantised"


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (3, 192), (257, 64)])
def test_any_number_of_blocks_fits(rows, columns):
    weight = matrix(rows, columns)
    unpacked = nf4.unpack(**nf4.pack(weight), dtype=torch.float32)
    assert (unpacked - weight).abs().max() < 0.2 * weight.abs().max()


def test_zeros_stay_zeros():
    weight = matrix(4, 128)
    weight[1], weight[2, :64] = 0, 0
    unpacked = nf4.unpack(**nf4.pack(weight), dtype=torch.float32)
    assert not unpacked[1].any()
    assert not unpacked[2, :64].any()
    assert not nf4.unpack(**nf4.pack(torch.zeros(2, 64)), dtype=torch.bfloat16).any()


def test_the_product_and_its_gradient_are_those_of_the_unpacked_matrix_which_is_not_kept():
    parts = nf4.pack(matrix(96, 128))
    x = matrix(5, 128).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        product = nf4.nf4_linear(x, **parts)
    product.square().sum().backward()
    other = x.detach().clone().requires_grad_()
    expected = other @ nf4.unpack(**parts, dtype=torch.float32).t()
    expected.square().sum().backward()
    torch.testing.assert_close(product, expected)
    torch.testing.assert_close(x.grad, other.grad)
    assert set(kept) <= {torch.uint8, torch.int8, torch.int32}
