"""What token shards look like on disk, and what is checked when they are written and read."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.document import CorpusError
from data_prep.lineage import MANIFEST, sha256_file

FORMAT = "kotune-token-shards"
VERSION = 1
NAME = re.compile(r"shard-\d+")
TOKEN = np.dtype("<u4")
END = np.dtype("<u8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of complete token shards."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CorpusError(
            f"{folder} has no {MANIFEST}; token shards are complete only with one; run `python -m data_prep tokens`"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"{path} is no JSON ({error}); it is written whole or not at all; make the folder again"
        ) from None
    kind = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else None
    if kind != (FORMAT, VERSION):
        raise CorpusError(f"{path} has format and version {kind}; {(FORMAT, VERSION)} is expected; give a shard folder")
    try:
        names = [shard["name"] for shard in manifest["shards"]]
    except (KeyError, TypeError) as error:
        raise CorpusError(f"{path} lists no shards ({error!r}); it is written whole; make the folder again") from None
    if wrong := [name for name in names if not (isinstance(name, str) and NAME.fullmatch(name))]:
        raise CorpusError(f"{path} names the shard {wrong[0]!r}; shard-00000 and so on are expected; copy it again")
    return manifest


def kind_of(folder: Path) -> str:
    """Returns what a folder holds: `token shards` or `documents`.

    Raises:
        CorpusError: neither.
    """
    path = folder / MANIFEST
    if path.is_file() and f'"{FORMAT}"' in path.read_text(encoding="utf-8"):
        return "token shards"
    if any(folder.glob("documents-*.jsonl.zst")):
        return "documents"
    raise CorpusError(
        f"{folder} holds no complete token shards and no documents-*.jsonl.zst; one of them is expected; "
        "give the output folder of `data_prep clean` or `data_prep tokens`"
    )


def is_whole(folder: Path, shard: dict[str, Any]) -> bool:
    """Whether both files of a shard lie in the folder, in the size that its counts give."""
    sizes = {".bin": TOKEN.itemsize * shard["tokens"], ".idx": END.itemsize * shard["documents"]}
    files = {folder / f"{shard['name']}{suffix}": size for suffix, size in sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


def check_file(folder: Path, name: str, size: int, files: dict[str, Any], verify: bool) -> None:
    """Raises CorpusError unless a file has `size` bytes, and with `verify` the hash the manifest gives it."""
    path = folder / name
    if name not in files or not path.is_file():
        raise CorpusError(f"{path} is missing; {MANIFEST} names it; copy the folder again")
    if not path.stat().st_size == files[name]["bytes"] == size:
        raise CorpusError(
            f"{path} has {path.stat().st_size} bytes; {size} follow from {MANIFEST}; copy the folder again"
        )
    if verify and (digest := sha256_file(path)) != files[name]["sha256"]:
        raise CorpusError(f"{path} has SHA-256 {digest}; {files[name]['sha256']} is expected; copy the folder again")


def check_ends(path: Path, ends: npt.NDArray[np.uint64], num_tokens: int) -> None:
    """Raises CorpusError unless the document ends rise to the number of tokens."""
    if ends[0] == 0 or np.any(ends[1:] <= ends[:-1]) or ends[-1] != num_tokens:
        raise CorpusError(
            f"{path}: the document ends do not rise to {num_tokens} (last is {ends[-1]}); copy the folder again"
        )


def check_ids(path: Path, max_id: int, facts: dict[str, Any]) -> None:
    """Raises CorpusError when an id is not below the vocabulary size that the manifest gives."""
    vocab_size = facts.get("tokenizer", {}).get("vocab_size")
    if vocab_size is not None and max_id >= vocab_size:
        raise CorpusError(
            f"{path}: token id {max_id}; vocab_size is {vocab_size}; make the shards with the tokenizer they name"
        )
