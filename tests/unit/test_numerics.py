"""A step whose loss or gradient is no number changes nothing, is counted and named; the third in
a row ends the run."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from supervised import dpo_arguments, sft_arguments, write_rows
from trainers import RecordedPaths, adapter, make_trainer
from transformers import TrainerCallback

from rea_rl import dpo, sft
from rea_rl.run import training as entry
from rea_rl.run.checkpoints import last_checkpoint
from rea_rl.run.endings import NonFiniteError

NUMBERS = {"nan": float("nan"), "inf": float("inf")}


def spoil(trainer, steps, value=float("nan"), what="loss", micro_batch=0):
    """Let the loss, or only the gradient, of one micro-batch of some optimizer steps (from 0) be
    `value`."""
    original, seen = trainer.compute_loss, []

    def compute_loss(*args, **kwargs):
        seen.append(trainer.state.global_step)
        loss = original(*args, **kwargs)
        if seen[-1] in steps and seen.count(seen[-1]) - 1 == micro_batch:
            (pass_through if what == "loss" else break_gradient)(loss)
        return loss

    def break_gradient(loss):
        loss.register_hook(lambda grad: grad * value)

    def pass_through(loss):
        loss.data = loss.data * value
        break_gradient(loss)

    trainer.compute_loss = compute_loss
    if hasattr(trainer, "note_loss"):  # it must see what is spoiled
        note = trainer.note_loss
        trainer.note_loss = lambda loss: loss
        trainer.compute_loss = lambda *args, **kwargs: note(compute_loss(*args, **kwargs))
    return trainer


class Weights(TrainerCallback):
    """Adapter and Adam's state at the end of each step, and the rate of the next one."""

    def __init__(self, trainer):
        self.trainer, self.after, self.moments, self.rates = trainer, [], [], []
        trainer.add_callback(self)

    def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        self.after.append(adapter(self.trainer))
        moments = optimizer.state_dict()["state"].values()
        self.moments.append(
            [{key: torch.as_tensor(value).clone() for key, value in m.items()} for m in moments]
        )
        self.rates.append(lr_scheduler.get_last_lr()[0])


def grpo_trainer(model_folder, tmp_path, **changes):
    keys = {
        "max_steps": 4,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    return make_trainer(model_folder, tmp_path / "out", **{**keys, **changes})


def sft_trainer(model_folder, tmp_path, **changes):
    flags = {key: str(value).lower() for key, value in changes.items()}
    flags |= {
        "weight_decay": "0.1",
        "save_steps": "1",
        "logging_steps": "1",
        "lr_scheduler_type": "linear",
    }
    return sft.build_trainer(*sft.parse_recipe(sft_arguments(tmp_path, **flags)))


def dpo_trainer(model_folder, tmp_path, **changes):
    flags = {key: str(value).lower() for key, value in changes.items()}
    flags |= {"save_steps": "1", "lr_scheduler_type": "linear"}
    return dpo.build_trainer(*dpo.parse_recipe(dpo_arguments(tmp_path, **flags)))


TRAINERS = {"grpo": grpo_trainer, "sft": sft_trainer, "dpo": dpo_trainer}


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(
    ("what", "value", "changes"),
    [
        ("loss", "nan", {}),
        ("gradient", "inf", {"max_grad_norm": 0.0}),
        ("gradient", "nan", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    ],
)
def test_a_step_that_is_no_number_changes_nothing_but_the_count(
    model_folder, tmp_path, caplog, name, what, value, changes
):
    trainer = spoil(
        TRAINERS[name](model_folder, tmp_path, **changes), {1}, NUMBERS[value], what,
        micro_batch=changes.get("gradient_accumulation_steps", 1) - 1,
    )  # fmt: skip
    weights = Weights(trainer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 4
    first, second, third, _ = weights.after
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(second[key], third[key]) for key in first)
    assert all(p.isfinite().all() for p in third.values())
    for before, after in zip(weights.moments[0], weights.moments[1], strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)
    start = trainer.args.learning_rate
    # the schedule counts it
    assert weights.rates == pytest.approx([start * (4 - step) / 4 for step in (1, 2, 3, 4)])
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["non_finite_steps"] for entry in logged] == [0, 1, 1, 1]
    assert all(math.isfinite(entry["loss"]) for entry in logged)
    assert (
        "step 1 has a non-finite loss or gradient, loss " in caplog.text
        and "number 1 in a row" in caplog.text
    )


def test_the_log_names_rows_by_their_place_in_the_file(tmp_path, caplog):
    """The fourth row is too long and left out; the rows behind it keep their numbers."""
    rows = [{"prompt": "<U>1<A>", "completion": "x" * (40 if i == 3 else 2)} for i in range(7)]
    flags = {
        "dataset_name": write_rows(tmp_path / "rows.json", rows),
        "max_length": "20",
        "per_device_train_batch_size": "6",
    }
    trainer = sft.build_trainer(*sft.parse_recipe(sft_arguments(tmp_path, **flags, max_steps="1")))
    with caplog.at_level(logging.WARNING):
        spoil(trainer, {0}).train()
    named = caplog.text.split(", rows ")[1].split(";")[0].split(", ")
    assert sorted(named) == ["0", "1", "2", "4", "5", "6"]


def test_the_log_names_problems_by_their_id(model_folder, tmp_path, caplog):
    engine = RecordedPaths()
    trainer = spoil(
        grpo_trainer(model_folder, tmp_path, engine=engine, per_device_train_batch_size=4), {2}
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    problems = list(dict.fromkeys(engine.batches[2][1]))
    assert len(problems) == 2 and f", rows {', '.join(problems)};" in caplog.text


@pytest.mark.parametrize("name", TRAINERS)
def test_the_third_in_a_row_ends_the_run_behind_a_good_checkpoint(model_folder, tmp_path, name):
    """Two in a row do not; nor do three that are not in a row."""
    trainer = spoil(TRAINERS[name](model_folder, tmp_path, max_steps=9), {1, 2, 4, 6, 7, 8})
    with pytest.raises(NonFiniteError, match="non-finite"):
        entry.train(trainer)
    assert trainer.state.stateful_callbacks["counts"]["non_finite_steps"] == 6
    assert trainer.state.global_step == 8
    checkpoint = last_checkpoint(trainer.args.output_dir)
    assert checkpoint.endswith("checkpoint-8")
    weights = load_file(Path(checkpoint, "adapter_model.safetensors"))
    assert all(weight.isfinite().all() for weight in weights.values())
    # the run is not complete
    assert not Path(trainer.args.output_dir, "train_results.json").exists()


@pytest.mark.parametrize("save_steps", [1, 9])
def test_weights_that_an_optimizer_made_no_numbers_are_not_saved(tmp_path, capsys, save_steps):
    """The gradient of the last step was a number. Also where no step was saved before."""
    flags = {"learning_rate": "1e38", "max_steps": "1", "save_steps": str(save_steps)}
    with pytest.raises(SystemExit, match="error: trained weights are non-finite at step 1"):
        sft.main(sft_arguments(tmp_path, **flags))
    assert last_checkpoint(tmp_path / "out") is None
    assert not [*(tmp_path / "out").rglob("*.safetensors")]


@pytest.mark.parametrize("program", [sft, dpo])
def test_a_command_ends_with_one_line_and_status_1(tmp_path, monkeypatch, capsys, program):
    build = program.build_trainer
    monkeypatch.setattr(program, "build_trainer", lambda *parts: spoil(build(*parts), range(9)))
    arguments = {sft: sft_arguments, dpo: dpo_arguments}[program](tmp_path)
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert str(ended.value).startswith("\nerror: ") and "non-finite" in str(ended.value)
    assert "\n" not in str(ended.value).strip()
    assert last_checkpoint(tmp_path / "out").endswith("checkpoint-2")


def test_cudnn_attention_is_off_unless_the_recipe_asks_for_it(model_folder, tmp_path):
    for name, build in TRAINERS.items():
        for asked in (False, True):
            torch.backends.cuda.enable_cudnn_sdp(not asked)
            folder = tmp_path / f"{name}{asked}"
            folder.mkdir()
            build(model_folder, folder, **({"cudnn_attention": True} if asked else {}))
            assert torch.backends.cuda.cudnn_sdp_enabled() == asked
