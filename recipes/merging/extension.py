"""Rows of the embedding and the head for the new pieces of an extended vocabulary.

A new piece starts as what the model knew it as: the embedding of the old pieces it was written with, averaged. In the
head it starts as their average too, or as the row of the first of them, which predicts the piece as well as its
beginning was predicted.

Source: average: Koto et al. 2021 (IndoBERTweet, arXiv 2109.04607), section 3; the first piece's row for the head: Kim
et al. 2024 (EEVE, arXiv 2402.14714); rows that nothing is known of, as the average of all: Hewitt 2021, Initializing
New Word Embeddings for Pretrained Language Models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_prep.hf_directory import ModelDirectory, TensorEntry, TensorWriter
from recipes.merging.errors import MergeError
from recipes.merging.names import EMBEDDINGS, HEAD

HEADS = ("mean", "first")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCK_ROWS = 8192  # of a mean over all rows, in float64


@dataclass(frozen=True)
class Extension:
    """A model and the pieces it gets.

    Attributes:
        model: the directory whose rows are taken.
        pieces: new id -> the old ids that its piece was written with.
        num_old: rows of the old vocabulary; the model may have some more, as padding.
        num_rows: that the extended model has.
        head: one of `HEADS`.
    """

    model: ModelDirectory
    pieces: Mapping[int, Sequence[int]]
    num_old: int
    num_rows: int
    head: str

    @property
    def matrices(self) -> list[str]:
        """Names of the tensors that get rows: of tied weights, one."""
        return [name for name in (EMBEDDINGS, HEAD) if name in self.model.tensors]

    @property
    def output_bytes(self) -> int:
        """Size of the tensors to be written."""
        old = sum(entry.num_bytes for entry in self.model.tensors.values())
        entries = [self.model.tensors[name] for name in self.matrices]
        return old + sum((self.num_rows - e.shape[0]) * e.num_bytes // e.shape[0] for e in entries)


def plan_extension(
    model: ModelDirectory, pieces: Mapping[int, Sequence[int]], num_old: int, multiple_of: int, head: str
) -> Extension:
    """Returns the rows that a model gets.

    Args:
        model: the directory.
        pieces: new id -> old ids, as `new_pieces` finds them.
        num_old: tokens of the old vocabulary.
        multiple_of: the number of rows is rounded up to one of it.
        head: one of `HEADS`.

    Raises:
        MergeError: the model lacks a matrix or rows for its own vocabulary, has a dtype that is no plain float, or its
            tied rows are to begin in two ways.
    """
    is_tied = bool(model.config.get("tie_word_embeddings", False))
    for name in [EMBEDDINGS] if is_tied else [EMBEDDINGS, HEAD]:
        entry = model.tensors.get(name)
        if entry is None or entry.dtype not in DTYPES or len(entry.shape) != 2 or entry.shape[0] < num_old:
            told = f"is {entry.dtype} {list(entry.shape)}" if entry else "is missing"
            raise MergeError(
                f"{model.path}: {name} {told}; a matrix of {num_old} rows or more in {', '.join(DTYPES)} is expected; "
                "give a plain Llama with its own tokenizer beside it"
            )
    if is_tied and head == "first":
        raise MergeError(
            f"head: first, but {model.path} ties its head to the embedding (tie_word_embeddings); one row cannot begin "
            "in two ways; set head=mean"
        )
    rows = max(model.tensors[EMBEDDINGS].shape[0], max(pieces) + 1)
    return Extension(model, pieces, num_old, -(-rows // multiple_of) * multiple_of, head)


def write_extended(extension: Extension, folder: Path) -> None:
    """Writes the tensors of the extended model, under their names and in their order; memory holds one matrix.

    All that the model had is copied bit for bit.

    Args:
        extension: of `plan_extension`.
        folder: gets the safetensors files.
    """
    model, matrices = extension.model, extension.matrices
    entries = sorted(model.tensors.values(), key=lambda entry: (entry.file, entry.start))
    shapes = {e.name: (extension.num_rows, e.shape[1]) if e.name in matrices else e.shape for e in entries}
    with TensorWriter(folder, [(e.name, e.dtype, shapes[e.name]) for e in entries]) as writer:
        for entry in entries:
            data = model.read(entry.name)
            if entry.name in matrices:
                takes_first = extension.head == "first" and entry.name == HEAD
                data = _bytes(extended_rows(_rows(data, entry), extension, takes_first))
            writer.write(entry.name, data)
        writer.finish()


def extended_rows(old: torch.Tensor, extension: Extension, takes_first: bool) -> torch.Tensor:
    """Returns a matrix with the rows of the new pieces, (num_rows, width), in the dtype of the old one.

    A new row is the average of the old rows of its pieces in fp32, rounded once. A row that belongs to no piece, as
    padding does, is the average of the whole old vocabulary: its logit stays an average one, where a row of zeros
    would have a logit of 0 among those of a model whose logits are mostly negative.

    Args:
        old: (rows, width), of which the first `num_old` belong to the old vocabulary.
        extension: the pieces.
        takes_first: whether a new row is that of its first piece, and no average.
    """
    rows = torch.empty(extension.num_rows, old.shape[1], dtype=old.dtype)
    rows[: len(old)] = old
    total = torch.zeros(old.shape[1], dtype=torch.float64)
    for start in range(0, extension.num_old, BLOCK_ROWS):
        total += old[start : min(start + BLOCK_ROWS, extension.num_old)].double().sum(0)
    rows[len(old) :] = (total / extension.num_old).to(old.dtype)
    for id_, ids in extension.pieces.items():
        rows[id_] = old[ids[0]] if takes_first else old[list(ids)].float().mean(0).to(old.dtype)
    return rows


def _rows(data: np.ndarray, entry: TensorEntry) -> torch.Tensor:
    return torch.from_numpy(np.array(data)).view(DTYPES[entry.dtype]).reshape(entry.shape)


def _bytes(rows: torch.Tensor) -> np.ndarray:
    return rows.view(torch.uint8).numpy().reshape(-1)
