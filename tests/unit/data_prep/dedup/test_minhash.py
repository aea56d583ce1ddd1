import hashlib
import unicodedata
from random import Random

import numpy as np
import pytest

from data_prep.dedup import minhash


def text(random: Random, num_words: int) -> str:
    return " ".join(f"낱말{random.randrange(10**6)}" for _ in range(num_words))


def shingles(body: str) -> set[str]:
    words = body.split()
    return {" ".join(words[i : i + 5]) for i in range(len(words) - 4)} or {body}


def pair(random: Random, num_words: int, num_changed: int) -> tuple[str, str, float]:
    """Returns two texts of which the end differs, and their true Jaccard similarity."""
    one = text(random, num_words)
    other = " ".join([*one.split()[: num_words - num_changed], *text(random, num_changed).split()])
    a, b = shingles(one), shingles(other)
    return one, other, len(a & b) / len(a | b)


def test_equal_texts_in_another_form_fold_to_one() -> None:
    assert minhash.fold("  가나\n\n다\u00a0라\t마 ") == "가나 다 라 마"
    assert minhash.fold(unicodedata.normalize("NFD", "가나 다")) == "가나 다"
    assert minhash.fold("㈜ ½ ㅋㅋ") == "㈜ ½ ㅋㅋ"  # NFC, not NFKC
    assert minhash.fold("\n ") == ""


@pytest.mark.parametrize(("num_words", "num_changed"), [(40, 3), (200, 12), (200, 60), (1500, 100), (1500, 700)])
def test_the_share_of_equal_columns_estimates_the_jaccard_similarity(num_words: int, num_changed: int) -> None:
    random = Random(num_words + num_changed)
    pairs = [pair(random, num_words, num_changed) for _ in range(60)]
    ones, others = (minhash.sketch([p[side] for p in pairs]) for side in (0, 1))
    estimates = (ones == others).mean(axis=1)
    truth = np.array([p[2] for p in pairs])
    deviation = np.sqrt(truth * (1 - truth) / minhash.NUM_PERMUTATIONS)
    assert abs((estimates - truth).mean()) < 4 * deviation.mean() / len(pairs) ** 0.5  # no bias
    assert (np.abs(estimates - truth) < 4.5 * deviation).all()


def test_bands_meet_as_often_as_the_formula_says() -> None:
    random = Random(7)
    pairs = [pair(random, 200, 20) for _ in range(400)]
    ones, others = (minhash.sketch([p[side] for p in pairs]) for side in (0, 1))
    meets = np.zeros(len(pairs), bool)
    for band in range(minhash.NUM_BANDS):
        meets |= minhash.band_keys(ones, band) == minhash.band_keys(others, band)
    expected = np.mean([1 - (1 - p[2] ** 8) ** 16 for p in pairs])
    assert 0.5 < expected < 0.99
    assert abs(meets.mean() - expected) < 0.07


def test_a_band_is_equal_only_where_all_its_columns_are() -> None:
    (row,) = minhash.sketch(["가 나 다 라 마 바 사"])
    rows = np.array([row, row, row])
    rows[1, 15] ^= 1  # the last column of band 1
    rows[2, [8, 9]] = rows[2, [9, 8]]
    keys = minhash.band_keys(rows, 1)
    assert len(set(keys.tolist())) == 3
    assert len(set(minhash.band_keys(rows, 0).tolist())) == 1


def test_a_sketch_depends_on_its_own_text_alone() -> None:
    random = Random(3)
    texts = [text(random, n) for n in (0, 1, 4, 5, 6, 300, 2)]
    together = minhash.sketch(texts)
    assert together.shape == (7, 128)
    assert together.dtype == np.uint32
    for row, body in zip(together, texts, strict=True):
        assert (row == minhash.sketch([body])[0]).all()
    assert minhash.sketch([]).shape == (0, 128)


def test_word_order_counts_and_repetition_does_not() -> None:
    a, b, c, d = minhash.sketch(["가 나 다 라 마", "나 가 다 라 마", "가 나", "나 가"])
    assert minhash.num_equal(np.array([b, a]), a).tolist() == [0, 128]
    assert minhash.num_equal(np.array([c]), d)[0] == 0
    once, often = minhash.sketch([" ".join("가나다라마" * 3), " ".join("가나다라마" * 9)])
    assert (once == often).all()  # the same five shingles


def test_sketches_are_the_same_on_every_machine() -> None:
    found = minhash.sketch(["서울은 대한민국의 수도이다. 한강이 시내를 가로질러 흐른다.", "가", ""])
    assert hashlib.sha256(found.astype("<u4").tobytes()).hexdigest()[:16] == "6d50bdc7a3a67ea8"
