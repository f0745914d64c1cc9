"""Steps per hour of whole training runs on real vLLM servers, in one run.

    python scripts/benchmark/end_to_end.py                # the miniature's recipes, full size
    python scripts/benchmark/end_to_end.py --tiny         # as in CI
    # GPUs: the 7B's recipes, its dimensions, random weights
    python scripts/benchmark/end_to_end.py --preset 7b

    GRPO, 2G samples     config_GRPO_Gen8: as many trained rows as REA-RL
    REA-RL               config_ReflectRL, max_rollout_lag 0: servers and trainer take turns
    REA-RL, overlap      the same with max_rollout_lag 1

On GPUs, start two servers by hand on the first (see serving.py) and give this program --servers,
--model and the second
GPU: CUDA_VISIBLE_DEVICES=1. If servers and trainer share a CPU, the overlapped trainer gets half
of the threads: threads of OpenMP that lose their core to a server hold up all others. The other two
runs have them all. Steps are timed from the end of the first to the end of the last but one: the
first waits for cold servers, and next to the last no rollout is made. The reflection model is the
untrained one of the miniature unless one is given: it writes labels of the right form without
sense, which is the same work.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from serving import ROOT, add_arguments, model_folder, report, running_servers, spread

from rea_core.row_files import write_json

RUNS = {
    "GRPO, 2G samples": ("GRPO_Gen8", ["--max_rollout_lag", "0"]),
    "REA-RL": ("ReflectRL", ["--max_rollout_lag", "0"]),
    "REA-RL, overlap": ("ReflectRL", ["--max_rollout_lag", "1"]),
}
RECIPES = {
    "miniature": "miniature",
    "7b": "DeepSeek-R1-Distill-Qwen-7B",
    "1.5b": "DeepSeek-R1-Distill-Qwen-7B",
}
HALF_THE_THREADS = ["--torch_threads", str(max(os.cpu_count() // 2, 1))]
TINY = ["--max_completion_length", "200", "--rows_per_forward", "4"]


def options(
    variant: str, arguments: argparse.Namespace, models: list[str], urls: list[str], output: str
) -> list[str]:
    """Command line of one run."""
    recipe = ROOT / "recipes" / RECIPES[arguments.preset] / f"config_{variant}.yaml"
    values: dict[str, Any] = {
        "config": recipe, "model_name_or_path": models[0],
        "dataset_name": ROOT / "dataset" / "miniature" / "train_rl.json", "policy_server": urls[0],
        "output_dir": output,
        "max_steps": arguments.steps, "eval_strategy": "no", "save_strategy": "no",
        "disable_tqdm": "true",
    }  # fmt: skip
    if variant == "ReflectRL":
        values |= {"reflection_model": models[1], "reflection_server": urls[1]}
        values["always_cut"] = "true"  # the untrained reflection model sees no results
    if variant == "ReflectRL" and arguments.preset == "miniature":
        values["tokens_per_reflection_file"] = f"{output}.json"
        write_json(Path(f"{output}.json"), {"tokens_per_reflection": 60.0, "word_bounded": True})
    if arguments.preset != "miniature":
        values["max_completion_length"] = arguments.completion_tokens
    given = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    if arguments.tiny:
        given += [*TINY, "--prompts_per_step", "2"]
    return given


KEYS = ("timing/rollout", "timing/rollout_wait", "timing/weight_sync", "revision/cached_prompt")


def run(argv: list[str], keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """Seconds of each step in the middle of a run, their mean and spread, and means of what it
    logged under these keys."""
    import torch
    from transformers import TrainerCallback

    from rea_rl.grpo import build_engine, build_trainer, load_inputs, parse_recipe

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    data, args, model_args = parse_recipe(argv)
    inputs = load_inputs(data, args, model_args)
    with build_engine(args, model_args.model_name_or_path, inputs) as engine:
        trainer = build_trainer(args, model_args, inputs, engine)
        trainer.add_callback(Clock())
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry][1:-1]
    del trainer  # the next one needs its memory
    gc.collect()
    torch.cuda.empty_cache()
    means = {
        key: sum(entry[key] for entry in logged) / len(logged) for key in keys if key in logged[0]
    }
    steps = [after - before for before, after in pairwise(ends[:-1])]
    mean = sum(steps) / len(steps)
    return {"seconds_per_step": mean, "runs": steps, "spread": spread(steps), **means}


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--tiny", action="store_true", help="two prompts a step, short responses")
    parser.add_argument(
        "--steps", type=int, default=5, help="optimizer steps of each run, at least 3"
    )
    parser.add_argument(
        "--reflection_model",
        default=str(ROOT / "model" / "Miniature-Instruct"),
        help="the miniature's",
    )
    parser.add_argument(
        "--completion_tokens", type=int, default=1024, help="of each response, but the miniature's"
    )
    arguments = parser.parse_args()
    if arguments.steps < 3:
        parser.error(
            f"--steps is {arguments.steps}; the first and the last are not timed, so give 3 or more"
        )
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        policy = model_folder(arguments, Path(folder, "model"))
        reflection = arguments.reflection_model if arguments.preset == "miniature" else policy
        with running_servers({"policy": policy, "reflection": reflection}, arguments) as urls:
            for number, (name, (variant, flags)) in enumerate(RUNS.items()):
                if arguments.preset == "miniature" and "overlap" in name:
                    flags = flags + HALF_THE_THREADS
                argv = options(variant, arguments, [policy, reflection], urls, f"{folder}/{number}")
                results[name] = run(argv + flags)
    reference = results["REA-RL"]["seconds_per_step"]
    table = [["run", "steps/h", "s/step", "of REA-RL", "rollout s", "waited s"]]
    for name, values in results.items():
        seconds = values["seconds_per_step"]
        waits = [f"{values[key]:.2f}" for key in ("timing/rollout", "timing/rollout_wait")]
        table.append(
            [name, f"{3600 / seconds:.0f}", f"{seconds:.2f}", f"{seconds / reference:.2f}", *waits]
        )
    halves = results["REA-RL"]["timing/rollout"], reference - results["REA-RL"]["timing/rollout"]
    overlap = results["REA-RL, overlap"]["seconds_per_step"]
    ratios = {
        "overlap_of_longer_half": overlap / max(halves),
        "overlap_of_sum": overlap / sum(halves),
    }
    sizes = {
        key: getattr(arguments, key) for key in ("preset", "tiny", "steps", "completion_tokens")
    }
    report("end_to_end", table, {**sizes, **ratios, "runs": results}, arguments.json)


if __name__ == "__main__":
    main()
