"""What the entry points share: logging, tokenizer, problems, checkpoint look-up."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generation.utils import NUMBER, Rows, any_rows, check_id, is_a, read_json, read_text
from rea_rl.model_files import read_tokenizer, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PROBLEM_COLUMNS = ("problem", "question")
# GSM8K's answer column on the Hub holds the worked solution, then this mark and the number
GSM8K_ANSWER = "\n#### "


def setup_logging(level: int = logging.INFO) -> None:
    """Log to stderr with time and module; ranks other than the first only warn.

    Entry points call it before they import torch, so the wait policy of its threads is set here
    too: threads that spin while they wait lose most of their speed as soon as anything else runs on
    the cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ.get("RANK", "0") != "0":
        level = logging.WARNING
    logging.basicConfig(
        level=level, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", force=True
    )
    for chatty in ("httpx", "httpx2", "openai"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def resolve_dtype(dtype: str, device: str) -> str:
    """`dtype` as given; `auto` on a CPU without bfloat16 instructions is `float32`, which is 40
    times faster there."""
    if dtype != "auto" or device != "cpu":
        return dtype
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return "auto" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def api_key() -> str:
    """Key of the vLLM servers, as vLLM itself reads it; servers on 127.0.0.1 take any."""
    return os.environ.get("VLLM_API_KEY", "EMPTY")


def load_tokenizer(
    path: str, key: str = "model_name_or_path", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Tokenizer with a chat template, padded on the left.

    Args:
        path: local folder or Hub id.
        key: recipe key that named it, for the error.
        trust_remote_code: run code that comes with it.

    Raises ValueError with the cause if it cannot be loaded, or if its tokenizer has no chat
    template, no end of sequence, or more ids than the model of its folder.
    """
    tokenizer = read_tokenizer(path, key, trust_remote_code)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{key}: the tokenizer of {path!r} has no chat template; take a model that was tuned "
            "on dialogues, or put its chat_template.jinja beside the tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{key}: the tokenizer of {path!r} has no eos_token; name it in its "
            "tokenizer_config.json"
        )
    config = text_config(path) if (Path(path) / "config.json").is_file() else None
    size = getattr(config, "vocab_size", None)
    # added tokens apart: some of them no text ever uses
    if size is not None and tokenizer.vocab_size > size:
        raise ValueError(
            f"{key}: the tokenizer of {path!r} has {tokenizer.vocab_size} ids, but the model's "
            f"vocab_size is {size}; put the model's own tokenizer beside it"
        )
    return tokenizer


def load_problems(
    name: str,
    split: str | None = None,
    *,
    config: str | None = None,
    problem_column: str | None = None,
    answer_column: str = "answer",
    gold_needed: bool = True,
) -> list[dict[str, Any]]:
    """Problems with their gold answers.

    Args:
        name: local `.json` file (a list of objects), local `.jsonl` file, or Hub dataset.
        split: split of a Hub dataset.
        config: configuration of a Hub dataset.
        problem_column: default: `problem`, else `question`.
        answer_column: gold answer, text or number; of a worked GSM8K solution only what follows
            `####` is taken.
        gold_needed: refuse an empty gold answer. Two problems of Gaokao 2023 have one; nothing is
            right there.

    Returns:
        Rows with `id`, `problem`, `answer` (str) and all further columns; an absent `id` becomes
        the row number.

    Raises ValueError naming the file, and the row where one is at fault.
    """
    columns = {"problem_column": problem_column, "answer_column": answer_column}
    return list(open_problems(name, split, config=config, gold_needed=gold_needed, **columns))


def open_problems(
    name: str,
    split: str | None = None,
    *,
    config: str | None = None,
    problem_column: str | None = None,
    answer_column: str = "answer",
    gold_needed: bool = True,
    check: Callable[[dict[str, Any], int], None] = lambda row, i: None,
) -> Rows | list[dict[str, Any]]:
    """The same; those of a local file are read when they are asked for. `check` raises
    ValueError for further faults."""
    columns = {
        "problem_column": problem_column,
        "answer_column": answer_column,
        "gold_needed": gold_needed,
    }
    convert = partial(_problem, name=name, **columns)
    first: dict[str, int] = {}
    known: list[dict[str, Any]] = []  # what tells duplicates

    def look(row: dict[str, Any], i: int) -> None:
        problem = convert(row, i)
        check_id(problem, i, name, first)
        check(problem, i)
        known.append(
            {key: problem[key] for key in ("problem", "answer")}
            if "problem_id" not in problem
            else problem_id
        )

    problem_id = {"problem_id": True}
    rows = any_rows(name, split, config, look)
    warn_of_duplicates(known, name)
    return (
        rows.mapped(convert)
        if isinstance(rows, Rows)
        else [convert(row, i) for i, row in enumerate(rows)]
    )


def warn_of_duplicates(problems: list[dict[str, Any]], name: str) -> None:
    """Log how many problems are there more than once, and how many of these have two golds.

    Rows with a `problem_id` are paths, of which a problem has several.
    """
    rows_of: dict[str, list[int]] = {}
    for i, row in enumerate(problems):
        if "problem_id" not in row:
            rows_of.setdefault(" ".join(row["problem"].split()), []).append(i)
    twice = [rows for rows in rows_of.values() if len(rows) > 1]
    torn = [rows for rows in twice if len({problems[i]["answer"] for i in rows}) > 1]
    if twice:
        logger.warning(
            "%s: %d problems are there more than once, in %d of %d rows; the first in rows %s",
            *(
                name,
                len(twice),
                sum(map(len, twice)),
                len(problems),
                ", ".join(map(str, twice[0][:5])),
            ),
        )
    if torn:
        golds = ", ".join(f"row {i} {problems[i]['answer']!r}" for i in torn[0][:5])
        logger.warning(
            "%s: %d problems have two golds; the first: %s; keep the right one",
            name,
            len(torn),
            golds,
        )


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Newest whole `checkpoint-<step>` folder of a run, or None."""
    return next(map(str, whole_checkpoints(output_dir)), None)


def whole_checkpoints(output_dir: str | Path) -> list[Path]:
    """`checkpoint-<step>` folders that were written to their end, newest first; warns of newer
    ones that were not."""
    folders = [
        path
        for path in Path(output_dir).glob("checkpoint-*")
        if path.name.split("-")[1].isdecimal()
    ]
    whole: list[Path] = []
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if is_whole(folder):
            whole.append(folder)
        elif not whole:
            logger.warning("%s was interrupted while it was written; it is passed over", folder)
    return whole


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end.

    `trainer_state.json` is the last file that the first rank writes: after the weights and the
    optimizer's state, which several ranks write in step, and before older checkpoints are removed.
    Cut off, it is no JSON.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def read_tokens_per_reflection(
    path: str | Path, word_bounded: bool, prompt_format: dict[str, Any] | None = None
) -> float:
    """Threshold of the reflect reward from the JSON file of a measurement.

    The file holds `tokens_per_reflection`, `word_bounded`, the way the words were counted, and how
    the prompts were made. Raises ValueError if it is missing, or was measured another way than
    training counts words and makes prompts.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"tokens_per_reflection_file: {path} does not exist; measure the base model first, or "
            "give tokens_per_reflection instead"
        )
    from generation.provenance import check_comparable, known_parts

    measured = read_json(path, finite=True)
    if (
        not isinstance(measured, dict)
        or not {"tokens_per_reflection", "word_bounded"} <= measured.keys()
    ):
        raise ValueError(
            f"tokens_per_reflection_file: {path} has no tokens_per_reflection; write it by scoring "
            "the base model's paths with --reflection_quantile"
        )
    if measured["word_bounded"] != word_bounded:
        raise ValueError(
            f"tokens_per_reflection_file: {path} was measured with word_bounded "
            f"{measured['word_bounded']}, but word_bounded_reflections is {word_bounded}; measure "
            "again or change the key"
        )
    if not is_a(measured["tokens_per_reflection"], NUMBER):
        raise ValueError(
            f"tokens_per_reflection_file: {path} has the tokens_per_reflection "
            f"{measured['tokens_per_reflection']!r}, which is no number; measure again"
        )
    if prompt_format is not None:
        names = (f"tokens_per_reflection_file: the paths of {path}", "the prompts of the recipe")
        remedy = (
            "sample the base model's paths with the recipe's keys and measure again, or change the "
            "recipe"
        )
        check_comparable(known_parts(measured), {"prompt_format": prompt_format}, names, remedy)
    return float(measured["tokens_per_reflection"])


def read_chat_template(path: str) -> str:
    """Text of a Jinja chat template. Raises ValueError for a file that is missing or has another
    ending."""
    if not path.endswith((".jinja", ".j2")):
        raise ValueError(
            f"chat template: {path} does not end in .jinja; give a file with a Jinja template"
        )
    return read_text(path)


def read_cut_file(path: str | Path) -> dict[str, float]:
    """`cut_threshold` and `cut_second_half` that `generation.calibrate` chose.

    Raises ValueError if the file is missing or holds something else.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"cut_file: {path} does not exist; choose the cut first (generation.calibrate), or "
            "leave the key out"
        )
    chosen = read_json(path)
    keys = ("cut_threshold", "cut_second_half")
    if not isinstance(chosen, dict) or not all(
        isinstance(chosen.get(key), (int, float)) for key in keys
    ):
        raise ValueError(
            f"cut_file: {path} has no {' and '.join(keys)}; it must be a file of "
            "generation.calibrate"
        )
    return {key: float(chosen[key]) for key in keys}


def write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write a text file so that it is either complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _problem(
    row: dict[str, Any],
    i: int,
    name: str,
    problem_column: str | None,
    answer_column: str,
    gold_needed: bool,
) -> dict[str, Any]:
    columns = (problem_column,) if problem_column else PROBLEM_COLUMNS
    column = next((c for c in columns if c in row), None)
    if column is None or answer_column not in row:
        missing = " or ".join(map(repr, columns)) if column is None else repr(answer_column)
        raise ValueError(
            f"{name}: row {i} has no column {missing}, only {sorted(row)}; problem_column and "
            "answer_column name them"
        )
    if not isinstance(row[column], str):
        raise ValueError(f"{name}: row {i} has the {column!r} {row[column]!r}; write it as a text")
    if not isinstance(row[answer_column], (str, int, float)) or isinstance(
        row[answer_column], bool
    ):
        raise ValueError(
            f"{name}: row {i} has the {answer_column!r} {row[answer_column]!r}; write a text or a "
            "number"
        )
    # of a set on the Hub
    if isinstance(row[answer_column], float) and not math.isfinite(row[answer_column]):
        raise ValueError(
            f"{name}: row {i} has the {answer_column!r} {row[answer_column]}; fill it in, or drop "
            "the row"
        )
    answer = str(row[answer_column]).rsplit(GSM8K_ANSWER, 1)[-1].strip()
    empty = [
        key for key, text in ((column, row[column]), (answer_column, answer)) if not text.strip()
    ]
    if column in empty or (gold_needed and empty):
        raise ValueError(
            f"{name}: row {i} has an empty {' and '.join(map(repr, empty))}; fill it in, or drop "
            "the row"
        )
    return {
        **row,
        "id": str(i if row.get("id") is None else row["id"]),
        "problem": row[column],
        "answer": answer,
    }


@functools.cache  # torch keeps a list that it sorts, and cannot compare two functions
def know_cpu_by_index() -> None:
    """Let torch.load put tensors on `cpu:0`: so accelerate calls the CPU of several processes,
    whose resume would fail."""
    import torch

    torch.serialization.register_package(
        100,
        lambda _: None,
        lambda storage, location: storage if location.startswith("cpu:") else None,
    )
