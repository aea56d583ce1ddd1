"""Opens the data that a run's configuration names."""

import os
from dataclasses import fields
from datetime import date, datetime, time
from pathlib import Path

from omegaconf import DictConfig

from data_prep.dialogue import named_templates
from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.document import CorpusError
from data_prep.hf_directory import ModelDirectory
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.training.data.chat_examples import Policies
from recipes.training.data.mixture import SourceEntry, read_mixture
from recipes.training.data.packing import ChatExamples, Source, TokenStream, open_shards
from recipes.training.data.plan import DataPlan, plan_data


def open_data(cfg: DictConfig) -> DataPlan:
    """Opens the sources of a run of CPT, or of SFT with its keys for chat examples.

    Raises:
        ConfigError: shards were made with another tokenizer than the model's.
        CorpusError: a chat example cannot be used.
    """
    mixture = read_mixture(cfg.data, cfg.global_batch_tokens)
    template = open_template(cfg) if "chat_template" in cfg else None
    return plan_data(cfg, mixture, [open_source(entry, cfg, template) for entry in mixture.sources])


def open_template(cfg: DictConfig) -> ChatTemplate:
    """Returns the chat template with the tokenizer of the weights.

    Raises:
        CorpusError: there is no such template, or its answers end without a special token.
    """
    day = datetime.combine(date.fromisoformat(cfg.template_date), time())
    template = named_templates.open_template(
        cfg.chat_template, load_tokenizer(Path(cfg.weights)), Path(cfg.weights), lambda: day
    )
    if template.end_of_turn is None:
        raise CorpusError(
            f"chat_template: {cfg.chat_template} ends an answer without a special token; a model trained so would not "
            "stop; use another template, or let it write `{{ eos_token }}` behind an answer"
        )
    return template


def policies_of(cfg: DictConfig) -> Policies:
    """Returns what a run of SFT does with examples that cannot be learnt from as they are."""
    return Policies(**{key.name: cfg[key.name] for key in fields(Policies)})


def open_source(entry: SourceEntry, cfg: DictConfig, template: ChatTemplate | None) -> Source:
    """Opens one entry of `data`; chat examples need a template.

    Raises:
        ConfigError: the shards were made with another tokenizer than the weights'.
        CorpusError: a chat example cannot be used.
    """
    if entry.chat is None:
        vocab_size = ModelDirectory.open(cfg.weights).config["vocab_size"] if cfg.weights else cfg.model.vocab_size
        return TokenStream(open_shards(entry.path, vocab_size, cfg.weights), cfg.seq_len, cfg.seed)
    assert template is not None, "CPT refuses chat examples"
    examples = ChatExamples(entry.chat, template, cfg.seq_len, cfg.seed, policies_of(cfg))
    if (examples.found.dropped or examples.found.num_split) and os.environ.get("RANK", "0") == "0":
        print(examples.found.describe())
    return examples
