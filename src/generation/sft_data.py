"""Data of the offline baselines from shortened responses: SFT rows and preference pairs.

    python -m generation.sft_data FINISHED --paths PATHS --sft_out dataset/labeling/SFT.json \
        --rpo_out dataset/labeling/RPO.json

FINISHED is what split `math_cot` wrote for cut responses (`labeling_distill_utils --clean`), PATHS
the file they come from. A shortened response counts if it was really cut, ended by itself, is
shorter than its original, and its answer is right.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import NoneType

from generation.counting import first_verdicts
from generation.generation_file import read_generations
from generation.identity import Identities, identity
from generation.parallel import num_cores
from generation.prompts import format_problem
from generation.provenance import check_comparable, check_same_prompts, prompt_format_of
from generation.rendering import PromptFormat
from generation.verifiers.opening import VERIFIER_FLAGS, check_verifier, open_verifier
from generation.verifiers.pool import facts_of
from rea_core.checks import check_numbers, user_path
from rea_core.command import Needed, add_flags, command
from rea_core.ownership import own_output
from rea_core.row_files import Row, RowWriter

logger = logging.getLogger(__name__)

Shortened = tuple[Row, Row, Row]  # row, shortened response, original response


def shortened_paths(
    rows: Iterable[Row], correct: Sequence[bool], originals: dict[str, Row], max_per_problem: int
) -> Iterator[Shortened]:
    """The responses that count, at most so many a problem; there is a verdict per row."""
    taken: Counter[str] = Counter()
    for row, is_correct in zip(rows, correct, strict=True):
        shortened, original = row["responses"][0], originals[row["id"]]
        is_shorter = row["cut"] is not None and shortened["num_tokens"] < original["num_tokens"]
        ended = shortened["finish_reason"] == "stop"
        if is_correct and is_shorter and ended and taken[row["problem_id"]] < max_per_problem:
            taken[row["problem_id"]] += 1
            yield row, shortened, original


def training_rows(
    paths: Sequence[Shortened], prompt_template: str | None = None
) -> tuple[list[Row], list[Row]]:
    """(SFT rows, preference pairs): the shortened response as completion, and chosen over the
    original.

    Prompts are those that the responses were sampled with; of rows that do not say it, with
    `prompt_template`. What the chat template and the begin of the reply were is in
    `chat_template_kwargs` and `prefill`, if there was any.
    """
    sft, pairs = [], []
    for row, shortened, original in paths:
        prompts = PromptFormat.of(row.get("prompt_format") or {"prompt_template": prompt_template})
        asked = {"prompt": prompts.messages(row["problem"])}
        asked |= {
            key: prompts.record[key]
            for key in ("chat_template_kwargs", "prefill")
            if prompts.record[key]
        }
        chosen = [{"role": "assistant", "content": shortened["text"]}]
        rejected = [{"role": "assistant", "content": original["text"]}]
        sft.append({**asked, "completion": chosen})
        pairs.append({**asked, "chosen": chosen, "rejected": rejected})
    return sft, pairs


def check_prompts(rows: Sequence[Row], written: Sequence[Row], args: argparse.Namespace) -> None:
    """Raise ValueError for other prompts than those of the originals, or of the command."""
    check_same_prompts(rows, args.finished, written, args.paths)
    if args.prompt_template is not None:
        known = {"prompt_format": prompt_format_of(rows, args.finished)}
        given = {"prompt_format": {"prompt_template": args.prompt_template}}
        check_comparable(
            known, given, (str(args.finished), "the command"), "leave out --prompt_template"
        )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="SFT rows and preference pairs from shortened responses."
    )
    parser.add_argument(
        "finished", type=user_path, help="finished file of labeling_distill_utils --clean"
    )
    add_flags(
        parser,
        paths=(Needed(Path), "generation file of the original responses"),
        sft_out=(Path("dataset/labeling/SFT.json"), "SFT rows"),
        rpo_out=(Path("dataset/labeling/RPO.json"), "preference pairs"),
        max_per_problem=(4, "responses of one problem at most"),
        prompt_template=(
            str,
            "as in the training recipe, for files that do not say how their prompts were made",
        ),
        **VERIFIER_FLAGS,
    )
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Write both files; exit code 1 with one line on stderr for a mistake."""
    args = parse_arguments(argv)
    if args.prompt_template is not None:
        format_problem("", args.prompt_template)
    check_numbers(vars(args), positive=("max_per_problem", "num_workers", "timeout"))
    own_output(args.sft_out, "sft_out", (args.finished, args.paths))
    own_output(args.rpo_out, "rpo_out", (args.finished, args.paths, args.sft_out))
    columns = {"cut": (int, NoneType), "problem_id": str}
    remedy = "finish a file of labeling_distill_utils --clean"
    rows = read_generations(args.finished, columns, remedy, single=True)
    tokens: dict[str, Row] = {}  # of the original responses, and where they are
    numbers = count()
    originals = Identities(args.paths)

    def look(row: Row) -> None:
        place = next(numbers)
        for k, response in enumerate(row["responses"]):
            tokens[f"{row['id']}/{k}"] = {"num_tokens": response["num_tokens"], "place": (place, k)}
            originals.add(f"{row['id']}/{k}", identity(row, response))

    written = read_generations(args.paths, look=look)
    check_prompts(rows, written, args)
    for i, row in enumerate(rows):
        originals.check(f"{args.finished}: row {i} ({row['id']!r})", row["id"], identity(row))
    check_verifier(args.verifier, facts_of(rows[0]), args.timeout)
    with open_verifier(args.verifier, args.num_workers or num_cores(), args.timeout) as pool:
        correct = first_verdicts(rows, pool, args.num_workers)
    with (
        RowWriter(args.sft_out, is_output=True) as sft,
        RowWriter(args.rpo_out, is_output=True) as pairs,
    ):
        for row, shortened, known in shortened_paths(rows, correct, tokens, args.max_per_problem):
            place, k = known["place"]
            original = written[place]["responses"][k]
            ((example,), (pair,)) = training_rows(
                [(row, shortened, original)], args.prompt_template
            )
            sft.add(example)
            pairs.add(pair)
        if not sft.num_rows:
            raise ValueError(
                f"{args.finished}: none of its {len(rows)} responses is cut, shorter than before "
                "and right"
            )
    for out in (sft, pairs):
        logger.info("wrote %s: %d of %d responses", out.path, out.num_rows, len(rows))


if __name__ == "__main__":
    main()
