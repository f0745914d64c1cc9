"""Exact text: the answer is the gold, apart from blanks and the form of its characters."""

from __future__ import annotations

import unicodedata

from generation.verifiers.answers import Row, final_answer


def exact(responses: list[str], rows: list[Row]) -> list[bool]:
    """Whether the final answer is the text of `answer`, or of one of several; case counts.

    >>> exact(["</think>\\\\boxed{the  fox}", "</think>The fox"], [{"answer": "the fox"}] * 2)
    [True, False]
    """
    return [
        plain(final_answer(response, row)) in map(plain, golds(row))
        for response, row in zip(responses, rows, strict=True)
    ]


def golds(row: Row) -> list[str]:
    """Gold answers of a row that are not empty."""
    answer = row["answer"]
    return [gold for gold in (answer if isinstance(answer, list) else [answer]) if gold.strip()]


def plain(text: str) -> str:
    """A text with single blanks between its words, and each character in one form."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_gold(row: Row) -> None:
    """Every text is a gold; an empty one equals nothing."""
