"""The laws of `target + scale * (plus - minus)` on single tensors."""

import pytest
import torch

from recipes.merging.chat_vector import add_chat_vector, compute_dtype

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def extreme(dtype: torch.dtype, seed: int, size: int = 20_000) -> torch.Tensor:
    """Values over the whole range of exponents of the dtype, zeros of both signs included."""
    generator = torch.Generator().manual_seed(seed)
    info = torch.finfo(dtype)
    low, high = (torch.tensor(x, dtype=torch.float64).log2() for x in (info.tiny * info.eps, info.max / 8))
    exponents = torch.rand(size, generator=generator, dtype=torch.float64) * (high - low) + low
    values = torch.randn(size, generator=generator, dtype=torch.float64).sign() * exponents.exp2()
    values[:: size // 100] = 0.0
    values[1 :: size // 100] = -0.0
    return values.to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INTS[tensor.dtype.itemsize])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0, 0.0])
def test_equal_models_add_nothing(dtype: torch.dtype, scale: float) -> None:
    target, same = extreme(dtype, 0), extreme(dtype, 1)
    assert torch.equal(bits(add_chat_vector(target, same, same.clone(), scale)), bits(target))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_base_itself_becomes_the_instruct_model(dtype: torch.dtype) -> None:
    base, instruct = extreme(dtype, 0), extreme(dtype, 1)
    assert torch.equal(bits(add_chat_vector(base, instruct, base.clone(), 1.0)), bits(instruct))


def test_plain_floating_point_would_break_the_second_law() -> None:
    base, instruct = extreme(torch.bfloat16, 0).double(), extreme(torch.bfloat16, 1).double()
    assert not torch.equal(base + (instruct - base), instruct)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_zero_is_the_identity(dtype: torch.dtype) -> None:
    target = extreme(dtype, 0)
    merged = add_chat_vector(target, extreme(dtype, 1), extreme(dtype, 2), 0.0)
    assert torch.equal(bits(merged), bits(target))
    assert merged.data_ptr() != target.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_sum_is_the_wide_one_rounded_once(dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    target, plus, minus = (torch.randn(5000, generator=generator).to(dtype) for _ in range(3))
    wide = compute_dtype(target)
    reference = (target.to(wide) + scale * (plus.to(wide) - minus.to(wide))).to(dtype)
    assert torch.equal(add_chat_vector(target, plus, minus, scale), reference)
    exact = target.double() + scale * (plus.double() - minus.double())
    error = (add_chat_vector(target, plus, minus, scale).double() - exact).abs()
    magnitude = target.double().abs() + plus.double().abs() + minus.double().abs()
    assert bool((error <= exact.abs() * torch.finfo(dtype).eps / 2 + magnitude * 2**-22).all())


def test_dtypes_may_differ_and_the_target_s_is_kept() -> None:
    target = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    plus, minus = torch.tensor([0.5, 1.0]), torch.tensor([0.25, 1.0], dtype=torch.float16)
    merged = add_chat_vector(target, plus, minus, 2.0)
    assert merged.dtype == torch.bfloat16
    assert merged.tolist() == [1.5, 2.0]
