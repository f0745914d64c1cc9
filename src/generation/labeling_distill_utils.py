"""From a large judge's replies to confirmed results, cut responses, and training examples of the
reflection model.

    python -m generation.labeling_distill_utils LABELS --candidates OUT
    python -m generation.labeling_distill_utils LABELS --clean --confirmations FILE --paths PATHS \
        --paragraph_tokenizer model/DeepSeek-R1-Distill-Qwen-7B --out OUT --train_file

LABELS is what `generation.generate` wrote with split `labeling_distill_use_asw` (or
`labeling_distill`) for PATHS. The first command writes every paragraph that was called a result, as
rows for split `json`: the second judgement. With its replies, the second command (`--clean`) writes
a row per response: the confirmed results, the share of its tokens that is kept by a cut after the
first one, and the prefix from which split `math_cot` finishes the response.

A reply that cannot be parsed is counted and reported, and its response is left out: its first
result is unknown.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from generation import prompts
from generation.generation_file import read_generations
from generation.identity import check_same, identity
from generation.parallel import Shared, ordered_map, processes_for
from generation.path_cutting import Splitting, check_paragraphs, cut_row, to_json
from generation.provenance import check_same_prompts
from generation.rendering import after_thinking
from generation.segments import Paragraph, check_paragraph_tokens
from generation.stages import path_rows
from rea_core import moved
from rea_core.checks import check_numbers, user_path
from rea_core.command import add_flags, command
from rea_core.models import load_tokenizer
from rea_core.ownership import own_output
from rea_core.row_files import Row, Rows, RowWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__getattr__ = moved.names_of(__name__)  # names that have left this module
logger = logging.getLogger(__name__)

TRAIN_FILE = Path("dataset/deepscaler_reflection_training.json")

PATHS_AT_ONCE = 16  # that a process works on

# Judges decorate: `**[1].** Think: ...` and `**Label:** Right Result` are read like the plain form.
_PART_START = re.compile(r"^\**\[(\d+)\]\.", re.MULTILINE)
_LABEL = re.compile(r"\bLabel\b\W*\b(Reasoning|Right Result|Wrong Result|Result)\b", re.IGNORECASE)
_YES_NO = re.compile(r"\W*(Yes|No)\b", re.IGNORECASE)
_CANDIDATES = {label.casefold() for label in (prompts.RIGHT_RESULT, prompts.RESULT)}


def parse_judge_labels(response: str) -> dict[int, str]:
    """Labels of the parts `[i]. Think: ... / Label: ...` of a judge's reply, verbatim, by the
    number i.

    A reply in which any part has no label yields none at all: it is counted as unusable, not
    guessed.
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
    """Verdict of a second judgement, or None if the reply begins with neither Yes nor No."""
    match = _YES_NO.match(response)
    return None if match is None else match.group(1).casefold() == "yes"


def reflection_example(
    problem: str, paragraphs: list[str], is_result: list[bool], reply: str = prompts.LONG
) -> dict[str, prompts.Messages]:
    """Training example of the reflection model: a prompt-completion row in the format that is used
    online, its `reply` in a form of `prompts.REFLECTION_REPLIES`.

    `is_result` holds one confirmed verdict per paragraph; a different length raises ValueError.
    """
    if len(is_result) != len(paragraphs):
        raise ValueError(
            f"{len(paragraphs)} paragraphs but {len(is_result)} verdicts; give one verdict a "
            "paragraph"
        )
    return {
        "prompt": prompts.reflection_messages(problem, paragraphs, reply),
        "completion": [
            {"role": "assistant", "content": prompts.reflection_labels(is_result, reply)}
        ],
    }


@dataclass(frozen=True)
class LabelledPath:
    """The judge's verdicts on one response."""

    row: Row  # columns of its problem, `id` of the response, `problem_id`, `path`
    use_answer: bool  # whether the judge knew the gold answer
    paragraphs: list[str]
    # a verdict per paragraph; None if a reply could not be parsed
    is_candidate: list[bool] | None

    def candidate_id(self, index: int) -> str:
        """`id` of a paragraph's second judgement."""
        return f"{self.row['id']}/{index}"


def chunk_candidates(row: Row) -> list[bool] | None:
    """Whether each part of a chunk was called a (right) result; None if a part has no label."""
    labels = parse_judge_labels(after_thinking(row["responses"][0]))
    if labels.keys() != set(range(1, len(row["paragraphs"]) + 1)):
        return None
    return [labels[number].casefold() in _CANDIDATES for number in sorted(labels)]


def labelled_paths(rows: Iterable[Row]) -> list[LabelledPath]:
    """Responses, in order, of the rows of a `labeling_distill*` file, which has a row per chunk."""
    chunks: dict[str, list[Row]] = {}
    for row in rows:
        chunks.setdefault(row["id"].rpartition("/")[0], []).append(row)
    return [_join_chunks(path_id, group) for path_id, group in chunks.items()]


def _join_chunks(path_id: str, chunks: list[Row]) -> LabelledPath:
    verdicts = [chunk_candidates(chunk) for chunk in chunks]
    columns = {
        k: v
        for k, v in chunks[0].items()
        if k not in ("responses", "paragraphs", "chunk", "use_answer")
    }
    return LabelledPath(
        row={**columns, "id": path_id},
        use_answer=chunks[0]["use_answer"],
        paragraphs=[text for chunk in chunks for text in chunk["paragraphs"]],
        is_candidate=None if None in verdicts else [hit for verdict in verdicts for hit in verdict],
    )


def candidate_rows(paths: Iterable[LabelledPath]) -> Iterator[Row]:
    """Rows for split `json`: one second judgement per candidate."""
    for path in paths:
        problem, answer = path.row["problem"], path.row["answer"]
        told = answer if path.use_answer else None
        for index, hit in enumerate(path.is_candidate or []):
            if hit:
                paragraph = path.paragraphs[index]
                yield {
                    "id": path.candidate_id(index),
                    "problem": problem,
                    "answer": answer,
                    "paragraph": paragraph,
                    "messages": prompts.confirmation_messages(problem, paragraph, told),
                }


def confirmed_results(path: LabelledPath, confirmations: dict[str, str]) -> list[bool] | None:
    """One confirmed verdict per paragraph, or None if a reply of either judgement could not be
    parsed.

    `confirmations` are the replies of the second judgement by candidate id; a missing one raises
    ValueError.
    """
    if path.is_candidate is None:
        return None
    verdicts = [
        _confirm(path.candidate_id(i), confirmations) if hit else False
        for i, hit in enumerate(path.is_candidate)
    ]
    return None if None in verdicts else verdicts


def _confirm(candidate: str, confirmations: dict[str, str]) -> bool | None:
    if candidate not in confirmations:
        raise ValueError(
            f"confirmations: no reply for candidate {candidate}; judge the candidates of these "
            "labels"
        )
    return parse_confirmation(confirmations[candidate])


def clean(
    paths: Iterable[LabelledPath],
    confirmations: dict[str, str],
    responses: dict[str, Row],
    tokenizer: PreTrainedTokenizerBase,
    split: Callable[[Row], list[Paragraph]],
    reply: str = prompts.LONG,
) -> tuple[list[Row], list[Row]]:
    """(cut rows, training examples) of the responses whose replies could be parsed.

    Confirmations are replies of the second judgement by candidate id, responses are by their id;
    `reply` is the form of the examples.
    """
    rows, examples = [], []
    for path in paths:
        if (verdicts := confirmed_results(path, confirmations)) is None:
            continue
        if (response := responses.get(path.row["id"])) is None:
            raise ValueError(
                f"paths: there is no response {path.row['id']}, which has labels; give the file "
                "that was judged"
            )
        paragraphs = split(response)
        check_paragraphs(path.row["id"], paragraphs, path.paragraphs)
        confirmed = [i for i, hit in enumerate(verdicts) if hit]
        row = cut_row(
            path.row, response, paragraphs, confirmed[0] if confirmed else None, tokenizer
        )
        rows.append({**row, "strategy": "judge", "confirmed": confirmed})
        examples.append(reflection_example(path.row["problem"], path.paragraphs, verdicts, reply))
    return rows, examples


def add_paragraph_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags from which paragraphs follow; the same as those of `generation.generate`."""
    add_flags(
        parser,
        paragraph_tokenizer=("", "model that wrote the responses; its tokenizer counts tokens"),
        paragraph_min_tokens=(32, "tokens that a paragraph has at least"),
        paragraph_max_tokens=(128, "tokens before which it is closed"),
        num_workers=(int, "processes; default: one a core"),
    )


def add_reply_argument(parser: argparse.ArgumentParser) -> None:
    """Flag of the training file's form, which the reflection model learns."""
    parser.add_argument(
        "--reflection_reply",
        choices=prompts.REFLECTION_REPLIES,
        default=prompts.LONG,
        help="replies in the training file: a line for each paragraph, or compact: one word",
    )


def splitting_of(args: argparse.Namespace) -> Splitting:
    """How flags split responses. Raises ValueError without a tokenizer, or for wrong numbers."""
    check_numbers(vars(args), positive=("num_workers",))
    check_paragraph_tokens(args.paragraph_min_tokens, args.paragraph_max_tokens)
    if not args.paragraph_tokenizer:
        raise ValueError(
            "this needs paragraph_tokenizer; give --paragraph_tokenizer, the model that wrote the "
            "responses"
        )
    tokenizer = Shared(load_tokenizer(args.paragraph_tokenizer, "paragraph_tokenizer"))
    return Splitting(tokenizer, args.paragraph_min_tokens, args.paragraph_max_tokens)


class LabelFile:
    """Responses of a file of split `labeling_distill*`; unparsed replies are counted in the log."""

    def __init__(self, file: Path):
        self.places: dict[str, list[int]] = {}  # rows of each response, in order
        unparsed, numbers = 0, count()

        def look(row: Row) -> None:
            nonlocal unparsed
            unparsed += chunk_candidates(row) is None
            path = str(row["id"]).rpartition("/")[0]
            self.places.setdefault(path, []).append(next(numbers))

        columns = {"use_answer": bool, "paragraphs": list}
        remedy = "it must come from a split labeling_distill*"
        self.rows = read_generations(file, columns, remedy, single=True, look=look)
        logger.info(
            "%s: %d of %d chunks have a reply that cannot be parsed", file, unparsed, len(self.rows)
        )

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[LabelledPath]:
        for places in self.places.values():
            yield from labelled_paths(self.rows.select(places))


def write_candidates(labels: Path, candidates: Path) -> None:
    """Write the candidates of a labels file."""
    own_output(candidates, "candidates", (labels,))
    paths = LabelFile(labels)
    with RowWriter(candidates, is_output=True) as out:
        for candidate in candidate_rows(paths):
            out.add(candidate)
        if not out.num_rows:
            raise ValueError(
                f"{labels}: none of its {len(paths)} responses has a result, so there is nothing "
                "to confirm"
            )
    logger.info("wrote %s: %d candidates in %d responses", candidates, out.num_rows, len(paths))


def read_confirmations(file: Path) -> dict[str, dict[str, str]]:
    """Replies of the second judgement, shortened to their verdict, by response and candidate id."""
    found: dict[str, dict[str, str]] = {}
    words = {True: "Yes", False: "No", None: ""}

    def look(row: Row) -> None:
        candidate = str(row["id"])
        verdict = parse_confirmation(after_thinking(row["responses"][0]))
        found.setdefault(candidate.rpartition("/")[0], {})[candidate] = words[verdict]

    num_rows = len(read_generations(file, single=True, look=look))
    unparsed = sum(word == "" for words in found.values() for word in words.values())
    logger.info("%s: %d of %d replies are neither Yes nor No", file, unparsed, num_rows)
    return found


@dataclass(frozen=True)
class CleanBatch:
    """Some labelled responses: rows of their labels and of themselves, second judgements, and the
    form of their examples' replies."""

    labels: Rows
    paths: Rows
    confirmations: dict[str, str]
    reply: str


def clean_batch(splitting: Splitting, batch: CleanBatch) -> list[tuple[float, bool, bytes, bytes]]:
    """Share that is kept, whether it is cut, and row and example as JSON, of each response."""
    paths, responses = labelled_paths(batch.labels), {}
    about = {}
    for row, response in path_rows(batch.paths):
        responses[row["id"]] = response
        about[row["id"]] = identity(row, response)
    for path in paths:
        if path.row["id"] in about:
            places = [f"{path.row['id']!r} of {file.path}" for file in (batch.labels, batch.paths)]
            check_same(places[0], identity(path.row), places[1], about[path.row["id"]])
    rows, examples = clean(
        *(paths, batch.confirmations, responses),
        *(splitting.tokenizer, splitting.paragraphs, batch.reply),
    )
    made = zip(rows, examples, strict=True)
    return [
        (row["kept"], row["prefix"] is not None, to_json(row), to_json(example))
        for row, example in made
    ]


def clean_batches(
    labels: LabelFile,
    written: Rows,
    places: dict[str, int],
    confirmations: dict[str, dict[str, str]],
    reply: str,
) -> Iterator[CleanBatch]:
    """All labelled responses in batches. `places` are their rows by response id."""
    ids = list(labels.places)
    for start in range(0, len(ids), PATHS_AT_ONCE):
        some = ids[start : start + PATHS_AT_ONCE]
        yield CleanBatch(
            labels.rows.select(place for path in some for place in labels.places[path]),
            written.select(dict.fromkeys(places[path] for path in some if path in places)),
            {key: each for path in some for key, each in confirmations.get(path, {}).items()},
            reply,
        )


@dataclass(frozen=True)
class Cleaning:
    """Cut responses, and the reflection model's training examples, from two judgements.

    Attributes:
        labels, confirmations: files of the first and of the second judgement.
        paths: file that was judged.
        out: cut responses.
        splitting: of the paragraphs that were judged.
        train_file: training examples; None for none.
        reply: form of the replies in them.
        num_workers: processes; default: one a core.

    Raises ValueError for files that cannot be written, or take the place of others.
    """

    labels: Path
    confirmations: Path
    paths: Path
    out: Path
    splitting: Splitting
    train_file: Path | None = None
    reply: str = prompts.LONG
    num_workers: int | None = None

    def __post_init__(self) -> None:
        check_numbers(vars(self), positive=("num_workers",))
        inputs = (self.labels, self.confirmations, self.paths)
        own_output(self.out, "out", inputs)
        if self.train_file is not None:
            own_output(self.train_file, "train_file", (*inputs, self.out))

    def run(self) -> None:
        """Write the files. Raises ValueError if no response is left."""
        confirmations, labels = read_confirmations(self.confirmations), LabelFile(self.labels)
        places: dict[str, int] = {}  # row of each response
        numbers = count()

        def look(row: Row) -> None:
            number = next(numbers)
            for k in range(len(row["responses"])):
                places[f"{row['id']}/{k}"] = number

        written = read_generations(self.paths, look=look)
        check_same_prompts(written, self.paths, labels.rows, self.labels)
        batches = clean_batches(labels, written, places, confirmations, self.reply)
        processes = processes_for(written, self.num_workers)
        results = ordered_map(clean_batch, batches, self.splitting, processes)
        bar = tqdm(
            results,
            desc=self.out.name,
            total=-(-len(labels) // PATHS_AT_ONCE),
            unit=f" {PATHS_AT_ONCE} responses",
            mininterval=1.0,
        )
        self._write(chain.from_iterable(bar), len(labels))

    def _write(self, made: Iterable[tuple[float, bool, bytes, bytes]], num_paths: int) -> None:
        kept, cut = 0.0, 0
        with ExitStack() as stack:
            out = stack.enter_context(RowWriter(self.out, is_output=True))
            examples = self.train_file and stack.enter_context(
                RowWriter(self.train_file, is_output=True)
            )
            for share, is_cut, row, example in made:
                kept, cut = kept + share, cut + is_cut
                out.add_text(row)
                if examples:
                    examples.add_text(example)
            if not out.num_rows:
                raise ValueError(
                    f"{self.labels}: no response is left; none of the judge's replies could be "
                    "parsed"
                )
        logger.info(
            "wrote %s: %d of %d responses could be parsed, %d are cut, %.1f %% of the thinking is "
            "kept",
            *(self.out, out.num_rows, num_paths, cut, 100 * kept / out.num_rows),
        )
        if examples:
            logger.info("wrote %s: %d examples", self.train_file, examples.num_rows)


def cleaning(args: argparse.Namespace) -> Cleaning:
    """Cleaning by the flags of a command. Raises ValueError for missing ones."""
    for key in ("confirmations", "paths", "out"):
        if getattr(args, key) is None:
            raise ValueError(f"clean needs {key}; give --{key}")
    files = args.labels, args.confirmations, args.paths, args.out
    return Cleaning(
        *files, splitting_of(args), args.train_file, args.reflection_reply, args.num_workers
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Confirmed results from a judge's replies.")
    parser.add_argument(
        "labels", type=user_path, help="file of split labeling_distill or labeling_distill_use_asw"
    )
    action = parser.add_mutually_exclusive_group(required=True)
    add_flags(
        action,
        candidates=(Path, "write the candidates for the second judgement here"),
        clean=(False, "write cut responses"),
    )
    add_flags(
        parser,
        confirmations=(Path, "clean: replies to the candidates, from split json"),
        paths=(Path, "clean: the file that was judged"),
        out=(Path, "clean: cut responses"),
    )
    parser.add_argument(
        "--train_file", type=user_path, nargs="?", const=TRAIN_FILE,
        help="clean: also write the reflection model's training file (without a value: "
             f"{TRAIN_FILE})",
    )  # fmt: skip
    add_reply_argument(parser)
    add_paragraph_arguments(parser)
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or files."""
    args = parse_arguments(argv)
    if args.clean:
        cleaning(args).run()
    else:
        write_candidates(args.labels, args.candidates)


if __name__ == "__main__":
    main()
