"""`python -m data_prep extend-vocab`: gives a tokenizer Korean pieces, learnt on a corpus, behind the old ones.

Every id of the base keeps its meaning, so token shards made with it stay valid; a text without Hangul gets the very
ids it had. `python -m recipes.extend` gives the model its rows for the new pieces; `extension.json` names for each new
id the ids of the base that it stands for.
"""

import argparse
import collections
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import lineage
from data_prep.document import CorpusError, Document, read_documents
from data_prep.hf_directory import TOKENIZER_FILES
from data_prep.tokens.batches import document_text
from data_prep.tokens.encode import document_files, folder_inputs, is_made
from data_prep.tokens.inspection import EXTENSION
from data_prep.tokens.tokenizer import load_tokenizer, write_bytes
from data_prep.tokens.tokenizer_formats import Tokenizer, readable
from data_prep.tokens.tokenizer_sentencepiece import SPACE
from data_prep.tokens.vocab_bases import Base, Segments, Symbol, open_base
from data_prep.tokens.vocab_learning import HANGUL, count_words, learn_merges

COMPARED_DOCUMENTS = 1000
SPARE = 1.1  # merges asked for, per piece wanted: some make a piece that is there already


@dataclass(frozen=True)
class Extension:
    """New pieces in the order of their ids, with the base's ids each stands for, and the merges in order."""

    pieces: list[Symbol]
    base_ids: list[list[int]]
    merges: list[tuple[Symbol, Symbol]]


def add_parser(subparsers: Any) -> None:
    """Adds the command `extend-vocab`."""
    parser = subparsers.add_parser(
        "extend-vocab", help="add Korean pieces, learnt on a corpus, to a tokenizer", description=__doc__
    )
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="BASE", help="file or model directory")
    parser.add_argument("--documents", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--num-pieces", type=int, required=True, metavar="N", help="Llama-2-Ko: 14336 more than 32000")
    help_ = "learn as many more pieces as make the vocabulary a multiple of this (default: 1)"
    parser.add_argument("--multiple-of", type=int, default=1, metavar="N", help=help_)
    help_ = "share of the Hangul characters that get pieces; for vocabularies with byte fallback (default: 0.9995)"
    parser.add_argument("--character-coverage", type=float, default=0.9995, metavar="SHARE", help=help_)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new tokenizer")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Learns the pieces, writes the tokenizer, checks it against the base, and returns 0.

    Raises:
        CorpusError: an option or the base cannot be used, the text gives too few pieces, or a check fails.
    """
    _check_options(args)
    document_files(args.documents)
    tokenizer = load_tokenizer(args.tokenizer)
    base = open_base(tokenizer)
    inputs = {**folder_inputs(args.documents), "tokenizer": tokenizer.path}
    names = ("num_pieces", "multiple_of", "character_coverage")
    settings = {name: getattr(args, name) for name in names}
    if is_made(args.out, inputs, {"settings": settings}):
        return 0
    words = count_words(document_text(one.title, one.text) for one in tqdm(_documents(args.documents), disable=None))
    num_pieces = args.num_pieces + -(tokenizer.vocab_size + args.num_pieces) % args.multiple_of
    extension = learn(base, base.segments(words), num_pieces, args.character_coverage)
    path = _write(args.out, base, extension)
    tokens = compare(tokenizer, load_tokenizer(path), itertools.islice(_documents(args.documents), COMPARED_DOCUMENTS))
    lineage.write_json(args.out / EXTENSION, _describe(base, extension, tokens))
    lineage.write_manifest(args.out, inputs, settings=settings, vocab_size=tokenizer.vocab_size + num_pieces)
    print(f"{path}: {tokenizer.vocab_size} + {num_pieces} = {tokenizer.vocab_size + num_pieces} pieces")
    print(f"on the first {sum(row['documents'] for row in tokens)} of the documents it was learnt on:")
    for row in tokens:
        ratio = row["tokens_after"] / row["tokens_before"]
        told = f"{row['tokens_per_document_before']} -> {row['tokens_per_document_after']} tokens a document"
        print(f"  {row['lang'] or '-'}: {row['documents']} documents, {told} (x {ratio:.3f})")
    return 0


def learn(base: Base, segments: Segments, num_pieces: int, character_coverage: float) -> Extension:
    """Returns `num_pieces` new pieces: characters that the base lacks, the most frequent first, then merges.

    Raises:
        CorpusError: the characters alone are more, or the text gives fewer.
    """
    characters = _new_characters(base, segments, character_coverage)
    if len(characters) >= num_pieces:
        raise CorpusError(
            f"{len(characters)} characters are new, {num_pieces} pieces were asked for; there must be room for merges; "
            "raise --num-pieces or lower --character-coverage"
        )
    pieces: list[Symbol] = list(characters)
    base_ids = [base.ids(character) for character in characters]
    merges: list[tuple[Symbol, Symbol]] = []
    known = set(pieces)
    learned = learn_merges(_without_rare(base, segments, known), int(SPARE * num_pieces) + 1)
    for left, right in (tuple(map(_join, merge)) for merge in learned):
        if len(pieces) == num_pieces:
            break
        merges.append((left, right))
        piece = left + right
        if piece not in known and not base.holds(piece):
            known.add(piece)
            pieces.append(piece)
            merge = learned[len(merges) - 1]
            base_ids.append([id_ for symbol in (*merge[0], *merge[1]) for id_ in base.ids(symbol)])
    if len(pieces) < num_pieces:
        raise CorpusError(
            f"the documents give {len(pieces)} new pieces seen twice; {num_pieces} were asked for; "
            "give more text or fewer --num-pieces"
        )
    return Extension(pieces, base_ids, merges)


def compare(old: Tokenizer, new: Tokenizer, documents: Iterator[Document]) -> list[dict[str, Any]]:
    """Returns the tokens before and after by language, having checked what an extension promises.

    Raises:
        CorpusError: an id of the base means something else, a text does not come back, or one without Hangul
            has other ids.
    """
    changed = [id_ for id_ in range(old.vocab_size) if old.piece(id_) != new.piece(id_)]
    if changed or old.special_tokens != new.special_tokens:
        raise _broken(new, f"{len(changed)} ids of the base mean something else (first: {changed[:1]})")
    counts: dict[str, collections.Counter[str]] = {}
    for document in documents:
        text = document_text(document.title, document.text)
        before, after = old.encode(text), new.encode(text)
        if new.decode(after) != old.decode(before):
            raise _broken(new, f"document {document.id!r} does not come back from its ids")
        if before != after and not HANGUL.search(text):
            raise _broken(new, f"document {document.id!r} has no Hangul and other ids")
        row = counts.setdefault(document.lang, collections.Counter())
        row.update(documents=1, tokens_before=len(before), tokens_after=len(after))
    return [
        {
            "lang": lang,
            **row,
            "tokens_per_document_before": round(row["tokens_before"] / row["documents"], 1),
            "tokens_per_document_after": round(row["tokens_after"] / row["documents"], 1),
        }
        for lang, row in sorted(counts.items())
    ]


def _check_options(args: argparse.Namespace) -> None:
    for option, value in (("--num-pieces", args.num_pieces), ("--multiple-of", args.multiple_of)):
        if value < 1:
            raise CorpusError(f"{option} {value}; at least 1 is needed; give {option} 1 or more")
    if not 0 < args.character_coverage <= 1:
        raise CorpusError(
            f"--character-coverage {args.character_coverage}; a share above 0 and at most 1 is expected; give 0.9995"
        )


def _documents(folders: Sequence[Path]) -> Iterator[Document]:
    """Yields documents of all folders in turn, so that the first ones are of each."""
    streams = [read_documents(folder) for folder in folders]
    for group in itertools.zip_longest(*streams):
        yield from (document for document in group if document is not None)


def _new_characters(base: Base, segments: Segments, coverage: float) -> list[Symbol]:
    """Returns the characters to be given a piece, the most frequent first; the others stay bytes."""
    new: collections.Counter[Symbol] = collections.Counter()
    total = 0
    for segment, count in segments.items():
        total += sum(map(len, segment)) * count
        for symbol in segment:
            if len(base.ids(symbol)) > 1:
                new[symbol] += count
    may_miss = (1 - coverage) * total
    ordered = sorted(new.items(), key=lambda item: (-item[1], item[0]))
    missed = 0
    while ordered and missed + ordered[-1][1] <= may_miss:
        missed += ordered.pop()[1]
    return [symbol for symbol, _ in ordered]


def _without_rare(base: Base, segments: Segments, new: set[Symbol]) -> Segments:
    """Returns the segments cut at characters that stay bytes, which nothing can be merged with."""
    rare = {symbol for segment in segments for symbol in segment if symbol not in new and len(base.ids(symbol)) > 1}
    if not rare:
        return segments
    found: Segments = collections.Counter()
    for segment, count in segments.items():
        for is_rare, run in itertools.groupby(segment, key=rare.__contains__):
            symbols = tuple(run)
            if not is_rare and len(symbols) > 1:
                found[symbols] += count
    return found


def _join(symbols: tuple[Symbol, ...]) -> Symbol:
    return type(symbols[0])().join(symbols)


def _write(out: Path, base: Base, extension: Extension) -> Path:
    """Writes the tokenizer's file, and what lies beside the base's and belongs to it; returns the file's path."""
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        source = base.tokenizer.path.parent / name
        if base.file == "tokenizer.json" and source.is_file() and "tokenizer.model" not in name and name != base.file:
            write_bytes(out / name, source.read_bytes())
    write_bytes(out / base.file, base.extended(extension.pieces, extension.merges))
    return out / base.file


def _describe(base: Base, extension: Extension, tokens: list[dict[str, Any]]) -> dict[str, Any]:
    old = base.tokenizer
    return {
        "base": {"file": old.path.name, "sha256": old.sha256, "vocab_size": old.vocab_size},
        "vocab_size": old.vocab_size + len(extension.pieces),
        "tokens": tokens,
        "pieces": [
            {"id": old.vocab_size + number, "piece": _text(piece), "base_ids": ids}
            for number, (piece, ids) in enumerate(zip(extension.pieces, extension.base_ids, strict=True))
        ],
    }


def _text(piece: Symbol) -> str:
    return readable(piece) if isinstance(piece, bytes) else piece.replace(SPACE, " ")


def _broken(tokenizer: Tokenizer, what: str) -> CorpusError:
    return CorpusError(f"{tokenizer.path}: {what}; an extension must keep them; report this with the base tokenizer")
