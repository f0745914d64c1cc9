r"""The table and the picture of all models that `scripts/math_eval.sh` scored.

    python -m generation.evaluation.table output/math_eval --base 7B \
        --save_to output/math_eval/tradeoff.png

A model is a folder with `.scores.json` files of `generation.math_verify_all`, below a folder per
model. Two models that share a folder are two rows. Benchmarks are columns, and weigh the same in
the average. TR (tokens in percent of the base's) and AES need the base model's scores. Scores that
were sampled, asked or compared in different ways are refused.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType

from generation.evaluation.plots import draw
from generation.figure_table import Column, percent, render
from generation.math_verify_all import read_problems, read_scores
from generation.provenance import MadeBy, check_all_comparable, known_parts
from generation.scoring import ALL, Interval, aes, at_an_end, mean_interval
from rea_core.checks import NUMBER, user_path
from rea_core.command import command
from rea_core.ownership import own_output
from rea_core.row_files import Row
from rea_core.rows import check_row

logger = logging.getLogger(__name__)

# as in the paper, easiest first
ORDER = ("GSM8K", "math500", "gaokao2023en", "amc23", "aime2024", "olympiadbench")
# counts of a response
COUNTED = {
    "num_tokens": int,
    **dict.fromkeys(("correct", "truncated", "answered", "no_room"), bool),
}
# last columns of the table
SUMMARY = {
    "TR %": "tr",
    "AES": "aes",
    "truncated %": "truncated",
    "answered %": "answered",
    "no room %": "no_room",
}
AGAIN = "score its generation file again"
IDENTITY = ("model_dir", "lora_digest", "api_model")
Problem = Row  # an entry of `problems` of a .scores.json file
Benchmarks = dict[str, list[Problem]]


@dataclass(frozen=True)
class ScoredFile:
    """Scores of one file: what made them, and its problems."""

    path: Path
    folder: str  # first folder of the path, the model's
    made_by: MadeBy
    problems: list[Problem]

    @property
    def model(self) -> tuple[str, ...]:
        """The model's name in the table; if scores do not say it, the folder of their file."""
        known = self.made_by.get("model", {})
        if not known:
            return (str(self.path.parent),)
        return tuple(str(known.get(key)) for key in IDENTITY)

    @property
    def origin(self) -> str:
        """Model or adapter, for the name of a row."""
        known = self.made_by.get("model", {})
        return next(
            (known[key] for key in ("lora", "api_model", "model_dir") if key in known),
            str(self.path.parent),
        )

    @property
    def weights(self) -> str:
        """Digest that tells a model or adapter from another one of its name."""
        known = self.made_by.get("model", {})
        return str(known.get("lora_digest") or known.get("model_digest") or self.path.parent.name)


def read_models(folder: Path) -> dict[str, Benchmarks]:
    """Scored problems by model and benchmark. Raises ValueError if there are none, or if some were
    made in another way than others."""
    files = [
        read_file(path, folder)
        for path in sorted(folder.glob("*/**/*.scores.json"))
        if is_current(path, folder)
    ]
    if not files:
        raise ValueError(
            f"{folder} has no <model>/.../*.scores.json; run scripts/math_eval.sh first"
        )
    check_same_way(files)
    models = {name: _benchmarks(group) for name, group in by_model(files).items()}
    check_same_problems(models)
    return {
        name: dict(sorted(b.items(), key=lambda item: _place(item[0])))
        for name, b in models.items()
    }


def check_same_problems(models: dict[str, Benchmarks]) -> None:
    """Log which models have other problems of a benchmark than the first one that has it. Raises
    ValueError for one id that means two problems."""
    first: dict[str, tuple[str, dict[str, str | None]]] = {}
    for name, benchmarks in models.items():
        for benchmark, problems in benchmarks.items():
            own = {p["id"]: p.get("problem_digest") for p in problems}
            other, known = first.setdefault(benchmark, (name, own))
            for key in own.keys() & known.keys():
                if None not in (own[key], known[key]) and own[key] != known[key]:
                    raise ValueError(
                        f"{benchmark}: {other} and {name} were asked two problems {key!r}; "
                        "evaluate one of them again"
                    )
            if own.keys() != known.keys():
                logger.warning(
                    "%s: %s has %d problems and %s %d, %d of them the same",
                    *(benchmark, other, len(known), name, len(own)),
                    len(own.keys() & known.keys()),
                )


def read_file(path: Path, folder: Path) -> ScoredFile:
    """Scores of one file. Raises ValueError if problems are missing or malformed."""
    columns = {"id": str, "responses": list, "mean_tokens": NUMBER}
    scores, problems = read_scores(path), read_problems(path, columns)
    if not problems or not all(problem["responses"] for problem in problems):
        raise ValueError(f"{path} has a problem without responses, or none at all; {AGAIN}")
    for i, problem in enumerate(problems):
        check_row({"benchmark": None, **problem}, i, {"benchmark": (str, NoneType)}, path, AGAIN)
        for response in problem["responses"]:
            if not isinstance(response, dict):
                raise ValueError(f"{path}: row {i} has the response {response!r}; {AGAIN}")
            check_row(response, i, COUNTED, path, AGAIN)
    try:
        made_by = known_parts(scores)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {AGAIN}") from None
    return ScoredFile(path, path.relative_to(folder).parts[0], made_by, problems)


def is_current(path: Path, folder: Path) -> bool:
    """Whether its model is still evaluated on a file's problems; if not, that is logged."""
    problems = folder / path.relative_to(folder).parts[0] / "problems"
    if problems.is_dir() and not (problems / f"{path.name.partition('_')[0]}.json").is_file():
        logger.warning(
            "%s is left out: it is of an earlier evaluation with another number of responses", path
        )
        return False
    return True


def check_same_way(files: list[ScoredFile]) -> None:
    """Raise ValueError if two files were sampled, asked or scored in different ways."""
    silent = [str(file.path) for file in files if "sampling" not in file.made_by]
    if silent and len(silent) < len(files):
        logger.warning(
            "%d of %d scores do not say what made them, %s first",
            len(silent),
            len(files),
            silent[0],
        )
    remedy = (
        "evaluate or score them again with the same settings, or in different folders (EVAL_OUT)"
    )
    check_all_comparable(((str(file.path), file.made_by) for file in files), remedy)


def by_model(files: list[ScoredFile]) -> dict[str, list[ScoredFile]]:
    """Files by the name of their row: the folder, and the model if several share one."""
    rows: dict[tuple[str, tuple[str, ...]], list[ScoredFile]] = {}
    for file in files:
        rows.setdefault((file.folder, file.model), []).append(file)
    shared = Counter(folder for folder, _ in rows)
    names = [
        key[0] if shared[key[0]] == 1 else f"{key[0]} ({group[0].origin})"
        for key, group in rows.items()
    ]
    twice = Counter(names)
    whole = [
        name if twice[name] == 1 else f"{name} {group[0].weights}"
        for name, group in zip(names, rows.values(), strict=True)
    ]
    if len({*whole}) < len(whole):
        whole = [f"{name} {i}" for i, name in enumerate(whole, 1)]
    return dict(zip(whole, rows.values(), strict=True))


def _benchmarks(files: list[ScoredFile]) -> Benchmarks:
    """Problems of a model by benchmark. Raises ValueError for doubles and for other weights."""
    weights = {
        digest: file.path
        for file in files
        if (digest := file.made_by.get("model", {}).get("model_digest"))
    }
    if len(weights) > 1:
        raise ValueError(
            f"{' and '.join(map(str, weights.values()))} are of different weights; evaluate one of "
            "them again"
        )
    benchmarks: Benchmarks = {}
    known: dict[tuple[str, str], Path] = {}
    for file in files:
        for problem in file.problems:
            benchmark = problem.get("benchmark") or "other"
            if other := known.get((benchmark, problem["id"])):
                both = (
                    f"{other} and {file.path} both have" if other != file.path else f"{other} has"
                )
                raise ValueError(
                    f"{both} the problem {problem['id']!r}, which would count twice; delete one"
                )
            known[benchmark, problem["id"]] = file.path
            benchmarks.setdefault(benchmark, []).append(problem)
    return benchmarks


def _place(benchmark: str) -> int:
    return ORDER.index(benchmark) if benchmark in ORDER else len(ORDER)


def average(benchmarks: Benchmarks, key: str) -> Interval:
    """Mean over benchmarks of the mean over responses of a count, such as `num_tokens`."""
    found = mean_interval(
        [
            (
                [sum(r[key] for r in p["responses"]) for p in problems],
                [len(p["responses"]) for p in problems],
            )
            for problems in benchmarks.values()
        ]
    )
    return found if COUNTED[key] is int else at_an_end(found, sum(map(len, benchmarks.values())))


def relative_tokens(benchmarks: Benchmarks, base: Benchmarks) -> Interval | None:
    """Mean over benchmarks of the tokens in percent of the base's; None for other problems."""
    pairs = []
    for name, problems in benchmarks.items():
        tokens = {p["id"]: p["mean_tokens"] for p in base.get(name, [])}
        if tokens.keys() != {p["id"] for p in problems}:
            return None
        pairs.append(
            ([100 * p["mean_tokens"] for p in problems], [tokens[p["id"]] for p in problems])
        )
    return mean_interval(pairs)


def efficiency(benchmarks: Benchmarks, base: Benchmarks) -> float | None:
    """AES of the averages; None if the base has no right answer, or other benchmarks."""
    figures = [
        average(b, key).value for b in (benchmarks, base) for key in ("correct", "num_tokens")
    ]
    if benchmarks.keys() != base.keys() or not figures[2] or not figures[3]:
        return None
    return float(aes(*figures))


def table(models: dict[str, Benchmarks], base: str | None) -> str:
    """Accuracy (%) and tokens, a row per model; half of a 95 % interval after ±."""
    accuracy = {
        name: _averages(b, "correct") | _summary(b, models.get(base)) for name, b in models.items()
    }
    tokens = {name: _averages(b, "num_tokens") for name, b in models.items()}
    names = sorted({name for b in models.values() for name in b}, key=_place)
    titles = {**{name: f"on {name}" for name in names}, "average": "average"}
    shares = [percent(title, key) for title, key in titles.items()]
    counts = [Column(title, key, digits=0) for title, key in titles.items()]
    summary = [Column(title, key) for title, key in SUMMARY.items()]
    return (
        f"{render(accuracy, [*shares, *summary], 'accuracy %')}\n\n"
        f"{render(tokens, counts, 'tokens')}\n"
    )


def _averages(benchmarks: Benchmarks, key: str) -> Row:
    """Figure of each benchmark that was scored, and of all."""
    each = {f"on {name}": average({name: rows}, key) for name, rows in benchmarks.items()}
    return each | {"average": average(benchmarks, key)}


def _summary(benchmarks: Benchmarks, base: Benchmarks | None) -> Row:
    found: Row = {
        key: f"{100 * average(benchmarks, key).value:.1f}"
        for key in ("truncated", "answered", "no_room")
    }
    if base:
        found["tr"] = relative_tokens(benchmarks, base)
        score = efficiency(benchmarks, base)
        found["aes"] = None if score is None else f"{score:.2f}"
    return found


def picture(models: dict[str, Benchmarks], save_to: Path) -> Path:
    """Average accuracy against average tokens of all models, with the Pareto front."""
    keys = {"accuracy": "correct", "tokens": "num_tokens"}
    scored = {
        name: {
            "groups": {
                ALL: {key: asdict(average(benchmarks, count)) for key, count in keys.items()}
            }
        }
        for name, benchmarks in models.items()
    }
    return draw(None, scored, save_to)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 0 with table and picture, 1 with one line on stderr if nothing was scored."""
    parser = argparse.ArgumentParser(description="Table and picture of all scored models.")
    parser.add_argument("folder", type=user_path, help="folder with one folder per model")
    parser.add_argument("--base", help="name of the base model, for TR and AES")
    parser.add_argument("--save_to", type=user_path, required=True, help="image file")
    args = parser.parse_args(argv)
    own_output(args.save_to, "save_to")
    models = read_models(args.folder)
    image = picture(models, args.save_to)
    if args.base is not None and args.base not in models:
        logger.warning(
            "no TR and AES: the base %s was not scored, only %s", args.base, ", ".join(models)
        )
    sys.stdout.write(f"\n{table(models, args.base)}\npicture: {image}\n")


if __name__ == "__main__":
    main()
