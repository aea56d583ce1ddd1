"""The two interfaces a model is asked through: requests, answers and failures; nothing here touches the network.

Source: OpenAI's chat/completions (also vLLM's and Gemini's compatible one) and Gemini's models.generateContent.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from data_prep.dialogue.answers import SCHEMA
from data_prep.dialogue.key import Key
from data_prep.document import CorpusError

APIS = ("openai", "gemini")
RETRIED = (408, 409, 425, 429)  # and all from 500 on
GEMINI_FINISH = {"STOP": "stop", "MAX_TOKENS": "length"}  # all others are filters
OPENAI_FINISH = {"length": "length", "content_filter": "blocked"}
TOLD_CHARS = 300  # of a server's message in ours


class Failure(Exception):
    """A request that may do better later.

    Args:
        kind: what failed, e.g. `429`, `timeout`, `cut_body`; the ledger counts by it.
        wait: seconds the endpoint asks to wait; None when it does not say.
        may_cost: whether the model may have worked, so that the provider may charge for it.
    """

    def __init__(self, kind: str, message: str, wait: float | None = None, may_cost: bool = False) -> None:
        super().__init__(message)
        self.kind, self.wait, self.may_cost = kind, wait, may_cost


class NotTaken(Exception):
    """The endpoint refuses the request as it is written; structured output may be why."""


@dataclass(frozen=True)
class Answer:
    """What came back for one request; `finish` is `stop`, `length`, `blocked` or `refusal`."""

    text: str
    finish: str
    tokens_in: int | None
    tokens_out: int | None
    model: str


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked and how."""

    api: str
    base_url: str
    model: str
    temperature: float
    max_tokens: int
    extra_body: Mapping[str, Any]

    @property
    def host(self) -> str:
        """Host and port, without path."""
        return urlsplit(self.base_url).netloc

    def url(self) -> str:
        """Returns the address requests go to; the key is never part of it."""
        base = self.base_url.rstrip("/")
        if self.api == "openai":
            return f"{base}/chat/completions"
        return f"{base}/models/{quote(self.model.removeprefix('models/'), safe='')}:generateContent"

    def body(self, system: str, prompt: str, with_schema: bool) -> dict[str, Any]:
        """Returns the JSON of one request; `extra_body` wins, and its nulls take keys away."""
        body: dict[str, Any]
        if self.api == "openai":
            messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
            body = {"model": self.model, "messages": messages}
            body |= {"temperature": self.temperature, "max_tokens": self.max_tokens}
            if with_schema:
                form = {"name": "dialogue", "strict": True, "schema": SCHEMA}
                body["response_format"] = {"type": "json_schema", "json_schema": form}
        else:
            settings: dict[str, Any] = {"temperature": self.temperature, "maxOutputTokens": self.max_tokens}
            if with_schema:
                settings |= {"responseMimeType": "application/json", "responseSchema": _without_additional(SCHEMA)}
            contents = [{"role": "user", "parts": [{"text": prompt}]}]
            body = {"systemInstruction": {"parts": [{"text": system}]}, "contents": contents}
            body["generationConfig"] = settings
        return _merged(body, self.extra_body)

    def answer(self, value: Any) -> Answer:
        """Reads the JSON of a successful reply.

        Raises:
            Failure: it has not the form of an answer.
        """
        try:
            return _openai_answer(value) if self.api == "openai" else _gemini_answer(value)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            told = json.dumps(value, ensure_ascii=False)[:TOLD_CHARS]
            raise Failure("no_answer_in_body", f"a reply without an answer: {told}", may_cost=True) from None


def _openai_answer(value: Any) -> Answer:
    choice = value["choices"][0]
    message = choice["message"]
    usage = value.get("usage") or {}
    finish = OPENAI_FINISH.get(choice.get("finish_reason") or "", "stop")
    text = _text(message.get("content"))
    if refusal := message.get("refusal"):
        text, finish = _text(refusal), "refusal"
    tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    return Answer(text, finish, *tokens, str(value.get("model") or ""))


def _gemini_answer(value: Any) -> Answer:
    usage, model = value.get("usageMetadata") or {}, str(value.get("modelVersion") or "")
    tokens_in, tokens_out = _count(usage.get("promptTokenCount")), _count(usage.get("candidatesTokenCount"))
    if thoughts := _count(usage.get("thoughtsTokenCount")):  # charged as output, and counted apart
        tokens_out = (tokens_out or 0) + thoughts
    if blocked := (value.get("promptFeedback") or {}).get("blockReason"):
        return Answer(str(blocked), "blocked", tokens_in, tokens_out or 0, model)
    candidate = value["candidates"][0]
    parts = (candidate.get("content") or {}).get("parts") or []
    text = "".join(_text(part.get("text")) for part in parts if not part.get("thought"))
    finish = GEMINI_FINISH.get(candidate.get("finishReason") or "STOP", "blocked")
    return Answer(text, finish, tokens_in, tokens_out, model)


def failure(status: int, headers: Mapping[str, str], text: str, endpoint: Endpoint, key: Key) -> Exception:
    """Returns the error that a reply other than 200 stands for.

    A `Failure` may pass by itself, `NotTaken` by another form of the request, a `CorpusError` not at all.

    Args:
        status: of the reply, not 200.
        headers: of the reply.
        text: its body, without the key.
        endpoint: that replied.
        key: named in what to change.
    """
    told, code = _told(text)
    about = f"{endpoint.url()} answers {status}: {told}"
    if status == 429 and "insufficient_quota" in code:
        return CorpusError(f"{about}; the account has no credit left; add some, then start the same command again")
    if status in RETRIED or status >= 500:
        return Failure(str(status), about, _asked_wait(headers, text))
    if status in (401, 403) or "API_KEY_INVALID" in text:
        return CorpusError(f"{about}; {key.advice()}")
    if status == 404:
        return CorpusError(
            f"{about}; the model {endpoint.model!r} at {endpoint.base_url} is expected; mend model or base_url "
            "(it ends before /chat/completions or /models)"
        )
    if 300 <= status < 400:
        target = key.hide(headers.get("location", ""))[:TOLD_CHARS]
        return CorpusError(
            f"{endpoint.url()} answers {status}, a redirect to {target!r}; the API itself is expected, as a redirect "
            "could take the key elsewhere; set base_url to the API's own address"
        )
    if status in (400, 422):
        return NotTaken(about)
    return CorpusError(f"{about}; 200 is expected; mend base_url or the request (extra_body, max_tokens)")


def _told(text: str) -> tuple[str, str]:
    """Returns the message of an error body, on one line and cut, and its code or type."""
    try:
        value = json.loads(text)
        value = value[0] if isinstance(value, list) else value  # as Gemini's compatible interface does
        error = value.get("error", value)
        message = error.get("message", error) if isinstance(error, dict) else error
        code = f"{error.get('code')} {error.get('type')}" if isinstance(error, dict) else ""
    except (ValueError, AttributeError, IndexError):
        message, code = text, ""
    return " ".join(str(message).split())[:TOLD_CHARS] or "(no text)", code


def _asked_wait(headers: Mapping[str, str], text: str) -> float | None:
    """Returns the seconds to wait that a reply names: in Retry-After, or in the body as Google's RetryInfo."""
    if value := headers.get("retry-after", "").strip():
        try:
            return max(0.0, float(value))
        except ValueError:
            try:
                moment = parsedate_to_datetime(value)
            except ValueError:
                return None
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    found = re.search(r'"retryDelay":\s*"(\d+(?:\.\d+)?)s"', text)
    return float(found[1]) if found else None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return {key: value for key, value in merged.items() if value is not None}


def _without_additional(value: Any) -> Any:
    """Returns the schema as Gemini takes it, which knows no `additionalProperties`."""
    if isinstance(value, dict):
        return {key: _without_additional(inner) for key, inner in value.items() if key != "additionalProperties"}
    return value


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError(value)
    return value or ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
