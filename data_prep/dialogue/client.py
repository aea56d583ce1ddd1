"""Asks an endpoint: one answer for one prompt, with retries, within rates and budget."""

import asyncio
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx

from data_prep.dialogue.endpoint import Answer, Endpoint, Failure, NotTaken, failure
from data_prep.dialogue.key import Key, is_loopback
from data_prep.dialogue.limits import Budget, RateLimit
from data_prep.document import CorpusError

LARGEST_REPLY = 8 << 20  # bytes
CONNECT_SECONDS = 10.0


class BudgetReached(Exception):
    """One more request could pass the token budget."""


@dataclass(frozen=True)
class Retries:
    """How failures are borne; all in seconds but `attempts`."""

    attempts: int
    timeout: float
    first_wait: float
    longest_wait: float


class Client:
    """An open connection pool to one endpoint; use it in `async with`.

    Args:
        endpoint: where and how the model is asked.
        key: goes into the header of the requests and nowhere else.
        retries: how failures are borne.
        limit: rates that hold for all requests together.
        budget: tokens that may be spent.
        structured_output: `schema` asks for JSON of the dialogue's form, `text` leaves it to the prompt,
            `auto` begins with the first and falls back to the second when the endpoint refuses.
        report: called with the kind of each failed request and the tokens it may have cost.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: Key,
        retries: Retries,
        limit: RateLimit,
        budget: Budget,
        structured_output: str,
        report: Callable[[str, int], None],
    ) -> None:
        self.endpoint, self.num_answers = endpoint, 0
        self._key, self._retries, self._limit, self._budget = key, retries, limit, budget
        self._report, self._may_fall_back = report, structured_output == "auto"
        self._with_schema = structured_output != "text"
        self._http = httpx.AsyncClient(
            headers={"content-type": "application/json", **key.headers(endpoint.api)},
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # the whole request has its own limit
            limits=httpx.Limits(max_connections=None),
            follow_redirects=False,  # so that the key goes to no other host
            trust_env=not is_loopback(endpoint.base_url),  # proxies are for hosts outside
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, system: str, prompt: str) -> Answer:
        """Returns the model's answer; its token counts are set, by a bound where the endpoint tells none.

        Raises:
            BudgetReached: the request could pass the token budget; nothing was sent.
            Failure: the last of the attempts failed too.
            CorpusError: the endpoint refuses for good (key, model, address, form of the request).
        """
        for attempt in range(self._retries.attempts):
            try:
                return await self._attempt(system, prompt)
            except Failure as error:
                if attempt + 1 == self._retries.attempts:
                    raise
                await self._back_off(attempt, error)
        raise AssertionError("attempts is positive")

    async def _attempt(self, system: str, prompt: str) -> Answer:
        """One try; the fall-back from structured output to text is part of it."""
        with_schema = self._with_schema
        try:
            return await self._request(system, prompt, with_schema)
        except NotTaken as error:
            self._report("400", 0)
            if not with_schema or not self._may_fall_back:
                raise CorpusError(
                    f"{error}; a request it takes is expected; mend model, max_tokens or extra_body"
                    + ("" if self._may_fall_back else ", or use structured_output=auto")
                ) from None
            if self._with_schema:
                print(f"no structured output, from here on as text: {error}", file=sys.stderr, flush=True)
            self._with_schema = False
            return await self._attempt(system, prompt)

    async def _request(self, system: str, prompt: str, with_schema: bool) -> Answer:
        body = self.endpoint.body(system, prompt, with_schema)
        # A piece of a byte-level vocabulary is at least a byte; the names of the JSON pay for the chat template.
        num_bytes = len(json.dumps(body, ensure_ascii=False).encode())
        most = num_bytes + self.endpoint.max_tokens
        if not await self._budget.reserve(most):
            raise BudgetReached
        spent = 0
        admission = None
        try:
            admission = await self._limit.admit(most)
            answer = _counted(await self._send(body), num_bytes)
            spent = (answer.tokens_in or 0) + (answer.tokens_out or 0)
            self.num_answers += 1
            return answer
        except Failure as error:
            spent = most if error.may_cost else 0
            self._report(error.kind, spent)
            raise
        finally:
            self._budget.settle(most, spent)
            if admission is not None:
                self._limit.settle(admission, spent)

    async def _send(self, body: dict[str, Any]) -> Answer:
        status, headers, text = await self._exchange(body)
        if status != 200:
            raise failure(status, headers, text, self.endpoint, self._key)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            told = " ".join(text[:200].split())
            raise Failure("broken_json", f"{self.endpoint.url()} answers no JSON: {told!r}", may_cost=True) from None
        answer = self.endpoint.answer(value)
        # Again, as escapes inside the JSON could have hidden the key from the first time.
        return replace(answer, text=self._key.hide(answer.text), model=self._key.hide(answer.model))

    async def _exchange(self, body: dict[str, Any]) -> tuple[int, httpx.Headers, str]:
        """Returns status, headers and body, the key hidden in the body."""
        url = self.endpoint.url()
        content = json.dumps(body, ensure_ascii=False).encode()
        reply = bytearray()
        try:
            async with (
                asyncio.timeout(self._retries.timeout),
                self._http.stream("POST", url, content=content) as response,
            ):
                async for chunk in response.aiter_bytes():
                    reply += chunk
                    if len(reply) > LARGEST_REPLY:
                        raise Failure("too_large", f"{url} sends more than {LARGEST_REPLY} bytes", may_cost=True)
        except TimeoutError:
            told = f"{url} has not answered within timeout_seconds={self._retries.timeout:g}"
            raise Failure("timeout", told, may_cost=True) from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            told = self._key.hide(str(error)) or type(error).__name__
            raise Failure("connection", f"{url} cannot be reached: {told}") from None
        except httpx.HTTPError as error:
            told = self._key.hide(str(error)) or type(error).__name__
            raise Failure("cut_off", f"{url}: {told}", may_cost=True) from None
        return response.status_code, response.headers, self._key.hide(reply.decode("utf-8", errors="replace"))

    async def _back_off(self, attempt: int, error: Failure) -> None:
        """Waits as long as the endpoint asks, else twice as long each time, with jitter.

        Raises:
            CorpusError: it asks for more than the longest wait, or was never reached at all.
        """
        if error.kind == "connection" and not self.num_answers:
            raise CorpusError(f"{error}; a running server is expected; start it, or mend base_url") from None
        if error.wait is not None and error.wait > self._retries.longest_wait:
            raise CorpusError(
                f"{error}; it asks to wait {error.wait:.0f} s, max_wait_seconds is {self._retries.longest_wait:g}; "
                "start the same command again later, or raise max_wait_seconds"
            ) from None
        wait = error.wait
        if wait is None:
            wait = min(self._retries.longest_wait, self._retries.first_wait * 2**attempt) * random.uniform(0.5, 1)
        if error.kind == "429":  # it holds for all requests, not for this one alone
            self._limit.pause(wait)
        await asyncio.sleep(wait + random.uniform(0, self._retries.first_wait) * (error.wait is not None))


def _counted(answer: Answer, bytes_sent: int) -> Answer:
    """Returns the answer with a bound of its tokens where the endpoint told none."""
    tokens_in = bytes_sent if answer.tokens_in is None else answer.tokens_in
    tokens_out = len(answer.text.encode()) if answer.tokens_out is None else answer.tokens_out
    return replace(answer, tokens_in=tokens_in, tokens_out=tokens_out)
