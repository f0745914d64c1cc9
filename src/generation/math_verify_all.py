"""Score files of `generation.generate`: accuracy, tokens, reflection, with intervals, as a table and as JSON.

    python -m generation.math_verify_all output/Miniature-LRM/test_math_cot_base.json \
        --model_dir model/Miniature-LRM --slips
    python -m generation.math_verify_all output/Miniature-LRM/test_math_cot_trained.json \
        --model_dir model/Miniature-LRM --slips --base output/Miniature-LRM/test_math_cot_base.scores.json

Writes `<file stem>.scores.json` beside each file. Intervals (95 %) come from a bootstrap over problems: the responses
to one problem stay together, because they are not independent. Every figure is a ratio of sums over problems.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tabulate import tabulate

from generation.prompts import THINK_START
from generation.reflection_words import count_reflections, tokens_per_reflection_quantile
from generation.segments import thinking_of
from generation.utils import read_generations, write_json
from rea_rl.utils import load_tokenizer, setup_logging

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_RESAMPLES = 2000
ALL = "all"  # the group of all responses, beside one group per level


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; None where it is not defined, as tokens per word where there is no word."""

    value: float | None
    low: float | None
    high: float | None

    def format(self, scale: float = 1.0, digits: int = 1) -> str:
        """`value +- half the width of the interval`, all times `scale`."""
        if self.value is None:
            return "-"
        half = "" if None in (self.low, self.high) else f" ± {(self.high - self.low) / 2 * scale:.{digits}f}"
        return f"{self.value * scale:.{digits}f}{half}"


@dataclass(frozen=True)
class ScoredResponse:
    """What is counted of one response."""

    correct: bool
    num_tokens: int
    num_think_tokens: int
    num_reflections: int
    truncated: bool
    first_right: bool | None = None  # whether the first result that the thinking states is right; only with slips

    @property
    def corrected(self) -> bool:
        """A wrong first result and a right answer."""
        return self.correct and not self.first_right


@dataclass(frozen=True)
class ScoredProblem:
    """The responses to one problem."""

    id: str
    level: int | str | None
    responses: list[ScoredResponse]

    @property
    def mean_tokens(self) -> float:
        return sum(r.num_tokens for r in self.responses) / len(self.responses)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """Sum of numerators over sum of denominators, one of each per problem, with a percentile bootstrap over problems.

    >>> ratio_interval([0, 4], [4, 4])  # two problems, four responses each: the interval is as wide as it can be
    Interval(value=0.5, low=0.0, high=1.0)
    """
    num, den = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)  # (P,)
    rng = np.random.default_rng(seed)
    # How often each problem is drawn: all that a ratio of sums needs to know of a resample.
    draws = rng.multinomial(len(num), np.full(len(num), 1 / len(num)), size=NUM_RESAMPLES)  # (R, P)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = num.sum() / den.sum()
        low, high = np.quantile((draws @ num) / (draws @ den), [0.025, 0.975])
    return Interval(*(float(x) if math.isfinite(x) else None for x in (value, low, high)))


def figures(problems: Sequence[ScoredProblem], base: dict[str, float] | None = None) -> dict[str, Interval]:
    """Figures of a set of problems, each weighing as much as it has responses.

    Args:
        problems: scored ones.
        base: mean tokens of the base model by problem id; adds `tr`, tokens in percent of the base model's.
    """

    def over(numerator: str, denominator: str | None = None) -> Interval:
        return ratio_interval(
            [sum(getattr(r, numerator) for r in p.responses) for p in problems],
            [sum(getattr(r, denominator) for r in p.responses) if denominator else len(p.responses) for p in problems],
        )

    result = {
        "accuracy": over("correct"),
        "tokens": over("num_tokens"),
        "think_tokens": over("num_think_tokens"),
        "truncated": over("truncated"),
        "tokens_per_word": over("num_think_tokens", "num_reflections"),
    }
    if all(r.first_right is not None for p in problems for r in p.responses):
        result |= {"first_right": over("first_right"), "corrected": over("corrected")}
    if base is not None:
        result["tr"] = ratio_interval([100 * p.mean_tokens for p in problems], [base[p.id] for p in problems])
    return result


def score_rows(
    rows: Sequence[dict[str, Any]],
    correct: Sequence[bool],
    tokenizer: PreTrainedTokenizerBase,
    *,
    word_bounded: bool = False,
    slips: bool = False,
) -> list[ScoredProblem]:
    """Count what is counted of every response.

    Args:
        rows: of a generation file.
        correct: one verdict per response, in order.
        tokenizer: counts thinking tokens, those before `</think>`.
        word_bounded: count whole reflection words only.
        slips: read the first stated result of each thinking, which the miniature's oracle knows how to do.
    """
    thinkings = [thinking_of(r["text"].removeprefix(THINK_START)) for row in rows for r in row["responses"]]
    num_think_tokens = [len(ids) for ids in tokenizer(thinkings, add_special_tokens=False).input_ids]
    verdicts = zip(correct, thinkings, num_think_tokens, strict=True)

    def score(response: dict[str, Any], answer: str) -> ScoredResponse:
        is_correct, thinking, tokens = next(verdicts)
        return ScoredResponse(
            correct=is_correct,
            num_tokens=response["num_tokens"],
            num_think_tokens=tokens,
            num_reflections=count_reflections(thinking, word_bounded),
            truncated=response["finish_reason"] == "length",
            first_right=_first_right(thinking, answer) if slips else None,
        )

    problems: dict[str, ScoredProblem] = {}
    for row in rows:
        problem = problems.setdefault(problem_id(row), ScoredProblem(problem_id(row), row.get("level"), []))
        problem.responses.extend(score(r, row["answer"]) for r in row["responses"])
    return list(problems.values())


def problem_id(row: dict[str, Any]) -> str:
    """Problem of a row: several rows may be paths of one, which then stay together in the intervals."""
    return row.get("problem_id", row["id"])


def _first_right(thinking: str, answer: str) -> bool:
    from miniature.oracle import stated_results

    results = stated_results(thinking)
    return bool(results) and results[0][1] == int(answer)


def groups(problems: Sequence[ScoredProblem]) -> dict[str, list[ScoredProblem]]:
    """All problems, and where rows have a `level` those of each level, easiest first."""
    levels = sorted({p.level for p in problems if p.level is not None})
    return {ALL: list(problems)} | {f"level {level}": [p for p in problems if p.level == level] for level in levels}


def score_file(path: Path, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> dict[str, Any]:
    """Scores of one generation file, as they are written: figures by group, and every problem's counts."""
    from generation.math_verify import VerifierPool

    rows = read_generations(path)
    base = read_base_tokens(args.base, {problem_id(row) for row in rows}) if args.base else None
    with VerifierPool(args.num_workers, timeout=args.timeout, mode=args.mode) as pool:
        golds = [row["answer"] for row in rows for _ in row["responses"]]
        correct = pool.verify(golds, [r["text"] for row in rows for r in row["responses"]])
    problems = score_rows(rows, correct, tokenizer, word_bounded=args.word_bounded, slips=args.slips)
    by_group = {name: figures(group, base) for name, group in groups(problems).items()}
    scores = {
        "file": str(path),
        "num_problems": len(problems),
        "num_responses": len(correct),
        "mode": args.mode,
        "word_bounded": args.word_bounded,
        "groups": {name: {key: asdict(value) for key, value in f.items()} for name, f in by_group.items()},
        "problems": [{**asdict(p), "mean_tokens": p.mean_tokens} for p in problems],
    }
    if args.reflection_quantile is not None:
        responses = [r for p in problems for r in p.responses]
        scores["tokens_per_reflection"] = tokens_per_reflection_quantile(
            [r.num_reflections for r in responses], [r.num_think_tokens for r in responses], args.reflection_quantile
        )
    return scores


def read_scores(path: str | Path) -> dict[str, Any]:
    """Scores that an earlier run wrote. Raises ValueError if there are none."""
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; score the base model's file first")
    scores = json.loads(Path(path).read_text())
    if not isinstance(scores, dict) or "groups" not in scores:
        raise ValueError(f"{path} holds no scores; it must be a .scores.json file of generation.math_verify_all")
    return scores


def read_base_tokens(path: str | Path, ids: set[str]) -> dict[str, float]:
    """Mean tokens of the base model by problem. Raises ValueError if it was scored on other problems."""
    tokens = {p["id"]: p["mean_tokens"] for p in read_scores(path)["problems"]}
    if tokens.keys() != ids:
        raise ValueError(
            f"{path} was scored on other problems: {len(tokens.keys() - ids)} of its {len(tokens)} are not in this "
            f"file, and {len(ids - tokens.keys())} of this file's {len(ids)} are not in it"
        )
    return tokens


def table(scored: dict[str, dict[str, Any]]) -> str:
    """Table of scores by name: a row each, then accuracy and corrected slips by level where there are levels."""
    columns = {
        "accuracy %": ("accuracy", 100, 1),
        "tokens": ("tokens", 1, 0),
        "TR %": ("tr", 1, 1),
        "thinking": ("think_tokens", 1, 0),
        "truncated %": ("truncated", 100, 1),
        "tokens/word": ("tokens_per_word", 1, 0),
        "corrected %": ("corrected", 100, 1),
    }
    overall = [
        [name, *(_cell(s["groups"][ALL].get(key), scale, digits) for key, scale, digits in columns.values())]
        for name, s in scored.items()
    ]
    parts = [tabulate(overall, ["", *columns], disable_numparse=True, stralign="right")]
    levels = [name for name in next(iter(scored.values()))["groups"] if name != ALL]
    for title, key in (("accuracy %", "accuracy"), ("corrected %", "corrected")):
        rows = [
            [name, *(_cell(s["groups"].get(level, {}).get(key), 100, 1) for level in levels)]
            for name, s in scored.items()
        ]
        if levels and any(cell != "-" for row in rows for cell in row[1:]):
            parts.append(tabulate(rows, [title, *levels], disable_numparse=True, stralign="right"))
    return "\n\n".join(parts) + "\n"


def _cell(figure: dict[str, float | None] | None, scale: float, digits: int) -> str:
    return Interval(**figure).format(scale, digits) if figure else "-"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Score files of generation.generate.")
    parser.add_argument("files", nargs="+", type=Path, help="generation files")
    parser.add_argument("--model_dir", required=True, help="model whose tokenizer counts thinking tokens")
    parser.add_argument("--base", type=Path, help=".scores.json file of the base model, for TR")
    parser.add_argument("--mode", default="strict", help="how answers are compared: strict or original")
    parser.add_argument("--slips", action="store_true", help="miniature: count corrected wrong first results")
    parser.add_argument("--word_bounded", action="store_true", help="count whole reflection words only")
    parser.add_argument(
        "--reflection_quantile", type=float, help="also write tokens_per_reflection, the reflect reward's threshold"
    )
    parser.add_argument("--num_workers", type=int, default=2, help="processes that compare answers")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds before an answer counts as wrong")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Exit code 0 after all files are scored, 1 with one line on stderr for a mistake in the arguments or files."""
    setup_logging()
    args = parse_arguments(argv)
    try:
        scored = {"base": read_scores(args.base)} if args.base else {}
        tokenizer = load_tokenizer(args.model_dir, "model_dir")
        for path in args.files:
            scored[path.stem] = score_file(path, tokenizer, args)
            write_json(path.with_suffix(".scores.json"), scored[path.stem])
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(table(scored))


if __name__ == "__main__":
    main()
