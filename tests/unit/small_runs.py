"""Runs of a few steps of `rea_rl.sft`, `rea_rl.dpo` and `rea_rl.grpo` on a tiny model, through
their commands."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer, completion
from tiny import make_tokenizer, save_model

NUM_ROWS = 16  # four steps of four rows, or of two problems with two paths each
PROGRAMS = ("sft", "dpo", "grpo")
SHARED = {
    "use_peft": "true", "lora_r": "4", "lora_alpha": "8", "lora_dropout": "0.0",
    "lora_target_modules": "q_proj v_proj",
    "bf16": "false", "use_cpu": "true", "learning_rate": "0.01", "max_steps": "3",
    "per_device_train_batch_size": "4",
    "gradient_accumulation_steps": "1", "save_steps": "1", "logging_steps": "1",
    "report_to": "none",
    "disable_tqdm": "true", "torch_threads": "1", "gradient_checkpointing": "false",
}  # fmt: skip
GRPO = {
    "revision": "false", "num_generations": "2", "reward_funcs": "accuracy",
    "max_completion_length": "24", "beta": "0.0",
    "max_rollout_lag": "0", "verifier_workers": "1", "server_deadline": "5",
    "request_timeout": "20",
    "vllm_importance_sampling_clip_max": "2.0", "prompt_template": "{problem}",
}  # fmt: skip


def make_workplace(folder: Path) -> Path:
    """Model, rows and problems of the runs."""
    save_model(folder / "model")
    rows = [
        {
            "prompt": f"<U>{i}<A>",
            "completion": "ab" * (1 + i % 5),
            "chosen": "ab" * (1 + i % 5),
            "rejected": "cd",
        }
        for i in range(NUM_ROWS)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    problems = [
        {"id": f"p{i}", "problem": f"{i}+1?", "answer": str(i + 1)} for i in range(NUM_ROWS // 2)
    ]
    (folder / "problems.json").write_text(json.dumps(problems))
    return folder


def arguments(program: str, folder: Path, **changes: Any) -> list[str]:
    """Flags of a run of three steps, in the middle of an epoch. A change to None leaves a flag
    out."""
    data = {"dataset_name": folder / ("problems.json" if program == "grpo" else "rows.json")}
    places = {"model_name_or_path": folder / "model", "output_dir": folder / "out", **data}
    flags = {**SHARED, **(GRPO if program == "grpo" else {}), **places, **changes}
    return [
        part
        for key, value in flags.items()
        if value is not None
        for part in (f"--{key}", *str(value).split(" "))
    ]


def run(program: str, folder: Path, **changes: Any) -> None:
    """The command, in this process."""
    importlib.import_module(f"rea_rl.{program}").main(arguments(program, folder, **changes))


def refusal(program: str, folder: Path, **changes: Any) -> str:
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as stop:
        run(program, folder, **changes)
    assert str(stop.value).startswith("error: ") and "\n" not in str(stop.value)
    return str(stop.value)


@contextlib.contextmanager
def policy_server(model: Path) -> Iterator[ScriptedServer]:
    """A server of the model whose paths are right by turns."""
    tokenizer, turns = make_tokenizer(), itertools.count()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def complete(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        problem = tokenizer.decode(body["prompt"]).split("<U>")[1]
        answer = int(problem.split("+")[0]) + next(turns) % 2
        return completion([*encode(f"x</think>\\boxed{{{answer}}}"), tokenizer.eos_token_id])

    with ScriptedServer(complete, [str(model)]) as server:
        server.encode = encode
        yield server


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def logged(folder: Path, key: str = "loss") -> list[float]:
    """A logged value of each step, of a complete run."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in history if "loss" in entry]
