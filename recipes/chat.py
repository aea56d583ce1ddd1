"""Talks with a model in the terminal, answers prompts, of several models side by side, or serves one over HTTP.

python -m recipes.chat --config configs/chat.yaml model=out/demo/models/sft
python -m recipes.chat --config configs/chat.yaml model=out/demo/models/sft prompt="안녕하세요?"
python -m recipes.chat --config configs/chat/compare.yaml models.mine=out/demo/models/sft output_dir=out/compared
python -m recipes.chat --config configs/chat.yaml model=out/demo/models/sft --serve
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from configs.entry import parse
from configs.loader import existing_path, one_of, positive
from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.hf_directory import ModelDirectory
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.evaluation.compare import check_prompts, compare, read_prompts, write_comparison
from recipes.evaluation.generate import Generator
from recipes.evaluation.sampling import changed, own_sampling, sampling_problems
from recipes.evaluation.serving.server import address_problems, serve
from recipes.evaluation.talking import Talker, Wish, opening, stop_ids
from recipes.evaluation.terminal import answer, converse
from recipes.merging.directory import has_chat_template
from recipes.training.distributed import choose_device
from recipes.training.model.opening import find_model, open_model
from recipes.training.monitoring.metrics import versions


@dataclass
class ChatConfig:
    """A model and what is said to it. Sampling settings that are null are those of its generation_config.json."""

    model: str | None = None
    """Hugging Face directory with a chat template."""
    models: dict[str, str] = field(default_factory=dict)
    """Name -> directory, of models whose answers to `prompts` are to be compared; `model` then stands alone."""
    prompt: str | None = None
    """One user turn; without it (and `prompts`) the conversation is read from the terminal."""
    prompts: Any = None
    """Prompts to be answered one by one: a list, or a file: .jsonl with `prompt` or `messages`, else one a line."""
    system: str | None = None
    """System turn before it."""
    max_new_tokens: int = 256
    """Longest answer."""
    max_context_tokens: int = 4096
    """Conversation and answer together, at most what the model reads; the cache is allocated for it."""
    temperature: float | None = None
    """0 takes the likeliest token; above 0 samples."""
    top_k: int | None = None
    """Sampled from so many likeliest tokens; 0 for all."""
    top_p: float | None = None
    """Sampled from the likeliest tokens that make up this share; 1 for all."""
    min_p: float | None = None
    """Least probability of a sampled token, as a share of the likeliest one's."""
    repetition_penalty: float | None = None
    """Above 1 what was said before becomes less likely."""
    no_repeat_ngram_size: int | None = None
    """No so many tokens in a row come twice; 0 for no rule."""
    stop: list[str] = field(default_factory=list)
    """Texts or special tokens that end an answer, besides the model's own."""
    seed: int = 0
    """Of the sampling."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: str = "auto"
    """fp32 or bf16; auto: bf16 on a GPU."""
    compile: bool | None = None
    """Whether single tokens are computed by compiled layers; null: on a GPU. Pays after some hundred tokens."""
    output_dir: str | None = None
    """Folder for answer.txt, if the answer to `prompt` is to be kept; for comparison.md of `prompts`."""
    serve: bool = field(default=False, metadata={"flag": True})
    """Serves the model as an OpenAI-compatible endpoint; an API key is that of the variable KOTUNE_API_KEY."""
    host: str = "127.0.0.1"
    """Address of the endpoint."""
    port: int = 8000
    """Port of the endpoint; 0: a free one."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = existing_path(cfg, "model", *(f"models.{name}" for name in cfg.models))
    problems += positive(cfg, "max_new_tokens", "max_context_tokens") + one_of(cfg, "dtype", ["auto", "fp32", "bf16"])
    problems += sampling_problems(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    if bool(cfg.model) == bool(cfg.models):
        problems.append(f"model: {cfg.model}, models: {len(cfg.models)}; one of both is expected; set model=DIRECTORY")
    if cfg.models and cfg.prompts is None:
        problems.append("prompts: no value; models are compared on some; give a list or a file")
    if cfg.prompts is not None and (cfg.prompt is not None or cfg.serve or not cfg.output_dir):
        problems.append("prompts: they are answered into output_dir; set that, and neither prompt nor serve")
    if isinstance(cfg.prompts, str):
        problems += existing_path(cfg, "prompts")
    return problems + (address_problems(cfg.host, cfg.port) if cfg.serve else [])


def open_talker(cfg: DictConfig, name: str, path: str) -> Talker:
    """Loads a Hugging Face directory; raises ConfigError or CorpusError where it is unfit or has no chat template."""
    directory = ModelDirectory.open(path)
    folder, tokenizer, device = directory.path, load_tokenizer(directory.path), choose_device(cfg.device)
    is_half = cfg.dtype == "bf16" or (cfg.dtype == "auto" and device == "cuda")
    has_template = not cfg.serve or has_chat_template(folder)  # an endpoint may only complete texts
    template = ChatTemplate.from_directory(tokenizer, folder) if has_template else None
    source = find_model(folder)
    model = open_model(source, torch.device(device), torch.bfloat16 if is_half else torch.float32)
    limit = min(cfg.max_context_tokens, source.architecture.max_seq_len)
    generator = Generator(model, 1, limit, device == "cuda" if cfg.compile is None else cfg.compile)
    sampling = changed(own_sampling(folder), OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    ends = stop_ids(directory, tokenizer, template)
    return Talker(name, generator, tokenizer, template, ends, sampling, limit, source.architecture.vocab_size)


@parse(ChatConfig, check)
def main(cfg: DictConfig) -> int:
    """Talks until an empty line; or answers prompts; or serves."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    name = Path(cfg.model).resolve().name if cfg.model else ""
    wish = Wish(max_new_tokens=cfg.max_new_tokens, stop=tuple(cfg.stop), seed=cfg.seed)
    if cfg.prompts is not None:
        prompts = read_prompts(OmegaConf.to_container(cfg)["prompts"], cfg.system)  # type: ignore[index,call-overload]
        check_prompts(models := cfg.models or {name: cfg.model}, prompts, cfg.max_context_tokens)
        rows = compare(models, lambda *one: open_talker(cfg, *one), prompts, wish)
        facts = {"config": OmegaConf.to_container(cfg), "versions": versions()}
        print(write_comparison(Path(cfg.output_dir), rows, facts))
        return 0
    talker = open_talker(cfg, name, cfg.model)
    wish = replace(wish, sampling=talker.sampling)
    if cfg.serve:
        serve(talker, cfg.host, cfg.port, wish)
    elif cfg.prompt is None:
        converse(talker, wish, cfg.system)
    else:
        text = answer(talker, opening(cfg.system, cfg.prompt), wish)[0]
        if cfg.output_dir:
            (made := Path(cfg.output_dir)).mkdir(parents=True, exist_ok=True)
            (made / "answer.txt").write_text(f"{cfg.prompt}\n{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    main()
