"""Talks with a model in the terminal, or answers one prompt.

tune run --nproc_per_node 1 recipes/chat.py --config configs/chat.yaml model=out/demo/models/sft prompt="안녕하세요?"
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING, DictConfig

from configs.loader import ConfigError, existing_path, parse, positive
from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.hf_directory import ModelDirectory
from data_prep.tokens.tokenizer import Tokenizer, load_tokenizer
from recipes.evaluation.generate import Generator
from recipes.training.distributed import choose_device
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import build_model


@dataclass
class ChatConfig:
    """A model and what is said to it."""

    model: str = MISSING
    """Hugging Face directory with a chat template."""
    prompt: str | None = None
    """One user turn; without it the conversation is read from the terminal."""
    system: str | None = None
    """System turn before it."""
    max_new_tokens: int = 256
    """Longest answer."""
    max_context_tokens: int = 4096
    """Conversation and answer together, at most what the model reads; the cache is allocated for it."""
    temperature: float = 0.0
    """0 takes the likeliest token; above 0 samples."""
    seed: int = 0
    """Of the sampling."""
    device: str = "auto"
    """auto, cpu or cuda."""
    output_dir: str | None = None
    """Folder for answer.txt, if the answer to `prompt` is to be kept."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = existing_path(cfg, "model") + positive(cfg, "max_new_tokens", "max_context_tokens")
    return problems + ([] if cfg.temperature >= 0 else [f"temperature: {cfg.temperature} is below 0; use 0 or more"])


def stop_ids(directory: ModelDirectory, template: ChatTemplate) -> list[int]:
    """Returns the ids that end an answer: those of config.json, or the tokenizer's document end, and the template's."""
    listed = directory.config.get("eos_token_id")
    ids = listed if isinstance(listed, list) else [template.tokenizer.eos_id if listed is None else listed]
    return list(dict.fromkeys([*ids, *([] if template.end_of_turn is None else [template.end_of_turn])]))


def stream_text(tokens: Iterator[list[int | None]], tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the answer in pieces of whole characters."""
    ids: list[int] = []
    shown = ""
    for (token,) in tokens:
        ids += [token] if token is not None else []
        text = tokenizer.decode(ids)
        if not text.endswith("�"):  # a character of several tokens is not complete yet
            yield text[len(shown) :]
            shown = text


def user_turns(prompt: str | None) -> Iterator[str]:
    """Yields the one prompt, or lines from the terminal until an empty one or its end."""
    if prompt is not None:
        yield prompt
        return
    try:
        while line := input("> ").strip():
            yield line
    except EOFError:
        print()


@parse(ChatConfig, check)
def main(cfg: DictConfig) -> int:
    """Answers one prompt, or talks until an empty line."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    torch.manual_seed(cfg.seed)
    directory, architecture = open_weights(cfg.model)
    tokenizer = load_tokenizer(Path(cfg.model))
    template = ChatTemplate.from_directory(tokenizer, Path(cfg.model))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    limit = min(cfg.max_context_tokens, architecture.max_seq_len)
    generator = Generator(model.to(choose_device(cfg.device)), 1, limit)

    def choose(logits: torch.Tensor) -> torch.Tensor:
        if cfg.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial((logits / cfg.temperature).softmax(-1), 1)[:, 0]

    answer = ""
    messages = [{"role": "system", "content": cfg.system}] if cfg.system else []
    for turn in user_turns(cfg.prompt):
        messages.append({"role": "user", "content": turn})
        prompt = template.prompt(messages)
        if len(prompt) >= limit:
            raise ConfigError("prompt", [f"has {len(prompt)} tokens; {limit} are the limit; shorten it"])
        answer = ""
        tokens = generator.stream([prompt], stop_ids(directory, template), cfg.max_new_tokens, choose)
        for piece in stream_text(tokens, tokenizer):
            answer += piece
            print(piece, end="", flush=True)
        print()
        if answer.strip():
            messages.append({"role": "assistant", "content": answer})
        else:
            messages.pop()  # an empty turn is refused by the template
            print("(no answer)")
    if cfg.output_dir and cfg.prompt:
        Path(cfg.output_dir).mkdir(parents=True, exist_ok=True)
        (Path(cfg.output_dir) / "answer.txt").write_text(f"{cfg.prompt}\n{answer}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    main()
