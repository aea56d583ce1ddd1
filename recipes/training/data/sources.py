"""Opens the data that a run's configuration names."""

import os
from pathlib import Path

from omegaconf import DictConfig

from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.hf_directory import ModelDirectory
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.training.data.mixture import SourceEntry, read_mixture
from recipes.training.data.packing import ChatExamples, Source, TokenStream, open_shards
from recipes.training.data.plan import DataPlan, plan_data


def open_data(cfg: DictConfig) -> DataPlan:
    """Opens the sources of a run of CPT, or of SFT with its keys `chat_template` and `over_long`.

    Raises:
        ConfigError: shards were made with another tokenizer than the model's.
        CorpusError: a chat example cannot be used.
    """
    mixture = read_mixture(cfg.data, cfg.global_batch_tokens)
    template = open_template(cfg) if "chat_template" in cfg else None
    return plan_data(cfg, mixture, [open_source(entry, cfg, template) for entry in mixture.sources])


def open_template(cfg: DictConfig) -> ChatTemplate:
    """Returns the chat template with the tokenizer of the weights."""
    tokenizer = load_tokenizer(Path(cfg.weights))
    if cfg.chat_template == "llama3":
        return ChatTemplate(tokenizer, LLAMA3)
    return ChatTemplate.from_directory(tokenizer, Path(cfg.weights))


def open_source(entry: SourceEntry, cfg: DictConfig, template: ChatTemplate | None) -> Source:
    """Opens one entry of `data`; chat examples need a template.

    Raises:
        ConfigError: the shards were made with another tokenizer than the weights'.
        CorpusError: a chat example cannot be used.
    """
    if entry.kind == "shards":
        vocab_size = ModelDirectory.open(cfg.weights).config["vocab_size"] if cfg.weights else cfg.model.vocab_size
        return TokenStream(open_shards(entry.path, vocab_size, cfg.weights), cfg.seq_len, cfg.seed)
    assert template is not None, "CPT refuses chat examples"
    examples = ChatExamples(entry.path, template, cfg.seq_len, cfg.seed, cfg.over_long)
    if examples.dropped and os.environ.get("RANK", "0") == "0":
        print(f"{entry.path}: dropped {examples.dropped} example(s) longer than seq_len={cfg.seq_len}")
    return examples
