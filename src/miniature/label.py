"""The oracle judges sampled paths, and the confirmed results become the reflection model's training file.

    python -m miniature.label output/Miniature-LRM/train_math_cot.json --out output/miniature/reflection_training.json

The same route as with the large judge: paragraphs, chunks, one reply a chunk, labels parsed from it, and a second judgement
of every part that was called a right result.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generation.labeling_distill_utils import parse_judge_labels, reflection_example
from generation.segments import chunk_paragraphs, split_paragraphs
from generation.utils import read_generations, write_json
from miniature.oracle import confirm_reply, judge_reply
from rea_rl.utils import load_tokenizer, setup_logging

logger = logging.getLogger(__name__)


def confirmed_results(paragraphs: list[str], num_tokens: list[int], answer: int) -> list[bool] | None:
    """One verdict a paragraph, or None where a reply could not be parsed."""
    is_result: list[bool] = []
    for chunk in chunk_paragraphs(num_tokens):
        labels = parse_judge_labels(judge_reply([paragraphs[i] for i in chunk], answer))
        if len(labels) != len(chunk):
            return None
        candidates = (labels[number] == "Right Result" for number in range(1, len(chunk) + 1))
        is_result += [
            hit and confirm_reply(paragraphs[i], answer) == "Yes" for i, hit in zip(chunk, candidates, strict=True)
        ]
    return is_result


def training_rows(
    rows: list[dict[str, Any]], count_tokens: Callable[[str], int], min_tokens: int, max_tokens: int
) -> list[dict[str, Any]]:
    """Prompt-completion rows, one per path with a thinking of at least one paragraph."""
    examples, num_unparsed = [], 0
    for row in rows:
        for response in row["responses"]:
            paragraphs = split_paragraphs(response["text"], count_tokens, min_tokens=min_tokens, max_tokens=max_tokens)
            if not paragraphs:
                continue
            texts = [paragraph.text for paragraph in paragraphs]
            verdicts = confirmed_results(texts, [paragraph.num_tokens for paragraph in paragraphs], int(row["answer"]))
            if verdicts is None:
                num_unparsed += 1
                continue
            examples.append(reflection_example(row["problem"], texts, verdicts))
    logger.info(
        "%d labelled paths; %d with a reply that could not be parsed were left out", len(examples), num_unparsed
    )
    return examples


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Label the miniature's paths with the oracle judge.")
    parser.add_argument("file", type=Path, help="generation file of miniature problems")
    parser.add_argument("--out", type=Path, required=True, help="training file of the reflection model")
    parser.add_argument(
        "--model_dir", default="model/Miniature-LRM", help="model whose tokenizer counts paragraph tokens"
    )
    parser.add_argument("--paragraph_min_tokens", type=int, default=1, help="as in the training recipe")
    parser.add_argument("--paragraph_max_tokens", type=int, default=128, help="as in the training recipe")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or files."""
    setup_logging()
    args = parse_arguments(argv)
    try:
        rows = read_generations(args.file)
        tokenizer = load_tokenizer(args.model_dir, "model_dir")
    except ValueError as error:
        sys.exit(f"error: {error}")
    examples = training_rows(
        rows,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        args.paragraph_min_tokens,
        args.paragraph_max_tokens,
    )
    write_json(args.out, examples)
    logger.info("wrote %s", args.out)


if __name__ == "__main__":
    main()
