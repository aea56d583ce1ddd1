"""The corpus once more in the form of kowikitext: three text files, articles one after another.

An article is its title (` = 제목 = `), its paragraphs and its section headings (` = = 절 = = `, one equals sign more a
level), all separated by blank lines. Which file an article stands in depends on its id alone.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_prep.corpus.assemble import Drops
from data_prep.corpus.shard import ShardTask
from data_prep.disk import disk_full
from data_prep.document import CorpusError, read_jsonl
from data_prep.lineage import whole_file

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Shares:
    """Of all articles, how many stand in the files `.dev` and `.test`; the others are `.train`."""

    dev: float = 0.01
    test: float = 0.01

    def check(self) -> None:
        """Raises CorpusError if they are no shares."""
        if not (self.dev >= 0 and self.test >= 0 and self.dev + self.test < 1):
            raise CorpusError(
                f"--dev-share is {self.dev} and --test-share {self.test}; 0 or more each and less than 1 in all are "
                "expected; 0.01 each is the default"
            )

    def split_of(self, document_id: str) -> str:
        """Returns the split of a document: the same in every run and dump."""
        place = int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "big") / 2**64
        if place < self.test:
            return "test"
        return "dev" if place < self.test + self.dev else "train"


def article(title: str, text: str) -> str:
    """Returns one article in the corpus's form, with the blank lines that separate it from the next."""
    return f" = {' '.join(title.split())} = \n\n{text}\n\n" if title.strip() else f"{text}\n\n"


def write_splits(shards: Sequence[ShardTask], drops: list[Drops], out: Path, shares: Shares) -> dict[str, int]:
    """Writes `kowikitext.train`, `.dev` and `.test` and returns the number of articles in each.

    Raises:
        DiskFullError: there is no room.
    """
    counts = dict.fromkeys(SPLITS, 0)
    with disk_full(out), ExitStack() as stack:
        partial = {split: stack.enter_context(whole_file(out / f"kowikitext.{split}")) for split in SPLITS}
        files = {split: stack.enter_context(path.open("w", encoding="utf-8")) for split, path in partial.items()}
        for row in _kept(shards, drops):
            split = shares.split_of(row["id"])
            counts[split] += 1
            files[split].write(article(row["title"], row["text"]))
    return counts


def _kept(shards: Sequence[ShardTask], drops: list[Drops]) -> Iterator[dict[str, str]]:
    for shard, dropped in zip(shards, drops, strict=True):
        for i, row in enumerate(read_jsonl(shard.file("headings"))):
            if not dropped[i]:
                yield row
