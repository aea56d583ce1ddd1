"""Instruction tuning on chat examples with loss on the assistant's turns, in the loop of CPT.

    tune run --nproc_per_node 8 recipes/sft.py --config configs/sft/llama3_8b_ko.yaml

`data` may mix token shards in, to hold what pretraining taught.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs.loader import one_of, parse
from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.training.data import ChatExamples, Source, TokenStream, data_entries, open_shards
from recipes.training.loop import run_training
from recipes.training.settings import TrainSettings, check_settings


@dataclass
class SftConfig(TrainSettings):
    """Full fine-tuning; `data` names chat examples and, if wanted, token shards."""

    chat_template: str = "weights"
    """`weights`: the one in the weights' tokenizer_config.json; `llama3`: Llama-3-Instruct's."""
    over_long: str = "error"
    """An example of more than seq_len tokens: `error`, or `drop` it."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = check_settings(cfg) + one_of(cfg, "chat_template", ["weights", "llama3"])
    problems += one_of(cfg, "over_long", ["error", "drop"])
    if cfg.weights is None:
        problems.append("weights: no value; SFT starts from a Hugging Face directory with its tokenizer")
    return problems


def open_template(cfg: DictConfig) -> ChatTemplate:
    """Returns the chat template with the tokenizer of the weights."""
    tokenizer = load_tokenizer(Path(cfg.weights))
    if cfg.chat_template == "llama3":
        return ChatTemplate(tokenizer, LLAMA3)
    return ChatTemplate.from_directory(tokenizer, Path(cfg.weights))


def open_source(entry: dict[str, Any], cfg: DictConfig, template: ChatTemplate) -> Source:
    """Opens one entry of `data`.

    Raises:
        ConfigError: the shards were made with another tokenizer than the weights'.
        CorpusError: a chat example cannot be used.
    """
    if "shards" in entry:
        shards = open_shards(entry["shards"], template.tokenizer.vocab_size, cfg.weights)
        return TokenStream(shards, cfg.seq_len, cfg.seed)
    examples = ChatExamples(entry["chat"], template, cfg.seq_len, cfg.seed, cfg.over_long)
    if examples.dropped and os.environ.get("RANK", "0") == "0":
        print(f"{entry['chat']}: dropped {examples.dropped} example(s) longer than seq_len={cfg.seq_len}")
    return examples


@parse(SftConfig, check)
def main(cfg: DictConfig) -> int:
    """Fine-tunes on chat examples."""
    template = open_template(cfg)
    entries = data_entries(cfg.data)
    sources = [open_source(entry, cfg, template) for entry in entries]
    return run_training(cfg, "sft", sources, [entry["weight"] for entry in entries])


if __name__ == "__main__":
    main()
