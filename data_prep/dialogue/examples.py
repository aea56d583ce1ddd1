"""The chat example, the unit of dialogue data, and its JSON-lines file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.dialogue.chat_template import Message, check_messages
from data_prep.document import CorpusError


@dataclass(frozen=True)
class ChatExample:
    """A dialogue to learn from; `form` is its language pattern and `lang` the language of its answers."""

    id: str
    messages: list[Message]
    pair_id: str = ""
    form: str = ""
    lang: str = ""


def read_chat_examples(path: Path) -> list[ChatExample]:
    """Returns the examples of a chat-example file.

    Raises:
        CorpusError: there is none, or a line is no valid example; the message names file and line.
    """
    examples = []
    for where, row in numbered_rows(Path(path)):
        texts = {name: row.get(name, "") for name in ("id", "pair_id", "form", "lang")}
        messages = row.get("messages")
        is_listed = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
        if not row.get("id") or not is_listed or not all(isinstance(text, str) for text in texts.values()):
            raise CorpusError(f"{where}: {str(row)[:60]}; id and messages: [{{role, content}}] are expected; mend it")
        try:
            check_messages(row["messages"])
        except CorpusError as error:
            raise CorpusError(f"{where}: {error}") from None
        kept = [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
        examples.append(ChatExample(messages=kept, **texts))
    if not examples:
        raise CorpusError(f"{path} holds no chat example; one JSON object a line is expected; give another file")
    return examples


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
