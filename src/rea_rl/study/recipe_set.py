"""Settings of a recipe set for the study: `recipes/<set>/study.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rea_core.checks import is_a
from rea_core.recipe import read_recipe

FILE = "recipes/{}/study.yaml"


@dataclass(frozen=True)
class StudySet:
    """Problems and settings of a recipe set's evaluation, and sizes of rows with a target length.

    Attributes:
        generation: name of a file in `recipes/generation`, for answers to held-out problems.
        target, target_easy, target_hard: lengths in tokens.
        slope: of L1-Max, reward a token.
        buffer: of DAPO's punishment, in tokens.
        eval_dataset: held-out problems; None: they must be named.
        word_bounded: reflection words are whole words.
        slips: first results are read.
        work, out: folders; None: output/study-<set>, and <work>/report.
    """

    generation: str
    target: int
    target_easy: int
    target_hard: int
    slope: float
    buffer: int
    eval_dataset: str | None = None
    word_bounded: bool = False
    slips: bool = False
    work: str | None = None
    out: str | None = None

    @property
    def sizes(self) -> dict[str, Any]:
        """Values of the names in braces of a row's changes."""
        return vars(self)


def read_study_set(recipe_set: str) -> StudySet:
    """Settings of a set.

    Raises ValueError if it has none, and naming a key that is missing, unknown, or of another type.
    """
    path = FILE.format(recipe_set)
    if not Path(path).is_file():
        known = sorted(file.parent.name for file in Path("recipes").glob("*/study.yaml"))
        raise ValueError(
            f"recipe_set is {recipe_set}, but {path} is missing; the study knows "
            f"{', '.join(known)}; copy their file for another one"
        )
    given = read_recipe(path)
    known = {field.name: field for field in fields(StudySet)}
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"{path}: there is no key {unknown[0]}; there are {', '.join(known)}")
    needed = {*"generation target target_easy target_hard slope buffer".split()}
    if missing := sorted(needed - given.keys()):
        raise ValueError(f"{path}: the key {missing[0]} is missing; give it a value")
    for key, value in given.items():
        _check(path, key, value)
    return StudySet(**given)


def _check(path: str, key: str, value: Any) -> None:
    kind = {"slope": (int, float), "word_bounded": bool, "slips": bool}.get(key, str)
    kind = int if key in ("target", "target_easy", "target_hard", "buffer") else kind
    number = kind in (int, (int, float))
    if not is_a(value, kind) or (number and value <= 0):
        words = "a number greater than 0" if number else {bool: "true or false"}.get(kind, "a text")
        raise ValueError(f"{path}: {key} is {value!r}; it must be {words}")
