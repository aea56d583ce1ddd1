"""Learning further pieces for a BPE vocabulary: the merges that go on where those of the base end.

Words are encoded with the base first; what is learnt are merges of its pieces. Ranked behind the base's own merges,
they act on the very sequences they were learnt from, and every new piece can be reached.
"""

import collections
import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import TypeVar

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from data_prep.document import CorpusError

HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
MAX_WORD_CHARS = 64  # what is longer is a URL or damage
MAX_WORDS = 4_000_000  # distinct; about 1 GB
FIRST_PRIVATE, LAST_PRIVATE = 0xF0000, 0x10FFFD  # planes 15 and 16

Symbol = TypeVar("Symbol", bound=Hashable)


def count_words(texts: Iterable[str], max_words: int = MAX_WORDS) -> collections.Counter[str]:
    """Returns how often each word with Hangul stands in the texts.

    A word goes from white space to white space; one that does not start a line carries a space in front. When there
    are more than `max_words` words, those that were seen once are forgotten, as often as needed.
    """
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        for line in text.splitlines():
            words = line.split()
            found = [word if n == 0 else f" {word}" for n, word in enumerate(words) if len(word) <= MAX_WORD_CHARS]
            counts.update(word for word in found if HANGUL.search(word))
        if len(counts) > max_words:
            counts = collections.Counter({word: count for word, count in counts.items() if count > 1})
    return counts


def learn_merges(segments: Mapping[tuple[Symbol, ...], int], num_merges: int) -> list[tuple[tuple[Symbol, ...], ...]]:
    """Returns the merges of byte-pair encoding in order, each as the symbols of its left and right side.

    Args:
        segments: sequences of symbols, within which merges are allowed, with their number.
        num_merges: how many at most; pairs seen once are not merged.
    """
    symbols = sorted({symbol for segment in segments for symbol in segment}, key=repr)
    if len(symbols) > LAST_PRIVATE - FIRST_PRIVATE:
        raise CorpusError(
            f"the text has {len(symbols)} different pieces of the tokenizer; {LAST_PRIVATE - FIRST_PRIVATE} can be "
            "told apart; give less text"
        )
    # Each symbol becomes a character of its own, so that the library's trainer sees an alphabet.
    letter_of = {symbol: chr(FIRST_PRIVATE + number) for number, symbol in enumerate(symbols)}
    symbol_of = {letter: symbol for symbol, letter in letter_of.items()}
    trainer = trainers.BpeTrainer(
        vocab_size=len(symbols) + num_merges,
        min_frequency=2,
        initial_alphabet=list(letter_of.values()),
        show_progress=False,
    )
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(_lines(segments, letter_of), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [tuple(tuple(symbol_of[letter] for letter in side) for side in merge) for merge in merges]


def _lines(segments: Mapping[tuple[Symbol, ...], int], letter_of: Mapping[Symbol, str]) -> Iterator[str]:
    """Yields each segment as often as it was seen, as text; the trainer takes no counts."""
    for segment, count in sorted(segments.items(), key=repr):
        word = "".join(letter_of[symbol] for symbol in segment) + " "
        for start in range(0, count, 10_000):
            yield word * min(10_000, count - start)
