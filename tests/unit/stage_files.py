"""Files of all offline stages, as small as they can be."""

from __future__ import annotations

from pathlib import Path

from generation.arguments import GenerateArguments
from generation.identity import path_digest
from generation.stages import SPLITS
from generation.tasks import Making, Task
from rea_core.row_files import write_json

TEXT = "Add the numbers.\n\nThe result is 7.\n\nYes.\n</think>\n\n\\boxed{7}"


def response(answer: str = "7", text: str = "") -> dict:
    text = text or f"So {answer}.\n\n</think>\\boxed{{{answer}}}"
    return {"text": text, "num_tokens": 9, "finish_reason": "stop"}


def make_stages(folder: Path) -> dict[str, Path]:
    """Files of all stages for one response, by name."""
    row = {"id": "p", "problem": "3+4?", "answer": "7", "responses": [response(text=TEXT)]}
    path = {"id": "p/0", "problem": "3+4?", "answer": "7", "problem_id": "p", "path": 0}
    path["path_digest"] = path_digest(row["responses"][0])
    parts = ["Add the numbers.", "The result is 7.", "Yes.\n"]
    cut = {**path, "cut": 1, "num_paragraphs": 3, "kept": 0.5, "prefix": "Add", "confirmed": [1],
           "truncated": False}  # fmt: skip
    steps = [[[-0.1, "Think"]], [[-0.1, "Result"]], [[-0.1, "Think"]]]
    judged = "\n".join(
        f"[{i}]. Think: x\nLabel: {label}"
        for i, label in enumerate(("Reasoning", "Right Result", "Reasoning"), 1)
    )
    files = {
        "paths": [row],
        "labels": [{**path, "paragraphs": parts, "responses": [response() | {"logprobs": steps}]}],
        "chunks": [{**path, "id": "p/0/0", "chunk": 0, "use_answer": True, "paragraphs": parts,
                    "responses": [response(text=judged)]}],
        "confirmed": [{**path, "id": "p/0/1", "responses": [response(text="Yes")]}],
        "cuts": [cut],
        "finished": [{**cut, "responses": [response() | {"num_tokens": 5}], "path_id": "p/0",
                      "strategy": "none", "thinking": [4, 4, 4], "last_kept": 2}],
    }  # fmt: skip
    for name, rows in files.items():
        write_json(folder / f"{name}.json", rows)
    return {name: folder / f"{name}.json" for name in files}


def build_tasks(args: GenerateArguments, tokenizer: object = None) -> list[Task]:
    """Tasks of the stage for all rows of `qaf`; without a tokenizer they are not rendered."""
    rows, making = SPLITS[args.split].open(args), Making.of(args, tokenizer)()
    return [task for tasks in making.tasks(rows) for task in tasks]
