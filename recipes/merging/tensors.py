"""Writes the tensors of a merge shard by shard; a merge that was killed keeps the shards it had finished.

Threads share the blocks of a shard: reading, torch's arithmetic, hashing and writing all release the
interpreter, and memory holds a few blocks a thread, whatever the size of a tensor or a model.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.disk import disk_full
from data_prep.hf_directory import ModelDirectory, Shard
from data_prep.lineage import sha256_file, sha256_json, source_files, write_json
from recipes.merging.blocks import Handles, Rules, Squares, merge_block, open_handles, source_threshold
from recipes.merging.plan import MergePlan, TensorPlan

JOURNAL = "merge.json"  # of a merge that is not finished
HASHED = ("config.json", "generation_config.json", "model.safetensors.index.json")
Progress = Callable[[int], None]


def begin(folder: Path, plan: MergePlan) -> dict[str, dict[str, Any]]:
    """Returns the finished shards in `folder`, by name, once their content is found to be what was written.

    A folder of other settings, inputs or code is emptied of its shards: nothing of it can be used.
    """
    wanted, journal = fingerprint(plan), _read_journal(folder)
    if journal.get("fingerprint") != wanted:
        for file in folder.glob("model*.safetensors*"):
            file.unlink()
        write_json(folder / JOURNAL, {"fingerprint": wanted, "shards": {}})
        return {}
    sizes = {shard.name: shard.num_bytes for shard in plan.shards}
    return {
        name: facts
        for name, facts in journal["shards"].items()
        if name in sizes and _is_intact(folder / name, sizes[name], facts["sha256"])
    }


def merge_tensors(
    plan: MergePlan, folder: Path, finished: dict[str, dict[str, Any]], num_workers: int, progress: Progress
) -> tuple[dict[str, dict[str, Any]], dict[Path, str]]:
    """Writes the shards of the merge that are not finished into `folder`.

    Args:
        plan: of the merge.
        folder: where the shards go; the names appear when the files are complete.
        finished: of `begin`.
        num_workers: threads.
        progress: called with the bytes of tensors finished since the last call.

    Returns:
        For every shard `sha256` and the `squares` of its tensors, and the hash of every input file.

    Raises:
        MergeError: a merged value is not finite.
        DiskFullError: the disk is full; finished shards are kept.
    """
    written = dict(finished)
    last_use = _last_use(plan)
    waiting: dict[str, tuple[dict[str, list[Any]], Future[str]]] = {}  # merged, to be hashed while others are merged
    with _pool(num_workers) as pool, open_handles(set(last_use)) as handles:
        inputs: dict[Path, Future[str]] = {}

        def settle(name: str) -> None:
            squares, digest = waiting.pop(name)
            written[name] = {"sha256": digest.result(), "squares": squares}
            (folder / f"{name}.tmp").replace(folder / name)
            write_json(folder / JOURNAL, {"fingerprint": wanted, "shards": written})

        wanted = fingerprint(plan)
        for index, shard in enumerate(plan.shards):
            if shard.name in finished:
                progress(sum(entry.num_bytes for entry in shard.tensors.values()))
            else:
                with disk_full(folder / shard.name):
                    squares = _merge_shard(handles, plan, shard, folder, pool, progress)
                waiting[shard.name] = squares, pool.submit(sha256_file, folder / f"{shard.name}.tmp")
            for file in sorted(file for file, last in last_use.items() if last == index):
                inputs[file] = pool.submit(sha256_file, file)  # its pages are still in memory
            for name in [name for name, (_, digest) in waiting.items() if digest.done()]:
                settle(name)
        for file in sorted({file for model in plan.directories.values() for file in _files(model)} - inputs.keys()):
            inputs[file] = pool.submit(sha256_file, file)
        for name in list(waiting):
            settle(name)
        return {shard.name: written[shard.name] for shard in plan.shards}, {
            f: one.result() for f, one in inputs.items()
        }


def merged_bytes(plan: MergePlan, handles: Handles, name: str) -> np.ndarray:
    """Returns the bytes of one merged tensor, uint8, computed here and written nowhere."""
    tensor, rules = plan.tensors[name], _rules(plan, name)
    thresholds = [source_threshold(handles, tensor, number) for number in range(len(tensor.sources))]
    data = np.empty(tensor.target.num_bytes, dtype=np.uint8)
    item = len(data) // max(math.prod(tensor.target.shape), 1)
    for start, stop in _blocks(tensor):
        data[start * item : stop * item] = merge_block(handles, tensor, start, stop, thresholds, rules)[0]
    return data


def input_hashes(plan: MergePlan, hashes: dict[Path, str]) -> dict[str, dict[str, Any]]:
    """Returns what a manifest says of the inputs: path, one hash, and the hash of every file, by role."""
    found = {}
    for role, model in plan.directories.items():
        files = {str(file.relative_to(model.path)): hashes[file] for file in _files(model)}
        found[role] = {"path": str(model.path), "sha256": sha256_json(files), "files": files}
    return found


def hash_inputs(plan: MergePlan, num_workers: int) -> dict[Path, str]:
    """Returns the hash of every file of the inputs that the result depends on."""
    files = sorted({file for model in plan.directories.values() for file in _files(model)})
    with _pool(num_workers) as pool:
        return dict(zip(files, pool.map(sha256_file, files), strict=True))


def _merge_shard(
    handles: Handles, plan: MergePlan, shard: Shard, folder: Path, pool: ThreadPoolExecutor, progress: Progress
) -> dict[str, list[Any]]:
    """Writes one shard under its temporary name; returns the sums of squares of every tensor."""
    names = list(shard.tensors)
    wanted = [(name, number) for name in names for number in range(len(plan.tensors[name].sources))]
    found = pool.map(lambda one: source_threshold(handles, plan.tensors[one[0]], one[1]), wanted)
    thresholds = dict(zip(wanted, found, strict=True))
    out = os.open(folder / f"{shard.name}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        os.pwrite(out, shard.header, 0)
        os.ftruncate(out, shard.num_bytes)

        def work(block: tuple[str, int, int]) -> tuple[str, int, Squares]:
            name, start, stop = block
            tensor = plan.tensors[name]
            limits = [thresholds[name, number] for number in range(len(tensor.sources))]
            data, squares = merge_block(handles, tensor, start, stop, limits, _rules(plan, name))
            item = tensor.target.num_bytes // math.prod(tensor.target.shape)
            _write(out, data, shard.tensors[name].start + start * item)
            return name, len(data), squares

        blocks = [(name, start, stop) for name in names for start, stop in _blocks(plan.tensors[name])]
        sums = {name: Squares(0.0, 0.0, (0.0,) * len(plan.tensors[name].sources)) for name in names}
        for name, num_bytes, squares in pool.map(work, blocks):  # in order: the sums do not depend on the threads
            sums[name] += squares
            progress(num_bytes)
    finally:
        os.close(out)
    return {name: [one.target, one.change, list(one.differences)] for name, one in sums.items()}


def _blocks(tensor: TensorPlan) -> Iterator[tuple[int, int]]:
    count, step = math.prod(tensor.target.shape), tensor.block_elements
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _rules(plan: MergePlan, name: str) -> Rules:
    return Rules(name, plan.settings.combine, plan.settings.seed)


def _write(handle: int, data: np.ndarray, offset: int) -> None:
    view, done = data.data, 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], offset + done)


@contextmanager
def _pool(num_workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yields the threads, each of which computes with one core; what waits is dropped when something fails."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def input_files(plan: MergePlan) -> set[Path]:
    """Returns the tensor files that are read."""
    return set(_last_use(plan))


def _last_use(plan: MergePlan) -> dict[Path, int]:
    """Returns, for every tensor file that is read, the last shard it is needed for: then its pages are still warm."""
    last: dict[Path, int] = {}
    for index, shard in enumerate(plan.shards):
        for name in shard.tensors:
            tensor = plan.tensors[name]
            for entry in (tensor.target, *(e for s in tensor.sources for e in (s.plus, s.minus))):
                last[entry.file] = index
    return last


def fingerprint(plan: MergePlan) -> str:
    """Returns what must be the same for finished shards to be kept; input files count by size and time."""
    files = sorted({file for model in plan.directories.values() for file in _files(model)})
    inputs = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    code = [sha256_file(file) for file in source_files([Path(__file__)])]
    shards = [(shard.name, shard.num_bytes) for shard in plan.shards]
    roles = {role: str(model.path.resolve()) for role, model in plan.directories.items()}
    return sha256_json([plan.settings.facts(), roles, inputs, code, shards])


def _files(model: ModelDirectory) -> list[Path]:
    return sorted({entry.file for entry in model.tensors.values()}) + _small_files(model)


def _small_files(model: ModelDirectory) -> list[Path]:
    names: Sequence[Path] = [Path(name) for name in HASHED if (model.path / name).is_file()]
    return [model.path / name for name in [*names, *model.tokenizer_files()]]


def _read_journal(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / JOURNAL).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def _is_intact(file: Path, num_bytes: int, sha256: str) -> bool:
    return file.is_file() and file.stat().st_size == num_bytes and sha256_file(file) == sha256
