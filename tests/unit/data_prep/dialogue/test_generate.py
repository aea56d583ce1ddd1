import argparse
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from configs.loader import ConfigError
from data_prep.dialogue import augment, generate, limits
from data_prep.dialogue.examples import read_chat_examples
from data_prep.document import CorpusError, read_jsonl
from tests.support import ROOT
from tests.unit.data_prep.dialogue.loopback import Reply, dialogue, gemini, openai, serving, sound

SHIPPED = ROOT / "configs/data/dialogue_topics.yaml"
SMALL = Path(__file__).with_name("small.yaml")
KEY = "sk-Secret/0123456789+abc"


def settings(out, server, **changes):
    """Returns the overrides of a quick run."""
    chosen = {"model": "m", "output_dir": out, "base_url": getattr(server, "url", server), "backoff_seconds": 0.01}
    chosen |= {"turns": "[2, 4]", "dialogues": 6, **changes}
    return [f"{name}={value}" for name, value in chosen.items()]


def launch(out, server, config=SMALL, **changes):
    """Runs the command and returns its exit code, the pairs, the rejected answers and the manifest."""
    code = generate.run(argparse.Namespace(config=config, overrides=settings(out, server, **changes)))
    manifest = json.loads((out / "manifest.json").read_text())
    for entry in manifest["ledger"].values():
        assert entry["in"] == entry["out"] + sum(entry["dropped"].values())
    return code, list(read_jsonl(out / "pairs.jsonl")), list(read_jsonl(out / "rejected.jsonl")), manifest


def command(out, server, **changes):
    words = [sys.executable, "-m", "data_prep", "dialogue", "generate", "--config", str(SMALL)]
    return words + settings(out, server, **changes)


def test_dialogues_are_asked_checked_and_kept_with_where_they_come_from(tmp_path, capsys):
    with serving() as server:
        code, pairs, rejected, manifest = launch(tmp_path / "out", server, SHIPPED, price_in=2, price_out=10)
    assert (code, len(pairs), rejected) == (0, 6, [])
    assert len({pair["id"] for pair in pairs}) == len({pair["topic"] for pair in pairs}) == 6
    for pair, request in zip(pairs, sorted(server.requests, key=lambda r: r.number), strict=True):
        assert len(pair["en"]) == len(pair["ko"]) in (2, 4)
        assert {"field", "topic", "style", "angle"} < pair.keys()
        assert request.path == "/v1/chat/completions"
        assert "authorization" not in request.headers
    assert manifest["models"] == ["served-name"]
    assert manifest["endpoint_hosts"] == [server.url.removeprefix("http://").removesuffix("/v1")]
    assert manifest["config"]["model"] == "m"
    assert manifest["tokens"] == {"in": 600, "out": 300}
    assert manifest["cost"] == pytest.approx({"in": 0.0012, "out": 0.003, "total": 0.0042})
    assert manifest["ledger"]["requests"] == {"in": 6, "out": 6, "dropped": {}}
    assert set(manifest["files"]) == {"pairs.jsonl", "rejected.jsonl", "journal.jsonl"}
    assert "6 of 6 dialogues" in capsys.readouterr().out


def test_each_prompt_names_its_seed_and_asks_for_the_dialogues_form(tmp_path):
    with serving() as server:
        _, pairs, _, _ = launch(tmp_path, server, concurrency=1)
    for pair, request in zip(pairs, server.requests, strict=True):
        for name in ("field", "topic", "style", "angle"):
            assert pair[name] in request.prompt
        assert request.num_turns == len(pair["en"])
        assert request.body["response_format"]["json_schema"]["schema"]["required"] == ["turns"]


def test_gemini_is_asked_in_its_own_interface_with_the_key_in_its_header(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    with serving() as server:
        _, pairs, _, manifest = launch(tmp_path, server, api="gemini", model="g", api_key_env="SOME_KEY")
    assert len(pairs) == 6
    assert {request.path for request in server.requests} == {"/v1/models/g:generateContent"}
    assert {request.headers["x-goog-api-key"] for request in server.requests} == {KEY}
    assert manifest["tokens"] == {"in": 600, "out": 6 * 57}


def test_what_is_generated_goes_straight_into_augment(tmp_path):
    with serving() as server:
        launch(tmp_path / "out", server)
    args = argparse.Namespace(
        pairs=tmp_path / "out/pairs.jsonl", out=tmp_path / "chat.jsonl", forms=",".join(augment.FORMS),
        form_weights="", valid_share=0.0, seed=0,
    )  # fmt: skip
    assert augment.run(args) == 0
    assert len(read_chat_examples(tmp_path / "chat.jsonl")) == 24


def test_requests_run_side_by_side_and_no_more_than_allowed(tmp_path):
    def slow(request):
        reply = sound(request)
        reply.delay = 0.3
        return reply

    with serving(slow) as server:
        start = time.monotonic()
        launch(tmp_path, server, dialogues=18, concurrency=6)
        took = time.monotonic() - start
    assert server.most_at_once == 6
    assert took < 18 * 0.3 / 2


def test_no_more_is_asked_than_can_be_needed(tmp_path):
    with serving() as server:
        _, pairs, _, _ = launch(tmp_path, server, dialogues=5, concurrency=50)
    assert len(pairs) == len(server.requests) == 5


def unreliable(request):
    """Answers by the prompt alone: some alike, some refused, some late."""
    draw = sum(request.prompt.encode())
    reply = openai(json.dumps(dialogue(request.num_turns, str(draw % 5)), ensure_ascii=False))
    if draw % 4 == 0:
        reply = sound(request)
    elif draw % 7 == 0:
        reply = openai("I'm sorry, but I can't help with that.")
    reply.delay = draw % 10 / 300
    return reply


def test_the_same_bytes_come_out_at_any_concurrency(tmp_path):
    with serving(unreliable) as server:
        for name, concurrency in (("one", 1), ("many", 9)):
            launch(tmp_path / name, server, dialogues=12, concurrency=concurrency, max_dropped_share=1)
    for name in ("pairs.jsonl", "rejected.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    reasons = Counter(row["reason"] for row in read_jsonl(tmp_path / "one/rejected.jsonl"))
    assert reasons.keys() >= {"duplicate", "refusal"}


def broken_off(request):
    reply = sound(request)
    reply.cut = 30
    return reply


def dripping(request):
    reply = sound(request)
    reply.cut, reply.after = 30, lambda: time.sleep(2.5)
    return reply


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (lambda _: Reply({"error": {"message": "slow down"}}, 429), "429"),
        (lambda _: Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.05"}), "429"),
        (lambda _: Reply("<html>Bad Gateway</html>", 502), "502"),
        (lambda _: Reply({"error": "overloaded"}, 500), "500"),
        (broken_off, "cut_off"),
        (lambda _: Reply('{"choices": [{"mess'), "broken_json"),
        (lambda _: Reply(b"\xff\xfe"), "broken_json"),
        (lambda _: Reply({"choices": []}), "no_answer_in_body"),
        (lambda _: Reply("x" * (9 << 20)), "too_large"),
        (lambda request: Reply(sound(request).body, delay=2.5), "timeout"),
        (dripping, "timeout"),
    ],
    ids=["429", "429-retry-after", "502", "500", "cut", "broken", "no-text", "no-answer", "large", "hang", "drip"],
)
def test_a_failed_request_is_sent_again(tmp_path, bad, kind):
    with serving(lambda request: bad(request) if request.number in (0, 3) else sound(request)) as server:
        code, pairs, _, manifest = launch(
            tmp_path, server, timeout_seconds=1 if kind == "timeout" else 60, concurrency=1
        )
    assert (code, len(pairs)) == (0, 6)
    assert manifest["ledger"]["requests"] == {"in": 8, "out": 6, "dropped": {kind: 2}}
    costs = kind in ("cut_off", "broken_json", "no_answer_in_body", "too_large", "timeout")
    assert (manifest["tokens"].get("uncertain", 0) > 2 * 4096) == costs


def test_all_requests_wait_as_long_as_the_endpoint_asks(tmp_path):
    def limited(request):
        if request.number == 0:
            return Reply("", 429, {"Retry-After": "0.8"})
        return Reply(sound(request).body, delay=0.2 if request.number < 3 else 0)

    with serving(limited) as server:
        launch(tmp_path, server, concurrency=3)
    first, *_ = times = sorted(request.at for request in server.requests)
    assert len(times) == 7
    assert all(at - first >= 0.8 for at in times[3:])


def test_waits_without_advice_grow(tmp_path):
    with serving(lambda request: Reply("", 503) if request.number < 5 else sound(request)) as server:
        launch(tmp_path, server, concurrency=1, dialogues=1, backoff_seconds=0.04)
    times = [request.at for request in server.requests]
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert all(wait >= 0.02 * 2**number for number, wait in enumerate(waits))


def test_a_seed_whose_requests_all_fail_is_dropped_and_asked_again_by_a_later_run(tmp_path):
    class Down:
        is_down = True

    def partly(request):
        return Reply("", 503) if Down.is_down and request.number in (1, 2, 3) else sound(request)

    with serving(partly) as server:
        _, pairs, _, manifest = launch(tmp_path, server, concurrency=1, attempts=3, dialogues=4)
        assert manifest["ledger"]["dialogues"] == {"in": 5, "out": 4, "dropped": {"no_answer": 1}}
        assert manifest["ledger"]["requests"]["dropped"] == {"503": 3}
        Down.is_down = False
        _, more, _, manifest = launch(tmp_path, server, concurrency=1, attempts=3, dialogues=6)
    assert manifest["ledger"]["dialogues"] == {"in": 6, "out": 6, "dropped": {}}
    assert {pair["id"] for pair in more} - {pair["id"] for pair in pairs} == {"generated-000001", "generated-000005"}


def half(request):
    """Returns an answer cut at the token limit."""
    text = json.dumps(dialogue(request.num_turns, request.prompt), ensure_ascii=False)
    return openai(text[: len(text) // 2], "length")


def test_a_cut_answer_is_asked_for_again_and_kept_among_the_rejected(tmp_path):
    with serving(lambda request: half(request) if request.number == 0 else sound(request)) as server:
        _, pairs, rejected, manifest = launch(tmp_path, server, concurrency=1)
    assert len(pairs) == 6
    assert [(row["reason"], row["is_last"], row["finish"]) for row in rejected] == [("truncated", False, "length")]
    assert rejected[0]["text"].startswith('{"turns"')
    assert manifest["ledger"]["answers"] == {"in": 7, "out": 6, "dropped": {"truncated": 1}}
    assert manifest["ledger"]["dialogues"] == {"in": 6, "out": 6, "dropped": {}}


def test_a_seed_whose_answers_are_all_cut_is_dropped(tmp_path):
    with serving(lambda request: half(request) if request.number < 2 else sound(request)) as server:
        _, pairs, rejected, manifest = launch(tmp_path, server, concurrency=1)
    assert len(pairs) == 6
    assert [row["is_last"] for row in rejected] == [False, True]
    assert manifest["ledger"]["dialogues"] == {"in": 7, "out": 6, "dropped": {"truncated": 1}}


def in_english_only(request):
    value = dialogue(request.num_turns, request.prompt)
    turns = [{**turn, "ko": turn["en"]} for turn in value["turns"]]
    return openai(json.dumps({"turns": turns}))


def with_too_few_turns(request):
    return openai(json.dumps(dialogue(request.num_turns - 1, request.prompt), ensure_ascii=False))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (in_english_only, "not_ko"),
        (with_too_few_turns, "turn_count"),
        (lambda _: openai("죄송하지만 그 내용은 도와드릴 수 없습니다."), "refusal"),
        (lambda _: openai(None, refusal="I won't."), "refusal"),
        (lambda _: openai("", "content_filter"), "blocked"),
    ],
)
def test_an_unsound_answer_is_kept_with_its_reason_and_another_seed_is_asked(tmp_path, bad, reason):
    with serving(lambda request: bad(request) if request.number == 2 else sound(request)) as server:
        _, pairs, rejected, manifest = launch(tmp_path, server, concurrency=1)
    assert len(pairs) == 6
    assert [row["reason"] for row in rejected] == [reason]
    assert {"seed", "topic", "text"} <= rejected[0].keys()
    assert manifest["ledger"]["dialogues"] == {"in": 7, "out": 6, "dropped": {reason: 1}}


def test_json_in_a_fence_is_read_where_the_endpoint_takes_no_schema(tmp_path, capsys):
    def old(request):
        if "response_format" in request.body:
            return Reply({"error": {"message": "response_format is not supported"}}, 400)
        reply = sound(request)
        message = reply.body["choices"][0]["message"]
        message["content"] = f"Here you are:\n```json\n{message['content']}\n```"
        return reply

    with serving(old) as server:
        _, pairs, _, manifest = launch(tmp_path / "auto", server, concurrency=3)
        assert len(pairs) == 6
        assert 1 <= manifest["ledger"]["requests"]["dropped"]["400"] <= 3
        assert capsys.readouterr().err.count("no structured output, from here on as text") == 1
        with pytest.raises(CorpusError, match=r"400: response_format is not supported; .* structured_output=auto"):
            launch(tmp_path / "schema", server, structured_output="schema")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            Reply({"error": {"message": "Invalid key"}}, 401),
            r"answers 401: Invalid key; a key is expected; put it",
        ),
        (
            Reply({"error": {"message": "no such model"}}, 404),
            r"404: no such model; the model 'm' at .*; mend model",
        ),
        (Reply({"error": {"message": "too long"}}, 400), r"400: too long; a request it takes is expected; mend model"),
        (Reply("", 429, {"Retry-After": "86400"}), r"asks to wait 86400 s, max_wait_seconds is 120; start the same"),
    ],
    ids=["401", "404", "400", "long-wait"],
)
def test_what_will_not_pass_stops_at_once(tmp_path, reply, message):
    with serving(lambda _: reply) as server, pytest.raises(CorpusError, match=message):
        launch(tmp_path, server, concurrency=2)
    assert len(server.requests) <= 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl"]


def test_a_server_that_never_answers_stops_the_run(tmp_path):
    with serving(lambda _: Reply("", 500)) as server:
        with pytest.raises(CorpusError, match=r"answers 500: .*none of this session's requests has been answered"):
            launch(tmp_path, server, attempts=3)
        url = server.url
    start = time.monotonic()
    with pytest.raises(CorpusError, match=r"cannot be reached: .*; a running server is expected; start it"):
        launch(tmp_path, url)
    assert time.monotonic() - start < 5


def test_a_model_that_mostly_fails_is_stopped_before_it_costs_more(tmp_path):
    with (
        serving(lambda _: openai("I cannot help with that request.")) as server,
        pytest.raises(CorpusError, match=r"4\d of 4\d dialogues were dropped \(\{.refusal.: 4\d\}\); max_dropped"),
    ):
        launch(tmp_path, server, dialogues=500, concurrency=4)
    assert len(server.requests) <= 44


def test_the_key_goes_to_no_other_host(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    with serving() as other:
        away = Reply("", 307, {"Location": other.url + "/chat/completions"})
        with (
            serving(lambda _: away) as server,
            pytest.raises(CorpusError, match=r"answers 307, a redirect to .*; the API itself is expected"),
        ):
            launch(tmp_path / "a", server, api_key_env="SOME_KEY")
        assert other.requests == []
    with pytest.raises(ConfigError, match="would send the key unencrypted"):
        launch(tmp_path / "b", "http://models.example/v1", api_key_env="SOME_KEY")
    with pytest.raises(ConfigError, match="OTHER_KEY is not set"):
        launch(tmp_path / "c", server, api_key_env="OTHER_KEY")
    assert not (tmp_path / "b").exists()


def test_the_key_appears_nowhere_even_when_the_server_says_it(tmp_path):
    escaped = "".join(f"\\u{ord(character):04x}" for character in KEY)

    def indiscreet(request):
        assert request.headers["authorization"] == f"Bearer {KEY}"
        if request.number == 0:
            return Reply({"error": {"message": f"slow down, {KEY}"}}, 429, {"X-Key": KEY})
        if request.number == 1:
            return openai(f"Your key is {KEY}.")
        if request.number == 2:
            return Reply('{"choices": [{"message": {"content": "' + escaped + '"}}], "model": "' + escaped + '"}')
        if request.number == 3:
            return openai(escaped)  # as the text of a structured output may hold it
        if request.number < 7:
            return sound(request)
        return Reply({"error": {"message": f"the key {KEY} has expired"}}, 401)

    with serving(indiscreet) as server:
        words = command(tmp_path / "out", server, api_key_env="SOME_KEY", concurrency=1)
        env = {**os.environ, "SOME_KEY": KEY, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1
    assert "answers 401: the key [KEY] has expired; a key it accepts is expected" in done.stderr
    assert "Traceback" not in done.stderr
    texts = [done.stdout, done.stderr, *(path.read_text() for path in tmp_path.rglob("*") if path.is_file())]
    assert len(texts) == 3
    for text in texts:
        assert KEY not in text
        assert escaped not in text.replace("\\\\", "\\")
    assert texts[2].count("[KEY]") >= 3


def test_a_killed_run_goes_on_without_asking_anything_twice(tmp_path):
    def slow(request):
        reply = sound(request)
        reply.delay = 0.1
        return reply

    out, env = tmp_path / "out", {**os.environ, "PYTHONPATH": str(ROOT)}
    with serving(slow) as server:
        process = subprocess.Popen(command(out, server, dialogues=30, concurrency=3), env=env, cwd=ROOT)
        deadline = time.monotonic() + 60
        while len(server.requests) < 12 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        journal = out / "journal.jsonl"
        assert [path.name for path in out.iterdir()] == ["journal.jsonl"]
        with journal.open("ab") as file:
            file.write(b'{"kind": "answer", "seed": 3, "te')  # as a kill in the middle of a line leaves it
        before = len(server.requests)
        answered = journal.read_bytes().count(b'"kind": "answer", "seed": ') - 1
        assert answered >= 9
        _, pairs, _, manifest = launch(out, server, dialogues=30, concurrency=3)
        assert len(server.requests) - before == 30 - answered
        launch(tmp_path / "straight", server, dialogues=30, concurrency=5)
    assert (out / "pairs.jsonl").read_bytes() == (tmp_path / "straight/pairs.jsonl").read_bytes()
    assert len(pairs) == 30
    assert manifest["tokens"] == {"in": 3000, "out": 1500}


def test_an_interrupted_run_says_so_and_keeps_its_answers(tmp_path):
    def endless(request):
        return sound(request) if request.number < 5 else Reply(sound(request).body, delay=30)

    out, env = tmp_path / "out", {**os.environ, "PYTHONPATH": str(ROOT)}
    with serving(endless) as server:
        words = command(out, server, concurrency=1, dialogues=9)
        process = subprocess.Popen(words, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while len(server.requests) < 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert (out / "journal.jsonl").read_bytes().count(b'"kind": "answer"') == 5


def test_the_budget_stops_before_it_is_passed_and_a_larger_one_goes_on(tmp_path, capsys):
    with serving() as server:
        code, pairs, _, manifest = launch(tmp_path / "out", server, token_budget=7000, max_tokens=500, dialogues=40)
        assert code == generate.STOPPED_EARLY == 3
        assert manifest["stopped"] == "token_budget"
        assert 4000 < sum(manifest["tokens"].values()) <= 7000
        assert "raise it and start the same command again" in capsys.readouterr().out
        first = len(server.requests)
        assert first == len(pairs) == sum(manifest["tokens"].values()) / 150
        code, pairs, _, manifest = launch(tmp_path / "out", server, max_tokens=500, dialogues=40)
        assert (code, len(pairs), len(server.requests)) == (0, 40, 40)
        launch(tmp_path / "straight", server, max_tokens=500, dialogues=40)
    assert (tmp_path / "out/pairs.jsonl").read_bytes() == (tmp_path / "straight/pairs.jsonl").read_bytes()


def test_tokens_that_lost_answers_may_have_cost_count_in_the_budget(tmp_path):
    with serving(lambda request: sound(request) if request.number == 0 else broken_off(request)) as server:
        code, _, _, manifest = launch(tmp_path, server, token_budget=6_000, max_tokens=500, concurrency=1, attempts=100)
    assert code == 3
    assert sum(manifest["tokens"].values()) <= 6_000
    assert manifest["tokens"]["uncertain"] > 3 * 500
    assert len(server.requests) < 10


def test_an_endpoint_that_counts_no_tokens_is_charged_with_a_bound(tmp_path):
    def uncounted(request):
        reply = sound(request)
        del reply.body["usage"]
        return reply

    with serving(uncounted) as server:
        _, pairs, _, manifest = launch(tmp_path, server)
    assert len(pairs) == 6
    assert manifest["tokens"]["in"] > 6 * 500
    assert manifest["tokens"]["out"] > 6 * 100


def test_rates_hold_over_all_requests(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "WINDOW_SECONDS", 1.0)
    with serving() as server:
        launch(tmp_path, server, dialogues=10, requests_per_minute=4)
    times = sorted(request.at for request in server.requests)
    assert len(times) == 10
    assert all(later - first > 0.6 for first, later in zip(times, times[4:], strict=False))


def test_when_every_seed_was_asked_the_run_ends_with_what_there_is(tmp_path, capsys):
    few = {"topics": "[{field: tea, topics: [a, b]}]", "styles": "[s]", "angles": "[x, y]"}
    with serving() as server:
        code, pairs, _, manifest = launch(tmp_path, server, **few)
    assert (code, len(pairs), manifest["stopped"]) == (3, 4, "no_more_seeds")
    assert "stopped early (no_more_seeds): every topic was asked" in capsys.readouterr().out


def test_a_finished_run_does_nothing_and_one_with_other_settings_is_an_error(tmp_path, capsys):
    with serving() as server:
        launch(tmp_path, server)
        launch(tmp_path, server, concurrency=2)
        assert "nothing to do" in capsys.readouterr().out
        assert len(server.requests) == 6
        with pytest.raises(CorpusError, match=r'is of another run \(model: "m" there, "n" now\)'):
            launch(tmp_path, server, model="n")
        with pytest.raises(CorpusError, match=r"is of another run \(temperature: 1.0 there, 0.5 now; prompt: diff"):
            launch(tmp_path, server, temperature=0.5, prompt="$topic exactly $turns " + "x" * 99)
        launch(tmp_path, server, dialogues=8)
        assert len(server.requests) == 8
        _, pairs, rejected, manifest = launch(tmp_path, server, dialogues=5)
        assert (len(pairs), len(server.requests)) == (5, 8)
    assert manifest["ledger"]["dialogues"] == {"in": 8, "out": 5, "dropped": {"not_needed": 3}}
    assert [row["reason"] for row in rejected] == ["not_needed"] * 3


def test_a_folder_that_is_no_generations_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CorpusError, match=r"holds .*; an empty folder is expected; give another output_dir"):
        launch(tmp_path, "http://localhost:1/v1")
    with pytest.raises(CorpusError, match=r"notes.txt is a file; a folder is expected"):
        launch(tmp_path / "notes.txt", "http://localhost:1/v1")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_journal_that_is_damaged_or_in_use_is_an_error(tmp_path):
    with serving() as server:
        launch(tmp_path, server)
        journal = Path(tmp_path / "journal.jsonl")
        with journal.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(CorpusError, match=r"journal.jsonl is in use by another process"):
                launch(tmp_path, server, dialogues=7)
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(lines[0] + b'{"kind": "other"}\n' + b"".join(lines[1:]))
        with pytest.raises(CorpusError, match=r"journal.jsonl:2: .*; a line of this journal is expected"):
            launch(tmp_path, server, dialogues=7)


def test_thoughts_of_gemini_that_ate_the_answer_are_told(tmp_path):
    with serving(lambda request: gemini("", "MAX_TOKENS") if request.number < 2 else sound(request)) as server:
        _, _, rejected, _ = launch(tmp_path, server, api="gemini", concurrency=1)
    assert [row["reason"] for row in rejected] == ["truncated"] * 2
