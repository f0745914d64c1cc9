"""Rows of a step, shared out over any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rea_rl.configs import REARLConfig, REARLSFTConfig
from rea_rl.run.batch import share_out

RECIPES = Path(__file__).parents[2] / "recipes"


class Keys:
    """Batch keys of a recipe."""

    def __init__(self, prompts, per_device, accumulation=None):
        self.prompts_per_step, self.per_device_train_batch_size = prompts, per_device
        self.gradient_accumulation_steps = accumulation

    @property
    def batch(self):
        return self.per_device_train_batch_size, self.gradient_accumulation_steps


@pytest.mark.parametrize(
    ("prompts", "per_device", "ranks", "expected"),
    [
        (16, 2, 1, (2, 32)), (16, 2, 2, (2, 16)), (16, 2, 4, (2, 8)), (16, 2, 8, (2, 4)),
        (16, 2, 16, (2, 2)), (16, 1, 16, (1, 4)),
        (12, 48, 1, (48, 1)), (12, 48, 2, (24, 1)), (12, 48, 3, (16, 1)), (12, 48, 12, (4, 1)),
        (16, 48, 1, (32, 2)), (25, 48, 1, (20, 5)), (6, 48, 2, (12, 1)), (None, 8, 2, (8, 1)),
    ],
)  # fmt: skip
def test_a_step_has_its_prompts_on_any_number_of_ranks(
    monkeypatch, prompts, per_device, ranks, expected
):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    keys = Keys(prompts, per_device)
    share_out(keys, "prompts_per_step", 4)
    assert keys.batch == expected
    if prompts:
        assert keys.batch[0] * keys.batch[1] * ranks == prompts * 4


@pytest.mark.parametrize(
    ("keys", "ranks", "words"),
    [
        (Keys(16, 2), 3, "prompts_per_step is 16, which 3 ranks cannot share evenly"),
        (Keys(12, 48), 5, "prompts_per_step is 12, which 5 ranks"),
        (Keys(4, 2), 8, "prompts_per_step is 4, which 8 ranks"),
        (Keys(16, 3), 1, r"has 64 rows a step, which per_device_train_batch_size \(3\) does not"),
        (Keys(16, 2, 16), 1, "is 2 x 16 = 32; leave gradient_accumulation_steps out"),
        (Keys(16, 2, 32), 2, "each of 2 ranks has 32 rows a step, but .* is 2 x 32 = 64"),
    ],
)
def test_what_cannot_be_exact_is_refused(monkeypatch, keys, ranks, words):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(ValueError, match=words) as caught:
        share_out(keys, "prompts_per_step", 4)
    assert "\n" not in str(caught.value)


def test_an_accumulation_that_agrees_is_taken(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    keys = Keys(16, 2, 16)
    share_out(keys, "prompts_per_step", 4)
    assert keys.batch == (2, 16)


def test_trainers_take_the_batch_of_a_recipe(tmp_path):
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    config = REARLConfig(
        **common, prompts_per_step=16, per_device_train_batch_size=2, num_generations=4,
        reflection_model="model", tokens_per_reflection=200.0,
    )  # fmt: skip
    assert (config.gradient_accumulation_steps, config.generation_batch_size) == (32, 64)
    config = REARLSFTConfig(**common, rows_per_step=128, per_device_train_batch_size=2)
    assert config.gradient_accumulation_steps == 64
    assert REARLSFTConfig(**common).gradient_accumulation_steps == 1
    with pytest.raises(ValueError, match="rows_per_step is 0; it must be greater than 0"):
        REARLSFTConfig(**common, rows_per_step=0)


def test_no_recipe_counts_on_a_number_of_ranks():
    for path in RECIPES.glob("*/config_*.yaml"):
        recipe = yaml.safe_load(path.read_text())
        assert "gradient_accumulation_steps" not in recipe, path
        assert recipe.get("prompts_per_step", recipe.get("rows_per_step")) > 0, path
