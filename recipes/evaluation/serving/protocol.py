"""What requests of the OpenAI API may ask, and the objects that answer them.

A field that would change the answer and is not known here is refused, never left out silently.

Source: the API reference of OpenAI for chat completions and (legacy) completions; top_k, min_p, repetition_penalty and
no_repeat_ngram_size are named as in transformers, where vLLM has them too with the same meaning.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from configs.loader import UserError
from recipes.evaluation.sampling import Sampling, changed, sampling_problems
from recipes.evaluation.talking import PartialText, Scored, Talker, Wish

MOST_PROMPTS, MOST_STOPS, MOST_LOGPROBS = 256, 64, 20
FIXED = {
    "n": 1, "best_of": 1, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "suffix": "", "tools": [],
    "tool_choice": "none", "response_format": {"type": "text"},
}  # fmt: skip
"""Fields that may be sent with no other value."""
HARMLESS = {"user", "metadata", "store", "service_tier", "parallel_tool_calls"}
"""Fields that change no answer."""
SAMPLING = tuple(field.name for field in fields(Sampling))
COMMON = {"model", "stream", "stream_options", "max_tokens", "stop", "seed", "logprobs", *SAMPLING}


class RequestError(UserError):
    """A request that is refused: HTTP status, the field at fault and a code, besides the message."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code

    def as_json(self) -> dict[str, Any]:
        """Returns the object that OpenAI's clients expect."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """A request that can be answered."""

    prompts: list[list[int]]
    wish: Wish
    stream: bool
    usage_in_stream: bool
    echo: bool = False


def chat_request(body: Mapping[str, Any], talker: Talker, default: Wish) -> Asked:
    """Returns what a chat completion asks.

    Raises:
        RequestError: a field is wrong, unknown or not offered; the model has no chat template.
    """
    if talker.template is None:
        raise RequestError(f"{talker.name} has no chat template; a chat model is expected; use /v1/completions")
    check_fields(body, talker, {"messages", "max_completion_tokens", "top_logprobs"})
    if body.get("logprobs") or body.get("top_logprobs"):
        raise RequestError("logprobs of a chat are not offered; use /v1/completions", "logprobs")
    messages = [_message(one, number) for number, one in enumerate(_list(body, "messages"))]
    try:
        prompt = talker.template.prompt(messages)
    except UserError as error:
        raise RequestError(str(error), "messages") from None
    most = _number(body, "max_completion_tokens", int) or _number(body, "max_tokens", int)
    return _asked(body, talker, [prompt], replace(default, max_new_tokens=most or default.max_new_tokens))


def completion_request(body: Mapping[str, Any], talker: Talker, default: Wish) -> Asked:
    """Returns what a completion asks; a text gets the tokenizer's BOS, ids are taken as they are.

    Raises:
        RequestError: a field is wrong, unknown or not offered.
    """
    check_fields(body, talker, {"prompt", "echo"})
    given = body.get("prompt")
    several = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
    prompts = [_prompt_ids(one, talker) for one in (given if several else [given])]  # type: ignore[union-attr]
    if len(prompts) > MOST_PROMPTS:
        raise RequestError(f"{len(prompts)} prompts; {MOST_PROMPTS} are the limit; send fewer at once", "prompt")
    logprobs = _number(body, "logprobs", int)
    if logprobs is not None and not 0 <= logprobs <= MOST_LOGPROBS:
        raise RequestError(f"logprobs is {logprobs}; 0 to {MOST_LOGPROBS} is expected; change it", "logprobs")
    most, echo = _number(body, "max_tokens", int), _flag(body, "echo")
    if body.get("stream") and (len(prompts) > 1 or echo or logprobs is not None):
        raise RequestError("only one prompt without echo and logprobs can be streamed; set stream to false", "stream")
    wish = replace(default, max_new_tokens=16 if most is None else most, logprobs=logprobs)  # 16 is OpenAI's
    return _asked(body, talker, prompts, wish, echo)


def check_fields(body: Mapping[str, Any], talker: Talker, own: set[str]) -> None:
    """Checks the model's name, and that no field asks for what is not offered.

    Raises:
        RequestError: one does, or the model is another one.
    """
    if body.get("model", talker.name) != talker.name:
        message = f"the model {body['model']!r} is not served; {talker.name} is; name it"
        raise RequestError(message, "model", status=404, code="model_not_found")
    for name, value in body.items():
        if name in FIXED and value not in (None, FIXED[name], [], "auto"):
            raise RequestError(f"{name} is {value!r}; only {FIXED[name]!r} is offered; leave it out", name)
        if name not in own | COMMON | HARMLESS | FIXED.keys():
            known = ", ".join(sorted(own | COMMON))
            raise RequestError(f"the field {name!r} is not known; the fields are {known}; leave it out", name)


def _asked(body: Mapping[str, Any], talker: Talker, prompts: list[list[int]], wish: Wish, echo: bool = False) -> Asked:
    most = wish.max_new_tokens
    if most < 0 or (most == 0 and not echo):
        raise RequestError(f"max_tokens is {most}; 1 or more is expected; raise it", "max_tokens")
    for prompt in prompts:
        if len(prompt) + min(most, 1) > talker.most_tokens:
            message = f"a prompt has {len(prompt)} tokens; {talker.most_tokens} are the limit of prompt and answer"
            raise RequestError(f"{message}; shorten it", code="context_length_exceeded")
    values = {
        name: _number(body, name, int if name in ("top_k", "no_repeat_ngram_size") else float) for name in SAMPLING
    }
    values["top_k"] = 0 if values["top_k"] == -1 else values["top_k"]  # vLLM's way to say all
    if problems := sampling_problems(values):
        raise RequestError("; ".join(problems), problems[0].partition(":")[0])
    seed = _number(body, "seed", int)
    seed = secrets.randbits(31) if seed is None else seed % 2**63
    stop = (*wish.stop, *_stops(body))
    wish = replace(wish, sampling=changed(wish.sampling, values), stop=stop, seed=seed)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError("stream_options is no object; one is expected; leave it out", "stream_options")
    return Asked(prompts, wish, _flag(body, "stream"), bool(options.get("include_usage")), echo)


def _prompt_ids(given: Any, talker: Talker) -> list[int]:
    if isinstance(given, str):
        ids = talker.tokenizer.encode_with_special(given)
        return ids if ids[:1] == [talker.tokenizer.bos_id] else [talker.tokenizer.bos_id, *ids]
    if not isinstance(given, list) or not given or not all(type(id_) is int for id_ in given):
        raise RequestError("prompt is neither a text, nor ids, nor a list of these; one is expected", "prompt")
    if outside := [id_ for id_ in given if not 0 <= id_ < talker.vocab_size]:
        raise RequestError(f"prompt has the id {outside[0]}; ids are below {talker.vocab_size}; mend it", "prompt")
    return given


def _message(one: Any, number: int) -> dict[str, str]:
    """Returns a message whose content is one text; clients also send a list of parts."""
    content = one.get("content") if isinstance(one, dict) else None
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str) or not isinstance(one.get("role"), str):
        raise RequestError(f"messages[{number}] is no object with role and a text as content; mend it", "messages")
    return {"role": one["role"], "content": content}


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    given = body.get("stop") or []
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise RequestError(f"stop is neither a text nor a list of at most {MOST_STOPS} texts; mend it", "stop")
    return tuple(stops)


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if not isinstance(value, list) or not value:
        raise RequestError(f"{name} is {str(value)[:40]}; a list is expected; give one", name)
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name) or False
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {str(value)[:40]}; true or false is expected; change it", name)
    return value


def _number(body: Mapping[str, Any], name: str, kind: type) -> Any:
    value = body.get(name)
    if value is None or type(value) is int or (kind is float and type(value) is float):
        return value
    raise RequestError(f"{name} is {str(value)[:40]}; a number ({kind.__name__}) is expected; change it", name)


def envelope(kind: str, talker: Talker) -> dict[str, Any]:
    """Returns the fields that every object of one answer shares."""
    return {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": talker.name}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Returns the count of tokens."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def logprobs_object(scored: Sequence[Scored], talker: Talker) -> dict[str, Any]:
    """Returns the log probabilities as completions have them; a token is written as its own text, bytes as `<0xEB>`."""
    tokens = [talker.tokenizer.piece(one.id) for one in scored]
    text, offsets = PartialText(talker.tokenizer), [0]
    for one in scored:
        offsets.append(offsets[-1] + len(text.add(one.id)))
    return {
        "tokens": tokens,
        "token_logprobs": [one.logprob for one in scored],
        "top_logprobs": [
            {talker.tokenizer.piece(id_): value for id_, value in one.best.items()} if one.best else None
            for one in scored
        ],
        "text_offset": offsets[:-1],
    }
