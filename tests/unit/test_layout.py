"""The house: which package may import which, no circles between files, and old places of
modules."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from rea_core.moved import MOVED

SRC = Path(__file__).parents[2] / "src"
FLOORS = ("rea_core", "generation", "rea_rl", "miniature")  # each may import those before it
FILES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SRC.rglob("*.py")
}


def imported(tree: ast.AST) -> set[str]:
    """Files that a file imports, late and type-only imports among them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in inner}
    return found & FILES.keys()


def imports() -> dict[str, set[str]]:
    return {name: imported(ast.parse(path.read_text())) for name, path in FILES.items()}


def floor(module: str) -> int:
    return FLOORS.index(module.partition(".")[0])


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """Files that import each other in a circle; None without one."""
    left = dict(graph)
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    if not left:
        return None
    path = [next(iter(left))]
    while path[-1] not in path[:-1]:
        path.append(next(iter(left[path[-1]] & left.keys())))
    return path[path.index(path[-1]) :]


def test_packages_import_only_those_below_them():
    upwards = [
        (name, target)
        for name, targets in imports().items()
        for target in targets
        if floor(target) > floor(name)
    ]
    assert upwards == []


def test_no_files_import_each_other_in_a_circle():
    assert circle(imports()) is None


def test_a_circle_and_its_files_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert circle(graph) in (["b", "c", "b"], ["c", "b", "c"])
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_functions_are_short():
    lengths = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > 52} == {}
    assert statistics.median(lengths.values()) <= 12


def test_the_page_on_architecture_names_every_file():
    page = (SRC.parent / "docs/architecture.md").read_text()
    tree = page[page.index("## Tree") : page.index("## A step")]
    in_rooms = ("rea_rl.run.", "rea_rl.study.", "generation.math_verify.", "generation.verifiers.")
    files = {name.rpartition(".")[2] for name in FILES if not name.startswith(in_rooms)}
    assert {name for name in files if name not in re.findall(r"\w+", tree)} == set()


def test_every_package_that_is_imported_is_declared():
    """A package that comes with another one today may not do so tomorrow, as httpx did."""
    names = {"yaml": "pyyaml"}
    found = {
        module.partition(".")[0]
        for path in FILES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    packages = found - {*sys.stdlib_module_names, *FLOORS}
    declared = (SRC.parent / "setup.py").read_text()
    missing = {
        name
        for name in (names.get(package, package).replace("_", "-") for package in packages)
        if not re.search(rf'"{name}(?:[<>=]=?[^"]*)?"', declared)
    }
    assert packages >= {"httpx", "numpy", "torch"} and missing == set()


def test_experimental_parts_of_trl_are_imported_in_one_file():
    """They move between its versions."""
    found = [name for name, path in FILES.items() if "trl.experimental" in path.read_text()]
    assert found == ["rea_rl.trl_experimental"]


def test_the_ground_floor_does_without_torch():
    names = [name for name in FILES if name.startswith("rea_core")]
    program = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("old", MOVED)
def test_old_places_find_modules_at_their_new_ones(old):
    new = importlib.import_module(MOVED[old][0])
    name = next(name for name in vars(new) if not name.startswith("_") and name != "annotations")
    assert hasattr(importlib.import_module(old), name), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        importlib.import_module(old).nothing  # noqa: B018


def test_an_old_place_is_run_as_the_program_at_its_new_one():
    command = [sys.executable, "-m", "generation.eval_table", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--save_to" in shown


def test_stages_are_those_that_the_arguments_know():
    from generation.arguments import SPLIT_NAMES
    from generation.stages import SPLITS

    assert set(SPLITS) == set(SPLIT_NAMES)


def test_test_files_share_helpers_through_modules_that_hold_no_tests():
    """A test file can then be renamed or removed without a look at the others."""
    files = sorted((SRC.parent / "tests").rglob("*.py"))
    found = [
        (path.name, name)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (getattr(node, "module", None), *(alias.name for alias in node.names))
    ]
    assert ("conftest.py", "fake_api") in found
    tests = {path.stem for path in files if path.stem.startswith("test_")}
    assert [(path, name) for path, name in found if name in tests] == []
