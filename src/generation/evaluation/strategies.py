"""Compare cut strategies: accuracy, tokens kept, TR; how well the reflection model finds the
judge's results; a picture.

    python -m generation.evaluation.strategies FINISHED --model_dir model/Miniature-LRM \
        --out output/miniature/report \
        [--labels LABELS --judge_cuts CUTS] [--models SFT=SFT.scores.json]

FINISHED is what split `math_cot` wrote for a file of `generation.labeling_to_prefix`. Every
strategy becomes a file `OUT/<strategy>.json`, scored by `generation.math_verify_all` against
`none`; truncated responses are also reported apart. `OUT/report.json` has the figures,
`OUT/report.png` the picture. Intervals (95 %) are bootstraps over problems.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from generation.evaluation.plots import draw
from generation.figure_table import Column, percent, render
from generation.generation_file import read_generations
from generation.identity import Identities, identity
from generation.labeling_to_prefix import Labels, label_probabilities
from generation.math_verify_all import Scores, Scoring, problem_id, read_scores, score_files
from generation.provenance import check_all_comparable, known_parts, prompt_format_of
from generation.scoring import ALL, Interval, at_an_end, ratio_interval, sums_by_problem
from generation.verifiers.opening import VERIFIER_FLAGS
from rea_core.checks import (
    NUMBER,
    check_finite,
    check_numbers,
    is_a,
    short_json,
    user_path,
)
from rea_core.command import Needed, add_flags, command
from rea_core.models import load_tokenizer
from rea_core.ownership import own_output_folder
from rea_core.row_files import Check, Row, Rows, open_rows, write_json
from rea_core.rows import check_row

TRUNCATED = "_truncated"  # end of the name of a strategy's truncated responses


@dataclass(frozen=True)
class DetectedPath:
    """Paragraphs of a response that the judge confirmed, and that the reflection model found."""

    problem: str
    confirmed: set[int]
    found: set[int]

    @property
    def position_error(self) -> int | None:
        """Paragraphs between the two first results; None if one of them has none."""
        return abs(min(self.confirmed) - min(self.found)) if self.confirmed and self.found else None


def detector_figures(paths: list[DetectedPath]) -> dict[str, Any]:
    """Precision and recall of Result paragraphs, mean position error, and shares of missed and
    spurious first results.

    >>> paths = [DetectedPath("a", {2, 3}, {2}), DetectedPath("b", {1}, {3, 1})]
    >>> keys = ("precision", "recall", "position_error")
    >>> [round(detector_figures(paths)[key].value, 2) for key in keys]
    [0.67, 0.67, 0.0]
    """
    problems = [path.problem for path in paths]

    def over(numerator, denominator, is_share: bool = True) -> Interval:
        counts = map(numerator, paths), map(denominator, paths)
        found = ratio_interval(*sums_by_problem(problems, *counts))
        return at_an_end(found, len({*problems})) if is_share else found

    def right(path: DetectedPath) -> int:
        return len(path.confirmed & path.found)

    return {
        "precision": over(right, lambda p: len(p.found)),
        "recall": over(right, lambda p: len(p.confirmed)),
        "position_error": over(
            lambda p: p.position_error or 0, lambda p: p.position_error is not None, is_share=False
        ),
        "missed": over(lambda p: bool(p.confirmed) and not p.found, lambda p: 1),
        "spurious": over(lambda p: bool(p.found) and not p.confirmed, lambda p: 1),
    }


def detected_paths(
    p_result: Labels, judged: Iterable[Row], threshold: float = 0.5
) -> list[DetectedPath]:
    """Responses that both the reflection model and the judge labelled; labels beyond the last
    paragraph are dropped. A paragraph is found from a P(Result) of `threshold` on."""
    return [
        DetectedPath(
            row["problem_id"],
            set(row["confirmed"]),
            {
                i
                for i, p in enumerate(p_result[row["id"]][: row["num_paragraphs"]])
                if p >= threshold
            },
        )
        for row in judged
        if row["id"] in p_result
    ]


def by_strategy(heads: Iterable[Row]) -> dict[str, list[int]]:
    """Numbers of the rows of each strategy, and those of truncated responses again apart."""
    strategies: dict[str, list[int]] = {}
    truncated: dict[str, list[int]] = {}
    for i, row in enumerate(heads):
        strategies.setdefault(row["strategy"], []).append(i)
        group = truncated.setdefault(f"{row['strategy']}{TRUNCATED}", [])
        group.extend([i] if row["truncated"] else [])
    return strategies | {name: group for name, group in truncated.items() if group}


def kept_tokens(rows: Iterable[Row]) -> Interval:
    """Mean share of the thinking's tokens that a strategy keeps."""
    shares = [(problem_id(row), row["kept"], 1) for row in rows]
    return ratio_interval(*sums_by_problem(*zip(*shares, strict=True)))


def scoring_of(args: argparse.Namespace) -> Scoring:
    """How all strategies are scored."""
    return Scoring(word_bounded=args.word_bounded, verifier=args.verifier)


def score_strategies(
    rows: Rows, heads: Sequence[Row], args: argparse.Namespace
) -> dict[str, Scores]:
    """Scores of every strategy, each also written next to its file; `none` comes first and is the
    base of TR.

    `heads` are the rows without their texts.
    """
    tokenizer = load_tokenizer(args.model_dir, "model_dir")
    scored = {}
    for name, places in by_strategy(heads).items():
        path = args.out / f"{name}.json"
        write_json(path, rows.select(places))
        base = args.out / f"none{TRUNCATED if name.endswith(TRUNCATED) else ''}.scores.json"
        is_base = base.with_suffix("").with_suffix(".json") == path
        options = replace(scoring_of(args), base=None if is_base else base)
        ((_, scored[name]),) = score_files([path], tokenizer, options)
        scored[name]["groups"][ALL]["kept"] = asdict(kept_tokens(heads[i] for i in places))
        write_json(path.with_suffix(".scores.json"), scored[name])
    return scored


def table(scored: dict[str, Scores]) -> str:
    """One row per strategy or model."""
    columns = (
        percent("accuracy %", "accuracy"),
        percent("tokens kept %", "kept"),
        Column("TR %", "tr"),
        Column("tokens", "tokens", digits=0),
    )
    return render({name: scores["groups"][ALL] for name, scores in scored.items()}, columns)


def detector_table(figures: dict[str, Interval]) -> str:
    """The detector's figures in one row."""
    columns = (
        percent("precision %", "precision", 2),
        percent("recall %", "recall", 2),
        Column("position error (paragraphs)", "position_error", digits=2),
        percent("missed %", "missed", 2),
        percent("spurious %", "spurious", 2),
    )
    return render({"reflection model": figures}, columns)


def open_judged(file: Path, look: Check = lambda row, i: None) -> Rows:
    """Rows of the judge's cuts, with which `look` is called. Raises ValueError for other files."""
    columns = {"id": str, "problem_id": str, "confirmed": list, "num_paragraphs": int}

    def check(row: Row, i: int) -> None:
        check_row(row, i, columns, file, "give a file of labeling_distill_utils --clean")
        if not all(is_a(p, int) and 0 <= p < row["num_paragraphs"] for p in row["confirmed"]):
            raise ValueError(
                f"{file}: row {i} has the 'confirmed' {short_json(row['confirmed'])}, not "
                f"numbers of its {row['num_paragraphs']} paragraphs; make the file again"
            )
        look(row, i)

    return open_rows(file, check)


def read_models(models: list[str]) -> dict[str, Scores]:
    """Scores by name, from NAME=FILE. Raises ValueError for another form."""
    if wrong := [model for model in models if "=" not in model]:
        raise ValueError(f"models has {wrong[0]!r}; write it as NAME=FILE.scores.json")
    pairs = [model.split("=", 1) for model in models]
    if twice := [name for name, number in Counter(name for name, _ in pairs).items() if number > 1]:
        raise ValueError(f"models has {twice[0]!r} twice; give each model a name of its own")
    return {name: read_scores(file) for name, file in pairs}


def detected(args: argparse.Namespace) -> list[DetectedPath]:
    """Results that the reflection model finds next to the judge's, response by response. Raises
    ValueError for files about different responses."""
    labelled = Identities(args.labels)
    p_result = label_probabilities(
        args.labels, lambda row: labelled.add(str(row["id"]), identity(row))
    )

    def check(row: Row, i: int) -> None:
        if row["id"] in p_result:
            labelled.check(f"{args.judge_cuts}: row {i}", row["id"], identity(row))

    paths = detected_paths(p_result, open_judged(args.judge_cuts, check), args.cut_threshold)
    if not paths:
        raise ValueError(
            f"{args.labels} and {args.judge_cuts} have no response in common; give two files of "
            "the same responses"
        )
    return paths


def report(args: argparse.Namespace) -> str:
    """Write all files of the report; returns its tables."""
    if (args.labels is None) != (args.judge_cuts is None):
        raise ValueError(
            "labels and judge_cuts belong together, but only one is given; give both, or neither"
        )
    check_finite(vars(args))
    check_numbers(vars(args), shares=("cut_threshold",))
    own_output_folder(args.out, "out")
    columns = {"strategy": str, "truncated": bool, "kept": NUMBER}
    heads: list[Row] = []
    kept = ("id", "problem_id", "strategy", "truncated", "kept")
    remedy = "finish a file of generation.labeling_to_prefix"
    look = lambda row: heads.append({key: row[key] for key in kept if key in row})  # noqa: E731
    rows = read_generations(args.finished, columns, remedy, look=look)
    models = read_models(args.models)
    if taken := models.keys() & {row["strategy"] for row in heads}:
        raise ValueError(f"models has {min(taken)!r}, which is a strategy; give it another name")
    # The responses are finished with fewer tokens than models are sampled with.
    known = {"prompt_format": prompt_format_of(rows, args.finished)}
    known["scoring"] = scoring_of(args).record
    made = [
        (str(args.finished), known),
        *((f"models: {name}", known_parts(scores)) for name, scores in models.items()),
    ]
    check_all_comparable(made, "evaluate and score the models as the responses")
    paths = detected(args) if args.labels else None
    scored = score_strategies(rows, heads, args)
    whole = {name: s for name, s in scored.items() if not name.endswith(TRUNCATED)} | models
    truncated = {name: s for name, s in scored.items() if name.endswith(TRUNCATED)}
    parts = [table(whole), table(truncated) if truncated else "No response is truncated."]
    result = {"strategies": {name: s["groups"][ALL] for name, s in (whole | truncated).items()}}
    if paths is not None:
        detector = detector_figures(paths)
        parts.append(
            "Results found by the reflection model, from P(Result) "
            f"{args.cut_threshold:g}, against the judge's, {len(paths)} paths:\n\n"
        )
        parts[-1] += detector_table(detector)
        result["detector"] = {key: asdict(figure) for key, figure in detector.items()} | {
            "num_paths": len(paths),
            "cut_threshold": args.cut_threshold,
        }
    write_json(args.out / "report.json", result)
    picture = draw(
        None,
        {n: {"groups": {ALL: s["groups"][ALL]}} for n, s in whole.items()},
        args.out / "report.png",
    )
    return "\n\n".join([*parts, f"picture: {picture}"]) + "\n"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare cut strategies.")
    parser.add_argument(
        "finished", type=user_path, help="finished file of generation.labeling_to_prefix"
    )
    add_flags(
        parser,
        model_dir=(Needed(str), "model whose tokenizer counts thinking tokens"),
        out=(Needed(Path), "folder of the report"),
        labels=(Path, "file of split labeling; with judge_cuts: precision and recall"),
        judge_cuts=(Path, "file of labeling_distill_utils --clean for the same paths"),
        cut_threshold=(0.5, "P(Result) from which there is a result, as in the cuts"),
        word_bounded=(False, "count whole reflection words only"),
        verifier=VERIFIER_FLAGS["verifier"],
    )
    parser.add_argument(
        "--models", nargs="*", default=[], help="NAME=FILE.scores.json of trained models: more rows"
    )
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or files."""
    sys.stdout.write(report(parse_arguments(argv)))


if __name__ == "__main__":
    main()
