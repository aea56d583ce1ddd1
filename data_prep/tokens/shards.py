"""Token shards: documents as uint32 ids on disk, readable with `numpy.memmap` alone.

The layout is specified in `data_prep/tokens/SHARDS.md`.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from data_prep.document import CorpusError
from data_prep.lineage import MANIFEST, sha256_file, sha256_json, write_json, write_manifest
from data_prep.tokens.shard_format import (
    END,
    FORMAT,
    TOKEN,
    VERSION,
    check_ends,
    check_file,
    check_ids,
    is_whole,
    read_manifest,
)


class ShardWriter:
    """Writes documents into a folder; the folder counts as complete once `finish` has returned.

    A document never straddles two shards, so one longer than `tokens_per_shard` has a shard of its own.
    Leaving the context without `finish` removes what was written.

    Args:
        folder: created when missing. Remains of an unfinished earlier run in it are removed.
        tokens_per_shard: upper limit of a shard; 2**27 tokens are 512 MiB.
        resumable: hash of all that the shards are made of, and a function that returns what the caller
            has counted so far (JSON). With it, finished shards outlive a killed run: `FOLDER.progress.json` beside
            the folder names them, and `resumed` is what the function returned when the last of them ended.
    """

    def __init__(
        self, folder: Path, tokens_per_shard: int = 2**27, resumable: tuple[str, Callable[[], Any]] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.resumed: Any = None
        self._tokens_per_shard = tokens_per_shard
        self._resumable = resumable
        self._progress = self.folder.with_name(f"{self.folder.name}.progress.json")
        self._shards: list[dict[str, Any]] = []
        self._tokens: BinaryIO | None = None
        self._ends: BinaryIO | None = None
        self._max_id = -1
        self.folder.mkdir(parents=True, exist_ok=True)
        is_complete = (self.folder / MANIFEST).is_file()
        if not is_complete and resumable:
            self._resume(resumable[0])
        kept = {f"{shard['name']}{suffix}" for shard in self._shards for suffix in (".bin", ".idx")}
        for path in self.folder.glob("shard-*"):
            if path.suffix == ".tmp" or not (is_complete or path.name in kept):
                path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for path in self.folder.glob("shard-*.tmp"):
            path.unlink()

    def add(self, token_ids: npt.NDArray[np.uint32]) -> None:
        """Appends one document.

        Args:
            token_ids: (tokens,), uint32, with whatever BOS and EOS the reader shall see.

        Raises:
            ValueError: the array is no uint32 vector or is empty.
        """
        if token_ids.dtype != np.uint32 or token_ids.ndim != 1 or token_ids.size == 0:
            raise ValueError(
                f"document of dtype {token_ids.dtype} and shape {token_ids.shape}; "
                "a non-empty vector of uint32 is expected; drop empty documents before the writer"
            )
        if self._tokens is None or self._shards[-1]["tokens"] + token_ids.size > self._tokens_per_shard:
            self._open_next()
        assert self._tokens is not None
        assert self._ends is not None
        shard = self._shards[-1]
        shard["documents"] += 1
        shard["tokens"] += token_ids.size
        self._tokens.write(token_ids.astype(TOKEN, copy=False).tobytes())
        self._ends.write(END.type(shard["tokens"]).astype(END).tobytes())
        self._max_id = max(self._max_id, int(token_ids.max()))

    def finish(self, inputs: dict[str, Path], **facts: Any) -> dict[str, Any]:
        """Gives the shards their final names, writes `manifest.json` last, and returns it.

        Args:
            inputs: name -> file or folder the tokens were made from; their hashes go into the manifest.
            facts: further JSON values: `tokenizer` (its `vocab_size` is checked against the ids), sources, ledger.

        Raises:
            CorpusError: there are no documents, an id is not below `vocab_size`, or the folder
                was already complete with other content.
        """
        self._close()
        if not self._shards:
            raise CorpusError(f"{self.folder}: 0 documents were written; at least one is expected; check the input")
        check_ids(self.folder, self._max_id, facts)
        if (self.folder / MANIFEST).is_file():
            return self._agree_with_existing()
        for path in self.folder.glob("shard-*.tmp"):
            path.replace(path.with_suffix(""))
        manifest = write_manifest(
            self.folder,
            inputs,
            format=FORMAT,
            version=VERSION,
            num_documents=sum(shard["documents"] for shard in self._shards),
            num_tokens=sum(shard["tokens"] for shard in self._shards),
            max_token_id=self._max_id,
            shards=self._shards,
            **facts,
        )
        self._progress.unlink(missing_ok=True)
        return manifest

    def _agree_with_existing(self) -> dict[str, Any]:
        manifest = read_manifest(self.folder)
        old = {name: file["sha256"] for name, file in manifest["files"].items()}
        new = {path.stem: sha256_file(path) for path in self.folder.glob("shard-*.tmp")}
        if old != new:
            tokens = sum(shard["tokens"] for shard in self._shards)
            raise CorpusError(
                f"{self.folder} is complete with other content ({manifest['num_tokens']} tokens there, {tokens} now); "
                "a complete folder is never overwritten; remove it or give another output folder"
            )
        return manifest

    def _resume(self, made_of: str) -> None:
        """Takes over the shards that an earlier run of the same inputs has finished."""
        try:
            progress = json.loads(self._progress.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if progress["made_of"] != made_of or not all(is_whole(self.folder, shard) for shard in progress["shards"]):
            return
        self._shards, self._max_id, self.resumed = progress["shards"], progress["max_id"], progress["state"]

    def _keep_finished(self) -> None:
        """Gives the shard just closed its final name, and records it with the caller's counts."""
        if self._resumable is None or self._tokens is None:
            return
        for path in self.folder.glob("shard-*.tmp"):
            path.replace(path.with_suffix(""))
        made_of, state = self._resumable
        progress = {"made_of": made_of, "max_id": self._max_id, "shards": self._shards, "state": state()}
        write_json(self._progress, progress)

    def _open_next(self) -> None:
        self._close()
        self._keep_finished()
        name = f"shard-{len(self._shards):05d}"
        self._tokens = (self.folder / f"{name}.bin.tmp").open("wb")
        self._ends = (self.folder / f"{name}.idx.tmp").open("wb")
        self._shards.append({"name": name, "documents": 0, "tokens": 0})

    def _close(self) -> None:
        for file in (self._tokens, self._ends):
            if file is not None and not file.closed:
                file.flush()
                os.fsync(file.fileno())
                file.close()


@dataclass(frozen=True)
class Shards:
    """A complete folder of token shards, open for reading at random.

    Attributes:
        folder: where it lies.
        manifest: content of `manifest.json`.
        fingerprint: of the tokens: SHA-256 over the hashes of all files. Where they lie, and which commit of the code
            made them, is no part of it, so that the same corpus is read in the same order everywhere.
        num_documents: over all shards.
        num_tokens: over all shards.
        document_lengths: tokens of each document in file order, (num_documents,), int64.
    """

    folder: Path
    manifest: dict[str, Any]
    fingerprint: str
    num_documents: int
    num_tokens: int
    document_lengths: npt.NDArray[np.int64]
    _first_documents: npt.NDArray[np.int64]  # (shards,)
    _ends: list[npt.NDArray[np.uint64]]
    _tokens: list[npt.NDArray[np.uint32]]

    @classmethod
    def open(cls, folder: Path, verify: bool = False) -> Self:
        """Maps a folder's shards into memory.

        Args:
            folder: output of `python -m data_prep tokens`.
            verify: also reads every byte: SHA-256 of the files and the range of all ids.

        Raises:
            CorpusError: no or another manifest; a missing, cut or changed file; ids outside the vocabulary.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        check_ids(folder / MANIFEST, manifest["max_token_id"], manifest)
        tokens: list[npt.NDArray[np.uint32]] = []
        ends: list[npt.NDArray[np.uint64]] = []
        for shard in manifest["shards"]:
            for suffix, size in (
                (".bin", TOKEN.itemsize * shard["tokens"]),
                (".idx", END.itemsize * shard["documents"]),
            ):
                check_file(folder, shard["name"] + suffix, size, manifest["files"], verify)
            tokens.append(np.memmap(folder / f"{shard['name']}.bin", dtype=TOKEN, mode="r"))
            ends.append(np.fromfile(folder / f"{shard['name']}.idx", dtype=END))
            check_ends(folder / f"{shard['name']}.idx", ends[-1], shard["tokens"])
            if verify:
                check_ids(folder / f"{shard['name']}.bin", int(tokens[-1].max()), manifest)
        lengths = [np.diff(shard_ends.astype(np.int64), prepend=0) for shard_ends in ends]
        return cls(
            folder=folder,
            manifest=manifest,
            fingerprint=sha256_json({name: entry["sha256"] for name, entry in manifest["files"].items()}),
            num_documents=sum(map(len, ends)),
            num_tokens=sum(map(len, tokens)),
            document_lengths=np.concatenate(lengths),
            _first_documents=np.cumsum([0, *map(len, ends)], dtype=np.int64)[:-1],
            _ends=ends,
            _tokens=tokens,
        )

    def read(self, document: int, start: int, stop: int) -> npt.NDArray[np.uint32]:
        """Returns a copy of a document's tokens `start:stop`, (stop - start,), uint32.

        Raises:
            IndexError: there is no such document, or it has no such range.
            CorpusError: an id is not in the vocabulary, which on a GPU would end as a device assert.
        """
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document}; {self.folder} has {self.num_documents}; count from 0")
        length = int(self.document_lengths[document])
        if not 0 <= start <= stop <= length:
            raise IndexError(f"tokens {start}:{stop} of document {document}; it has {length}; stay within 0:{length}")
        shard = int(np.searchsorted(self._first_documents, document, side="right")) - 1
        end = int(self._ends[shard][document - self._first_documents[shard]])
        ids = np.array(self._tokens[shard][end - length + start : end - length + stop])
        if ids.size:
            check_ids(self.folder, int(ids.max()), self.manifest)
        return ids

    def __reduce__(self) -> tuple[Any, ...]:
        # A memmap pickles as the whole array; a loader's worker process opens the files itself instead.
        return type(self).open, (self.folder,)
