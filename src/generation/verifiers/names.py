"""Names of verifiers in recipes and on command lines, and the functions that they name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

MATH = "math"
SHIPPED = {name: f"generation.verifiers.{name}:{name}" for name in ("exact", "choice", "program")}
NAMES = (MATH, *SHIPPED)

# Whole responses and the rows of their problems, in the same order -> whether each is right
VerifierFunction = Callable[[list[str], list[dict[str, Any]]], Sequence[bool]]


def is_function(name: str) -> bool:
    """Whether a verifier is a function of responses and rows, and not the mathematical check."""
    return name != MATH


def needs_gold(name: str) -> bool:
    """Whether an empty gold answer leaves a verifier without anything to compare with."""
    return name in (MATH, "exact", "choice")


def check_name(name: str, key: str = "verifier") -> None:
    """Raise ValueError for a name that cannot be a verifier's; its code is not run."""
    if name in NAMES:
        return
    place, colon, function = name.rpartition(":")
    if not (colon and place and function.isidentifier()):
        raise ValueError(
            f"{key} is {name!r}; it must be {', '.join(NAMES)}, or name a function as "
            "module:function or path.py:function"
        )
    if place.endswith(".py") and not Path(place).expanduser().is_file():
        raise ValueError(f"{key} is {name!r}, but there is no file {place}")


def recorded_name(name: str) -> str:
    """Name of a verifier wherever its file lies."""
    place, colon, function = name.rpartition(":")
    return f"{Path(place).name}{colon}{function}" if place.endswith(".py") else name


def function_version(name: str) -> str:
    """Fingerprint of the file of a verifier's function. Raises ValueError if it is not found."""
    return hashlib.blake2b(_file_of(name).read_bytes(), digest_size=6).hexdigest()


def _file_of(name: str) -> Path:
    place = SHIPPED.get(name, name).rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place).expanduser()
    _look_in(os.getcwd())
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError) as error:
        raise ValueError(f"verifier is {name!r}, but there is no module {place}: {error}") from None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise ValueError(f"verifier is {name!r}, but there is no module {place}")
    return Path(found.origin)


def _look_in(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def load_function(name: str) -> VerifierFunction:
    """The function of a verifier; its module is run, so only worker processes call this.

    Raises whatever the module raises, AttributeError if it lacks the function, TypeError if that is
    none.
    """
    place, _, attribute = SHIPPED.get(name, name).rpartition(":")
    function = getattr(_load_module(place), attribute)
    if not callable(function):
        raise TypeError(f"{attribute} is {type(function).__name__}, and no function")
    return function


def _load_module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        _look_in(os.getcwd())
        return importlib.import_module(place)
    path = Path(place).expanduser().resolve()
    _look_in(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_golds(name: str, rows: Sequence[Mapping[str, Any]], file: str) -> None:
    """Raise ValueError naming the file and the first row from which a shipped verifier could not
    tell right from wrong."""
    if name not in SHIPPED:
        return
    check = importlib.import_module(f"generation.verifiers.{name}").check_gold
    for row in rows:
        try:
            check(row)
        except ValueError as error:
            raise ValueError(f"{file}: row {row['id']!r}: verifier {name}: {error}") from None
