"""Golden vectors (tests/data/golden) through the project's public names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from generation.cuts import choose_cuts, result_probabilities
from generation.labeling_distill_utils import parse_judge_labels
from generation.reflection_words import count_reflections
from generation.segments import chunk_paragraphs, split_paragraphs
from rea_rl.revision import group_advantages, keep_or_replace, overthinking_signal
from rea_rl.rewards import refined_length_reward_values, reflection_reward_values

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def cases(name: str) -> list[dict]:
    found = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    assert len(found) >= 70
    return found


def count_tokens(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def test_paragraphs():
    for case in cases("paragraphs"):
        paragraphs = split_paragraphs(case["text"], count_tokens)
        assert [p.text for p in paragraphs] == case["paragraphs"]
        assert [p.num_tokens for p in paragraphs] == case["num_tokens"]


def test_chunks():
    for case in cases("chunks"):
        chunks = chunk_paragraphs(case["num_tokens"], case["limit"])
        assert [[f"p{i}" for i in chunk] for chunk in chunks] == case["chunks"]


def test_judge_labels():
    for case in cases("judge_labels"):
        assert parse_judge_labels(case["response"]) == {
            int(i): label for i, label in case["labels"].items()
        }


def test_label_probabilities():
    for case in cases("label_probabilities"):
        assert result_probabilities(case["steps"]) == pytest.approx(case["p_result"], abs=1e-12)


def test_cuts():
    for case in cases("cuts"):
        cuts = choose_cuts(case["p_result"], case["num_paragraphs"])
        assert (cuts.strong, cuts.normal, cuts.weak) == (
            case["strong"],
            case["normal"],
            case["weak"],
        )


def test_reflection():
    for case in cases("reflection"):
        count = count_reflections(case["think"])
        assert count == case["count"]
        rewards = reflection_reward_values(
            [count], [case["num_think_tokens"]], case["tokens_per_reflection"]
        )
        assert rewards == pytest.approx([case["reward"]], abs=1e-12)


def test_refined_length():
    for case in cases("refined_length"):
        rewards = refined_length_reward_values(case["problem"], case["correct"], case["num_tokens"])
        assert rewards == pytest.approx(case["reward"], abs=1e-12)


def test_group_advantages():
    for case in cases("group_advantages"):
        rewards = torch.tensor(case["rewards_per_func"], dtype=torch.float64)
        source_row = keep_or_replace([accuracy == 1.0 for accuracy in rewards[:, 0].tolist()])
        assert source_row == case["source_row"]
        rewards = rewards[source_row]
        advantages = group_advantages(
            rewards, rewards[:, 0] == 1.0, group_size=2 * case["num_generations"]
        )
        assert advantages.tolist() == pytest.approx(case["advantages"], abs=2e-6)


def test_overthinking_tokens():
    for case in cases("overthinking_tokens"):
        signal = overthinking_signal(
            case["original"], case["revision"], case["think_end_id"], tuple(case["correct"])
        )
        assert signal.mask_original == case["mask_original"]
        assert signal.mask_revision == case["mask_revision"]
        assert signal.sign == tuple(case["sign"])
