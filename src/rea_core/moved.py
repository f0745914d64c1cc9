"""Old places of modules that have moved. `import`, `from ... import` and `python -m` of an old path
find the module at its new place, so scripts and notebooks of earlier versions still work.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

# Modules that have kept their name, by their old package and their new place.
ROOMS = {
    ("rea_rl", "rea_rl.run"): "continued dialogues lora monitors numerics resume run_record start "
    "stopping trl_keys",
    ("rea_rl", "rea_rl.rollout"): "endpoint lookahead probe reflection_check weight_sync",
    ("rea_rl", "rea_rl.packing"): "fork_check fused_lora logprobs recompute",
    ("rea_rl", "rea_rl.study"): "real_figures real_report",
    ("rea_rl", "rea_core"): "clients model_files recipe",
    ("generation", "rea_core"): "json_text",
    ("generation", "generation.evaluation"): "plots",
}
# Old module -> modules that have its names now; `python -m` runs the first. Modules that still
# exist are here for names that have left them.
MOVED = {
    **{f"{old}.{name}": [f"{new}.{name}"] for (old, new), n in ROOMS.items() for name in n.split()},
    "generation.eval_data": ["generation.evaluation.benchmarks"],
    "generation.eval_table": ["generation.evaluation.table"],
    "generation.generate": ["generation.arguments", "generation.tasks"],
    "generation.labeling_distill_utils": ["generation.path_cutting"],
    "generation.labeling_to_prefix": ["generation.cuts"],
    "generation.row_files": ["rea_core.row_files", "generation.generation_file"],
    "generation.splits": ["generation.stages", "generation.arguments"],
    "generation.strategy_report": ["generation.evaluation.strategies"],
    "generation.utils": "generation.generation_file rea_core.rows rea_core.checks "
    "rea_core.row_files rea_core.json_text".split(),
    "rea_rl.dialogues": ["rea_rl.run.dialogues", "rea_core.checks"],
    "rea_rl.entry": ["rea_rl.run.training", "rea_rl.run.endings"],
    "rea_rl.merge_lora": ["rea_core.models"],
    "rea_rl.packed_step": ["rea_rl.packing.step"],
    "rea_rl.revision": ["generation.cuts"],
    "rea_rl.rollout": ["rea_rl.rollout.engine", "rea_rl.rollout.record"],
    "rea_rl.shared_prefix": ["rea_rl.packing.prefix_tree"],
    "rea_rl.study": ["rea_rl.study.run", "rea_rl.study.rows"],
    "rea_rl.study_places": ["rea_rl.study.places"],
    "rea_rl.study_report": ["rea_rl.study.report"],
    "rea_rl.tree_attention": ["rea_rl.packing.attention"],
    "rea_rl.utils": "rea_core.models rea_core.problems rea_core.rows rea_core.command "
    "rea_core.clients rea_rl.run.checkpoints generation.measured".split(),
    "rea_rl.vllm_server": ["rea_core.models", "rea_rl.rollout.server_answers"],
}
# Old module -> program that is no part of the packages any more, in a checkout.
SCRIPTS = {"generation.gguf_to_hf": "scripts/gguf_to_hf.py"}


def names_of(old: str) -> Callable[[str], Any]:
    """`__getattr__` of a module: its names at their new places."""

    def find(name: str) -> Any:
        if not name.startswith("__"):
            for new in MOVED[old]:
                module = importlib.import_module(new)
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return find


class _OldModule(importlib.abc.InspectLoader):
    """Loads an old path: a module without names of its own, or for `python -m` a call of the new
    one."""

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = names_of(module.__name__)  # type: ignore[method-assign]

    def get_code(self, fullname: str) -> CodeType:
        new = MOVED[fullname][0]
        source = f"import runpy; runpy.run_module({new!r}, run_name='__main__', alter_sys=True)"
        return compile(source, fullname, "exec")

    def get_source(self, fullname: str) -> None:
        return None


class _Finder(importlib.abc.MetaPathFinder):
    """Finds old module paths that have no file; it is asked last."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in SCRIPTS:
            script = Path(__file__).parents[2] / SCRIPTS[fullname]
            return importlib.util.spec_from_file_location(fullname, script)
        known = fullname in MOVED
        return importlib.machinery.ModuleSpec(fullname, _OldModule()) if known else None


def install() -> None:
    """Let the import system know the table."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
