"""Checks of a vLLM server that somebody else started, before the policy is loaded.

`rea_rl.vllm_server` starts one that passes. Each check has a line of its own, and blames what it
has seen. Name, context and vocabulary are checked by `rollout.server_answers`; the weights by
`rollout.probe`, since that needs the trainer's model.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rea_core.models import LORA_RANKS
from rea_rl.rollout.endpoint import LOAD_TIMEOUT, NOT_SEEN
from rea_rl.rollout.labeller import TOP_LOGPROBS
from rea_rl.rollout.server_answers import PROBE, ask
from rea_rl.run.left_out import named

if TYPE_CHECKING:
    import httpx
    from transformers import PreTrainedTokenizerBase

    from rea_rl.configs import REARLConfig

logger = logging.getLogger(__name__)

# Of the prompts, at most so many may be over the context: a shorter one is a mistake in the recipe.
MOST_WITHOUT_ROOM = 0.1
TEMPERATURES = (1.0, 0.5)  # whose log-probs of one prompt are compared
# The second's differ twice as much from each other as the first's, if the server tells those that
# it samples from.
LEAST_RATIO = 1.5
SMALLEST_SPREAD = 0.1  # of log-probs that can be compared


def needed_context(
    prompts: Sequence[tuple[int, str]], answer: int, context: int | None, url: str
) -> tuple[int, str]:
    """Tokens that a policy server's context must have, and the reason.

    The server refuses prompts over its context, and their groups give no signal. If they are few,
    the log names them, and the others decide.

    Args:
        prompts: tokens of each, and the id of its problem.
        answer: tokens that may follow.
        context: of the server; None if it does not tell.
        url: its address.
    """
    longest_first = sorted(prompts, key=lambda prompt: -prompt[0])
    over = [prompt for prompt in prompts if context and prompt[0] + answer > context]
    if 0 < len(over) <= MOST_WITHOUT_ROOM * len(prompts):
        logger.warning(
            "policy_server: %d of %d prompts leave no room for %d tokens in the context of %s "
            "(%d), so that their groups give no signal: problems %s",
            *(len(over), len(prompts), answer, url, context, named([i for _, i in over])),
        )
        longest_first = longest_first[len(over) :]
    num_tokens, problem_id = longest_first[0]
    why = f"{num_tokens} of them in the longest prompt, of problem {problem_id!r}"
    return num_tokens + answer, why


def check_adapters(url: str, folder: Path, rank: int) -> None:
    """Raise ValueError unless a server loads adapters of a rank while it runs.

    It is offered one without weights. No server takes that, but it refuses other things first.
    """
    offer = folder / f".offer-{os.getpid()}"
    offer.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (offer / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    try:
        body = {"lora_name": offer.name, "lora_path": str(offer)}
        answer = ask(url, "/v1/load_lora_adapter", None, body, LOAD_TIMEOUT)
        if answer.is_success:  # it looks at the weights later
            ask(url, "/v1/unload_lora_adapter", None, {"lora_name": offer.name})
    finally:
        shutil.rmtree(offer)
    if cause := _why_no_adapters(answer, rank):
        raise ValueError(f"policy_server: the server at {url} {cause}")


def _why_no_adapters(answer: httpx.Response, rank: int) -> str | None:
    if answer.status_code in (404, 405) and NOT_SEEN not in answer.text:
        return (
            f"cannot load adapters while it runs (/v1/load_lora_adapter answers "
            f"{answer.status_code}); start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and with "
            "--enable-lora"
        )
    if "not enabled" in answer.text:
        return "takes no adapters; start it with --enable-lora"
    if "max_lora_rank" in answer.text:
        least = next(size for size in LORA_RANKS if size >= rank)
        said = " ".join(answer.text.split())[:200]
        return (
            f"takes no adapters of rank {rank} (lora_r): {said}; start it with --max-lora-rank "
            f"{least}, or lower lora_r"
        )
    return None


def check_sampled_logprobs(
    url: str, model: str, tokenizer: PreTrainedTokenizerBase, args: REARLConfig
) -> None:
    """Raise ValueError for a server that tells other log-probs than those that it samples from.

    These depend on the temperature. A server that does not tell alternatives is not judged.
    """
    neutral = args.temperature == 1 and args.top_p == 1 and args.repetition_penalty == 1
    if neutral and not args.top_k and not args.min_p:
        return
    spreads = [
        _spread(_alternatives(url, model, tokenizer, temperature)) for temperature in TEMPERATURES
    ]
    if None in spreads or spreads[0] < SMALLEST_SPREAD:
        logger.info("policy_server: %s does not show which log-probs it tells", url)
    elif spreads[1] / spreads[0] < LEAST_RATIO:
        raise ValueError(
            f"policy_server: the server at {url} tells log-probs that do not depend on the "
            f"temperature, so not those that it samples from (temperature {args.temperature}); "
            "start it with --logprobs-mode processed_logprobs"
        )


def check_alternatives_of(url: str, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for a reflection server that does not tell the alternatives of a label."""
    answer = _alternatives(url, model, tokenizer, 0.0)
    if answer is not None and answer.status_code == 400 and "logprobs" in answer.text:
        said = " ".join(answer.text.split())[:200]
        raise ValueError(
            f"reflection_server: the server at {url} does not tell {TOP_LOGPROBS} alternatives of "
            f"a token: {said}; start it with --max-logprobs {TOP_LOGPROBS} or more"
        )


def _alternatives(
    url: str, model: str, tokenizer: PreTrainedTokenizerBase, temperature: float
) -> httpx.Response | None:
    """Answer to a request for one token and its alternatives; None if there is none."""
    body = {
        "model": model,
        "prompt": tokenizer.encode(PROBE, add_special_tokens=False),
        "max_tokens": 1,
        "temperature": temperature,
        "logprobs": TOP_LOGPROBS,
        **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    }
    try:
        return ask(url, "/v1/completions", None, body, LOAD_TIMEOUT)
    except ConnectionError as error:  # rollouts repeat what fails
        logger.info("%s: %s", url, error)
        return None


def _spread(answer: httpx.Response | None) -> float | None:
    """Difference of the most likely token's log-prob and the fifth's; None if they are not told."""
    told: Mapping[str, Any] = answer.json() if answer is not None and answer.is_success else {}
    choices = told.get("choices") or [{}]
    steps = (choices[0].get("logprobs") or {}).get("top_logprobs") or [{}]
    values = sorted(steps[0].values(), reverse=True)
    return values[0] - values[TOP_LOGPROBS - 1] if len(values) >= TOP_LOGPROBS else None
