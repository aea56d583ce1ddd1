"""What keeps a client within an endpoint's rates and within its own budget."""

import asyncio
import collections
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

WINDOW_SECONDS = 60.0


@dataclass
class Admission:
    """A request that was let through: when, and the tokens it may take or took."""

    at: float
    tokens: int


class RateLimit:
    """Lets requests through so that no 60 seconds hold more requests or tokens than allowed.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: input and output together; None for no limit.
        clock: seconds that only grow.
        sleep: waits for so many seconds of `clock`.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._requests, self._tokens = requests_per_minute, tokens_per_minute
        self._clock, self._sleep = clock, sleep
        self._recent: collections.deque[Admission] = collections.deque()
        self._not_before = 0.0
        self._turn = asyncio.Lock()  # first come, first served

    async def admit(self, tokens: int) -> Admission:
        """Waits until a request of at most so many tokens may go, and returns its entry for `settle`."""
        async with self._turn:
            while (wait := self._wait(tokens)) > 0:
                await self._sleep(wait)
            admission = Admission(self._clock(), tokens)
            self._recent.append(admission)
            return admission

    def settle(self, admission: Admission, tokens: int) -> None:
        """Puts the tokens a request really took in the place of those it might have taken."""
        admission.tokens = tokens

    def pause(self, seconds: float) -> None:
        """Lets nothing through for so long, as the endpoint asked."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def _wait(self, tokens: int) -> float:
        """Returns the seconds until the next look; 0 when the request may go."""
        now = self._clock()
        if now < self._not_before:
            return self._not_before - now
        while self._recent and self._recent[0].at <= now - WINDOW_SECONDS:
            self._recent.popleft()
        is_full = self._requests is not None and len(self._recent) >= self._requests
        if self._tokens is not None and sum(entry.tokens for entry in self._recent) + tokens > self._tokens:
            is_full = bool(self._recent)  # alone, a request goes even if it is larger than the limit
        if not is_full:
            return 0.0
        # At most a second: an answer that settles may make room earlier than the oldest entry's end.
        return min(1.0, max(0.001, self._recent[0].at + WINDOW_SECONDS - now))


class Budget:
    """Tokens a run may spend: what might be spent is reserved first, so that the limit is never passed.

    Args:
        limit: tokens, input and output together; None for no limit.
        spent: tokens of earlier sessions.
    """

    def __init__(self, limit: int | None, spent: int = 0) -> None:
        self.limit, self.spent = limit, spent
        self._reserved = 0
        self._settled = asyncio.Event()

    async def reserve(self, tokens: int) -> bool:
        """Reserves the tokens, and returns whether there was room for them.

        While others hold reservations it waits, as they may give back what they do not spend.
        """
        while self.limit is not None and self.spent + self._reserved + tokens > self.limit:
            if not self._reserved:
                return False
            self._settled.clear()
            await self._settled.wait()
        self._reserved += tokens
        return True

    def settle(self, reserved: int, spent: int) -> None:
        """Ends a reservation with what was spent of it."""
        self._reserved -= reserved
        self.spent += spent
        self._settled.set()
