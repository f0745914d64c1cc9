"""Bring the trained weights to the policy server.

`AdapterSync`, the default: only the adapter moves, as a file, under a name of its own for each
version. `FullSync`, if the whole model is trained: all weights move, over NCCL, in place of
those that the server had.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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
    refusal,
    refused,
)
from rea_rl.rollout.probe import NoLogprobs, Probe
from rea_rl.vllm_server import request

if TYPE_CHECKING:
    import torch
    from trl.experimental.async_grpo.weight_transfer import WeightTransferClient


logger = logging.getLogger(__name__)

VERSION_PREFIX = "policy-"


class AdapterSync:
    """Saves the current adapter and hot-swaps it on the policy server.

    A version is called `policy-<step>-<run>-<digest of its weights>`. vLLM's prefix cache is keyed
    by the adapter's name, so a name must never mean two sets of weights, not even after a run
    was resumed from an earlier step. The run's part is a digest of `directory`: several runs may
    share a server, and none unloads another one's.

    Args:
        server: base URL of the policy server, `http://host:port/v1`, started with runtime LoRA
            loading.
        directory: where versions are written; the server must see it under the same path. Kept are
            the newest, and those that are still sampled from.
        timeout: seconds for one load.
        deadline: seconds that the server may be away.
        retries: times that a failed exchange with the server is repeated.
        probe: shows once that the adapter has an effect on the server; None: that is not checked.
    """

    def __init__(
        self,
        server: str,
        directory: str | Path,
        timeout: float = LOAD_TIMEOUT,
        deadline: float = 600.0,
        retries: int = 5,
        probe: Probe | None = None,
    ):
        self.directory = Path(directory).resolve()
        self._watch = ServerWatch("policy_server", server, deadline, self.directory)
        self._retries, self._probe = retries, probe
        self._run = xxhash.xxh3_64_hexdigest(str(self.directory).encode())[:6]
        self._client = openai_client(server, timeout=timeout, max_retries=0)

    def publish(self, model: PeftModel, step: int, in_use: Set[str] = frozenset()) -> str:
        """Make the server sample from `model` as it is now. Called on all ranks; returns the
        version's name.

        Args:
            model: policy with its adapter.
            step: optimizer steps done.
            in_use: older versions with requests under way, which stay; the server needs `max_loras`
                for all of them and the new one.

        Raises ConnectionError, on all ranks, with the server's answer if it refuses the adapter, or
        if it stays away.
        """
        name = [None]
        with failing_together(), _gathered(model):
            if PartialState().is_main_process:
                name[0] = self._save(model, step)
        with failing_together():
            if PartialState().is_main_process:
                self._swap_repeatedly(name[0], in_use)
                self._check_effect(model, name[0])
        return broadcast_object_list(name)[0]

    def cancel(self) -> None:
        """Wait for the server no longer: the run is being ended."""
        self._watch.give_up(ConnectionError("the run is being ended"))

    @property
    def counts(self) -> dict[str, float]:
        """Failures of the policy server that were met here, as metrics; not 0 on the first rank
        only."""
        return {f"servers/{key}": value for key, value in self._watch.counts.items()}

    def _save(self, model: PeftModel, step: int) -> str:
        # of a run that was killed while it wrote
        for left_over in self.directory.glob(".unfinished-*"):
            shutil.rmtree(left_over)
        unfinished = self.directory / f".unfinished-{os.getpid()}"
        # that the server computes in: it would round a float32 adapter of a bfloat16 model itself
        dtype = model.dtype
        weights = {n: w.detach().to(dtype) for n, w in model.named_parameters() if w.requires_grad}
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

    def _swap_repeatedly(self, name: str, in_use: Set[str]) -> None:
        """Swap, and begin again after the server was away: what is loaded or unloaded already is
        left as it is."""
        for tried in range(self._retries + 1):
            began = time.monotonic()
            try:
                return self._swap(name, in_use)
            except (openai.APIConnectionError, openai.InternalServerError) as error:
                if tried == self._retries:
                    raise ConnectionError(
                        f"{self._watch.name} failed {tried + 1} times: "
                        f"{refusal(self.directory / name, error)}"
                    ) from error
                asyncio.run(self._watch.recover(error, began, name))
            except openai.APIError as error:
                raise refused(self._watch.name, error) from error

    def _swap(self, name: str, in_use: Set[str]) -> None:
        served = self._served_versions()
        if name not in served:
            self._load(name)
        for old in served - {name} - in_use:
            try:
                self._post("unload_lora_adapter", lora_name=old)
            except openai.NotFoundError:
                logger.warning(
                    "%s: has no %s any more, which was to be unloaded", self._watch.name, old
                )
        for folder in self.directory.glob(f"{VERSION_PREFIX}*"):
            if folder.name != name and folder.name not in in_use:
                shutil.rmtree(folder)

    def _load(self, name: str) -> None:
        """Load a version; asked again, for a bounded time, while the server does not see its
        folder."""
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

    def _check_effect(self, model: PeftModel, name: str) -> None:
        """Once the adapter can be told from numerics, raise ConnectionError if the server's
        answers do not show it."""
        # which has the weights in pieces, on all ranks
        if self._probe is None or is_deepspeed_zero3_enabled():
            return
        try:
            if self._probe.check(model, self._client, name):
                self._probe = None
        except NoLogprobs as error:
            logger.warning("%s: the effect of adapters is not checked: %s", self._watch.name, error)
            self._probe = None
        except openai.APIError as error:
            logger.warning(
                "%s: the effect of %s is checked at the next version (%s)",
                self._watch.name,
                name,
                error,
            )

    def _served_versions(self) -> set[str]:
        """The run's versions on the server, those from before an interruption included."""
        served = {model.id for model in self._client.models.list()}
        return {
            name for name in served if name.startswith(VERSION_PREFIX) and f"-{self._run}-" in name
        }

    def _post(self, route: str, **body: str) -> None:
        self._client.post(f"/{route}", body=body, cast_to=str)


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

    def publish(self, model: torch.nn.Module, step: int, in_use: Set[str] = frozenset()) -> str:
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

    def _send(self, model: torch.nn.Module) -> None:
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

    def _join(self, model: torch.nn.Module) -> WeightTransferClient:
        """Form an NCCL group with the server, which learns names, types and shapes of what it
        will get."""
        from trl.experimental.async_grpo.vllm_client import VLLMClient
        from trl.experimental.async_grpo.weight_transfer import WeightTransferClient

        weights = list(model.named_parameters())
        manifest = {
            "names": [name for name, _ in weights],
            "dtype_names": [str(weight.dtype).removeprefix("torch.") for _, weight in weights],
            "shapes": [list(weight.shape) for _, weight in weights],
        }
        client = WeightTransferClient(
            VLLMClient(self._server.removesuffix("/v1")), manifest, int(self._timeout)
        )
        client.init_weight_transfer()
        return client


def _flush(*paths: Path) -> None:
    """Bring files and folders to the disk, so that a server on another host finds all of what it
    finds."""
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
