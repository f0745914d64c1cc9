"""The markers of a model's thinking: how it opens and ends, and what is forced where it is cut.

Prompts, sampling, cuts, scores and the viewer all read them here. Three keys set them,
`think_start`, `think_end` and `forced_answer`; their defaults are found from the model's chat
template, and else from its vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from generation.prompts import ANSWER_HEADING, FORCED_ANSWER, THINK_END, THINK_START
from rea_core.checks import check_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PAIR = ("think_start", "think_end")
KEYS = (*PAIR, "forced_answer")
# Start, end, and a token that shows a model's use of them. The first pair that the template writes
# counts, else the first one whose token the vocabulary has.
KNOWN = (
    (THINK_START, THINK_END, THINK_END),  # R1, Qwen3, SmolLM3, Phi-4-reasoning, Olmo-3
    ("[THINK]", "[/THINK]", "[/THINK]"),  # Magistral
    (  # gpt-oss: one message a channel
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>",
    ),
    ("<|channel>thought\n", "<channel|>", "<channel|>"),  # Gemma 4
    ("<thought>", "</thought>", "</thought>"),  # EXAONE Deep
    ("<seed:think>", "</seed:think>", "</seed:think>"),  # Seed-OSS
)


@dataclass(frozen=True)
class Markers:
    """Texts around a thinking. Raises ValueError for texts that cannot be told apart, or force
    nothing.

    Attributes:
        think_start, think_end: open and end a thinking.
        forced_answer: appended to a thinking that is cut. After kept text that ends in a newline
            its own leading newlines are left out.
    """

    think_start: str = THINK_START
    think_end: str = THINK_END
    forced_answer: str = FORCED_ANSWER

    def __post_init__(self) -> None:
        for key in KEYS:
            if not isinstance(value := getattr(self, key), str) or not value.strip():
                raise ValueError(f"{key} is {value!r}; write a text")
            check_text(value, key)
        if self.think_end in self.think_start:
            raise ValueError(
                f"think_start ({self.think_start!r}) has think_end ({self.think_end!r}) in it, so "
                "that no end can be found; give two different texts"
            )
        if self.forced_answer.count(self.think_end) != 1:
            raise ValueError(
                f"forced_answer ({self.forced_answer!r}) must have think_end ({self.think_end!r}) "
                "in it, once: it ends the thinking that is cut"
            )

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Markers:
        """Markers by their keys; those that are missing or null are the model's.

        Args:
            settings: recipe keys.
            tokenizer: of the model; without one it is taken for R1-like.

        Raises ValueError if only one of `think_start` and `think_end` is given.
        """
        given = given_markers(settings)
        start, end = found = _pair_of(tokenizer)
        if "think_end" in given:
            start, end = given["think_start"], given["think_end"]
            _warn_of_others((start, end), found, str(tokenizer and tokenizer.chat_template))
        return cls(start, end, given.get("forced_answer") or _forced(end))

    @property
    def record(self) -> dict[str, str]:
        """Their keys and values, as files hold them."""
        return asdict(self)

    @property
    def column(self) -> dict[str, Any]:
        """The column `markers` of a response; none for R1's, which readers take by default."""
        return {} if self == R1 else {"markers": self.record}

    def forced(self, after_newline: bool) -> str:
        """Text appended to a cut thinking; `after_newline` says that the kept ids already end in
        a newline (`.\\n\\n` is one token in Qwen's tokenizers)."""
        return self.forced_answer.lstrip("\n") if after_newline else self.forced_answer

    def are_in(self, text: str) -> bool:
        """Whether a text says itself that some of it is thinking."""
        return self.think_start in text or self.think_end in text


R1 = Markers()


def given_markers(settings: Mapping[str, Any]) -> dict[str, str]:
    """Markers that the settings name, checked as far as they can be without a model."""
    given = {key: settings[key] for key in KEYS if settings.get(key) is not None}
    if len(alone := [key for key in PAIR if key in given]) == 1:
        (other,) = {*PAIR} - {*alone}
        raise ValueError(
            f"{alone[0]} is {given[alone[0]]!r}, but {other} is not given; give both, or neither"
        )
    if alone:
        Markers(**given | {"forced_answer": given.get("forced_answer") or _forced(given[PAIR[1]])})
    return given


def known_markers(response: Mapping[str, Any]) -> Markers:
    """Markers of a response or rollout. Raises ValueError for a column `markers` that is none."""
    if not (given := response.get("markers")):
        return R1
    if not isinstance(given, Mapping) or given.keys() != {f.name for f in fields(Markers)}:
        raise ValueError(
            f"markers are {str(given)[:60]!r}, but must be the texts {', '.join(KEYS)}"
        )
    return Markers(**given)


def _forced(end: str) -> str:
    """Text forced by default. A channel's text begins at once; a tag has lines of its own."""
    return (
        f"{end}{ANSWER_HEADING}" if end.endswith("<|message|>") else f"\n{end}\n\n{ANSWER_HEADING}"
    )


def _pair_of(tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, str]:
    """The model's start and end, R1's if it shows none."""
    if tokenizer is None:
        return THINK_START, THINK_END
    template = str(tokenizer.chat_template or "")
    written = [pair[:2] for pair in KNOWN if pair[0] in template or pair[1] in template]
    unknown = (None, tokenizer.unk_token_id)
    in_vocabulary = (
        pair[:2] for pair in KNOWN if tokenizer.convert_tokens_to_ids(pair[2]) not in unknown
    )
    return written[0] if written else next(in_vocabulary, (THINK_START, THINK_END))


@cache  # once for a model
def _warn_of_others(given: tuple[str, str], found: tuple[str, str], template: str) -> None:
    """Warn if a template writes markers, but not those that are given: a thinking between its own
    would count as answer."""
    theirs = [marker for marker in found if marker.strip() in template]
    if theirs and not any(marker.strip() in template for marker in given):
        logger.warning(
            "think_start and think_end are %r and %r, but the model's chat template writes %s: a "
            "thinking between %r and %r will count as answer. Leave both keys out for these",
            *(*given, " and ".join(map(repr, theirs)), *found),
        )


# --- Ids ------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def special_marker_ids(tokenizer: PreTrainedTokenizerBase, markers: Markers) -> dict[int, str]:
    """Special tokens that a marker is made of, which a decoder would drop; mostly none."""
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    texts = (markers.think_start, markers.think_end)
    ids = {i for text in texts for i in tokenizer.encode(text, add_special_tokens=False)}
    return {i: tokenizer.convert_ids_to_tokens(i) for i in sorted(ids & special)}


def marker_decoder(
    tokenizer: PreTrainedTokenizerBase, markers: Markers = R1
) -> Callable[[Sequence[int]], str] | None:
    """Function from sampled ids to their text without special tokens such as EOS, but with the
    thinking's markers.

    If the markers are special tokens, a decoder drops them. None if they are not: any decoder
    keeps them then.
    """
    kept = special_marker_ids(tokenizer, markers)

    def decode(ids: Sequence[int]) -> str:
        text, begin = "", 0
        for i, token in enumerate([*ids, None]):
            if token in kept or token is None:
                text += tokenizer.decode(
                    ids[begin:i], skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
                text += kept.get(token, "")
                begin = i + 1
        return text

    return decode if kept else None


def decode_completion(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], markers: Markers = R1
) -> str:
    """Text of sampled ids, without special tokens such as EOS, but with the thinking's markers;
    paragraphs are split from exactly this text."""
    if decode := marker_decoder(tokenizer, markers):
        return decode(ids)
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
