"""Continued pretraining on packed token shards, sharded with FSDP2.

    tune run --nproc_per_node 8 recipes/cpt.py --config configs/cpt/llama3_8b_ko.yaml

Writes the run folder `output_dir`; the same command resumes from its newest checkpoint.
`recipes/export.py` turns the run into a Hugging Face directory.
"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from configs.loader import ConfigError, parse
from data_prep.hf_directory import ModelDirectory
from data_prep.lineage import sha256_file
from data_prep.shards import Shards
from recipes.training.data import TokenStream, data_entries
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


def check_vocabulary(shards: Shards, vocab_size: int, weights: str | None) -> None:
    """Checks that the shards were made with the tokenizer of the weights.

    Raises:
        ConfigError: the vocabulary is larger than the model's, or the tokenizer is another one.
    """
    made_with = shards.manifest["tokenizer"]
    if made_with["vocab_size"] > vocab_size:
        raise ConfigError(
            shards.folder,
            [
                f"was made with {made_with['vocab_size']} pieces, the model has {vocab_size}; "
                "make the shards with the model's tokenizer"
            ],
        )
    files = [Path(weights) / name for name in ModelDirectory.open(weights).tokenizer_files()] if weights else []
    hashes = {sha256_file(file): file for file in files}
    if hashes and made_with["sha256"] not in hashes:
        raise ConfigError(
            shards.folder,
            [
                f"was made with the tokenizer {made_with['sha256'][:12]}, {weights} has "
                f"{', '.join(f'{file.name} {sha[:12]}' for sha, file in hashes.items())}; "
                "make the shards with one of them"
            ],
        )


@parse(CptConfig, check)
def main(cfg: DictConfig) -> int:
    """Continues pretraining on token shards."""
    entries = data_entries(cfg.data)
    shards = [Shards.open(entry["shards"]) for entry in entries]
    vocab_size = ModelDirectory.open(cfg.weights).config["vocab_size"] if cfg.weights else cfg.model.vocab_size
    for one in shards:
        check_vocabulary(one, vocab_size, cfg.weights)
    sources = [TokenStream(one, cfg.seq_len, cfg.seed) for one in shards]
    return run_training(cfg, "cpt", sources, [entry["weight"] for entry in entries])


if __name__ == "__main__":
    main()
