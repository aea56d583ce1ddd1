"""Asks for dialogues, several at a time, until enough are kept, the seeds end or the token budget is reached."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.dialogue.client import BudgetReached, Client
from data_prep.dialogue.endpoint import Failure
from data_prep.dialogue.journal import Journal
from data_prep.dialogue.judge import Judge, Row
from data_prep.dialogue.topics import Seed, fill_prompt
from data_prep.document import CorpusError

COMPLETE, TOKEN_BUDGET, NO_MORE_SEEDS = "complete", "token_budget", "no_more_seeds"
ENOUGH_TO_TELL = 40  # judged dialogues from which on the share of those dropped means something


@dataclass(frozen=True)
class Goal:
    """What is asked for and when to stop."""

    system: str
    prompt: str
    dialogues: int
    concurrency: int
    answers_per_dialogue: int
    max_dropped_share: float


class Collection:
    """One session: what was answered before is taken from the journal, the rest is asked."""

    def __init__(self, goal: Goal, seeds: Sequence[Seed], journal: Journal, judge: Judge, client: Client) -> None:
        self._goal, self._journal, self._judge, self._client = goal, journal, judge, client
        self._given: set[int] = set()
        self._running: dict[asyncio.Task[None], Seed] = {}
        self._to_ask: deque[Seed] = deque()
        self._is_over_budget = False
        for seed in seeds:
            answers = journal.answers.get(seed.number, [])
            if judge.is_settled(seed, answers, goal.answers_per_dialogue):
                self._give(seed.number, answers)
            else:
                self._to_ask.append(seed)

    async def run(self, show: Callable[[], None]) -> str:
        """Returns why it stopped: `complete`, `token_budget` or `no_more_seeds`.

        Args:
            show: called whenever something came in.

        Raises:
            CorpusError: the endpoint refuses for good, does not answer at all, or too many answers are dropped.
        """
        show()
        try:
            while self._launch():
                done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._take(task)
                show()
                self._check_share()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        for number in sorted(self._journal.answers.keys() - self._given):
            self._give(number, self._journal.answers[number])
        self._judge.close()
        if len(self._judge.kept) >= self._goal.dialogues:
            return COMPLETE
        return TOKEN_BUDGET if self._is_over_budget else NO_MORE_SEEDS

    def _launch(self) -> bool:
        """Starts what may run beside what runs, and returns whether anything runs.

        Never more than can be needed are under way, so no answer is paid for in vain.
        """
        goal = self._goal
        while (
            self._to_ask
            and not self._is_over_budget
            and len(self._running) < goal.concurrency
            and self._judge.num_possible + len(self._running) < goal.dialogues
        ):
            seed = self._to_ask.popleft()
            self._running[asyncio.create_task(self._ask(seed))] = seed
        return bool(self._running)

    async def _ask(self, seed: Seed) -> None:
        goal, prompt = self._goal, fill_prompt(self._goal.prompt, seed)
        while not self._judge.is_settled(seed, self._answers(seed), goal.answers_per_dialogue):
            answer = await self._client.ask(goal.system, prompt)
            facts: dict[str, Any] = dict(vars(answer))
            self._journal.add_answer(seed.number, **facts)

    def _answers(self, seed: Seed) -> list[Row]:
        return self._journal.answers.get(seed.number, [])

    def _take(self, task: asyncio.Task[None]) -> None:
        seed = self._running.pop(task)
        try:
            task.result()
        except BudgetReached:
            self._is_over_budget = True
            if not self._answers(seed):
                return  # not asked: a later session may
        except Failure as error:
            if not self._client.num_answers:
                raise CorpusError(
                    f"{error}; none of this session's requests has been answered; "
                    "mend the endpoint or base_url, then start the same command again"
                ) from None
        self._give(seed.number, self._answers(seed))

    def _give(self, number: int, answers: list[Row]) -> None:
        self._given.add(number)
        self._judge.add(number, answers)

    def _check_share(self) -> None:
        judge, most = self._judge, self._goal.max_dropped_share
        num_dropped = judge.dropped.total()
        if judge.num_judged >= ENOUGH_TO_TELL and num_dropped > most * judge.num_judged:
            raise CorpusError(
                f"{num_dropped} of {judge.num_judged} dialogues were dropped ({dict(judge.dropped.most_common())}); "
                f"max_dropped_share is {most:g}; read the answers in {self._journal.path}, then mend the prompt or "
                "take another model, or raise max_dropped_share"
            )
