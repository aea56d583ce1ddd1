"""Shows what SFT would learn: examples as pieces with their loss mask, the ledger, and how long they are."""

import itertools
import os
import sys
from collections.abc import Iterator

from omegaconf import DictConfig

from configs.loader import ConfigError
from data_prep.tokens.inspection import show
from data_prep.tokens.tokenizer_formats import Tokenizer
from recipes.training.data.chat_examples import Encoded, ExampleSet, Policies, encode_examples, length_bins
from recipes.training.data.mixture import read_mixture
from recipes.training.data.sources import open_template, policies_of

LEARNT_COLOURS = ("\x1b[48;5;22m", "\x1b[48;5;28m")  # two greens in turn
MASKED_COLOURS = ("\x1b[48;5;236m", "\x1b[48;5;240m")  # two greys
BAR_CHARS = 40
MOST_FAULTS = 5


def show_examples(cfg: DictConfig) -> int:
    """Prints the first `cfg.show` examples of every source of chat examples; needs no weights, only their tokenizer.

    Args:
        cfg: `SftConfig`, checked.

    Returns:
        0; or 1 if an example would end the run, by a policy `error`.

    Raises:
        UserError: a source or the tokenizer cannot be read; no source has chat examples.
    """
    if os.environ.get("RANK", "0") != "0":
        return 0
    sources = [entry.chat for entry in read_mixture(cfg.data, cfg.global_batch_tokens).sources if entry.chat]
    if not sources:
        raise ConfigError("data", ["has no chat examples to show; token shards are shown by `data_prep inspect`"])
    template, policies = open_template(cfg), policies_of(cfg)
    coloured, code = sys.stdout.isatty(), 0
    for source in sources:
        found = encode_examples(source, template, cfg.seq_len, policies, strict=False)
        for example in found.examples[: cfg.show]:
            print(draw(template.tokenizer, example, cfg.show_ids, coloured), end="\n\n")
        print("\n".join([found.describe(), *histogram(found)]))
        stopping, lines = faults(found, policies)
        print("\n".join(lines))
        code = max(code, int(stopping or not found.examples))
    return code


def draw(tokenizer: Tokenizer, example: Encoded, with_ids: bool, coloured: bool) -> str:
    """Returns an example as pieces: a paragraph for each run of tokens that are learnt, and of those that are not.

    Args:
        tokenizer: that made the ids.
        example: what is drawn.
        with_ids: whether each piece has its id behind it.
        coloured: whether the pieces have colours, green where they are learnt; else `|` stands between them.
    """
    lines = [f"example {example.name}: {len(example.ids)} tokens, {int(example.is_learnt.sum())} learnt"]
    pairs = zip(example.ids.tolist(), example.is_learnt.tolist(), strict=True)
    for is_learnt, group in itertools.groupby(pairs, key=lambda pair: pair[1]):
        colours = LEARNT_COLOURS if is_learnt else MASKED_COLOURS
        pieces = show(tokenizer, [id_ for id_, _ in group], with_ids, coloured, colours)
        lines.append(f"{'learnt' if is_learnt else 'masked'}: {pieces}".rstrip("\n"))
    return "\n".join(lines)


def histogram(found: ExampleSet) -> Iterator[str]:
    """Yields the lengths of the examples as lines of a bar chart; none without examples."""
    bins = list(length_bins(found)) if found.examples else []
    most = max((number for _, _, number in bins), default=0)
    for low, high, number in bins:
        bar = "#" * -(-number * BAR_CHARS // most)
        yield f"  {low:>6} - {high:>6} tokens {number:>9,} {bar}".rstrip()


def faults(found: ExampleSet, policies: Policies) -> tuple[bool, list[str]]:
    """Returns whether one of the faults would end a run, and the first of each reason as lines."""
    stopping, lines = False, []
    for reason in dict.fromkeys(one.reason for one in found.dropped):
        messages = [one.message for one in found.dropped if one.reason == reason]
        key = policies.key_of(reason)
        ends = getattr(policies, key) == "error"
        stopping = stopping or ends
        lines.append(f"{len(messages):,} {reason}{f': the run would end here, as {key}=error' if ends else ''}")
        lines += [f"  {message}" for message in messages[:MOST_FAULTS]]
        lines += [f"  ... and {len(messages) - MOST_FAULTS:,} more"] if len(messages) > MOST_FAULTS else []
    return stopping, lines
