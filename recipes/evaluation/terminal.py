"""A conversation in the terminal."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from configs.loader import UserError
from data_prep.dialogue.messages import Message
from recipes.evaluation.talking import Talker, Wish, fitting, opening, speak

HELP = """\
/system TEXT   the system turn from now on; without TEXT none
/undo          takes the last question and its answer back
/reset         forgets the conversation; the system turn stays
/help          shows this
An empty line, Ctrl-D or Ctrl-C ends the conversation; during an answer Ctrl-C ends the answer alone. A line of three
double quotes begins a question of several lines, and another one ends it. A space in front of / makes it text."""
QUOTES = '"""'


def answer(talker: Talker, messages: list[Message], wish: Wish) -> tuple[str, str]:
    """Prints the answer to the messages while it is written; returns it and why it ended.

    The reasons are those of `Piece`, and `interrupted`, by Ctrl-C.
    """
    assert talker.template is not None
    text, reason = "", "interrupted"
    with contextlib.suppress(KeyboardInterrupt):
        for piece in speak(talker, talker.template.prompt(messages), wish):
            text += piece.text
            print(piece.text, end="", flush=True)
            reason = piece.reason or reason
    print()
    return text, reason


def lines() -> Iterator[str]:
    """Yields what is typed, until an empty line, the end of the input or Ctrl-C."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # with it `input` knows how wide Korean characters are, and what was typed before
    try:
        while line := input("> ").strip("\n"):
            if line.strip() == QUOTES:
                several = []
                while (line := input("… ")).strip() != QUOTES:
                    several.append(line)
                line = "\n".join(several)
            if not line.strip():
                return
            yield line
    except (EOFError, KeyboardInterrupt):
        print()


def converse(talker: Talker, wish: Wish, system: str | None) -> None:
    """Talks until the input ends; a question that cannot be answered is taken back."""
    turns: list[Message] = []
    print(f"{talker.name}. /help lists the commands.")
    for number, line in enumerate(lines()):
        if line.startswith("/"):
            system, turns = command(line, system, turns)
            continue
        first, question = opening(system, line.strip())[:-1], opening(None, line.strip())
        turns += question
        try:
            fitted, dropped = fitting(talker, [*first, *turns], wish.max_new_tokens)
        except UserError as error:
            print(f"(not asked: {error})")
            turns.pop()
            continue
        if dropped:
            print(
                f"(the oldest {dropped} question(s) and answer(s) were dropped: {talker.most_tokens} tokens are read)"
            )
            turns = fitted[len(first) :]
        # the same question asked again is answered anew, and the whole conversation can still be repeated
        text, reason = answer(talker, fitted, replace(wish, seed=wish.seed + number))
        if reason == "length":
            print("(cut off at max_new_tokens, or at what the model reads)")
        if text.strip():
            turns.append({"role": "assistant", "content": text})
        else:
            turns.pop()  # an empty turn is refused by the template
            print("(no answer)")


def command(line: str, system: str | None, turns: list[Message]) -> tuple[str | None, list[Message]]:
    """Returns the system turn and the turns after a command; says what it did."""
    name, _, text = line.partition(" ")
    if name == "/system":
        system = text.strip() or None
        print(f"(system: {system or 'none'})")
    elif name == "/undo":
        turns = turns[:-2]
        print(f"({len(turns) // 2} question(s) left)")
    elif name == "/reset":
        turns = []
        print("(forgotten)")
    else:
        print(HELP if name == "/help" else f"{name} is no command; see /help")
    return system, turns
