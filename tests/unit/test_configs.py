"""Mistakes in a recipe and its files: one clear error each, before any model loads."""

from __future__ import annotations

import json

import pytest
from tiny import save_model

from generation.measured import read_tokens_per_reflection
from rea_core.problems import load_problems
from rea_core.rows import write_atomically
from rea_rl.configs import DataArguments, REARLConfig
from rea_rl.grpo import load_inputs

KEYS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "reflection_model": "model/Reflection_Model",
    "tokens_per_reflection": 225.09,
}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def make_config(tmp_path, **changes):
    return REARLConfig(output_dir=str(tmp_path), **{**KEYS, **changes})


def test_batch_keys_count_sampled_paths(tmp_path):
    config = make_config(tmp_path, gradient_accumulation_steps=2)
    assert config.generation_batch_size == 16  # 4 prompts x 4 paths, although 32 rows are trained
    assert config.rows_per_path == 2
    assert make_config(tmp_path, revision=False).rows_per_path == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"num_generations": 3},
            r"per_device_train_batch_size \(8\).* = 8 sampled responses .*num_generations \(3\)",
        ),
        ({"steps_per_generation": 2}, "steps_per_generation is 2; leave it out"),
        ({"generation_batch_size": 16}, "generation_batch_size is 16; leave it out"),
        ({"use_vllm": True}, "use_vllm is True, .* only False: it samples from policy_server"),
        ({"num_iterations": 2}, "num_iterations is 2, .* only 1"),
        ({"scale_rewards": "global"}, "scale_rewards is 'global'"),
        (
            {"construction": "quads"},
            "construction is 'quads'; it must be one of pairs, revisions_only, serial",
        ),
        (
            {"overthinking_loss": "sum"},
            "overthinking_loss is 'sum'; it must be one of none, mean, max",
        ),
        (
            {"overthinking_loss": "max", "construction": "revisions_only"},
            "set revision: true and construction: pairs",
        ),
        (
            {"overthinking_loss": "max", "revision": False},
            "set revision: true and construction: pairs",
        ),
        ({"target_lengths": [1, 2]}, "target_lengths has 2 values; give one, or three"),
        ({"reward_funcs": ["serial_decay"]}, "set construction: serial"),
        ({"vllm_importance_sampling_mode": "sequence_mask"}, "only 'token_truncate'"),
        ({"log_completions": True}, "output_dir/rollouts"),
        (
            {"revision_strength": "stronk"},
            "revision_strength is 'stronk'; it must be one of normal, weak, strong",
        ),
        ({"reflection_model": None}, "revision is true but reflection_model is missing"),
        ({"tokens_per_reflection": None}, "the recipe has neither"),
        (
            {"tokens_per_reflection_file": "x.json"},
            "tokens_per_reflection and tokens_per_reflection_file",
        ),
    ],
)
def test_mistakes_are_errors(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **changes)


def test_group_must_divide_the_paths_of_one_rank(tmp_path):
    # 2 x 3 = 6 paths per rank: over two ranks 12 would be a multiple of 4, but a prompt would span
    # both.
    with pytest.raises(ValueError, match="must stay on one rank"):
        make_config(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3)


def test_plain_grpo_needs_no_reflection_model(tmp_path):
    config = make_config(
        tmp_path,
        revision=False,
        reflection_model=None,
        reward_funcs=["accuracy"],
        tokens_per_reflection=None,
    )
    assert config.revision is False


def write_dataset(tmp_path, rows, name="problems.json"):
    path = tmp_path / name
    path.write_text(
        json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    )
    return str(path)


@pytest.mark.parametrize("name", ["problems.json", "problems.jsonl"])
def test_problems_of_a_file(tmp_path, name):
    rows = [
        {"problem": "1+1?", "answer": 2, "level": 1},
        {"id": "b", "question": "6*7?", "answer": "6*7=<<6*7=42>>42\n#### 42"},
    ]
    assert load_problems(write_dataset(tmp_path, rows, name)) == [
        {"id": "0", "problem": "1+1?", "answer": "2", "level": 1},
        {"id": "b", "problem": "6*7?", "question": "6*7?", "answer": "42"},
    ]


def test_columns_can_be_named(tmp_path):
    path = write_dataset(tmp_path, [{"text": "1+1?", "problem": "no", "gold": "2"}])
    (row,) = load_problems(path, problem_column="text", answer_column="gold")
    assert (row["problem"], row["answer"]) == ("1+1?", "2")


def test_threshold_of_a_measurement(tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps({"tokens_per_reflection": 99.0, "word_bounded": True}))
    assert read_tokens_per_reflection(path, word_bounded=True) == 99.0
    with pytest.raises(
        ValueError, match="measured with word_bounded True, but word_bounded_reflections is False"
    ):
        read_tokens_per_reflection(path, word_bounded=False)
    with pytest.raises(ValueError, match="does not exist; measure the base model first"):
        read_tokens_per_reflection(tmp_path / "absent.json", word_bounded=True)


@pytest.mark.parametrize(
    "recipe_changes, data_changes, message",
    [
        ({"reward_funcs": ["accuracy", "beauty"]}, {}, "beauty"),
        (
            {"eval_strategy": "steps"},
            {},
            "eval_strategy is 'steps', but eval_dataset_name is missing",
        ),
        ({"gradient_accumulation_steps": 5}, {}, "has 9 problems, but a step takes 10"),
        ({}, {"prompt_template": "Solve this."}, "prompt_template"),
        ({}, {"answer_column": "gold"}, "no column 'gold'"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path, tiny_model, recipe_changes, data_changes, message):
    from trl import ModelConfig

    rows = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(9)]
    data = DataArguments(**{"dataset_name": write_dataset(tmp_path, rows), **data_changes})
    model_args = ModelConfig(model_name_or_path=str(tiny_model), use_peft=True)
    with pytest.raises(ValueError, match=message):
        load_inputs(data, make_config(tmp_path, **recipe_changes), model_args)


def test_missing_model_is_one_error(tmp_path):
    from trl import ModelConfig

    data = DataArguments(dataset_name=write_dataset(tmp_path, [{"problem": "1+1?", "answer": "2"}]))
    with pytest.raises(ValueError, match="there is no model folder .*absent"):
        load_inputs(
            data, make_config(tmp_path), ModelConfig(str(tmp_path / "absent"), use_peft=True)
        )


def test_written_files_are_complete_or_absent(tmp_path):
    def lines():
        yield "one"
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "new" / "file.jsonl", lines())
    assert list((tmp_path / "new").iterdir()) == []
    write_atomically(tmp_path / "new" / "file.jsonl", ["one", "two"])
    assert (tmp_path / "new" / "file.jsonl").read_text() == "one\ntwo\n"
