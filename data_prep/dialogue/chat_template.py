"""Chat templates: messages to token ids, with the ids that are to be learnt marked.

The rendering follows transformers' `apply_chat_template`, so that a model trained here meets the same ids
when vLLM or transformers serve it.
"""

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from data_prep.dialogue.messages import Message, UnusableExample, check_messages
from data_prep.dialogue.sandbox import RENDER_ERRORS, fields_read, sandbox
from data_prep.document import CorpusError
from data_prep.tokens.tokenizer_formats import Tokenizer, special_pattern

# The format of Meta-Llama-3-8B-Instruct; Source: llama-models `ChatFormat`.
LLAMA3 = r"""{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' ~ message.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""


class ChatTemplate:
    """A Jinja chat template together with the tokenizer that encodes what it renders.

    The ids are those of transformers' `apply_chat_template(tokenize=True)`. One thing is done otherwise: where the
    tokenizer would join the end of a prompt with the beginning of its answer (Alpaca's `Response:` and a letter, under
    Llama-3's), the answer is encoded apart, because a chat has to generate it behind the prompt's own ids.

    Args:
        tokenizer: its special strings become single ids.
        template: Jinja source, as transformers takes it.
        tokens: what the template finds as `bos_token`, `eos_token` and the like; where these two are not given, the
            tokenizer's begin and end of a document. An instruct model's configuration names its end of a turn here.
        now: the clock of templates that write today's date; give a fixed one where runs must be alike.

    Raises:
        CorpusError: the template is no valid Jinja.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        tokens: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        names = {id_: text for text, id_ in tokenizer.special_tokens.items()}
        ends = {"bos_token": names[tokenizer.bos_id], "eos_token": names[tokenizer.eos_id]}
        self._variables = ends | dict(tokens or {})
        self._special_ids = frozenset(names)
        self._special_text = special_pattern(tokenizer.special_tokens)
        environment = sandbox(now)
        try:
            self._compiled = environment.from_string(template)
            self._takes_input = "input" in fields_read(environment, template)
        except jinja2.TemplateError as error:
            raise CorpusError(f"chat template: {error}; valid Jinja is expected; mend the template") from None

    @classmethod
    def from_directory(
        cls, tokenizer: Tokenizer, folder: Path, now: Callable[[], datetime] = datetime.now, name: str = "default"
    ) -> "ChatTemplate":
        """Returns the template of a Hugging Face model directory: chat_template.jinja, else tokenizer_config.json.

        Args:
            tokenizer: of the directory.
            folder: the directory.
            now: the clock of the template.
            name: of one of several templates; `default` is also the one that stands alone.

        Raises:
            CorpusError: the directory has no template of that name; base models have none at all.
        """
        found = stored_templates(folder)
        if name not in found:
            held = f"only the chat templates {', '.join(found)}" if found else "no chat template"
            raise CorpusError(
                f"{folder} has {held}{f', not {name}' if found or name != 'default' else ''}; chat_template.jinja or a "
                "chat_template in tokenizer_config.json is expected; give an instruct model's directory, or name a "
                "template such as llama3"
            )
        return cls(tokenizer, found[name], template_tokens(folder), now)

    def encode(self, messages: Sequence[Message], train_on: str = "all") -> tuple[list[int], list[bool]]:
        """Returns the ids of a dialogue, and of each whether it is an assistant's to be learnt.

        Learnt are each answer and the token that ends its turn; not the header before it, nor what
        the template puts after that token. The ids before an answer are those `prompt` gives for it.

        Args:
            messages: the dialogue, which ends with an answer.
            train_on: `all` answers, or only the `last`.

        Raises:
            UnusableExample: messages that no chat can have (see `check_messages`), a last message that is not
                the assistant's, special tokens within a content, or a template that writes a turn differently once
                others follow.
        """
        prepared = self._prepare(messages, last="assistant")
        text = self._render(prepared, prompt=False)
        answers = [
            (self._prefix(text, prepared[:index], prompt=True), self._prefix(text, prepared[: index + 1], prompt=False))
            for index, message in enumerate(prepared)
            if message["role"] == "assistant"
        ]
        ids, spans = self._spans(text, answers)
        is_learnt = [False] * len(ids)
        for start, stop in spans if train_on == "all" else spans[-1:]:
            ends = [position for position in range(start, stop) if ids[position] in self._special_ids]
            stop = ends[-1] + 1 if ends else stop
            is_learnt[start:stop] = [True] * (stop - start)
        return ids, is_learnt

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a dialogue up to where the assistant's next answer begins.

        Raises:
            UnusableExample: messages that no chat can have, or a last message that is not the user's.
        """
        return self.tokenizer.encode_with_special(self._render(self._prepare(messages, last="user"), prompt=True))

    @functools.cached_property
    def end_of_turn(self) -> int | None:
        """The special token that ends an answer; None if answers end without one, so that a model would not stop."""
        try:
            ids, is_learnt = self.encode([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}])
        except UnusableExample:
            return None
        learnt = [id_ for id_, learn in zip(ids, is_learnt, strict=True) if learn]
        return learnt[-1] if learnt and learnt[-1] in self._special_ids else None

    def _prepare(self, messages: Sequence[Message], last: str) -> list[Message]:
        """Returns the messages as the template takes them, checked."""
        check_messages(messages)
        if messages[-1]["role"] != last:
            raise UnusableExample(
                "roles",
                f"the last message is the {messages[-1]['role']}'s; the {last}'s is expected; add or remove a message",
            )
        for number, message in enumerate(messages):
            if found := self._special_text.findall(message["content"] + message.get("input", "")):
                raise UnusableExample(
                    "special_tokens",
                    f"message {number} holds {', '.join(sorted(set(found)))}; special tokens are the template's own; "
                    "remove them from the content",
                )
        return [message if self._takes_input else _with_input_in_content(message) for message in messages]

    def _render(self, messages: Sequence[Message], prompt: bool) -> str:
        try:
            return self._compiled.render(
                messages=list(messages), add_generation_prompt=prompt, tools=None, documents=None, **self._variables
            )
        except RENDER_ERRORS as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UnusableExample(
                "template",
                f"the chat template refuses messages of the roles {roles}: {error}; give it messages it knows",
            ) from None

    def _prefix(self, full_text: str, messages: Sequence[Message], prompt: bool) -> int:
        """Returns how many characters of the dialogue the first messages take."""
        text = self._render(messages, prompt)
        # Most templates end a dialogue alike wherever it ends; one that adds a line break only there is let pass.
        text = text if full_text.startswith(text) else text.rstrip("\n")
        if not full_text.startswith(text):
            raise UnusableExample("template", _changed_prefix(len(messages), text))
        return len(text)

    def _spans(self, text: str, answers: Sequence[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of a text, and the places among them of the answers, which are places in the text."""
        cuts: list[int] = []
        ids, spans = self._encode(text, cuts), []
        for start, stop in answers:
            before = self._encode(text[:start], cuts)
            if ids[: len(before)] != before and self._can_be_cut:
                cuts.append(start)
                ids = self._encode(text, cuts)
            through = self._encode(text[:stop], cuts)
            if ids[: len(before)] != before or ids[: len(through)] != through:
                raise UnusableExample(
                    "template",
                    f"the tokenizer joins {text[max(0, start - 20) : start]!r} with the beginning of the answer "
                    f"{text[start:stop][:20]!r}; two tokens are needed; begin the answer otherwise",
                )
            spans.append((len(before), len(through)))
        return ids, spans

    def _encode(self, text: str, cuts: Sequence[int]) -> list[int]:
        """Returns the ids of a text, of which the parts between the cuts are encoded apart."""
        edges = [0, *(cut for cut in cuts if cut < len(text)), len(text)]
        parts = [text[start:stop] for start, stop in itertools.pairwise(edges)]
        return [id_ for part in parts for id_ in self.tokenizer.encode_with_special(part)]

    @functools.cached_property
    def _can_be_cut(self) -> bool:
        """Whether parts of a text make up the text again; sentencepiece puts a space before each."""
        return self.tokenizer.decode(self.tokenizer.encode("a") * 2) == "aa"


def template_tokens(folder: Path) -> dict[str, str]:
    """Returns what a model directory calls `bos_token`, `eos_token` and the like, for its templates.

    Raises:
        CorpusError: a file of the tokenizer is no JSON.
    """
    tokens = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the second has the last word
        for key, value in _read_json(folder / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
    return tokens


def stored_templates(folder: Path) -> dict[str, str]:
    """Returns a model directory's templates by name; one that stands alone is called `default`."""
    stored = _read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(stored, list):  # several named templates, as transformers allows
        found = {entry["name"]: entry["template"] for entry in stored}
    else:
        found = {"default": stored} if isinstance(stored, str) else {}
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise CorpusError(f"{path} is no JSON ({error}); mend or remove it") from None
    return content if isinstance(content, dict) else {}


def _with_input_in_content(message: Message) -> Message:
    """Returns the message for a template that knows no `input`, which then follows the instruction."""
    parts = [message["content"], message.get("input", "")]
    return {"role": message["role"], "content": "\n\n".join(part for part in parts if part.strip()) or parts[0]}


def _changed_prefix(count: int, text: str) -> str:
    return (
        f"the chat template writes the first {count} messages as {text[-60:]!r} when they stand alone, "
        "but otherwise in the whole dialogue; a prefix of it is expected; use another template"
    )
