"""Datasets that `datasets.load_dataset` reads, streamed: a name on the Hugging Face Hub, or a folder laid out alike."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.document import CorpusError
from data_prep.lineage import sha256_path
from data_prep.readers.fields import Fields, Record, Records
from data_prep.readers.rows import one_line
from data_prep.source import Part, PartReader


@dataclass
class HubSource:
    """A streamed dataset; its parts are its files as `datasets` divides them, so offsets count these, not bytes."""

    name: str
    subset: str | None
    split: str | None
    fields: Fields
    lang: str | None

    def settings(self) -> dict[str, Any]:
        """See `Source`; a dataset of the Hub is known by its commit."""
        folder = Path(self.name)
        version = sha256_path(folder) if folder.is_dir() else _commit(self.name)
        return {
            "format": "datasets",
            "subset": self.subset,
            "split": self.split,
            "version": version,
            "fields": asdict(self.fields),
        }

    def parts(self, part_bytes: int) -> list[Part]:
        """See `Source`; `part_bytes` has no effect."""
        return [Part(Path(self.name), index, index + 1) for index in range(self._open().num_shards)]

    def read(self, part: Part) -> PartReader:
        """See `Source`."""
        return Records(
            part,
            self._records(part),
            self.fields,
            lambda number: f"{self.name} part {part.start} row {number}",
            lambda number: f"{part.start}:{number}",
        )

    def _records(self, part: Part) -> Iterator[Record]:
        dataset = self._open()
        shard = dataset.shard(num_shards=dataset.num_shards, index=part.start)
        try:
            for number, row in enumerate(shard, start=1):
                yield number, part.start, row
        except (OSError, ValueError) as error:
            raise CorpusError(
                f"{self.name} part {part.start} cannot be read: {one_line(error)}; readable files are expected; "
                "run again, or download the dataset and give its folder"
            ) from None

    def _open(self) -> Any:
        """Returns the split as a streaming dataset."""
        import datasets

        try:
            found = datasets.load_dataset(self.name, self.subset, split=self.split, streaming=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CorpusError(
                f"{self.name}{f' ({self.subset})' if self.subset else ''} cannot be opened: {one_line(error)}; "
                "an existing path, or a dataset of the Hugging Face Hub and access to it, is expected; "
                "correct --documents, --subset or --split"
            ) from None
        if isinstance(found, dict):
            if len(found) != 1:
                raise CorpusError(
                    f"{self.name} has {len(found)} splits; one is read at a time; give --split {' or '.join(found)}"
                )
            found = next(iter(found.values()))
        return found


def _commit(name: str) -> str:
    """Returns the commit that the Hub's main branch has now."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name).sha)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{name}: the Hub does not tell its version: {one_line(error)}; access to it is expected; "
            "download the dataset and give its folder"
        ) from None
