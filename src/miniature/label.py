"""Sampled responses to the reflection model's training file in one go, with the oracle as the
judge.

    python -m miniature.label output/Miniature-LRM/train_rl_math_cot.json \
        --out output/miniature/reflection_training.json

The stages of the large judge one after the other: `miniature.judge`, candidates, `miniature.judge`,
`--clean`. Their files are left next to OUT.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from generation.arguments import GenerateArguments
from generation.generate import generate
from generation.labeling_distill_utils import Cleaning, add_reply_argument, write_candidates
from generation.parallel import Shared
from generation.path_cutting import Splitting
from generation.prompts import LONG
from miniature.judge import respond
from rea_core.checks import user_name
from rea_core.command import Needed, add_flags, command
from rea_core.models import load_tokenizer
from rea_core.ownership import own_output


def label(file: str, out: Path, paragraphs: dict[str, str | int], reply: str = LONG) -> None:
    """Judge the responses of a generation file twice and write the training examples to `out`.

    `paragraphs` are arguments `paragraph_*` of `generation.generate`, `reply` is the form of the
    examples' replies."""
    work = {"model_dir": "oracle", "output_dir": str(out.parent)}
    judging = GenerateArguments(qaf=file, split="labeling_distill_use_asw", **work, **paragraphs)
    labels = generate(judging, respond)
    candidates = labels.with_name(f"{labels.stem}_candidates.json")
    write_candidates(labels, candidates)
    confirmations = generate(GenerateArguments(qaf=str(candidates), split="json", **work), respond)
    cuts = labels.with_name(f"{labels.stem}_cuts.json")
    limits = judging.paragraph_min_tokens, judging.paragraph_max_tokens
    splitting = Splitting(Shared(load_tokenizer(judging.paragraph_tokenizer)), *limits)
    Cleaning(labels, confirmations, Path(file), cuts, splitting, out, reply).run()


def parse_arguments(argv: list[str] | None) -> Namespace:
    """Command line."""
    parser = ArgumentParser(description="Label the miniature's responses with the oracle judge.")
    parser.add_argument("file", type=user_name, help="generation file of miniature problems")
    add_flags(
        parser,
        out=(Needed(Path), "training file of the reflection model"),
        model_dir=("model/Miniature-LRM", "model whose tokenizer counts paragraph tokens"),
        paragraph_min_tokens=(1, "as in the training recipe"),
        paragraph_max_tokens=(128, "as in the training recipe"),
    )
    add_reply_argument(parser)
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or files."""
    args = parse_arguments(argv)
    own_output(args.out, "out", (args.file,))
    paragraphs = {
        "paragraph_tokenizer": args.model_dir,
        "paragraph_min_tokens": args.paragraph_min_tokens,
        "paragraph_max_tokens": args.paragraph_max_tokens,
    }
    label(args.file, args.out, paragraphs, args.reflection_reply)


if __name__ == "__main__":
    main()
