"""Files and flags of the trainings of `rea_rl.sft` and `rea_rl.dpo` in tests."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import save_model

PAIR = {"prompt": "<U>1<A>", "chosen": "one", "rejected": "one two"}


def write_rows(path: Path, rows: list) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def sft_arguments(tmp_path: Path, **changes: str) -> list[str]:
    """Flags of a run of four steps on eight rows."""
    rows = [
        {"prompt": "<U>1<A>", "completion": "one"},
        {"prompt": "<U>2<A>", "completion": "two"},
    ] * 4
    flags = {
        "model_name_or_path": str(save_model(tmp_path / "model")),
        "dataset_name": write_rows(tmp_path / "train.json", rows),
        "eval_dataset_name": write_rows(tmp_path / "eval.json", rows[:2]),
        "output_dir": str(tmp_path / "out"),
        "use_peft": "true",
        "lora_r": "4",
        "lora_target_modules": "q_proj v_proj",
        "bf16": "false",
        "use_cpu": "true",
        "learning_rate": "0.05",
        "max_steps": "4",
        "per_device_train_batch_size": "4",
        "save_steps": "2",
        "report_to": "none",
        "disable_tqdm": "true",
        **changes,
    }
    return [part for key, value in flags.items() for part in (f"--{key}", *value.split(" "))]


def dpo_arguments(tmp_path: Path, **changes: str) -> list[str]:
    pairs = write_rows(tmp_path / "pairs.json", [PAIR] * 8)
    losses = {
        "loss_type": "sigmoid sft",
        "loss_weights": "1.0 1.0",
        "beta": "0.1",
        "save_steps": "4",
    }
    files = {
        "dataset_name": pairs,
        "eval_dataset_name": pairs,
        "max_eval_rows": "2",
        "logging_steps": "1",
    }
    return sft_arguments(tmp_path, **{**files, **losses, **changes})
