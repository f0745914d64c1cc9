"""Every recipe in the tree is read by the program it is for, and says of itself what is true."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
GRPO_NAMES = re.compile(r"config_(ReflectRL|GRPO)\w*\.yaml")
SFT_NAMES = re.compile(r"config_(SFT|reflection_model|solver|LRM)\w*\.yaml")
DPO_NAMES = re.compile(r"config_RPO\w*\.yaml")
GRPO_RECIPES = sorted(path for path in RECIPES.rglob("*.yaml") if GRPO_NAMES.fullmatch(path.name))
MODELS = [
    "DeepSeek-R1-Distill-Qwen-1.5B",
    "DeepSeek-R1-Distill-Llama-8B",
    "Qwen3-1.7B",
    "Qwen3-8B",
]
SETS = ["DeepSeek-R1-Distill-Qwen-7B", "miniature", "Qwen2.5-Coder-0.5B-Instruct", *MODELS]
OFFLINE_NAMES = ["SFT", "RPO", "reflection_model"]
NAMES = [
    "ReflectRL",
    "ReflectRL_noReflectionModel",
    "ReflectRL_noReflectReward",
    "GRPO",
    "GRPO_len",
    "GRPO_Gen8",
]
# the GPU recipes ask for bf16 on a GPU, which this machine may not have
CPU = ["--use_cpu", "true"]


def short(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=short)
def test_every_recipe_parses_strictly(path):
    if GRPO_NAMES.fullmatch(path.name):
        from rea_rl.grpo import parse_recipe

        parse_recipe(["--config", str(path), *CPU])
    elif SFT_NAMES.fullmatch(path.name):
        from rea_rl.sft import parse_recipe

        parse_recipe(["--config", str(path), *CPU])
    elif DPO_NAMES.fullmatch(path.name):
        from rea_rl.dpo import parse_recipe

        parse_recipe(["--config", str(path), *CPU])
    elif path.parent.name == "accelerate_configs":
        from accelerate.commands.config.config_args import load_config_from_file

        load_config_from_file(str(path))
    elif path.name == "study.yaml":
        from rea_rl.study.recipe_set import read_study_set

        assert (
            RECIPES / "generation" / f"{read_study_set(path.parent.name).generation}.yaml"
        ).is_file()
    else:
        assert path.parent.name == "generation", f"no program reads {path}"
        from generation.arguments import GenerateArguments
        from rea_core.recipe import RecipeParser

        needed = ["--qaf", "x.json", "--model_dir", "model"]
        RecipeParser(GenerateArguments).parse_args_and_config(["--config", str(path), *needed])


@pytest.mark.parametrize("path", GRPO_RECIPES, ids=short)
def test_values_of_the_recipe_reach_the_dataclasses(path):
    from rea_rl.grpo import parse_recipe

    parsed = {}
    for part in parse_recipe(["--config", str(path), *CPU]):
        parsed |= vars(part)
    for key, value in read(path).items():
        assert parsed[key] == ([] if key == "report_to" else value), key


@pytest.mark.parametrize("path", GRPO_RECIPES, ids=short)
def test_header_is_true(path):
    header = " ".join(
        line.removeprefix("# ") for line in path.read_text().split("\n\n")[0].splitlines()
    )
    recipe = read(path)
    script = re.search(r"Run by (scripts/\w+\.sh)", header)[1]
    assert (ROOT / script).is_file()
    assert f"-m rea_rl.grpo --config {path.relative_to(ROOT)}" in re.sub(r"[\s\\]+", " ", header)
    prompts, group, paths = map(
        int,
        re.search(
            r"One step: (\d+) prompts x num_generations (\d+) = (\d+) sampled responses", header
        ).groups(),
    )
    assert (prompts, group) == (recipe["prompts_per_step"], recipe["num_generations"])
    assert paths == group * prompts and "gradient_accumulation_steps" not in recipe
    revised = f"so {paths} originals and {paths} revisions are trained"
    assert (revised if recipe["revision"] else f"{paths} trained rows") in header


@pytest.mark.parametrize("folder", SETS)
def test_set_is_complete(folder):
    assert {f"config_{name}.yaml" for name in NAMES + OFFLINE_NAMES} <= {
        path.name for path in (RECIPES / folder).iterdir()
    }


@pytest.mark.parametrize("folder", SETS)
@pytest.mark.parametrize(
    "name, parent, difference",
    [
        ("ReflectRL_noReflectReward", "ReflectRL", {"reward_funcs": ["accuracy", "refine_length"]}),
        ("ReflectRL_noReflectionModel", "ReflectRL", {"revision": False}),
        ("GRPO_len", "GRPO", {"reward_funcs": ["accuracy", "length"]}),
    ],
)
def test_ablation_differs_in_one_key(folder, name, parent, difference):
    ablation, whole = (read(RECIPES / folder / f"config_{n}.yaml") for n in (name, parent))
    # Beside that key only the place of the results.
    assert ablation.pop("output_dir") != whole.pop("output_dir")
    assert ablation == {**whole, **difference}


@pytest.mark.parametrize("folder", SETS)
def test_baselines_train_as_much_as_the_method(folder):
    def rows(name):
        recipe = read(RECIPES / folder / f"config_{name}.yaml")
        sampled = recipe["prompts_per_step"] * recipe["num_generations"]
        return sampled * (2 if recipe["revision"] else 1), recipe["prompts_per_step"]

    assert rows("GRPO_Gen8") == rows("ReflectRL")  # rows and prompts of a step
    assert rows("GRPO")[1] == rows("ReflectRL")[1]


@pytest.mark.parametrize("path", GRPO_RECIPES, ids=short)
def test_no_key_is_left_to_a_default_that_changed_between_versions(path):
    recipe = read(path)
    expected = {
        "beta": 0.04,
        "epsilon": 0.2,
        "loss_type": "dapo",
        "use_bias_correction_kl": False,
        "vllm_importance_sampling_mode": "token_truncate",
        "lora_dropout": 0.0,
        # The miniature's rank is half, since vLLM on a CPU copies the adapter for every token.
        "lora_r": 8 if path.parent.name == "miniature" else 16,
    }
    assert expected.items() <= recipe.items()
    assert recipe["lora_alpha"] == 2 * recipe["lora_r"]
    assert recipe["vllm_importance_sampling_clip_max"] > 1
    assert len(recipe["lora_target_modules"]) == 7
    assert "reward_weights" not in recipe
    # or checkpoints fill the disk
    most = 10 if path.parent.name == "miniature" else 3
    assert recipe.get("save_strategy") == "no" or 1 <= recipe["save_total_limit"] <= most


def test_paper_values_of_the_7b_recipe():
    recipe = read(RECIPES / SETS[0] / "config_ReflectRL.yaml")
    expected = {
        "num_generations": 4,
        "temperature": 0.6,
        "learning_rate": 2.0e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "finish_max_tokens": 256,
        "tokens_per_reflection": 225.09,
        "word_bounded_reflections": False,
        "reward_funcs": ["accuracy", "refine_length", "reflect"],
        "per_device_train_batch_size": 2,
        "prompts_per_step": 16,
    }
    assert expected.items() <= recipe.items()
    assert (
        not {"paragraph_min_tokens", "cut_second_half", "cut_threshold", "cut_cap_share"}
        & recipe.keys()
    )


@pytest.mark.parametrize("folder", MODELS)
def test_a_models_recipes_and_pipeline_name_the_same_files(folder):
    method = read(RECIPES / folder / "config_ReflectRL.yaml")
    assert method["model_name_or_path"] == f"model/{folder}"
    script = f"RECIPE_SET={folder}; source recipes/{folder}/offline.sh; "
    script += (
        'echo "$POLICY $REFLECTION_BASE $REFLECTION_LORA $REFLECTION $REFLECTION_DATA $LABELING"'
    )
    for suffix in ("reflection_model", "reflection_model_small"):
        environment = {"CONFIG_SUFFIX": suffix, "PATH": os.environ["PATH"]}
        found = subprocess.check_output(
            ["bash", "-euc", script], cwd=ROOT, env=environment, text=True
        )
        policy, base, lora, merged, data, labeling = found.split()
        recipe = read(RECIPES / folder / f"config_{suffix}.yaml")
        assert policy == method["model_name_or_path"]
        assert (base, lora) == (recipe["model_name_or_path"], recipe["output_dir"])
        assert data == recipe["dataset_name"]
        assert merged == method["reflection_model"] + "-small" * suffix.endswith("small")
        assert read(RECIPES / folder / "config_SFT.yaml")["dataset_name"] == f"{labeling}/SFT.json"
    thinks = method.get("chat_template_kwargs")
    assert thinks == ({"enable_thinking": True} if folder.startswith("Qwen3") else None)
    for name in ("", "_32k"):
        generation = "qwen3" if folder.startswith("Qwen3") else "deepseek"
        recipe = read(RECIPES / "generation" / f"{generation}{name}.yaml")
        assert recipe.get("chat_template_kwargs") == thinks


@pytest.mark.parametrize("folder", SETS)
def test_rpo_is_sigmoid_plus_sft(folder):
    recipe = read(RECIPES / folder / "config_RPO.yaml")
    assert (recipe["loss_type"], recipe["loss_weights"]) == (["sigmoid", "sft"], [1.0, 1.0])


@pytest.mark.parametrize(
    "path", [RECIPES / s / f"config_{n}.yaml" for s in SETS for n in OFFLINE_NAMES], ids=short
)
def test_offline_header_is_true(path):
    header, recipe = path.read_text().split("\n\n")[0], read(path)
    script = re.findall(r"scripts/\w+\.sh", header)
    assert script and all((ROOT / name).is_file() for name in script)
    program = "rea_rl.dpo" if path.name == "config_RPO.yaml" else "rea_rl.sft"
    assert f"-m {program} --config {path.relative_to(ROOT)}" in re.sub(r"[\s#\\]+", " ", header)
    assert f"One step: {recipe['rows_per_step']} " in header
    assert "gradient_accumulation_steps" not in recipe
