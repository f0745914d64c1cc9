"""Train and evaluate every row of the study on servers that run already; `scripts/study.sh` starts
them and calls this.

    bash scripts/study.sh miniature                                                 # all rows
    # the main ones, half an hour on two cores
    bash scripts/study.sh miniature --rows base grpo grpo_len rea_rl --seeds 1
    # with servers of its own
    python -m rea_rl.study --recipe_set Qwen2.5-Coder-0.5B-Instruct --gpus 0 1 2 3 --runs_per_gpu 2

Finished rows and seeds are skipped, so an interrupted study continues where it
stopped. Everything that a row makes is under `<work>/<row>/seed-<n>`; `rea_rl.study.report` makes
table, pictures and JSON of it.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

from generation.provenance import read_settings
from rea_core import recipe
from rea_core.checks import check_numbers, user_name, user_path
from rea_core.clients import check_urls
from rea_core.command import command
from rea_core.json_text import read_json
from rea_core.ownership import own_output_folder
from rea_core.row_files import write_json
from rea_rl.run.placement import addresses
from rea_rl.study.places import Place, as_flags, make_places
from rea_rl.study.recipe_set import read_study_set
from rea_rl.study.rows import ROWS, Run, make_run

logger = logging.getLogger(__name__)

ADAPTER = "adapter_model.safetensors"
STOP_SECONDS = 110  # that trainers have to end; the launcher waits a little longer
SCRIPTS = threading.Lock()  # scripts of several rows make the same files on their way


def all_runs(args: Namespace) -> list[Run]:
    """Runs of the chosen rows, base first, since the others are compared with it.

    Raises ValueError for a row that there is none of, or whose script is missing, and for numbers
    below 1.
    """
    numbers = [name for name, keywords in OPTIONS.items() if keywords.get("type") is int]
    check_numbers(vars(args), positive=numbers)
    own_output_folder(args.work, "work")
    own_output_folder(args.out, "out")
    names = [*dict.fromkeys(["base", *(args.rows or ROWS)])]
    if unknown := [name for name in names if name not in ROWS]:
        raise ValueError(f"rows {unknown} are unknown; there are {', '.join(ROWS)}")
    rows = [ROWS[name] for name in names]
    for row in rows:
        if row.script and not Path(row.script).is_file():
            raise ValueError(
                f"row {row.name} needs {row.script}, which does not exist; choose other --rows"
            )
    # A script has no seed: it makes one adapter in a place of its own.
    seeds = {row.name: 1 if row.script else args.seeds or row.num_seeds for row in rows}
    return [make_run(row, seed, args) for row in rows for seed in range(seeds[row.name])]


def train_command(run: Run, args: Namespace) -> list[str]:
    """Command that makes the row's adapter in the run's directory."""
    if run.row.script:
        return ["env", f"RECIPE_SET={args.recipe_set}", "bash", run.row.script]
    recipe = f"recipes/{args.recipe_set}/config_{run.row.variant}.yaml"
    check_processes(recipe, args)
    changes = run.row.changes.format(**args.set.sizes)
    command = [*args.trainer, "--config", recipe, *changes.split()]
    flags = {"seed": run.seed, "output_dir": run.directory, "model_name_or_path": args.model}
    return command + as_flags(flags | ({"max_steps": args.steps} if args.steps else {}))


def check_processes(path: str, args: Namespace) -> None:
    """Raise ValueError for a number of training processes that cannot share a step's prompts."""
    prompts = recipe.read_recipe(path).get("prompts_per_step")
    if prompts and args.num_processes and prompts % args.num_processes:
        raise ValueError(
            f"num_processes is {args.num_processes}, which does not divide prompts_per_step of "
            f"{path}, {prompts}; give a divisor"
        )


def train(run: Run, place: Place, args: Namespace) -> None:
    """Train a row, or continue its training. Raises ValueError if it was begun with another
    command.

    Raises subprocess.CalledProcessError if the training fails.
    """
    command, begun = train_command(run, args), run.directory / "command.json"
    if begun.is_file() and (before := read_json(begun)) != command:
        raise ValueError(
            f"{run.directory} was made with another command: {' '.join(before)}; delete it, or "
            f"give another --work, to train with: {' '.join(command)}"
        )
    write_json(begun, command)
    logger.info("training %s, seed %d: %s", run.row.name, run.seed, " ".join(command))
    begin = time.perf_counter()
    flags = [] if run.row.script else place.flags
    with SCRIPTS if run.row.script else nullcontext():
        subprocess.run(command + flags, check=True, env=place.environment)
    if not (run.adapter / ADAPTER).is_file():
        raise ValueError(
            f"row {run.row.name}: {' '.join(command)} ended without {run.adapter / ADAPTER}"
        )
    write_json(run.directory / "trained.json", spent(begin, args))


def evaluate(run: Run, place: Place, args: Namespace, base_scores: Callable[[], Path]) -> None:
    """Sample a row's answers to the held-out problems on the policy server, and score them.

    `base_scores` waits for the scores of the base model, with which all other rows are compared.
    """
    begin = time.perf_counter()
    with served(run, place.policy_server, args) as model:
        generations = sample(run, model, place.policy_server, args)
    score(generations, None if run.row.name == "base" else base_scores(), args)
    write_json(run.directory / "evaluated.json", spent(begin, args))


def spent(begin: float, args: Namespace) -> dict[str, Any]:
    """Seconds since `begin`, and the device, for the report."""
    return {"seconds": round(time.perf_counter() - begin, 1), "device": args.device}


@contextmanager
def served(run: Run, policy_server: str, args: Namespace) -> Iterator[str]:
    """Name under which the policy server serves the row's model while the context is open."""
    if run.row.name == "base":
        yield args.model
        return
    import openai

    from rea_core.clients import openai_client
    from rea_core.models import adapter_digest
    from rea_rl.rollout.endpoint import refusal

    client = openai_client(policy_server, max_retries=0)
    # The server's prefix cache is keyed by the name, so it must not name two sets of weights.
    name = f"study-{run.row.name}-{run.seed}-{adapter_digest(run.adapter)}"
    try:
        if name not in {model.id for model in client.models.list()}:
            body = {"lora_name": name, "lora_path": str(run.adapter.resolve())}
            client.post("/load_lora_adapter", body=body, cast_to=str)
    except openai.APIError as error:
        raise ConnectionError(
            f"policy_server ({policy_server}): {refusal(run.adapter, error)}"
        ) from error
    yield name
    try:
        client.post("/unload_lora_adapter", body={"lora_name": name}, cast_to=str)
    except openai.APIError as error:  # of no matter to a row that is evaluated
        logger.warning("policy_server (%s) did not unload %s: %s", policy_server, name, error)


def sample(run: Run, model: str, policy_server: str, args: Namespace) -> Path:
    """Generation file of the row; finished answers of an interrupted evaluation are kept.

    Responses have seeds of their own only if the generation recipe has a seed: on a GPU they
    halve a server's speed.
    """
    from generation.arguments import GenerateArguments
    from generation.generate import generate

    settings = recipe.read_recipe(f"recipes/generation/{args.set.generation}.yaml")
    if settings.get("seed") is not None:
        settings["seed"] = run.seed
    settings |= {
        "qaf": args.eval_dataset,
        "qaf_limit": args.eval_problems,
        "n_generate_sample": args.eval_samples,
        "model_dir": args.model,
        "api": True,
        "api_base": policy_server,
        "api_model": model,
        "output_dir": str(run.directory / "eval"),
        "max_concurrent_requests": 512,
    }
    return generate(GenerateArguments(**settings))


def score(generations: Path, base: Path | None, args: Namespace) -> None:
    """Write the scores next to a generation file."""
    from generation import math_verify_all

    rules = recipe.read_recipe(f"recipes/{args.recipe_set}/config_ReflectRL.yaml")
    options = math_verify_all.Scoring(
        base,
        word_bounded=args.set.word_bounded,
        slips=args.set.slips,
        verifier=rules.get("verifier", "math"),
    )
    results = Path("output/verify.json")
    scored = math_verify_all.score([generations], args.model, options, results)
    sys.stdout.write(math_verify_all.table(scored))


# Flags, with the keywords of argparse.
OPTIONS: dict[str, dict[str, Any]] = {
    "recipe_set": {"default": "miniature", "help": "folder of recipes with a study.yaml"},
    "rows": {"nargs": "+", "help": f"of {', '.join(ROWS)}; default: all; base is always added"},
    "seeds": {"type": int, "help": "of each row; default: three of the main rows, else one"},
    "jobs": {"type": int, "help": "runs at a time; default: one for each policy server"},
    "gpus": {"nargs": "+", "help": "GPUs on which the study starts servers of its own, and trains"},
    "runs_per_gpu": {"type": int, "default": 1, "help": "with --gpus: runs at a time on each"},
    "kv_cache_gib": {"type": int, "default": 4, "help": "with --gpus: GiB of each server's cache"},
    "server_context": {"type": int, "help": "with --gpus: in tokens; default: the model's"},
    "compile": {"action": "store_true", "help": "with --gpus: servers compile, and start later"},
    "num_processes": {"type": int, "help": "of each training; default: the recipes' number"},
    "steps": {"type": int, "help": "optimizer steps; default: the recipe's"},
    "eval_dataset": {"type": user_name, "help": "held-out problems; default: the recipe set's"},
    "eval_problems": {"type": int, "default": 500, "help": "use the first N of them"},
    "eval_samples": {"type": int, "default": 1, "help": "answers a problem and seed"},
    "work": {"type": user_path, "help": "runs and evaluations; default: the recipe set's"},
    "out": {"type": user_path, "help": "report; default: the recipe set's, or WORK/report"},
    "model": {
        "type": user_name,
        "help": "base model of the policy server; default: the recipe's",
    },
    "policy_server": {"nargs": "+", "help": "one, or several; default: the recipe's"},
    "reflection_server": {"nargs": "+", "help": "the same; pairs share them in turn"},
    "train_gpus": {"nargs": "+", "help": "runs take one each in turn; default: all use all"},
    "dry_run": {"action": "store_true", "help": "print the remaining work and end"},
}


def parse_arguments(argv: list[str] | None) -> Namespace:
    """Command line. After `--` comes a training command, to which a row's flags are added."""
    parser = ArgumentParser(
        prog="python -m rea_rl.study", description="Train and evaluate the rows of the study."
    )
    for name, keywords in OPTIONS.items():
        parser.add_argument(f"--{name}", **keywords)
    trainer = [sys.executable, "-m", "rea_rl.grpo"]
    parser.add_argument("trainer", nargs="*", default=trainer, help="of rea_rl.grpo, after --")
    args = parser.parse_args(argv)
    set_places(args)
    recipe = read_recipe(args.recipe_set)
    args.model = args.model or recipe["model_name_or_path"]
    for role in ("policy", "reflection"):
        key = f"{role}_server"
        setattr(args, key, getattr(args, key) or addresses(recipe, role))
        check_urls(getattr(args, key), key)
    args.jobs = args.jobs or len(args.policy_server)
    args.device = device_name()
    return args


def set_places(args: Namespace) -> None:
    """Problems and folders of the recipe set, unless others are given."""
    given = args.set = read_study_set(args.recipe_set)
    args.work = args.work or Path(given.work or f"output/study-{args.recipe_set}")
    args.out = args.out or (Path(given.out) if given.out else args.work / "report")
    args.eval_dataset = args.eval_dataset or given.eval_dataset


def check_evaluations(runs: list[Run], args: Namespace) -> None:
    """Raise ValueError without test problems, and for an evaluation of others or another model."""
    if args.eval_dataset is None:
        raise ValueError(
            f"eval_dataset is missing: name the held-out problems of {args.recipe_set}, "
            "--eval_dataset FILE"
        )
    wanted = {"model_dir": args.model, "qaf": args.eval_dataset}
    wanted |= {"qaf_limit": args.eval_problems, "n_generate_sample": args.eval_samples}
    for run in runs:
        known = read_settings(run.generations) if run.evaluated else {}
        if changed := [key for key, value in wanted.items() if known.get(key, value) != value]:
            changes = ", ".join(f"{key} ({known[key]!r}, now {wanted[key]!r})" for key in changed)
            raise ValueError(
                f"{run.generations} was made with other settings: {changes}; delete its folder, or "
                "give another --work"
            )


def read_recipe(recipe_set: str) -> dict[str, Any]:
    """The method's recipe: base model and servers are those of all recipes of the set."""
    return recipe.read_recipe(f"recipes/{recipe_set}/config_ReflectRL.yaml")


def device_name() -> str:
    """Name of the machine's device for the report."""
    import torch

    cores = f"{os.cpu_count()} CPU cores"
    return f"{torch.cuda.get_device_name()} with {cores}" if torch.cuda.is_available() else cores


def plan(runs: list[Run], args: Namespace) -> str:
    """A line per run: what is left to do, and the command of its training."""
    lines = []
    for run in runs:
        left = [
            word for word, done in (("train", run.trained), ("evaluate", run.evaluated)) if not done
        ]
        command = "" if run.row.name == "base" else shlex.join(train_command(run, args))
        lines.append(
            f"{run.row.name} seed {run.seed}: {' and '.join(left) or 'finished'}  "
            f"{command}".rstrip()
            + "\n"
        )
    return "".join(lines)


def run_all(runs: list[Run], args: Namespace) -> None:
    """Train and evaluate the rest, `args.jobs` runs at a time, and write the report after every
    run.

    The others are scored once the base is, since they are compared with it. If a run fails,
    those under way are finished and no other is begun.
    """
    from transformers import AutoTokenizer  # noqa: F401  its lazy modules cannot be imported by two threads at once

    from rea_rl.study.report import write_report

    places = make_places(args)
    base = runs[0]

    def finish(run: Run) -> None:
        place = places.get()
        try:
            if not run.trained:
                train(run, place.ready(run, args.model, args.recipe_set), args)
            if not run.evaluated:
                evaluate(
                    run,
                    place.ready(base, args.model, args.recipe_set),
                    args,
                    lambda: first.result() or base.scores,
                )
        finally:
            places.put(place)

    with ExitStack() as at_the_end, ThreadPoolExecutor(places.qsize()) as pool:
        for place in list(places.queue):
            at_the_end.callback(place.stop)  # its servers
        first = pool.submit(finish, base)
        futures = [first, *(pool.submit(finish, run) for run in runs[1:])]
        try:
            for future in as_completed(futures):
                future.result()
                if base.evaluated:
                    write_report(args, [run for run in runs if run.evaluated])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def stop(signum: int, _: Any) -> NoReturn:
    """End the trainers too, which would wait for the servers; they write a checkpoint first."""
    import psutil

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    children = psutil.Process().children()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    psutil.wait_procs(children, STOP_SECONDS)
    sys.exit(128 + signum)


@command(ConnectionError, subprocess.CalledProcessError)
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line for a mistake, or if a row's training fails; others are kept."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    args = parse_arguments(argv)
    runs = all_runs(args)
    check_evaluations(runs, args)
    if args.dry_run:
        sys.stdout.write(plan(runs, args))
    else:
        run_all(runs, args)


if __name__ == "__main__":
    main()
