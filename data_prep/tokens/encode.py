"""The commands `tokens` (documents to token shards) and `train-tokenizer`."""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import lineage
from data_prep.document import CorpusError, read_documents
from data_prep.run_folder import RUN, locked
from data_prep.tokens.batches import EncodedBatch, Policy, document_text, encode_batches, read_batches
from data_prep.tokens.shards import ShardWriter
from data_prep.tokens.tokenizer import load_tokenizer, train_tokenizer
from data_prep.tokens.tokenizer_formats import Tokenizer

COUNTS = ("tokens", "utf8_bytes", "characters", "hangul_syllables")
TOKENS_PER_SHARD = 2**26  # 256 MiB; a killed run loses at most so much


class Counts:
    """The ledger and the counts for each source and language, which are the resumable state of a run."""

    def __init__(self) -> None:
        self.ledger: dict[str, Any] = {"documents_in": 0, "documents_out": 0, "dropped": {"empty": 0}}
        self.sources: dict[tuple[str, str], dict[str, int]] = {}

    def resume(self, state: dict[str, Any] | None) -> None:
        """Goes on where `as_json` was."""
        if state is not None:
            self.ledger = state["ledger"]
            for row in state["sources"]:
                self.sources[row.pop("source"), row.pop("lang")] = row

    def as_json(self) -> dict[str, Any]:
        """Returns `{"ledger", "sources"}` as the manifest has them."""
        sources = [{"source": key[0], "lang": key[1], **row} for key, row in sorted(self.sources.items())]
        return {"ledger": self.ledger, "sources": sources}

    def add(self, origin: tuple[str, str], values: Sequence[int]) -> None:
        """Counts one document that was written; `values` in the order of `COUNTS`."""
        self.ledger["documents_in"] += 1
        self.ledger["documents_out"] += 1
        row = self.sources.setdefault(origin, dict.fromkeys(("documents", *COUNTS), 0))
        row["documents"] += 1
        for name, value in zip(COUNTS, values, strict=True):
            row[name] += value

    def drop(self) -> None:
        """Counts one document without text."""
        self.ledger["documents_in"] += 1
        self.ledger["dropped"]["empty"] += 1


def add_parser(subparsers: Any) -> None:
    """Adds the commands `tokens` and `train-tokenizer`."""
    parser = subparsers.add_parser("tokens", help="encode documents into token shards")
    help_ = "folders with documents-*.jsonl.zst, in this order"
    parser.add_argument("--documents", type=Path, nargs="+", required=True, metavar="DIR", help=help_)
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="or a model directory")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards")
    yes_no = argparse.BooleanOptionalAction
    parser.add_argument("--bos", action=yes_no, default=True, help="begin each document with BOS (default: yes)")
    parser.add_argument("--eos", action=yes_no, default=True, help="end each document with EOS (default: yes)")
    help_ = f"upper limit of a shard (default: {TOKENS_PER_SHARD})"
    parser.add_argument("--tokens-per-shard", type=int, default=TOKENS_PER_SHARD, metavar="N", help=help_)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.set_defaults(run=run)
    parser = subparsers.add_parser("train-tokenizer", help="learn a byte-level BPE of Llama-3's kind")
    parser.add_argument("--documents", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--vocab-size", type=int, required=True, help="with the 256 special tokens")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the tokenizer's files")
    parser.set_defaults(run=run_train_tokenizer)


def run(args: argparse.Namespace) -> int:
    """Encodes every document, nothing truncated, and writes the shards; a killed run goes on at its last shard.

    Raises:
        CorpusError: an option, a document or the tokenizer cannot be used, another run writes the same shards, or the
            disk is full.
    """
    for option, value in (("--workers", args.workers), ("--tokens-per-shard", args.tokens_per_shard)):
        if value < 1:
            raise CorpusError(f"{option} {value}; at least 1 is needed; give {option} 1 or more")
    tokenizer = load_tokenizer(args.tokenizer)
    paths = document_files(args.documents)
    inputs = {**folder_inputs(args.documents), "tokenizer": tokenizer.path}
    settings = {"bos": args.bos, "eos": args.eos, "tokens_per_shard": args.tokens_per_shard}
    if is_made(args.out, inputs, {"settings": settings}):
        return 0
    made_of = lineage.sha256_json([settings, {name: lineage.sha256_path(path) for name, path in inputs.items()}])
    counts = Counts()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with locked(args.out), ShardWriter(args.out, args.tokens_per_shard, (made_of, counts.as_json)) as writer:
            counts.resume(writer.resumed)
            rates = _write(writer, counts, tokenizer, paths, args)
            _check_ledger(args.out, counts.ledger)
            facts = {"settings": settings, "tokenizer": _describe(tokenizer, args), **counts.as_json()}
            manifest = writer.finish(inputs, **facts)
    except OSError as error:
        raise CorpusError(
            f"{args.out}: {error}; the shards could not be written or read whole; "
            "make room or mend the path, and run again: finished shards are kept"
        ) from None
    told = f"{manifest['num_documents']} documents, {manifest['num_tokens']} tokens"
    print(f"{args.out}: {told}; {rates}; ledger {counts.ledger}")
    return 0


def _write(
    writer: ShardWriter, counts: Counts, tokenizer: Tokenizer, paths: Sequence[Path], args: argparse.Namespace
) -> str:
    """Encodes what is left of the documents and returns the rates in words."""
    if done := counts.ledger["documents_in"]:
        print(f"{args.out}: going on behind {done} documents that an earlier run has written", file=sys.stderr)
    batches = read_batches(paths, done)
    begin, num_bytes, num_tokens = time.monotonic(), 0, 0
    rates = "nothing left to encode"
    layout = "{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
    with tqdm(total=sum(path.stat().st_size for path in paths), bar_format=layout, disable=None) as bar:
        for encoded in encode_batches(batches, tokenizer, Policy(args.bos, args.eos), args.workers):
            _add(writer, counts, encoded)
            num_tokens += encoded.ids.size
            num_bytes += int(encoded.counts[:, 1].sum())
            seconds = max(time.monotonic() - begin, 1e-9)
            rates = f"{num_bytes / 1e6 / seconds:.1f} MB/s, {num_tokens / seconds:,.0f} tokens/s"
            bar.set_postfix_str(rates, refresh=False)
            bar.update(encoded.num_read - bar.n)
    return rates


def _add(writer: ShardWriter, counts: Counts, encoded: EncodedBatch) -> None:
    start = 0
    for origin, values in zip(encoded.origins, encoded.counts.tolist(), strict=True):
        if values[0] == 0:
            counts.drop()
            continue
        # The writer asks for the counts when it ends a shard, which is before this document is counted.
        writer.add(encoded.ids[start : start + values[0]])
        counts.add(origin, values)
        start += values[0]


def _describe(tokenizer: Tokenizer, args: argparse.Namespace) -> dict[str, Any]:
    words = ["BOS"] * args.bos + ["its ids"] + ["EOS"] * args.eos
    return {
        "file": tokenizer.path.name,
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "policy": f"every document is {', '.join(words)}",
    }


def run_train_tokenizer(args: argparse.Namespace) -> int:
    """Learns a tokenizer from documents and writes its files with a manifest."""
    inputs = folder_inputs(args.documents)
    facts = {"vocab_size": args.vocab_size}
    if is_made(args.out, inputs, facts):
        return 0
    document_files(args.documents)
    documents = itertools.chain.from_iterable(map(read_documents, args.documents))
    texts = (
        document_text(document.title, document.text) for document in tqdm(documents, unit=" documents", disable=None)
    )
    train_tokenizer(texts, args.vocab_size, args.out)
    lineage.write_manifest(args.out, inputs, **facts)
    print(f"{args.out}: a tokenizer of {args.vocab_size} tokens, 256 of them special")
    return 0


def document_files(folders: Sequence[Path]) -> list[Path]:
    """Returns the documents files of all folders in order.

    Raises:
        CorpusError: a folder holds none, or is what an unfinished command has written so far.
    """
    if unfinished := [one for one in folders if (one / RUN).is_file() and not (one / lineage.MANIFEST).is_file()]:
        raise CorpusError(
            f"{unfinished[0]} has no {lineage.MANIFEST}, so it is unfinished; a complete folder is expected; "
            "run the command that writes it to its end"
        )
    found = {folder: sorted(folder.glob("documents-*.jsonl.zst")) for folder in folders}
    if empty := [folder for folder, paths in found.items() if not paths]:
        raise CorpusError(f"{empty[0]} holds no documents-*.jsonl.zst; give the output folder of `data_prep clean`")
    return [path for folder in folders for path in found[folder]]


def folder_inputs(folders: Sequence[Path]) -> dict[str, Path]:
    """Returns the folders under the names a manifest gives them: `documents`, or `documents 0`, `documents 1`, ..."""
    if len(folders) == 1:
        return {"documents": folders[0]}
    return {f"documents {number}": folder for number, folder in enumerate(folders)}


def is_made(out: Path, inputs: dict[str, Path], facts: dict[str, Any]) -> bool:
    """Whether `out` is complete, of these inputs and with these facts; then says so.

    Raises:
        CorpusError: `out` is complete, but was made of something else.
    """
    path = out / lineage.MANIFEST
    if not path.is_file():
        return False
    manifest = json.loads(path.read_text(encoding="utf-8"))
    old = {name: value["sha256"] for name, value in manifest.get("inputs", {}).items()}
    new = {name: lineage.sha256_path(value) for name, value in inputs.items()}
    old.update({name: manifest.get(name) for name in facts})
    new.update(facts)
    if differing := sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
        told = ", ".join(f"{name}: {old.get(name)} there, {new.get(name)} now" for name in differing)
        raise CorpusError(f"{out} is complete, but made of something else ({told}); remove it or give another --out")
    print(f"{out}: unchanged, nothing to do")
    return True


def _check_ledger(out: Path, ledger: dict[str, Any]) -> None:
    accounted = ledger["documents_out"] + sum(ledger["dropped"].values())
    if ledger["documents_in"] != accounted:
        raise CorpusError(f"{out}: {ledger['documents_in']} documents read; {accounted} accounted for; report this")
