"""Continued pretraining on packed token shards, sharded with FSDP2.

    tune run --nproc_per_node 8 recipes/cpt.py --config configs/cpt/llama3_8b_ko.yaml

Writes the run folder `output_dir`; the same command resumes from its newest checkpoint. With `plan_only=true`
it prints what the run would read instead: tokens and epochs of each source, and the first documents.
`recipes/export.py` turns the run into a Hugging Face directory.
"""

from dataclasses import dataclass

from omegaconf import DictConfig

from configs.loader import parse
from recipes.training.loop import run_training
from recipes.training.mixture import read_mixture
from recipes.training.plan import show_plan
from recipes.training.settings import TrainSettings, check_settings
from recipes.training.sources import open_data


@dataclass
class CptConfig(TrainSettings):
    """Continued pretraining; `data` names token shards."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings and of the data they name."""
    problems = check_settings(cfg)
    if not problems and any(entry.kind == "chat" for entry in read_mixture(cfg.data, cfg.global_batch_tokens).sources):
        problems.append("data: names a chat-example file, CPT reads token shards; use recipes/sft.py")
    return problems


@parse(CptConfig, check)
def main(cfg: DictConfig) -> int:
    """Continues pretraining on token shards."""
    plan = open_data(cfg)
    return show_plan(plan, cfg.weights) if cfg.plan_only else run_training(cfg, "cpt", plan)


if __name__ == "__main__":
    main()
