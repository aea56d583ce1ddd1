import copy
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from data_prep.dialogue.endpoint import Answer, Endpoint, Failure, NotTaken, failure
from data_prep.dialogue.key import Key, address_problems, is_loopback, key_problems
from data_prep.document import CorpusError

SECRET = 'sk-Ab/cd+ef"gh-0123'


def endpoint(api="openai", **extra):
    return Endpoint(api, "https://models.example/v1/", "a/b", 0.5, 99, extra)


def openai_value(content="hi", **message):
    choice = {"message": {"content": content, **message}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "model": "m-1"}


def gemini_value(finish="STOP"):
    parts = [{"text": "hm", "thought": True}, {"text": "h"}, {"text": "i"}]
    return {
        "candidates": [{"content": {"parts": parts}, "finishReason": finish}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "thoughtsTokenCount": 7},
        "modelVersion": "g-1",
    }


def test_the_two_interfaces_are_addressed_in_their_own_way():
    assert endpoint().url() == "https://models.example/v1/chat/completions"
    assert endpoint("gemini").url() == "https://models.example/v1/models/a%2Fb:generateContent"
    assert Endpoint("gemini", "https://h/v1", "models/g", 1, 1, {}).url() == "https://h/v1/models/g:generateContent"
    assert endpoint().host == "models.example"


def test_a_chat_completion_is_asked_for_with_its_schema():
    body = endpoint().body("S", "P", with_schema=True)
    schema = body.pop("response_format")["json_schema"]
    assert body == {
        "model": "a/b",
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "P"}],
        "temperature": 0.5,
        "max_tokens": 99,
    }
    assert schema["strict"] is True
    assert schema["schema"]["required"] == ["turns"]
    assert "response_format" not in endpoint().body("S", "P", with_schema=False)


def test_gemini_is_asked_in_its_own_form():
    body = endpoint("gemini").body("S", "P", with_schema=True)
    assert body["systemInstruction"] == {"parts": [{"text": "S"}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "P"}]}]
    assert body["generationConfig"]["maxOutputTokens"] == 99
    assert body["generationConfig"]["responseMimeType"] == "application/json"
    assert "additionalProperties" not in json.dumps(body)
    assert set(endpoint("gemini").body("S", "P", with_schema=False)["generationConfig"]) == {
        "temperature",
        "maxOutputTokens",
    }


def test_extra_keys_are_merged_and_nulls_take_keys_away():
    body = endpoint(max_tokens=None, max_completion_tokens=7, top_p=0.9).body("S", "P", with_schema=False)
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["top_p"]) == (7, 0.9)
    body = endpoint("gemini", generationConfig={"thinkingConfig": {"thinkingBudget": 0}}).body("S", "P", False)
    assert body["generationConfig"] == {
        "temperature": 0.5,
        "maxOutputTokens": 99,
        "thinkingConfig": {"thinkingBudget": 0},
    }


def test_answers_are_read_with_their_tokens():
    assert endpoint().answer(openai_value()) == Answer("hi", "stop", 3, 2, "m-1")
    assert endpoint("gemini").answer(gemini_value()) == Answer("hi", "stop", 3, 9, "g-1")


def test_what_stopped_an_answer_is_told():
    value = openai_value()
    for told, finish in (("length", "length"), ("content_filter", "blocked"), (None, "stop")):
        value["choices"][0]["finish_reason"] = told
        assert endpoint().answer(value).finish == finish
    assert endpoint().answer(openai_value(None, refusal="no")) == Answer("no", "refusal", 3, 2, "m-1")
    assert endpoint().answer(openai_value(None)).text == ""
    for told, finish in (("MAX_TOKENS", "length"), ("SAFETY", "blocked"), ("RECITATION", "blocked")):
        assert endpoint("gemini").answer(gemini_value(told)).finish == finish
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 3}}
    assert endpoint("gemini").answer(blocked) == Answer("PROHIBITED_CONTENT", "blocked", 3, 0, "")
    empty = gemini_value("MAX_TOKENS")
    del empty["candidates"][0]["content"]
    assert endpoint("gemini").answer(empty).text == ""


def test_missing_or_strange_token_counts_are_none():
    for usage in (None, {}, {"prompt_tokens": "3", "completion_tokens": -1}, {"prompt_tokens": True}):
        value = copy.deepcopy(openai_value())
        value["usage"] = usage
        answer = endpoint().answer(value)
        assert (answer.tokens_in, answer.tokens_out) == (None, None)


@pytest.mark.parametrize("value", [[], {}, "text", None, {"choices": []}, {"choices": [{"message": {"content": [1]}}]}])
@pytest.mark.parametrize("api", ["openai", "gemini"])
def test_a_reply_without_an_answer_is_tried_again(api, value):
    with pytest.raises(Failure, match="a reply without an answer") as caught:
        endpoint(api).answer(value)
    assert caught.value.may_cost


def failed(status, text="", headers=None, key=None):
    return failure(status, headers or {}, text, endpoint(), key or Key(SECRET, "THE_KEY"))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(status):
    error = failed(status, '{"error": {"message": "busy"}}')
    assert isinstance(error, Failure)
    assert (error.kind, error.wait, error.may_cost) == (str(status), None, False)
    assert str(error) == f"https://models.example/v1/chat/completions answers {status}: busy"


RETRY_INFO = [{"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "45.8s"}]}}]


@pytest.mark.parametrize(
    ("headers", "text", "wait"),
    [
        ({"retry-after": "7"}, "", 7),
        ({"retry-after": " 0.5 "}, "", 0.5),
        ({"retry-after": "-3"}, "", 0),
        ({"retry-after": "soon"}, "", None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, "", 0),
        ({}, json.dumps(RETRY_INFO), 45.8),
        ({"retry-after": "7"}, json.dumps(RETRY_INFO), 7),
    ],
)
def test_the_wait_that_is_asked_for_is_read(headers, text, wait):
    assert failed(429, text, headers).wait == wait


def test_a_date_to_wait_for_is_read():
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 <= failed(429, "", {"retry-after": moment}).wait <= 100


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, '{"error": "bad key"}', r"answers 401: bad key; a key it accepts .* environment variable THE_KEY"),
        (403, "", r"answers 403: \(no text\); a key it accepts is expected"),
        (400, '{"error": {"message": "x", "details": [{"reason": "API_KEY_INVALID"}]}}', r"answers 400: x; a key it"),
        (
            404,
            '{"error": {"message": "no model"}}',
            r"answers 404: no model; the model 'a/b' at https://.*; mend model",
        ),
        (429, '{"error": {"message": "pay", "code": "insufficient_quota"}}', r"429: pay; the account has no credit"),
        (418, "<html>tea", r"answers 418: <html>tea; 200 is expected; mend base_url"),
    ],
)
def test_what_will_not_pass_ends_the_run_with_what_to_change(status, text, message):
    error = failed(status, text)
    assert isinstance(error, CorpusError)
    with pytest.raises(CorpusError, match=message):
        raise error


def test_a_refused_request_without_a_key_asks_for_one():
    with pytest.raises(CorpusError, match=r"a key is expected; put it into an environment variable"):
        raise failed(401, key=Key(None, None))


def test_a_redirect_is_not_followed_and_told_without_the_key():
    with pytest.raises(
        CorpusError, match=r"a redirect to 'https://other.example/\?k=\[KEY\]'; the API itself"
    ) as caught:
        raise failed(307, headers={"location": f"https://other.example/?k={SECRET}"})
    assert SECRET not in str(caught.value)


def test_a_form_that_is_refused_is_told_apart():
    assert isinstance(failed(400, "response_format?"), NotTaken)
    assert isinstance(failed(422), NotTaken)


def test_long_messages_are_cut():
    assert len(str(failed(500, "x " * 10_000))) < 500


def test_the_key_shows_itself_in_the_header_alone():
    key = Key(SECRET, "THE_KEY")
    assert key.headers("openai") == {"authorization": f"Bearer {SECRET}"}
    assert key.headers("gemini") == {"x-goog-api-key": SECRET}
    assert Key(None, None).headers("openai") == {}
    assert repr(key) == str(key) == "[KEY]"
    for form in (SECRET, SECRET.replace('"', r"\""), "sk-Ab%2Fcd%2Bef%22gh-0123", SECRET.replace("/", r"\/")):
        assert key.hide(f"a {form} b") == "a [KEY] b"
    escaped = "".join(f"\\u{ord(character):04x}" for character in SECRET)
    assert key.hide(f"a {escaped} b") == key.hide(f"a {escaped.upper().replace('U00', 'u00')} b") == "a [KEY] b"
    assert key.hide(r"a \u0041 \ud55c b") == r"a \u0041 \ud55c b"
    assert Key("EMPTY", "V").hide("EMPTY words") == "EMPTY words"


@pytest.mark.parametrize(
    ("url", "has_key", "problem"),
    [
        ("https://models.example/v1", True, None),
        ("http://models.example/v1", False, None),
        ("http://models.example/v1", True, "would send the key unencrypted"),
        ("http://localhost:8000/v1", True, None),
        ("http://127.0.0.2:8000/v1", True, None),
        ("http://[::1]:8000/v1", True, None),
        ("http://127.0.0.1.evil.example/v1", True, "would send the key unencrypted"),
        ("http://localhost.evil.example/v1", True, "would send the key unencrypted"),
        ("https://user:secret@h/v1", True, "holds a user"),
        ("https://h/v1?key=secret", True, "holds a user, a ?"),
        ("ftp://h/v1", False, "is no http"),
        ("https://", False, "is no http"),
        ("http://[::1/v1", False, "is no address"),
    ],
)
def test_an_address_that_would_give_the_key_away_is_refused(url, has_key, problem):
    problems = address_problems(url, has_key)
    assert bool(problems) == (problem is not None)
    if problem:
        assert problem in problems[0]
        assert "secret" not in problems[0]


def test_only_this_machine_is_loopback():
    assert [is_loopback(f"http://{host}/") for host in ("localhost", "127.9.9.9", "[::1]")] == [True] * 3
    assert [is_loopback(f"http://{host}/") for host in ("example.com", "10.0.0.1", "0.0.0.0")] == [False] * 3


@pytest.mark.parametrize(
    ("variable", "value", "url", "problem"),
    [
        (None, None, "https://h", None),
        ("THE_KEY", "k" * 20, "https://h", None),
        ("THE_KEY", "EMPTY", "http://localhost", None),
        ("THE_KEY", "EMPTY", "https://h", "has 5 characters; at least 8"),
        ("THE_KEY", None, "https://h", "THE_KEY is not set"),
        ("THE_KEY", "  ", "https://h", "THE_KEY is not set"),
        ("THE_KEY", "secret wörd", "https://h", "has a space or other characters"),
        ("THE_KEY", "secret\nword", "https://h", "has a space or other characters"),
        ("sk-secret-0123456789", None, "https://h", "is no name of an environment variable"),
        ("AIzasecret0123456789", None, "https://h", "is no name of an environment variable"),
    ],
)
def test_the_key_is_checked_and_never_repeated(monkeypatch, variable, value, url, problem):
    monkeypatch.delenv("THE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("THE_KEY", value)
    problems = key_problems(variable, url)
    assert bool(problems) == (problem is not None)
    if problem:
        assert problem in problems[0]
        assert "secret" not in problems[0]
