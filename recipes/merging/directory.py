"""The directory of a merged model: complete or absent, and ready to chat as it lies."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep import lineage
from data_prep.hf_directory import ModelDirectory
from recipes.merging.compatibility import MergeError, refuse_incompatible
from recipes.merging.tensors import merge_tensors, total_norms

EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
SPARE_BYTES = 100 * 10**6  # tokenizer files, configuration and manifest


@dataclass(frozen=True)
class ChatVector:
    """What is merged: three Hugging Face directories and the scales."""

    target: Path
    plus: Path
    minus: Path
    scale: float = 1.0
    embeddings_scale: float | None = None

    def inputs(self) -> dict[str, Path]:
        """Returns the directories by role."""
        return {"target": self.target, "plus": self.plus, "minus": self.minus}

    def scales(self) -> dict[str, float | None]:
        """Returns the scales as a manifest records them."""
        return {"scale": self.scale, "embeddings_scale": self.embeddings_scale}

    def scale_of(self, name: str) -> float:
        """Returns the scale for the tensor `name`."""
        is_embedding = name.endswith(EMBEDDINGS)
        return self.embeddings_scale if is_embedding and self.embeddings_scale is not None else self.scale


def is_merged(output_dir: Path, vector: ChatVector) -> bool:
    """Whether `output_dir` holds the finished result of exactly this merge.

    Raises:
        MergeError: it holds another merge, something else, or one of the inputs.
    """
    for role, path in vector.inputs().items():
        if path.resolve().is_relative_to(output_dir.resolve()) or output_dir.resolve().is_relative_to(path.resolve()):
            raise MergeError(f"output_dir {output_dir} overlaps {role} {path}; give a folder of its own")
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return False
    file = output_dir / lineage.MANIFEST
    if not file.is_file():
        raise MergeError(f"{output_dir} exists and holds no {lineage.MANIFEST} of a merge; give an empty output_dir")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MergeError(f"{file} is no JSON: {error}; give an empty output_dir") from None
    before = {role: entry["sha256"] for role, entry in manifest.get("inputs", {}).items()}
    before |= {key: manifest.get(key) for key in vector.scales()}
    now: dict[str, Any] = {role: lineage.sha256_path(path) for role, path in vector.inputs().items()}
    now |= vector.scales()
    if changed := [f"{key} {before.get(key)} there, {now[key]} here" for key in now if before.get(key) != now[key]]:
        raise MergeError(f"{output_dir} holds another merge ({'; '.join(changed)}); give an empty output_dir")
    return True


def merge(
    output_dir: Path, vector: ChatVector, device: torch.device, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Writes the model directory `target + scale * (plus - minus)`.

    Everything is written to `output_dir.tmp` and renamed when complete; a merge that was killed starts
    again. Configuration and weights follow the target; tokenizer, chat template, generation settings
    and end-of-turn tokens follow `plus`.

    Args:
        output_dir: absent or empty (see `is_merged`).
        vector: directories and scales.
        device: where the arithmetic runs.
        progress: called with the tensors written and their number.

    Returns:
        The manifest, with the norms of every tensor.

    Raises:
        MergeError: the models differ, the disk is too small, or a merged value is not finite.
        ConfigError: a directory is incomplete or damaged.
    """
    target, plus, minus = (ModelDirectory.open(path) for path in vector.inputs().values())
    refuse_incompatible(target, plus, minus)
    end_tokens = end_token_ids(plus)
    partial = output_dir.with_name(output_dir.name + ".tmp")
    if partial.exists():
        shutil.rmtree(partial)
    _refuse_full_disk(output_dir, target)
    count = len(target.tensors)
    norms = merge_tensors(
        (target, plus, minus), partial, vector.scale_of, device, lambda written: progress(written, count)
    )
    _copy_tokenizer(plus, partial)
    lineage.write_json(partial / "config.json", {**target.config, "eos_token_id": end_tokens})
    lineage.write_json(partial / "generation_config.json", {**_generation(plus), "eos_token_id": end_tokens})
    manifest = lineage.write_manifest(
        partial, vector.inputs(), **vector.scales(), norms={"all": total_norms(norms), "tensors": norms}
    )
    partial.replace(output_dir)
    return manifest


def end_token_ids(model: ModelDirectory) -> list[int]:
    """Returns the ids that end generation: those of `generation_config.json`, then those only in `config.json`.

    Raises:
        MergeError: neither file has one, so the merged model would never stop.
    """
    found: list[int] = []
    for config in (_generation(model), model.config):
        value = config.get("eos_token_id")
        found += value if isinstance(value, list) else [] if value is None else [value]
    if not found:
        raise MergeError(f"{model.path} has no eos_token_id in config.json or generation_config.json; add it there")
    return list(dict.fromkeys(found))


def has_chat_template(folder: Path) -> bool:
    """Whether the directory carries a chat template, as a file or in `tokenizer_config.json`."""
    settings = folder / "tokenizer_config.json"
    in_settings = settings.is_file() and "chat_template" in json.loads(settings.read_text(encoding="utf-8"))
    return in_settings or (folder / "chat_template.jinja").is_file()


def _generation(model: ModelDirectory) -> dict[str, Any]:
    file = model.path / "generation_config.json"
    if not file.is_file():
        ids = {key: model.config.get(key) for key in ("bos_token_id", "eos_token_id")}
        return {key: value for key, value in ids.items() if value is not None}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise MergeError(f"{file} holds no JSON object: {error}; copy it again") from None


def _copy_tokenizer(model: ModelDirectory, folder: Path) -> None:
    for name in model.tokenizer_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.path / name, folder / name)


def _refuse_full_disk(output_dir: Path, target: ModelDirectory) -> None:
    needed = sum(entry.num_bytes for entry in target.tensors.values()) + SPARE_BYTES
    place = output_dir.resolve()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise MergeError(
            f"{place} has {free / 1e9:.2f} GB free; merging {target.path} needs {needed / 1e9:.2f} GB; "
            "free some or give an output_dir on another disk"
        )
