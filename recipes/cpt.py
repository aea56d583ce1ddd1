"""Continued pretraining on packed token shards, sharded with FSDP2.

    tune run --nproc_per_node 8 recipes/cpt.py --config configs/cpt/llama3_8b_ko.yaml

Writes the run folder `output_dir`; the same command resumes from its newest checkpoint.
`recipes/export.py` turns the run into a Hugging Face directory.
"""

from dataclasses import dataclass

from omegaconf import DictConfig

from configs.loader import parse
from data_prep.hf_directory import ModelDirectory
from recipes.training.data import TokenStream, data_entries, open_shards
from recipes.training.loop import run_training
from recipes.training.settings import TrainSettings, check_settings


@dataclass
class CptConfig(TrainSettings):
    """Continued pretraining; `data` names token shards."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings and of the data they name."""
    problems = check_settings(cfg)
    if not problems and any("chat" in entry for entry in data_entries(cfg.data)):
        problems.append("data: names a chat-example file, CPT reads token shards; use recipes/sft.py")
    return problems


@parse(CptConfig, check)
def main(cfg: DictConfig) -> int:
    """Continues pretraining on token shards."""
    entries = data_entries(cfg.data)
    vocab_size = ModelDirectory.open(cfg.weights).config["vocab_size"] if cfg.weights else cfg.model.vocab_size
    shards = [open_shards(entry["shards"], vocab_size, cfg.weights) for entry in entries]
    sources = [TokenStream(one, cfg.seq_len, cfg.seed) for one in shards]
    return run_training(cfg, "cpt", sources, [entry["weight"] for entry in entries])


if __name__ == "__main__":
    main()
