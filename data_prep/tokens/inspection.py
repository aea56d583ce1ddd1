"""`python -m data_prep inspect DIR --doc N`: one document of token shards as its pieces, or of a documents folder."""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.document import CorpusError, Document
from data_prep.tokens.batches import read_lines
from data_prep.tokens.shard_format import TOKEN, kind_of
from data_prep.tokens.shards import Shards
from data_prep.tokens.tokenizer import load_tokenizer
from data_prep.tokens.tokenizer_formats import Tokenizer

EXTENSION = "extension.json"
RANGE = re.compile(r"(\d*):(\d*)")
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
COLOURS = ("\x1b[48;5;24m", "\x1b[48;5;239m")  # two backgrounds in turn, readable on black and on white
SPECIAL_COLOUR, RESET = "\x1b[7m", "\x1b[0m"


def add_parser(subparsers: Any) -> None:
    """Adds the command `inspect`."""
    parser = subparsers.add_parser("inspect", help="show a document as its pieces", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="token shards, or documents-*.jsonl.zst")
    parser.add_argument("--doc", type=int, required=True, metavar="N", help="number of the document, from 0")
    parser.add_argument("--tokens", metavar="FROM:TO", default=":", help="only these tokens of it")
    parser.add_argument("--ids", action="store_true", help="write each piece with its id")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="default: the one the manifest names")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the document and returns 0.

    Raises:
        CorpusError: there is no such document or range, or the tokenizer is not the one the shards were made with.
    """
    if kind_of(args.folder) == "documents":
        print(_show_document(args.folder, args.doc))
        return 0
    shards = Shards.open(args.folder)
    if not 0 <= args.doc < shards.num_documents:
        raise CorpusError(f"--doc {args.doc}; {args.folder} has {shards.num_documents} documents; count from 0")
    start, stop = _range(args.tokens, int(shards.document_lengths[args.doc]))
    tokenizer = tokenizer_of(shards, args.tokenizer)
    print(_place(shards, args.doc, start, stop), file=sys.stderr)
    ids = shards.read(args.doc, start, stop).tolist()
    print(show(tokenizer, ids, with_ids=args.ids, coloured=sys.stdout.isatty()))
    return 0


def tokenizer_of(shards: Shards, given: Path | None) -> Tokenizer:
    """Loads the tokenizer of the shards: `given`, or the file the manifest names.

    A tokenizer that `extend-vocab` made of theirs will do as well, as it keeps every id.

    Raises:
        CorpusError: the file is missing or is another tokenizer.
    """
    wanted = shards.manifest.get("tokenizer", {}).get("sha256")
    named = shards.manifest.get("inputs", {}).get("tokenizer", {}).get("path")
    if given is None and (named is None or not Path(named).is_file()):
        raise CorpusError(
            f"{shards.folder}: its tokenizer {named} is not there; the manifest's file is expected; give --tokenizer"
        )
    tokenizer = load_tokenizer(given or Path(str(named)))
    extension = tokenizer.path.parent / EXTENSION
    base = json.loads(extension.read_text(encoding="utf-8"))["base"]["sha256"] if extension.is_file() else None
    if wanted not in (tokenizer.sha256, base):
        raise CorpusError(
            f"{tokenizer.path} has SHA-256 {tokenizer.sha256[:12]}; {shards.folder} was made with {str(wanted)[:12]}; "
            "give that tokenizer with --tokenizer"
        )
    return tokenizer


def show(
    tokenizer: Tokenizer, ids: Sequence[int], with_ids: bool, coloured: bool, colours: tuple[str, str] = COLOURS
) -> str:
    r"""Returns the pieces as one text: in turning colours, or with `|` between them.

    A line break is written as `\n` and then made. Special tokens stand in `[[` `]]`, or reversed when coloured.
    Behind pieces that are parts of a character stands the character, as `<0xEB>|<0xB0>|<0x95>=밥`.
    """
    names = {id_: text for text, id_ in tokenizer.special_tokens.items()}
    parts: list[str] = []
    for number, (id_, text) in enumerate(_pieces(tokenizer, ids)):
        text = text.replace("\r", "\\r").replace("\n", "\\n\n")
        text = f"{text}({id_})" if with_ids else text
        if coloured:
            colour = SPECIAL_COLOUR if id_ in names else colours[number % 2]
            # A background must end before a line does, or it fills the line.
            text = "\n".join(f"{colour}{line}{RESET}" if line else "" for line in text.split("\n"))
        elif id_ in names:
            text = f"[[{text}]]"
        parts.append(text)
    return ("" if coloured else "|").join(parts)


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yields (id, text); the last of the pieces that make up a character bears it too."""
    cut = b""  # bytes of a character whose end is still to come
    for id_ in ids:
        text = tokenizer.piece(id_)
        if found := BYTE.findall(text):
            cut += bytes(int(byte, 16) for byte in found)
            try:
                character = cut.decode()
            except UnicodeDecodeError:
                character = ""
            if character and not character.isspace():
                text += f"={character}"
            cut = b"" if character else cut[-3:]
        else:
            cut = b""
        yield id_, text


def _place(shards: Shards, document: int, start: int, stop: int) -> str:
    lengths = shards.document_lengths
    counts = np.array([shard["documents"] for shard in shards.manifest["shards"]])
    shard = int(np.searchsorted(np.cumsum(counts), document, side="right"))
    first = int(counts[:shard].sum())
    offset = int(lengths[first:document].sum())
    name = shards.manifest["shards"][shard]["name"]
    return (
        f"document {document} of {shards.num_documents}: {int(lengths[document])} tokens in {name}.bin, there document "
        f"{document - first}, from token {offset} (byte {offset * TOKEN.itemsize}); shown are {start}:{stop}"
    )


def _range(text: str, length: int) -> tuple[int, int]:
    match = RANGE.fullmatch(text)
    start, stop = (int(match[1] or 0), int(match[2] or length)) if match else (1, 0)
    if not 0 <= start <= stop <= length:
        raise CorpusError(f"--tokens {text}; the document has {length} tokens; give FROM:TO within 0:{length}")
    return start, stop


def _show_document(folder: Path, wanted: int) -> str:
    count = 0
    for path in sorted(folder.glob("documents-*.jsonl.zst")):
        for number, line, _ in read_lines(path):
            if line.strip():
                if count == wanted:
                    return _format(path, number, json.loads(line))
                count += 1
    raise CorpusError(f"--doc {wanted}; {folder} has {count} documents; count from 0")


def _format(path: Path, number: int, row: dict[str, Any]) -> str:
    names = [field.name for field in dataclasses.fields(Document) if field.name != "text"]
    head = [f"{name}: {row[name]}" for name in names if row.get(name)]
    return "\n".join([f"{path}, line {number}", *head, "", row["text"]])
