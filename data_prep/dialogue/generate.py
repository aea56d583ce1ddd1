"""The command `dialogue generate`: Korean-English dialogues from a model behind an HTTP interface.

    python -m data_prep dialogue generate --config configs/data/dialogue_topics.yaml model=NAME output_dir=DIR

The folder gets `pairs.jsonl` (what `dialogue augment` reads), `rejected.jsonl` (raw answers with their
reasons), `journal.jsonl` (every answer as it came) and, last, `manifest.json`. Started again, the command
goes on where it was. Exit code 3: it stopped before all were kept, at the token budget or without seeds.

A provider's terms may bind what its models write, for training other models too: read them first. The
manifest names the model and the host, so that it can be told later where the dialogues came from.
"""

import argparse
import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from tqdm import tqdm

from configs.loader import load, one_of, positive
from data_prep.dialogue import key as keys
from data_prep.dialogue import results
from data_prep.dialogue.collect import COMPLETE, Collection, Goal
from data_prep.dialogue.endpoint import APIS, Endpoint
from data_prep.dialogue.journal import Journal
from data_prep.dialogue.judge import Judge
from data_prep.dialogue.limits import Budget, RateLimit
from data_prep.dialogue.topics import Seed, make_seeds, prompt_problems

STOPPED_EARLY = 3  # exit code


@dataclass
class Topics:
    """The topics of one field."""

    field: str = MISSING
    topics: list[str] = MISSING


@dataclass
class GenerateConfig:
    """What is asked, of whom, how fast and for how much."""

    output_dir: str = MISSING
    """Folder of the results; an unfinished one is gone on with."""
    dialogues: int = 4000
    """Dialogues to keep."""
    base_url: str = MISSING
    """Address that /chat/completions (openai) or /models/NAME:generateContent (gemini) follows."""
    api: str = "openai"
    """openai: chat/completions, as vLLM has it too; gemini: generateContent."""
    model: str = MISSING
    """Name the endpoint knows the model by."""
    api_key_env: str | None = None
    """Environment variable that holds the key; null sends none."""
    structured_output: str = "auto"
    """schema: JSON is enforced by the endpoint; text: by the prompt alone; auto: schema until refused."""
    temperature: float = 1.0
    """Of the sampling."""
    max_tokens: int = 4096
    """Most output tokens of one answer, thoughts included."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Merged into each request; a null takes a key away."""
    concurrency: int = 8
    """Requests under way at once."""
    requests_per_minute: int | None = None
    """Most requests in any 60 seconds."""
    tokens_per_minute: int | None = None
    """Most tokens, input and output, in any 60 seconds."""
    token_budget: int | None = None
    """Most tokens, input and output, of all sessions; only what is under way when the process is killed escapes it."""
    price_in: float | None = None
    """Price of a million input tokens, for the cost report."""
    price_out: float | None = None
    """Price of a million output tokens."""
    timeout_seconds: float = 180.0
    """Of one request, from connecting to the last byte."""
    attempts: int = 8
    """Requests for one answer, when they fail."""
    backoff_seconds: float = 1.0
    """Wait before the second attempt; doubled for each further one, with jitter."""
    max_wait_seconds: float = 120.0
    """Longest wait; an endpoint that asks for more ends the run."""
    answers_per_dialogue: int = 2
    """Answers for one dialogue, when they are cut or no JSON."""
    max_dropped_share: float = 0.5
    """Of the dialogues judged; more end the run, before it costs more."""
    max_turn_chars: int = 1500
    """Longest turn in either language."""
    near_duplicate_threshold: float = 0.7
    """Jaccard similarity of word 3-grams from which on a dialogue counts as a copy of an earlier one."""
    seed: int = 0
    """Of the order of topics, styles and angles."""
    system: str = MISSING
    """The model's instructions."""
    prompt: str = MISSING
    """Of one dialogue, with $field, $topic, $style, $angle and $turns."""
    turns: list[int] = MISSING
    """Numbers of turns, over both speakers; one is drawn for each dialogue."""
    styles: list[str] = MISSING
    """How the two speak."""
    angles: list[str] = MISSING
    """What the user is after."""
    topics: list[Topics] = MISSING
    """What the dialogues are about, by field."""


def add_parser(subparsers: Any) -> None:
    """Adds the command `generate`."""
    parser = subparsers.add_parser("generate", help="Korean-English dialogues from a model's endpoint")
    parser.add_argument("--config", required=True, help="YAML file, e.g. configs/data/dialogue_topics.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.set_defaults(run=run)


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = one_of(cfg, "api", APIS) + one_of(cfg, "structured_output", ["auto", "schema", "text"])
    problems += positive(
        cfg, "dialogues", "max_tokens", "concurrency", "requests_per_minute", "tokens_per_minute", "token_budget",
        "timeout_seconds", "attempts", "backoff_seconds", "max_wait_seconds", "answers_per_dialogue",
        "max_turn_chars", "near_duplicate_threshold", "price_in", "price_out",
    )  # fmt: skip
    problems += keys.address_problems(cfg.base_url, cfg.api_key_env is not None)
    problems += [] if problems else keys.key_problems(cfg.api_key_env, cfg.base_url)
    problems += prompt_problems(cfg.prompt)
    lists = {name: cfg[name] for name in ("styles", "angles")} | {"turns": set(cfg.turns)}  # one twice: drawn more
    lists["topics"] = [entry.field for entry in cfg.topics]
    lists |= {f"topics of {entry.field!r}": entry.topics for entry in cfg.topics}
    for name, values in lists.items():
        texts = [str(value).strip() for value in values]
        again = [text for text in texts if texts.count(text) > 1 or not text]
        if again or not texts:
            told = f"{again[0]!r} stands there more than once or is empty" if again else "has no entry"
            problems.append(f"{name}: {told}; at least one, all different, are expected; mend the list")
    if wrong := [number for number in cfg.turns if number < 2 or number % 2]:
        problems.append(f"turns: {wrong}; even numbers from 2 are expected, as the assistant ends; mend them")
    if (cfg.price_in is None) != (cfg.price_out is None):
        problems.append("price_in, price_out: one has no value; a cost needs both; give both or neither")
    for name in ("max_dropped_share", "near_duplicate_threshold"):
        if cfg[name] > 1:
            problems.append(f"{name}: {cfg[name]} is above 1; a share is expected; lower it")
    return problems


def run(args: argparse.Namespace) -> int:
    """Collects the dialogues, writes the results and returns 0, or 3 when it stopped early.

    Raises:
        ConfigError: the settings cannot be used.
        CorpusError: the endpoint refuses or does not answer, or the folder is of another run.
    """
    cfg: Any = OmegaConf.to_object(load(GenerateConfig, args.config, args.overrides, check))
    out = Path(cfg.output_dir)
    if results.is_complete(out, cfg):
        print(f"{out} is complete with the same settings; nothing to do")
        return 0
    fields = {entry.field: entry.topics for entry in cfg.topics}
    seeds = make_seeds(fields, cfg.styles, cfg.angles, cfg.turns, cfg.seed)
    endpoint = Endpoint(cfg.api, cfg.base_url, cfg.model, cfg.temperature, cfg.max_tokens, cfg.extra_body)
    judge = Judge(seeds, cfg.dialogues, cfg.max_turn_chars, cfg.near_duplicate_threshold)
    results.check_folder(out)
    with Journal(out / results.JOURNAL) as journal:
        results.begin_session(out, journal, cfg, endpoint.host)
        stopped = asyncio.run(_collect(cfg, endpoint, seeds, journal, judge))
    facts = results.write(out, cfg, journal, judge, stopped)
    print(results.summary(out, facts))
    return 0 if stopped == COMPLETE else STOPPED_EARLY


async def _collect(cfg: Any, endpoint: Endpoint, seeds: list[Seed], journal: Journal, judge: Judge) -> str:
    from data_prep.dialogue.client import Client, Retries  # httpx is slow to import, and needed here only

    retries = Retries(cfg.attempts, cfg.timeout_seconds, cfg.backoff_seconds, cfg.max_wait_seconds)
    limit = RateLimit(cfg.requests_per_minute, cfg.tokens_per_minute)
    budget = Budget(cfg.token_budget, journal.tokens_spent)
    goal = Goal(cfg.system, cfg.prompt, cfg.dialogues, cfg.concurrency, cfg.answers_per_dialogue, cfg.max_dropped_share)
    key = keys.read_key(cfg.api_key_env)
    client = Client(endpoint, key, retries, limit, budget, cfg.structured_output, journal.add_failure)
    interval = 0.5 if sys.stderr.isatty() else 30
    async with client:
        collection = Collection(goal, seeds, journal, judge, client)
        with tqdm(total=cfg.dialogues, initial=len(judge.kept), unit=" dialogues", mininterval=interval) as bar:

            def show() -> None:
                bar.set_postfix_str(results.progress(cfg, journal, judge), refresh=False)
                bar.update(min(len(judge.kept), cfg.dialogues) - bar.n)

            return await collection.run(show)
