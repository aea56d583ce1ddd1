"""Reads the token shards of a run once, before its first step, and compares them with the checksums of their manifest.

A changed id that is still in the vocabulary would be trained on unseen; a disk or a copy that flips one is rare, and a
run of weeks on such data is lost.
"""

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist

from data_prep.document import CorpusError
from data_prep.tokens.shard_format import check_file
from data_prep.tokens.shards import Shards
from recipes.training.distributed import World


def verify_shards(sources: Iterable[Any], world: World) -> None:
    """Checks every file of the token shards among `sources`; each rank reads its share of them, all must call it.

    Args:
        sources: of a `DataPlan`, or held-out texts; those that are no token shards are passed over.
        world: the ranks.

    Raises:
        CorpusError: a file is missing or differs from its checksum; all ranks raise the same, with every such file.
    """
    folders = {source.shards.folder: source.shards for source in sources if hasattr(source, "shards")}
    files = [(shards, name) for shards in folders.values() for name in sorted(shards.manifest["files"])]
    files.sort(key=lambda file: -_size(*file))  # so that the shares are alike
    problems: list[str | None] = []
    for shards, name in files[world.rank :: world.size]:
        try:
            check_file(shards.folder, name, _size(shards, name), shards.manifest["files"], verify=True)
        except (CorpusError, OSError) as error:
            problems.append(str(error))
    found: list[Any] = [problems]
    if world.size > 1:
        found = [None] * world.size
        dist.all_gather_object(found, problems)
    if told := sorted(problem for rank in found for problem in rank):
        raise CorpusError("; and ".join(told))


def _size(shards: Shards, name: str) -> int:
    return int(shards.manifest["files"][name]["bytes"])
