"""Tiny models of one base as they would be found, and a merge of them in this process."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from recipes.merging.directory import merge
from recipes.merging.plan import plan_merge
from recipes.merging.settings import MergeConfig
from tests.support import tiny_llama, tiny_tokenizer

FILE = "model.safetensors"
ROLES = ("minus", "plus", "target")


def write_models(root: Path) -> dict[str, Path]:
    """Three bf16 models of one base, in one file each; `plus` as Meta's instruct models are laid out."""
    found = {}
    for seed, role in enumerate(ROLES):
        found[role] = tiny_llama(tiny_tokenizer(root / role), seed=seed, dtype="bfloat16")
        rewrite(found[role], {name: tensor.bfloat16() for name, tensor in weights(found[role]).items()})
    edit(found["plus"] / "config.json", eos_token_id=301)
    (found["plus"] / "generation_config.json").write_text('{"eos_token_id": [300, 301], "temperature": 0.6}')
    (found["plus"] / "chat_template.jinja").write_text("{{ messages }}")
    return found


def copy_models(models: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Copies that a test may spoil."""
    return {role: Path(shutil.copytree(path, folder / role)) for role, path in models.items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model of one file or of several."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    return found


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, metadata={"format": "pt"})


def edit(file: Path, **changes: object) -> None:
    """Changes keys of a JSON file; None removes one."""
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def settings(models: dict[str, Path], **keys: Any) -> MergeConfig:
    return MergeConfig(**{role: str(path) for role, path in models.items()}, **keys)


def run(
    folder: Path, models: dict[str, Path], workers: int = 1, shard_bytes: int = 10**9, **keys: Any
) -> dict[str, torch.Tensor]:
    """Merges into the folder and returns the tensors."""
    merge(folder, plan_merge(settings(models, **keys), shard_bytes), workers, lambda num_bytes: None)
    return weights(folder)


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two models have the same tensors bit for bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8))
        for name in one
    )
