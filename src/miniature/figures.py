"""The figures of the model card: how often the miniature is right, makes mistakes, corrects itself
and overthinks; and what cuts do to it.

Plain transformers sampling, so that the model can be measured where it is built, without a server.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from generation.prompts import THINK_END, forced_answer
from generation.reflection_words import count_reflections
from generation.stated_results import stated_results
from miniature.oracle import boxed_answer
from miniature.tokenizer import ASSISTANT, BOS, USER
from miniature.world import LEVELS, Problem

MAX_NEW_TOKENS = 640


@torch.no_grad()
def sample(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    temperature: float,
    max_new_tokens: int,
    batch_size: int = 1024,
) -> list[list[int]]:
    """One completion per prompt as token ids, without padding; with EOS if it was reached."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: list[list[int]] = [[] for _ in prompts]
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch = tokenizer([prompts[i] for i in rows], return_tensors="pt", padding=True).to(
            model.device
        )
        out = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        for i, ids in zip(rows, out[:, batch.input_ids.shape[1] :].tolist(), strict=True):
            eos = tokenizer.eos_token_id
            completions[i] = ids[: ids.index(eos) + 1] if eos in ids else ids
    return completions


@dataclass(frozen=True)
class Path:
    """One sampled response and what the oracle says of it."""

    problem: Problem
    thinking: str
    answer: int | None
    num_tokens: int
    truncated: bool

    @property
    def correct(self) -> bool:
        return self.answer == self.problem.answer

    @property
    def paragraphs(self) -> list[str]:
        return [part for part in re.split(r"\n{2,}", self.thinking) if part.strip()]

    @property
    def first_right(self) -> bool:
        results = stated_results(self.thinking)
        return bool(results) and results[0][1] == self.problem.answer

    @property
    def oracle_cut(self) -> int | None:
        """Index of the first paragraph that states the right result."""
        stated = stated_results(self.thinking)
        return next((index for index, result in stated if result == self.problem.answer), None)

    @property
    def num_redundant(self) -> int:
        """Results stated after the first right one."""
        cut = self.oracle_cut
        return 0 if cut is None else sum(index > cut for index, _ in stated_results(self.thinking))


def prompt_of(problem: Problem) -> str:
    """The prompt as the chat template makes it."""
    return f"{BOS}{USER}{problem.question}{ASSISTANT}<think>\n"


def sample_paths(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    temperature: float = 0.6,
) -> list[Path]:
    """One response per problem."""
    paths = []
    completions = sample(
        model, tokenizer, [prompt_of(problem) for problem in problems], temperature, MAX_NEW_TOKENS
    )
    for problem, ids in zip(problems, completions, strict=True):
        thinking, _, answer = tokenizer.decode(ids, skip_special_tokens=True).partition(THINK_END)
        truncated = ids[-1] != tokenizer.eos_token_id
        paths.append(Path(problem, thinking, boxed_answer(answer), len(ids), truncated))
    return paths


def behaviour(paths: Sequence[Path], tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Mean figures of `paths`."""
    count = len(paths)
    words = [count_reflections(path.thinking, word_bounded=True) for path in paths]
    before = [
        path.paragraphs[: path.oracle_cut + 1] for path in paths if path.oracle_cut is not None
    ]
    return {
        "accuracy": sum(path.correct for path in paths) / count,
        "first_right": sum(path.first_right for path in paths) / count,
        "corrected": sum(path.correct and not path.first_right for path in paths) / count,
        "redundant": sum(path.num_redundant for path in paths) / count,
        "tokens": sum(path.num_tokens for path in paths) / count,
        "truncated": sum(path.truncated for path in paths) / count,
        "tokens_per_reflection_word": sum(path.num_tokens for path in paths) / max(sum(words), 1),
        "words_until_result": sum(
            count_reflections("\n\n".join(kept), word_bounded=True) for kept in before
        )
        / max(len(before), 1),
    }


def cut_table(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    paths: Sequence[Path],
    seed: int,
    temperature: float = 0.6,
) -> dict[str, dict[str, float]]:
    """Accuracy and tokens when responses are cut after a paragraph and finished: by the oracle, at
    the first result, at random."""
    rng = random.Random(seed)
    lengths = [
        [len(ids) for ids in tokenizer(path.paragraphs).input_ids] if path.paragraphs else []
        for path in paths
    ]
    oracle = [path.oracle_cut for path in paths]
    shares = [
        sum(n[: cut + 1]) / sum(n)
        for n, cut in zip(lengths, oracle, strict=True)
        if cut is not None
    ]
    rows = {
        "oracle": oracle,
        "first_result": [(stated_results(path.thinking) or [(None, 0)])[0][0] for path in paths],
        "random_paragraph": [rng.randrange(len(n)) if n else None for n in lengths],
        "random_same_budget": [_nearest_cut(n, rng.choice(shares)) if n else None for n in lengths],
    }
    table = {
        "none": {
            "accuracy": sum(p.correct for p in paths) / len(paths),
            "tokens": sum(p.num_tokens for p in paths) / len(paths),
        }
    }
    for name, cuts in rows.items():
        table[name] = _finish(model, tokenizer, paths, cuts, temperature)
    return table


def _nearest_cut(lengths: list[int], share: float) -> int:
    """The last kept paragraph that keeps a share of the tokens nearest to `share`."""
    kept = [sum(lengths[: index + 1]) / sum(lengths) for index in range(len(lengths))]
    return min(range(len(kept)), key=lambda index: abs(kept[index] - share))


def _finish(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    paths: Sequence[Path],
    cuts: Sequence[int | None],
    temperature: float,
) -> dict[str, float]:
    rows = [i for i, cut in enumerate(cuts) if cut is not None]
    kept = {
        i: "\n\n".join(paths[i].paragraphs[: cuts[i] + 1])
        + "\n\n"
        + forced_answer(after_newline=True)
        for i in rows
    }
    finished = sample(
        model, tokenizer, [prompt_of(paths[i].problem) + kept[i] for i in rows], temperature, 64
    )
    correct = {i: path.correct for i, path in enumerate(paths)}
    tokens = {i: path.num_tokens for i, path in enumerate(paths)}
    for i, ids in zip(rows, finished, strict=True):
        correct[i] = (
            boxed_answer(tokenizer.decode(ids, skip_special_tokens=True)) == paths[i].problem.answer
        )
        tokens[i] = len(tokenizer(kept[i]).input_ids) + len(ids)
    return {
        "accuracy": sum(correct.values()) / len(paths),
        "tokens": sum(tokens.values()) / len(paths),
    }


def by_level(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerFast
) -> dict[str, dict[str, float]]:
    """`behaviour` for every level and for all responses."""
    levels = {
        str(level): [path for path in paths if path.problem.level == level] for level in LEVELS
    }
    return {
        name: behaviour(group, tokenizer) for name, group in [*levels.items(), ("all", list(paths))]
    }
