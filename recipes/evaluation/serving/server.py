"""The HTTP server: one answer at a time, of one model."""

import hmac
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from configs.loader import UserError
from recipes.evaluation.serving.protocol import (
    Asked,
    RequestError,
    chat_request,
    completion_request,
    envelope,
    logprobs_object,
    usage,
)
from recipes.evaluation.talking import Piece, Scored, Talker, Wish, speak

KEY_VARIABLE = "KOTUNE_API_KEY"
MOST_BYTES = 8 * 2**20
MOST_WAITING = 64
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def address_problems(host: str, port: int) -> list[str]:
    """Returns the problems of an address: no port, or one that other machines could use without a key."""
    problems = [] if 0 <= port < 2**16 else [f"port: {port} is none; 0 to 65535 is expected; change it"]
    if host not in LOOPBACK and not os.environ.get(KEY_VARIABLE):
        problems.append(f"host: {host} is open to other machines; a key is expected then; export one as {KEY_VARIABLE}")
    return problems


class Gone(Exception):
    """The client has left, or the server is asked to stop: nobody waits for the answer."""


class Server(ThreadingHTTPServer):
    """Listens; threads of requests take turns at the model."""

    daemon_threads = True
    """A client that keeps its connection open does not keep the server."""

    def __init__(self, address: tuple[str, int], talker: Talker, wish: Wish) -> None:
        """Binds the address.

        Raises:
            OSError: it is taken, or not this machine's.
        """
        self.talker, self.wish = talker, wish
        self.turn, self.waiting = threading.Lock(), threading.BoundedSemaphore(MOST_WAITING)
        self.stopping = threading.Event()
        self.key = os.environ.get(KEY_VARIABLE, "")
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that left without a word, between two requests."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "kotune", ""
    timeout = 60  # seconds that a client may take to send or to read

    def do_GET(self) -> None:
        """Answers /health and /v1/models."""
        self._guarded(self._get)

    def do_POST(self) -> None:
        """Answers /v1/chat/completions and /v1/completions."""
        self._guarded(self._post)

    def _guarded(self, respond: Any) -> None:
        self._has_begun = False
        try:
            self._check_sender()
            respond()
        except RequestError as error:
            self._send(error.status, error.as_json())
        except UserError as error:
            self._send(400, RequestError(str(error)).as_json())
        except (Gone, ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # the server outlives what one request met; its log says what that was
            self.log_error("%s: %s", type(error).__name__, str(error)[:500])
            self.close_connection = True
            if not self._has_begun:
                self._send(500, RequestError("the server failed; see its log", status=500).as_json())

    def _check_sender(self) -> None:
        """Refuses those without the key, and web pages that reach a local server through their reader's browser."""
        if self.server.key and self.path != "/health":
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.server.key.encode()):
                raise self._refusal(f"the API key is missing or wrong; {KEY_VARIABLE} of the server is expected", 401)
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if self.server.server_address[0] in LOOPBACK and name.strip("[]") not in (*LOOPBACK, ""):
            raise self._refusal(f"the host {name!r} is not this machine; {LOOPBACK[1]} is expected", 403)

    def _get(self) -> None:
        if self.path == "/health":
            self._send(200, {"status": "ok"})
        elif self.path == "/v1/models":
            model = {"id": self.server.talker.name, "object": "model", "created": 0, "owned_by": "kotune"}
            self._send(200, {"object": "list", "data": [model | {"max_model_len": self.server.talker.most_tokens}]})
        else:
            raise self._refusal(f"{self.path} is not served; /health and /v1/models are", 404)

    def _post(self) -> None:
        talker = self.server.talker
        body = self._body()
        if self.path == "/v1/chat/completions":
            asked = chat_request(body, talker, self.server.wish)
            answer = self._chat_stream if asked.stream else self._chat
        elif self.path == "/v1/completions":
            asked = completion_request(body, talker, self.server.wish)
            answer = self._completion_stream if asked.stream else self._completion
        else:
            raise self._refusal(f"{self.path} is not served; /v1/chat/completions and /v1/completions are", 404)
        if not self.server.waiting.acquire(blocking=False):
            raise self._refusal(f"{MOST_WAITING} requests wait already; fewer are expected; try again later", 429)
        try:
            while not self.server.turn.acquire(timeout=0.2):
                self._check_wanted()
            try:
                answer(asked)
            finally:
                self.server.turn.release()
        finally:
            self.server.waiting.release()

    def _body(self) -> dict[str, Any]:
        """Returns the JSON object of the request."""
        if self.headers.get_content_type() != "application/json":  # which a web page cannot send without being asked
            raise self._refusal("the content type is not application/json; send that", 415)
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise self._refusal("the request has no Content-Length; send it", 411)
        if int(length) > MOST_BYTES:
            raise self._refusal(f"the request has {length} bytes; {MOST_BYTES} are the limit; send less", 413)
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the request is no JSON ({str(error)[:100]}); a JSON object is expected") from None
        if not isinstance(body, dict):
            raise RequestError("the request is no JSON object; one is expected")
        return body

    def _refusal(self, message: str, status: int) -> RequestError:
        self.close_connection = True  # its body has not been read
        return RequestError(message, status=status)

    def _check_wanted(self) -> None:
        """Raises Gone if nobody waits for the answer any more."""
        if self.server.stopping.is_set():
            raise Gone
        if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise Gone

    def _pieces(self, prompt: list[int], wish: Wish) -> Iterator[Piece]:
        for piece in speak(self.server.talker, prompt, wish):
            self._check_wanted()
            yield piece

    def _chat(self, asked: Asked) -> None:
        pieces = list(self._pieces(asked.prompts[0], asked.wish))
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": pieces[-1].reason}
        counts = usage(len(asked.prompts[0]), pieces[-1].tokens)
        shared = envelope("chatcmpl", self.server.talker)
        self._send(200, {**shared, "object": "chat.completion", "choices": [choice], "usage": counts})

    def _chat_stream(self, asked: Asked) -> None:
        shared = envelope("chatcmpl", self.server.talker) | {"object": "chat.completion.chunk"}

        def choice(delta: dict[str, str], reason: str | None) -> dict[str, Any]:
            return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}

        self._begin_stream()
        self._event({**shared, "choices": [choice({"role": "assistant", "content": ""}, None)]})
        self._stream(asked, shared, lambda piece: choice({"content": piece.text} if piece.text else {}, piece.reason))

    def _completion_stream(self, asked: Asked) -> None:
        shared = envelope("cmpl", self.server.talker) | {"object": "text_completion"}
        self._begin_stream()
        form = {"index": 0, "logprobs": None}
        self._stream(asked, shared, lambda piece: {**form, "text": piece.text, "finish_reason": piece.reason})

    def _completion(self, asked: Asked) -> None:
        choices, written = [], 0
        for index, prompt in enumerate(asked.prompts):
            text, reason, count, scored = self._completed(prompt, asked)
            written += count
            logprobs = None if asked.wish.logprobs is None else logprobs_object(scored, self.server.talker)
            choices.append({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})
        counts = usage(sum(map(len, asked.prompts)), written)
        shared = envelope("cmpl", self.server.talker)
        self._send(200, {**shared, "object": "text_completion", "choices": choices, "usage": counts})

    def _completed(self, prompt: list[int], asked: Asked) -> tuple[str, str, int, list[Scored]]:
        """Returns the text behind (with echo: and of) a prompt, why it ended, its tokens, and the log probabilities."""
        talker, wish = self.server.talker, asked.wish
        text, scored = "", list[Scored]()
        if asked.echo:
            text = talker.tokenizer.decode(prompt)
            if wish.logprobs is not None:
                found = talker.generator.log_probabilities(prompt, wish.logprobs)
                scored = [Scored(prompt[0], None)]
                scored += [Scored(id_, *one) for id_, one in zip(prompt[1:], found, strict=True)]
        pieces = list(self._pieces(prompt, wish)) if wish.max_new_tokens else []
        scored += [piece.scored for piece in pieces if piece.scored]
        text += "".join(piece.text for piece in pieces)
        return text, str(pieces[-1].reason) if pieces else "length", pieces[-1].tokens if pieces else 0, scored

    def _stream(self, asked: Asked, shared: dict[str, Any], choice: Any) -> None:
        """Sends an event for every piece that brings text or ends the answer, and the mark that ends the stream."""
        count = 0
        for piece in self._pieces(asked.prompts[0], asked.wish):
            count = piece.tokens
            if piece.text or piece.reason:
                self._event({**shared, "choices": [choice(piece)]})
        if asked.usage_in_stream:
            self._event({**shared, "choices": [], "usage": usage(len(asked.prompts[0]), count)})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _begin_stream(self) -> None:
        self._has_begun = True
        self.send_response(200)
        for name, value in (("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")):
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, content: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        """Sends a part of a body of unknown length; an empty one is its end."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content, ensure_ascii=False).encode()
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


def serve(talker: Talker, host: str, port: int, wish: Wish) -> None:
    """Serves until SIGTERM or SIGINT; an answer that is being written then ends at its next token.

    Args:
        talker: the model.
        host: address to listen on.
        port: 0 takes a free one; the first line of the output names it.
        wish: how an answer is written where a request does not say it.

    Raises:
        OSError: the address cannot be listened on.
    """
    with Server((host, port), talker, wish) as server:

        def stop(*_: object) -> None:
            server.stopping.set()
            threading.Thread(target=server.shutdown).start()  # which waits for the loop below

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        chat = "/v1/chat/completions, " if talker.template else ""
        print(f"serving {talker.name} at http://{host}:{server.server_address[1]}/v1", flush=True)
        print(f"{chat}/v1/completions, /v1/models, /health; Ctrl-C ends it", file=sys.stderr, flush=True)
        try:
            server.serve_forever(poll_interval=0.2)
            with server.turn:  # the answer that is being written ends first
                pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
