from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dedup import duplicates, minhash
from data_prep.dedup.duplicates import EXACT, KEPT, NEAR, SAME_ID, Verdicts, find_duplicates

WORDS = [f"낱말{i}" for i in range(400)]


def hashes(values: list[object]) -> npt.NDArray[np.uint64]:
    return np.array([[0, 0] if v == "" else [abs(hash(v)) + 1, 7] for v in values], dtype=np.uint64).reshape(-1, 2)


def choose(texts: list[str], names: list[str], order: list[int], threshold: float = 0.8) -> Verdicts:
    sketches = minhash.sketch(texts)
    return find_duplicates(
        sketches, hashes([f"={t}" for t in texts]), hashes(list(names)), np.array(order, np.int64), threshold
    )


def reference(texts: list[str], names: list[str], order: list[int], threshold: float) -> dict[int, tuple[int, int]]:
    """The rule read aloud, every pair compared: position -> (kind, position of the one that stays)."""
    sketches = minhash.sketch(texts)
    bands = [[minhash.band_keys(sketches, b)[i] for b in range(minhash.NUM_BANDS)] for i in range(len(texts))]
    stays: list[int] = []
    gone = {}
    for i in order:
        like = [
            (-int((sketches[i] == sketches[k]).sum()), rank, k)
            for rank, k in enumerate(stays)
            if any(x == y for x, y in zip(bands[i], bands[k], strict=True))
            and (sketches[i] == sketches[k]).mean() >= threshold
        ]
        same_text = [k for k in stays if texts[k] == texts[i]]
        same_name = [k for k in stays if names[i] and names[k] == names[i]]
        if same_text:
            gone[i] = (EXACT, same_text[0])
        elif like:
            gone[i] = (NEAR, min(like)[2])
        elif same_name:
            gone[i] = (SAME_ID, same_name[0])
        else:
            stays.append(i)
    return gone


def family(seed: int, num_texts: int) -> list[str]:
    """Texts that come from one another by small changes, some exact copies, some unlike all."""
    random = Random(seed)
    texts = [" ".join(random.choices(WORDS, k=random.choice([3, 30, 120])))]
    while len(texts) < num_texts:
        words = random.choice(texts).split()
        for _ in range(random.choice([0, 0, 1, 1, 2, 3, 90])):
            words[random.randrange(len(words))] = random.choice(WORDS)
        texts.append(" ".join(words))
    return texts


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.5, 0.8, 1.0]), st.booleans())
def test_the_choice_is_that_of_the_rule_read_aloud(seed: int, num: int, threshold: float, has_names: bool) -> None:
    random = Random(seed)
    texts = family(seed, num)
    names = [f"글 {random.randrange(num)}" if has_names and random.random() < 0.7 else "" for _ in texts]
    order = random.sample(range(num), num)
    verdicts = choose(texts, names, order, threshold)
    found = {i: (int(verdicts.kind[i]), int(verdicts.keeper[i])) for i in range(num) if verdicts.kind[i] != KEPT}
    assert found == reference(texts, names, order, threshold)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.7, 0.8, 0.9]))
def test_what_goes_is_like_one_that_stays_and_was_worth_more(seed: int, threshold: float) -> None:
    texts = family(seed, 40)
    order = Random(seed).sample(range(40), 40)
    verdicts = choose(texts, [""] * 40, order, threshold)
    sketches, rank = minhash.sketch(texts), {position: r for r, position in enumerate(order)}
    assert verdicts.kind[order[0]] == KEPT
    for i, keeper in enumerate(verdicts.keeper.tolist()):
        assert (keeper >= 0) == (verdicts.kind[i] != KEPT)
        if keeper >= 0:
            assert verdicts.kind[keeper] == KEPT
            assert rank[keeper] < rank[i]
            similarity = (sketches[i] == sketches[keeper]).mean()
            assert similarity >= threshold
            assert round(similarity * 128) == verdicts.num_equal[i]


def test_a_chain_of_small_changes_keeps_every_text_that_is_unlike_all_that_stay() -> None:
    words = [f"낱말{i}" for i in range(200)]
    chain = []
    for step in range(40):  # each differs from the one before in 5 of 200 words, the last from the first in all
        words[step * 5 : step * 5 + 5] = [f"새말{step}-{i}" for i in range(5)]
        chain.append(" ".join(words))
    verdicts = choose(chain, [""] * 40, list(range(40)))
    stays = [i for i, kind in enumerate(verdicts.kind) if kind == KEPT]
    assert stays[0] == 0
    assert 5 <= len(stays) <= 20  # one cluster by transitivity, which would keep 1
    assert verdicts.keeper[1] == 0


def test_the_order_decides_who_stays_and_the_likest_is_the_keeper() -> None:
    base = " ".join(WORDS[:100])
    near, nearer = base.replace("낱말50 ", ""), base.replace("낱말99", "새말")
    assert choose([base, nearer], ["", ""], [1, 0]).keeper.tolist() == [1, -1]
    other = " ".join(WORDS[200:300])
    verdicts = choose([other, near, nearer, base], ["", "", "", ""], [0, 1, 2, 3], threshold=0.96)
    assert verdicts.keeper.tolist()[:2] == [-1, -1]
    assert verdicts.keeper[3] == 2  # both are like it enough, or only the likest is


def test_of_equally_like_ones_the_worthiest_is_the_keeper() -> None:
    sketches = np.repeat(np.arange(128, dtype=np.uint32)[None], 3, axis=0)
    sketches[0, :20] += 1000
    sketches[1, 100:120] += 2000  # 88 columns in common with the first, each 108 with the third
    texts = np.arange(1, 7, dtype=np.uint64).reshape(3, 2)
    for order in ([0, 1, 2], [1, 0, 2]):
        verdicts = find_duplicates(sketches, texts, np.zeros_like(texts), np.array(order), 0.8)
        assert verdicts.keeper.tolist() == [-1, -1, order[0]]
        assert verdicts.num_equal[2] == 108


def test_a_name_alone_makes_duplicates_only_of_documents_that_bear_one() -> None:
    texts = [" ".join(WORDS[i * 50 : i * 50 + 50]) for i in range(4)]
    verdicts = choose(texts, ["글", "", "글", ""], [2, 1, 0, 3])
    assert verdicts.kind.tolist() == [SAME_ID, KEPT, KEPT, KEPT]
    assert verdicts.keeper.tolist() == [2, -1, -1, -1]


def test_a_version_stays_when_its_newer_one_went_for_something_else() -> None:
    page, rewritten = " ".join(WORDS[:80]), " ".join(WORDS[100:180])
    verdicts = choose([rewritten, rewritten, page], ["다른 글", "글", "글"], [0, 1, 2])
    assert verdicts.kind.tolist() == [KEPT, EXACT, KEPT]


@pytest.mark.parametrize("num", [0, 1])
def test_few_documents_are_no_special_case(num: int) -> None:
    verdicts = choose(["가"] * num, [""] * num, list(range(num)))
    assert verdicts.kind.tolist() == [KEPT] * num


def test_ten_thousand_equal_sketches_are_compared_in_little_time() -> None:
    """One stays, so each of the others is compared with one: no quadratic work for the largest families."""
    num = 10_000
    sketches = np.repeat(minhash.sketch([" ".join(WORDS)]), num, axis=0)
    texts = np.arange(1, 2 * num + 1, dtype=np.uint64).reshape(num, 2)
    verdicts = find_duplicates(sketches, texts, np.zeros_like(texts), np.arange(num), 0.8)
    assert (verdicts.keeper[1:] == 0).all()
    assert (verdicts.kind[1:] == NEAR).all()


def test_more_candidates_than_a_block_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = family(5, 60)
    whole = choose(texts, [""] * 60, list(range(60)), 0.95)
    monkeypatch.setattr(duplicates, "BLOCK", 2)
    small = choose(texts, [""] * 60, list(range(60)), 0.95)
    assert whole.keeper.tolist() == small.keeper.tolist()
    assert (whole.keeper >= 0).any()
