r"""The six benchmarks and DeepScaleR: fetch them from the Hub, and put problems to evaluate into
one file.

    # to dataset/eval_data/
    python -m generation.evaluation.benchmarks fetch
    python -m generation.evaluation.benchmarks fetch --sets math500 deepscaler
    python -m generation.evaluation.benchmarks collect dataset/eval_data \
        --out output/math_eval/problems

Files are lists of {problem, answer[, solution]}. `fetch` checks the number of problems (an error)
and a checksum of the golds against that of the files with which published numbers were made (a
warning: the Hub's copy may be corrected). `collect` writes `x8.json` (AIME and AMC) and `x1.json`
(the rest): the responses per problem are in the name.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rea_core.checks import check_numbers, user_path
from rea_core.command import add_flags, command
from rea_core.ownership import own_output_folder
from rea_core.problems import load_problems
from rea_core.row_files import Row, check_replaceable, write_json
from rea_core.rows import read_rows

logger = logging.getLogger(__name__)

SMALL_BENCHMARKS = ("aime2024", "amc23")  # so few problems that one response each says little
SMALL_SAMPLES = 8


@dataclass(frozen=True)
class Source:
    """A set on the Hub, and what its copy must look like."""

    hub_id: str
    split: str
    counts: tuple[int, ...]
    # first 16 digits, of the published evaluation file's golds joined by newlines
    golds_sha256: str | None
    config: str | None = None
    problem: str = "problem"
    answer: str = "answer"
    defects: str = ""  # known faults of golds

    def file(self, name: str) -> str:
        return f"{name}_{'train' if name == 'deepscaler' else 'test'}.json"


SOURCES = {
    "GSM8K": Source("openai/gsm8k", "test", (1319,), "e9e14feba3f2274f", "main",
                    problem="question"),
    "math500": Source("HuggingFaceH4/MATH-500", "test", (500,), "e312d1b644e0de4e"),
    "gaokao2023en": Source(
        "MARIO-Math-Reasoning/Gaokao2023-Math-En", "train", (385,), "89f1f3c43c8c29bb",
        problem="question",
        defects="problems 167 and 192 (from 0) have an empty gold, so that no answer is right; the "
                "gold of 107 is "
        "'145solution:'; that of 8, '48,384', means two values and not a number; some golds lost "
        "the blank after a LaTeX command (\\leqx, \\cdotC), which the comparison repairs",
    ),
    "amc23": Source("math-ai/amc23", "test", (40,), "b889a69787dea9a4", problem="question"),
    "aime2024": Source("HuggingFaceH4/aime_2024", "train", (30,), "99ad231789bbece1"),
    "olympiadbench": Source(
        "Hothan/OlympiadBench", "train", (674, 675), "f560408cd5be4fca", "OE_TO_maths_en_COMP",
        problem="question", answer="final_answer",
        defects="published numbers use 675 problems; golds of several values are one text, "
                "separated by commas",
    ),
    "deepscaler": Source(
        "agentica-org/DeepScaleR-Preview-Dataset", "train", (40315,), None,
        defects="39 of its problems are also in the benchmarks, 12 of them word for word",
    ),
}  # fmt: skip
BENCHMARKS = tuple(name for name in SOURCES if name != "deepscaler")


def common_format(row: Row, source: Source) -> dict[str, str]:
    """One problem as {problem, answer[, solution]}; the answer of GSM8K follows `####`."""
    answer, solution = row[source.answer], row.get("solution")
    if isinstance(answer, list):
        answer = ",".join(answer).strip("$")
    if isinstance(solution, list):
        solution = "\n".join(solution)
    if "\n#### " in str(answer):
        solution, answer = answer.rsplit("\n#### ", 1)
    common = {"problem": row[source.problem], "answer": str(answer).strip()}
    return common | ({"solution": solution} if solution else {})


def golds_digest(rows: list[Row]) -> str:
    """Checksum of the golds in their order."""
    golds = "\n".join(str(row["answer"]) for row in rows)
    return hashlib.sha256(golds.encode()).hexdigest()[:16]


def check(name: str, rows: list[Row]) -> None:
    """Compare a set with what is known of it. Raises ValueError for another number of problems."""
    source = SOURCES[name]
    if len(rows) not in source.counts:
        raise ValueError(
            f"{name}: {source.hub_id} has {len(rows)} problems, but must have {source.counts[0]}; "
            "its figures could not be compared with published ones"
        )
    if source.golds_sha256 and golds_digest(rows) != source.golds_sha256:
        logger.warning(
            "%s: golds are not those of the published evaluation file byte for byte (%s, not %s)",
            name,
            golds_digest(rows),
            source.golds_sha256,
        )
    if source.defects:
        logger.info("%s: known defects: %s", name, source.defects)


def fetch(names: list[str], folder: Path) -> None:
    """Fetch sets that are not there yet, and check all."""
    for name in names:
        source = SOURCES[name]
        path = folder / source.file(name)
        is_there = path.exists()
        hub = source.hub_id, source.split, source.config
        rows = (
            read_rows(str(path))
            if is_there
            else [common_format(row, source) for row in read_rows(*hub)]
        )
        check(name, rows)
        if not is_there:
            write_json(path, rows)
        logger.info("%s: %d problems in %s", name, len(rows), path)


def collect(
    folder: Path, extra: dict[str, Path], num_samples: int | None, limit: int | None
) -> dict[int, list[Any]]:
    """Problems of all benchmarks by responses per problem, each with its `benchmark` and an `id` of
    its own.

    Args:
        folder: with files such as `math500_test.json`; those that are missing are left out with a
            warning.
        extra: further benchmarks, file by name.
        num_samples: responses per problem; None is 8 for AIME and AMC and 1 for the rest.
        limit: first so many problems of each benchmark only.

    Raises ValueError if no benchmark is there.
    """
    files = {name: folder / SOURCES[name].file(name) for name in BENCHMARKS}
    if missing := [path.name for path in files.values() if not path.exists()]:
        logger.warning("%s has no %s", folder, ", ".join(missing))
    if absent := [f"{name}={path}" for name, path in extra.items() if not path.is_file()]:
        raise ValueError(f"extra: there is no file {absent[0]}; write NAME=FILE")
    found = {name: path for name, path in (files | extra).items() if path.exists()}
    if not found:
        raise ValueError(
            f"{folder} has no benchmark; run python -m generation.evaluation.benchmarks fetch, or "
            "set EVAL_DATA"
        )
    collected: dict[int, list[Any]] = {}
    for name, path in found.items():
        samples = num_samples or (SMALL_SAMPLES if name in SMALL_BENCHMARKS else 1)
        collected.setdefault(samples, []).extend(
            {
                "id": f"{name}/{row['id']}",
                "benchmark": name,
                "problem": row["problem"],
                "answer": row["answer"],
            }
            for row in load_problems(str(path), gold_needed=False)[:limit]
        )
    return collected


def _named_file(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} must be written as NAME=FILE")
    return name, user_path(path)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Fetch benchmarks, and collect those to be evaluated."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    words = "fetch benchmarks from the Hub"
    command = commands.add_parser(
        "fetch", help=words, description=f"{words[0].upper()}{words[1:]}."
    )
    command.add_argument(
        "--sets", nargs="+", choices=SOURCES, default=list(SOURCES), help="default: all"
    )
    command.add_argument(
        "--out", type=user_path, default=Path("dataset/eval_data"), help="folder of their files"
    )
    words = "collect benchmarks into one file for each number of responses"
    command = commands.add_parser(
        "collect", help=words, description=f"{words[0].upper()}{words[1:]}."
    )
    command.add_argument("folder", type=user_path, help="folder that fetch has filled")
    command.add_argument(
        "--extra", nargs="*", type=_named_file, default=[], help="name=file of a further benchmark"
    )
    add_flags(
        command,
        num_samples=(int, "responses per problem, for all benchmarks"),
        limit=(int, "first so many problems of each benchmark"),
    )
    command.add_argument("--out", type=user_path, required=True, help="folder of x1.json, x8.json")
    return parser.parse_args(argv)


@command(ConnectionError)
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a set or folder that is not what it must be."""
    args = parse_arguments(argv)
    own_output_folder(args.out, "out")
    check_numbers(vars(args), positive=("num_samples", "limit"))
    if args.command == "fetch":
        fetch(args.sets, args.out)
    else:
        extra = dict(args.extra)
        if len(extra) < len(args.extra) or extra.keys() & {*BENCHMARKS}:
            raise ValueError(
                f"extra is {[name for name, _ in args.extra]}; give each benchmark a name of its "
                f"own, and none of {', '.join(BENCHMARKS)}"
            )
        collected = collect(args.folder, extra, args.num_samples, args.limit)
        for samples, rows in collected.items():
            check_replaceable(path := args.out / f"x{samples}.json", rows[0])
            write_json(path, rows)
        left_over = {*args.out.glob("x*.json")} - {args.out / f"x{n}.json" for n in collected}
        for path in left_over:
            if path.stem[1:].isdecimal():
                check_replaceable(path, rows[0])
                logger.info("%s is of an earlier collection and is removed", path)
                path.unlink()


if __name__ == "__main__":
    main()
