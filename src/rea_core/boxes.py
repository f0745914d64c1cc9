r"""The content of the last \boxed{} of a text."""

from __future__ import annotations

import re
from operator import itemgetter

# A box that opens, a sign that a backslash takes out of the count, or a brace.
_BOX = r"\\f?box(?:ed)?\s*\{"  # \boxed{ and \fbox{
_BLANK = re.compile(r"\s*")
_BRACE = re.compile(rf"(?P<box>{_BOX})|\\(?!{_BOX})[\s\S]|[{{}}]")
# What stands between boxes that are one answer: `\boxed{3}$ and $\boxed{5}`, `x=\boxed{3},
# y=\boxed{5}`.
MAX_GAP = 60
_MARKUP = re.compile(r"[\s${}*]|\\(?:[()\[\],;:! ]|text|q?quad)")
_LISTED = re.compile(r"(?:[,;]|,?(?:and|or))(?:\w=)?")


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete \boxed{} or \fbox{} that is not empty, or None.

    Of nested boxes the inner one counts, and boxes that are only listed are one answer. The time
    is linear in the text.

    >>> last_boxed(r"\boxed{3} and \boxed{5}")
    '3, 5'
    """
    boxes = _boxes(text)
    return _last_answer(text, boxes) if boxes else None


def _boxes(text: str) -> list[tuple[int, int, slice]]:
    """Begin, end and content of the complete boxes that are not empty, by their begin.

    One pass: each closing brace closes the group that opened last before it.
    """
    boxes: list[tuple[int, int, slice]] = []
    open_groups: list[re.Match[str] | None] = []
    for match in _BRACE.finditer(text):
        if match["box"] or match[0] == "{":
            open_groups.append(match if match["box"] else None)
        elif match[0] == "}" and open_groups and (opened := open_groups.pop()):
            blank = _BLANK.match(text, opened.end())
            assert blank is not None, "it may be empty"
            content = slice(blank.end(), match.start())
            boxes += (
                [(opened.start(), match.end(), content)] if content.start < content.stop else []
            )
    return sorted(boxes, key=itemgetter(0))


def _last_answer(text: str, boxes: list[tuple[int, int, slice]]) -> str:
    r"""Content of the last box after those listed with it, as in `\boxed{3} and \boxed{5}`."""
    contents: list[str] = []
    begin = len(text)
    for start, end, content in reversed(boxes):
        gap = text[end:begin]
        if contents and (
            end > begin or len(gap) > MAX_GAP or not _LISTED.fullmatch(_MARKUP.sub("", gap))
        ):
            break
        contents.append(text[content].strip())
        begin = start
    return ", ".join(dict.fromkeys(reversed(contents)))
