"""Continued pretraining on packed token shards, sharded with FSDP2.

    tune run --nproc_per_node 8 recipes/cpt.py --config configs/cpt/llama3_8b_ko.yaml

Writes the run folder `output_dir`; the same command resumes from its newest checkpoint. With `--plan` it
prints instead what the run would need, memory and time for any number of GPUs (key `estimate`), and what it would
read: tokens and epochs of each source, and the first documents.
`recipes/export.py` turns the run into a Hugging Face directory.
"""

from dataclasses import dataclass

from omegaconf import DictConfig

from configs.entry import parse
from recipes.training.data.mixture import read_mixture
from recipes.training.data.plan import show_plan
from recipes.training.data.sources import open_data
from recipes.training.loop import run_training
from recipes.training.settings import TrainSettings, check_settings


@dataclass
class CptConfig(TrainSettings):
    """Continued pretraining; `data` names token shards."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings and of the data they name."""
    problems = check_settings(cfg)
    if problems or cfg.plan:
        return problems
    if any(entry.kind == "chat" for entry in read_mixture(cfg.data, cfg.global_batch_tokens).sources):
        problems.append("data: names a chat-example file, CPT reads token shards; use recipes/sft.py")
    return problems


@parse(CptConfig, check)
def main(cfg: DictConfig) -> int:
    """Continues pretraining on token shards."""
    if cfg.plan:
        return show_plan(cfg, lambda: open_data(cfg))
    return run_training(cfg, "cpt", open_data(cfg))


if __name__ == "__main__":
    main()
