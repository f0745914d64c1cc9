"""The places of a study's runs: servers that run already, or GPUs on which the study starts
its own.

A place takes one run at a time. With servers of its own it keeps them until the study ends, since
all runs share a base.
"""

from __future__ import annotations

import os
import queue
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from rea_rl.run.placement import KEYS

if TYPE_CHECKING:
    from rea_rl.study.rows import Run
    from rea_rl.vllm_server import VLLMServer

CPU = "cpu"  # in place of a GPU
FIRST_PORT = 12400  # of servers that a study starts itself: two for each place
PLANNED = (*KEYS, "NUM_GPUS", "NUM_PROCESSES", "POLICY_TP", "REFLECTION_TP")
# Shares of a GPU that vLLM asks to be free at its start; the caches have a fixed size
# (--kv_cache_gib).
MEMORY_SHARE = 0.05


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """A command line with these values."""
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


@dataclass
class Place:
    """Addresses of a policy and a reflection server, and the GPU that they and the trainer
    share."""

    policy_server: str
    reflection_server: str
    gpu: str | None = None  # None: the servers are not the study's own
    train_gpu: str | None = None  # of the trainer alone; None: all that are visible
    server_flags: list[str] = field(default_factory=list)
    servers: dict[str, VLLMServer] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a training process here."""
        gpu = self.gpu or self.train_gpu
        if gpu is None:
            return dict(os.environ)
        # wishes of the study's own plan are not those of a script that sees one GPU
        kept = {key: value for key, value in os.environ.items() if key not in PLANNED}
        return kept | {"CUDA_VISIBLE_DEVICES": "" if gpu == CPU else gpu}

    @property
    def flags(self) -> list[str]:
        """Flags of a training command: its servers, and without a GPU its type of numbers."""
        places = {"policy_server": self.policy_server, "reflection_server": self.reflection_server}
        on_cpu = {"use_cpu": "true", "bf16": "false", "dtype": "float32"}
        return as_flags(places | (on_cpu if self.gpu == CPU else {}))

    def ready(self, run: Run, model: str, recipe_set: str) -> Place:
        """Start the servers that a run needs and that are not running yet. Raises
        ConnectionError if one does not start."""
        if self.gpu is None:
            return self
        from rea_core.recipe import read_recipe

        recipe = f"recipes/{recipe_set}/config_{run.row.variant or 'ReflectRL'}.yaml"
        roles = ["policy"]
        if run.row.variant and read_recipe(recipe).get("revision"):
            roles.append("reflection")
        missing = [role for role in roles if role not in self.servers]
        for role in missing:
            recipe = f"recipes/{recipe_set}/config_ReflectRL.yaml"
            self.servers[role] = self._start(role, recipe, model)
        for role in missing:
            self.servers[role].wait_ready()
        return self

    def _start(self, role: str, recipe: str, model: str) -> VLLMServer:
        from rea_rl.vllm_server import VLLMServer, parse_args

        url = self.policy_server if role == "policy" else self.reflection_server
        port = url.removesuffix("/v1").rpartition(":")[2]
        flags = {"recipe": recipe, "role": role, "port": port, "device": "cpu"}
        if self.gpu != CPU:
            flags |= {"device": "cuda", "gpu": self.gpu, "gpu_memory_utilization": MEMORY_SHARE}
        if role == "policy":
            flags["model"] = model
        config, _ = parse_args(as_flags(flags) + self.server_flags)
        server = VLLMServer(config)
        server.start()
        return server

    def stop(self) -> None:
        """Stop the servers that were started here."""
        for server in self.servers.values():
            server.stop()
        self.servers.clear()


def make_places(args: Namespace) -> queue.Queue[Place]:
    """Places of a study: `--jobs` on the given servers, or `--runs_per_gpu` on each of `--gpus`."""
    places: queue.Queue[Place] = queue.Queue()
    if not args.gpus:
        given = args.policy_server, args.reflection_server, args.train_gpus or [None]
        for policy, reflection, gpu in islice(zip(*map(cycle, given), strict=True), args.jobs):
            places.put(Place(policy, reflection, train_gpu=gpu))
        return places
    flags = {"kv_cache_gib": args.kv_cache_gib, "compile": str(args.compile).lower()}
    flags |= {"max_model_len": args.server_context} if args.server_context else {}
    for i in range(args.runs_per_gpu):
        for j, gpu in enumerate(args.gpus):
            port = FIRST_PORT + 2 * (i * len(args.gpus) + j)
            urls = (f"http://127.0.0.1:{number}/v1" for number in (port, port + 1))
            # Responses without seeds of their own differ from server to server.
            places.put(Place(*urls, gpu=gpu, server_flags=as_flags(flags | {"seed": port})))
    return places
