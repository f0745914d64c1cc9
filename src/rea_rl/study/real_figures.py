"""Counts and figures of the rows of `scripts/real.sh`, with intervals; no files are written here.

Intervals (95 %) come from a bootstrap that draws problems and, if a row has several, seeds of
its training. All rows share the draws of problems, so that a difference of two rows is one of the
same problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from generation.answer_judge import AnswerJudge
from generation.generation_file import read_generations
from generation.prompts import RIGHT_RESULT, WRONG_RESULT
from generation.reflection_words import count_reflections
from generation.rendering import thinking_in
from generation.scoring import Interval, against, interval, intervals, resampled_ratios
from rea_core.problems import problem_digest
from rea_core.row_files import Row
from rea_core.rows import read_rows

Figures = dict[str, dict[str, Interval]]  # by group, or row, and name
Curves = dict[str, dict[int, Interval]]  # by row and budget
BUDGETS = (64, 128, 256, 512, 1024, 2048)
TITLES = {
    "instruct": "instruct model",
    "solver": "solver",
    "lrm": "reasoning model (LRM)",
    "lrm_cut": "LRM, cut by the reflection model, no training",
    "sft": "SFT on cut responses",
    "rpo": "RPO on cut responses",
    "grpo": "GRPO",
    "grpo_len": "GRPO + length",
    "reward_only": "reflection reward only",
    "model_only": "reflection model only",
    "rea_rl": "REA-RL",
    "sigmoid": "Arora & Zanette",
    "l1_max": "L1-Max",
}
DIFFERENCES = (
    *(
        ("rea_rl", "lrm"),
        ("rea_rl", "grpo"),
        ("rea_rl", "grpo_len"),
        ("grpo_len", "lrm"),
        ("grpo", "lrm"),
    ),
    ("lrm", "solver"),
)
STUDY_NAMES = {"base": "lrm"}  # of rows that the study calls otherwise
WITHOUT_THINKING = ("instruct", "solver")


@dataclass(frozen=True)
class RowData:
    """Counts of one row's responses, each (S, P, A): seeds, problems, answers."""

    name: str
    counts: dict[str, np.ndarray]
    files: list[str]

    @property
    def num_seeds(self) -> int:
        return len(self.counts["correct"])

    def ratios(self, inside: np.ndarray) -> dict[str, np.ndarray]:
        """(1 + R,) values of all figures over some problems."""
        counts = {name: values.sum(axis=2) for name, values in self.counts.items()}
        return resampled_ratios(counts, RATIOS, inside)


# name -> numerator, denominator, factor; sums over responses
RATIOS: dict[str, tuple[str, str, float]] = {
    "accuracy": ("correct", "responses", 1),
    "tokens": ("num_tokens", "responses", 1),
    "tokens_right": ("tokens_right", "correct", 1),
    "tokens_wrong": ("tokens_wrong", "wrong", 1),
    "truncated": ("truncated", "responses", 1),
    "words": ("reflections", "think_tokens", 1000),
    "rechecks": ("rechecks", "think_tokens", 1000),
    "rechecks_per_response": ("rechecks", "responses", 1),
    "mistakes": ("mistakes", "responses", 1),
    "corrected": ("corrected", "mistakes", 1),
    "after_first": ("after_first", "think_tokens_right", 1),
}


# --- Counting -------------------------------------------------------------------------------------


def read_row(
    name: str, files: Sequence[Path], problems: Sequence[Row], counter: Counter
) -> RowData:
    """Counts of a row's generation files, one a seed. Raises ValueError for other problems."""
    seeds = [counter.count(path, problems, thinks=name not in WITHOUT_THINKING) for path in files]
    keys = seeds[0][0][0]

    def counted(key: str) -> np.ndarray:
        values = [[[response[key] for response in one] for one in seed] for seed in seeds]
        return np.array(values, dtype=float)

    counts = {key: counted(key) for key in keys}
    return RowData(name, counts, [str(path) for path in files])


class Counter:
    """Counts responses of generation files; verdicts come from their `.verdicts.jsonl`, labels of
    the parts of a thinking from the judge."""

    def __init__(self, judge: AnswerJudge, tokenizer: Any):
        self._judge, self._tokenizer = judge, tokenizer

    def count(
        self, path: Path, problems: Sequence[Row], thinks: bool
    ) -> list[list[dict[str, float]]]:
        """Counts by problem and answer, problems in the order of `problems`."""
        verdicts = read_verdicts(path)
        by_problem: dict[str, list[dict[str, float]]] = {}
        asked: dict[str, str] = {}
        for row in read_generations(path):
            key = row.get("problem_id", row["id"])
            asked[key] = problem_digest(row["problem"])
            for sample, response in enumerate(row["responses"]):
                correct = verdict_on(row, sample, verdicts, path)
                counts = self._count(response, correct, row["answer"], thinks)
                by_problem.setdefault(key, []).append(counts)
        if asked != {row["id"]: problem_digest(row["problem"]) for row in problems}:
            raise ValueError(f"{path} has other problems than the other rows; evaluate it again")
        return [by_problem[row["id"]] for row in problems]

    def _count(self, response: Row, correct: bool, gold: str, thinks: bool) -> dict[str, float]:
        """Counts of one response of a generation file."""
        thinking = thinking_in(response)
        parts = [part for part in thinking.split("\n\n") if part.strip()] if thinks else []
        labels = self._judge.labels(parts, gold)
        stated = [label for label in labels if label in (RIGHT_RESULT, WRONG_RESULT)]
        mistake = bool(stated) and stated[0] == WRONG_RESULT
        think_tokens = self._num_tokens(thinking) if thinks else 0
        first = labels.index(RIGHT_RESULT) if RIGHT_RESULT in labels else None
        after = 0 if first is None else self._num_tokens("\n\n".join(parts[first + 1 :]))
        return {
            "responses": 1,
            "correct": correct,
            "wrong": not correct,
            "num_tokens": response["num_tokens"],
            "tokens_right": response["num_tokens"] * correct,
            "tokens_wrong": response["num_tokens"] * (not correct),
            "truncated": response["finish_reason"] == "length",
            "think_tokens": think_tokens,
            "think_tokens_right": think_tokens if first is not None else 0,
            "reflections": count_reflections(thinking, word_bounded=True),
            "rechecks": max(len(stated) - 1, 0),
            "mistakes": mistake,
            "corrected": mistake and correct,
            "after_first": after,
        }

    def _num_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))


Verdicts = dict[tuple[str, int], Row]  # lines by row and sample


def read_verdicts(path: Path) -> Verdicts:
    """Verdicts on the responses of a generation file."""
    file = path.with_suffix(".verdicts.jsonl")
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist; score {path} first, with generation.math_verify_all"
        )
    return {(line["id"], line["sample"]): line for line in read_rows(str(file))}


def verdict_on(row: Row, sample: int, verdicts: Verdicts, path: Path) -> bool:
    """Whether a response is right. Raises ValueError for the verdict on another one."""
    found = verdicts.get((row["id"], sample), {})
    about: Row = {"problem_digest": problem_digest(row["problem"])}
    if found.get("budget") is None:
        about["num_tokens"] = row["responses"][sample]["num_tokens"]
    if not found or any(found.get(key, value) != value for key, value in about.items()):
        raise ValueError(
            f"{path}: the verdict on response {sample} of row {row['id']!r} is missing, or on "
            "another response; score the file again"
        )
    return found["correct"]


# --- Figures --------------------------------------------------------------------------------------


def budget_curve(row: RowData, inside: np.ndarray) -> dict[int, np.ndarray]:
    """(1 + R,) accuracy at each budget: a response that needs more tokens has no answer."""
    right, tokens = row.counts["correct"], row.counts["num_tokens"]
    counts = {str(b): (right * (tokens <= b)).sum(axis=2) for b in BUDGETS}
    counts["responses"] = row.counts["responses"].sum(axis=2)
    ratios = {str(b): (str(b), "responses", 1.0) for b in BUDGETS}
    shares = resampled_ratios(counts, ratios, inside)
    return {b: shares[str(b)] for b in BUDGETS}


def area(curve: dict[int, np.ndarray]) -> np.ndarray:
    """(1 + R,) mean height of a curve over the logarithm of the budget."""
    x, heights = np.log2(list(curve)), np.stack(list(curve.values()))
    return np.trapezoid(heights, x, axis=0) / np.ptp(x)


@dataclass(frozen=True)
class Report:
    """All figures: by row and group, differences between rows, and curves."""

    figures: dict[str, Figures]
    differences: Figures
    curves: Curves


def groups_of(problems: Sequence[Row]) -> dict[str, np.ndarray]:
    """Which problems are in each group: all, the sets, and the levels of difficulty."""
    names = {"all": np.ones(len(problems), bool)}
    for key in ("benchmark", "level"):
        for value in sorted({row[key] for row in problems if row.get(key)}):
            names[value] = np.array([row.get(key) == value for row in problems])
    return names


def make_report(rows: Sequence[RowData], problems: Sequence[Row]) -> Report:
    """Figures of all rows; the row `lrm` is what tokens are relative to."""
    groups = groups_of(problems)
    by_name = {row.name: row for row in rows}
    figures: dict[str, Figures] = {row.name: {} for row in rows}
    overall, curves = {}, {}
    for group, inside in groups.items():
        base = by_name["lrm"].ratios(inside)
        for row in rows:
            ratios = against(row.ratios(inside), base)
            if group == "all":
                curve = budget_curve(row, inside)
                curves[row.name] = {b: interval(values) for b, values in curve.items()}
                overall[row.name] = ratios | {"area": area(curve)}
                ratios = overall[row.name]
            figures[row.name][group] = intervals(ratios, int(inside.sum()))
    if (inside := groups.get("GSM8K")) is not None:
        for name, ratios in overall.items():
            ratios["accuracy, GSM8K"] = by_name[name].ratios(inside)["accuracy"]
    return Report(figures, _differences(overall), curves)


def _differences(overall: dict[str, dict[str, np.ndarray]]) -> Figures:
    """Paired differences between rows, from their resampled figures."""
    keys = ("accuracy", "tokens", "words", "corrected", "accuracy, GSM8K", "area")
    return {
        f"{name} - {other}": {
            key: interval(overall[name][key] - overall[other][key])
            for key in keys
            if key in overall[name]
        }
        for name, other in DIFFERENCES
        if name in overall and other in overall
    }
