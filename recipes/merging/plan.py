"""What a merge will do, known from configurations and tensor headers alone: no tensor is read."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.loader import ConfigError
from data_prep.hf_directory import ModelDirectory, Shard, TensorEntry, plan_shards
from recipes.merging.compatibility import refuse_incompatible
from recipes.merging.errors import MergeError
from recipes.merging.names import EMBEDDINGS, HEAD, LanguagePart, language_part, layer_of, scale_of
from recipes.merging.settings import MergeConfig, VectorConfig
from recipes.merging.vocabulary import ABSENT, Rows, matched_rows

BLOCK_ELEMENTS = 1 << 20  # read, merged and written by one worker at once
SPARE_BYTES = 100 * 10**6  # tokenizer files, configuration and manifest
PROGRAM_BYTES = 600 * 10**6  # the interpreter with torch, and the tokenizers while they are compared


@dataclass(frozen=True)
class Source:
    """One vector's share of a tensor; `rows` as in `matched_rows`, None where elements lie alike."""

    plus: TensorEntry
    minus: TensorEntry
    scale: float
    density: float
    drop_rate: float
    rows: Rows | None


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the result: the target's entry, and what is added; without sources it passes bit for bit."""

    target: TensorEntry
    sources: list[Source]

    @property
    def block_elements(self) -> int:
        """Elements worked on at once, a multiple of 8; whole rows where rows are matched."""
        if not any(source.rows for source in self.sources):
            return BLOCK_ELEMENTS
        width = int(np.prod(self.target.shape[1:]))
        return max(BLOCK_ELEMENTS // width // 8, 1) * 8 * width


@dataclass(frozen=True)
class MergePlan:
    """Everything about a merge that does not need its tensors.

    Attributes:
        settings: what was asked for.
        directories: the models by role (target, plus, minus, plus_2, ...).
        target: the target's language model.
        vectors: plus and minus of every vector.
        tensors: stored name -> plan, in the order of writing.
        shards: the files of the result.
        rows: of every vector, how the vocabularies were matched.
    """

    settings: MergeConfig
    directories: dict[str, ModelDirectory]
    target: LanguagePart
    vectors: list[tuple[LanguagePart, LanguagePart]]
    tensors: dict[str, TensorPlan]
    shards: list[Shard]
    rows: list[Rows | None]

    @property
    def output_bytes(self) -> int:
        """Size of the result's tensor files."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def input_bytes(self) -> int:
        """What is read of tensors, once each; those that TIES prunes are read twice."""
        entries = [plan.target for plan in self.tensors.values()]
        entries += [e for plan in self.tensors.values() for s in plan.sources for e in (s.plus, s.minus)]
        return sum(entry.num_bytes for entry in entries)

    def peak_bytes(self, num_workers: int) -> int:
        """Returns an upper estimate of the resident memory, whatever the size of the model."""
        buffers = 2 + 2 * max((len(plan.sources) for plan in self.tensors.values()), default=0)
        widest = max((plan.block_elements for plan in self.tensors.values()), default=BLOCK_ELEMENTS)
        item = max((plan.target.num_bytes // max(_count(plan.target), 1) for plan in self.tensors.values()), default=2)
        prunes = any(source.density < 1 for plan in self.tensors.values() for source in plan.sources)
        return PROGRAM_BYTES + num_workers * widest * (item * buffers + 8 + (24 if prunes else 0))

    def vocabulary_facts(self) -> dict[str, object]:
        """Returns the rule for the vocabulary and what it came to, as the manifest states it."""
        added = [None if rows is None else int((rows[0] != ABSENT).sum()) for rows in self.rows]
        total = self.target.tensors[EMBEDDINGS].shape[0] if EMBEDDINGS in self.target.tensors else 0
        kept = [None if count is None else total - count for count in added]
        return {"rule": self.settings.vocabulary, "rows": total, "rows_added_to": added, "rows_kept": kept}


def plan_merge(settings: MergeConfig, max_shard_bytes: int = 5 * 10**9) -> MergePlan:
    """Opens the models, refuses what cannot be added, and plans every tensor.

    Raises:
        MergeError: the models differ, or a range of layers lies outside the model.
        ConfigError: a directory is incomplete or damaged.
    """
    opened = {path: ModelDirectory.open(path) for path in dict.fromkeys(settings.inputs().values())}
    parts = {path: language_part(model) for path, model in opened.items()}
    target = parts[settings.target]
    vectors = [(parts[vector.plus], parts[vector.minus]) for vector in settings.vectors()]
    refuse_incompatible(target, vectors, settings.vocabulary)
    _refuse_missing_layers(settings, target)
    rows = [matched_rows(settings.vocabulary, target, *pair) for pair in vectors]
    names = {entry.name: plain for plain, entry in target.tensors.items()}
    tensors = {
        stored: TensorPlan(entry, _sources(names[stored], settings, target, vectors, rows) if stored in names else [])
        for stored, entry in target.model.tensors.items()
        if stored in names or stored in target.others
    }
    planned = [(name, plan.target.dtype, plan.target.shape) for name, plan in tensors.items()]
    try:
        shards = plan_shards(planned, max_shard_bytes)
    except KeyError as error:
        raise ConfigError(
            target.model.path, [f"has tensors of dtype {error}, whose size is unknown; convert them"]
        ) from None
    directories = {role: opened[path] for role, path in settings.inputs().items()}
    return MergePlan(settings, directories, target, vectors, tensors, shards, rows)


def refuse_full_disk(output_dir: Path, needed_bytes: int) -> None:
    """Compares what will be written with the room there is.

    Raises:
        MergeError: there is less room.
    """
    place = output_dir.resolve()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes + SPARE_BYTES:
        raise MergeError(
            f"{place} has {free / 1e9:.2f} GB free; the merge writes {(needed_bytes + SPARE_BYTES) / 1e9:.2f} GB; "
            "free some or give an output_dir on another disk"
        )


def _sources(
    name: str,
    settings: MergeConfig,
    target: LanguagePart,
    vectors: list[tuple[LanguagePart, LanguagePart]],
    rows: list[Rows | None],
) -> list[Source]:
    is_vocabulary = name in (EMBEDDINGS, HEAD)
    num_rows = target.tensors[name].shape[0] if is_vocabulary else 0
    if is_vocabulary and settings.vocabulary == "exclude_embeddings":
        return []
    return [
        _source(vector, name, num_rows, plus.tensors[name], minus.tensors[name], matched if is_vocabulary else None)
        for vector, (plus, minus), matched in zip(settings.vectors(), vectors, rows, strict=True)
    ]


def _source(
    vector: VectorConfig, name: str, num_rows: int, plus: TensorEntry, minus: TensorEntry, rows: Rows | None
) -> Source:
    if rows is not None:  # a padded head may have other rows than the embedding
        fitted = np.full((2, num_rows), ABSENT, dtype=np.int64)
        count = min(num_rows, len(rows[0]))
        there = (rows[0] < plus.shape[0]) & (rows[1] < minus.shape[0])
        fitted[:, :count] = np.where(there, rows, ABSENT)[:, :count]
        rows = fitted[0], fitted[1]
    return Source(plus, minus, scale_of(vector, name), vector.density, vector.drop_rate, rows)


def _refuse_missing_layers(settings: MergeConfig, target: LanguagePart) -> None:
    last = max((layer for name in target.tensors if (layer := layer_of(name)) is not None), default=-1)
    for vector in settings.vectors():
        if beyond := [one for one in vector.layers if one.last > last]:
            raise MergeError(
                f"layers {beyond[0].first} to {beyond[0].last} have a factor; {target.model.path} has the layers 0 to "
                f"{last}; mend `layers`"
            )


def _count(entry: TensorEntry) -> int:
    return int(np.prod(entry.shape, dtype=np.int64))
