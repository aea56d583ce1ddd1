"""Which differences TIES and DARE keep, and what becomes of them."""

import numpy as np
import pytest
import torch

from recipes.merging.chat_vector import Term, add_chat_vectors, elected_mean
from recipes.merging.sparsify import magnitude_threshold, random_kept


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999])
@pytest.mark.parametrize("distinct", [True, False])
def test_the_threshold_is_the_one_sorting_finds(density: float, distinct: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10_001, generator=generator) * 10.0 ** torch.randint(-20, 5, (10_001,), generator=generator)
    if not distinct:
        values = (values.sign() * values.abs().log2().round().exp2()).bfloat16().float()
    wanted = int(np.ceil(density * len(values)))
    expected = values.abs().sort(descending=True).values[wanted - 1].item()
    assert magnitude_threshold(lambda: values.split(777), len(values), density) == expected
    kept = int((values.abs() >= expected).sum())
    assert kept == wanted if distinct else kept >= wanted


def test_density_one_keeps_all() -> None:
    assert magnitude_threshold(lambda: [torch.ones(3)], 3, 1.0) == 0.0


@pytest.mark.parametrize("drop_rate", [0.1, 0.5, 0.9])
def test_elements_are_dropped_at_the_rate_and_wherever_they_are_asked_for(drop_rate: float) -> None:
    count = 200_000
    kept = random_kept(3, 0, "a", 0, count, drop_rate)
    deviation = (drop_rate * (1 - drop_rate) / count) ** 0.5
    assert abs(1 - drop_rate - kept.float().mean().item()) < 4 * deviation
    parts = [random_kept(3, 0, "a", start, min(1000, count - start), drop_rate) for start in range(0, count, 1000)]
    assert torch.equal(torch.cat(parts), kept)
    assert torch.equal(random_kept(3, 0, "a", 8, 13, drop_rate), kept[8:21])
    for other in [(4, 0, "a"), (3, 1, "a"), (3, 0, "b")]:
        same = (random_kept(*other, 0, count, drop_rate) == kept).float().mean().item()
        assert abs(same - (drop_rate**2 + (1 - drop_rate) ** 2)) < 0.01


def test_pruned_differences_are_added_and_rescaled() -> None:
    target, minus = torch.zeros(6), torch.zeros(6)
    plus = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, 0.5])
    kept = torch.tensor([True, True, False, True, True, True])
    merged, total, differences = add_chat_vectors(target, [Term(plus, minus, 0.5, 2.0, kept, 4.0)])
    assert merged.tolist() == [0.0, -4.0, 0.0, -8.0, 10.0, 0.0]
    assert total.tolist() == [0.0, 4.0, 0.0, 8.0, -10.0, 0.0]
    assert differences[0].tolist() == [0.0, 2.0, 0.0, 4.0, -5.0, 0.0]


def test_the_elected_mean_is_that_of_the_heavier_sign() -> None:
    changes = [
        torch.tensor([1.0, 1.0, 0.0, 2.0]),
        torch.tensor([-3.0, 2.0, 0.0, -2.0]),
        torch.tensor([-1.0, 0.0, 0, 0]),
    ]
    assert elected_mean(changes).tolist() == [-2.0, 1.5, 0.0, 0.0]


def test_vectors_are_combined_by_ties() -> None:
    target = torch.ones(2)
    one, other = (Term(torch.tensor(plus), torch.zeros(2), 1.0) for plus in ([4.0, 1.0], [-2.0, 3.0]))
    assert add_chat_vectors(target, [one, other], "ties")[0].tolist() == [5.0, 3.0]
    assert add_chat_vectors(target, [one, other])[0].tolist() == [3.0, 5.0]
