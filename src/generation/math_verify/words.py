"""Answers in words: numbers written out, ordinals, and texts that differ in articles, case or blanks."""

from __future__ import annotations

import re

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = {name: 10 * (i + 2) for i, name in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split())}
_CARDINALS = {name: i for i, name in enumerate(_ONES)} | _TENS
_SCALES = {"thousand": 1000, "million": 10**6, "billion": 10**9}
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
_ROMANS = "i ii iii iv v vi vii viii ix x".split()
_NUMERALS = {name: str(i + 1) for names in (_ORDINALS, _ROMANS, _ONES[1:11]) for i, name in enumerate(names)}
# Words that leave the meaning of a short answer as it is.
_FILLERS = "a an the is are it be of condition conditions answer only due".split()


def number_from_words(text: str) -> tuple[int, str] | None:
    """Split leading number words off: "twenty-five dollars" gives (25, "dollars"); None if there are none."""
    words = re.findall(r"[a-z]+", text.lower())
    total = current = used = 0
    for word in words:
        after_scale = used and words[used - 1] in ("hundred", *_SCALES)
        if word in _CARDINALS:
            current += _CARDINALS[word]
        elif word == "hundred" and current:
            current *= 100
        elif word in _SCALES and current:
            total, current = total + current * _SCALES[word], 0
        elif not (word == "and" and after_scale):  # "two and three" are two numbers
            break
        used += 1
    return (total + current, " ".join(words[used:])) if used else None


def _tokens(text: str) -> list[str]:
    """Words in lower case without fillers, numerals last: "Quadrant I" and "the first quadrant" have the same."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)  # a gold that lost its blank: QuadrantI
    words = [_NUMERALS.get(word, word) for word in re.findall(r"[^\W_]+", text.lower())]
    words = [re.sub(r"^(\d+)(?:st|nd|rd|th)$", r"\1", word) for word in words if word not in _FILLERS]
    return [word for word in words if not word.isdigit()] + [word for word in words if word.isdigit()]


def same_words(gold: str, prediction: str) -> bool:
    """Equal up to case, fillers and numerals; a gold without blanks may be the prediction's words run together."""
    tokens = _tokens(gold), _tokens(prediction)
    if not all(tokens):
        return False
    return tokens[0] == tokens[1] or _run_together(tokens[0], tokens[1]) or _run_together(tokens[1], tokens[0])


def _run_together(single: list[str], words: list[str]) -> bool:
    if len(single) > 1 or len(words) < 2:
        return False
    filler = f"(?:{'|'.join(_FILLERS)})*"
    return re.fullmatch(filler + filler.join(map(re.escape, words)) + filler, single[0]) is not None
