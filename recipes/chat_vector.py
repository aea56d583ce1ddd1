"""Adds chat vectors to a model: out = target + sum of scale * (plus - minus), a directory that chats at once.

    python -m recipes.chat_vector --config configs/chat_vector/llama3_8b_ko.yaml [key=value ...]

With `--plan` it reads configurations and tensor headers alone and prints what the merge will take. Models that
are not of one base are refused before anything is written; the same command goes on with a merge that was killed.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from omegaconf import MISSING, DictConfig, OmegaConf
from tqdm import tqdm

from configs.entry import parse
from configs.loader import positive
from recipes.merging.chat_files import chat_settings, has_chat_template
from recipes.merging.directory import is_merged, merge
from recipes.merging.norms import largest_table
from recipes.merging.plan import MergePlan, plan_merge, refuse_full_disk
from recipes.merging.settings import MergeConfig, problems


@dataclass
class ChatVectorConfig(MergeConfig):
    """What is added to what, and where the result goes; the models are Hugging Face directories."""

    output_dir: str = MISSING
    """The merged model; absent or empty."""
    workers: int | None = None
    """Threads; null takes one a core. They change the speed alone."""
    shard_gb: float = 5.0
    """Largest tensor file, in 10^9 bytes; a merge that is killed loses the one it was writing."""
    plan: bool = field(default=False, metadata={"flag": True})
    """Prints models, memory and disk, and merges nothing."""


def check(cfg: DictConfig) -> list[str]:
    """Returns what is wrong with paths, scales and rules."""
    return problems(cfg) + positive(cfg, "workers", "shard_gb")


@parse(ChatVectorConfig, check)
def main(cfg: DictConfig) -> None:
    """Merges model directories into one."""
    if os.environ.get("RANK", "0") != "0":
        return  # one process is enough; no other waits for it
    started = time.monotonic()
    output_dir, workers = Path(cfg.output_dir), cfg.workers or len(os.sched_getaffinity(0))
    plan = plan_merge(cast(MergeConfig, OmegaConf.to_object(cfg)), round(cfg.shard_gb * 1e9))
    if cfg.plan:
        show_plan(plan, output_dir, workers)
        return
    if is_merged(output_dir, plan, workers):
        print(f"{output_dir}: merged from the same inputs before, nothing to do")
        return
    with tqdm(total=plan.output_bytes, desc="merge", unit="B", unit_scale=True) as bar:
        manifest = merge(output_dir, plan, workers, bar.update)
    total = manifest["norms"]["all"]
    print(largest_table(manifest["norms"]))
    print(f"{output_dir}: |change| = {total['change']:.4g}, |target| = {total['target']:.4g}")
    if not has_chat_template(output_dir):
        print(f"{output_dir}: {plan.settings.chat_from} has no chat template, so the merged model has none")
    print(f"{output_dir}: done in {time.monotonic() - started:.1f} s")


def show_plan(plan: MergePlan, output_dir: Path, workers: int) -> None:
    """Prints what the merge will take.

    Raises:
        MergeError: the disk is too small, or the target lacks tokens of the chat.
    """
    owner, ends, _ = chat_settings(plan)
    for role, model in plan.directories.items():
        print(f"{role}: {model.path}, {len(model.tensors)} tensors")
    changed = sum(bool(tensor.sources) for tensor in plan.tensors.values())
    print(f"tensors: {changed} get the vector, {len(plan.tensors) - changed} pass through bit for bit")
    print(f"vocabulary: {plan.vocabulary_facts()}")
    print(f"tokenizer: of {owner.path}; answers end with {ends}")
    print(
        f"reads {plan.input_bytes / 1e9:,.2f} GB, writes {plan.output_bytes / 1e9:,.2f} GB in {len(plan.shards)} files"
    )
    print(f"memory: at most {plan.peak_bytes(workers) / 1e9:.2f} GB with {workers} workers")
    refuse_full_disk(output_dir, plan.output_bytes)
    print("disk: enough")


if __name__ == "__main__":
    main()
