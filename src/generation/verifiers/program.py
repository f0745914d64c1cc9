"""A program: the code in a response passes the tests of its row, in a bounded process.

Tests are in the column `tests`, else in `answer`: Python that raises if the code is wrong (a text,
or a list of them), or a list of `{"input": ..., "output": ...}`, of what the program reads and
prints.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

from generation.verifiers.answers import Row, answer_part
from generation.verifiers.bounded import run_bounded, warn_of_network

_FENCED = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
SHARE = 0.8  # of a response's seconds that its programs may take
PAIR = {"input", "output"}


def program(responses: list[str], rows: list[Row]) -> list[bool]:
    """Whether the last fenced block after each thinking passes all tests."""
    warn_of_network()
    return [
        _passes(code_of(response, row), tests_of(row), row["verifier_timeout"] * SHARE)
        for response, row in zip(responses, rows, strict=True)
    ]


def code_of(response: str, row: Row) -> str:
    """The last fenced block of the answer part; all of that if it has none."""
    part = answer_part(response, row)
    blocks = _FENCED.findall(part)
    return blocks[-1] if blocks else part.strip()


def tests_of(row: Row) -> list[Any]:
    """Tests of a row: texts, or inputs with outputs. Raises ValueError if there are none."""
    tests = row["tests"] if row.get("tests") else row.get("answer")
    if isinstance(tests, str) and tests.lstrip().startswith(("[", "{")):
        try:
            tests = json.loads(tests)
        except ValueError:
            pass
    tests = tests if isinstance(tests, list) else [tests]
    is_code = all(isinstance(test, str) and test.strip() for test in tests)
    is_pairs = all(
        isinstance(test, dict) and test.keys() >= PAIR and isinstance(test["output"], str | int)
        for test in tests
    )
    if not tests or not (is_code or is_pairs):
        raise ValueError(
            "it has no tests; give the column 'tests' Python that raises if the code is wrong, or "
            'a list of {"input": ..., "output": ...}'
        )
    return tests


def check_gold(row: Row) -> None:
    """Raise ValueError for tests that are missing, or no Python."""
    for test in tests_of(row):
        if isinstance(test, str):
            try:
                compile(test, "tests", "exec")
            except (SyntaxError, ValueError) as error:
                raise ValueError(f"its tests are no Python: {error}") from None


def _passes(code: str, tests: list[Any], seconds: float) -> bool:
    if not code:
        return False
    if isinstance(tests[0], str):
        return run_bounded(code, tests=tests, seconds=seconds) is not None
    deadline = time.monotonic() + seconds
    return all(_prints(code, test, deadline - time.monotonic()) for test in tests)


def _prints(code: str, test: Row, seconds: float) -> bool:
    """Whether the program prints the output, apart from blanks at the ends of lines."""
    if seconds <= 0:
        return False
    printed = run_bounded(code, stdin=str(test["input"]), seconds=seconds)
    return printed is not None and _lines(printed) == _lines(str(test["output"]))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
