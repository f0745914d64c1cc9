r"""Multiple choice: the answer is the letter of the right choice, or its text.

The gold (`answer`) is a letter. With a column `choices`, a list of texts, it may also be the text
of a choice, or its number from 0.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from generation.verifiers.answers import answer_part, final_answer
from generation.verifiers.exact import golds, plain

_LETTER = r"\(?([A-Za-z])\)?"
_ALONE = re.compile(rf"\**{_LETTER}(?:[.:)\s*].*)?", re.DOTALL)
_OPTION = re.compile(rf"(?:option|choice|answer)\s*:?\s*\**{_LETTER}\**\W*", re.IGNORECASE)
_AT_END = re.compile(r"\s[*$(]*([A-Z])[)*$]*[.!]?$")
_STATED = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+(?:is|would be|should be))?\s*:?\s*[*$(]*"
    r"(?:option\s+|choice\s+)?[*$(]*([A-Z])\b(?!['\w])"
)


def choice(responses: list[str], rows: list[dict[str, Any]]) -> list[bool]:
    """Whether each response ends in the letter, or the text, of the right choice.

    >>> choice(["</think>The answer is (B).", "</think>\\\\boxed{C}"], [{"answer": "B"}] * 2)
    [True, False]
    """
    return [
        chosen(response, row) in {right_letter(gold, row) for gold in golds(row)}
        for response, row in zip(responses, rows, strict=True)
    ]


def chosen(response: str, row: Mapping[str, Any]) -> str | None:
    """Letter that a response ends in; None if it names none."""
    answer = final_answer(response, row)
    if (letter := _letter_of_text(answer, row)) is not None:
        return letter
    last_line = answer.rstrip().rpartition("\n")[2].strip()
    for text in (answer, last_line):
        if match := _OPTION.fullmatch(text):
            return match[1].upper()
    if (match := _ALONE.fullmatch(answer)) and _is_letter(match, answer):
        return match[1].upper()
    stated = _STATED.findall(answer_part(response, row))
    if stated:
        return stated[-1]
    match = _ALONE.fullmatch(last_line)
    if match and _is_letter(match, last_line):
        return match[1].upper()
    ends = _AT_END.search(last_line)
    return ends[1] if ends else None


def _is_letter(match: re.Match[str], text: str) -> bool:
    """Whether a first letter names a choice, and is not the word `A` or `I` of a sentence."""
    rest = text[match.end(1) :]
    return rest[:1] in ("", ")", ".", ":", "*") or not rest.strip()


def _letter_of_text(answer: str, row: Mapping[str, Any]) -> str | None:
    texts = [plain(str(text)) for text in row.get("choices") or ()]
    if plain(answer) not in texts:
        return None
    return string.ascii_uppercase[texts.index(plain(answer))]


def right_letter(gold: str, row: Mapping[str, Any]) -> str:
    """Letter of a gold. Raises ValueError if it is neither a letter nor one of the choices."""
    texts, gold = list(row.get("choices") or ()), gold.strip()
    bare = gold.strip("()").rstrip(".")
    if len(bare) == 1 and bare in string.ascii_letters:
        letter = bare.upper()
    elif (by_text := _letter_of_text(gold, row)) is not None:
        return by_text
    elif texts and gold.isdecimal() and int(gold) < len(string.ascii_uppercase):
        letter = string.ascii_uppercase[int(gold)]
    else:
        raise ValueError(
            f"the answer {gold!r} is no letter; write A, B, ..., or give the texts as a list in "
            "the column 'choices'"
        )
    if texts and letter not in string.ascii_uppercase[: len(texts)]:
        raise ValueError(f"the answer {gold!r} is none of its {len(texts)} choices")
    return letter


def check_gold(row: Mapping[str, Any]) -> None:
    """Raise ValueError for a gold that names no choice."""
    for gold in golds(row):
        right_letter(gold, row)
