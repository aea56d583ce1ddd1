"""The endpoint over real HTTP: what OpenAI's clients and lm-evaluation-harness send, and what must be refused."""

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM

from configs.loader import load
from recipes import chat
from recipes.evaluation.serving import server as serving
from recipes.evaluation.talking import Wish
from tests.support import VOCAB, answering_llama, tiny_llama, tiny_tokenizer

ANSWER = "부산."
ASKED = {"messages": [{"role": "user", "content": "안녕?"}]}


def talker_of(folder, tmp_path, *overrides):
    path = tmp_path / "chat.yaml"
    path.write_text("device: cpu\nserve: true\n")
    cfg = load(chat.ChatConfig, path, [f"model={folder}", *overrides], chat.check)
    return chat.open_talker(cfg, folder.name, str(folder))


@contextmanager
def served(talker, **wish):
    """Yields a client of a server in a thread of this process, and the server."""
    with serving.Server(("127.0.0.1", 0), talker, Wish(**{"max_new_tokens": 32} | wish)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{server.server_address[1]}", timeout=120) as client:
                yield client, server
        finally:
            server.stopping.set()
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A client of a chat model that answers everything with `ANSWER`."""
    root = tmp_path_factory.mktemp("speaking")
    with served(talker_of(answering_llama(root / "busan", ANSWER), root)) as (client, _):
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model that goes on for ever."""
    folder = tiny_tokenizer(tmp_path_factory.mktemp("endless") / "endless")
    return tiny_llama(folder, max_position_embeddings=6000, eos_token_id=None)


@pytest.fixture(scope="module")
def endless(tmp_path_factory, folder):
    with served(talker_of(folder, tmp_path_factory.mktemp("served"), "max_context_tokens=6000")) as found:
        yield found


def test_a_chat_is_answered_with_its_reason_and_its_tokens(speaking):
    answer = speaking.post("/v1/chat/completions", json={"model": "busan", **ASKED, "temperature": 0}).json()
    message = {"role": "assistant", "content": ANSWER}
    assert answer["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    counts = answer["usage"]
    assert counts["completion_tokens"] > 3
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]
    assert (answer["object"], answer["model"]) == ("chat.completion", "busan")
    short = speaking.post("/v1/chat/completions", json={**ASKED, "max_completion_tokens": 2}).json()
    assert short["choices"][0]["finish_reason"] == "length"
    parts = [{"role": "user", "content": [{"type": "text", "text": "안녕"}, {"type": "text", "text": "?"}]}]
    assert speaking.post("/v1/chat/completions", json={"messages": parts}).json()["usage"] == counts


def events(response):
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_stream_brings_the_same_answer_in_pieces(speaking):
    body = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
    with speaking.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream"
        first, *others, last = events(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    pieces = [event["choices"][0]["delta"].get("content", "") for event in others]
    assert "".join(pieces) == ANSWER
    assert len([piece for piece in pieces if piece]) > 1
    assert [event["choices"][0]["finish_reason"] for event in others][-1] == "stop"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 3
    with speaking.stream("POST", "/v1/completions", json={"prompt": "Hi", "stream": True}) as response:
        assert events(response)[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_models_and_health(speaking):
    found = speaking.get("/v1/models").json()["data"]
    assert [(one["id"], one["max_model_len"]) for one in found] == [("busan", 256)]
    assert speaking.get("/health").json() == {"status": "ok"}


def test_a_completion_is_transformers_and_its_seed_repeats_it(endless, folder):
    client, _ = endless
    ids = [256, 9, 77, 30]
    reference = LlamaForCausalLM.from_pretrained(folder).generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, 4, dtype=torch.int64), max_new_tokens=12,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )[0, 4:].tolist()  # fmt: skip
    asked = {"prompt": [ids, ids[:2]], "max_tokens": 12, "temperature": 0, "logprobs": 0}
    choices = client.post("/v1/completions", json=asked).json()["choices"]
    tokenizer = endless[1].talker.tokenizer
    assert choices[0]["logprobs"]["tokens"] == [tokenizer.piece(id_) for id_ in reference]
    assert [choice["index"] for choice in choices] == [0, 1]
    text = "A river"
    whole = client.post("/v1/completions", json={"prompt": text, "max_tokens": 8, "echo": True, "logprobs": 1}).json()
    logprobs = whole["choices"][0]["logprobs"]
    assert logprobs["text_offset"][1:4] == [0, 1, 2]  # BOS is no text
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert whole["usage"]["prompt_tokens"] == 1 + len(tokenizer.encode(text))  # BOS
    assert whole["choices"][0]["text"].startswith(text)

    def drawn(seed):
        body = {"prompt": ids, "max_tokens": 20, "temperature": 1.5, "top_k": -1, "seed": seed}
        return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

    assert drawn(4) == drawn(4) != drawn(5)


def test_the_log_probabilities_of_a_prompt_are_those_of_transformers_as_the_harness_reads_them(endless, folder):
    api = pytest.importorskip("lm_eval.models.openai_completions").LocalCompletionsAPI
    random = torch.Generator().manual_seed(1)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    prompts = [torch.randint(0, VOCAB, (n,), generator=random).tolist() for n in (3, 600, 40)]
    with torch.inference_mode():  # and one that ends as the model itself would go on
        prompts.append([*prompts[0], int(model(torch.tensor([prompts[0]])).logits[0, -1].argmax())])
    asked = api._create_payload(SimpleNamespace(model="endless"), prompts, generate=False)
    assert asked["echo"]
    answer = endless[0].post("/v1/completions", json=asked).json()
    found = api.parse_logprobs(answer, ctxlens=[2, 500, 38, 3])
    for prompt, start, (value, is_greedy) in zip(prompts, (2, 500, 38, 3), found, strict=True):
        with torch.inference_mode():
            scores = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        expected = [scores[place - 1, prompt[place]] for place in range(start, len(prompt))]
        assert value == pytest.approx(float(sum(expected)), abs=1e-3)
        assert is_greedy is all(scores[n - 1].argmax() == prompt[n] for n in range(start, len(prompt)))
    assert found[3][1] is True


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_ends_the_answer(endless, monkeypatch, capsys, is_streamed):
    client, server = endless
    counts, speak = [], serving.speak

    def counted(*arguments):
        for piece in speak(*arguments):
            counts.append(piece.tokens)
            yield piece

    monkeypatch.setattr(serving, "speak", counted)
    body = json.dumps({"prompt": "Hi", "max_tokens": 5000, "temperature": 0, "stream": is_streamed}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(server.server_address) as left:
        left.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        while not counts:
            threading.Event().wait(0.01)
    short = client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2})
    assert short.json()["usage"]["completion_tokens"] == 2
    assert counts[-3:] == [1, 2, 2]  # two tokens, and why it ended
    assert max(counts) < 4000
    assert "Traceback" not in capsys.readouterr().err


def test_four_clients_at_once_get_their_own_answers(endless):
    client, _ = endless

    def ask(number):
        body = {"prompt": [number], "max_tokens": 15, "temperature": 0}
        return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

    alone = [ask(number) for number in range(40, 44)]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, [40, 41, 42, 43] * 2)) == alone * 2


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/chat/completions", {"messages": []}, 400, r"messages is \[\]; a list is expected"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, r"messages\[0\] is no object with role"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "content": "a"}]},
            400,
            "has the role 'assistant'",
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "<|eot_id|>"}]}, 400, "special tokens are"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 300}]}, 400, "256 are the limit of"),
        ("/v1/chat/completions", {**ASKED, "model": "gpt-4"}, 404, "the model 'gpt-4' is not served; busan is"),
        ("/v1/chat/completions", {**ASKED, "n": 2}, 400, "n is 2; only 1 is offered"),
        ("/v1/chat/completions", {**ASKED, "tools": [{"type": "function"}]}, 400, r"only \[\] is offered"),
        ("/v1/chat/completions", {**ASKED, "logprobs": True}, 400, "logprobs of a chat are not offered"),
        (
            "/v1/chat/completions",
            {**ASKED, "temprature": 1},
            400,
            "the field 'temprature' is not known; the fields",
        ),
        ("/v1/chat/completions", {**ASKED, "temperature": "hot"}, 400, r"temperature is hot; a number \(float\)"),
        ("/v1/chat/completions", {**ASKED, "top_p": 2}, 400, "top_p: 2 is out of range"),
        ("/v1/chat/completions", {**ASKED, "stop": [1]}, 400, "stop is neither a text nor a list"),
        ("/v1/chat/completions", {**ASKED, "stream": "yes"}, 400, "stream is yes; true or false is expected"),
        ("/v1/chat/completions", [1], 400, "the request is no JSON object"),
        ("/v1/completions", {"prompt": []}, 400, "prompt is neither a text, nor ids"),
        ("/v1/completions", {"prompt": [1, True]}, 400, "prompt is neither a text, nor ids"),
        ("/v1/completions", {"prompt": [1, 512]}, 400, "prompt has the id 512; ids are below 512"),
        ("/v1/completions", {"prompt": ["a"] * 300}, 400, "300 prompts; 256 are the limit"),
        ("/v1/completions", {"prompt": "a", "logprobs": 21}, 400, "logprobs is 21; 0 to 20 is expected"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens is 0; 1 or more is expected"),
        ("/v1/completions", {"prompt": "a", "stream": True, "echo": True}, 400, "only one prompt without echo"),
        ("/v1/embeddings", {"input": "a"}, 404, "/v1/embeddings is not served"),
    ],
    ids=str,
)
def test_what_cannot_be_answered_is_refused_in_the_form_that_clients_show(speaking, path, body, status, message):
    response = speaking.post(path, json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert re.search(message, error["message"])
    assert error["type"] == "invalid_request_error"
    assert speaking.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415),
        ({"Content-Type": "application/json"}, b"{", 400),
        ({"Content-Type": "application/json"}, b"[" * 100_000, 400),
        ({"Content-Type": "application/json", "Content-Length": str(9 * 2**20)}, b"{}", 413),
        ({"Content-Type": "application/json", "Content-Length": "-1"}, b"{}", 411),
        ({"Content-Type": "application/json", "Host": "evil.example"}, b"{}", 403),
    ],
)
def test_requests_that_are_none_are_refused(speaking, headers, content, status):
    with socket.create_connection((speaking.base_url.host, speaking.base_url.port), timeout=60) as raw:
        lines = {"Host": "127.0.0.1", "Content-Length": str(len(content)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        raw.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + content)
        assert raw.recv(100).startswith(f"HTTP/1.1 {status} ".encode())


def test_with_a_key_only_those_who_have_it_are_answered(tmp_path, folder, monkeypatch):
    monkeypatch.setenv(serving.KEY_VARIABLE, "geheim")
    with served(talker_of(folder, tmp_path)) as (client, _):
        assert client.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Bearer gehéim".encode()}):
            refused = client.get("/v1/models", headers=headers)
            assert refused.status_code == 401
            assert "geheim" not in refused.text
        assert client.get("/v1/models", headers={"Authorization": "Bearer geheim"}).status_code == 200
        chat_of_base = client.post("/v1/chat/completions", json=ASKED, headers={"Authorization": "Bearer geheim"})
        assert "endless has no chat template; a chat model is expected" in chat_of_base.json()["error"]["message"]


def test_a_server_that_stops_ends_the_answer_it_is_writing(tmp_path, folder):
    body = {"prompt": "Hi", "max_tokens": 5000, "stream": True}
    talker = talker_of(folder, tmp_path, "max_context_tokens=6000")
    with served(talker) as (client, server), client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        server.stopping.set()
        with pytest.raises(httpx.RemoteProtocolError):  # the stream ends without its mark
            list(lines)
        assert server.turn.acquire(timeout=60)
