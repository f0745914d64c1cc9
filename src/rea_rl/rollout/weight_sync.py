"""Bring the trained weights to the policy server.

`AdapterSync`, the default: only the adapter moves, as a file, under a name of its own for each
version. `FullSync`, if the whole model is trained: all weights move, over NCCL, in place of
those that the server had.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import openai
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers.integrations import is_deepspeed_zero3_enabled

from rea_core.clients import bypass_proxies, openai_client
from rea_rl.rollout.endpoint import (
    LOAD_TIMEOUT,
    NOT_SEEN,
    POLL_SECONDS,
    VISIBLE_SECONDS,
    ServerWatch,
    failing_together,
    first_back,
    refusal,
    refused,
    server_counts,
    words,
)
from rea_rl.rollout.probe import NoLogprobs, Probe
from rea_rl.rollout.server_answers import request
from rea_rl.trl_experimental import weight_transfer

if TYPE_CHECKING:
    from torch.nn import Module

    from rea_rl.trl_experimental import WeightTransferClient


logger = logging.getLogger(__name__)

T = TypeVar("T")
VERSION_PREFIX = "policy-"


class AdapterSync:
    """Saves the current adapter and hot-swaps it on all policy servers that are alive.

    A version is called `policy-<step>-<run>-<digest of its weights>`. vLLM's prefix cache is keyed
    by the adapter's name, so a name must never mean two sets of weights, not even after a run
    was resumed from an earlier step. The run's part is a digest of `directory`: several runs may
    share a server, and none unloads another one's.

    Several servers get a version at once, and nobody samples from it before all have it. One that
    is away is left out, and gets the version before its next request (`rollout.servers`).

    Args:
        servers: base URL of the policy server, `http://host:port/v1`, or of each of several,
            started with runtime LoRA loading.
        directory: where versions are written; the servers must see it under the same path. Kept are
            the newest, and those that are still sampled from.
        timeout: seconds for one load.
        deadline: seconds that all servers may be away.
        retries: times that a failed exchange with a server is repeated.
        probe: shows once that the adapter has an effect on a server; None: that is not checked.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        directory: str | Path,
        timeout: float = LOAD_TIMEOUT,
        deadline: float = 600.0,
        retries: int = 5,
        probe: Probe | None = None,
    ):
        self.directory = Path(directory).resolve()
        self._deadline = deadline
        self._run = xxhash.xxh3_64_hexdigest(str(self.directory).encode())[:6]
        self._servers = [
            _AdapterServer(
                ServerWatch("policy_server", url, deadline, self.directory),
                openai_client(url, timeout=timeout, max_retries=0),
                self.directory,
                retries,
                copy.copy(probe),
            )
            for url in ([servers] if isinstance(servers, str) else servers)
        ]

    def publish(self, model: PeftModel, step: int, in_use: Set[str] = frozenset()) -> str:
        """Make the servers sample from `model` as it is now. Called on all ranks; returns the
        version's name.

        Args:
            model: policy with its adapter.
            step: optimizer steps done.
            in_use: older versions with requests under way, which stay; a server needs `max_loras`
                for all of them and the new one.

        Raises ConnectionError, on all ranks, with the server's answer if one refuses the adapter,
        or if all stay away.
        """
        name = [None]
        with failing_together(), _gathered(model):
            if PartialState().is_main_process:
                name[0] = self._save(model, step)
        with failing_together():
            if PartialState().is_main_process:
                for server in self._swap(name[0], in_use):
                    server.check_effect(model, name[0])
        return broadcast_object_list(name)[0]

    def check_weights(self, model: PeftModel) -> None:
        """Raise ValueError for a server that has other weights of the base model. Called on all
        ranks."""
        if PartialState().is_main_process:
            for server in self._servers:
                server.check_weights(model)

    def cancel(self) -> None:
        """Wait for the servers no longer: the run is being ended."""
        for server in self._servers:
            server.watch.give_up(ConnectionError("the run is being ended"))

    @property
    def counts(self) -> dict[str, Any]:
        """Failures of the policy servers, as metrics; they are met on the first rank only."""
        return server_counts([server.watch for server in self._servers])

    def _save(self, model: PeftModel, step: int) -> str:
        # of a run that was killed while it wrote
        for left_over in self.directory.glob(".unfinished-*"):
            shutil.rmtree(left_over)
        unfinished = self.directory / f".unfinished-{os.getpid()}"
        # that the server computes in: it would round a float32 adapter of a bfloat16 model itself
        dtype = model.dtype
        trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
        weights = {n: w.detach().to(dtype) for n, w in trained.items()}
        model.save_pretrained(unfinished, save_embedding_layers=False, state_dict=weights)
        with (unfinished / "adapter_model.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()  # of 81 MB in 10 ms
        version = self.directory / f"{VERSION_PREFIX}{step}-{self._run}-{digest[:8]}"
        if version.exists():
            shutil.rmtree(unfinished)
        else:
            _flush(*unfinished.iterdir(), unfinished)
            os.replace(unfinished, version)
            _flush(self.directory)
        return version.name

    def _swap(self, name: str, in_use: Set[str]) -> list[_AdapterServer]:
        """Load a version on all servers that are alive, and then unload older ones; those servers.

        Raises ConnectionError if one refuses it, and then unloads it from the others.
        """
        if len(self._servers) == 1:
            self._servers[0].load(name, is_alone=True)
            swapped = self._servers
        else:
            swapped = self._load_everywhere(name)
        mark = f"-{self._run}-"
        _together([partial(server.unload_but, {name, *in_use}, mark) for server in swapped])
        for folder in self.directory.glob(f"{VERSION_PREFIX}*"):
            if folder.name != name and folder.name not in in_use:
                shutil.rmtree(folder)
        return swapped

    def _load_everywhere(self, name: str) -> list[_AdapterServer]:
        try:
            loaded = _together([partial(s.load, name, is_alone=False) for s in self._servers])
            if not any(loaded):
                watches = [server.watch for server in self._servers]
                cause = "a version was to be loaded"
                asyncio.run(first_back("policy_server", watches, cause, name, self._deadline))
                loaded = [watch.away_since is None for watch in watches]
        except ConnectionError:
            for server in self._servers:
                server.take_back(name)
            raise
        return [server for server, is_there in zip(self._servers, loaded, strict=True) if is_there]


@dataclass
class _AdapterServer:
    """One policy server: what is known about it, its client, and a probe of its own."""

    watch: ServerWatch
    client: openai.OpenAI
    directory: Path
    retries: int
    probe: Probe | None

    def load(self, name: str, is_alone: bool) -> bool:
        """Load a version; begin again after the only server was away. False for one of several
        that is away, and is left alone."""
        is_away = self.watch.away_since is not None and not is_alone
        if is_away and not asyncio.run(self.watch.look(name)):
            return False
        for tried in range(self.retries + 1):
            began = time.monotonic()
            if (error := self._try_to_load(name, tried)) is None:
                return True
            if not asyncio.run(self.watch.survived(error, began, name, is_alone)):
                return False
        raise AssertionError("the last try has an error of its own")

    def unload_but(self, kept: Set[str], mark: str) -> None:
        """Unload the run's versions, whose names have its mark, those from before an interruption
        included. What is unloaded already is left as it is; so is a server that is away."""
        try:
            for old in {name for name in self._versions() if mark in name} - kept:
                self._unload(old)
        except (openai.APIConnectionError, openai.InternalServerError) as error:
            logger.warning(
                "%s: old versions are unloaded with the next (%s)", self.watch.name, error
            )
        except openai.APIError as error:
            raise refused(self.watch.name, error) from error

    def take_back(self, name: str) -> None:
        """Unload a version that another server does not take, where this one has it."""
        with suppress(openai.APIError):
            if name in self._versions():
                self._unload(name)

    def check_weights(self, model: PeftModel) -> None:
        """Raise ValueError for other weights of the base model, as far as log-probs are told."""
        if self.probe is None or is_deepspeed_zero3_enabled():
            return
        try:
            self.probe.check_weights(model, self.client, self.watch.url)
        except (NoLogprobs, openai.APIError) as error:
            logger.warning("%s: its weights are not checked: %s", self.watch.name, words(error))

    def check_effect(self, model: PeftModel, name: str) -> None:
        """Once the adapter can be told from numerics, raise ConnectionError if the server's
        answers do not show it."""
        # which has the weights in pieces, on all ranks
        if self.probe is None or is_deepspeed_zero3_enabled():
            return
        try:
            if self.probe.check(model, self.client, name):
                self.probe = None
        except NoLogprobs as error:
            logger.warning("%s: the effect of adapters is not checked: %s", self.watch.name, error)
            self.probe = None
        except openai.APIError as error:
            logger.warning(
                "%s: the effect of %s is checked at the next version (%s)",
                *(self.watch.name, name, error),
            )

    def _try_to_load(self, name: str, tried: int) -> openai.APIError | None:
        """The error of a try that may be repeated. Raises ConnectionError for any other, and after
        the last try."""
        try:
            if name not in self._versions():
                self._load(name)
        except (openai.APIConnectionError, openai.InternalServerError) as error:
            if tried == self.retries:
                raise ConnectionError(
                    f"{self.watch.name} failed {tried + 1} times: "
                    f"{refusal(self.directory / name, error)}"
                ) from error
            return error
        except openai.APIError as error:
            raise refused(self.watch.name, error) from error
        return None

    def _load(self, name: str) -> None:
        """Load a version; asked again, for a bounded time, while the folder is not seen."""
        deadline = time.monotonic() + VISIBLE_SECONDS
        while True:
            try:
                return self._post(
                    "load_lora_adapter", lora_name=name, lora_path=str(self.directory / name)
                )
            except (
                openai.BadRequestError,
                openai.NotFoundError,
                openai.UnprocessableEntityError,
            ) as error:
                if NOT_SEEN not in str(error) or time.monotonic() > deadline:
                    raise ConnectionError(refusal(self.directory / name, error)) from error
            time.sleep(POLL_SECONDS)

    def _unload(self, name: str) -> None:
        try:
            self._post("unload_lora_adapter", lora_name=name)
        except openai.NotFoundError:
            logger.warning(
                "%s: has no %s any more, which was to be unloaded", self.watch.name, name
            )

    def _versions(self) -> set[str]:
        served = {model.id for model in self.client.models.list()}
        return {name for name in served if name.startswith(VERSION_PREFIX)}

    def _post(self, route: str, **body: str) -> None:
        self.client.post(f"/{route}", body=body, cast_to=str)


def _together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Results of calls that run at once, in threads. Raises the error of the first that failed."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
    return [future.result() for future in futures]


class FullSync:
    """Sends all weights to the policy server over NCCL: vLLM's weight transfer, by TRL's client for
    it.

    The server runs on other GPUs than the trainer, was started with `full_weights`, and serves one
    policy at a time, so that no request may be under way meanwhile (`max_rollout_lag: 0`). One that
    was started again has the base model's
    weights: responses drawn before the next `publish` come from those, with their log-probs, and
    that `publish` fails.

    Args:
        server: base URL of the policy server, `http://host:port/v1`.
        model_name: name under which it serves the policy, for any weights.
        timeout: seconds for joining the NCCL group, and for one transfer.

    Raises ValueError for a server that takes no weights, and with ZeRO-3; ConnectionError if none
    answers.
    """

    counts: dict[str, float] = {}  # failures are not repeated, so there is nothing to count

    def __init__(self, server: str, model_name: str, timeout: float = 600.0):
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "use_peft is false, and ZeRO-3 has the weights in pieces; launch with zero2 or ddp"
            )
        try:
            request(server, "/get_world_size", key=None)
        except ValueError as error:
            raise ValueError(
                f"use_peft is false, but policy_server ({server}) takes no weights; start it with "
                f"--full_weights true, on another GPU than the trainer's ({error})"
            ) from error
        bypass_proxies(server)  # TRL's client asks them
        self._server, self._model_name, self._timeout = server, model_name, timeout
        self._client: WeightTransferClient | None = None

    def publish(self, model: Module, step: int, in_use: Set[str] = frozenset()) -> str:
        """Make the server sample from `model` as it is now. Called on all ranks; returns the name
        to ask for.

        Raises ConnectionError, on all ranks, if the server cannot take the weights.
        """
        assert not in_use, "requests are under way"
        with failing_together():
            if PartialState().is_main_process:
                self._send(model)
        return self._model_name

    def cancel(self) -> None:
        """Nothing is waited for."""

    def _send(self, model: Module) -> None:
        try:
            if self._client is None:
                self._client = self._join(model)
            self._client.pause()  # also empties the prefix cache, which knows the old weights
            self._client.send_weights(
                (name, weight.detach()) for name, weight in model.named_parameters()
            )
            self._client.resume()
        # TRL's client raises RuntimeError, its HTTP library's errors, and bare Exception
        except Exception as error:
            raise ConnectionError(
                f"policy_server ({self._server}) does not take the policy's weights: {error} It "
                "must run on other GPUs than the trainer, and be started with --full_weights true"
            ) from error

    def _join(self, model: Module) -> WeightTransferClient:
        """Form an NCCL group with the server, which learns names, types and shapes to come."""
        weights = list(model.named_parameters())
        manifest = {
            "names": [name for name, _ in weights],
            "dtype_names": [str(weight.dtype).removeprefix("torch.") for _, weight in weights],
            "shapes": [list(weight.shape) for _, weight in weights],
        }
        client = weight_transfer(self._server.removesuffix("/v1"), manifest, int(self._timeout))
        client.init_weight_transfer()
        return client


def _flush(*paths: Path) -> None:
    """Bring files and folders to the disk: a server on another host must find them whole."""
    for path in paths:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def _gathered(model: PeftModel) -> Iterator[None]:
    """Whole adapter weights on every rank, also if ZeRO-3 has them in pieces."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([p for p in model.parameters() if p.requires_grad]):
        yield
