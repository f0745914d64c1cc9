"""Train the miniature's two models from random weights: a plain language-model loop over freshly
drawn dialogues."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from miniature.instruct import make_dialogue
from miniature.tokenizer import ASSISTANT, BOS, USER
from miniature.world import LEVELS, completion_text, make_problem, make_trace

logger = logging.getLogger(__name__)
Example = tuple[str, str]  # (prompt, completion), both with their markers

MAX_TOKENS = 1024
CHUNK = 512  # examples drawn at once and sorted by length, so that a batch has little padding


def draw_trace(rng: random.Random) -> Example:
    """A problem with its reasoning trace, in the chat format of `Miniature-LRM`; the hard level
    is drawn as often as the others."""
    problem = make_problem(rng.choices(LEVELS, (1, 1, 1, 1, 4))[0], rng)
    return f"{BOS}{USER}{problem.question}{ASSISTANT}<think>\n", completion_text(
        make_trace(problem, rng), rng
    )


def draw_dialogue(rng: random.Random) -> Example:
    """An instruction dialogue, in the chat format of `Miniature-Instruct`."""
    user, assistant = make_dialogue(rng)
    return f"{BOS}{USER}{user}{ASSISTANT}", assistant


@dataclass(frozen=True)
class Schedule:
    """Training time of a model, and its rate: warm-up, constant, cosine decay."""

    seconds: float
    learning_rate: float = 2e-3
    tokens_per_batch: int = 24_576
    num_workers: int = 1

    def rate(self, step: int, elapsed: float) -> float:
        """Learning rate at this step; the last 40 % of the time decay to 3 %."""
        progress = min(elapsed / self.seconds, 1.0)
        falling = max(progress - 0.6, 0.0) / 0.4
        decay = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * falling))
        return self.learning_rate * min(1.0, (step + 1) / 100) * decay


class DrawnBatches(IterableDataset):
    """Endless padded batches of freshly drawn examples; loss on the completion only. Worker w
    draws from seed + w."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        draw: Callable[[random.Random], Example],
        tokens: int,
        seed: int,
    ):
        self.tokenizer, self.draw, self.tokens, self.seed = tokenizer, draw, tokens, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        info = get_worker_info()
        rng = random.Random(1000 * self.seed + (info.id if info else 0))
        while True:
            batches = list(self._batches(self._encode([self.draw(rng) for _ in range(CHUNK)])))
            rng.shuffle(batches)
            for batch in batches:
                yield self._pad(batch)

    def _encode(self, examples: list[Example]) -> list[tuple[list[int], int]]:
        prompts, completions = (
            self.tokenizer(list(texts)).input_ids for texts in zip(*examples, strict=True)
        )
        end = [self.tokenizer.eos_token_id]
        return [
            (prompt + completion + end, len(prompt))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def _batches(
        self, examples: list[tuple[list[int], int]]
    ) -> Iterator[list[tuple[list[int], int]]]:
        batch: list[tuple[list[int], int]] = []
        short = [example for example in examples if len(example[0]) <= MAX_TOKENS]
        for example in sorted(short, key=lambda example: len(example[0])):
            if batch and (len(batch) + 1) * len(example[0]) > self.tokens:
                yield batch
                batch = []
            batch.append(example)

    def _pad(self, batch: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(ids) for ids, _ in batch)
        inputs = torch.full((len(batch), width), self.tokenizer.pad_token_id)  # (B, T)
        labels = torch.full((len(batch), width), -100)  # (B, T)
        for row, (ids, num_prompt) in enumerate(batch):
            inputs[row, : len(ids)] = torch.tensor(ids)
            labels[row, num_prompt : len(ids)] = inputs[row, num_prompt : len(ids)]
        return inputs, labels


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of 1.7M parameters."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=math.ceil(len(tokenizer) / 16) * 16,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=MAX_TOKENS,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _optimizer(model: torch.nn.Module, learning_rate: float) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), foreach=True)


def _loss(model: Qwen2ForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the completion tokens; the head sees those positions only."""
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        hidden = model.model(input_ids=inputs).last_hidden_state[:, :-1]  # (B, T-1, H)
        targets = labels[:, 1:]  # (B, T-1)
        trained = targets != -100
        logits = hidden[trained] @ model.lm_head.weight.T  # (N, V)
    return torch.nn.functional.cross_entropy(logits.float(), targets[trained])


def train(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[random.Random], Example],
    schedule: Schedule,
    seed: int,
    device: str,
) -> dict[str, float]:
    """Train `model` in place for `schedule.seconds`; steps, tokens, seconds and last mean loss."""
    model.to(device).train()
    optimizer = _optimizer(model, schedule.learning_rate)
    data = DrawnBatches(tokenizer, draw, schedule.tokens_per_batch, seed)
    batches = iter(
        DataLoader(data, batch_size=None, num_workers=schedule.num_workers, prefetch_factor=4)
    )
    start, step, tokens, mean_loss = time.time(), 0, 0, 0.0
    while (elapsed := time.time() - start) < schedule.seconds:
        inputs, labels = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, elapsed)
        loss = _loss(model, inputs.to(device), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, tokens = step + 1, tokens + int((inputs != tokenizer.pad_token_id).sum())
        if step % 100 == 0:
            mean_loss = loss.item()
            logger.info(
                "step %d  %.1fM tokens  %.0f s  loss %.4f", step, tokens / 1e6, elapsed, mean_loss
            )
    return {
        "steps": step,
        "tokens": tokens,
        "seconds": round(time.time() - start, 1),
        "loss": round(mean_loss, 4),
    }
