r"""The oracle in the judge's place: `generation.generate` with the oracle's replies, for both
judgements.

    python -m miniature.judge --qaf output/Miniature-LRM/train_rl_math_cot.json \
        --split labeling_distill_use_asw \
        --model_dir oracle --paragraph_tokenizer model/Miniature-LRM --paragraph_min_tokens 1

Same flags, same prompts, same files; only the replies come from `miniature.oracle`, and
`--model_dir` is but a name.
"""

from __future__ import annotations

from collections.abc import Iterator

from generation.answer_judge import missing_columns
from generation.arguments import GenerateArguments
from generation.generate import generate
from generation.generation_file import REFUSED
from generation.tasks import Keep, Task
from generation.unanswered import without_answer
from miniature.oracle import confirm_reply, judge_reply
from rea_core.command import command
from rea_core.recipe import RecipeParser
from rea_core.row_files import Row


def reply(row: Row) -> str:
    """The oracle's reply to a chunk of numbered parts, or to one part of the second judgement."""
    if "paragraphs" in row:
        return judge_reply(row["paragraphs"], int(row["answer"]))
    return confirm_reply(row["paragraph"], int(row["answer"]))


def refusal(args: GenerateArguments, row: Row) -> str:
    """Why a row cannot be judged, or nothing."""
    if missing := missing_columns(row):
        return f"{args.qaf}: row {row['id']!r} has no {' and no '.join(missing)}, which is judged"
    if str(row["answer"]).removeprefix("-").isdecimal():
        return ""
    return (
        f"{args.qaf}: {row['id']} has the answer {row['answer']!r}, but the oracle judges the "
        "miniature's problems, whose answers are whole numbers; take a large judge"
    )


def respond(args: GenerateArguments, tasks: Iterator[Task], keep: Keep) -> None:
    """Answer all tasks that the oracle can judge; what it writes costs no tokens. Raises ValueError
    for splits that are no judgement."""
    if args.split in ("math_cot", "labeling"):
        raise ValueError(
            f"split is {args.split}, but the oracle is a judge: give labeling_distill* or json"
        )
    for task in tasks:
        if cause := refusal(args, task.row):
            keep(task.index, without_answer(args, REFUSED, cause))
            continue
        keep(task.index, [{"text": reply(task.row), "num_tokens": 0, "finish_reason": "stop"}])


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or rows."""
    (args,) = RecipeParser(GenerateArguments).parse_args_and_config(argv)
    generate(args, respond)


if __name__ == "__main__":
    main()
