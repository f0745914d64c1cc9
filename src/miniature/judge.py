"""The oracle in the judge's place: `generation.generate` with the oracle's replies, for both
judgements.

    python -m miniature.judge --qaf output/Miniature-LRM/train_rl_math_cot.json \
        --split labeling_distill_use_asw \
        --model_dir oracle --paragraph_tokenizer model/Miniature-LRM --paragraph_min_tokens 1

Same flags, same prompts, same files; only the replies come from `miniature.oracle`, and
`--model_dir` is but a name.
"""

from __future__ import annotations

from collections.abc import Iterator

from generation.arguments import GenerateArguments
from generation.generate import generate
from generation.tasks import Keep, Task
from miniature.oracle import confirm_reply, judge_reply
from rea_core.command import command
from rea_core.recipe import RecipeParser
from rea_core.row_files import Row


def reply(row: Row) -> str:
    """The oracle's reply to a chunk of numbered parts, or to one part of the second judgement."""
    if "paragraphs" in row:
        return judge_reply(row["paragraphs"], int(row["answer"]))
    return confirm_reply(row["paragraph"], int(row["answer"]))


def respond(args: GenerateArguments, tasks: Iterator[Task], keep: Keep) -> None:
    """Answer all tasks; what the oracle writes costs no tokens. Raises ValueError for rows that
    it cannot judge."""
    if args.split in ("math_cot", "labeling"):
        raise ValueError(
            f"split is {args.split}, but the oracle is a judge: give labeling_distill* or json"
        )
    for task in tasks:
        if not str((row := task.row)["answer"]).removeprefix("-").isdecimal():
            raise ValueError(
                f"{args.qaf}: {row['id']} has the answer {row['answer']!r}, but the oracle judges "
                "the miniature's problems, whose answers are whole numbers; take a large judge"
            )
        keep(task.index, [{"text": reply(task.row), "num_tokens": 0, "finish_reason": "stop"}])


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or rows."""
    (args,) = RecipeParser(GenerateArguments).parse_args_and_config(argv)
    generate(args, respond)


if __name__ == "__main__":
    main()
