"""Who does what on a machine: GPUs that train, and GPUs that serve; for launchers.

    python -m rea_rl.run.placement RECIPE "policy reflection" [OPTIONS of the training] < GPUS

The visible GPUs come one a line; variables of scripts/common.sh say what is wished. It prints the
plan for people, a line `plan: {...}` for programs, and after a line `---` variables for the shell.
A plan is made without torch, and nothing is started.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from rea_core.clients import check_urls, server_url, split_url
from rea_core.formats import SUFFIXES
from rea_core.json_text import read_json, read_text

Recipe = Mapping[str, Any]  # keys, flags included
Wishes = Mapping[str, str]  # variables of scripts/common.sh
ROLES = ("policy", "reflection")
# GPUs that train, and that serve, where both roles share one GPU
SHARED = {1: ([0], 0), 2: ([0], 1), 3: ([0, 1], 2)}
MEMORY_ALONE, MEMORY_WITH_SERVER, MEMORY_WITH_TRAINER = 0.85, 0.45, 0.25
ROW_KEYS = ("prompts_per_step", "rows_per_step")
BATCH_KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps")
MOST_PORT = 65535
SWITCHES = ("true", "false", "yes", "no", "1", "0")  # on, off, on, ...


@dataclass(frozen=True)
class Server:
    """One server of a plan: its GPUs (none on the CPU), its port, and its share of their memory.

    `turn` counts the servers that start before it on one of its GPUs: each measures what is free.
    """

    role: str
    gpus: tuple[str, ...]
    port: int
    memory: float | None = None
    turn: int = 0


@dataclass
class Plan:
    """Who does what on this machine."""

    train: list[str]
    servers: list[Server]
    idle: list[str]
    processes: int  # of all machines
    rows: int | None  # prompts or rows of a step
    batch: tuple[int, int]  # rows that a process takes at a time, and how often
    notes: list[str] = field(default_factory=list)

    def of_role(self, role: str) -> list[Server]:
        return [server for server in self.servers if server.role == role]

    def as_json(self) -> dict[str, Any]:
        """The line for programs. GPUs are numbers where nvidia-smi counts them."""
        gpus = {
            f"{role}_gpus": [_entry(server.gpus) for server in self.of_role(role) if server.gpus]
            for role in ROLES
        }
        return {
            "train_gpus": [_number(gpu) for gpu in self.train],
            **gpus,
            "idle_gpus": [_number(gpu) for gpu in self.idle],
            "processes": self.processes,
            "prompts_per_step": self.rows,
            "per_device_train_batch_size": self.batch[0],
            "gradient_accumulation_steps": self.batch[1],
        }


def _number(gpu: str) -> int | str:
    return int(gpu) if gpu.isdigit() else gpu


def _entry(gpus: Sequence[str]) -> Any:
    return _number(gpus[0]) if len(gpus) == 1 else [_number(gpu) for gpu in gpus]


# --- GPUs by role ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """GPUs that train, and a group of GPUs for each server."""

    train: list[str]
    policy: list[list[str]]
    reflection: list[list[str]]


def divisor(rows: int | None, most: int, machines: int = 1) -> int:
    """Training processes of a machine: the most up to a number that share a step's rows evenly."""
    if rows is None:
        return max(most, 1)
    numbers = range(most, 0, -1)
    return next((n for n in numbers if rows % (n * machines) == 0), 1)


def preset(
    gpus: list[str],
    rows: int | None,
    reflects: bool,
    whole: bool = False,
    machines: int = 1,
    sizes: tuple[int, int] = (1, 1),
) -> Groups:
    """Groups by the number of GPUs.

    Up to three GPUs both servers share the last one, as in the paper. From four on half of them
    train, at most; of the others one in four, but at least one, serves the reflection model. A
    policy whose weights are trained as a `whole` has one server, over as many GPUs as are a power
    of two. `sizes` are the GPUs of each policy and each reflection server.

    Raises ValueError for servers that are larger than their share of the GPUs.
    """
    n = len(gpus)
    if n in SHARED:
        _check_sizes(sizes, (1, 1), n)
        train, last = SHARED[n]
        train = train[: divisor(rows, len(train), machines)]
        rest = [[gpu] for i, gpu in enumerate(gpus[:last]) if i not in train]
        chosen = [gpus[i] for i in train]
        policy = [[gpus[last]], *([] if whole else rest)]
        return Groups(chosen, policy, [[gpus[last]]] if reflects else [])
    size, reflection_size = sizes
    num_train = divisor(rows, n // 2, machines)
    if whole and size == 1 and not reflects:
        num_train = _next_to_one_server(n, rows, machines)
    servers = gpus[num_train:]
    num_reflection = _for_labels(len(servers), reflection_size) * reflects
    num_policy = len(servers) - num_reflection
    _check_sizes(sizes, (num_policy, len(servers) - 1), n)
    policy = _pieces(servers[:num_policy], size)
    if whole:
        policy = [servers[: size if size > 1 else _power_of_two(num_policy)]]
        num_policy = len(policy[0])
    reflection = _pieces(servers[num_policy:], reflection_size)
    return Groups(gpus[:num_train], policy, reflection if reflects else [])


def _power_of_two(number: int) -> int:
    """The largest one up to a number: attention heads are shared out to so many GPUs."""
    return 1 << (max(number, 1).bit_length() - 1)


def _next_to_one_server(num_gpus: int, rows: int | None, machines: int) -> int:
    """Training processes next to one server over a power of two of GPUs: at most half of the
    GPUs. At most one is idle if that is possible."""
    numbers = [n for n in range(1, num_gpus // 2 + 1) if rows is None or rows % (n * machines) == 0]

    def idle(train: int) -> int:
        return num_gpus - train - _power_of_two(num_gpus - train)

    return min(numbers or [1], key=lambda train: (max(idle(train), 1), -train))


def _pieces(gpus: list[str], size: int) -> list[list[str]]:
    """Groups of so many GPUs; the rest is idle."""
    return [gpus[i : i + size] for i in range(0, len(gpus) - size + 1, size)]


def _check_sizes(sizes: tuple[int, int], most: tuple[int, int], num_gpus: int) -> None:
    for role, size, fits in zip(ROLES, sizes, most, strict=True):
        if size > max(fits, 1):
            raise ValueError(
                f"{role.upper()}_TP is {size}, but of {num_gpus} GPUs the plan leaves "
                f"{max(fits, 1)} to that role; name {role.upper()}_GPUS, or lower it"
            )


def named(
    gpus: list[str],
    wishes: Wishes,
    rows: int | None,
    reflects: bool,
    machines: int,
    whole: bool = False,
) -> Groups:
    """Groups by TRAIN_GPUS, POLICY_GPUS and REFLECTION_GPUS; roles that are not named take what is
    left, or share. The one server of a policy that is trained as a `whole` takes a power of two.

    Raises ValueError for GPUs that are not visible or stand twice, for groups of unequal size, and
    for several servers of whole weights.
    """
    given = {key: _names(key, wishes.get(key, ""), gpus) for key in KEYS}
    taken = {gpu for names in given.values() for gpu in names}
    left = [gpu for gpu in gpus if gpu not in taken]
    train, policy, reflection = given.values()
    if not train:
        train = left[: divisor(rows, len(left), machines)] or policy[:1] or reflection[:1]
        left = [gpu for gpu in left if gpu not in train]
    size, reflection_size = server_sizes(wishes)
    if reflects and not reflection:
        reflection = left if policy else left[len(left) - _for_labels(len(left), reflection_size) :]
        left = [gpu for gpu in left if gpu not in reflection]
        if whole and not policy:
            reflection = left[_whole_size(policy, left, size) :] + reflection
        reflection = reflection[len(reflection) % reflection_size :]
    size = _whole_size(policy, left, size) if whole else size
    policy = policy or left[: size if whole else len(left) - len(left) % size]
    policy = policy or reflection[-1:] or train[-1:]
    reflection = (reflection or policy[-reflection_size:]) if reflects else []
    return Groups(
        train, _grouped("POLICY", policy, size), _grouped("REFLECTION", reflection, reflection_size)
    )


def _whole_size(policy: list[str], left: list[str], size: int) -> int:
    """GPUs of the one server with whole weights, on named GPUs or on those that are left."""
    if size == 1 and not policy:
        return _power_of_two(len(left))
    if len(policy) > size:
        raise ValueError(
            f"POLICY_GPUS names {len(policy)} GPUs for {len(policy) // size} servers, but use_peft "
            "is false: all weights move to one policy server; set "
            f"POLICY_TP={len(policy)}, or name {size}"
        )
    return size


def _for_labels(servers: int, size: int) -> int:
    """GPUs that serve the reflection model among those that serve: a quarter, but one server at
    least, unless none is left for the policy then."""
    return max(servers // 4 // size, 1) * size if servers > size else 0


def server_sizes(wishes: Wishes) -> tuple[int, int]:
    """GPUs of each policy and each reflection server."""
    policy, reflection = (_count(wishes, f"{role.upper()}_TP", 1) for role in ROLES)
    return policy, reflection


KEYS = ("TRAIN_GPUS", "POLICY_GPUS", "REFLECTION_GPUS")


def _names(key: str, text: str, gpus: Sequence[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    for name in names:
        if name not in gpus:
            remedy = "write some of these, with commas" if gpus else "leave it out for the CPU"
            raise ValueError(
                f"{key} names {name or 'an empty one'}, but the GPUs to use are {_listed(gpus)}; "
                f"{remedy}"
            )
        if names.count(name) > 1:
            raise ValueError(f"{key} names {name} twice; name each GPU once")
    return names


def _grouped(key: str, names: list[str], size: int) -> list[list[str]]:
    if len(names) % size:
        raise ValueError(
            f"{key}_TP is {size}, which does not divide the {len(names)} GPUs of {key}_GPUS"
        )
    return _pieces(names, size)


def _listed(gpus: Sequence[str]) -> str:
    return ", ".join(gpus) or "none"


# --- Plan -----------------------------------------------------------------------------------------


def make_plan(
    gpus: list[str],
    recipe: Recipe,
    roles: Sequence[str],
    wishes: Wishes,
    source: str = "the recipe",
) -> Plan:
    """Plan of a machine with visible `gpus`, as CUDA_VISIBLE_DEVICES names them.

    The recipe has its flags. `roles` are the servers that the training needs, `wishes` variables of
    scripts/common.sh, and `source` names the recipe in errors.

    Raises ValueError for wishes that this machine cannot fulfil.
    """
    machines = _count(wishes, "NUM_MACHINES", 1)
    _check_hosts(machines, recipe, roles, wishes)
    _check_server_variables(wishes)
    rows = next((recipe[key] for key in ROW_KEYS if recipe.get(key) is not None), None)
    chosen = _chosen(gpus, wishes)
    groups = _groups(chosen, recipe, roles, wishes, rows, machines)
    here = len(groups.train) or _count(wishes, "NUM_PROCESSES", 1)
    processes = here * machines
    _check_rows(rows, processes, wishes, recipe, source)
    servers = _servers(groups, recipe, roles, wishes)
    used = {*groups.train, *(gpu for server in servers for gpu in server.gpus)}
    idle = [gpu for gpu in gpus if gpu not in used]
    batch = _batch(rows, processes, recipe)
    notes = []
    if machines > 1 and servers and not wishes.get("VLLM_API_KEY"):
        notes = ["key      VLLM_API_KEY is not set: servers that other hosts reach need it"]
    return Plan(groups.train, servers, idle, processes, rows, batch, notes)


def _check_hosts(machines: int, recipe: Recipe, roles: Sequence[str], wishes: Wishes) -> None:
    """Raise ValueError for variables of several hosts that contradict each other."""
    rank = wishes.get("MACHINE_RANK", "").strip()
    if machines == 1:
        if rank not in ("", "0"):
            raise ValueError(
                f"MACHINE_RANK is {rank}, but NUM_MACHINES is 1; give NUM_MACHINES, the number of "
                "hosts, to each of them, or leave MACHINE_RANK out"
            )
        return
    _count(wishes, "MACHINE_RANK", 0, machines - 1, least=0)
    _count(wishes, "MAIN_PORT", 0, MOST_PORT)
    main = wishes.get("MAIN_ADDRESS", "")
    if not re.fullmatch(r"[\w.-]*|[0-9a-fA-F:.]+", main) or main.count(":") == 1:
        raise ValueError(
            f"MAIN_ADDRESS is {main}; give a host's name or address alone: the port is MAIN_PORT"
        )
    if (host := wishes.get("SERVER_HOST", "")) in ("0.0.0.0", "::"):
        raise ValueError(
            f"SERVER_HOST is {host}, at which no other host finds this one; give its name or "
            "address"
        )
    if "policy" in roles and recipe.get("use_peft", False) is False:
        raise ValueError(
            f"use_peft is false, so all weights move to one policy server, but each of {machines} "
            "hosts would start one; start one by hand, and give its --policy_server to all of them"
        )


def _check_server_variables(wishes: Wishes) -> None:
    """Raise ValueError for what the servers would refuse once they start."""
    _count(wishes, "SERVER_CONTEXT", 0)
    _count(wishes, "SERVER_CACHE_GIB", 0)
    _count(wishes, "SERVER_RESTARTS", 0, least=0)
    if (text := wishes.get("SERVER_COMPILE", "")).lower() not in ("", *SWITCHES):
        raise ValueError(f"SERVER_COMPILE is {text}; it must be true or false")


def _count(wishes: Wishes, key: str, default: int, most: int | None = None, least: int = 1) -> int:
    text = wishes.get(key, "").strip()
    if not text:
        return default
    is_number = re.fullmatch("[0-9]{1,9}", text) is not None
    if not is_number or not least <= int(text) <= (most or int(text)):
        raise ValueError(
            f"{key} is {text}; give a number from {least}{f' to {most}' if most else ''}"
        )
    return int(text)


def _chosen(gpus: list[str], wishes: Wishes) -> list[str]:
    text = wishes.get("NUM_GPUS", "").strip()
    if not text:
        return gpus
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) > len(gpus):
        raise ValueError(
            f"NUM_GPUS is {text}, but {len(gpus)} are visible; set it to at most so many, or to 0 "
            "for the CPU"
        )
    return gpus[: int(text)]


def _groups(
    gpus: list[str],
    recipe: Recipe,
    roles: Sequence[str],
    wishes: Wishes,
    rows: int | None,
    machines: int,
) -> Groups:
    reflects = "reflection" in roles
    whole = "policy" in roles and recipe.get("use_peft", False) is False
    most = _count(wishes, "SERVERS_PER_ROLE", 0)
    for key in KEYS:
        _names(key, wishes.get(key, ""), gpus)
    if not gpus:
        servers: list[list[str]] = [[] for _ in range(most or 1)]
        return Groups([], servers if "policy" in roles else [], servers if reflects else [])
    wishes = {**wishes, **_old_name(gpus, wishes)}
    if not roles:  # supervised: all GPUs train
        wishes.setdefault("TRAIN_GPUS", "")
        names = _names("TRAIN_GPUS", wishes["TRAIN_GPUS"], gpus)
        groups = Groups(names or gpus[: divisor(rows, len(gpus), machines)], [], [])
    elif any(wishes.get(key, "").strip() for key in KEYS):
        groups = named(gpus, wishes, rows, reflects, machines, whole)
    else:
        groups = preset(gpus, rows, reflects, whole, machines, server_sizes(wishes))
    if roles and "policy" not in roles:  # served elsewhere
        size = server_sizes(wishes)[1]
        names = [*dict.fromkeys(chain(*groups.policy, *groups.reflection))]
        servers = _grouped("REFLECTION", names[len(names) % size :] or names, size)
        groups = Groups(groups.train, [], servers)
    if most:
        groups = Groups(groups.train, groups.policy[:most], groups.reflection[:most])
    if whole and {*groups.train} & {gpu for server in groups.policy for gpu in server}:
        raise ValueError(
            "use_peft is false, so all weights move over NCCL from the training to the policy "
            "server, each on GPUs of its own; use 2 GPUs or more, name POLICY_GPUS apart from "
            "TRAIN_GPUS, or set use_peft: true"
        )
    if number := wishes.get("NUM_PROCESSES", "").strip():
        most = len(groups.train)
        if not re.fullmatch("[0-9]{1,9}", number) or not 0 < int(number) <= most:
            raise ValueError(
                f"NUM_PROCESSES is {number}, but the GPUs that train are "
                f"{_listed(groups.train)}; give one process for each, or name more TRAIN_GPUS"
            )
        groups = Groups(groups.train[: int(number)], groups.policy, groups.reflection)
    return groups


def _old_name(gpus: Sequence[str], wishes: Wishes) -> dict[str, str]:
    """REFLECTION_GPU, the place among three GPUs where the reflection model is served."""
    place = wishes.get("REFLECTION_GPU", "")
    if not place or len(gpus) != 3 or any(wishes.get(key) for key in KEYS):
        return {}
    if place not in ("1", "2"):
        raise ValueError(f"REFLECTION_GPU is {place}; it must be 1 or 2, since GPU 0 trains")
    train = gpus[: int(place)]
    policy, reflection = gpus[2], gpus[int(place)]
    return dict(zip(KEYS, (",".join(train), policy, reflection), strict=True))


def _check_rows(
    rows: int | None,
    processes: int,
    wishes: Wishes,
    recipe: Recipe,
    source: str,
) -> None:
    if rows is None:
        if not wishes.get("NUM_PROCESSES"):
            raise ValueError(
                f"{source} has no prompts_per_step (of supervised programs: rows_per_step), so "
                f"that its batch on {processes} processes is not known; give that key, or "
                "NUM_PROCESSES"
            )
    elif rows % processes:
        key = next(key for key in ROW_KEYS if recipe.get(key) is not None)
        raise ValueError(
            f"{processes} processes are to train, which does not divide {key} of {source}, {rows}; "
            "give NUM_PROCESSES or TRAIN_GPUS a divisor"
        )


def _batch(rows: int | None, processes: int, recipe: Recipe) -> tuple[int, int]:
    """Batch keys of a process, as the trainer derives them."""
    from rea_rl.run.batch import share_rows

    size, given = (recipe.get(key) for key in BATCH_KEYS)
    if rows is None:
        return size or 8, given or 1
    key = next(key for key in ROW_KEYS if recipe.get(key) is not None)
    group = recipe.get("num_generations", 8) if key == "prompts_per_step" else 1
    return share_rows(key, rows, group, processes, size or 8, given)


def _servers(groups: Groups, recipe: Recipe, roles: Sequence[str], wishes: Wishes) -> list[Server]:
    """Servers with ports from the recipe's on, and shares of memory by who else is on a GPU."""
    first = _count(wishes, "SERVER_PORT", 0, MOST_PORT - 1)
    known = {role: [first + i] for i, role in enumerate(ROLES)} if first else _known_ports(recipe)
    ports = _ports(known, groups)
    wanted = [(role, tuple(g)) for role in roles for g in getattr(groups, role)]
    servers = []
    for role, gpus in wanted:
        turn = sum(bool({*gpus} & {*server.gpus}) for server in servers)
        others = sum(bool({*gpus} & {*other}) for _, other in wanted) - 1
        memory = _memory(bool({*gpus} & {*groups.train}), others, wishes) if gpus else None
        servers.append(Server(role, gpus, next(ports[role]), memory, turn))
    return servers


def _memory(trains: bool, others: int, wishes: Wishes) -> float:
    if text := wishes.get("SERVER_MEMORY"):
        most = 1 / (1 + others)
        if not re.fullmatch(r"\d*\.?\d+", text) or not 0 < float(text) <= most:
            shared = ", since two servers share a GPU" if others else ""
            raise ValueError(
                f"SERVER_MEMORY is {text}; give a share over 0 and up to {most:g}{shared}"
            )
        return float(text)
    if trains:
        return MEMORY_WITH_TRAINER
    return MEMORY_WITH_SERVER if others else MEMORY_ALONE


def addresses(recipe: Recipe, role: str) -> list[str]:
    """Addresses of a role's servers in the recipe. Raises ValueError for what is none."""
    urls = recipe.get(f"{role}_server") or f"http://127.0.0.1:{12345 + ROLES.index(role)}/v1"
    urls = urls if isinstance(urls, list) else [urls]
    if not all(isinstance(url, str) for url in urls):
        raise ValueError(f"{role}_server is {urls}; give one address, or a list of them")
    check_urls(urls, f"{role}_server")
    return urls


def _known_ports(recipe: Recipe) -> dict[str, list[int]]:
    """Ports of the recipe by role, each once: its servers may be of several hosts."""
    seen: set[int] = set()
    known = {}
    for role in ROLES:
        urls = addresses(recipe, role)
        ports = dict.fromkeys(split_url(url, f"{role}_server").port or 80 for url in urls)
        known[role] = [port for port in ports if port not in seen]
        seen |= {*ports}
    return known


def _ports(known: dict[str, list[int]], groups: Groups) -> dict[str, Iterator[int]]:
    """Each role's own ports, and then free ones behind all of these."""
    first = max(port for ports in known.values() for port in ports) + 1
    wanted = {role: len(getattr(groups, role)) for role in known}
    needed = {role: max(wanted[role] - len(ports), 0) for role, ports in known.items()}
    if first + sum(needed.values()) - 1 > MOST_PORT:
        raise ValueError(
            f"{sum(needed.values())} more servers have no ports behind {first - 1}; set "
            "SERVER_PORT lower"
        )
    behind = iter(range(first, MOST_PORT + 1))
    return {
        role: iter([*ports, *(next(behind) for _ in range(needed[role]))])
        for role, ports in known.items()
    }


# --- Words ----------------------------------------------------------------------------------------


def described(plan: Plan, recipe: Recipe, machines: int) -> Iterator[str]:
    """The plan for people, a line each."""
    gpus = f"GPU{'s' * (len(plan.train) > 1)} {', '.join(plan.train)}"
    where = gpus if plan.train else "the CPU"
    several = f" on each of {machines} machines" if machines > 1 else ""
    yield f"train    {_processes(plan.processes // machines)} on {where}{several}"
    for server in plan.servers:
        place = f"GPU {', '.join(server.gpus)}" if server.gpus else "the CPU"
        memory = f", {server.memory:.2f} of its memory" if server.memory else ""
        sizes = _fits(server, recipe)
        yield f"serve    {server.role} on {place}, port {server.port}{memory}{sizes}"
    size, times = plan.batch
    group = recipe.get("num_generations", 1) if recipe.get("prompts_per_step") else 1
    what = "prompts" if group > 1 else "rows"
    rows = size * times * plan.processes
    yield (
        f"a step   {size} rows x {times} accumulated x {_processes(plan.processes)} = {rows} rows"
        + (f" = {rows // group} {what} x {group} responses" if group > 1 else "")
    )
    yield f"idle     {', '.join(plan.idle) or '-'}"
    yield from plan.notes


def _processes(number: int) -> str:
    return f"{number} process{'es' * (number > 1)}"


def _fits(server: Server, recipe: Recipe) -> str:
    """Memory of a server's weights and of a token of its cache, if the model is here."""
    key = "model_name_or_path" if server.role == "policy" else "reflection_model"
    path = Path(str(recipe.get(key)), "config.json")
    if not server.gpus or not path.is_file():
        return ""
    sizes = model_sizes(path.parent)
    return f": weights {sizes[0] / 2**30:.1f} GiB, {sizes[1] / 2**10:.0f} KiB a token of cache"


def model_sizes(folder: Path) -> tuple[int, int]:
    """Bytes of a model's weights on the disk, and of one token's keys and values in 16 bits."""
    config = read_json(folder / "config.json")
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    cache = 2 * 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * width
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")), cache


def missing_files(recipe: Recipe) -> list[str]:
    """Folders and files that a recipe names and that are not here."""
    keys = ["model_name_or_path", "dataset_name", "tokens_per_reflection_file", "cut_file"]
    if recipe.get("revision") and recipe.get("construction") != "serial":
        keys.append("reflection_model")
    paths = [str(recipe[key]) for key in keys if recipe.get(key)]
    local = [
        p for p in paths if p.endswith(SUFFIXES) or p.startswith(("model/", "output/", "/", "."))
    ]
    return [path for path in local if not Path(path).exists()]


def with_flags(path: str, argv: Sequence[str]) -> dict[str, Any]:
    """Keys of a recipe, and those that the training's flags override; flags of several values are
    lists.

    Raises ValueError for a recipe that is no YAML, and for batch keys that are no numbers.
    """
    try:
        recipe = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: a recipe has one `key: value` a line; correct it")
    for key, words in _flags(argv).items():
        recipe[key] = words[0] if len(words) == 1 else words
    for key in (*ROW_KEYS, *BATCH_KEYS, "num_generations"):
        if recipe.get(key) is None:
            continue
        text = str(recipe[key])
        if not re.fullmatch("[0-9]+", text) or int(text) < 1:
            raise ValueError(f"{key} is {text}; it must be a whole number greater than 0")
        recipe[key] = int(text)
    for key in ("use_peft", "revision"):
        if given(key, argv) and key not in _flags(argv):
            recipe[key] = True
        if given(f"no_{key}", argv):
            recipe[key] = False
        if recipe.get(key) is not None:
            recipe[key] = _switch(key, recipe[key])
    return recipe


def _switch(key: str, value: Any) -> bool:
    if str(value).lower() not in SWITCHES:
        raise ValueError(f"{key} is {value}; it must be true or false")
    return str(value).lower() in SWITCHES[::2]


def _flags(argv: Sequence[str]) -> dict[str, list[str]]:
    """Values by flag, in all spellings; flags without any are left out."""
    flags: dict[str, list[str]] = {}
    name = None
    for word in argv:
        if word.startswith("--"):
            name, has_value, value = _flag(word)
            flags[name] = [value] if has_value else []
        elif name is not None:
            flags[name].append(word)
    return {key: words for key, words in flags.items() if words}


def _flag(word: str) -> tuple[str, str, str]:
    """Name of a flag, an equals sign or nothing, and the value behind it. Programs take
    `--max-steps` as `--max_steps`."""
    name, has_value, value = word[2:].partition("=")
    return name.replace("-", "_"), has_value, value


def given(key: str, argv: Sequence[str]) -> bool:
    """Whether a flag is among the training's."""
    return any(word.startswith("--") and _flag(word)[0] == key for word in argv)


def _seed(server: Server, plan: Plan, wishes: Wishes) -> int | str:
    """Of a policy server among several: with one seed, all would draw the same numbers."""
    rank = int(wishes.get("MACHINE_RANK") or 0)
    several = len(plan.of_role("policy")) > 1 or wishes.get("NUM_MACHINES", "1") != "1"
    return server.port + 1000 * rank if several and server.role == "policy" else "-"


def shell_variables(plan: Plan, recipe: Recipe, wishes: Wishes) -> Iterator[str]:
    """Assignments for scripts/common.sh."""
    lines = [
        f"{server.role} {server.port} {','.join(server.gpus) or '-'} {server.memory or '-'} "
        f"{_seed(server, plan, wishes)} {server.turn}"
        for server in plan.servers
    ]
    flags: list[str] = []
    for role in dict.fromkeys(server.role for server in plan.servers):
        first = split_url(addresses(recipe, role)[0], f"{role}_server")
        host = wishes.get("SERVER_HOST") or first.hostname
        urls = [server_url(host, server.port) for server in plan.of_role(role)]
        if urls != addresses(recipe, role):
            flags += [f"--{role}_server", *urls]
    shares = {tuple(s.gpus) for s in plan.of_role("policy")} & {
        tuple(s.gpus) for s in plan.of_role("reflection")
    }
    if plan.of_role("reflection") and plan.train and not shares:
        flags += ["--stage_batch_size", "1"]  # no response waits for others
    used = {*plan.train, *(gpu for server in plan.servers for gpu in server.gpus)}
    values = {
        "NUM_PROCESSES": str(plan.processes),
        "TRAIN_GPUS": ",".join(plan.train),
        "NUM_GPUS": str(len(used)),
    }
    yield from (f"{key}={shlex.quote(value)}" for key, value in values.items())
    for key, words in (
        ("PLANNED", lines),
        ("PLAN_ARGS", flags),
        ("MISSING", missing_files(recipe)),
    ):
        yield f"{key}=({' '.join(map(shlex.quote, words))})"


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line for wishes that cannot be fulfilled."""
    flags = sys.argv[1:] if argv is None else argv
    if flags[:1] in (["-h"], ["--help"]):
        sys.stdout.write(str(__doc__))
        return
    if len(flags) < 2:
        sys.exit("error: give a recipe and its roles, such as 'policy reflection'; see --help")
    path, roles, *rest = flags
    gpus = [line.strip() for line in sys.stdin if line.strip()]
    try:
        recipe = with_flags(path, rest)
        for role in ROLES:
            if given(f"{role}_server", rest) and f"{role}_server" not in _flags(rest):
                raise ValueError(f"--{role}_server has no address; give one or more")
        # servers whose addresses are given run elsewhere
        here = [role for role in roles.split() if not given(f"{role}_server", rest)]
        plan = make_plan(gpus, recipe, here, os.environ, path)
    except ValueError as error:
        sys.exit(f"error: {error}")
    machines = _count(os.environ, "NUM_MACHINES", 1)
    lines = [*described(plan, recipe, machines), f"plan: {json.dumps(plan.as_json())}", "---"]
    lines += shell_variables(plan, recipe, os.environ)
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
