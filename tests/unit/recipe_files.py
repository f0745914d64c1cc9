"""A recipe of tests, written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rea_core.row_files import write_json

PROBLEMS = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(9)]


def write_recipe(folder: Path, model: Path, changes: str = "{}") -> list[str]:
    """A recipe that is right but for the changes, its problems beside it; flags that read it."""
    write_json(folder / "problems.json", PROBLEMS)
    recipe = {
        "model_name_or_path": str(model), "use_peft": True, "lora_r": 8, "lora_alpha": 16,
        "lora_dropout": 0.0,
        "dataset_name": "problems.json", "output_dir": "out", "reflection_model": str(model),
        "report_to": "none",
        "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 64,
        "max_rollout_lag": 0,
        "tokens_per_reflection": 9.0, "vllm_importance_sampling_clip_max": 2.0, "use_cpu": True,
        "bf16": False,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | yaml.safe_load(changes)))
    return ["--config", "recipe.yaml"]


def read_recipe(flags: list[str]) -> tuple[Any, ...]:
    """Everything that the trainer does before it asks servers and loads the model."""
    from rea_rl.grpo import load_inputs, parse_recipe

    parsed = parse_recipe(flags)
    return *parsed, load_inputs(*parsed)
