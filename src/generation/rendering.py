"""One rendering of a prompt, for training, sampling, thresholds, labels and evaluation alike.

The renderer of a prompt knows whether it opened or closed the model's thinking. That fact,
`prompt_thinking`, travels with each
response: in rollouts, in generation files and into scores, so that nobody guesses it from the text
of a response.

    open      the prompt ends inside a thinking, as R1's does: an answer can only follow
              `</think>`
    closed    the prompt has closed its thinking, as Qwen3's does without thinking: all of the
              response is answer
    unknown   the prompt ends without a marker: the response itself says
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from generation.markers import KEYS as MARKER_KEYS
from generation.markers import R1, Markers, given_markers, known_markers
from generation.markers import marker_decoder as marker_decoder  # has moved
from generation.prompts import MATH_COT, format_problem
from generation.segments import thinking_of
from rea_core.checks import check_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from generation.math_verify.extract import Thinking

logger = logging.getLogger(__name__)

Messages = list[dict[str, Any]]

# Arguments of `apply_chat_template` that the rendering sets itself.
RESERVED = (
    *("conversation", "messages", "chat_template", "tokenize", "add_generation_prompt"),
    "continue_final_message",
)
# Arguments of `apply_chat_template` itself: no template reads them.
UNREAD = (
    *("padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
)
ANCHORS = ("\n", "x", "1")  # texts that hardly any token reaches over the end of
_MARK = "\ue000"  # a private character, which no template looks for


class RenderedPrompt(NamedTuple):
    """Text that the model continues, and what it did to the model's thinking."""

    text: str
    thinking: Thinking


class TemplateRefusal(ValueError):
    """Messages that a model's chat template does not take."""


@dataclass(frozen=True)
class PromptFormat:
    """How a problem becomes a prompt. Raises ValueError for a setting that no prompt can have.

    Args:
        prompt_template: user message, a format string with the one field `{problem}`.
        system_prompt: message before it; None for none.
        chat_template_kwargs: keywords of the model's chat template, such as `enable_thinking`.
        prefill: begin of every reply; it is part of the prompt, and no part of the response.
        think_start, think_end, forced_answer: see `generation.markers`; None for the model's.
    """

    prompt_template: str = MATH_COT
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prefill: str = ""
    think_start: str | None = None
    think_end: str | None = None
    forced_answer: str | None = None

    def __post_init__(self) -> None:
        format_problem("", self.prompt_template)
        given_markers(vars(self))
        for key in ("system_prompt", "prefill"):
            if not isinstance(value := getattr(self, key), (str, NoneType)):
                raise ValueError(f"{key} is {value!r}; write a text")
        for key in ("prompt_template", "system_prompt", "prefill"):
            check_text(getattr(self, key) or "", key)
        if not isinstance(self.chat_template_kwargs, Mapping):
            raise ValueError(
                f"chat_template_kwargs is {self.chat_template_kwargs!r}; write keywords and "
                "values, such as {enable_thinking: false}"
            )
        for key in self.chat_template_kwargs:
            if not isinstance(key, str) or key in RESERVED + UNREAD:
                why = "prompts set themselves" if key in RESERVED else "is no keyword of a template"
                raise ValueError(f"chat_template_kwargs has {key!r}, which {why}; leave it out")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> PromptFormat:
        """Format by its recipe keys; those that are missing or null have their defaults."""
        keys = ("prompt_template", "system_prompt", "chat_template_kwargs", "prefill", *MARKER_KEYS)
        return cls(**{key: settings[key] for key in keys if settings.get(key) is not None})

    @property
    def record(self) -> dict[str, Any]:
        """Its recipe keys and values, as files hold them. Markers are left out if they are R1's,
        or are still to be found from the model."""
        markers = given_markers(vars(self))
        return {
            "prompt_template": self.prompt_template,
            "system_prompt": self.system_prompt or None,
            "chat_template_kwargs": dict(self.chat_template_kwargs),
            "prefill": self.prefill,
            **(markers if markers != R1.record else {}),
        }

    def of_model(self, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
        """The same with the markers of a model, if they are not given."""
        return replace(self, **Markers.of(vars(self), tokenizer).record)

    def messages(self, problem: str) -> Messages:
        """Messages that ask for a problem's solution."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": format_problem(problem, self.prompt_template)}]

    def ask(self, problem: str, tokenizer: PreTrainedTokenizerBase) -> RenderedPrompt:
        """Prompt for a problem. Raises ValueError if the template refuses the messages."""
        return self.render(self.messages(problem), tokenizer)

    def text(self, messages: Messages, tokenizer: PreTrainedTokenizerBase) -> str:
        """Text of a prompt. Raises ValueError if the model's template refuses the messages."""
        return self._apply(messages, tokenizer) + self.prefill

    def render(self, messages: Messages, tokenizer: PreTrainedTokenizerBase) -> RenderedPrompt:
        """The same, with what it did to the thinking."""
        text, markers = self._apply(messages, tokenizer), Markers.of(vars(self), tokenizer)
        turn = self._begun_turn(messages, tokenizer, text) + self.prefill
        return RenderedPrompt(text + self.prefill, _thinking(turn, markers))

    def _apply(
        self, messages: Messages, tokenizer: PreTrainedTokenizerBase, begin_turn: bool = True
    ) -> str:
        _warn_of_unread(str(tokenizer.chat_template), *sorted(self.chat_template_kwargs))
        own = {"add_generation_prompt": begin_turn, "tokenize": False}
        keywords = {**self.chat_template_kwargs, **own}
        try:
            text = tokenizer.apply_chat_template(messages, **keywords)
        except Exception as error:  # a template is foreign code: it raises what it likes
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise TemplateRefusal(
                f"the model's chat template refuses messages of the roles {roles} ({error}); "
                "change these messages (system_prompt makes one), or give the model another "
                "template"
            ) from error
        _check_whole(messages, text, Markers.of(vars(self), tokenizer).think_end)
        return text

    def _begun_turn(self, messages: Messages, tokenizer: PreTrainedTokenizerBase, text: str) -> str:
        """The template's begin of the model's turn. The message before it may speak of `<think>`,
        and so may the template's words around that message.

        A template that writes the begin in any case is looked at behind the message.
        """
        with suppress(TemplateRefusal):  # it may want the model's turn
            before = self._apply(messages, tokenizer, begin_turn=False)
            if before != text and text.startswith(before):
                return text.removeprefix(before)
        content = messages[-1]["content"]
        marked = self._apply(
            [*messages[:-1], {**messages[-1], "content": content + _MARK}], tokenizer
        )
        turn = marked.rpartition(_MARK)[2]
        return turn if text.endswith(turn) else text.rpartition(content.strip() or _MARK)[2]


def _thinking(turn: str, markers: Markers) -> Thinking:
    """State of the thinking after the begin of the model's turn."""
    opened, closed = turn.rfind(markers.think_start), turn.rfind(markers.think_end)
    if opened == closed:  # neither is there
        return "unknown"
    return "open" if opened > closed else "closed"


def _check_whole(messages: Messages, text: str, think_end: str) -> None:
    """Raise ValueError if a template has left a message out, as many do with roles unknown to
    them. Of the assistant's messages they may leave out the thinking."""
    for message in messages:
        role, content = str(message.get("role")), message["content"]
        if role == "assistant":
            content = content.rpartition(think_end)[2]
        if content.strip() not in text:
            raise TemplateRefusal(
                f"the model's chat template leaves out a message of the role {role!r}, "
                f"{content.strip()[:60]!r}; roles are system, user and assistant: change that "
                "message (system_prompt makes one), or give the model another template"
            )


@cache  # once for a template
def _warn_of_unread(template: str, *keywords: str) -> None:
    """Warn of keywords that a template never reads: a mistake in a name changes nothing."""
    if unread := [key for key in keywords if not re.search(rf"\b{re.escape(key)}\b", template)]:
        logger.warning(
            "chat_template_kwargs has %s, which the model's chat template never reads: it changes "
            "nothing; correct the name, or leave it out",
            " and ".join(map(repr, unread)),
        )


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a prompt's text, which has its special tokens already."""
    if tokenizer.is_fast and not tokenizer.split_special_tokens:
        backend = tokenizer.backend_tokenizer
        if backend.truncation is None and backend.padding is None:
            # The plain call also finds the characters of each id: a third more time.
            return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return tokenizer.encode(text, add_special_tokens=False)


def encode_continuation(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text that continues another one: a completion, the begin of a reply, the forced end
    of a thinking.

    Training, sampling and rollouts all encode it by itself, so that none of its tokens reaches into
    the text before. Some SentencePiece tokenizers put a space before all that they encode; in the
    middle of a text it would be a stray one.
    """
    ids = encode_text(text, tokenizer)
    for before in ANCHORS if tokenizer.decode(2 * encode_text("x", tokenizer)) != "xx" else ():
        begun, joined = encode_text(before, tokenizer), encode_text(before + text, tokenizer)
        if joined[: len(begun)] == begun:
            return joined[len(begun) :]
    return ids


def known_thinking(response: Mapping[str, Any]) -> Thinking:
    """`prompt_thinking` of a response or rollout; files of earlier versions do not say it."""
    return response.get("prompt_thinking", "unknown")


def thinking_in(response: Mapping[str, Any]) -> str:
    """Thinking of a response or rollout: the text before its end, or all of it without an end."""
    return thinking_of(
        response["text"], known_thinking(response), known_markers(response).think_end
    )


def answer_of(response: Mapping[str, Any]) -> str | None:
    """Final answer in a response, or None."""
    from generation.math_verify import extract_answer

    markers, thinking = known_markers(response), known_thinking(response)
    around = markers.think_start, markers.think_end
    return extract_answer(response["text"], thinking=thinking, around=around)


def after_thinking(response: Mapping[str, Any]) -> str:
    """Text of a response after its thinking, where an answer counts; empty if that never ended."""
    from generation.math_verify.extract import answer_part_of

    markers = known_markers(response)
    around = markers.think_start, markers.think_end
    return answer_part_of(response["text"], known_thinking(response), around)


DEFAULT_FORMAT = PromptFormat()


def prompt_thinking(prompt: str, problem: str = "", markers: Markers = R1) -> Thinking:
    """Whether a prompt opened or closed the thinking, from its text alone.

    Args:
        prompt: rendered text.
        problem: the problem in it. The text before it says nothing of the model's turn.
        markers: the model's.
    """
    found = problem and problem in prompt
    turn = (prompt.rpartition(problem)[2] if found else prompt).rstrip()
    start, end = markers.think_start.rstrip(), markers.think_end.rstrip()
    if turn.endswith(end):
        return "closed"
    is_open = start in turn and end not in turn if found else turn.endswith(start)
    return "open" if is_open else "unknown"
