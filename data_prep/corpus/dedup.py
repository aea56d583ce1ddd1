"""`python -m data_prep dedup`: near-duplicates across folders, by MinHash over word 5-grams.

Within one dump of Wikipedia there are almost none; across snapshots and sources there are. Of a cluster the document
that comes first stays, so folders are given in the order of their worth.
"""

import argparse
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rensa import RMinHash, RMinHashLSH
from tqdm import tqdm

from data_prep.corpus.clean_shard import check_ledger, jsonl_writer
from data_prep.document import CorpusError, Document, as_row, read_documents
from data_prep.lineage import MANIFEST, sha256_json, sha256_path, source_files, write_manifest

NUM_PERMUTATIONS = 128
NUM_BANDS = 16
SEED = 42
WORDS = 5  # a shingle's words
SHARD_DOCUMENTS = 50_000


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand `dedup`."""
    parser = subparsers.add_parser("dedup", help="drop near-duplicates across folders", description=__doc__)
    parser.add_argument(
        "--documents", type=Path, nargs="+", required=True, help="folders; the earlier one's text stays"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the documents that stay")
    parser.add_argument("--threshold", type=float, default=0.8, help="estimated Jaccard similarity (default: 0.8)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the documents that stay and those dropped, and returns 0.

    Raises:
        CorpusError: a folder holds no documents, an option cannot be used, or `--out` holds something else.
    """
    _check_threshold(args.threshold)
    facts = {
        "documents_sha256": {str(folder): _known(folder) for folder in args.documents},
        "settings": {"threshold": args.threshold, "permutations": NUM_PERMUTATIONS, "bands": NUM_BANDS, "words": WORDS},
        "code_sha256": sha256_json([[p.name, sha256_path(p)] for p in source_files([Path(__file__)])]),
    }
    fingerprint = sha256_json(facts)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        if f'"{fingerprint}"' in _manifest_text(args.out):
            print(f"{args.out} is complete with the same documents, settings and code; nothing to do", file=sys.stderr)
            return 0
        raise CorpusError(
            f"{args.out} holds another run or other files; an empty folder is expected; give another --out"
        )
    partial = args.out.with_name(args.out.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    ledger = _write(args.documents, args.threshold, partial)
    check_ledger(args.out, ledger)
    inputs = {f"documents_{i}": folder for i, folder in enumerate(args.documents)}
    write_manifest(partial, inputs, fingerprint=fingerprint, settings=facts["settings"], ledger=ledger)
    if args.out.exists():
        args.out.rmdir()
    partial.replace(args.out)
    print(f"{args.out}: {ledger['out']} of {ledger['in']} documents; dropped: {ledger['dropped']}")
    return 0


def near_duplicates(documents: Iterable[Document], threshold: float = 0.8) -> dict[int, int]:
    """Returns, for each document that is to go, its position -> the position of the one that stays for it.

    The order of `documents` is the priority: a document goes if an earlier one that stays is like
    it, so a chain of small changes never drops a text that is unlike all that stay. Documents of
    fewer words than a shingle are compared whole. Memory: about 1.5 KB a document that stays.

    Args:
        documents: read once, in the order of their worth.
        threshold: least Jaccard similarity of the sets of word 5-grams, estimated from 128 hashes.

    Raises:
        CorpusError: `threshold` is not above 0 and at most 1.
    """
    _check_threshold(threshold)
    # Bands only propose candidates; the sketch decides.
    index = RMinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, num_bands=NUM_BANDS)
    sketches: dict[int, RMinHash] = {}
    dropped: dict[int, int] = {}
    for position, document in enumerate(documents):
        sketch = RMinHash(NUM_PERMUTATIONS, SEED)
        sketch.update(shingles(document.text))
        near = [other for other in sorted(index.query(sketch)) if sketch.jaccard(sketches[other]) >= threshold]
        if near:
            dropped[position] = near[0]
        else:
            index.insert(position, sketch)
            sketches[position] = sketch
    return dropped


def shingles(text: str) -> list[str]:
    """Returns the text's word 5-grams after NFC; the whole text if it has fewer words."""
    words = unicodedata.normalize("NFC", text).split()
    return [" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)] or [" ".join(words)]


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise CorpusError(f"--threshold is {threshold}; above 0 and at most 1 is expected; 0.8 is the default")


def _known(folder: Path) -> str:
    if not folder.is_dir():
        raise CorpusError(f"{folder} does not exist; a folder with documents-*.jsonl.zst is expected; mend --documents")
    if not (folder / MANIFEST).is_file():
        raise CorpusError(f"{folder} has no {MANIFEST}, so it is unfinished; run the command that writes it to its end")
    return sha256_path(folder)


def _manifest_text(folder: Path) -> str:
    path = folder / MANIFEST
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _documents(folders: list[Path], progress: str) -> Iterator[Document]:
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(unit=" documents", desc=progress, mininterval=interval) as bar:
        for folder in folders:
            for document in read_documents(folder):
                yield document
                bar.update()


def _write(folders: list[Path], threshold: float, out: Path) -> dict[str, Any]:
    """Reads the documents twice, as their texts need not fit into memory, and returns the ledger."""
    dropped = near_duplicates(_documents(folders, "compare"), threshold)
    stay_ids = dict.fromkeys(dropped.values(), "")
    num_read = num_kept = 0
    documents = enumerate(_documents(folders, "write"))
    item = next(documents, None)
    with jsonl_writer(out / "rejected-00000.jsonl.zst") as write_reject:
        while item is not None:
            with jsonl_writer(out / f"documents-{num_kept // SHARD_DOCUMENTS:05d}.jsonl.zst") as write_document:
                num_in_shard = 0
                while item is not None and num_in_shard < SHARD_DOCUMENTS:
                    position, document = item
                    num_read += 1
                    if position in stay_ids:
                        stay_ids[position] = document.id
                    if position in dropped:
                        kept_for = stay_ids[dropped[position]]
                        write_reject(as_row(document, reason="near_duplicate", duplicate_of=kept_for))
                    else:
                        write_document(as_row(document))
                        num_in_shard += 1
                    item = next(documents, None)
                num_kept += num_in_shard
    return {"in": num_read, "out": num_kept, "dropped": {"near_duplicate": len(dropped)} if dropped else {}}
