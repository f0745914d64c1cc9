"""DeepScaleR_clean: training problems without those that the model failed on every response.

    python -m generation.clean_dataset \
        --verdicts output/DeepSeek-R1-Distill-Qwen-7B/deepscaler_math_cot.scores.json

The verdicts are a `.scores.json` file of `generation.math_verify_all` for responses to the same
problems, four each in the paper. A problem that no response solves teaches GRPO nothing: its
advantages are all 0. Without verdicts the recipes take the unfiltered set as it is: `--dataset_name
agentica-org/DeepScaleR-Preview-Dataset`.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from generation.identity import match_problems
from generation.math_verify_all import read_problems, read_scores
from generation.provenance import known_parts
from generation.verifiers import MATH
from rea_core.checks import check_made, check_numbers, user_name
from rea_core.command import Needed, add_flags, command
from rea_core.ownership import own_output
from rea_core.problems import load_problems, problem_digest
from rea_core.row_files import Row, write_json
from rea_core.rows import check_columns, write_atomically

logger = logging.getLogger(__name__)

# what the card says of the scores
COUNTED = {"mode": str, "num_responses": int, "num_problems": int}
DATASET = "agentica-org/DeepScaleR-Preview-Dataset"
CARD = """---
license: mit
task_categories:
- text-generation
language:
- en
---

# {name}

{num_kept} of the {num_all} problems of `{dataset}`: those that the model solved on at least one of
its {num_paths} responses.

| | |
|---|---|
| made by | `python -m generation.clean_dataset --dataset {dataset} --verdicts {verdicts}` |
| verdicts | {verdicts}, of the verifier {verifier} |
| columns | those of the source, with `id` (row number there), `problem` and `answer` |
| licence | the source's |
"""


def solved_problems(
    problems: list[Row], scored: list[Row], file: str | Path = "verdicts"
) -> list[Row]:
    """Problems with at least one right response, in their order; verdicts may have another one.
    Raises ValueError if a problem has no verdict, or another problem's."""
    digests = {row["id"]: problem_digest(row["problem"]) for row in problems}
    remedy = "score responses to these problems, or give the --limit that they were sampled with"
    verdicts = match_problems(digests, scored, file, remedy)
    kept = [row for row in problems if any(r["correct"] for r in verdicts[row["id"]]["responses"])]
    if not kept:
        raise ValueError(
            f"{file}: none of the {len(problems)} problems has a right response; check the "
            "scored file"
        )
    return kept


def _verifier_of(scores: Row) -> str:
    """Verifier of scores, with its mode; those of earlier versions are of mathematics."""
    name = known_parts(scores).get("scoring", {}).get("verifier", MATH)
    return f"{name}, mode {scores['mode']}" if name == MATH else name


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Drop the problems that a model failed on every response."
    )
    parser.add_argument(
        "--dataset",
        "--dataset_name",
        default=DATASET,
        type=user_name,
        help="Hub dataset, or a file",
    )
    parser.add_argument(
        "--split", "--dataset_train_split", default="train", help="split of a Hub dataset"
    )
    add_flags(
        parser,
        dataset_config=(str, "configuration of a Hub dataset"),
        problem_column=(str, "as in training recipes"),
        answer_column=("answer", "as in training recipes"),
        limit=(int, "first N problems only, as in qaf_limit of the responses"),
        verdicts=(Needed(Path), ".scores.json of responses to the same problems"),
        out=(Path("dataset/DeepScaleR/DeepScaleR_clean.json"), "the problems left"),
    )
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Write problems and card; exit code 1 with one line on stderr for a mistake."""
    args = parse_arguments(argv)
    check_numbers(vars(args), positive=("limit",))
    own_output(args.out, "out", (args.dataset, args.verdicts))
    card = args.out.with_name("README.md")
    check_made(args.out, card, "`python -m generation.clean_dataset ")
    scores = read_scores(args.verdicts)
    keys = {key: getattr(args, key) for key in ("problem_column", "answer_column")}
    problems = load_problems(args.dataset, args.split, config=args.dataset_config, **keys)
    problems = problems[: args.limit]
    verdicts = read_problems(args.verdicts, {"id": str, "responses": list})
    for i, problem in enumerate(verdicts):
        place = f"{args.verdicts}: problem {i}"
        check_columns(
            problem["responses"], {"correct": (bool, int)}, place, "score the responses again"
        )
    check_columns([scores], COUNTED, args.verdicts, "score the responses again")
    kept = solved_problems(problems, verdicts, args.verdicts)
    write_json(args.out, kept)
    facts = {
        "name": args.out.stem,
        "dataset": args.dataset,
        "verdicts": args.verdicts,
        "verifier": _verifier_of(scores),
    }
    facts |= {"num_kept": len(kept), "num_all": len(problems)}
    facts["num_paths"] = scores["num_responses"] // max(scores["num_problems"], 1)
    write_atomically(card, CARD.format(**facts).splitlines())
    logger.info("wrote %s: %d of %d problems", args.out, len(kept), len(problems))


if __name__ == "__main__":
    main()
