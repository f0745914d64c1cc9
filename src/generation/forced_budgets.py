"""Responses that are stopped at a token budget and must answer then: rows for split `math_cot` of
`generation.generate`.

    python -m generation.forced_budgets FILE --out ROWS --budgets 64 128 256 512 1024 \
        --model_dir MODEL

FILE is a generation file of a reasoning model. A row's `prefix` is the first tokens of the thinking
and the forced end; a response whose thinking ended within the budget is passed on as it is. Ids end
in the budget.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from generation.generation_file import read_generations
from generation.markers import known_markers
from generation.parallel import Shared, map_rows
from generation.path_cutting import to_json
from generation.rendering import thinking_in
from generation.stages import path_rows
from rea_core.checks import check_numbers, user_path
from rea_core.command import Needed, add_flags, command
from rea_core.models import load_tokenizer
from rea_core.ownership import own_output
from rea_core.row_files import Row, RowWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def budget_rows(
    rows: Iterable[Row], budgets: list[int], tokenizer: PreTrainedTokenizerBase, num_samples: int
) -> Iterator[Row]:
    """One row per budget of thinking tokens, and response: `num_samples` of each problem."""
    for row, response in path_rows(rows):
        if row["path"] >= num_samples:
            continue
        ids = tokenizer.encode(thinking_in(response), add_special_tokens=False)
        for budget in budgets:
            columns = {**row, "id": f"{row['id']}/{budget}", "budget": budget}
            if len(ids) <= budget and response["finish_reason"] == "stop":
                yield {**columns, "prefix": None, "responses": [response]}
            else:
                kept = tokenizer.decode(ids[:budget])
                forced = known_markers(response).forced(after_newline=kept.endswith("\n"))
                yield {**columns, "prefix": kept + forced}


def forced_lines(
    budgets: list[int], num_samples: int, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row]
) -> list[list[bytes]]:
    """Rows, as JSON, that are made of each row."""
    settings = budgets, tokenizer, num_samples
    return [[to_json(row) for row in budget_rows([whole], *settings)] for whole in rows]


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or files."""
    parser = argparse.ArgumentParser(
        description="Rows that force an answer after so many tokens of thinking."
    )
    parser.add_argument("file", type=user_path, help="generation file of a reasoning model")
    parser.add_argument(
        "--budgets", type=int, nargs="+", required=True, help="tokens of the thinking"
    )
    add_flags(
        parser,
        out=(Needed(Path), "rows for split math_cot"),
        model_dir=(Needed(str), "model that wrote the responses; its tokenizer counts tokens"),
        num_samples=(1, "responses of each problem that are taken"),
        num_workers=(int, "processes; default: one a core"),
    )
    args = parser.parse_args(argv)
    if min(args.budgets) < 1 or len(set(args.budgets)) < len(args.budgets):
        raise ValueError(f"budgets are {args.budgets}; give each once, and at least 1 token")
    check_numbers(vars(args), positive=("num_samples", "num_workers"))
    own_output(args.out, "out", (args.file,))
    tokenizer = Shared(load_tokenizer(args.model_dir, "model_dir"))
    work = partial(forced_lines, sorted(args.budgets), args.num_samples)
    rows = read_generations(args.file)
    with RowWriter(args.out, is_output=True) as out:
        for lines in map_rows(work, rows, tokenizer, args.num_workers, args.out.name):
            for line in lines:
                out.add_text(line)
    logger.info("wrote %s: %d rows", args.out, out.num_rows)


if __name__ == "__main__":
    main()
