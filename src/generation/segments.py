"""Paragraphs of a thinking, and groups of paragraphs that fit into one judge prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generation.prompts import THINK_END
from generation.word_counts import word_counts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from generation.math_verify.extract import Thinking

_SENTENCE_ENDS = ("!", ".", ";", "?", "！", "。", "；", "？")
_NEWLINE = r"(?:\r\n|\n|\r(?!\n))"
# one or more lines of nothing but white space
BLANK_LINES = re.compile(rf"{_NEWLINE}(?:[^\S\r\n]*{_NEWLINE})+")


@dataclass(frozen=True)
class Paragraph:
    """One unit of labelling and cutting: one or more of the text's blank-line parts."""

    text: str  # its parts joined by a blank line
    num_tokens: int  # sum over the parts, each counted by itself
    # per part, the offset in the split text just after its last character
    part_ends: tuple[int, ...]

    @property
    def end(self) -> int:
        """Character offset in the split text just after the paragraph."""
        return self.part_ends[-1]


def thinking_of(
    text: str, prompt_thinking: Thinking = "unknown", think_end: str = THINK_END
) -> str:
    """Text before the first `think_end`, or all of it if there is none (a truncated response).

    After a prompt that has closed its thinking (`prompt_thinking`, see `generation.rendering`)
    there is none. `generation.rendering.thinking_in` asks a response for both.
    """
    return "" if prompt_thinking == "closed" else text.split(think_end, 1)[0]


def check_paragraph_tokens(min_tokens: int, max_tokens: int) -> None:
    """Raise ValueError for limits of `split_paragraphs` that no paragraph could keep."""
    if min_tokens < 0 or max_tokens < 1 or min_tokens > max_tokens:
        raise ValueError(
            f"paragraph_min_tokens is {min_tokens} and paragraph_max_tokens {max_tokens}; the "
            "first must be 0 or more, and the second at least 1 and not below it"
        )


def split_paragraphs(
    text: str,
    count_tokens: Callable[[str], int],
    *,
    min_tokens: int = 32,
    max_tokens: int = 128,
    prompt_thinking: Thinking = "unknown",
    think_end: str = THINK_END,
) -> list[Paragraph]:
    """Split the thinking of a completion into paragraphs; there is none after a prompt that has
    closed it.

    Parts (between blank lines) are collected until they hold at least `min_tokens` tokens and end a
    sentence, or until the next part would make them reach `max_tokens`. A part is never split.
    Offsets refer to `text`.
    """
    groups: list[list[Paragraph]] = [[]]  # the last one is open
    for part in _parts(thinking_of(text, prompt_thinking, think_end), count_tokens):
        group = groups[-1]
        num_tokens = sum(p.num_tokens for p in group) + part.num_tokens
        ends_sentence = part.text.strip().endswith(_SENTENCE_ENDS)
        if (num_tokens >= min_tokens and ends_sentence) or (num_tokens >= max_tokens and not group):
            group.append(part)
            groups.append([])
        elif num_tokens >= max_tokens:
            groups.append([part])  # not tested again, even with max_tokens by itself
        else:
            group.append(part)
    return [_join(group) for group in groups if group]


def token_counter(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, think_end: str = THINK_END
) -> Callable[[str], int]:
    """Function from a part of one of the texts' thinking to its tokens; all are encoded at once."""
    thinkings = (thinking_of(text, think_end=think_end) for text in texts)
    parts = list({text[start:end] for text in thinkings for start, end in _spans(text)})
    return dict(zip(parts, num_tokens(parts, tokenizer), strict=True)).__getitem__


def num_tokens(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each text, without special ones around it."""
    if not tokenizer.is_fast:
        return [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    words = word_counts(tokenizer)
    counts = [words.count(text) if words else None for text in texts]
    # by itself it makes no lists of ids, which takes as long as the encoding
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    rest = [text for text, count in zip(texts, counts, strict=True) if count is None]
    encodings = (
        iter(backend.encode_batch_fast(rest, add_special_tokens=False)) if rest else iter(())
    )
    return [len(next(encodings)) if count is None else count for count in counts]


def chunk_paragraphs(num_tokens: list[int], limit: int = 1024) -> list[range]:
    """Group consecutive paragraphs greedily into chunks of at most `limit` tokens.

    Returns ranges of paragraph indices, never empty ones; a paragraph over the limit is a chunk by
    itself.
    """
    chunks: list[range] = []
    start, total = 0, 0
    for i, tokens in enumerate(num_tokens):
        if i > start and total + tokens > limit:
            chunks.append(range(start, i))
            start, total = i, 0
        total += tokens
    if num_tokens:
        chunks.append(range(start, len(num_tokens)))
    return chunks


def _parts(thinking: str, count_tokens: Callable[[str], int]) -> list[Paragraph]:
    parts = ((thinking[start:end], end) for start, end in _spans(thinking))
    return [Paragraph(part, count_tokens(part), (end,)) for part, end in parts]


def _spans(thinking: str) -> list[tuple[int, int]]:
    """Begin and end of each part that is not blank."""
    separators = [match.span() for match in BLANK_LINES.finditer(thinking)]
    starts = [0, *(end for _, end in separators)]
    ends = [*(start for start, _ in separators), len(thinking)]
    spans = zip(starts, ends, strict=True)
    return [(start, end) for start, end in spans if thinking[start:end].strip()]


def _join(parts: list[Paragraph]) -> Paragraph:
    return Paragraph(
        text="\n\n".join(part.text for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        part_ends=tuple(part.end for part in parts),
    )
