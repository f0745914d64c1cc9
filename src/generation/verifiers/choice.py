r"""Multiple choice: the answer is the letter of the right choice, or its text.

The gold (`answer`) is a letter. With a column `choices`, a list of texts, it may also be the text
of a choice, or its number from 0.
"""

from __future__ import annotations

import re
import string
import unicodedata

from generation.verifiers.answers import Row, final_answer
from generation.verifiers.exact import golds, plain

# A letter, and not the word `A` or `I` of a sentence: `A because ...`, but not `A red fox`.
_UPPER = (
    r"([A-Z])\b(?!['\w])(?!(?<=[AI])\s+(?!because|since|as\b|for\b|due|which|is\b|and\b|or\b)[a-z])"
)
_LOWER = r"([a-z])(?=[)*$]*(?:[.,;!]|\s*$))"
_STATED = re.compile(
    r"(?i:\b(?:answer|option|choice)\b(?:\s+(?:is|would be|should be|must be))?)\s*[:=]?\s*[*$(]*"
    rf"(?i:option\s+|choice\s+)?[*$(]*(?:{_UPPER}|{_LOWER})"
    r"|\b([A-Z])\b[)*$]*\s+is\s+(?:(?:the\s+)?(?:correct|right)|the\s+answer)\b",
    re.MULTILINE,
)
_ALONE = re.compile(r"\(?([A-Za-z])(?:[.:)].*|\s+[-\u2013\u2014]\s.*|[,;!])?")
_AT_END = re.compile(r".*\s[*$(]*([A-Z])[)*$]*[.!]?")

# `\(B\)`, `<answer>B</answer>`, `[B]`, `"B"`, `( B )`: a letter with marks around it
_MARKS = re.compile(r"\\(?=[(){}\[\]])|</?[a-z]+>")
_WRAPPED = re.compile(r"[\"'`\u201c\u2018\[{(]\s*([A-Za-z])\s*[\"'`\u201d\u2019\]})]")
# Several letters: `A and B`, `(A), (C)`, `A/B`, but not `B, A is wrong`.
_JOINT = r"(?:[,/&+]|\b(?:and|or)\b)+"
_FOLLOWED = re.compile(
    rf"[)*$]*\s*(?:{_JOINT}\s*)+(?i:option\s+|choice\s+)?[*$(]*([A-Z])[)*$]*"
    rf"\s*(?:[.,;!/&]|\b(?:and|or)\b|$)",
    re.MULTILINE,
)
_PRECEDED = re.compile(rf"(?<![\w'])([A-Z])[)*$]*\s*(?:{_JOINT}\s*)+[*$(]*$")


def choice(responses: list[str], rows: list[Row]) -> list[bool]:
    """Whether each response ends in the letter, or the text, of the right choice.

    >>> choice(["</think>The answer is (B).", "</think>\\\\boxed{C}"], [{"answer": "B"}] * 2)
    [True, False]
    """
    return [
        chosen(response, row) in {right_letter(gold, row) for gold in golds(row)}
        for response, row in zip(responses, rows, strict=True)
    ]


def chosen(response: str, row: Row) -> str | None:
    """Letter that a response ends in; None if it names none, or several at once."""
    answer = final_answer(response, row)
    if (letter := _letter_of_text(answer, row)) is not None:
        return letter
    answer = _WRAPPED.sub(r"(\1)", _MARKS.sub("", unicodedata.normalize("NFKC", answer)))
    if stated := [*_STATED.finditer(answer)]:
        return _only(stated[-1], answer)
    last_line = answer.rpartition("\n")[2].strip("*$ \t")
    match = _ALONE.fullmatch(last_line) or _AT_END.fullmatch(last_line)
    return _only(match, last_line) if match else None


def _only(match: re.Match[str], text: str) -> str | None:
    """Letter that was found, unless another one is joined to it."""
    group = next(i for i, letter in enumerate(match.groups(), 1) if letter)
    letter, (start, end) = match[group].upper(), match.span(group)
    others = _FOLLOWED.match(text, end), _PRECEDED.search(text[:start])
    return letter if all(other is None or other[1] == letter for other in others) else None


def _letter_of_text(answer: str, row: Row) -> str | None:
    texts = [plain(str(text)) for text in row.get("choices") or ()]
    if plain(answer) not in texts:
        return None
    return string.ascii_uppercase[texts.index(plain(answer))]


def right_letter(gold: str, row: Row) -> str:
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


def check_gold(row: Row) -> None:
    """Raise ValueError for a gold that names no choice."""
    for gold in golds(row):
        right_letter(gold, row)
