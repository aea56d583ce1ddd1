"""Answers of several models to the same prompts, side by side: Markdown, as model cards show them, and JSON."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.loader import ConfigError
from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.dialogue.messages import Message
from data_prep.document import CorpusError, read_jsonl
from data_prep.hf_directory import ModelDirectory
from data_prep.lineage import whole_file, write_json
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.evaluation.sampling import Sampling
from recipes.evaluation.talking import Talker, Wish, opening, speak

REASONS = {"stop": "ended", "length": "cut off"}


def read_prompts(given: Any, system: str | None) -> list[list[Message]]:
    """Returns the prompts as messages.

    Args:
        given: a list of texts; or a file's path: `.jsonl` with a `prompt` or `messages` a line, else a text a line.
        system: system turn of those that are texts.

    Raises:
        CorpusError: there is none, or a line is no prompt.
    """
    rows: list[Any]
    if isinstance(given, str):
        path = Path(given)
        rows = list(read_jsonl(path)) if ".jsonl" in path.suffixes else path.read_text(encoding="utf-8").splitlines()
    else:
        rows = list(given)
    found: list[list[Message]] = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str) and not row.strip():
            continue
        text = row.get("prompt") if isinstance(row, Mapping) else row
        if isinstance(row, Mapping) and isinstance(messages := row.get("messages"), list):
            found.append(list(messages))
        elif isinstance(text, str) and text.strip():
            found.append(opening(system, text.strip()))
        else:
            raise CorpusError(
                f"prompts: number {number} is {str(row)[:60]!r}; a text, or an object with prompt or messages, is "
                "expected; mend it"
            )
    if not found:
        raise CorpusError(f"prompts: {given!r} holds none; one a line is expected; add some")
    return found


def check_prompts(models: Mapping[str, str], prompts: Sequence[list[Message]], most_tokens: int) -> None:
    """Checks that every model can be asked every prompt, before the first is loaded.

    Args:
        models: name -> Hugging Face directory.
        prompts: see `compare`.
        most_tokens: prompt and answer together, where a model does not read fewer.

    Raises:
        ConfigError: all that cannot, at once.
    """
    problems = []
    for name, path in models.items():
        most = min(most_tokens, ModelDirectory.open(path).config.get("max_position_embeddings", most_tokens))
        try:
            template = ChatTemplate.from_directory(load_tokenizer(Path(path)), Path(path))
        except CorpusError as error:
            problems.append(f"{name}: {error}")
            continue
        for number, messages in enumerate(prompts, start=1):
            try:
                count = len(template.prompt(messages))
            except CorpusError as error:
                problems.append(f"prompt {number}, {name}: {error}")
                continue
            if count >= most:
                problems.append(f"prompt {number} has {count} tokens; {name} reads {most} with the answer; shorten it")
    if problems:
        raise ConfigError("prompts", problems)


def compare(
    models: Mapping[str, str], load: Callable[[str, str], Talker], prompts: Sequence[list[Message]], wish: Wish
) -> list[dict[str, Any]]:
    """Returns a row a prompt: `messages`, and `answers` by model with text, tokens, seconds, reason and sampling.

    One model is in memory at a time.

    Args:
        models: name -> Hugging Face directory.
        load: opens a model, given name and directory.
        prompts: to be answered by each.
        wish: how; the sampling is each model's. Each answer has the same seed, so that none depends on the others.
    """
    rows: list[dict[str, Any]] = [{"messages": messages, "answers": {}} for messages in prompts]
    with tqdm(total=len(models) * len(rows), desc="compare", unit="answer") as progress:
        for name, path in models.items():
            talker = load(name, path)
            for row in rows:
                progress.set_postfix_str(name)
                row["answers"][name] = _answer(talker, row["messages"], wish)
                progress.update()
            del talker
    return rows


def _answer(talker: Talker, messages: list[Message], wish: Wish) -> dict[str, Any]:
    assert talker.template is not None
    started = time.perf_counter()
    pieces = list(speak(talker, talker.template.prompt(messages), replace(wish, sampling=talker.sampling)))
    seconds = round(time.perf_counter() - started, 2)
    text = "".join(piece.text for piece in pieces)
    how = {"reason": pieces[-1].reason, "sampling": asdict(talker.sampling)}
    return {"text": text, "tokens": pieces[-1].tokens, "seconds": seconds, **how}


def write_comparison(folder: Path, rows: Sequence[dict[str, Any]], facts: Mapping[str, Any]) -> Path:
    """Writes comparison.json (`rows` and the facts) and comparison.md; returns the latter's path."""
    write_json(folder / "comparison.json", {"rows": rows, **facts})
    with whole_file(folder / "comparison.md") as partial:
        partial.write_text(comparison_markdown(rows), encoding="utf-8")
    return folder / "comparison.md"


def comparison_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a section a prompt with a table of its answers, which also long answers leave readable."""
    parts = ["# Answers side by side"]
    for number, row in enumerate(rows, start=1):
        *earlier, question = row["messages"]
        parts.append(f"## {number}. {cell(question['content'].splitlines()[0])}")
        if earlier or "\n" in question["content"]:
            parts.append("\n".join(f"> **{turn['role']}**: {cell(turn['content'])}\n>" for turn in row["messages"]))
        lines = ["| model | answer | tokens | seconds | |", "| --- | --- | ---: | ---: | --- |"]
        lines += [
            f"| {cell(name)} | {cell(found['text']) or '–'} | {found['tokens']} | {found['seconds']:.1f} "
            f"| {REASONS[found['reason']]} |"
            for name, found in row["answers"].items()
        ]
        parts.append("\n".join(lines))
    how = "; ".join(f"{cell(name)} {_decoding(found['sampling'])}" for name, found in rows[0]["answers"].items())
    parts.append(f"Decoding: {how}. *Cut off*: an answer reached the most tokens allowed; tokens are each model's own.")
    return "\n\n".join(parts) + "\n"


def _decoding(sampling: Mapping[str, Any]) -> str:
    """Returns the settings of a model's answers in words; those that do nothing are left out."""
    idle = asdict(Sampling())
    used = [f"{name} {value:g}" for name, value in sampling.items() if value != idle[name]]
    return ", ".join(([] if sampling["temperature"] else ["greedy"]) + used)


def cell(text: str) -> str:
    r"""Returns text as one line of a Markdown table: `<br>` for line breaks, no HTML, no links, no columns of its own.

    Bold text and lists' numbers stay as a model wrote them; ``|`` and ``[`` are escaped, indentation is kept.
    """
    text = text.strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\|\[\]`])", r"\\\1", text)
    lines = text.splitlines()
    return "<br>".join(re.sub(r"^[ \t]+", lambda found: "&nbsp;" * len(found[0].expandtabs(4)), one) for one in lines)
