"""Several servers of one role: prompts are dealt to those that are alive.

    batch begins -> look at every server; one that is back gets the batch's policy first
                 -> deal the prompts evenly: all requests of a prompt go to one server, whose prefix
                    cache has its prompt and its responses
    request fails -> the server answers: repeat it there
                  -> it is away: the prompt moves to another one, with all that it still asks
                  -> all are away: wait, at most `server_deadline` seconds

With one server a failed request waits for it (`ServerWatch.survived`).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import openai

from rea_rl.rollout.endpoint import Endpoint, ServerWatch, first_back, pause, refused, words
from rea_rl.rollout.replies import Completion, UnusableReply

if TYPE_CHECKING:
    from rea_rl.configs import REARLConfig

T = TypeVar("T")


class Servers:
    """Servers of one role; arguments are those of `Endpoint`, with several URLs."""

    def __init__(
        self, key: str, urls: Sequence[str], args: REARLConfig, adapters: Path | None = None
    ):
        self.endpoints = [Endpoint(key, url, args, adapters) for url in urls]
        self.retries = args.request_retries
        self._key, self._deadline = key, args.server_deadline
        self._moves = itertools.count()
        self._lock = asyncio.Lock()

    @property
    def watches(self) -> list[ServerWatch]:
        return [endpoint.watch for endpoint in self.endpoints]

    @property
    def num_alive(self) -> int:
        return sum(watch.away_since is None for watch in self.watches)

    async def muster(self, model: str) -> None:
        """Look which of several servers are alive. One that is back serves the model then."""
        if len(self.endpoints) > 1:
            await asyncio.gather(*(watch.look(model) for watch in self.watches))

    def deal(self, count: int, first: int) -> list[Seat]:
        """Seats for so many prompts, one after the other on the servers that are alive; `first` is
        the place of the first one among those of all ranks."""
        alive = self._alive() or self.endpoints  # whose requests wait for them
        return [Seat(self, alive[(first + i) % len(alive)]) for i in range(count)]

    async def after_failure(
        self, seat: Seat, endpoint: Endpoint, error: Exception, began: float, model: str
    ) -> None:
        """Return once a failed request can be repeated; its prompt moves if its server is away.

        Raises ConnectionError if no server is left for the deadline.
        """
        if await endpoint.watch.survived(error, began, model, len(self.endpoints) == 1):
            return
        async with self._lock:
            if not self._alive():
                await first_back(self._key, self.watches, words(error), model, self._deadline)
        if seat.endpoint is endpoint:
            alive = self._alive()
            seat.endpoint = alive[next(self._moves) % len(alive)]

    async def close(self) -> None:
        for endpoint in self.endpoints:
            await endpoint.close()

    def _alive(self) -> list[Endpoint]:
        return [each for each in self.endpoints if each.watch.away_since is None]


class Seat:
    """The server of one prompt. Requests are repeated, and move to another one if it is away."""

    def __init__(self, servers: Servers, endpoint: Endpoint):
        self._servers, self.endpoint = servers, endpoint

    async def complete(
        self, model: str, prompt_ids: list[int], extra: dict[str, Any], **body: Any
    ) -> Completion:
        """As `Endpoint.complete`, repeated."""
        return await self.repeated(
            model, lambda: self.endpoint.complete(model, prompt_ids, extra, **body)
        )

    def stream(
        self, model: str, prompt_ids: list[int], extra: dict[str, Any], **body: Any
    ) -> AsyncIterator[list[dict[str, float]]]:
        """As `Endpoint.stream`; a reader that shall be repeated goes through `repeated`."""
        return self.endpoint.stream(model, prompt_ids, extra, **body)

    async def repeated(self, model: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Result of `attempt`, tried again after failures that may pass: a dead or hung server, an
        answer of 500.

        Raises ConnectionError if no server is left, the last try fails, or a server refuses all
        requests; and the server's own error if it refuses this one.
        """
        for tried in range(self._servers.retries + 1):
            began, endpoint = time.monotonic(), self.endpoint
            try:
                return await attempt()
            except (openai.APIError, UnusableReply) as error:
                watch = endpoint.watch
                if not watch.is_passing(error):
                    watch.counts["refused_requests"] += 1
                    raise refused(watch.name, error) from error
                if tried == self._servers.retries:
                    raise ConnectionError(
                        f"{watch.name} failed a request {tried + 1} times, at last with: "
                        f"{words(error)}; see its log, or raise request_timeout or request_retries"
                    ) from error
                await self._servers.after_failure(self, endpoint, error, began, model)
                if not isinstance(error, openai.APITimeoutError):  # which has waited already
                    await asyncio.sleep(pause(tried))
        raise AssertionError("request_retries is negative")
