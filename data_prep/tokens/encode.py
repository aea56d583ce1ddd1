"""The commands `tokens` (documents to token shards) and `train-tokenizer`."""

import argparse
import collections
import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_prep import lineage
from data_prep.document import CorpusError, Document, read_documents
from data_prep.tokens.shards import ShardWriter
from data_prep.tokens.tokenizer import load_tokenizer, train_tokenizer

BATCH_CHARS = 2_000_000
COUNTS = ("documents", "tokens", "utf8_bytes")
Ids = npt.NDArray[np.uint32]


def add_parser(subparsers: Any) -> None:
    """Adds the commands `tokens` and `train-tokenizer`."""
    parser = subparsers.add_parser("tokens", help="encode documents into token shards")
    parser.add_argument("--documents", type=Path, required=True, metavar="DIR", help="has documents-*.jsonl.zst")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="or a model directory")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.set_defaults(run=run)
    parser = subparsers.add_parser("train-tokenizer", help="learn a byte-level BPE of Llama-3's kind")
    parser.add_argument("--documents", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--vocab-size", type=int, required=True, help="with the 256 special tokens")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the tokenizer's files")
    parser.set_defaults(run=run_train_tokenizer)


def run(args: argparse.Namespace) -> int:
    """Encodes every document as BOS + ids + EOS, nothing truncated, and writes the shards."""
    if args.workers < 1:
        raise CorpusError(f"--workers {args.workers}; at least 1 is needed; give --workers 1 or more")
    tokenizer = load_tokenizer(args.tokenizer)
    inputs = {"documents": args.documents, "tokenizer": tokenizer.path}
    if is_made(args.out, inputs, {}):
        return 0
    ledger: dict[str, Any] = {"documents_in": 0, "documents_out": 0, "dropped": {"empty": 0}}
    documents = _drop_empty(read_documents(args.documents), ledger)
    sources: dict[tuple[str, str], dict[str, int]] = {}
    with ShardWriter(args.out) as writer:
        encoded = _encode(documents, tokenizer.path, args.workers)
        for document, ids, utf8_bytes in tqdm(encoded, unit=" documents", disable=None):
            ids = np.concatenate([[tokenizer.bos_id], ids, [tokenizer.eos_id]]).astype(np.uint32)
            writer.add(ids)
            ledger["documents_out"] += 1
            counts = sources.setdefault((document.source, document.lang), dict.fromkeys(COUNTS, 0))
            for name, value in zip(COUNTS, (1, len(ids), utf8_bytes), strict=True):
                counts[name] += value
        _check_ledger(args.out, ledger)
        manifest = writer.finish(
            inputs,
            tokenizer={
                "file": tokenizer.path.name,
                "sha256": tokenizer.sha256,
                "vocab_size": tokenizer.vocab_size,
                "bos_id": tokenizer.bos_id,
                "eos_id": tokenizer.eos_id,
                "policy": "every document is BOS, its ids, EOS",
            },
            sources=[{"source": key[0], "lang": key[1], **counts} for key, counts in sorted(sources.items())],
            ledger=ledger,
        )
    print(f"{args.out}: {manifest['num_documents']} documents, {manifest['num_tokens']} tokens; ledger {ledger}")
    return 0


def run_train_tokenizer(args: argparse.Namespace) -> int:
    """Learns a tokenizer from documents and writes its files with a manifest."""
    inputs = {f"documents {number}": folder for number, folder in enumerate(args.documents)}
    facts = {"vocab_size": args.vocab_size}
    if is_made(args.out, inputs, facts):
        return 0
    documents = itertools.chain.from_iterable(map(read_documents, args.documents))
    texts = (document_text(document) for document in tqdm(documents, unit=" documents", disable=None))
    train_tokenizer(texts, args.vocab_size, args.out)
    lineage.write_manifest(args.out, inputs, **facts)
    print(f"{args.out}: a tokenizer of {args.vocab_size} tokens, 256 of them special")
    return 0


def document_text(document: Document) -> str:
    """Returns what is encoded of a document: its title, a blank line, its text.

    The title is left out when it is empty or the text starts with it already, as the text of a web page often does.
    """
    if not document.title or document.text.startswith(document.title):
        return document.text
    return f"{document.title}\n\n{document.text}"


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


def _drop_empty(documents: Iterable[Document], ledger: dict[str, Any]) -> Iterator[Document]:
    for document in documents:
        ledger["documents_in"] += 1
        if document.text.strip():
            yield document
        else:
            ledger["dropped"]["empty"] += 1


def _check_ledger(out: Path, ledger: dict[str, Any]) -> None:
    accounted = ledger["documents_out"] + sum(ledger["dropped"].values())
    if ledger["documents_in"] != accounted:
        raise CorpusError(f"{out}: {ledger['documents_in']} documents read; {accounted} accounted for; report this")


def _encode(documents: Iterable[Document], tokenizer: Path, workers: int) -> Iterator[tuple[Document, Ids, int]]:
    """Yields each document with its ids and UTF-8 bytes, in order.

    At most four batches per worker wait at a time: `Pool.imap` would read the whole corpus ahead.
    """
    batches = _batches(documents)
    if workers == 1:
        for batch in batches:
            yield from _join(batch, _encode_batch(tokenizer, [document_text(document) for document in batch]))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of the tokenizers' threads
    waiting: collections.deque[tuple[list[Document], concurrent.futures.Future[list[tuple[Ids, int]]]]]
    waiting = collections.deque()
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        for batch in batches:
            texts = [document_text(document) for document in batch]
            waiting.append((batch, pool.submit(_encode_batch, tokenizer, texts)))
            if len(waiting) >= 4 * workers:
                done, future = waiting.popleft()
                yield from _join(done, future.result())
        for done, future in waiting:
            yield from _join(done, future.result())


def _join(batch: list[Document], encoded: list[tuple[Ids, int]]) -> Iterator[tuple[Document, Ids, int]]:
    return ((document, ids, utf8_bytes) for document, (ids, utf8_bytes) in zip(batch, encoded, strict=True))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    chars = 0
    for document in documents:
        try:
            document.text.encode()
            document.title.encode()
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"document {document.id!r} holds a lone surrogate at character {error.start}; "
                "text must be valid Unicode; clean the documents again"
            ) from None
        batch.append(document)
        chars += len(document.text)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _encode_batch(tokenizer: Path, texts: list[str]) -> list[tuple[Ids, int]]:
    loaded = _load_once(tokenizer)
    # One text at a time keeps a worker on one core; the workers are the parallelism.
    return [(np.array(loaded.encode(text), dtype=np.uint32), len(text.encode())) for text in texts]


_load_once = functools.cache(load_tokenizer)
