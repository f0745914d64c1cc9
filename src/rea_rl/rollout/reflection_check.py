"""Checks of a reflection model before anything is sampled: it must read whole responses and write
labels.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from generation.cuts import result_probabilities
from generation.prompts import (
    LONG,
    REFLECTION_PREFILLS,
    reflection_labels,
    reflection_messages,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rea_rl.configs import REARLConfig


logger = logging.getLogger(__name__)

SHORT_SENTENCE = 16  # tokens: few responses have paragraphs below it throughout


def check_labels(tokenizer: PreTrainedTokenizerBase, model: str, form: str = LONG) -> None:
    """Raise ValueError if a label is not read back from the tokens that it is written with."""
    for is_result in (False, True):
        reply = reflection_labels([is_result], form)
        ids = tokenizer.encode(reply, add_special_tokens=False)
        tokens = [tokenizer.decode([i]) for i in ids]
        if result_probabilities([[(0.0, token)] for token in tokens]) != [float(is_result)]:
            raise ValueError(
                f"reflection_model: the tokenizer of {model!r} writes {reply!r} as {tokens}, in "
                "which no token holds the label, so that no response could be cut; take a model "
                "that has Think and Result as tokens, or set revision: false"
            )


def check_context(
    args: REARLConfig, tokenizer: PreTrainedTokenizerBase, problem: str, context: int
) -> None:
    """Check that a response of `max_completion_length` tokens and its labels fit into the
    reflection server's context.

    How many tokens that needs depends on the number of paragraphs; a response that does not fit
    counts as one without a result. A warning says from where on, if responses of the shortest
    paragraphs do not fit.

    `problem` is the longest one, `context` the server's, in tokens. Raises ValueError if not even a
    response of paragraphs between the shortest and the longest fits.
    """
    shortest = max(args.paragraph_min_tokens, SHORT_SENTENCE)
    usual, most = (
        needed_tokens(
            *(args.max_completion_length, -(-args.max_completion_length // size)),
            *(tokenizer, problem, args.reply_form),
        )
        for size in ((shortest + args.paragraph_max_tokens) // 2, shortest)
    )
    why = (
        f"a response of max_completion_length ({args.max_completion_length}) tokens, the longest "
        "problem and the labels"
    )
    if context < usual:
        raise ValueError(
            f"reflection_server: its context has {context} tokens, but {usual} are needed for "
            f"{why}; start it with a larger max_model_len, or lower max_completion_length"
        )
    if context < most:
        logger.warning(
            "reflection_server: its context has %d tokens, but %s need up to %d if paragraphs "
            "are short; a response that does not fit counts as one without a result",
            *(context, why, most),
        )


def needed_tokens(
    path: int, paragraphs: int, tokenizer: PreTrainedTokenizerBase, problem: str, form: str = LONG
) -> int:
    """Tokens of request and reply, at most, for a response of so many tokens and paragraphs."""
    messages = reflection_messages(problem, ["."] * paragraphs, form)
    prompt = (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        + REFLECTION_PREFILLS[form]
    )
    replies = [reflection_labels([label] * paragraphs, form) for label in (False, True)]
    num_prompt, *num_reply = (
        len(tokenizer.encode(text, add_special_tokens=False, verbose=False))
        for text in (prompt, *replies)
    )
    return path + num_prompt + max(num_reply)
