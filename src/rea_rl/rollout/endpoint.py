"""Requests to one vLLM server that outlive it: a failed one is repeated once the server is back and
has its adapter.

    request fails -> one of all that failed looks at /health
                  -> away: wait, at most `server_deadline` seconds
                  -> policy server: load the adapter again if it is not listed (a restarted server
                  is empty) -> repeat the request, at most `request_retries` times

Restarting servers is the job of `rea_rl.vllm_server`, the cluster, or you. Everything that fails is
logged and counted; nothing is repeated without end. What a server answered already stays with its
response. If there are several servers, `rollout.servers` exchanges one that is away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai

from rea_core.clients import api_key, async_openai_client
from rea_rl.rollout.replies import Completion, UnusableReply, alternatives
from rea_rl.run.counts import AWAY, outages

if TYPE_CHECKING:
    from rea_rl.configs import REARLConfig


logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
LOAD_TIMEOUT = 120.0  # seconds in which a server has an adapter loaded
PROBE_TIMEOUT = 5.0  # seconds in which a healthy server answers a question that costs it nothing
# in which an adapter shows on a server's host: network file systems look again after a minute or so
VISIBLE_SECONDS = 90.0
NOT_SEEN = "No adapter found"  # of vLLM, for a folder that is missing
MAX_PAUSE = 8.0  # seconds before a request is repeated that a healthy server refuses


def server_counts(watches: Sequence[ServerWatch]) -> dict[str, Any]:
    """Metrics of servers as one process sees them, and the times that they were away."""
    counts = {f"servers/{key}": sum(w.counts[key] for w in watches) for key in watches[0].counts}
    away = [times for watch in watches for times in watch.times_away]
    return counts | outages(away) | {AWAY: away}


def adapter_folder(output_dir: str | Path) -> Path:
    """Folder of the adapter's versions, for the server to load."""
    return Path(output_dir, "adapters").resolve()


class ServerWatch:
    """State of one server, and the reaction to its failed requests.

    Args:
        key: recipe key of its address, for messages.
        url: base URL, `http://host:port/v1`.
        deadline: seconds that it may be away.
        adapters: folder of the adapters that it must serve; None if it serves a plain model.

    Attributes:
        counts: since the start: `failed_requests`; `refused_requests`, which are not repeated;
            `reloaded_adapters`.
        outages: begin and end, by `time.time`, of the times that it was away.
        away_since: when it was found to be away, by `time.monotonic`; None while it is well.
    """

    def __init__(self, key: str, url: str, deadline: float, adapters: Path | None = None):
        self.name = f"{key} ({url})"
        self.counts = {"failed_requests": 0, "refused_requests": 0, "reloaded_adapters": 0}
        self.outages: list[tuple[float, float]] = []
        self.away_since: float | None = None
        self.url, self._deadline, self._adapters = url, deadline, adapters
        self._lock = asyncio.Lock()
        self._back = 0.0  # when it was last known to be well, in the clock's seconds
        self._given_up: ConnectionError | None = None

    def is_passing(self, error: Exception) -> bool:
        """Whether such a request may succeed later. A missing adapter may: the server is new."""
        if isinstance(error, openai.NotFoundError):
            return self._adapters is not None
        passing = (openai.APIConnectionError, openai.InternalServerError, UnusableReply)
        # the last one: inside a stream
        return isinstance(error, passing) or type(error) is openai.APIError

    def give_up(self, error: ConnectionError) -> None:
        """Let whoever waits for the server, or will, raise an error."""
        self._given_up = error

    async def survived(self, error: Exception, began: float, model: str, is_alone: bool) -> bool:
        """Whether a failed request can be repeated here. The only server is waited for, by one of
        the requests that failed together; one of several is looked at once.

        Args:
            error: what came instead of a reply.
            began: when the request was sent, by `time.monotonic`.
            model: name that it is for.
            is_alone: there is no other server.

        Raises ConnectionError if the only server stays away for the deadline, or does not take its
        adapter back, and if it was given up.
        """
        self.counts["failed_requests"] += 1
        async with self._lock:
            if self._given_up is not None:
                raise self._given_up
            if began < self._back:  # it failed in an outage that is over
                return True
            if not is_alone:
                well = self.away_since is None
                return well and await self._is_well(words(error), model, fatal=False)
            start = time.monotonic()
            while not await self._is_well(words(error), model):
                if time.monotonic() - start > self._deadline:
                    self._given_up = self._too_late(words(error))
                    raise self._given_up
                await asyncio.sleep(POLL_SECONDS)
            return True

    async def look(self, model: str) -> bool:
        """Whether a server, one of several, answers; then it serves the model, too.

        Raises ConnectionError if it was given up.
        """
        async with self._lock:
            return await self._is_well("", model, fatal=False)

    async def _is_well(self, cause: str, model: str, fatal: bool = True) -> bool:
        """Look once, and note what changed: `cause` says why, empty where no request failed.

        A server that refuses its adapter is away, or gives the run up where that is `fatal`.
        """
        if self._given_up is not None:
            raise self._given_up
        key = {"Authorization": f"Bearer {api_key()}"}
        try:
            async with httpx.AsyncClient(
                timeout=PROBE_TIMEOUT, trust_env=False, headers=key
            ) as client:
                await self._probe(client)
                await self._reload(client, model)
        except (httpx.HTTPError, ConnectionError) as error:
            if fatal and isinstance(error, ConnectionError):
                self._given_up = error
                raise
            self._note_away(
                cause,
                error,
                f"waiting, at most {self._deadline:.0f} s" if fatal else "the others do its work",
            )
            return False
        self._note_well(cause)
        return True

    def _note_away(self, cause: str, error: Exception, then: str) -> None:
        if self.away_since is not None:
            return
        self.away_since = time.monotonic()
        failed = f"a request failed ({cause}) and " if cause else ""
        logger.warning("%s: %sit is away (%s); %s", self.name, failed, words(error), then)

    def _note_well(self, cause: str) -> None:
        now = time.monotonic()
        if self.away_since is not None:
            seconds = now - self.away_since
            self.outages.append((time.time() - seconds, time.time()))
            logger.warning("%s: is back after %.1f s; repeating requests", self.name, seconds)
        elif cause:
            logger.warning("%s: a request failed (%s), but it answers; repeating", self.name, cause)
        if cause or self.away_since is not None:
            self._back = now
        self.away_since = None

    def _too_late(self, cause: str) -> ConnectionError:
        return ConnectionError(
            f"{self.name} does not answer, {self._deadline:.0f} s (server_deadline) after a "
            f"request failed ({cause}); see its log, start it again, and give the same command to "
            "continue from the last checkpoint"
        )

    @property
    def times_away(self) -> list[tuple[str, float, float]]:
        """URL, begin and end of each outage; the end of one that lasts is now."""
        now = time.time()
        times = [*self.outages]
        if self.away_since is not None:
            times.append((now - time.monotonic() + self.away_since, now))
        return [(self.url, *each) for each in times]

    async def _probe(self, client: httpx.AsyncClient) -> None:
        (await client.get(f"{self.url.removesuffix('/v1')}/health")).raise_for_status()

    async def _reload(self, client: httpx.AsyncClient, model: str) -> None:
        """Load a version that is not listed. Raises ConnectionError if a healthy server refuses."""
        if self._adapters is None or model in await self._served(client):
            return
        folder = self._adapters / model
        answer = await self._load(client, folder)
        if answer.is_success:
            self.counts["reloaded_adapters"] += 1
            logger.warning(
                "%s: did not serve %s; loaded it again from %s", self.name, model, folder
            )
        elif model not in await self._served(client):  # where another rank was not faster
            await self._probe(client)  # raises if it refuses because it is dying
            raise ConnectionError(refusal(folder, answer.text))

    async def _load(self, client: httpx.AsyncClient, folder: Path) -> httpx.Response:
        """The server's answer for an adapter; asked again for a time while it sees no folder."""
        body = {"lora_name": folder.name, "lora_path": str(folder)}
        deadline = time.monotonic() + VISIBLE_SECONDS
        while True:
            answer = await client.post(
                f"{self.url}/load_lora_adapter", json=body, timeout=LOAD_TIMEOUT
            )
            if NOT_SEEN not in answer.text or time.monotonic() > deadline:
                return answer
            await asyncio.sleep(POLL_SECONDS)

    async def _served(self, client: httpx.AsyncClient) -> set[str]:
        answer = (await client.get(f"{self.url}/models")).raise_for_status()
        return {card["id"] for card in answer.json()["data"]}


class Endpoint:
    """One vLLM server behind the OpenAI client: bounded concurrency, a deadline per request.

    Arguments are those of `ServerWatch`, and the recipe.
    """

    def __init__(self, key: str, url: str, args: REARLConfig, adapters: Path | None = None):
        self.watch = ServerWatch(key, url, args.server_deadline, adapters)
        self._slots = asyncio.Semaphore(args.max_concurrent_requests)
        self._client = async_openai_client(url, timeout=args.request_timeout, max_retries=0)

    async def complete(
        self, model: str, prompt_ids: list[int], extra: dict[str, Any], **body: Any
    ) -> Completion:
        """Completion of token ids. Raises openai.APIError and UnusableReply."""
        sent = self._body(model, prompt_ids, extra, body)
        async with self._slots:
            told = await self._client.post("/completions", cast_to=object, body=sent)
        return Completion.of(told)

    async def stream(
        self, model: str, prompt_ids: list[int], extra: dict[str, Any], **body: Any
    ) -> AsyncIterator[list[dict[str, float]]]:
        """Alternatives to the tokens of a completion, event by event. Closed early, the server
        stops generating.

        Raises openai.APIError and UnusableReply.
        """
        sent = self._body(model, prompt_ids, extra, body) | {"stream": True}
        settings: dict[str, Any] = {"stream": True, "stream_cls": openai.AsyncStream[object]}
        async with self._slots:
            stream = await self._client.post("/completions", cast_to=object, body=sent, **settings)
            # Stream and generator hold each other: left open, Python's collector ends them, perhaps
            # in the trainer's thread while this one is at it, and complains.
            async with stream, aclosing(stream._iterator) as events:
                async for event in events:
                    yield alternatives(event)

    async def close(self) -> None:
        await self._client.close()

    @staticmethod
    def _body(
        model: str, prompt_ids: list[int], extra: dict[str, Any], body: dict[str, Any]
    ) -> dict[str, Any]:
        return {"return_token_ids": True, **extra, "model": model, "prompt": prompt_ids, **body}


async def first_back(
    key: str, watches: Sequence[ServerWatch], cause: str, model: str, deadline: float
) -> None:
    """Wait until one of several servers that are all away is back, with the model.

    Raises ConnectionError after the deadline in seconds, for all who wait for them from then on.
    """
    start = time.monotonic()
    while not any(await asyncio.gather(*(watch.look(model) for watch in watches))):
        if time.monotonic() - start > deadline:
            error = ConnectionError(
                f"none of the {len(watches)} servers of {key} answers, {deadline:.0f} s "
                f"(server_deadline) after the last one failed ({cause}); see their logs, start "
                "them again, and give the same command to continue from the last checkpoint"
            )
            for watch in watches:
                watch.give_up(error)
            raise error
        await asyncio.sleep(POLL_SECONDS)


def pause(tried: int) -> float:
    """Seconds before a request is repeated that has failed so many times more than once."""
    return min(POLL_SECONDS * (2**tried - 1), MAX_PAUSE)


class EndedElsewhere(ConnectionError):
    """A failure of any kind, on any rank, that ended all of them at one point."""


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise the failure of any rank on all of them at one point, so that they can still write a
    checkpoint together.

    A ConnectionError stays as it is on its own rank. Everything else becomes EndedElsewhere,
    caused by what it was, and a failure that nobody foresaw is logged with its traceback.
    """
    from accelerate.utils import gather_object

    failure: Exception | None = None
    try:
        yield
    except ConnectionError as error:
        failure = error
    except Exception as error:
        failure = error
        if not isinstance(error, (openai.APIError, OSError, CancelledError)):
            logger.exception("this ends the run")
    message = failure and (str(failure) if isinstance(failure, ConnectionError) else words(failure))
    if messages := [message for message in gather_object([message]) if message]:
        raise (
            failure if isinstance(failure, ConnectionError) else EndedElsewhere(messages[0])
        ) from failure


def is_about_one(error: Exception) -> bool:
    """Whether a server may refuse one request alone, such as one over its context, so that its
    response is missing and all others can be had."""
    return isinstance(error, openai.APIStatusError) and error.status_code in (400, 413, 422)


def refused(name: str, error: openai.APIError) -> Exception:
    """The error for a request that a server refuses and would refuse again.

    A refusal that is not about this one request, but about the key or the model, is a
    ConnectionError with the way out.
    """
    if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
        remedy = "set VLLM_API_KEY to the key that it was started with"
    elif isinstance(error, openai.NotFoundError):
        remedy = "start it again with the recipe's model"
    else:
        return error
    return ConnectionError(
        f"{name} refuses requests ({words(error)}); {remedy}, and give the same command to continue"
    )


# Words of a server that does not take an adapter, and what is to be done then.
REFUSALS = {
    "max_lora_rank": "start it with a max_lora_rank of at least lora_r",
    NOT_SEEN: "it must see that folder under the same path, also from another host",
    "Not Found": "start it as rea_rl.vllm_server does: --enable-lora and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
    "not enabled": "start it with --enable-lora",
    "modules": "vLLM serves adapters of linear layers only: see lora_target_modules and "
    "lora_modules_to_save",
}


def refusal(folder: Path, answer: Any) -> str:
    """Message if the policy server does not take an adapter, with a remedy for its answer."""
    # whose message leaves out what FastAPI itself answers
    if isinstance(answer, openai.APIStatusError):
        answer = f"{answer.status_code}: {answer.response.text}"
    remedy = next(
        (remedy for words, remedy in REFUSALS.items() if words in str(answer)), "its log says more"
    )
    return f"the policy server refuses the adapter {folder} ({answer}); {remedy}"


def words(error: Exception) -> str:
    """Kind and message of an error in one line; time-outs of httpx have no message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
