"""Adds a chat vector to a model: out = target + scale * (plus - minus), a directory that chats at once.

    tune run --nproc_per_node 1 recipes/chat_vector.py --config configs/chat_vector/llama3_8b_ko.yaml [key=value ...]
    python -m recipes.chat_vector --config configs/chat_vector/llama3_8b_ko.yaml [key=value ...]

The models are streamed from memory maps, so that memory holds a few tensors, not a model. Models that
are not of one base are refused before anything is written.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING, DictConfig

from configs.loader import existing_path, parse
from recipes.merging.directory import ChatVector, has_chat_template, is_merged, merge


@dataclass
class ChatVectorConfig:
    """What is added to what; the three models are Hugging Face directories."""

    output_dir: str = MISSING  # absent or empty
    target: str = MISSING  # the model that learns to chat, e.g. a Korean base
    plus: str = MISSING  # the instruction-tuned model; its tokenizer files and chat template are kept
    minus: str = MISSING  # the base that `plus` was tuned from
    scale: float = 1.0
    embeddings_scale: float | None = None  # of embed_tokens and lm_head; null: as `scale`
    device: str = "auto"  # of the arithmetic; auto is cpu, as the disk is the limit and an accelerator gains little
    seed: int = 0  # a merge draws nothing; the key is here because every recipe takes it


def check(cfg: DictConfig) -> list[str]:
    """Returns what is wrong with paths, scales and device."""
    problems = existing_path(cfg, "target", "plus", "minus")
    for key in ("scale", "embeddings_scale"):
        if cfg[key] is not None and not math.isfinite(cfg[key]):
            problems.append(f"{key}: {cfg[key]} is no finite number; set one, usually between 0 and 1.5")
    try:
        torch.empty(0, device=device_of(cfg))
    except (RuntimeError, AssertionError) as error:  # torch has no common type for a device it lacks
        problems.append(f"device: {cfg.device!r} cannot be used: {str(error).splitlines()[0]}; set device=cpu")
    return problems


@parse(ChatVectorConfig, check)
def main(cfg: DictConfig) -> None:
    """Merges three model directories into one."""
    if os.environ.get("RANK", "0") != "0":
        return  # one process is enough; no other waits for it
    started = time.monotonic()
    output_dir = Path(cfg.output_dir)
    vector = ChatVector(Path(cfg.target), Path(cfg.plus), Path(cfg.minus), cfg.scale, cfg.embeddings_scale)
    if is_merged(output_dir, vector):
        print(f"{output_dir}: merged from the same inputs before, nothing to do")
        return
    manifest = merge(output_dir, vector, device_of(cfg), show_progress)
    norms = manifest["norms"]["all"]
    print(f"{output_dir}: |plus - minus| = {norms['difference']:.4g}, |target| = {norms['target']:.4g}")
    if not has_chat_template(output_dir):
        print(f"{output_dir}: {cfg.plus} has no chat template, so the merged model has none")
    print(f"{output_dir}: done in {time.monotonic() - started:.1f} s")


def device_of(cfg: DictConfig) -> torch.device:
    """Returns the device of the arithmetic."""
    return torch.device("cpu" if cfg.device == "auto" else cfg.device)


def show_progress(written: int, count: int) -> None:
    """Prints about ten lines over a merge."""
    if written * 10 // count != (written - 1) * 10 // count:
        print(f"merged {written} of {count} tensors", flush=True)


if __name__ == "__main__":
    main()
