"""Labels of the reflection model: which paragraphs of a response state a result."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import openai

from generation.cuts import Step, result_probabilities
from generation.prompts import REFLECTION_PREFILLS, reflection_labels, reflection_messages
from generation.rendering import DEFAULT_FORMAT, encode_continuation, encode_text
from rea_rl.rollout.endpoint import is_about_one, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rea_rl.configs import REARLConfig
    from rea_rl.rollout.servers import Seat

logger = logging.getLogger(__name__)

TOP_LOGPROBS = 5  # alternatives of a label token that the probability of a result is read from
# Tokens that the server sends at a time, about two labels of seven: to read an event costs the
# trainer's process as much as to read several labels in it.
STREAM_INTERVAL = 14
GREEDY_EXTRA = {
    "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stream_interval": STREAM_INTERVAL,
    "return_token_ids": False,  # nor those of the prompt, which are as long as the response
}  # fmt: skip


@dataclass(frozen=True)
class Labels:
    """Labels of one response.

    Attributes:
        p_result: P(Result) of each label that was read.
        num_tokens: tokens of the reply that were read.
        num_tokens_saved: further tokens, at least, that the whole reply would have had; 0 for a
            reply that ended by itself.
        seconds: from the request to the last label.
    """

    p_result: list[float]
    num_tokens: int
    num_tokens_saved: int
    seconds: float


class Labeller:
    """Asks the reflection model for labels, and leaves its reply once the cut is decided.

    Args:
        tokenizer: of the reflection model.
        context: tokens that a request and its reply may have together.
        args: recipe.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, args: REARLConfig):
        self._tokenizer, self._context = tokenizer, context
        self._args, self._rule, self._form = args, args.cut_rule, args.reply_form
        self._prefill = encode_continuation(REFLECTION_PREFILLS[self._form], tokenizer)
        self._reply_length = cache(self._count_reply)

    async def label(self, problem: str, paragraphs: list[str], seat: Seat) -> Labels:
        """Labels of a response, up to the one that decides its cut, by the server of a seat.

        There are none if the cut is certain without them, or if the request does not fit into the
        model's context, or is refused. Raises what else `Seat.repeated` raises.
        """
        start = time.perf_counter()
        p_result, num_tokens = await self._ask(problem, paragraphs, seat)
        unread = self._num_unread(p_result, len(paragraphs))
        return Labels(p_result, num_tokens, unread, time.perf_counter() - start)

    async def _ask(
        self, problem: str, paragraphs: list[str], seat: Seat
    ) -> tuple[list[float], int]:
        """P(Result) of each label that was read, and the tokens of the reply that were."""
        num_paragraphs, model = len(paragraphs), self._args.reflection_model
        if self._is_decided([], num_paragraphs):
            return [], 0
        prompt_ids = self._encode(problem, paragraphs)
        # The two labels may have different numbers of tokens.
        needed = max(self._reply_length(num_paragraphs, label) for label in (False, True))
        if len(prompt_ids) + needed > self._context:
            return [], 0
        greedy = {"temperature": 0.0, "top_p": 1.0, "logprobs": TOP_LOGPROBS, "max_tokens": needed}

        async def attempt() -> tuple[list[float], int]:
            reply = seat.stream(model, prompt_ids, GREEDY_EXTRA, **greedy)
            return await self._read(reply, num_paragraphs)

        try:
            return await seat.repeated(model, attempt)
        except openai.APIStatusError as error:
            if not is_about_one(error):
                raise
            logger.warning("a response has no labels: %.300s", words(error))
            return [], 0

    async def _read(
        self, reply: AsyncIterator[list[dict[str, float]]], num_paragraphs: int
    ) -> tuple[list[float], int]:
        p_result: list[float] = []
        num_tokens = 0
        async with aclosing(reply):
            async for steps in reply:
                num_tokens += len(steps)
                found = result_probabilities([_best_first(each) for each in steps if _may_be(each)])
                p_result += found
                # Only a label can decide the cut; most tokens of a reply are none.
                if found and self._is_decided(p_result, num_paragraphs):
                    break
        return p_result, num_tokens

    def _is_decided(self, p_result: list[float], num_paragraphs: int) -> bool:
        cut = self._rule.decided(self._args.revision_strength, p_result, num_paragraphs)
        return self._args.label_until_decided and cut is not None

    def _count_reply(self, num_labels: int, label: bool) -> int:
        """Tokens of a reply in which all labels are the same."""
        reply = reflection_labels([label] * num_labels, self._form)
        return len(self._tokenizer.encode(reply, add_special_tokens=False))

    def _num_unread(self, p_result: list[float], num_paragraphs: int) -> int:
        if not self._is_decided(p_result, num_paragraphs):
            return 0
        read = min(len(p_result), num_paragraphs)
        return self._reply_length(num_paragraphs, False) - self._reply_length(read, False)

    def _encode(self, problem: str, paragraphs: list[str]) -> list[int]:
        messages = reflection_messages(problem, paragraphs, self._form)
        prompt = DEFAULT_FORMAT.text(messages, self._tokenizer)
        return encode_text(prompt, self._tokenizer) + self._prefill


def _may_be(alternatives: Mapping[str, float]) -> bool:
    """Whether a token may be a label; most of a reply are numbers and line ends."""
    return any("Think" in token or "Result" in token for token in alternatives)


def _best_first(alternatives: Mapping[str, float]) -> Step:
    return sorted(((logprob, token) for token, logprob in alternatives.items()), reverse=True)
