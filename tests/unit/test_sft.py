"""Supervised fine-tuning: which ids carry loss, what is refused, and a run on a tiny model that
learns and resumes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from supervised import sft_arguments, write_rows
from tiny import make_tokenizer, save_model

from generation.labeling_distill_utils import reflection_example
from generation.prompts import REFLECTION_PREFILLS, reflection_messages
from rea_rl.run.training import train
from rea_rl.sft import build_trainer, encode_example, load_examples, main, parse_recipe

ROW = {
    "prompt": [{"role": "user", "content": "Q"}],
    "completion": [{"role": "assistant", "content": "t</think>A"}],
}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_loss_is_on_the_completion_and_its_end_only(tokenizer):
    encoded = encode_example(ROW, tokenizer)
    assert tokenizer.decode(encoded["input_ids"]) == "<U>Q<A><think>\nt</think>A<eos>"
    trained = [i for i in encoded["labels"] if i != -100]
    assert tokenizer.decode(trained) == "t</think>A<eos>"
    assert encoded["labels"][-len(trained) :] == encoded["input_ids"][-len(trained) :]


def test_text_is_taken_as_it_stands(tokenizer):
    encoded = encode_example({"prompt": "<U>Q<A>", "completion": "A"}, tokenizer)
    assert tokenizer.decode(encoded["input_ids"]) == "<U>Q<A>A<eos>"


@pytest.mark.parametrize(
    ("form", "rest"), [("long", " Think\n[2]. Result<eos>"), ("compact", " Think Result<eos>")]
)
def test_reflection_example_begins_like_the_online_request(tokenizer, form, rest):
    encoded = encode_example(reflection_example("P", ["a", "b"], [False, True], form), tokenizer)
    messages = reflection_messages("P", ["a", "b"], form)
    online = (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        + REFLECTION_PREFILLS[form]
    )
    online_ids = tokenizer.encode(online, add_special_tokens=False)
    assert encoded["input_ids"][: len(online_ids)] == online_ids
    assert tokenizer.decode(encoded["input_ids"][len(online_ids) :]) == rest


def test_rows_that_are_too_long_are_left_out(tokenizer, tmp_path):
    short, long = {"prompt": "<U>", "completion": "abc"}, {"prompt": "<U>", "completion": "abcd"}
    file = write_rows(tmp_path / "rows.json", [short, long])
    assert len(load_examples(file, "train", tokenizer, max_length=5)) == 1  # <U>abc<eos>
    assert len(load_examples(file, "train", tokenizer, max_length=6)) == 2
    with pytest.raises(ValueError, match="none of its 2 rows has at most max_length"):
        load_examples(file, "train", tokenizer, max_length=4)


def test_malformed_row_is_named(tokenizer, tmp_path):
    file = write_rows(tmp_path / "rows.json", [ROW, {"prompt": "Q"}])
    with pytest.raises(ValueError, match=r"rows\.json: row 1 needs a 'prompt' and a 'completion'"):
        load_examples(file, "train", tokenizer, None)


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_run_learns_and_a_killed_one_ends_with_the_same_weights(tmp_path):
    whole = sft_arguments(tmp_path, output_dir=str(tmp_path / "whole"))
    train(build_trainer(*parse_recipe(whole)))
    losses = [
        e["loss"]
        for e in json.loads((tmp_path / "whole/trainer_state.json").read_text())["log_history"]
        if "loss" in e
    ]
    evaluation = json.loads((tmp_path / "whole/eval_results.json").read_text())
    assert evaluation["eval_loss"] < 5.5  # ln 262 = 5.57 is that of a random model
    assert losses == sorted(losses, reverse=True)

    killed = sft_arguments(tmp_path, output_dir=str(tmp_path / "killed"))
    trainer = build_trainer(*parse_recipe(killed))
    trainer.args.max_steps = 4
    stop_after(trainer, step=2)
    trainer.train()
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-2"]
    train(build_trainer(*parse_recipe(killed)))
    expected, resumed = adapter_weights(tmp_path / "whole"), adapter_weights(tmp_path / "killed")
    # two layers, two modules, two factors
    assert expected.keys() == resumed.keys() and len(expected) == 8
    for name, weight in expected.items():
        torch.testing.assert_close(resumed[name], weight, msg=name)


def stop_after(trainer, step: int) -> None:
    """Make a run end after a step, its checkpoint written."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == step

    trainer.add_callback(Stop())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": "/none"}, "no tokenizer at '/none'"),
        ({"dataset_name": "none.json"}, "none.json does not exist"),
        ({"packing": "true"}, "packing is true"),
        ({"use_peft": "false", "dtype": "bfloat16"}, "dtype is bfloat16: .* set dtype: float32"),
    ],
)
def test_mistakes_are_one_line(tmp_path, changes, message):
    with pytest.raises(SystemExit) as stop:
        main(sft_arguments(tmp_path, **changes))
    assert re.search(message, str(stop.value)) and "\n" not in str(stop.value)


def test_unknown_recipe_key_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_name: a.json\noutput_dir: out\nbf16: false\nrpo_alfa: 1.0\n")
    with pytest.raises(SystemExit, match="rpo_alfa"):
        main(["--config", str(recipe)])


def test_the_template_of_the_recipe_renders_the_prompts(tmp_path):
    template = tmp_path / "reasoning.jinja"
    template.write_text("{% for m in messages %}<U>{{ m['content'] }}{% endfor %}<A><think>Hm.")
    rows = tmp_path / "rows.json"
    rows.write_text('[{"prompt": [{"role": "user", "content": "1?"}], "completion": "2"}]')
    flags = [
        "--model_name_or_path",
        str(save_model(tmp_path / "model")),
        "--dataset_name",
        str(rows),
        "--use_cpu",
        "true",
    ]
    flags += [
        "--output_dir",
        str(tmp_path / "run"),
        "--use_peft",
        "true",
        "--lora_target_modules",
        "q_proj",
        "--bf16",
        "false",
    ]
    trainer = build_trainer(*parse_recipe([*flags, "--chat_template_path", str(template)]))
    ids = trainer.train_dataset[0]["input_ids"]
    assert trainer.processing_class.decode(ids) == "<U>1?<A><think>Hm.2<eos>"
    with pytest.raises(ValueError, match="does not end in .jinja"):
        build_trainer(*parse_recipe([*flags, "--chat_template_path", str(rows)]))
