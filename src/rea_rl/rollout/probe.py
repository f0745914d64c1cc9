"""Whether the policy server has the trainer's weights, and an adapter has an effect there: a server
may load one, say so, and sample from the base model.

The log-probs of a prompt are asked from trainer and server, with the adapter and without. The
change d of each token is known with an error only: both compute in low precision, each in its own
way, and the smallest change of a weight makes all roundings others. How large that is shows where
neither has the adapter. Once the trainer's changes are several times that, the server's are
compared with them, as slope = <d_server, d_trainer> / <d_trainer, d_trainer>: 1 if both have the
adapter, 0 if the server has none.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import openai
    from peft import PeftModel


logger = logging.getLogger(__name__)

MAX_TOKENS = 256  # of the prompt
# times the rounding that the trainer's changes must be, before the server's are judged
NOISES = 3.0
# root mean square of log-probs, below which nothing is judged
SMALLEST_CHANGE = 1e-4
SLOPES = (0.5, 1.5)  # of a server that has the adapter
# Median difference of log-probs that rounding makes, also of a server with eight bits a weight.
MOST_ROUNDING = 0.1


class Probe:
    """One prompt of at least two ids, asked at each version until the adapter's effect has been
    seen. `base` is the name under which the server serves the model without an adapter."""

    def __init__(self, base: str, prompt_ids: list[int]):
        self._base, self._ids = base, prompt_ids
        self._without: Tensor | None = None  # (T - 1,) of the server's base model

    def check(self, model: PeftModel, client: openai.OpenAI, version: str) -> bool:
        """Whether the server was seen to apply a version; False if the trainer's own change does
        not exceed rounding yet.

        Raises ConnectionError if the trainer's change does and the server's is another, and
        openai.APIError; NoLogprobs if the server does not tell the log-probs of a prompt.
        """
        with model.disable_adapter():
            trainer = trainer_logps(model, self._ids)
        changes = trainer_logps(model, self._ids) - trainer
        size = changes.square().mean().sqrt().item()
        if size < SMALLEST_CHANGE:  # as before the first step
            return False
        server = self._ask_base(client)
        noise = (2 * (trainer - server).square().mean()).sqrt().item()  # of a difference of changes
        if size < NOISES * noise:
            logger.debug(
                "%s changes log-probs by %.1e, which %.1e of rounding hides", version, size, noise
            )
            return False
        served = served_logps(client, version, self._ids) - server
        slope = (served @ changes / (changes @ changes)).item()
        if not SLOPES[0] < slope < SLOPES[1]:
            raise ConnectionError(
                f"the policy server has loaded the adapter {version}, but shows {slope:.2f} of its "
                f"effect: it changes the log-probs of a prompt by {size:.1e} in the trainer, and "
                f"by {served.square().mean().sqrt().item():.1e} there; start the server as "
                "rea_rl.vllm_server does, and see its log for layers that it leaves out"
            )
        logger.info(
            "the adapter has its effect on the policy server: %.2f of the trainer's, %.1e a token",
            slope,
            size,
        )
        return True

    def check_weights(self, model: PeftModel, client: openai.OpenAI, url: str) -> None:
        """Raise ValueError if a server has other weights of the base model than the trainer; and as
        `check`."""
        with model.disable_adapter():
            trainer = trainer_logps(model, self._ids)
        difference = (trainer - self._ask_base(client)).abs().median().item()
        if difference > MOST_ROUNDING:
            raise ValueError(
                f"policy_server: the server at {url} serves {self._base!r}, but with other weights "
                f"than model_name_or_path: the log-probs of a prompt's tokens differ by "
                f"{difference:.2f} (median), and rounding makes at most {MOST_ROUNDING}; start it "
                "with the same files of the model"
            )

    def _ask_base(self, client: openai.OpenAI) -> Tensor:
        if self._without is None:
            self._without = served_logps(client, self._base, self._ids)
        return self._without


class NoLogprobs(Exception):
    """A server that does not tell the log-probs of a prompt's tokens."""


def trainer_logps(model: PeftModel, ids: list[int]) -> Tensor:
    """Log-probs (T - 1,) of all ids but the first, by the model as it is; float32 on the CPU."""
    row = torch.tensor([ids], device=model.device)  # (1, T)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()  # (T - 1, V)
        log_probs = logits.log_softmax(-1)
        return log_probs.gather(1, row[0, 1:, None])[:, 0].cpu()
    finally:
        model.train(training)


def served_logps(client: openai.OpenAI, model: str, ids: list[int]) -> Tensor:
    """The same by a server, which must generate a token. Raises NoLogprobs, openai.APIError."""
    # of no alternatives
    settings = {"max_tokens": 1, "temperature": 1.0, "extra_body": {"prompt_logprobs": 0}}
    told = getattr(
        client.completions.create(model=model, prompt=ids, **settings).choices[0],
        "prompt_logprobs",
        None,
    )
    if not told or len(told) != len(ids):
        raise NoLogprobs("the server does not tell the log-probs of a prompt")
    steps = zip(told[1:], ids[1:], strict=True)
    return torch.tensor([step[str(i)]["logprob"] for step, i in steps])
