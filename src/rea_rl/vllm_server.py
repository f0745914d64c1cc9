"""Start one vLLM server the way REA-RL needs it, on a GPU or on the CPU, and check servers that are
already running.

    python -m rea_rl.vllm_server --role policy --model model/Miniature-LRM --port 12345
    python -m rea_rl.vllm_server --role reflection --recipe recipes/miniature/config_ReflectRL.yaml
    # until a server started elsewhere is ready
    python -m rea_rl.vllm_server --role policy --recipe RECIPE --wait
    # check, and print the command of vLLM
    python -m rea_rl.vllm_server --role policy --recipe RECIPE --dry_run

It stays in the foreground; SIGTERM or SIGINT stops vLLM too. A vLLM that ends by itself is started
again, at most `--max_restarts` times an hour, and the reason is logged; one that hangs is left
alone. `--recipe` takes model, address and LoRA rank from a training recipe, so that they are
written down once; of a list of addresses, `--index` says which one, from 0. Options that this
program does not know are passed on to vLLM.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import psutil

from rea_core import moved
from rea_core.checks import check_output_folder, check_sockets, expand_paths, is_a, user_name
from rea_core.clients import is_loopback, server_url, split_url
from rea_core.command import command
from rea_core.models import (
    DTYPES,
    LORA_RANKS,
    check_context,
    check_model,
    resolve_device,
    resolve_dtype,
)
from rea_core.options import (
    Count,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    check_options,
    one_of,
    option,
    required,
)
from rea_core.ownership import own_file, own_port
from rea_rl.rollout.server_answers import POLL_SECONDS, check_server, request

__getattr__ = moved.names_of(__name__)  # names that have left this module
logger = logging.getLogger(__name__)

ROLES = ("policy", "reflection")
RECIPE_NUMBERS = {"lora_r": int, "max_rollout_lag": int}
RECIPE_KEYS = {  # which model is served, and where
    "policy": ("model_name_or_path", "policy_server"),
    "reflection": ("reflection_model", "reflection_server"),
}
# Graphs for decoding are captured, but nothing is compiled.
FAST_START = {
    "mode": 0,
    "cudagraph_mode": "FULL_DECODE_ONLY",
    "cudagraph_specialize_lora": False,
    "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512],
}
ERROR_LINE = re.compile(r"^(\([^)]*\) )?(ERROR .*)?(\w+\.)*\w*(Error|Exception)(: |$)|\berror: ")
GPU_NAME = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")  # as CUDA_VISIBLE_DEVICES takes them
PORT_REMEDIES = {
    errno.EADDRINUSE: "stop what listens there, or choose another: --port, or policy_server and "
    "reflection_server of the recipe",
    errno.EACCES: "choose one from 1024",
    errno.EADDRNOTAVAIL: "give an address that this machine has, such as 127.0.0.1",
    errno.EAFNOSUPPORT: "this machine has no such kind of address; give 127.0.0.1",
    socket.EAI_NONAME: "no such host is known here; give 127.0.0.1, or an address of this machine",
}
STOP_SECONDS = 30.0  # vLLM itself needs less than a second, but a request under way may hold it
LOG_TAIL_LINES = 15
# seconds in which restarts are counted: a run of weeks may meet more of them than one that cannot
# run
RESTART_WINDOW = 3600.0


@dataclass
class ServerConfig:
    """One vLLM server.

    The policy server takes LoRA adapters, or all weights, while it runs, and reports the log-probs
    that sampling used; the reflection server reports alternatives to each token. Raises ValueError
    for values that no server could start with.
    """

    model: str = required("Folder of a model or Hub id; also the name under which it is served.")
    port: int = required("Port to listen on.")
    role: Annotated[Literal["policy", "reflection"], one_of(*ROLES)] = required(
        "Role of the server."
    )
    host: str = option("127.0.0.1", "Address to listen on; others than this want a key.")
    max_model_len: PositiveInt | None = option(None, "Context in tokens; default: the model's.")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU if there is one.")
    gpu: str = option("0", "GPU index or UUID; several, with commas, share the model.")
    max_lora_rank: int = option(16, f"Policy: one of {', '.join(map(str, LORA_RANKS))}.")
    max_loras: PositiveInt = option(
        2, "Policy: adapters held at once; the newest, and each older one with requests."
    )
    kv_cache_gib: PositiveInt | None = option(
        None,
        "Size of the key-value cache in GiB; default: 1 on the CPU, the rest of the share on a "
        "GPU.",
    )
    compile: bool = option(
        True, "GPU: compile the model; false: ready a minute sooner, and a little slower."
    )
    cpu_threads: PositiveInt | None = option(
        None, "CPU: threads; default: half of the cores, since two servers share them."
    )
    full_weights: bool = option(
        False,
        "Policy: take all weights over NCCL (recipes with use_peft: false) in place of adapters.",
    )
    gpu_memory_utilization: PositiveShare = option(0.9, "GPU: share of its memory to take.")
    dtype: Annotated[str, one_of(*DTYPES)] = option(
        "auto", "Type of the weights, as vLLM's option."
    )
    log_dir: str = option("logs", "Folder of the server's log.")
    startup_timeout: PositiveFloat = option(600.0, "Seconds until the server must be ready.")
    max_restarts: Count = option(
        3, "Times an hour that this program starts vLLM again after it ended by itself."
    )
    api_key: str | None = field(
        default_factory=lambda: os.environ.get("VLLM_API_KEY"),
        metadata={"help": "Key that requests must carry; default: the variable VLLM_API_KEY."},
    )
    enforce_eager: bool | None = option(
        None, "No graph capture: slower, but starts sooner; default: on the CPU only."
    )
    extra_args: list[str] = option([], "Further options of vLLM.")

    def __post_init__(self) -> None:
        check_options(self)
        if not 0 < self.port < 65536:
            raise ValueError(f"port is {self.port}; it must be between 1 and 65535")
        if self.full_weights and (
            self.role != "policy" or self.device == "cpu" or not is_loopback(self.host)
        ):
            raise ValueError(
                "full_weights is for the policy server on a GPU, listening on 127.0.0.1: what "
                f"sends weights needs no key, and they move over NCCL; but role is {self.role}, "
                f"device {self.device}, host {self.host}"
            )
        if not all(GPU_NAME.fullmatch(name) for name in self.gpu.split(",")):
            raise ValueError(
                f"gpu is {self.gpu!r}; give indices or UUIDs, with commas, and for the CPU device: "
                "cpu"
            )
        if self.max_lora_rank not in LORA_RANKS:
            raise ValueError(
                f"max_lora_rank is {self.max_lora_rank}; vLLM takes "
                f"{', '.join(map(str, LORA_RANKS))}"
            )
        if not is_loopback(self.host) and not self.api_key:
            raise ValueError(
                f"host is {self.host}, which other machines may reach; give api_key (or set "
                "VLLM_API_KEY), or listen on 127.0.0.1"
            )

    @property
    def base_url(self) -> str:
        """Address of the server for an OpenAI client."""
        return server_url(self.host, self.port)


class VLLMServer:
    """A vLLM process with its children, its log, and its end.

        config = ServerConfig(model="model/Miniature-LRM", port=12345, role="policy")
        with VLLMServer(config) as server:
            client = openai.OpenAI(base_url=server.base_url)

    Raises ValueError if the model's folder cannot be served.
    """

    def __init__(self, config: ServerConfig):
        check_model(config.model)
        check_context(config.model, config.max_model_len)
        check_output_folder(config.log_dir, "log_dir")
        self.config = config
        self.base_url = config.base_url
        self.log_path = Path(config.log_dir) / f"vllm_{config.role}_{config.port}.log"
        self._process: subprocess.Popen | None = None
        self._owned = ExitStack()  # port and log
        self._started = 0.0
        self._num_starts = 0

    @property
    def pid(self) -> int | None:
        """Of the vLLM process, which leads a process group of its own; None before `start`."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start vLLM and return at once; it ends with the calling thread. Raises ValueError if
        port or log are taken."""
        assert self._process is None, "started twice"
        check_sockets()
        # Port first: vLLM listens there much later, and two may do so at once.
        self._owned.enter_context(own_port(self.config.port))
        check_port_free(self.config.host, self.config.port)
        self._owned.enter_context(own_file(self.log_path, "wait, or give another port or log_dir"))
        device = resolve_device(self.config.device)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("a" if self._num_starts else "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                server_command(self.config, device),
                env={**os.environ, **server_environment(self.config, device)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches us, and we stop the server when nobody needs it any more
                start_new_session=True,
                preexec_fn=_end_with_parent,  # also when we are killed
            )
        self._started = time.monotonic()
        self._num_starts += 1
        place = f"GPU {self.config.gpu}" if device == "cuda" else "the CPU"
        logger.info(
            "%s server: %s on %s, log %s", self.config.role, self.config.model, place, self.log_path
        )

    def wait_ready(self) -> None:
        """Return once the server answers and serves what was asked for.

        Raises ConnectionError, which quotes the log, if vLLM ends or `startup_timeout` passes
        first.
        """
        assert self._process is not None, "not started"
        while not self._is_healthy():
            if time.monotonic() - self._started > self.config.startup_timeout:
                raise ConnectionError(
                    self._failure(f"was not ready within {self.config.startup_timeout:.0f} s")
                )
            time.sleep(POLL_SECONDS)
        try:
            check_server(
                self.base_url, self.config.model, self.config.max_model_len, key=self.config.api_key
            )
        finally:  # it explains what else may be wrong
            self._check_alone()
        logger.info(
            "%s server: ready after %.0f s", self.config.role, time.monotonic() - self._started
        )

    def wait(self) -> NoReturn:
        """Wait until vLLM ends by itself, which is a ConnectionError that quotes its log."""
        assert self._process is not None, "not started"
        code = self._process.wait()
        raise ConnectionError(self._failure(f"ended with exit code {code}"))

    def stop(self) -> None:
        """Stop vLLM and all that it started; after STOP_SECONDS kill it, by process id."""
        with self._owned:
            if self._process is None:
                return
            self._process.terminate()
            for member in self._wait_gone():
                what = "%s server: killing process %d, which did not stop"
                logger.warning(what, self.config.role, member.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            self._wait_gone()
            self._process = None

    def supervise(self) -> NoReturn:
        """Wait, and start vLLM again when it ends by itself, `max_restarts` times an hour.
        Raises ConnectionError after that."""
        restarts: list[float] = []
        while True:
            try:
                if self._process is None:
                    self.start()
                    self.wait_ready()
                self.wait()
            except ConnectionError as error:
                self.stop()  # the rest of it; its port and memory are free afterwards
                now = time.monotonic()
                restarts = [begun for begun in restarts if now - begun < RESTART_WINDOW] + [now]
                if len(restarts) > self.config.max_restarts:
                    raise
                limits = len(restarts), self.config.max_restarts
                logger.warning(
                    "%s\n%s server: restart %d of at most %d in an hour",
                    error,
                    self.config.role,
                    *limits,
                )

    def __enter__(self) -> VLLMServer:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _is_healthy(self) -> bool:
        """Whether the server answers. Raises ConnectionError if the process has ended."""
        if (code := self._process.poll()) is not None:
            raise ConnectionError(self._failure(f"ended with exit code {code}"))
        try:
            request(self.base_url, "/health", self.config.api_key)
        except ConnectionError:
            return False
        return True

    def _check_alone(self) -> None:
        """Raise ConnectionError if another process listens on the port, too."""
        # ours first: a process of ours that ends now is no other one
        ours = {self.pid, *(member.pid for member in self._group())}
        if others := listeners(self.config.port) - ours:
            raise ConnectionError(
                self._failure(f"shares port {self.config.port} with process {min(others)}")
            )

    def _wait_gone(self) -> list[psutil.Process]:
        """Wait until no process of the server is left, at most STOP_SECONDS; those that are."""
        deadline = time.monotonic() + STOP_SECONDS
        while (members := self._group()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)
        return members

    def _group(self) -> list[psutil.Process]:
        """Living members of the server's process group, also if their parent is gone."""
        self._process.poll()  # a child that nobody waited for would look alive
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if (
                    os.getpgid(process.pid) == self._process.pid
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    members.append(process)
        return members

    def _failure(self, what: str) -> str:
        """One message: what happened, the first error of the log and its end."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        cause = [
            f"first error: {line}" for line in lines[:-LOG_TAIL_LINES] if ERROR_LINE.search(line)
        ][:1]
        what = (
            f"the {self.config.role} server for {self.config.model} {what}; the end of its log "
            f"{self.log_path}:"
        )
        return "\n    ".join([what, *cause, *lines[-LOG_TAIL_LINES:]])


_LIBC = ctypes.CDLL(None)  # loaded before a fork, where little may be done
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """In a new process: SIGTERM to it when its parent is gone, however that ended."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def server_command(config: ServerConfig, device: str) -> list[str]:
    """Command line of vLLM; by module, since the CPU package's `vllm` misses its own version."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", config.model]
    command += ["--host", config.host, "--port", str(config.port), "--enable-prefix-caching"]
    command += ["--dtype", resolve_dtype(config.dtype, device)]
    # Sampling settings come with each request: a model's own (top_p, repetition penalty) would
    # distort its log-probs.
    command += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
    if config.max_model_len is not None:
        command += ["--max-model-len", str(config.max_model_len)]
    if config.enforce_eager or (config.enforce_eager is None and device == "cpu"):
        command += ["--enforce-eager"]
    if device == "cuda":
        command += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
        command += ["--tensor-parallel-size", str(len(config.gpu.split(",")))]
        if config.kv_cache_gib is not None:
            command += ["--kv-cache-memory-bytes", str(config.kv_cache_gib << 30)]
        if not config.compile:
            command += ["--compilation-config", json.dumps(FAST_START)]
    else:
        # vLLM cannot rewind a CPU generator, which it does when a prompt with a seed is split over
        # two steps.
        command += ["--no-enable-chunked-prefill"]
    if config.role == "policy":
        command += ["--logprobs-mode", "processed_logprobs"]
        command += ["--enable-prompt-tokens-details"]  # how much of a prompt the prefix cache had
        if config.full_weights:
            command += ["--weight-transfer-config", '{"backend": "nccl"}']
        else:
            command += ["--enable-lora", "--max-lora-rank", str(config.max_lora_rank)]
            command += ["--max-loras", str(config.max_loras)]
    else:
        command += ["--max-logprobs", "20"]
    return command + config.extra_args


def server_environment(config: ServerConfig, device: str) -> dict[str, str]:
    """Variables that vLLM needs in addition to those of this process."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if config.api_key:
        # not on the command line, where every user of the machine sees it
        variables["VLLM_API_KEY"] = config.api_key
    if Path(config.model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    if config.role == "policy":
        # The routes that pause the server and update its weights are vLLM's development mode.
        variables[
            "VLLM_SERVER_DEV_MODE" if config.full_weights else "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
        ] = "1"
    if device == "cuda":
        return variables | {"CUDA_VISIBLE_DEVICES": config.gpu}
    threads = config.cpu_threads or max(1, len(os.sched_getaffinity(0)) // 2)
    return variables | {
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib or 1),
        # The engine works in its own process instead of a worker's below it. Two servers on 2
        # cores, model of 1.9M
        # parameters: up in 15 instead of 30 s, together 10,000 instead of 6,700 tokens/s, idle at 1
        # instead of 20 %.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The sampler would compile two small functions with g++ at the first request, which fails
        # if there is none.
        "TORCH_COMPILE_DISABLE": "1",
        # Threads are not bound to cores, and wait without spinning: two spinning servers got a
        # tenth of the above.
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def check_port_free(host: str, port: int) -> None:
    """Raise ValueError if a server cannot listen there."""
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # as vLLM takes a name
        family, kind, *_, place = min(places, key=lambda found: found[0] != socket.AF_INET)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        remedy = PORT_REMEDIES.get(error.errno, "give another host or port")
        raise ValueError(
            f"port {port} on {host} cannot be used ({error.strerror}); {remedy}"
        ) from error


def listeners(port: int) -> set[int]:
    """Processes that listen on a port of this machine, those that this user may see."""
    return {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.port == port
        and connection.pid is not None
    }


def wait_until_listening(port: int, launcher: int) -> None:
    """Return once a process that `launcher` started listens on a port; others do not count.

    Raises ConnectionError if `launcher` ends first, which says itself why.
    """
    while not any(_is_below(pid, launcher) for pid in listeners(port)):
        if not psutil.pid_exists(launcher):
            raise ConnectionError(f"process {launcher}, which was to serve port {port}, has ended")
        time.sleep(POLL_SECONDS)


def _is_below(pid: int, ancestor: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return ancestor in {parent.pid for parent in psutil.Process(pid).parents()}
    return False


def recipe_args(path: str, role: str, index: int = 0) -> list[str]:
    """Command-line arguments that a training recipe implies for a server of `role`: if it names
    several, for the one at `index`.

    Raises ValueError if the recipe does not name the model or the address.
    """
    from rea_core.recipe import WORDS, read_recipe

    recipe = read_recipe(path)
    if missing := [key for key in RECIPE_KEYS[role] if not recipe.get(key)]:
        raise ValueError(
            f"{path} has no {' and no '.join(missing)}: what the {role} server serves, and where"
        )
    model, urls = (recipe[key] for key in RECIPE_KEYS[role])
    urls = urls if isinstance(urls, list) else [urls]
    kinds = {RECIPE_KEYS[role][0]: str, **RECIPE_NUMBERS, "use_peft": bool}
    values = [(key, recipe[key], kind) for key, kind in kinds.items() if key in recipe]
    for key, value, kind in values + [(RECIPE_KEYS[role][1], url, str) for url in urls]:
        if not is_a(value, kind):
            raise ValueError(f"{path}: {key} is {value!r}; it must be {WORDS[kind]}")
    if not 0 <= index < len(urls):
        raise ValueError(
            f"index is {index}, but {RECIPE_KEYS[role][1]} of {path} has {len(urls)} addresses; "
            "count them from 0"
        )
    url = urls[index]
    address = split_url(url, f"{path}: {RECIPE_KEYS[role][1]}")
    if address.port is None:
        raise ValueError(
            f"{path}: {RECIPE_KEYS[role][1]} is {url!r}; write it as http://HOST:PORT/v1"
        )
    args = ["--model", model, "--host", address.hostname, "--port", str(address.port)]
    if role == "policy" and recipe.get("use_peft", True) is False:
        return [*args, "--full_weights", "true"]
    if role == "policy" and "lora_r" in recipe:
        rank = next((rank for rank in LORA_RANKS if rank >= recipe["lora_r"]), recipe["lora_r"])
        args += ["--max_lora_rank", str(rank)]
    if role == "policy" and "max_rollout_lag" in recipe:
        args += ["--max_loras", str(max(recipe["max_rollout_lag"] + 1, 2))]
    return args


def check_rank(path: str, max_lora_rank: int) -> None:
    """Raise ValueError if a recipe trains adapters of a higher rank than a server takes."""
    from rea_core.recipe import read_recipe

    if (rank := read_recipe(path).get("lora_r", 0)) > max_lora_rank:
        raise ValueError(
            f"max_lora_rank is {max_lora_rank}, but lora_r of {path} is {rank}, so that the server "
            "would refuse the adapter; leave max_lora_rank out, or lower lora_r"
        )


def parse_args(argv: list[str]) -> tuple[ServerConfig, argparse.Namespace]:
    """Configuration, in which flags override the recipe, and what to do with it (`wait`,
    `dry_run`)."""
    from transformers import HfArgumentParser

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", type=user_name)
    first.add_argument("--wait", action="store_true")  # for such a server instead of starting one
    first.add_argument("--launcher", type=int)  # with --wait: process that starts the server
    first.add_argument("--dry_run", action="store_true")  # check, and print vLLM's command
    first.add_argument("--role", choices=ROLES)
    first.add_argument("--index", type=int, default=0)  # among several addresses of the recipe
    given, rest = first.parse_known_args(argv)
    if given.role:
        rest += ["--role", given.role]
    if given.recipe and given.role:
        rest = recipe_args(given.recipe, given.role, given.index) + rest
    parser = HfArgumentParser(
        ServerConfig,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    config, unknown = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    if given.recipe and given.role == "policy" and not config.full_weights:
        check_rank(given.recipe, config.max_lora_rank)
    config.extra_args += unknown
    expand_paths(config)
    return config, given


def serve(config: ServerConfig) -> NoReturn:
    """Run one server until a signal stops it.

    Raises ConnectionError if vLLM does not start, or has ended by itself more than `max_restarts`
    times in an hour.
    """

    def stop(number: int, _: object) -> NoReturn:
        # Ctrl-C is often followed by the launcher's SIGTERM: stop once
        for other in (signal.SIGTERM, signal.SIGINT):
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    # A job in the background of a script is born with SIGINT ignored, so both are set.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with VLLMServer(config) as server:
        server.supervise()


@command(ConnectionError)
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with a message on stderr if the server cannot start or ends by itself."""
    config, given = parse_args(sys.argv[1:] if argv is None else argv)
    if given.wait:
        limits = config.max_model_len, config.startup_timeout
        if given.launcher:
            wait_until_listening(config.port, given.launcher)
        check_server(config.base_url, config.model, *limits, key=config.api_key)
    elif given.dry_run:
        check_model(config.model)
        check_context(config.model, config.max_model_len)
        check_sockets()
        own_port(config.port)
        check_port_free(config.host, config.port)
        print(shlex.join(server_command(config, resolve_device(config.device))))
    else:
        serve(config)


if __name__ == "__main__":
    main()
