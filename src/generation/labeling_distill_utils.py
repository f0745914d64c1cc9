"""From a large judge's replies to confirmed results, cut paths, and training examples of the reflection model.

    python -m generation.labeling_distill_utils LABELS --candidates OUT
    python -m generation.labeling_distill_utils LABELS --clean --confirmations FILE --paths PATHS \
        --paragraph_tokenizer model/DeepSeek-R1-Distill-Qwen-7B --out OUT --train_file

LABELS is what `generation.generate` wrote with split `labeling_distill_use_asw` (or `labeling_distill`) for PATHS. The
first command writes every paragraph that was called a result, as rows for split `json`: the second judgement. With its
replies, the second command (`--clean`) writes a row per path: the confirmed results, the share of its tokens that is
kept by a cut after the first one, and the prefix from which split `math_cot` finishes the path.

A reply that cannot be parsed is counted and reported, and its path is left out: where its first result is, is unknown.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from generation import prompts
from generation.provenance import check_same_prompts
from generation.rendering import after_thinking, known_thinking
from generation.segments import Paragraph, check_paragraph_tokens, split_paragraphs
from generation.utils import Row, check_columns, check_output, check_single, read_generations, write_json
from rea_rl.utils import setup_logging

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TRAIN_FILE = Path("dataset/deepscaler_reflection_training.json")

# Judges decorate: `**[1].** Think: ...` and `**Label:** Right Result` are read like the plain form.
_PART_START = re.compile(r"^\**\[(\d+)\]\.", re.MULTILINE)
_LABEL = re.compile(r"\bLabel\b\W*\b(Reasoning|Right Result|Wrong Result|Result)\b", re.IGNORECASE)
_YES_NO = re.compile(r"\W*(Yes|No)\b", re.IGNORECASE)
_CANDIDATES = {label.casefold() for label in (prompts.RIGHT_RESULT, prompts.RESULT)}


def parse_judge_labels(response: str) -> dict[int, str]:
    """Labels of the parts `[i]. Think: ... / Label: ...` of a judge's reply, verbatim, by the number i.

    A reply in which any part has no label yields none at all: it is counted as unusable, not guessed.
    """
    _, *fields = _PART_START.split(response)
    labels = {}
    for number, body in zip(fields[::2], fields[1::2], strict=True):
        match = _LABEL.search(body)
        if match is None:
            return {}
        labels[int(number)] = match.group(1)
    return labels


def parse_confirmation(response: str) -> bool | None:
    """Verdict of a second judgement, or None where the reply begins with neither Yes nor No."""
    match = _YES_NO.match(response)
    return None if match is None else match.group(1).casefold() == "yes"


def reflection_example(problem: str, paragraphs: list[str], is_result: list[bool]) -> dict[str, list[dict[str, str]]]:
    """Training example of the reflection model: a prompt-completion row in the format that is used online.

    `is_result` holds one confirmed verdict per paragraph; a different length raises ValueError.
    """
    if len(is_result) != len(paragraphs):
        raise ValueError(f"{len(paragraphs)} paragraphs but {len(is_result)} verdicts; give one verdict a paragraph")
    return {
        "prompt": prompts.reflection_messages(problem, paragraphs),
        "completion": [{"role": "assistant", "content": prompts.reflection_labels(is_result)}],
    }


@dataclass(frozen=True)
class LabelledPath:
    """What the judge says of one path."""

    row: Row  # columns of its problem, `id` of the path, `problem_id`, `path`
    use_answer: bool  # whether the judge knew the gold answer
    paragraphs: list[str]
    is_candidate: list[bool] | None  # a verdict per paragraph; None where a reply could not be parsed

    def candidate_id(self, index: int) -> str:
        """`id` of a paragraph's second judgement."""
        return f"{self.row['id']}/{index}"


def chunk_candidates(row: Row) -> list[bool] | None:
    """Whether each part of a chunk was called a (right) result; None where the reply has not a label for each part."""
    labels = parse_judge_labels(after_thinking(row["responses"][0]))
    if labels.keys() != set(range(1, len(row["paragraphs"]) + 1)):
        return None
    return [labels[number].casefold() in _CANDIDATES for number in sorted(labels)]


def labelled_paths(rows: Iterable[Row]) -> list[LabelledPath]:
    """Paths, in order, of the rows of a `labeling_distill*` file: one row per chunk, chunks of a path in sequence."""
    chunks: dict[str, list[Row]] = {}
    for row in rows:
        chunks.setdefault(row["id"].rpartition("/")[0], []).append(row)
    return [_join_chunks(path_id, group) for path_id, group in chunks.items()]


def _join_chunks(path_id: str, chunks: list[Row]) -> LabelledPath:
    verdicts = [chunk_candidates(chunk) for chunk in chunks]
    columns = {k: v for k, v in chunks[0].items() if k not in ("responses", "paragraphs", "chunk", "use_answer")}
    return LabelledPath(
        row={**columns, "id": path_id},
        use_answer=chunks[0]["use_answer"],
        paragraphs=[text for chunk in chunks for text in chunk["paragraphs"]],
        is_candidate=None if None in verdicts else [hit for verdict in verdicts for hit in verdict],
    )


def candidate_rows(paths: Iterable[LabelledPath]) -> Iterator[Row]:
    """Rows for split `json`: one second judgement per candidate."""
    for path in paths:
        for index, hit in enumerate(path.is_candidate or []):
            if hit:
                paragraph, problem, answer = path.paragraphs[index], path.row["problem"], path.row["answer"]
                yield {
                    "id": path.candidate_id(index),
                    "problem": problem,
                    "answer": answer,
                    "paragraph": paragraph,
                    "messages": prompts.confirmation_messages(problem, paragraph, answer if path.use_answer else None),
                }


def confirmed_results(path: LabelledPath, confirmations: dict[str, str]) -> list[bool] | None:
    """One confirmed verdict per paragraph, or None where a reply of either judgement could not be parsed.

    `confirmations` are the replies of the second judgement by candidate id; a missing one raises ValueError.
    """
    if path.is_candidate is None:
        return None
    verdicts = [
        _confirm(path.candidate_id(i), confirmations) if hit else False for i, hit in enumerate(path.is_candidate)
    ]
    return None if None in verdicts else verdicts


def _confirm(candidate: str, confirmations: dict[str, str]) -> bool | None:
    if candidate not in confirmations:
        raise ValueError(f"confirmations: no reply for candidate {candidate}; judge the candidates of these labels")
    return parse_confirmation(confirmations[candidate])


def cut_after(
    text: str, paragraphs: list[Paragraph], last_kept: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, float]:
    """Prefix from which a path is finished when it is cut after a paragraph, and the share of its thinking that stays.

    The same cut that the rollouts make: kept text, end of the thinking, heading of the answer. `last_kept` must not be
    the last paragraph.
    """
    from rea_rl.revision import cut_completion_ids, decode_completion, think_end_finder

    ids = tokenizer.encode(text, add_special_tokens=False)
    kept_ids, forced_text = cut_completion_ids(ids, tokenizer, paragraphs, last_kept)
    share = len(kept_ids) / think_end_finder(tokenizer)(ids)
    return decode_completion(tokenizer, kept_ids) + forced_text, share


def cut_row(
    row: Row, response: Row, paragraphs: list[Paragraph], last_kept: int | None, tokenizer: PreTrainedTokenizerBase
) -> Row:
    """Row that split `math_cot` finishes.

    Beside the path's columns: `prefix` (None where all is kept, with the path's own `responses`), `cut` (the last kept
    paragraph), `num_paragraphs`, `kept` (share of the thinking's tokens) and `truncated` (no `</think>`).
    """
    ended = known_thinking(response) == "closed" or prompts.THINK_END in response["text"]
    columns = {"num_paragraphs": len(paragraphs), "truncated": not ended}
    if last_kept is None or last_kept + 1 >= len(paragraphs):
        return {**row, **columns, "cut": None, "kept": 1.0, "prefix": None, "responses": [response]}
    prefix, kept = cut_after(response["text"], paragraphs, last_kept, tokenizer)
    return {**row, **columns, "cut": last_kept, "kept": kept, "prefix": prefix}


def clean(
    paths: Iterable[LabelledPath],
    confirmations: dict[str, str],
    responses: dict[str, Row],
    tokenizer: PreTrainedTokenizerBase,
    split: Callable[[Row], list[Paragraph]],
) -> tuple[list[Row], list[Row]]:
    """(cut rows, training examples) of the paths whose replies could be parsed.

    Args:
        paths: of a labels file.
        confirmations: replies of the second judgement by candidate id.
        responses: the paths' own responses by path id.
        tokenizer: of the model that wrote the paths.
        split: makes the paragraphs of a response.
    """
    rows, examples = [], []
    for path in paths:
        if (verdicts := confirmed_results(path, confirmations)) is None:
            continue
        if (response := responses.get(path.row["id"])) is None:
            raise ValueError(
                f"paths: there is no path {path.row['id']}, which has labels; give the file that was judged"
            )
        paragraphs = split(response)
        check_paragraphs(path.row["id"], paragraphs, path.paragraphs)
        confirmed = [i for i, hit in enumerate(verdicts) if hit]
        row = cut_row(path.row, response, paragraphs, confirmed[0] if confirmed else None, tokenizer)
        rows.append({**row, "strategy": "judge", "confirmed": confirmed})
        examples.append(reflection_example(path.row["problem"], path.paragraphs, verdicts))
    return rows, examples


def check_paragraphs(path_id: str, paragraphs: list[Paragraph], labelled: list[str]) -> None:
    """Raise ValueError where a path has other paragraphs than those that were labelled."""
    if [paragraph.text for paragraph in paragraphs] != labelled:
        raise ValueError(
            f"paths: {path_id} has other paragraphs than its labels; give the paths that were labelled, and the same "
            "paragraph_tokenizer, paragraph_min_tokens and paragraph_max_tokens"
        )


def paragraph_splitter(
    tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> Callable[[Row], list[Paragraph]]:
    """Function from a response to its paragraphs, with the tokenizer and the settings of a command line."""
    return lambda response: split_paragraphs(
        response["text"],
        lambda part: len(tokenizer.encode(part, add_special_tokens=False)),
        min_tokens=args.paragraph_min_tokens,
        max_tokens=args.paragraph_max_tokens,
        prompt_thinking=known_thinking(response),
    )


def add_paragraph_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags from which paragraphs follow; the same as those of `generation.generate`."""
    parser.add_argument(
        "--paragraph_tokenizer", default="", help="model that wrote the paths; its tokenizer counts tokens"
    )
    parser.add_argument("--paragraph_min_tokens", type=int, default=32, help="tokens that a paragraph has at least")
    parser.add_argument("--paragraph_max_tokens", type=int, default=128, help="tokens before which it is closed")


def responses_by_path(rows: list[Row]) -> dict[str, Row]:
    """Responses of the rows of a generation file by path id."""
    from generation.splits import path_rows

    return {row["id"]: response for row, response in path_rows(rows)}


def read_labels(file: Path) -> list[LabelledPath]:
    """Paths of a labels file; replies that could not be parsed are counted in the log."""
    rows = read_generations(file)
    columns = {"use_answer": bool, "paragraphs": list}
    check_columns(rows, columns, file, "it must come from a split labeling_distill*")
    check_single(rows, file)
    unparsed = sum(chunk_candidates(row) is None for row in rows)
    logger.info("%s: %d of %d chunks have a reply that cannot be parsed", file, unparsed, len(rows))
    return labelled_paths(rows)


def run_candidates(args: argparse.Namespace) -> None:
    """Write the candidates of a labels file."""
    check_output(args.candidates, "candidates", (args.labels,))
    paths = read_labels(args.labels)
    candidates = list(candidate_rows(paths))
    if not candidates:
        raise ValueError(f"{args.labels}: none of its {len(paths)} paths has a result, so there is nothing to confirm")
    write_json(args.candidates, candidates)
    logger.info("wrote %s: %d candidates in %d paths", args.candidates, len(candidates), len(paths))


def run_clean(args: argparse.Namespace) -> None:
    """Write cut paths and, where asked for, the reflection model's training file."""
    from rea_rl.utils import load_tokenizer

    for key in ("confirmations", "paths", "out"):
        if getattr(args, key) is None:
            raise ValueError(f"clean needs {key}; give --{key}")
    if not args.paragraph_tokenizer:
        raise ValueError("clean needs paragraph_tokenizer; give --paragraph_tokenizer, the model that wrote the paths")
    check_paragraph_tokens(args.paragraph_min_tokens, args.paragraph_max_tokens)
    inputs = (args.labels, args.confirmations, args.paths)
    check_output(args.out, "out", inputs)
    if args.train_file is not None:
        check_output(args.train_file, "train_file", (*inputs, args.out))
    tokenizer = load_tokenizer(args.paragraph_tokenizer, "paragraph_tokenizer")
    judged = read_generations(args.confirmations)
    check_single(judged, args.confirmations)
    confirmations = {row["id"]: after_thinking(row["responses"][0]) for row in judged}
    unparsed = sum(parse_confirmation(reply) is None for reply in confirmations.values())
    logger.info("%s: %d of %d replies are neither Yes nor No", args.confirmations, unparsed, len(confirmations))
    paths, written = read_labels(args.labels), read_generations(args.paths)
    check_same_prompts(written, args.paths, [path.row for path in paths], args.labels)
    responses, split = responses_by_path(written), paragraph_splitter(tokenizer, args)
    rows, examples = clean(paths, confirmations, responses, tokenizer, split)
    if not rows:
        raise ValueError(f"{args.labels}: no path is left; none of the judge's replies could be parsed")
    write_json(args.out, rows)
    kept = sum(row["kept"] for row in rows) / len(rows)
    cut = sum(row["prefix"] is not None for row in rows)
    logger.info(
        "wrote %s: %d of %d paths could be parsed, %d are cut, %.1f %% of the thinking is kept",
        *(args.out, len(rows), len(paths), cut, 100 * kept),
    )
    if args.train_file is not None:
        write_json(args.train_file, examples)
        logger.info("wrote %s: %d examples", args.train_file, len(examples))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Confirmed results from a judge's replies.")
    parser.add_argument("labels", type=Path, help="file of split labeling_distill or labeling_distill_use_asw")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--candidates", type=Path, help="write the candidates for the second judgement here")
    action.add_argument("--clean", action="store_true", help="write cut paths")
    parser.add_argument("--confirmations", type=Path, help="clean: replies to the candidates, from split json")
    parser.add_argument("--paths", type=Path, help="clean: the file that was judged")
    parser.add_argument("--out", type=Path, help="clean: cut paths")
    parser.add_argument(
        "--train_file", type=Path, nargs="?", const=TRAIN_FILE,
        help=f"clean: also write the reflection model's training file (without a value: {TRAIN_FILE})",
    )  # fmt: skip
    add_paragraph_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or files."""
    setup_logging()
    args = parse_arguments(argv)
    try:
        (run_clean if args.clean else run_candidates)(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
