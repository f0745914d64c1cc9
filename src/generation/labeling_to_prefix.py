"""From the reflection model's label log-probabilities to the paragraph after which a thinking is
cut.

    python -m generation.labeling_to_prefix PATHS --labels LABELS --out OUT \
        --paragraph_tokenizer model/Miniature-LRM
    python -m generation.labeling_to_prefix PATHS --judge_cuts CUTS --out OUT \
        --paragraph_tokenizer model/Miniature-LRM

LABELS is what split `labeling` wrote for PATHS, CUTS what `labeling_distill_utils --clean` did. OUT
has a row per response and strategy, for split `math_cot` to finish and
`generation.evaluation.strategies` to compare:

    none                        the response as it is
    weak, normal, strong        cut by the reflection model; `judge`: after the judge's first
                                confirmed result
    random_<one of these>       the control: it keeps the same shares of tokens, exchanged at random
                                between the responses
    random_50 ... random_90     cut where about that percentage of the tokens is kept

If a strategy keeps every paragraph, the response is unchanged.
"""

from __future__ import annotations

import argparse
import logging
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

from tqdm import tqdm

from generation.cuts import STRENGTHS, CutRule, result_probabilities
from generation.generation_file import read_generations
from generation.labeling_distill_utils import add_paragraph_arguments, splitting_of
from generation.measured import read_cut_file
from generation.parallel import Shared, ordered_map, processes_for
from generation.path_cutting import (
    SplitPath,
    Splitting,
    Wanted,
    cut_labelled,
    labelled_batches,
    split_labelled,
)
from generation.provenance import check_same_prompts
from rea_core import moved
from rea_core.checks import NUMBER, is_a, user_path
from rea_core.command import Needed, add_flags, command
from rea_core.ownership import own_output
from rea_core.row_files import Row, Rows, RowWriter, open_rows
from rea_core.rows import check_row

__getattr__ = moved.names_of(__name__)  # names that have left this module
logger = logging.getLogger(__name__)

Labels = Mapping[str, Sequence[float]]  # P(Result) of each paragraph, by the id of the response
Judged = Mapping[str, int | None]  # last kept paragraph, if any is cut off, by the same
RANDOM_PERCENT = (50, 60, 70, 80, 90)
CAP_FLAGS = {
    "cut_cap_share": (0.05, "at least min((n + offset) * this, max) go"),
    "cut_cap_offset": (10, "see cut_cap_share"),
    "cut_cap_max": (5, "see cut_cap_share"),
}


def label_probabilities(file: Path, look: Callable[[Row], None] = lambda row: None) -> Labels:
    """P(Result) per paragraph by response id, of a file of split `labeling`; empty if a response
    was too long.

    `look` is called with every row. Raises ValueError if one has no log-probs.
    """
    found: dict[str, Sequence[float]] = {}

    def look_up(row: Row) -> None:
        steps = row["responses"][0].get("logprobs")
        if not isinstance(steps, list) or not all(map(is_step, steps)):
            raise ValueError(
                f"{file}: row {len(found)} has no logprobs, or other ones than [[number, text]] a "
                "step; it must come from split labeling with --logprobs 5"
            )
        found[str(row["id"])] = array("d", result_probabilities(steps))
        look(row)

    read_generations(file, single=True, look=look_up)
    return found


def is_step(step: Any) -> bool:
    """Whether a value holds log-probs and texts of the alternatives of one step."""
    return isinstance(step, list) and bool(step) and all(
        isinstance(pair, list) and len(pair) == 2 and is_a(pair[0], NUMBER)
        and isinstance(pair[1], str) for pair in step
    )  # fmt: skip


def reflection_cuts(
    paths: Sequence[SplitPath], p_result: Labels, rule: CutRule
) -> dict[str, list[int]]:
    """Last kept paragraph of every response for each strength."""
    chosen = [rule.choose(p_result[path.id], len(path.tokens)) for path in paths]
    return {strength: [getattr(cuts, strength) for cuts in chosen] for strength in STRENGTHS}


def judge_cuts(paths: Sequence[SplitPath], cuts: Judged) -> list[int]:
    """Last kept paragraph of every response by what `labeling_distill_utils --clean` cut."""
    chosen = [len(p.tokens) - 1 if cuts[p.id] is None else cuts[p.id] for p in paths]
    for path, cut in zip(paths, chosen, strict=True):
        if cut >= len(path.tokens):
            raise ValueError(
                f"judge_cuts: {path.id!r} has {len(path.tokens)} paragraphs, but is cut after "
                f"number {cut}; give the settings of its paragraphs, or judge it again"
            )
    return chosen


def with_controls(
    paths: Sequence[SplitPath], cuts: dict[str, list[int]], seed: int
) -> dict[str, list[int]]:
    """The strategies, their random controls of the same budget, and those of fixed percentages."""
    strategies = {"none": [len(path.tokens) - 1 for path in paths], **cuts}
    for name, chosen in cuts.items():
        shares = [path.share(cut) for path, cut in zip(paths, chosen, strict=True)]
        random.Random(f"{seed}/{name}").shuffle(shares)
        strategies[f"random_{name}"] = [
            path.nearest_cut(share) for path, share in zip(paths, shares, strict=True)
        ]
    for percent in RANDOM_PERCENT:
        strategies[f"random_{percent}"] = [path.nearest_cut(percent / 100) for path in paths]
    return strategies


class PathFile:
    """Responses of a generation file that were labelled; the others, which cannot be compared, are
    counted in the log.

    Args:
        file: generation file.
        splitting: how responses are split.
        num_workers: processes.
        labels, labels_file: rows of the labels, of split `labeling` or from `labeling_distill_utils
            --clean`.
        ids: response of each of these rows; None for one that is left out.

    Attributes:
        rows: of the generation file.
        paths: labelled responses, in order.

    Raises ValueError if the labels are of responses that were asked in another way, or of other
    paragraphs.
    """

    def __init__(
        self,
        file: Path,
        splitting: Splitting,
        num_workers: int | None,
        labels: Rows,
        labels_file: Path,
        ids: Sequence[str | None],
    ):
        self._ids: list[list[str]] = []  # of the responses of each row

        def look(row: Row) -> None:
            self._ids.append([f"{row['id']}/{k}" for k in range(len(row["responses"]))])

        self.rows = read_generations(file, look=look)
        check_same_prompts(self.rows, file, labels, labels_file)
        places = {path: i for i, path in enumerate(ids) if path is not None}
        self._num_processes = processes_for(self.rows, num_workers)
        about = lambda i: labels[i : i + 1]  # noqa: E731
        self.paths = list(self._map(split_labelled, splitting, places, about, "paragraphs"))
        num_paths = sum(map(len, self._ids))
        if not self.paths:
            raise ValueError(
                f"{file}: none of its {num_paths} responses has labels; give the file that was "
                "labelled"
            )
        logger.info("%s: %d of %d responses have labels", file, len(self.paths), num_paths)

    def cut(
        self, wanted: Callable[[int], list[Wanted]], tokenizer: Shared
    ) -> Iterator[list[bytes]]:
        """Rows, as JSON, of all cuts that are wanted of each response, by its number."""
        places = {path.id: i for i, path in enumerate(self.paths)}
        return self._map(
            cut_labelled, tokenizer, places, lambda i: (self.paths[i], wanted(i)), "cuts"
        )

    def _map(
        self,
        work: Callable[..., list[Any]],
        setup: Any,
        places: dict[str, int],
        about: Callable[[int], object],
        name: str,
    ) -> Iterator[Any]:
        batches = labelled_batches(self.rows, self._ids, places, about)
        with tqdm(total=len(places), desc=name, unit="path", mininterval=1.0) as bar:
            for results in ordered_map(work, batches, setup, self._num_processes):
                bar.update(len(results))
                yield from results


def write_strategies(
    file: PathFile,
    strategies: Mapping[str, Sequence[int]],
    tokenizer: Shared,
    out: Path,
) -> int:
    """Write one row per response and strategy, all responses of a strategy together, and return
    their number; the `id` ends in the strategy."""

    def wanted(i: int) -> list[Wanted]:
        path = file.paths[i].id
        return [
            Wanted(cuts[i], {"id": f"{path}/{name}", "strategy": name}, {})
            for name, cuts in strategies.items()
        ]

    with RowWriter(out, len(strategies), is_output=True) as rows:
        for lines in file.cut(wanted, tokenizer):
            for section, line in enumerate(lines):
                rows.add_text(line, section)
    return rows.num_rows


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line; the cut_* flags are those of the training recipe."""
    parser = argparse.ArgumentParser(description="Cut responses after their result, and at random.")
    parser.add_argument("paths", type=user_path, help="generation file")
    source = parser.add_mutually_exclusive_group(required=True)
    add_flags(
        source,
        labels=(Path, "file of split labeling"),
        judge_cuts=(Path, "file of labeling_distill_utils --clean"),
    )
    add_flags(
        parser,
        out=(Needed(Path), "rows for split math_cot"),
        seed=(0, "of the random controls"),
        cut_second_half=(0.5, "share of paragraphs before a normal cut"),
        cut_strong_threshold=(0.25, "P(Result) of a strong cut"),
        cut_threshold=(0.5, "P(Result) of a normal cut"),
        **CAP_FLAGS,
        cut_file=(Path, "file of generation.calibrate: its threshold and second half"),
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=STRENGTHS,
        help="only these, without controls; default: all",
    )
    add_paragraph_arguments(parser)
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Write the rows of all strategies; exit code 1 with one line on stderr for a mistake."""
    args = parse_arguments(argv)
    if args.cut_file is not None:
        vars(args).update(read_cut_file(args.cut_file))
        args.cut_strong_threshold = min(args.cut_strong_threshold, args.cut_threshold)
    rule = CutRule.of(vars(args))
    own_output(args.out, "out", (args.paths, args.labels, args.judge_cuts))
    splitting = splitting_of(args)
    path_file = partial(PathFile, args.paths, splitting, args.num_workers)
    if args.labels is not None:
        p_result = label_probabilities(args.labels)
        labels = open_rows(args.labels)
        file = path_file(labels, args.labels, list(p_result))
        cuts = reflection_cuts(file.paths, p_result, rule)
        cuts = {name: chosen for name, chosen in cuts.items() if name in (args.strategies or cuts)}
    else:
        remedy = "give a file of labeling_distill_utils --clean"
        columns = {"id": str, "cut": (int, NoneType)}
        judged: dict[str, int | None] = {}

        def look(row: Row, i: int) -> None:
            check_row(row, i, columns, args.judge_cuts, remedy)
            if row["cut"] is not None and row["cut"] < 0:
                raise ValueError(f"{args.judge_cuts}: row {i} has the cut {row['cut']}; {remedy}")
            judged[row["id"]] = row["cut"]

        labels = open_rows(args.judge_cuts, look)
        file = path_file(labels, args.judge_cuts, list(judged))
        cuts = {"judge": judge_cuts(file.paths, judged)}
    strategies = cuts if args.strategies else with_controls(file.paths, cuts, args.seed)
    num_rows = write_strategies(file, strategies, splitting.tokenizer, args.out)
    logger.info("wrote %s: %d responses, %d rows", args.out, len(file.paths), num_rows)


if __name__ == "__main__":
    main()
