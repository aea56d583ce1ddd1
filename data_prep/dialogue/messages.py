"""The messages of a chat, and why some cannot be learnt from."""

from collections.abc import Sequence

from data_prep.document import CorpusError

Message = dict[str, str]
"""`role` and `content`; a user's may have `input`, the text its instruction is about."""
ROLES = ("system", "user", "assistant")


class UnusableExample(CorpusError):
    """An example that cannot be learnt from; `reason` is a key of the ledger."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_messages(messages: Sequence[Message]) -> None:
    """Checks that messages are an optional system message, then user and assistant in turn, none empty.

    An empty system message is let pass: data of one form for all examples has it.

    Raises:
        UnusableExample: they are not; `roles`, `empty_question` or `empty_answer`.
    """
    turns = messages[1:] if messages and messages[0].get("role") == "system" else messages
    if not turns:
        raise UnusableExample("roles", f"{len(messages)} messages without a user's; at least one is expected; add it")
    for number, message in enumerate(turns):
        role, expected = message.get("role"), ROLES[1 + number % 2]
        if role != expected:
            raise UnusableExample(
                "roles", f"turn {number} has the role {role!r}; {expected!r} is expected; make the roles alternate"
            )
    for number, message in enumerate(messages):
        content, role = message.get("content"), message["role"]
        if not isinstance(content, str) or not (content.strip() or role == "system"):
            raise UnusableExample(
                "empty_answer" if role == "assistant" else "empty_question",
                f"message {number} has the content {content!r}; text is expected; remove the dialogue",
            )


def split_system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """Returns the system message, if there is one, and the turns."""
    first = int(bool(messages) and messages[0]["role"] == "system")
    return list(messages[:first]), list(messages[first:])
