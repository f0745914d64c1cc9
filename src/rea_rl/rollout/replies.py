"""Replies of a vLLM server, read from its JSON as they are.

The OpenAI client would make an object of each event and look at each id and log-prob of a reply. A
label would then cost the trainer's process twice as much, and a response of 2,000 tokens 30 ms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class UnusableReply(Exception):
    """A server's reply that says it is one, but cannot be trained on. It is asked for again."""


@dataclass(frozen=True)
class Completion:
    """Whole reply to one prompt.

    Attributes:
        token_ids: of the reply, at least one.
        logprobs: of each of them, finite.
        finish_reason: `stop` or `length`; None if it does not say.
        num_cached: tokens of the prompt that the server had cached; None if it does not say.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str | None
    num_cached: int | None

    @classmethod
    def of(cls, told: Any) -> Completion:
        """Completion that a server tells. Raises UnusableReply if it cannot be trained on."""
        choice = _choice(told)
        token_ids = choice.get("token_ids")
        logprobs = token_logprobs(token_ids, (choice.get("logprobs") or {}).get("token_logprobs"))
        check_finished(reason := choice.get("finish_reason"))
        details = (told.get("usage") or {}).get("prompt_tokens_details") or {}
        return cls(token_ids, logprobs, reason, details.get("cached_tokens"))


def alternatives(told: Any) -> list[dict[str, float]]:
    """Log-probs of the alternatives to each token of an event, by their texts. Raises
    UnusableReply for an event that no label can be read from."""
    choice = _choice(told)
    check_finished(choice.get("finish_reason"))
    steps = (choice.get("logprobs") or {}).get("top_logprobs")
    for step in [None] if steps is None else steps:
        check_alternatives(step)
    return steps


def _choice(told: Any) -> dict[str, Any]:
    choices = told.get("choices") if isinstance(told, dict) else None
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise UnusableReply(f"a reply without a choice: {str(told)[:100]}")
    return choices[0]


def token_logprobs(token_ids: list[int] | None, logprobs: list[float] | None) -> list[float]:
    """Log-prob of each token.

    Raises UnusableReply unless all are finite, since there is no importance ratio without, and
    if there is no token: even a model that says nothing says that it has ended.
    """
    if not token_ids:
        raise UnusableReply("a reply without a token")
    logprobs = logprobs or []
    if len(logprobs) != len(token_ids):
        raise UnusableReply(f"a reply of {len(token_ids)} tokens with {len(logprobs)} log-probs")
    if bad := [value for value in logprobs if value is None or not math.isfinite(value)]:
        raise UnusableReply(
            f"a reply with {len(bad)} log-probs that are missing or not finite, such as {bad[0]}"
        )
    return logprobs


def check_finished(reason: str | None) -> None:
    """Raise UnusableReply for a reply that was broken off: a server shuts down with `abort`."""
    # None: a piece of a stream, but the last
    if reason not in (None, "stop", "length"):
        raise UnusableReply(f"a reply that ended as {reason!r}")


def check_alternatives(alternatives: Mapping[str, float] | None) -> None:
    """Raise UnusableReply unless a token has alternatives with log-probs that can be compared."""
    if not alternatives:
        raise UnusableReply("a reply without alternatives to a token")
    if any(value is None or math.isnan(value) for value in alternatives.values()):
        raise UnusableReply(
            f"a reply with log-probs that are missing or not finite: {alternatives}"
        )
