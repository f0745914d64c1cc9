"""Two training steps of a recipe set through its launcher, with a model of its family and random
weights.

    python scripts/benchmark/two_steps.py Qwen3-1.7B                     # a GPU, real size
    python scripts/benchmark/two_steps.py DeepSeek-R1-Distill-Qwen-1.5B
    python scripts/benchmark/two_steps.py Qwen3-1.7B --tiny     # a CPU, as in CI
    # next to another run of this machine
    python scripts/benchmark/two_steps.py Qwen3-1.7B --port 23456 --out output/two_steps/second

No response of random weights is right, so nothing would be learned. The verifier therefore calls
every other response right. It prints, and writes to `steps.json`, what each step logged: the loss,
the norm of its gradient, and times. It ends with an error if a gradient is 0 or no number.

Servers are not compiled unless --compile is given: for two steps that would take longer than they
do, more than four minutes for the 1.7B.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from serving import ROOT, make_model, report

from rea_core.row_files import write_json

VERIFIER = '''"""Calls every other response right, whatever it says."""

import itertools

TURN = itertools.cycle((True, False))


def every_other(responses, rows):
    return [next(TURN) for _ in responses]
'''
# As Qwen3's: a prompt ends without a marker, or closes the thinking if the keyword says so.
HYBRID = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|Assistant|>' + "
    "message['content'].split('</think>')[-1] + eos_token }}{% else %}{{ '<|User|>' + "
    "message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|Assistant|>' }}{% if enable_thinking is defined and not enable_thinking %}{{ "
    "'<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
TINY = (128, 256, 2, 4, 2, 2048, 32, 2048)
SHOWN = ("loss", "grad_norm", "timing/rollout", "timing/step", "revision/missing")


@dataclass(frozen=True)
class Family:
    """Architecture of a recipe set's model, its sizes, and a template of the same structure; None
    for R1's."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    template: str | None = None
    tied: bool = False  # the head's weights are the embedding's

    def dimensions(self, tiny: bool) -> dict[str, Any]:
        """Keys of its config; the tiny one has layers of the same form."""
        keys = (
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "vocab_size", "head_dim", "max_position_embeddings"),
        )
        real = (self.hidden, self.intermediate, self.layers, self.heads, self.kv_heads)
        sizes = TINY if tiny else (*real, self.vocabulary, 128, 32768)
        return {**dict(zip(keys, sizes, strict=True)), "tie_word_embeddings": self.tied}


FAMILIES = {
    "DeepSeek-R1-Distill-Qwen-1.5B": Family("qwen2", 1536, 8960, 28, 12, 2, 151936),
    "DeepSeek-R1-Distill-Llama-8B": Family("llama", 4096, 14336, 32, 32, 8, 128256),
    "Qwen3-1.7B": Family("qwen3", 2048, 6144, 28, 16, 8, 151936, HYBRID, tied=True),
    "Qwen3-8B": Family("qwen3", 4096, 12288, 36, 32, 8, 151936, HYBRID),
}


def command(arguments: argparse.Namespace, folder: Path, model: Path) -> list[str]:
    """The launcher with the recipe's settings, but for size, data and verifier."""
    values: dict[str, Any] = {
        "model_name_or_path": model, "reflection_model": folder / "reflection",
        "dataset_name": ROOT / "dataset" / "miniature" / "train_rl.json",
        "tokens_per_reflection_file": folder / "tokens_per_reflection.json",
        "verifier": f"{folder / 'every_other.py'}:every_other", "verifier_workers": 1,
        "output_dir": folder / "run", "max_steps": 2, "save_strategy": "no", "warmup_steps": 0,
        "max_completion_length": arguments.completion_tokens, "finish_max_tokens": 16,
        "paragraph_min_tokens": 1,
    }  # fmt: skip
    if arguments.tiny:
        values |= {"prompts_per_step": 4, "dtype": "float32", "bf16": "false"}
    given = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    return ["bash", str(ROOT / "scripts" / "reflect_rl.sh"), *given]


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Variables of the launcher."""
    variables = {
        "RECIPE_SET": arguments.recipe_set,
        "SERVER_COMPILE": str(arguments.compile).lower(),
    }
    if arguments.port is not None:
        variables["SERVER_PORT"] = str(arguments.port)
    return os.environ | variables


def prepare(arguments: argparse.Namespace, folder: Path) -> Path:
    """Models, verifier and threshold; the policy's folder."""
    family = FAMILIES[arguments.recipe_set]
    model = folder / arguments.recipe_set
    if not model.is_dir():
        sizes = family.dimensions(arguments.tiny)
        make_model(sizes, model, family.name, family.template)
    copy_reflection_model(folder / "reflection")
    (folder / "every_other.py").write_text(VERIFIER)
    write_json(
        folder / "tokens_per_reflection.json", {"tokens_per_reflection": 60.0, "word_bounded": True}
    )
    return model


def copy_reflection_model(folder: Path) -> None:
    """The miniature's, untrained, with a longer context: words at random have many of its
    tokens."""
    shutil.copytree(ROOT / "model" / "Miniature-Instruct", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16384}))


def logged_steps(output: Path) -> list[dict[str, float]]:
    """Log of each step. Raises SystemExit if a gradient is 0 or no number."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "grad_norm" in entry]
    wrong = [s for s in steps if not (math.isfinite(s["grad_norm"]) and s["grad_norm"] > 0)]
    if len(steps) != 2 or wrong:
        sys.exit(f"error: {output} has {len(steps)} steps, and gradients of {wrong}")
    return steps


def main(argv: list[str] | None = None) -> None:
    """Make the model, train it, and print what was logged."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("recipe_set", choices=FAMILIES)
    parser.add_argument("--tiny", action="store_true", help="a model of 0.5M parameters")
    parser.add_argument("--completion_tokens", type=int, default=1024, help="of each response")
    parser.add_argument("--compile", action="store_true", help="GPU: compile the servers' models")
    parser.add_argument("--port", type=int, help="of the first server (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="default: output/two_steps/RECIPE_SET")
    arguments = parser.parse_args(argv)
    folder = (arguments.out or ROOT / "output" / "two_steps" / arguments.recipe_set).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "run" / "trainer_state.json").exists():
        parser.error(f"{folder / 'run'} is complete; delete it, or give another --out")
    model = prepare(arguments, folder)
    line = command(arguments, folder, model)
    if code := subprocess.run(line, env=environment(arguments)).returncode:
        sys.exit(code)  # the launcher has said why
    steps = logged_steps(folder / "run")
    table = [["step", *SHOWN]]
    for number, step in enumerate(steps, 1):
        table.append([str(number), *(f"{step[key]:.4g}" if key in step else "" for key in SHOWN)])
    results = {"recipe_set": arguments.recipe_set, "compile": arguments.compile, "steps": steps}
    report("two_steps", table, results, str(folder / "steps.json"))


if __name__ == "__main__":
    main()
