"""A model's endpoint on this machine that behaves as it is told, in threads."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

WORDS = {  # each in both languages
    "sea": "바다", "mountain": "산", "river": "강", "tree": "나무", "book": "책", "clock": "시계", "chair": "의자",
    "map": "지도", "hat": "모자", "shoe": "신발", "umbrella": "우산", "plate": "접시", "letter": "편지",
    "photo": "사진", "picture": "그림", "song": "노래", "window": "창문", "stairway": "계단", "bridge": "다리",
    "garden": "정원", "market": "시장", "train": "기차", "bus": "버스", "bicycle": "자전거",
}  # fmt: skip


@dataclass
class Request:
    """What came in, and the server's time at which it did."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float
    number: int  # in the order of arrival, from 0

    @property
    def prompt(self) -> str:
        """The user's text."""
        if "contents" in self.body:
            return self.body["contents"][0]["parts"][0]["text"]
        return self.body["messages"][-1]["content"]

    @property
    def num_turns(self) -> int:
        """Turns that the prompt asks for."""
        return int(re.search(r"exactly (\d+)", self.prompt)[1])


@dataclass
class Reply:
    """What goes out; `cut` bytes of the body are left out of what Content-Length announces."""

    body: Any = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int = 0
    after: Callable[[], None] | None = None


@dataclass
class Server:
    """A running server: its address, what came in, and how many requests it held at once."""

    url: str
    requests: list[Request] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0


def dialogue(num_turns: int, salt: str) -> dict[str, Any]:
    """Returns a sound dialogue that differs from those of other salts."""
    turns = []
    for number in range(num_turns):
        picks = [list(WORDS)[hash_number(f"{salt}:{number}:{i}") % len(WORDS)] for i in range(6)]
        en = f"Tell me about the {', the '.join(picks)} and number {number}."
        ko = f"{', '.join(WORDS[pick] for pick in picks)} 그리고 {number}번에 대해서 이야기해 주세요."
        turns.append({"speaker": ("user", "assistant")[number % 2], "en": en, "ko": ko})
    return {"turns": turns}


def hash_number(text: str) -> int:
    """Returns a number that is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def openai(text: str | None, finish: str = "stop", tokens: tuple[int, int] | None = (100, 50), **message: Any) -> Reply:
    """Returns a chat completion."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}} if tokens else {}
    return Reply({"model": "served-name", "choices": [choice], **usage})


def gemini(text: str, finish: str = "STOP", **usage: int) -> Reply:
    """Returns Gemini's own form of an answer, a thought first."""
    parts = [{"text": "thinking {", "thought": True}, {"text": text}]
    counts = {"promptTokenCount": 100, "candidatesTokenCount": 50, "thoughtsTokenCount": 7, **usage}
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": finish}
    return Reply({"candidates": [candidate], "usageMetadata": counts, "modelVersion": "served-name"})


def sound(request: Request) -> Reply:
    """Answers any request with a dialogue that depends on its prompt alone."""
    text = json.dumps(dialogue(request.num_turns, request.prompt), ensure_ascii=False)
    return gemini(text) if "contents" in request.body else openai(text)


@contextlib.contextmanager
def serving(answer: Callable[[Request], Reply] = sound) -> Iterator[Server]:
    """Runs a server on a free port of the loopback interface."""
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.path, headers, json.loads(content), time.monotonic(), len(server.requests))
                server.requests.append(request)
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                self.reply(answer(request))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client has gone
            finally:
                with lock:
                    server.at_once -= 1

        def reply(self, reply: Reply) -> None:
            time.sleep(reply.delay)
            body = reply.body if isinstance(reply.body, bytes | str) else json.dumps(reply.body, ensure_ascii=False)
            body = body.encode() if isinstance(body, str) else body
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) - reply.cut])
            self.close_connection = bool(reply.cut)
            if reply.after:
                reply.after()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        server = Server(f"http://127.0.0.1:{running.server_port}/v1")
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()
