"""The chat example, the unit of dialogue data; read from a file or dataset of any of the published forms."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.dialogue.chat_rows import ChatSource, Row
from data_prep.dialogue.formats import as_messages
from data_prep.dialogue.messages import Message, UnusableExample, check_messages
from data_prep.document import CorpusError


@dataclass(frozen=True)
class ChatExample:
    """A dialogue to learn from; `form` is its language pattern and `lang` the language of its answers."""

    id: str
    messages: list[Message]
    pair_id: str = ""
    form: str = ""
    lang: str = ""


@dataclass(frozen=True)
class Unusable:
    """A row that is no example, or an example that cannot be learnt from."""

    place: str
    """File and line."""
    reason: str
    """A key of the ledger."""
    message: str
    """What is wrong, and what to change."""


def read_examples(source: ChatSource) -> Iterator[tuple[str, ChatExample | Unusable]]:
    """Yields (file and line, example), or what is wrong with the row, in the order of the source.

    An example without an id is called by its place.

    Raises:
        CorpusError: there is no such source, or it is damaged.
    """
    for place, row in source.rows():
        try:
            yield place, _example(place, row, source.form)
        except UnusableExample as error:
            yield place, Unusable(place, error.reason, f"{place}: {error}")


def read_chat_examples(path: Path) -> list[ChatExample]:
    """Returns the examples of a file, of which each must be usable.

    Raises:
        CorpusError: there is none, or a line is no valid example; the message names file and line.
    """
    examples = []
    for _, example in read_examples(ChatSource(str(path))):
        if isinstance(example, Unusable):
            raise CorpusError(example.message)
        examples.append(example)
    if not examples:
        raise CorpusError(f"{path} holds no chat example; at least one is expected; give another file")
    return examples


def _example(place: str, row: Row | str, form: str | None) -> ChatExample:
    if isinstance(row, str):
        raise UnusableExample("malformed", row)
    messages = as_messages(row, form)
    check_messages(messages)
    told = {name: row[name] for name in ("pair_id", "form", "lang") if isinstance(row.get(name), str)}
    own_id = row.get("id")
    is_id = isinstance(own_id, str | int) and not isinstance(own_id, bool) and str(own_id)
    return ChatExample(id=str(own_id) if is_id else place, messages=messages, **told)


def numbered_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each JSON object with its `file:line`, skipping blank lines."""
    if not path.is_file():
        raise CorpusError(f"{path} does not exist; a .jsonl file is expected; give its path")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8")) if line.strip() else None
                json.dumps(row, ensure_ascii=False).encode()  # fails on a lone surrogate
            except ValueError as error:
                raise CorpusError(f"{where}: {error}; a JSON object in UTF-8 is expected; mend the line") from None
            if isinstance(row, dict):
                yield where, row
            elif line.strip():
                raise CorpusError(f"{where}: {line[:40]!r}; a JSON object is expected; mend the line")
