"""Responses from an OpenAI-style server. Every reply has a clear outcome, and none is written as
null.

content                     the response; a thinking that the server returns apart is put back
                            before it
no content                  an empty response, which is unanswered; counted in the log
content_filter              what is left of the response, which the server withheld; counted in the
                            log
a refusal of this request, such as a prompt over the context    unanswered, unless all are refused,
                            or many in a row, which ends the run, see `generation.unanswered`
no choice, aborted, or an end that is not known    asked again, and after the last try the run stops
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx

from generation.generation_file import MOST_TOKENS, NO_ROOM, REFUSED
from generation.markers import R1, Markers
from generation.rendering import encode_continuation
from generation.unanswered import without_answer
from rea_core.checks import is_a
from rea_core.clients import async_openai_client, openai_client
from rea_core.row_files import Row

if TYPE_CHECKING:
    import openai
    from transformers import PreTrainedTokenizerBase

    from generation.arguments import GenerateArguments
    from generation.tasks import Keep, Task

logger = logging.getLogger(__name__)

Served = dict[str, int | None]  # models and adapters, and the contexts of the former
LOOK_SECONDS = 10.0  # in which a server tells its models
# what servers say of a request that they do not take, while they take others
OVER_CONTEXT = re.compile(
    r"(?i)context.(length|window|size)|maximum.*(length|tokens)|too (long|large)"
)
WITHHELD = re.compile(r"(?i)content.?(filter|policy|management)|moderation|safety")
REFUSALS = (400, 413, 422)  # statuses of such an answer
ENDS = ("stop", "length", "content_filter")  # finish_reason of a reply that is a response
# keys under which servers return a thinking by itself
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")


class UnusableReply(Exception):
    """A server's reply that is no response."""


def response_of(
    reply: Any,
    prompt_thinking: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    counts: Counter[str],
    markers: Markers = R1,
) -> Row:
    """Response in a server's reply: `text`, `num_tokens`, `finish_reason`.

    Args:
        reply: of the OpenAI client, which checks nothing of it.
        prompt_thinking: what the prompt did to the thinking; None if that is not known.
        tokenizer: counts the tokens of a reply that does not say them; None if no model is
            known.
        counts: of replies out of the ordinary, for the log; changed.
        markers: the model's, between which a thinking is put that the server returns apart.

    Raises UnusableReply if there is no response, ValueError if its tokens cannot be counted.
    """
    choices = getattr(reply, "choices", None)
    if not choices or not hasattr(getattr(choices[0], "message", None), "content"):
        raise UnusableReply("it has no choice with a message")
    choice = choices[0]
    if choice.finish_reason not in ENDS:
        raise UnusableReply(
            f"its finish_reason is {choice.finish_reason!r}, so that it is not known how it ended"
        )
    usage = getattr(reply, "usage", None)
    details = getattr(usage, "completion_tokens_details", None)
    has_thought = bool(getattr(details, "reasoning_tokens", None))
    text = _text(choice.message, prompt_thinking, has_thought, counts, markers)
    counts["are empty, and count as unanswered"] += not text
    counts["were withheld by the server (content_filter)"] += (
        choice.finish_reason == "content_filter"
    )
    num_tokens = getattr(usage, "completion_tokens", None)
    if not is_a(num_tokens, int) or not bool(text) <= num_tokens <= MOST_TOKENS:
        num_tokens = _count(text, choice.finish_reason, tokenizer)
        counts["do not say their tokens, which were counted"] += 1
    return {"text": text, "num_tokens": num_tokens, "finish_reason": choice.finish_reason}


def _text(
    message: Any,
    prompt_thinking: str | None,
    has_thought: bool,
    counts: Counter[str],
    markers: Markers,
) -> str:
    """Text of a message, with a thinking that was returned apart where the model wrote it.

    A server may count a thinking (`has_thought`) that it does not return; then only its end is put
    back.
    """
    content = message.content or getattr(message, "refusal", None) or ""
    thinking = next((value for key in THINKING_KEYS if (value := getattr(message, key, None))), "")
    if not isinstance(content, str) or not isinstance(thinking, str):
        raise UnusableReply(f"its content is no text but {str(content)[:60]!r}")
    content, thinking = _whole_characters(content), _whole_characters(thinking)
    # no part of the response is thinking, even if the server says so
    if prompt_thinking == "closed":
        return thinking + content
    thinking = thinking.removeprefix(markers.think_start).removesuffix(markers.think_end)
    ends_apart = content.lstrip().startswith(markers.think_end)
    if markers.think_end in content and not ends_apart and thinking.strip() in content:
        return content  # the thinking is there already
    counts["had their thinking apart, which was put back"] += bool(thinking)
    is_kept_back = has_thought and not (thinking or ends_apart) and bool(content)
    counts["are without their thinking, which the server keeps to itself"] += is_kept_back
    if not (thinking or is_kept_back):
        return content
    begin = "" if prompt_thinking == "open" else markers.think_start
    end = "" if ends_apart or not content else markers.think_end
    return f"{begin}{thinking}{end}{content}"


def _whole_characters(text: str) -> str:
    """A text in which half a character, as JSON may have it, is a replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(text: str, finish_reason: str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Tokens of a response, end of sequence included."""
    if tokenizer is None:
        raise ValueError(
            "api: the server's replies do not say their tokens (usage.completion_tokens), and "
            "model_dir is no folder of a model whose tokenizer could count them; name one, or let "
            "the server send usage"
        )
    return len(encode_continuation(text, tokenizer)) + (finish_reason == "stop")


def _served(args: GenerateArguments) -> Served:
    """Models and adapters that a vLLM server tells, and the contexts of the former in tokens; none
    of other servers, which may take further names."""
    import openai

    key = os.environ.get(args.api_key_env, "EMPTY")
    settings: dict[str, Any] = {"timeout": LOOK_SECONDS, "max_retries": 0}
    try:
        with openai_client(args.api_base, key=key, proxies=True, **settings) as client:
            told = client.get("/models", cast_to=httpx.Response).json()
    except (openai.APIError, json.JSONDecodeError):  # a request shows what is wrong
        return {}
    cards = told.get("data") if isinstance(told, dict) else None
    return {
        card["id"]: card.get("max_model_len")
        for card in (cards if isinstance(cards, list) else [])
        if isinstance(card, dict) and card.get("owned_by") == "vllm" and is_a(card.get("id"), str)
    }


def check_served(args: GenerateArguments, served: Served) -> None:
    """Raise ValueError for a model that a server does not serve, or a context without room for
    `max_tokens`. `served` are models and contexts; nothing is known if it is empty."""
    if served and args.api_model not in served:
        raise ValueError(
            f"api_model is {args.api_model!r}, but the server at {args.api_base} serves "
            f"{', '.join(map(repr, served))}; name one of these, or start the server with it"
        )
    context = served.get(str(args.api_model))
    if is_a(context, int) and args.max_tokens >= context:
        raise ValueError(
            f"max_tokens is {args.max_tokens}, but the server at {args.api_base} has a context of "
            f"{context} tokens, for prompt and response; lower it, or start the server with a "
            "larger max_model_len"
        )


def ask_server(
    args: GenerateArguments,
    tasks: Iterator[Task],
    keep: Keep,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Run the tasks on a server.

    Raises ConnectionError when a request failed for good, or rows in a row are refused; ValueError
    if tokens cannot be counted, or a vLLM server cannot do what is asked.
    """
    import openai

    check_served(args, _served(args))
    counts: Counter[str] = Counter()
    try:
        asyncio.run(
            _ask_all(
                args,
                tasks,
                keep,
                lambda reply, task: response_of(
                    reply,
                    task.rendered.thinking if task.rendered else None,
                    tokenizer,
                    counts,
                    task.markers,
                ),
            )
        )
    # the first one stopped the run
    except (ExceptionGroup, openai.APIStatusError) as failure:
        error = failure.exceptions[0] if isinstance(failure, ExceptionGroup) else failure
        if isinstance(error, openai.APIConnectionError):
            raise ConnectionError(f"api_base: {args.api_base} does not answer: {error}") from error
        if isinstance(error, openai.APIError):
            raise ConnectionError(_refusal(args, error)) from error
        raise error from None
    finally:
        for what, number in sorted(counts.items()):
            if number:
                logger.warning("api: %d replies %s", number, what)


def _is_about_one(error: openai.APIStatusError) -> bool:
    """Whether a refusal may concern one request alone, and not the key or the model."""
    return error.status_code in REFUSALS or (
        400 < error.status_code < 500 and WITHHELD.search(str(error)) is not None
    )


def _is_clear(error: openai.APIStatusError) -> bool:
    """Whether a refusal says that it is about its request."""
    return _end(error) == NO_ROOM or WITHHELD.search(str(error)) is not None


def _end(error: openai.APIStatusError) -> str:
    """`finish_reason` of a response that was refused."""
    is_long = error.status_code == 413 or OVER_CONTEXT.search(str(error))
    return NO_ROOM if is_long and not WITHHELD.search(str(error)) else REFUSED


def _refusal(args: GenerateArguments, error: openai.APIError) -> str:
    return f"api_base: {args.api_base} refuses a request: {error}"


async def _ask_all(
    args: GenerateArguments, tasks: Iterator[Task], keep: Keep, read: Callable[[Any, Task], Row]
) -> None:
    slots = asyncio.Semaphore(args.max_concurrent_requests)
    key = os.environ.get(args.api_key_env, "EMPTY")
    settings = {"timeout": args.request_timeout, "max_retries": args.request_retries}
    async with async_openai_client(args.api_base, key=key, proxies=True, **settings) as client:

        async def respond(task: Task) -> None:
            samples = (_ask(client, args, task, seed, slots, read) for seed in task.seeds(args))
            replies = await asyncio.gather(*samples)
            if errors := [reply for reply in replies if not isinstance(reply, dict)]:
                replies = without_answer(args, _end(errors[0]), _refusal(args, errors[0]))
            unclear[:] = [error for error in errors[:1] if not _is_clear(error)]
            keep(task.index, replies)
            rows.release()

        # that are open, each with at least one request
        rows = asyncio.Semaphore(args.max_concurrent_requests)
        unclear: list[openai.APIStatusError] = []  # of the last row, if it is a refusal
        async with asyncio.TaskGroup() as group:
            while (
                await rows.acquire()
                and (task := await asyncio.to_thread(next, tasks, None)) is not None
            ):
                group.create_task(respond(task))
        if unclear:  # no row came after it that would show
            await _check_answers(client, args)


async def _check_answers(client: openai.AsyncOpenAI, args: GenerateArguments) -> None:
    """Raise openai.APIStatusError if the server refuses a request that no server can mind."""
    messages = [{"role": "user", "content": "1"}]
    settings = {"max_tokens": 1, "seed": args.seed}
    await client.chat.completions.create(model=args.api_model, messages=messages, **settings)


async def _ask(
    client: openai.AsyncOpenAI,
    args: GenerateArguments,
    task: Task,
    seed: int | None,
    slots: asyncio.Semaphore,
    read: Callable[[Any, Task], Row],
) -> Row | openai.APIStatusError:
    """One response, or the refusal of this request; a reply that is none is asked for again, as
    often as a request that fails."""
    import openai

    template = (
        {"chat_template_kwargs": args.chat_template_kwargs} if args.chat_template_kwargs else None
    )
    tries = args.request_retries + 1
    for _ in range(tries):
        try:
            async with slots:
                reply = await client.chat.completions.create(
                    model=args.api_model,
                    messages=task.prompt.messages,
                    temperature=args.temperature,
                    top_p=args.top_p,
                    max_tokens=args.max_tokens,
                    seed=seed,
                    extra_body=template,
                )
            return read(reply, task)
        except openai.APIStatusError as error:
            if not _is_about_one(error):
                raise
            return error
        except UnusableReply as error:
            logger.warning("api: a reply for row %r cannot be used: %s", task.row["id"], error)
            cause = error
    raise ConnectionError(
        f"api_base: {args.api_base} sent {tries} replies for row {task.row['id']!r} that cannot be "
        f"used: {cause}; see its log"
    )
