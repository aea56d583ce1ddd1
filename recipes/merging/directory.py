"""The directory of a merged model: complete or absent, and ready to chat as it lies."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep import lineage
from data_prep.document import CorpusError
from data_prep.hf_directory import write_index
from data_prep.model_card import write_notice
from data_prep.run_folder import locked
from recipes.merging.card import merge_licence, model_card
from recipes.merging.chat_files import chat_settings, has_chat_template, write_chat_files
from recipes.merging.errors import MergeError
from recipes.merging.norms import special_rows, tensor_norms
from recipes.merging.plan import MergePlan, refuse_full_disk
from recipes.merging.tensors import JOURNAL, Progress, begin, hash_inputs, input_hashes, merge_tensors

__all__ = ["has_chat_template", "is_merged", "merge"]


def is_merged(output_dir: Path, plan: MergePlan, num_workers: int = 1) -> bool:
    """Whether `output_dir` holds the finished result of exactly this merge; the inputs are hashed to know.

    Raises:
        MergeError: it holds another merge, something else, or one of the inputs.
    """
    for role, model in plan.directories.items():
        path = model.path.resolve()
        if path.is_relative_to(output_dir.resolve()) or output_dir.resolve().is_relative_to(path):
            raise MergeError(f"output_dir {output_dir} overlaps {role} {model.path}; give a folder of its own")
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return False
    file = output_dir / lineage.MANIFEST
    if not file.is_file():
        raise MergeError(f"{output_dir} exists and holds no {lineage.MANIFEST} of a merge; give an empty output_dir")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MergeError(f"{file} is no JSON: {error}; give an empty output_dir") from None
    before, now = manifest.get("merge") or {}, plan.settings.facts()
    changes = [f"{key} {before.get(key)} there, {now[key]} here" for key in now if before.get(key) != now[key]]
    if not changes:
        inputs = input_hashes(plan, hash_inputs(plan, num_workers))
        hashes = {role: one.get("sha256") for role, one in manifest.get("inputs", {}).items()}
        changes = [
            f"{role} {str(hashes.get(role))[:12]} there, {one['sha256'][:12]} here"
            for role, one in inputs.items()
            if hashes.get(role) != one["sha256"]
        ]
    if changes:
        raise MergeError(f"{output_dir} holds another merge ({'; '.join(changes)}); give an empty output_dir")
    return True


def merge(output_dir: Path, plan: MergePlan, num_workers: int, progress: Progress) -> dict[str, Any]:
    """Writes the model directory `target + sum of scale * (plus - minus)`.

    Everything is written to `output_dir.tmp` and renamed when complete; a merge that was killed goes on after the
    last shard it had finished. Configuration and weights follow the target; tokenizer, chat template, generation
    settings and end-of-turn tokens follow `plus` unless `chat_from` is the target.

    Args:
        output_dir: absent or empty (see `is_merged`).
        plan: of `plan_merge`.
        num_workers: threads.
        progress: called with the bytes of tensors finished since the last call.

    Returns:
        The manifest, with the norms of every tensor.

    Raises:
        MergeError: the disk is too small, another process merges here, a merged value is not finite, or the target
            lacks tokens of the chat.
        ConfigError: a directory is incomplete or damaged.
    """
    chat_settings(plan)  # refuses before long work
    folder = output_dir.with_name(output_dir.name + ".tmp")
    kept = sum(file.stat().st_blocks * 512 for file in folder.glob("model*.safetensors*")) if folder.is_dir() else 0
    refuse_full_disk(output_dir, plan.output_bytes - kept)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        shards, hashes = merge_tensors(plan, folder, begin(folder, plan), num_workers, progress)
        write_index(folder, plan.shards)
        write_chat_files(plan, folder)
        norms = tensor_norms(plan, shards.values())
        lineage.write_json(folder / "norms.json", {**norms, "special_rows": special_rows(plan, folder)})
        inputs = input_hashes(plan, hashes)
        licence = merge_licence(plan)
        (folder / "README.md").write_text(model_card(plan, licence, inputs, norms), encoding="utf-8")
        write_notice(folder, licence)
        (folder / JOURNAL).unlink()
        known = {name: facts["sha256"] for name, facts in shards.items()}
        manifest = {
            "commit": lineage.commit(),
            "inputs": inputs,
            "kind": "merge",
            "merge": plan.settings.facts(),
            "vocabulary": plan.vocabulary_facts(),
            "norms": norms,
            "files": dict(_files(folder, known)),
        }
        lineage.write_json(folder / lineage.MANIFEST, manifest)
        if output_dir.exists():
            output_dir.rmdir()
        folder.replace(output_dir)
    return manifest


def _files(folder: Path, known: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields name, size and hash of all files; those of shards are known since they were written."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        yield name, {"bytes": file.stat().st_size, "sha256": known.get(name) or lineage.sha256_file(file)}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder for this process.

    Raises:
        MergeError: another process merges into it.
    """
    try:
        with locked(folder):
            yield
    except CorpusError as error:
        if "being written by another run" not in str(error):
            raise
        raise MergeError(
            f"{folder} is being written by another merge; one at a time is possible; wait or give another output_dir"
        ) from None
