"""Rows of published chat data as messages: which fields hold them, under which names."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.dialogue.messages import Message, UnusableExample

# The names that a form's fields go by; the first that a row has is taken.
CONVERSATIONS = ("conversations", "conversation")
INPUTS = ("input", "context")
ANSWERS = ("output", "response", "completion")
FORMS = {
    "messages": "messages: [{role, content}]",
    "sharegpt": "conversations: [{from, value}]",
    "alpaca": "instruction, input, output (as KULLM-v2)",
    "prompt": "prompt, completion",
}
ROLE_OF = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


def recognise(row: Mapping[str, Any]) -> str | None:
    """Returns the form whose fields a row has, None for none of `FORMS`."""
    if "messages" in row:
        return "messages"
    if any(name in row for name in CONVERSATIONS):
        return "sharegpt"
    if not any(name in row for name in ANSWERS):
        return None
    return "alpaca" if "instruction" in row else "prompt" if "prompt" in row else None


def as_messages(row: Mapping[str, Any], form: str | None = None) -> list[Message]:
    """Returns the messages of a row; whether a chat can have them, `check_messages` tells.

    Args:
        row: field -> value.
        form: a key of `FORMS`; None recognises it by the fields.

    Raises:
        UnusableExample: `malformed`: the row has not the fields of the form, or not their types.
    """
    found = form or recognise(row)
    if found is None:
        raise _malformed(row, " or ".join(FORMS.values()))
    read = {"messages": _from_messages, "sharegpt": _from_sharegpt, "alpaca": _from_alpaca, "prompt": _from_prompt}
    messages, system = read[found](row), row.get("system")
    if isinstance(system, str) and system.strip() and messages[:1] and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _from_messages(row: Mapping[str, Any]) -> list[Message]:
    return _turns(row, row.get("messages"), "role", "content")


def _from_sharegpt(row: Mapping[str, Any]) -> list[Message]:
    turns = _first(row, CONVERSATIONS)
    first = turns[0] if isinstance(turns, Sequence) and turns else None
    names = ("role", "content") if isinstance(first, Mapping) and "role" in first else ("from", "value")
    return _turns(row, turns, *names)


def _from_alpaca(row: Mapping[str, Any]) -> list[Message]:
    question, extra = {"role": "user", "content": _text(row, "instruction")}, _first(row, INPUTS)
    if isinstance(extra, str) and extra.strip():
        question["input"] = extra
    return [question, _answer(row)]


def _from_prompt(row: Mapping[str, Any]) -> list[Message]:
    if isinstance(row.get("prompt"), str | None):
        return [{"role": "user", "content": _text(row, "prompt")}, _answer(row)]
    return _turns(row, row["prompt"], "role", "content") + _turns(row, _first(row, ANSWERS), "role", "content")


def _answer(row: Mapping[str, Any]) -> Message:
    name = next((name for name in ANSWERS if name in row), ANSWERS[0])
    return {"role": "assistant", "content": _text(row, name)}


def _turns(row: Mapping[str, Any], turns: Any, role: str, content: str) -> list[Message]:
    """Returns the turns with the names that we give roles and contents."""
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise _malformed(row, f"a list of {{{role}, {content}}}")
    messages = []
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get(role), str):
            raise _malformed(row, f"a list of {{{role}, {content}}}")
        text = turn.get(content)
        if not isinstance(text, str | None):
            raise _malformed(row, f"text as the {content} of each turn")
        name = turn[role].lower()
        messages.append({"role": ROLE_OF.get(name, name), "content": text or ""})
    return messages


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if name not in row or not isinstance(value, str | None):
        raise _malformed(row, f"text as {name}")
    return value or ""


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _malformed(row: Mapping[str, Any], wanted: str) -> UnusableExample:
    return UnusableExample(
        "malformed",
        f"{str(dict(row))[:60]} has the fields {', '.join(map(str, row)) or 'none'}; {wanted} is expected; mend it, or "
        "state the form with `format` and the fields with `fields`",
    )
