"""The whole cut: from the labels of the reflection model to P(Result), to the last kept
paragraph, to the kept ids."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from generation.markers import R1, Markers, decode_completion
from generation.segments import Paragraph
from rea_core.checks import check_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRENGTHS = ("weak", "normal", "strong")
# one generated token: (log-probability, text) of its top alternatives, best first
Step = list[tuple[float, str]]


@dataclass(frozen=True)
class Cuts:
    """Last kept paragraph for each strength; `strong` cuts earliest, training uses `normal`."""

    strong: int
    normal: int
    weak: int


def label_positions(steps: list[Step]) -> list[int]:
    """Indices of the label tokens: the most likely alternative contains `Think` or `Result`."""
    return [i for i, step in enumerate(steps) if "Think" in step[0][1] or "Result" in step[0][1]]


def result_probabilities(steps: list[Step]) -> list[float]:
    """P(Result) of each label token, in order, normalized over the alternatives that are labels."""
    return [_result_probability(steps[i]) for i in label_positions(steps)]


def _result_probability(step: Step) -> float:
    result = sum(math.exp(logprob) for logprob, token in step if "result" in token.casefold())
    think = sum(math.exp(logprob) for logprob, token in step if "think" in token.casefold())
    # Alternatives that are no label, such as a line break, say nothing of the result.
    return result / (result + think)


@dataclass(frozen=True)
class CutRule:
    """Which paragraph is the last kept one; the defaults are the paper's.

    Attributes:
        second_half: share of the paragraphs before the first one that `normal` may stop at.
        strong_threshold: smallest P(Result) that `strong` stops at.
        threshold: smallest P(Result) that `normal` and `weak` stop at.
        cap_share, cap_offset, cap_max: at least min(floor((n + cap_offset) * cap_share), cap_max)
            of n are removed.
    """

    second_half: float = 0.5
    strong_threshold: float = 0.25
    threshold: float = 0.5
    cap_share: float = 0.05
    cap_offset: int = 10
    cap_max: int = 5

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> CutRule:
        """Rule of the recipe keys `cut_*`. Raises ValueError for values out of range, or that
        contradict each other."""
        shares = ("cut_second_half", "cut_threshold", "cut_strong_threshold", "cut_cap_share")
        check_numbers(settings, shares=shares, not_negative=("cut_cap_offset", "cut_cap_max"))
        strong, normal = settings["cut_strong_threshold"], settings["cut_threshold"]
        if strong > normal:
            raise ValueError(
                f"cut_strong_threshold ({strong}) is over cut_threshold ({normal}), but the strong "
                "cut takes less certain results than the normal one; lower the first, or raise the "
                "second"
            )
        return cls(**{field.name: settings[f"cut_{field.name}"] for field in fields(cls)})

    def choose(self, p_result: Sequence[float], num_paragraphs: int) -> Cuts:
        """Last kept paragraph for each strength.

        Args:
            p_result: P(Result) per paragraph; entries beyond `num_paragraphs` are dropped, missing
                ones are no hit.
            num_paragraphs: paragraphs of the thinking, at least 1.
        """
        if num_paragraphs < 1:
            raise ValueError(
                f"num_paragraphs is {num_paragraphs}; a thinking without paragraphs has no cut"
            )
        p_result = p_result[:num_paragraphs]
        hits = {i for i, p in enumerate(p_result) if p >= self.threshold}
        normal = min((i for i in hits if i >= num_paragraphs * self.second_half), default=None)
        found = _strong(p_result, normal, self.strong_threshold), normal, _weak(hits, normal)
        last = num_paragraphs - 1
        removed = math.floor((num_paragraphs + self.cap_offset) * self.cap_share)
        cap = last - min(removed, self.cap_max)
        return Cuts(*(max(0, min(last if cut is None else cut, cap)) for cut in found))

    def decided(self, strength: str, p_result: Sequence[float], num_paragraphs: int) -> int | None:
        """Cut of a strength as soon as no further label can change it, else None.

        The labels so far may be followed by the end of the reply, or by any probabilities. Three
        continuations reach the smallest and the largest cut that are still possible: nothing more;
        a result at the first paragraph at which `normal` may stop, and nothing after it; results
        only. So if these three agree on a cut, all do.

        Args:
            strength: `strong`, `normal` or `weak`.
            p_result: P(Result) of the labels so far.
            num_paragraphs: as for `choose`.
        """
        given = len(p_result)
        until_normal = max(math.ceil(num_paragraphs * self.second_half) - given, 0)
        rest = max(num_paragraphs - given, 0)
        tails: list[list[float]] = [[1.0] * rest, [0.0] * until_normal + [1.0]]
        cut = getattr(self.choose(p_result, num_paragraphs), strength)
        chosen = (self.choose([*p_result, *tail], num_paragraphs) for tail in tails)
        return cut if all(getattr(each, strength) == cut for each in chosen) else None


def choose_cuts(p_result: Sequence[float], num_paragraphs: int, **settings: Any) -> Cuts:
    """`CutRule(**settings).choose`, the paper's rule by default.

    >>> choose_cuts([0.1, 0.2, 0.9, 0.1], 4)
    Cuts(strong=2, normal=2, weak=2)
    """
    return CutRule(**settings).choose(p_result, num_paragraphs)


def _strong(p_result: Sequence[float], normal: int | None, threshold: float) -> int | None:
    """Most certain result no later than `normal`."""
    end = len(p_result) if normal is None else normal + 1
    candidates = [i for i, p in enumerate(p_result[:end]) if p >= threshold]
    return max(candidates, key=p_result.__getitem__, default=normal)


def _weak(hits: set[int], normal: int | None) -> int | None:
    """First result after the unbroken run of results that starts at `normal`: one more check."""
    if normal is None:
        return None
    run_end = normal
    while run_end + 1 in hits:
        run_end += 1
    return min((i for i in hits if i > run_end), default=run_end)


FindThinkEnd = Callable[[Sequence[int]], int]


class CutCompletion(NamedTuple):
    """A sampled completion cut for revision."""

    kept_ids: list[int]  # prefix of the sampled ids
    # ends the thinking; starts with a newline unless the kept ids already end in one
    forced_text: str


# --- Ids of a response ----------------------------------------------------------------------------


def think_end_ids(tokenizer: PreTrainedTokenizerBase, markers: Markers = R1) -> list[int]:
    """Ids of `</think>`, or of another end: one if the tokenizer has such a token, several if it
    is ordinary text."""
    return tokenizer.encode(markers.think_end, add_special_tokens=False)


def find_marker(ids: Sequence[int], marker: int | Sequence[int]) -> int:
    """Index of the first id of the first `marker` (an id or a sequence of ids) in `ids`, or
    `len(ids)` without one.

    With `think_end_ids` as marker it is the number of thinking tokens of a completion.
    """
    wanted = [marker] if isinstance(marker, int) else list(marker)
    starts = range(len(ids) - len(wanted) + 1)
    return next((i for i in starts if list(ids[i : i + len(wanted)]) == wanted), len(ids))


def think_end_finder(tokenizer: PreTrainedTokenizerBase, markers: Markers = R1) -> FindThinkEnd:
    """Function from the ids of a completion to the number of its thinking tokens: all without an
    end.

    If that is ordinary text, its ids depend on what follows (Qwen2.5 has a token `>\\n\\n`), so
    it is found in the text.
    """
    marker = think_end_ids(tokenizer, markers)
    if len(marker) == 1:
        return lambda ids: find_marker(ids, marker)

    def find(ids: Sequence[int]) -> int:
        place = decode_completion(tokenizer, ids, markers).find(markers.think_end)
        if place < 0:
            return len(ids)
        return len(shortest_prefix(ids, tokenizer, place + 1, markers)) - 1

    return find


def cut_completion_ids(
    completion_ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    paragraphs: list[Paragraph],
    last_kept: int,
    always_cut: bool = True,
    markers: Markers = R1,
) -> CutCompletion | None:
    """Cut a sampled completion after a paragraph without changing an id.

    Original and revision must share their prefix id by id: the policy is trained on what it
    sampled, and the server's prefix cache and the trainer's shared prefix rely on it. So the kept
    ids are the fewest sampled ids that decode to the kept text; text is never encoded again. An id
    may hold more than the text's end (`.\\n\\n`), or only some bytes of its last character; the
    former is kept whole, the latter is completed by its next ids.

    Args:
        completion_ids: sampled ids.
        tokenizer: the policy's.
        paragraphs: `split_paragraphs(decode_completion(tokenizer, completion_ids), ...)`.
        last_kept: index of the last kept paragraph.
        always_cut: if that is the last of all, cut the thinking before its last blank-line part, so
            that a revision is always shorter; False: leave such a response as it is.
        markers: the policy's, with the text that is forced.

    Returns:
        The cut, or None if nothing is cut off: a thinking of at most one block, or one that is
        kept whole.
    """
    kept_ends = [end for paragraph in paragraphs[: last_kept + 1] for end in paragraph.part_ends]
    if last_kept + 1 >= len(paragraphs):
        kept_ends = kept_ends[:-1] if always_cut else []
    if not kept_ends:
        return None
    kept_ids = list(shortest_prefix(completion_ids, tokenizer, kept_ends[-1], markers))
    kept = decode_completion(tokenizer, kept_ids, markers)
    return CutCompletion(kept_ids, markers.forced(after_newline=kept.endswith("\n")))


def shortest_prefix(
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    num_chars: int,
    markers: Markers = R1,
) -> Sequence[int]:
    """Fewest leading ids that decode to the first `num_chars` characters of the whole text, or
    beyond.

    A prefix that ends inside a character decodes to a replacement character, so it does not match;
    once matched, more ids cannot undo it. That makes the prefix lengths sorted by "matches", and a
    bisection finds the first.
    """
    text = decode_completion(tokenizer, ids, markers)[:num_chars]
    assert len(text) == num_chars, "the paragraphs are of another text than the ids decode to"
    lengths = range(len(ids) + 1)

    def holds_text(n: int) -> bool:
        return decode_completion(tokenizer, ids[:n], markers).startswith(text)

    return ids[: bisect_left(lengths, True, key=holds_text)]


class PathCuts:
    """Cuts of one text, the same that the rollouts make: kept text, end of the thinking, heading of
    the answer.

    The kept text is that of the fewest ids that hold all up to the end of a paragraph. Where the
    tokenizer says which characters an id holds, all cuts are looked up in that; the others are
    found by decoding (`rea_rl.revision`). Tokenizer and markers are those of the text's model.
    """

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerBase, markers: Markers = R1):
        self._text, self._tokenizer, self._markers = text, tokenizer, markers
        self._starts: array[int] | None = None  # first character of each id
        self._ends = array("Q")
        if tokenizer.is_fast:
            backend = tokenizer.backend_tokenizer
            # Settings of an earlier call stay in the tokenizer.
            backend.no_truncation()
            backend.no_padding()
            encoding = backend.encode(text, add_special_tokens=False)
            self._ids: list[int] = encoding.ids
            self._look_up(encoding.offsets)
        else:
            self._ids = tokenizer.encode(text, add_special_tokens=False)
        self._num_thinking = self._count_thinking()

    def after(self, end: int) -> tuple[str, float]:
        """Prefix of a response that is cut at a character, and the share of its thinking."""
        num_kept, kept = self._keep(end)
        forced = self._markers.forced(after_newline=kept.endswith("\n"))
        return kept + forced, num_kept / self._num_thinking

    def _look_up(self, offsets: list[tuple[int, int]]) -> None:
        """Look up characters if the ids hold them all, and decode to just this text."""
        starts, ends = (
            (array("Q", places) for places in zip(*offsets, strict=True))
            if offsets
            else (array("Q"),) * 2
        )
        firsts, lasts = np.frombuffer(starts, np.uint64), np.frombuffer(ends, np.uint64)
        whole = len(starts) > 0 and starts[0] == 0 and ends[-1] == len(self._text)
        gapless = (firsts[1:] <= lasts[:-1]).all()
        in_order = (firsts[1:] >= firsts[:-1]).all()
        if whole and gapless and in_order and self._decode(self._ids) == self._text:
            self._starts, self._ends = starts, ends

    def _keep(self, end: int) -> tuple[int, str]:
        """Number of ids that are kept up to a character, and their text."""
        if self._starts is None:
            kept = shortest_prefix(self._ids, self._tokenizer, end, self._markers)
            return len(kept), self._decode(kept)
        num_kept = bisect_left(self._starts, end)
        last = self._ends[num_kept - 1]
        # the last id ends inside a character
        if num_kept < len(self._starts) and self._starts[num_kept] < last:
            return num_kept, self._decode(self._ids[:num_kept])
        return num_kept, self._text[:last]

    def _count_thinking(self) -> int:
        if self._starts is None:
            return think_end_finder(self._tokenizer, self._markers)(self._ids)
        marker = think_end_ids(self._tokenizer, self._markers)
        if len(marker) == 1:
            return self._ids.index(marker[0]) if marker[0] in self._ids else len(self._ids)
        place = self._text.find(self._markers.think_end)
        return len(self._ids) if place < 0 else bisect_left(self._starts, place + 1) - 1

    def _decode(self, ids: Sequence[int]) -> str:
        return decode_completion(self._tokenizer, ids, self._markers)
