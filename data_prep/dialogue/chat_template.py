"""Chat templates: messages to token ids, with the ids that are to be learnt marked.

The rendering follows transformers' `apply_chat_template`, so that a model trained here meets the same ids
when vLLM or transformers serve it.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from data_prep.document import CorpusError
from data_prep.tokens.tokenizer_formats import Tokenizer, special_pattern

Message = dict[str, str]
ROLES = ("system", "user", "assistant")

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

    Args:
        tokenizer: its special strings become single ids.
        template: Jinja source, as transformers takes it.
        bos_token: what the template finds under this name; the tokenizer's begin of a document by default.
        eos_token: likewise; an instruct model's configuration names its end of a turn here.
        now: the clock of templates that write today's date; give a fixed one where runs must be alike.

    Raises:
        CorpusError: the template is no valid Jinja.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        bos_token: str | None = None,
        eos_token: str | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        names = {id_: text for text, id_ in tokenizer.special_tokens.items()}
        self._variables = {
            "bos_token": bos_token or names[tokenizer.bos_id],
            "eos_token": eos_token or names[tokenizer.eos_id],
        }
        self._special_ids = frozenset(names)
        self._special_text = special_pattern(tokenizer.special_tokens)
        try:
            self._compiled = _environment(now).from_string(template)
        except jinja2.TemplateError as error:
            raise CorpusError(f"chat template: {error}; valid Jinja is expected; mend the template") from None

    @classmethod
    def from_directory(
        cls, tokenizer: Tokenizer, folder: Path, now: Callable[[], datetime] = datetime.now
    ) -> "ChatTemplate":
        """Returns the template of a Hugging Face model directory: chat_template.jinja, else tokenizer_config.json.

        Raises:
            CorpusError: the directory has no template, as base models have none.
        """
        config_path, jinja_path = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        try:
            config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
        except ValueError as error:
            raise CorpusError(f"{config_path} is no JSON ({error}); mend or remove it") from None
        template = jinja_path.read_text(encoding="utf-8") if jinja_path.is_file() else config.get("chat_template")
        if isinstance(template, list):  # several named templates, as transformers allows
            template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
        if not isinstance(template, str):
            raise CorpusError(
                f"{folder} has no chat template; chat_template.jinja or a chat_template in tokenizer_config.json "
                "is expected; give an instruct model's directory, or use the template LLAMA3"
            )
        return cls(tokenizer, template, _token_text(config, "bos_token"), _token_text(config, "eos_token"), now)

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Returns the ids of a dialogue, and of each whether it is an assistant's to be learnt.

        Learnt are each answer and the token that ends its turn; not the header before it, nor what
        the template puts after that token. The ids before an answer are those `prompt` gives for it.

        Raises:
            CorpusError: messages that no chat can have (see `check_messages`), a last message that is not
                the assistant's, or a template that writes a turn differently once others follow.
        """
        self._check(messages, last="assistant")
        full_text = self._render(messages, prompt=False)
        ids = self.tokenizer.encode_with_special(full_text)
        is_learnt = [False] * len(ids)
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = self._prefix_length(full_text, ids, messages[:index], prompt=True)
            stop = self._prefix_length(full_text, ids, messages[: index + 1], prompt=False)
            ends = [position for position in range(start, stop) if ids[position] in self._special_ids]
            stop = ends[-1] + 1 if ends else stop
            is_learnt[start:stop] = [True] * (stop - start)
        return ids, is_learnt

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a dialogue up to where the assistant's next answer begins.

        Raises:
            CorpusError: messages that no chat can have, or a last message that is not the user's.
        """
        self._check(messages, last="user")
        return self.tokenizer.encode_with_special(self._render(messages, prompt=True))

    def _check(self, messages: Sequence[Message], last: str) -> None:
        check_messages(messages)
        if messages[-1]["role"] != last:
            raise CorpusError(
                f"the last message is the {messages[-1]['role']}'s; the {last}'s is expected; add or remove a message"
            )
        for number, message in enumerate(messages):
            if found := self._special_text.findall(message["content"]):
                raise CorpusError(
                    f"message {number} holds {', '.join(sorted(set(found)))}; special tokens are the template's own; "
                    "remove them from the content"
                )

    def _render(self, messages: Sequence[Message], prompt: bool) -> str:
        try:
            return self._compiled.render(
                messages=list(messages), add_generation_prompt=prompt, tools=None, documents=None, **self._variables
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise CorpusError(
                f"the chat template refuses messages of the roles {roles}: {error}; give it messages it knows"
            ) from None

    def _prefix_length(self, full_text: str, ids: list[int], messages: Sequence[Message], prompt: bool) -> int:
        """Returns how many of `ids` the first messages take."""
        text = self._render(messages, prompt)
        # Most templates end a dialogue alike wherever it ends; one that adds a line break only there is let pass.
        text = text if full_text.startswith(text) else text.rstrip("\n")
        prefix = self.tokenizer.encode_with_special(text)
        if not full_text.startswith(text) or ids[: len(prefix)] != prefix:
            raise CorpusError(
                f"the chat template writes the first {len(messages)} messages as {text[-60:]!r} when they stand alone, "
                "but otherwise in the whole dialogue; a prefix of it is expected; use another template"
            )
        return len(prefix)


def check_messages(messages: Sequence[Message]) -> None:
    """Checks that messages are an optional system message, then user and assistant in turn, none empty.

    Raises:
        CorpusError: they are not.
    """
    turns = messages[1:] if messages and messages[0].get("role") == "system" else messages
    if not turns:
        raise CorpusError(f"{len(messages)} messages without a user's; at least one is expected; add it")
    for number, message in enumerate(turns):
        role, expected = message.get("role"), ROLES[1 + number % 2]
        if role != expected:
            raise CorpusError(
                f"turn {number} has the role {role!r}; {expected!r} is expected; make the roles alternate"
            )
    for number, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise CorpusError(f"message {number} has the content {content!r}; text is expected; remove the dialogue")


class _GenerationTag(jinja2.ext.Extension):
    """Lets `{% generation %}` pass, with which some templates mark the assistant's text."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: Callable[[], datetime]) -> jinja2.Environment:
    """Returns an environment with what transformers offers to templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _token_text(config: dict[str, Any], name: str) -> str | None:
    value = config.get(name)
    return value.get("content") if isinstance(value, dict) else value
