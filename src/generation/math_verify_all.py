r"""Score files of `generation.generate`: accuracy, tokens, reflection, with intervals, as a table
and as JSON.

    python -m generation.math_verify_all output/Miniature-LRM/test_math_cot_base.json \
        --model_dir model/Miniature-LRM --slips
    python -m generation.math_verify_all output/Miniature-LRM/test_math_cot_trained.json \
        --model_dir model/Miniature-LRM --slips \
        --base output/Miniature-LRM/test_math_cot_base.scores.json
    python -m generation.math_verify_all A.json B.json \
        --model_dir model/DeepSeek-R1-Distill-Qwen-7B --budgets 8192 16384

Next to each file it writes `<file stem>.scores.json` and `<file stem>.verdicts.jsonl`, one line per
response and budget. It appends one line per file to `output/verify.json` (JSON lines), under a
lock. With `--budgets`, responses are cut to so many tokens and what is left is judged; the figures
are then the largest budget's, with those of each under `budgets`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from generation.counting import (
    MOST_ASKED,
    CountedRow,
    Counting,
    Judged,
    count_rows,
    head_of,
)
from generation.figure_table import Column, percent, render
from generation.generation_file import read_generations
from generation.identity import match_problems
from generation.parallel import Shared, map_rows, num_cores
from generation.provenance import (
    check_comparable,
    distinct_names,
    known_parts,
    made_by,
    prompt_format_of,
)
from generation.reflection_words import tokens_per_reflection_quantile
from generation.rendering import PromptFormat, after_thinking
from generation.scoring import ALL, ScoredProblem, figures, groups
from generation.verifiers import MATH, check_name, is_function
from generation.verifiers.names import check_golds
from generation.verifiers.opening import (
    VERIFIER_FLAGS,
    AnyPool,
    check_verifier,
    open_verifier,
    verifier_record,
)
from generation.verifiers.pool import Asked, facts_of
from rea_core.checks import NUMBER, check_made, check_numbers, check_output, is_a, user_path
from rea_core.command import Needed, add_flags, command
from rea_core.golds import as_list
from rea_core.json_text import read_json
from rea_core.models import load_tokenizer
from rea_core.problems import problem_digest
from rea_core.row_files import Row, Rows, RowWriter, write_json
from rea_core.rows import Columns, check_columns, check_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from generation.math_verify.extract import Thinking

logger = logging.getLogger(__name__)

Scores = dict[str, Any]  # content of a `.scores.json` file
ByBudget = dict[int | None, list[ScoredProblem]]
FAILURES = ("timeouts", "crashes", "errors")  # counts of a verifier
MOST_WAITING = 4096  # rows whose verdicts are open


def problem_id(row: Row) -> str:
    """Problem of a row: several rows may be responses of one, and stay together in intervals."""
    return str(row["id"] if row.get("problem_id") is None else row["problem_id"])


@dataclass(frozen=True)
class Scoring:
    """How generation files are scored. Raises ValueError for numbers out of range and an unknown
    mode.

    Attributes:
        base: `.scores.json` file of the base model, for TR.
        mode: how answers are compared: `strict` or `original`.
        budgets: tokens that responses are cut to; none leaves them as they are.
        slips: read the first stated result of each reasoning trace (miniature only).
        word_bounded: count whole reflection words only.
        reflection_quantile: also write the threshold of the reflect reward.
        num_workers: processes; default: one a core.
        timeout: seconds before an answer counts as wrong.
        verifier: which response is right, see docs/verifiers.md.
    """

    base: Path | None = None
    mode: str = "strict"
    budgets: Sequence[int] = ()
    slips: bool = False
    word_bounded: bool = False
    reflection_quantile: float | None = None
    num_workers: int | None = None
    timeout: float = 5.0
    verifier: str = MATH

    def __post_init__(self) -> None:
        from generation.math_verify.pool import MODES

        if any(budget < 1 for budget in self.budgets):
            raise ValueError(f"budgets are {self.budgets}; each must be at least 1 token")
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; it must be one of {', '.join(MODES)}")
        check_name(self.verifier)
        if self.mode != "strict" and self.verifier != MATH:
            raise ValueError(
                f"mode is {self.mode!r}, but only the verifier math has modes; leave it out"
            )
        shares = ("reflection_quantile",)
        check_numbers(vars(self), positive=("num_workers", "timeout"), shares=shares)

    @property
    def record(self) -> dict[str, Any]:
        """What scores that are compared must have in common."""
        return {
            "mode": self.mode,
            **verifier_record(self.verifier),
            "word_bounded": self.word_bounded,
            "budget": max(self.budgets, default=None),
        }


def score(
    files: Sequence[Path], model_dir: str, options: Scoring, results: Path
) -> dict[str, Scores]:
    """Write `<file stem>.scores.json` next to each generation file, and append to the log
    `results`; scores by name, the base's among them."""
    for path in files:
        check_output(path.with_suffix(".scores.json"), "scores")
    check_output(results, "results", (*files, options.base))
    check_made(results, results, '{"time": ')
    scored = {"base": read_scores(options.base)} if options.base else {}
    names = distinct_names(files, taken=scored)
    tokenizer = load_tokenizer(model_dir, "model_dir")
    for path, scores in score_files(files, tokenizer, options):
        scored[names[path]] = scores
        write_json(path.with_suffix(".scores.json"), scores)
        append_result(results, scores)
    return scored


def score_files(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase, args: Scoring
) -> Iterator[tuple[Path, Scores]]:
    """Scores of generation files: figures by group and budget, and every problem's counts."""
    files = [open_file(path, args.verifier) for path in paths]
    for path, (rows, heads) in zip(paths, files, strict=True):
        check_rows(path, heads, args)
        check_verifier(args.verifier, facts_of(rows[0]), args.timeout)
    num_workers = args.num_workers or num_cores()
    with open_verifier(args.verifier, num_workers, args.timeout, args.mode) as pool:
        for path, (rows, heads) in zip(paths, files, strict=True):
            counting = Counting(
                Shared(tokenizer),
                sorted(args.budgets) or [None],
                args.word_bounded,
                args.slips,
                thinking_of_prompts(path, rows, heads, tokenizer),
                is_function(args.verifier),
            )
            counted = map_rows(count_rows, rows, counting, num_workers, progress=path.name)
            by_budget = score_counted(path, counted, counting.budgets, pool)
            scores = file_scores(path, by_budget, args)
            yield path, scores | {"made_by": made_by(path, heads) | {"scoring": args.record}}
        failed = {key: n for key, n in pool.stats.items() if n and key in FAILURES}
        if failed:
            counted = ", ".join(f"{key} {n}" for key, n in failed.items())
            logger.warning("the verifier failed on responses, which count as wrong: %s", counted)


def open_file(path: Path, verifier: str = MATH) -> tuple[Rows, list[Row]]:
    """Rows of a generation file, and of each what is kept in memory; `lacking` says how many
    responses do not say what their prompts did to the thinking.

    Raises ValueError for a row from which a shipped verifier could not tell right from wrong.
    """
    heads: list[Row] = []
    shared: dict[str, Any] = {}  # one object for all rows that were asked alike

    def look(row: Row) -> None:
        check_golds(verifier, [row], str(path))
        head = head_of(row)
        for key in ("prompt_format", "answered_by"):
            if key in head:
                head[key] = shared.setdefault(json.dumps(head[key]), head[key])
        head["lacking"] = sum("prompt_thinking" not in response for response in row["responses"])
        heads.append(head)

    return read_generations(path, look=look), heads


def score_counted(
    path: Path,
    rows: Iterable[CountedRow],
    budgets: Sequence[int | None],
    pool: AnyPool,
) -> ByBudget:
    """Scored problems by budget, and `<file stem>.verdicts.jsonl`: what was extracted, and what was
    made of it.

    Rows are let go as soon as they are judged; an empty gold has no right answer.
    """
    problems: dict[int | None, dict[str, ScoredProblem]] = {budget: {} for budget in budgets}
    waiting: deque[tuple[CountedRow, list[list[Future[bool]]]]] = deque()
    with RowWriter(path.with_suffix(".verdicts.jsonl"), num_sections=len(budgets)) as out:

        def settle() -> None:
            row, verdicts = waiting.popleft()
            for section, budget in enumerate(budgets):
                new = ScoredProblem(
                    problem_id(row.head),
                    row.head.get("level"),
                    [],
                    row.head.get("benchmark"),
                    row.head["problem_digest"],
                )
                responses = problems[budget].setdefault(new.id, new).responses
                cells = zip(row.responses[section], verdicts[section], strict=True)
                for sample, ((answer, counts), verdict) in enumerate(cells):
                    responses.append(scored := replace(counts, correct=verdict.result()))
                    place = {
                        "id": row.head["id"],
                        "problem_digest": row.head["problem_digest"],
                        "sample": sample,
                        "budget": budget,
                        "gold": row.head["answer"],
                    }
                    out.add({**place, "answer": _shown(answer), **asdict(scored)}, section)

        for row in rows:
            gold = row.facts or row.head["answer"]
            waiting.append(
                (row, [[pool.submit(gold, answer) for answer, _ in cut] for cut in row.responses])
            )
            if len(waiting) > (MOST_ASKED if row.facts else MOST_WAITING):
                settle()
        while waiting:
            settle()
    return {budget: list(found.values()) for budget, found in problems.items()}


def _shown(judged: Judged) -> str | None:
    """What a line of verdicts has of a response: its answer, or all of its answer part."""
    if isinstance(judged, Asked):
        return after_thinking(judged.as_response).strip() or None
    return judged


def thinking_of_prompts(
    path: Path, rows: Rows, heads: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> Thinking:
    """What the prompts of a file did to the thinking, if responses do not say it: the model's
    template does."""
    lacking = sum(head["lacking"] for head in heads)
    if not lacking:
        return "unknown"
    prompts = PromptFormat.of(prompt_format_of(heads, path))
    thinking = prompts.ask(rows[0]["problem"], tokenizer).thinking
    logger.info(
        "%s: %d responses do not say what their prompts did to the thinking; derived from the chat "
        "template of model_dir: %s",
        *(path, lacking, thinking),
    )
    return thinking


def check_rows(path: Path, rows: Sequence[Row], args: Scoring) -> None:
    """Raise ValueError for rows that cannot be scored as asked, before any answer is verified."""
    if args.base:
        read_base_tokens(args.base, {problem_id(row): row["problem_digest"] for row in rows})
        known = made_by(path, rows) | {"scoring": args.record}
        remedy = "make and score the base's responses with the same settings"
        check_comparable(
            known_parts(read_scores(args.base)), known, (str(args.base), str(path)), remedy
        )
    check_groups(path, rows)
    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        before = first.setdefault(problem_id(row), i)
        if rows[before]["problem_digest"] != row["problem_digest"]:
            raise ValueError(
                f"{path}: rows {before} and {i} have the problem_id {problem_id(row)!r}, but two "
                "problems; give each problem an id of its own"
            )
        golds = as_list(row["answer"])
        if args.slips and not (len(golds) == 1 and golds[0].removeprefix("-").isdecimal()):
            raise ValueError(
                f"{path}: row {i} has the answer {row['answer']!r}, but --slips reads whole "
                "numbers, as the miniature's are; leave it out"
            )


def check_groups(path: Path, rows: Sequence[Row]) -> None:
    """Raise ValueError for levels and benchmarks that rows cannot be grouped by."""
    columns = {
        "level": (int, float, str, NoneType),
        "benchmark": (str, NoneType),
        "problem_id": (str, int, NoneType),
    }
    for i, row in enumerate(rows):
        if wrong := [key for key, kind in columns.items() if not is_a(row.get(key), kind)]:
            given = str(row[wrong[0]])[:60]
            raise ValueError(
                f"{path}: row {i} has the {wrong[0]!r} {given}; write a number or a text, or leave "
                "it out"
            )
    first = {
        isinstance(row["level"], str): i
        for i, row in reversed([*enumerate(rows)])
        if row.get("level") is not None
    }
    if len(first) > 1:
        levels = " and ".join(f"row {i} {rows[i]['level']!r}" for i in sorted(first.values()))
        raise ValueError(
            f"{path}: {levels} have levels of two kinds; write numbers or texts throughout"
        )


def file_scores(path: Path, by_budget: ByBudget, args: Scoring) -> Scores:
    """Content of `<file stem>.scores.json`; the last budget is the largest."""
    *_, largest = by_budget
    problems = by_budget[largest]
    digests = {p.id: p.problem_digest for p in problems}
    base = read_base_tokens(args.base, digests) if args.base else None
    scores = {
        "file": str(path),
        "num_problems": len(problems),
        "num_responses": sum(len(p.responses) for p in problems),
        "mode": args.mode,
        "verifier": args.record["verifier"],
        "word_bounded": args.word_bounded,
        "groups": _figures_by_group(problems, base),
        "problems": [{**asdict(p), "mean_tokens": p.mean_tokens} for p in problems],
    }
    if largest is not None:
        scores["budgets"] = {
            str(budget): _figures_by_group(p, None) for budget, p in by_budget.items()
        }
    if args.reflection_quantile is not None:
        responses = [r for p in problems for r in p.responses]
        scores["tokens_per_reflection"] = tokens_per_reflection_quantile(
            [r.num_reflections for r in responses],
            [r.num_think_tokens for r in responses],
            args.reflection_quantile,
        )
    return scores


def _figures_by_group(
    problems: list[ScoredProblem], base: dict[str, float] | None
) -> dict[str, Any]:
    by_group = {name: figures(group, base) for name, group in groups(problems).items()}
    return {name: {key: asdict(value) for key, value in f.items()} for name, f in by_group.items()}


def append_result(results: Path, scores: Scores) -> None:
    """Append a file's figures to the log of all, one JSON line; several runs may do so at once."""
    results.parent.mkdir(parents=True, exist_ok=True)
    entry = {key: value for key, value in scores.items() if key != "problems"}
    with FileLock(f"{results}.lock"), results.open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds")} | entry) + "\n"
        )


def read_scores(path: str | Path) -> Scores:
    """Scores that an earlier run wrote. Raises ValueError if there are none."""
    if not Path(path).is_file():
        raise ValueError(
            f"{path} does not exist; score its generation file first, with "
            "generation.math_verify_all"
        )
    scores = read_json(path, finite=True)
    if not isinstance(scores, dict) or "groups" not in scores:
        raise ValueError(
            f"{path} holds no scores; it must be a .scores.json file of generation.math_verify_all"
        )
    return scores


def read_problems(path: str | Path, columns: Columns) -> list[Row]:
    """Problems of scores of an earlier run. Raises ValueError if one of the columns is missing."""
    scores = read_scores(path)
    problems = scores.get("problems")
    if not isinstance(problems, list):
        raise ValueError(f"{path} has no problems; score its generation file again")
    check_columns(problems, columns, path, "score its generation file again")
    for i, problem in enumerate(problems):
        known = {"problem_digest": None, **problem}
        check_row(known, i, {"problem_digest": (str, NoneType)}, path, "score its file again")
    return _with_digests(problems, scores.get("file"))


def _with_digests(problems: list[Row], file: Any) -> list[Row]:
    """Problems of scores; older ones get their digests from the generation file, if it is there."""
    is_old = not any("problem_digest" in problem for problem in problems)
    if not (is_old and isinstance(file, str) and Path(file).is_file()):
        return problems
    known = {problem_id(row): problem_digest(row["problem"]) for row in read_generations(file)}
    return [{**row, "problem_digest": known.get(row.get("id"))} for row in problems]


def check_same_problems(one: str | Path, other: str | Path) -> None:
    """Raise ValueError for scores of different problems; those without problems are passed over."""
    if any("problems" not in read_scores(path) for path in (one, other)):
        return
    digests = {p["id"]: p.get("problem_digest") for p in read_problems(one, {"id": str})}
    problems = read_problems(other, {"id": str})
    remedy = f"score both files on the problems of {one}"
    if len(match_problems(digests, problems, other, remedy)) != len(problems):
        raise ValueError(
            f"{other} has {len(problems)} problems, and {one} {len(digests)}; {remedy}"
        )


def read_base_tokens(path: str | Path, digests: Mapping[str, str | None]) -> dict[str, float]:
    """Mean tokens of the base model by problem.

    Args:
        path: scores of the base model, in any order.
        digests: of this file's problems by id, if they are known.

    Raises ValueError if the base was scored on other problems.
    """
    base = read_problems(path, {"id": str, "mean_tokens": NUMBER})
    remedy = "score the base on the same"
    found = match_problems(digests, base, path, remedy)
    if len(base) != len(found):
        raise ValueError(
            f"{path} was scored on other problems: it has {len(base)}, and this file {len(found)}; "
            f"{remedy}"
        )
    return {problem: row["mean_tokens"] for problem, row in found.items()}


COLUMNS = (
    percent("accuracy %", "accuracy"),
    Column("tokens", "tokens", digits=0),
    Column("TR %", "tr"),
    Column("thinking", "think_tokens", digits=0),
    percent("truncated %", "truncated"),
    percent("answered %", "answered"),
    percent("no room %", "no_room"),
    Column("tokens/word", "tokens_per_word", digits=0),
    percent("corrected %", "corrected"),
)
BY_CORRECTNESS = ("tokens_correct", "tokens_wrong", "think_tokens_correct", "think_tokens_wrong")


def table(scored: dict[str, Scores]) -> str:
    """Table of scores by name: a row each, then accuracy and corrected mistakes by level."""
    overall = {name: scores["groups"][ALL] for name, scores in scored.items()}
    keys = {key for figures in overall.values() for key in figures}
    parts = [render(overall, COLUMNS)]
    passes = sorted((len(key), key) for key in keys if key.startswith("pass@"))
    if passes:
        parts.append(render(overall, [percent(key, key) for _, key in passes], "pass@k %"))
    if apart := [Column(key, key) for key in BY_CORRECTNESS if key in keys]:
        parts.append(render(overall, apart, "by correctness"))
    levels = list(
        dict.fromkeys(name for s in scored.values() for name in s["groups"] if name != ALL)
    )
    for title, key in (("accuracy %", "accuracy"), ("corrected %", "corrected")):
        rows = {
            name: {level: s["groups"].get(level, {}).get(key) for level in levels}
            for name, s in scored.items()
        }
        found = [figure for row in rows.values() for figure in row.values() if figure]
        if any(figure["value"] is not None for figure in found):
            parts.append(render(rows, [percent(level, level) for level in levels], title))
    return "\n\n".join(parts) + "\n"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Score files of generation.generate.")
    parser.add_argument("files", nargs="+", type=user_path, help="generation files")
    budgets = {"nargs": "+", "type": int, "default": []}
    parser.add_argument("--budgets", help="score responses cut to so many tokens", **budgets)
    add_flags(
        parser,
        model_dir=(Needed(str), "model whose tokenizer counts thinking tokens"),
        base=(Path, ".scores.json file of the base model, for TR"),
        mode=("strict", "how answers are compared: strict or original"),
        results=(Path("output/verify.json"), "log of all scored files"),
        slips=(False, "of the miniature: count corrected mistakes"),
        word_bounded=(False, "count whole reflection words only"),
        reflection_quantile=(float, "also write the reflect reward's tokens_per_reflection"),
        **VERIFIER_FLAGS,
    )
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 0 after all files are scored, 1 with one line on stderr for a mistake."""
    args = vars(parse_arguments(argv))
    files, model_dir, results = (args.pop(key) for key in ("files", "model_dir", "results"))
    sys.stdout.write(table(score(files, model_dir, Scoring(**args), results)))


if __name__ == "__main__":
    main()
