"""Small tasks of one's own: a YAML file with questions, scored as the share that is answered right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from data_prep.document import CorpusError, read_jsonl
from data_prep.tokens.tokenizer import Tokenizer
from recipes.evaluation.report.tables import markdown_table, wilson
from recipes.evaluation.scoring import Window, exactly_matches, folded, over_ranks, scored_nats

KINDS = ("multiple_choice", "exact_match", "contains")
SPOKEN = ("exact_match", "contains")
"""Kinds that a model answers in words, through its chat template."""


@dataclass(frozen=True)
class Task:
    """Questions of one kind; an example has `question`, and `choices` and `answer` (their index), or `answers`."""

    kind: str
    ask: str
    """What a model is asked, with {question} in it."""
    examples: tuple[dict[str, Any], ...]

    def messages(self) -> list[dict[str, Any]]:
        """Returns the questions as rows with `messages`, of a kind that is answered in words."""
        contents = [self.ask.format(question=one["question"]) for one in self.examples]
        return [{"messages": [{"role": "user", "content": content}]} for content in contents]

    def is_right(self, number: int, answer: str) -> bool:
        """Whether an answer in words is right: equal to an accepted one, or (`contains`) holding it."""
        accepted = self.examples[number]["answers"]
        if self.kind == "exact_match":
            return exactly_matches(answer, accepted)
        return any(folded(one) in folded(answer) for one in accepted)


def read_task(path: Path) -> Task:
    """Reads a task: `kind`, `examples` (a list, or a file of JSON lines beside this one), and `ask` if wanted.

    Raises:
        CorpusError: the file is no such task; the message names the example.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CorpusError(f"{path} cannot be read: {' '.join(str(error).split())}; a YAML file is expected") from None
    if not isinstance(content, dict) or content.keys() - {"kind", "ask", "examples"} or "examples" not in content:
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CorpusError(f"{path} has {keys}; kind, examples and, if wanted, ask are expected; mend the file")
    kind, ask, examples = content.get("kind"), content.get("ask", "{question}"), content["examples"]
    if kind not in KINDS:
        raise CorpusError(f"{path}: the kind {kind!r} is not known; one of {', '.join(KINDS)}")
    if "{question}" not in str(ask):
        raise CorpusError(f"{path}: ask is {ask!r}, without {{question}}; put it where the question goes")
    if isinstance(examples, str):
        examples = list(read_jsonl(path.parent / examples))
    if not isinstance(examples, list) or not examples:
        raise CorpusError(f"{path} has no examples; at least one is expected; add it")
    for number, one in enumerate(examples, start=1):
        if problem := _problem(kind, one):
            raise CorpusError(f"{path} example {number} {problem}")
    return Task(kind, str(ask), tuple(examples))


def _problem(kind: str, one: Any) -> str | None:
    """Returns what is wrong with an example, None if nothing is."""
    if not isinstance(one, dict) or not isinstance(one.get("question"), str):
        return "has no question, which is text; add it"
    if kind in SPOKEN:
        answers = one.get("answers")
        is_good = isinstance(answers, list) and all(isinstance(text, str) and folded(text) for text in answers)
        return None if answers and is_good else f"has answers {answers!r}; a list of texts is expected; quote them"
    choices, answer = one.get("choices"), one.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        return f"has choices {choices!r}; a list of two texts or more is expected; quote them"
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        return f"has the answer {answer!r}; the index of one of its {len(choices)} choices, from 0, is expected"
    return None


def choices_right(model: nn.Module, tokenizer: Tokenizer, task: Task) -> list[bool]:
    """Returns for each example whether its right choice is the likeliest; the first of equals counts.

    The likelihood of a choice is that of its tokens behind the question and a space, per character of the choice, as
    lm-evaluation-harness's acc_norm has it. Models with a chat template are asked in plain text as well, so that
    models compare. Every rank must call it.
    """
    pairs = [(task.ask.format(question=one["question"]), choice) for one in task.examples for choice in one["choices"]]
    nats = over_ranks([choice_window(tokenizer, *pair) for pair in pairs], lambda one: scored_nats(model, [one]))
    costs = iter([value / len(choice) for value, (_, choice) in zip(nats, pairs, strict=True)])
    right = []
    for one in task.examples:
        own = [next(costs) for _ in one["choices"]]
        right.append(own.index(min(own)) == one["answer"])
    return right


def tasks_table(rows: Sequence[dict[str, Any]], examples: Mapping[str, int]) -> str:
    """Returns a Markdown table with the shares that models answer right and their 95 % confidence intervals.

    Args:
        rows: a row a model, with `model` and `task_NAME`.
        examples: how many stand behind each share.
    """
    lines = [["task", "n", *(str(row["model"]) for row in rows)]]
    for key in (key for key in rows[0] if key.startswith("task_")):
        intervals = [wilson(row[key], examples[key]) for row in rows]
        cells = [f"{row[key]:.0%} ({low:.0%} to {high:.0%})" for row, (low, high) in zip(rows, intervals, strict=True)]
        lines.append([key.removeprefix("task_"), str(examples[key]), *cells])
    return markdown_table(lines)


def choice_window(tokenizer: Tokenizer, question: str, choice: str) -> Window:
    """Returns the ids of a question and one of its choices, and how many of the last ones are the choice's."""
    alone, whole = tokenizer.encode(question), tokenizer.encode(f"{question} {choice}")
    same = next((n for n, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole)))
    return [tokenizer.bos_id, *whole], len(whole) - same


def longest_choice(tokenizer: Tokenizer, tasks: Sequence[Task]) -> int:
    """Returns the tokens of the longest question with a choice."""
    windows = [
        choice_window(tokenizer, task.ask.format(question=one["question"]), choice)
        for task in tasks
        if task.kind not in SPOKEN
        for one in task.examples
        for choice in one["choices"]
    ]
    return max((len(ids) - 1 for ids, _ in windows), default=0)
