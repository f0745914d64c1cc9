"""A command that is given again: what it may change, what it continues from, and when there is
nothing left to do."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import (
    PROGRAMS,
    arguments,
    contents,
    logged,
    make_workplace,
    policy_server,
    refusal,
    run,
)

from rea_rl.run.resume import missing_parts
from rea_rl.run.run_record import EVALUATION, FREE, RECORD, check_same, record_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(scope="module")
def server(workplace):
    with policy_server(workplace / "model") as server:
        yield server


def begin(program, workplace, server, **changes):
    """Train with a program; only rea_rl.grpo has a server."""
    run(
        program,
        workplace,
        **({"policy_server": server.url} if program == "grpo" else {}),
        **changes,
    )


@pytest.fixture(scope="module")
def complete(workplace, server):
    """Output folders of complete runs of three steps, by program. Nothing may be written there."""
    folders = {program: workplace / f"complete-{program}" for program in PROGRAMS}
    for program, folder in folders.items():
        begin(program, workplace, server, output_dir=folder)
    return folders


def moved(workplace, name, to):
    return shutil.copytree(workplace / name, workplace / to, dirs_exist_ok=True)


# --- What may not change --------------------------------------------------------------------------

# Program, changed flags, and what the line says: key, old and new value.
REFUSED = [
    ("sft", {"learning_rate": "0.1"}, "learning_rate was 0.01 and is 0.1"),
    ("sft", {"seed": "7"}, "seed was 42 and is 7"),
    ("sft", {"lora_alpha": "16"}, "lora_alpha was 8 and is 16"),
    ("sft", {"lora_r": "8"}, "lora_r was 4 and is 8"),
    ("sft", {"lora_target_modules": "q_proj k_proj"},
     'lora_target_modules was ["q_proj", "v_proj"] and is ["k_proj", "q_proj"]'),
    ("sft", {"weight_decay": "0.1"}, "weight_decay was 0.0 and is 0.1"),
    ("sft", {"max_grad_norm": "0.5"}, "max_grad_norm was 1.0 and is 0.5"),
    ("sft", {"optim": "sgd"}, "optim was adamw_torch_fused and is sgd"),
    ("sft", {"warmup_steps": "1"}, "warmup_steps was 0 and is 1"),
    ("sft", {"lr_scheduler_type": "cosine"}, "lr_scheduler_type was linear and is cosine"),
    ("sft", {"dtype": "bfloat16"}, "dtype was float32 and is bfloat16"),
    ("sft", {"max_steps": "4"}, "max_steps was 3 and is 4, which changes the linear schedule"),
    ("sft", {"max_steps": "2"}, "max_steps was 3 and is 2, and a run can only be made longer"),
    ("sft", {"max_steps": None}, "max_steps was 3 and is -1"),
    ("sft", {"per_device_train_batch_size": "2"}, "was 4 x 1 x 1 = 4 and is 2 x 1 x 1 = 2"),
    ("sft", {"gradient_accumulation_steps": "2"},
     "x gradient_accumulation_steps x ranks was 4 x 1 x 1 = 4 and is 4 x 2 x 1 = 8"),
    ("sft", {"train_sampling_strategy": "group_by_length"},
     "train_sampling_strategy was random and is group_by_length"),
    ("dpo", {"beta": "0.5"}, "beta was 0.1 and is 0.5"),
    ("dpo", {"loss_type": "ipo"}, 'loss_type was ["sigmoid"] and is ["ipo"]'),
    ("grpo", {"reward_funcs": "accuracy refine_length"},
     'reward_funcs was ["accuracy"] and is ["accuracy", "refine_length"]'),
    ("grpo", {"reward_weights": "2.0"}, 'reward_funcs was ["accuracy"] and is ["2 accuracy"]'),
    ("grpo", {"temperature": "0.5"}, "temperature was 1.0 and is 0.5"),
    ("grpo", {"beta": "0.04"}, "beta was 0.0 and is 0.04"),
    ("grpo", {"num_generations": "4"}, "num_generations was 2 and is 4"),
    ("grpo", {"prompt_template": "{problem}!"}, "prompt_template was {problem} and is {problem}!"),
    ("grpo", {"forced_answer": "</think>So:"}, "forced_answer was null and is </think>So:"),
    ("grpo", {"learning_rate": "0.1", "seed": "7"},
     "learning_rate was 0.01 and is 0.1; seed was 42 and is 7. Give the old values"),
]  # fmt: skip


@pytest.mark.parametrize("where", ["complete", "interrupted", "by hand"])
def test_a_change_that_changes_results_is_one_line_and_writes_nothing(workplace, complete, where):
    """Also where the run is complete, and where the checkpoint is named on the command line."""
    before = {program: contents(folder) for program, folder in complete.items()}
    for program, changes, message in REFUSED:
        folder = complete[program]
        by_hand = {"resume_from_checkpoint": folder / "checkpoint-2"} if where == "by hand" else {}
        if where == "interrupted":
            (folder / "train_results.json").rename(workplace / "train_results.json")
        line = refusal(program, workplace, output_dir=folder, **changes, **by_hand)
        if where == "interrupted":
            (workplace / "train_results.json").rename(folder / "train_results.json")
        assert message in line and "another output_dir" in line, line
    assert before == {program: contents(folder) for program, folder in complete.items()}


def test_another_program_is_refused(workplace, complete):
    line = refusal("dpo", workplace, output_dir=complete["sft"])
    assert "the program was rea_rl.sft and is rea_rl.dpo" in line


@pytest.mark.parametrize("program", PROGRAMS)
def test_rows_and_models_are_known_by_what_is_in_them(workplace, complete, program, tmp_path):
    """A file of the same name with one changed row, and another base of the same shapes; but not
    a folder that was moved."""
    name = "problems.json" if program == "grpo" else "rows.json"
    here = shutil.copytree(
        workplace, tmp_path / "here", ignore=shutil.ignore_patterns("complete-*")
    )
    command = {"output_dir": complete[program]}
    before = contents(complete[program])
    run(program, here, **command)  # complete: all is where it was not, and the same
    text = (here / name).read_text()
    (here / name).write_text(
        text.replace('"ab"', '"ax"')
        if program != "grpo"
        else text.replace('"answer": "4"', '"answer": "5"')
    )
    assert f"dataset_name was {workplace / name} and is {here / name}" in refusal(
        program, here, **command
    )
    copy = shutil.copy(workplace / name, tmp_path / "kept.json")
    shutil.copy(here / name, workplace / name)
    assert f"dataset_name was {workplace / name} (" in refusal(program, workplace, **command)
    shutil.copy(copy, workplace / name)
    shutil.copy(copy, here / name)
    run(program, here, **command)

    torch.manual_seed(5)
    weights = load_file(here / "model" / "model.safetensors")
    from safetensors.torch import save_file

    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.1
    save_file(weights, here / "model" / "model.safetensors", {"format": "pt"})
    line = refusal(program, here, **command)
    assert (
        f"model_name_or_path was {workplace / 'model'} (" in line
        and f"and is {here / 'model'} (" in line
    )
    assert contents(complete[program]) == before


# --- What may change ------------------------------------------------------------------------------

ALLOWED = [
    ("sft",
     {"logging_steps": "2", "logging_first_step": "true", "run_name": "x",
      "disable_tqdm": "false"}),
    ("sft", {"save_steps": "2", "save_total_limit": "1", "save_only_model": "true"}),
    ("sft", {"per_device_train_batch_size": "2", "gradient_accumulation_steps": "2"}),
    ("sft",
     {"lora_target_modules": "v_proj q_proj", "torch_threads": "2",
      "gradient_checkpointing": "true"}),
    ("sft",
     {"per_device_eval_batch_size": "3", "dataloader_num_workers": "1", "num_train_epochs": "9"}),
    ("dpo", {"logging_strategy": "epoch", "save_strategy": "epoch"}),
    ("dpo", {"per_device_train_batch_size": "1", "gradient_accumulation_steps": "4"}),
    ("grpo",
     {"policy_server": "http://127.0.0.1:9/v1", "request_timeout": "7", "request_retries": "1",
      "server_deadline": "3"}),
    ("grpo",
     {"verifier_workers": "2", "verifier_timeout": "9", "max_concurrent_requests": "3",
      "ddp_timeout": "1000"}),
    ("grpo",
     {"per_device_train_batch_size": "2", "gradient_accumulation_steps": "2",
      "rows_per_forward": "1"}),
    ("grpo", {"monitor_stop": "all", "monitor_truncated": "0.9"}),
]  # fmt: skip


def test_what_cannot_change_results_may_differ_and_a_complete_run_is_left_alone(
    workplace, complete, capsys
):
    """Exit code 0, one line, and no file is written or changed; no server is asked."""
    before = {program: contents(folder) for program, folder in complete.items()}
    by_hand = [
        (program, {"resume_from_checkpoint": complete[program] / "checkpoint-3"})
        for program in PROGRAMS
    ]
    for program, changes in [*((program, {}) for program in PROGRAMS), *by_hand, *ALLOWED]:
        run(program, workplace, output_dir=complete[program], **changes)
        said = f"the run in {complete[program]} is complete: its 3 steps are trained"
        assert said in capsys.readouterr().err, (program, changes)
    assert before == {program: contents(folder) for program, folder in complete.items()}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_longer_run_continues_where_the_schedule_allows_it(workplace, server, tmp_path, program):
    """Two steps, then four: what four are at once. It logs and saves as the second command says."""
    schedule = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": "1"}
    begin(program, workplace, server, output_dir=tmp_path / "two", max_steps=2, **schedule)
    begin(
        program,
        workplace,
        server,
        output_dir=tmp_path / "two",
        max_steps=4,
        logging_steps=3,
        save_steps=4,
        **schedule,
    )
    history = json.loads((tmp_path / "two/trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]
    assert {path.name for path in (tmp_path / "two").glob("checkpoint-*")} == {
        f"checkpoint-{n}" for n in (1, 2, 4)
    }
    assert json.loads((tmp_path / "two" / RECORD).read_text())["steps"]["max_steps"] == 4
    assert "max_steps was 4 and is 2" in refusal(
        program, workplace, output_dir=tmp_path / "two", max_steps=2, **schedule
    )
    share = {**schedule, "warmup_steps": "0.5"}
    line = refusal(program, workplace, output_dir=tmp_path / "two", max_steps=8, **share)
    assert "max_steps was 4 and is 8, which changes the constant_with_warmup schedule" in line
    if program != "grpo":  # whose answers differ from one asking to the next
        begin(program, workplace, server, output_dir=tmp_path / "four", max_steps=4, **schedule)
        two, four = (
            load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "four")
        )
        assert all(torch.equal(two[name], four[name]) for name in four)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_that_ended_before_its_results_were_written_trains_no_further_step(
    workplace, complete, tmp_path, program, server
):
    """Its last step is in the middle of an epoch. Weights are those of the last checkpoint; no
    speed is made up."""
    folder = shutil.copytree(complete[program], tmp_path / "out")
    for name in ("train_results.json", "adapter_model.safetensors", "trainer_state.json"):
        (folder / name).unlink()
    begin(program, workplace, server, output_dir=folder)
    assert not (folder / "checkpoint-4").exists() and len(logged(folder)) == 3
    last, written = (
        load_file(path / "adapter_model.safetensors") for path in (folder / "checkpoint-3", folder)
    )
    assert all(torch.equal(last[name], written[name]) for name in last)
    results = json.loads((folder / "train_results.json").read_text())
    assert not {"train_loss", "train_runtime", "train_steps_per_second"} & results.keys()


def test_a_checkpoint_of_another_folder_is_continued_under_the_same_rules(
    workplace, complete, server, tmp_path
):
    elsewhere = {
        "output_dir": tmp_path / "new",
        "resume_from_checkpoint": complete["sft"] / "checkpoint-2",
    }
    assert "seed was 42 and is 7" in refusal("sft", workplace, **elsewhere, seed=7)
    assert "seed was 42 and is 7" in refusal(
        "sft", workplace, **elsewhere | {"output_dir": complete["sft"]}, seed=7
    )
    assert not (tmp_path / "new").exists()
    begin("sft", workplace, server, **elsewhere)
    expected, written = (
        load_file(path / "adapter_model.safetensors")
        for path in (complete["sft"], tmp_path / "new")
    )
    assert all(torch.equal(expected[name], written[name]) for name in expected)


def test_the_loss_of_a_training_is_that_of_its_own_steps(workplace, server, tmp_path):
    """Also where the checkpoint that it continued is gone by then."""
    settings = {"output_dir": tmp_path, "lr_scheduler_type": "constant", "save_total_limit": 1}
    begin("sft", workplace, server, max_steps=2, **settings)
    begin("sft", workplace, server, max_steps=4, **settings)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    loss = json.loads((tmp_path / "train_results.json").read_text())["train_loss"]
    assert loss == pytest.approx(sum(logged(tmp_path)[2:]) / 2, rel=1e-3)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_rows_come_in_the_same_order_after_a_resume_in_a_later_epoch(
    workplace, server, tmp_path, strategy
):
    settings = {"train_sampling_strategy": strategy, "lr_scheduler_type": "constant"}
    begin("sft", workplace, server, output_dir=tmp_path / "whole", max_steps=9, **settings)
    begin("sft", workplace, server, output_dir=tmp_path / "parts", max_steps=6, **settings)
    begin("sft", workplace, server, output_dir=tmp_path / "parts", max_steps=9, **settings)
    assert (
        logged(tmp_path / "whole") == logged(tmp_path / "parts")
        and len(logged(tmp_path / "whole")) == 9
    )


# --- Checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gone", "cut off"])
@pytest.mark.parametrize(
    "part", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"]
)
def test_a_checkpoint_without_a_part_is_passed_over_and_alone_refused(
    workplace, complete, server, tmp_path, capsys, part, how
):
    folder = shutil.copytree(complete["sft"], tmp_path / "out")
    (folder / "train_results.json").unlink()
    shutil.rmtree(folder / "checkpoint-3")

    def damage(step):
        file = folder / f"checkpoint-{step}" / part
        file.unlink() if how == "gone" else os.truncate(file, file.stat().st_size // 2)

    damage(2)
    named = "weights" if part.startswith("adapter") else part
    by_hand = {"output_dir": folder, "resume_from_checkpoint": folder / "checkpoint-2"}
    assert f"checkpoint-2 has no whole {named}" in refusal("sft", workplace, **by_hand)
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    begin("sft", workplace, server, output_dir=folder)
    said = capsys.readouterr().err
    assert f"checkpoint-2 has no whole {named}; it is passed over" in said
    assert f"continuing from {folder}/checkpoint-1" in said
    expected, written = (
        load_file(path / "adapter_model.safetensors") for path in (complete["sft"], folder)
    )
    assert all(torch.equal(expected[name], written[name]) for name in expected)

    shutil.rmtree(damaged / "checkpoint-1")
    before = contents(damaged)
    line = refusal("sft", workplace, output_dir=damaged)
    assert f"checkpoint-2 has no whole {named}" in line and "another output_dir" in line
    assert contents(damaged) == before


def test_a_run_that_saves_only_its_model_is_not_continued(workplace, server, tmp_path):
    begin("sft", workplace, server, output_dir=tmp_path, save_only_model="true")
    shutil.rmtree(tmp_path / "checkpoint-3")
    (tmp_path / "train_results.json").unlink()
    line = refusal("sft", workplace, output_dir=tmp_path, save_only_model="true")
    assert (
        "checkpoint-2 has no whole optimizer.pt, no whole scheduler.pt" in line
        and "begin again (save_only_model" in line
    )


def test_a_complete_run_without_a_checkpoint_is_not_made_longer(workplace, server, tmp_path):
    settings = {"output_dir": tmp_path, "save_strategy": "no", "lr_scheduler_type": "constant"}
    begin("sft", workplace, server, **settings)
    before = contents(tmp_path)
    begin("sft", workplace, server, **settings)
    assert "without a checkpoint to continue" in refusal("sft", workplace, **settings, max_steps=4)
    assert contents(tmp_path) == before


def test_a_run_of_an_older_version_is_continued_by_hand_only(
    workplace, complete, server, tmp_path, capsys
):
    folder = shutil.copytree(complete["sft"], tmp_path / "out")
    for record in folder.rglob(RECORD):
        record.unlink()
    line = refusal("sft", workplace, output_dir=folder)
    assert f"has no {RECORD}" in line and f"--resume_from_checkpoint {folder}/checkpoint-3" in line
    (folder / "train_results.json").unlink()
    begin(
        "sft", workplace, server, output_dir=folder, resume_from_checkpoint=folder / "checkpoint-2"
    )
    assert (
        "cannot be compared; it is continued with the settings of this command"
        in capsys.readouterr().err
    )
    assert (folder / RECORD).is_file() and len(logged(folder)) == 3
    shutil.rmtree(tmp_path / "out")
    folder.mkdir()
    (folder / RECORD).write_text("[]")
    (shutil.copytree(complete["sft"] / "checkpoint-1", folder / "checkpoint-1") / RECORD).unlink()
    assert f"{RECORD} is not the record of a run" in refusal("sft", workplace, output_dir=folder)


def test_a_key_that_the_record_does_not_know_had_its_default(complete):
    record = json.loads((complete["sft"] / RECORD).read_text())
    assert "lora_alpha" in record["given"] and "weight_decay" not in record["given"]
    older = record | {"settings": dict(record["settings"])}
    del older["settings"]["weight_decay"]
    check_same(older, record, "out")
    del older["settings"]["lora_alpha"]
    with pytest.raises(ValueError, match="lora_alpha was not there and is 8"):
        check_same(older, record, "out")


def test_keys_that_may_change_are_keys():
    """A key that was renamed would be compared from then on."""
    import dataclasses

    from trl import ModelConfig

    from rea_rl import configs

    parts = (
        configs.DataArguments,
        configs.SFTScriptArguments,
        configs.REARLConfig,
        configs.REARLSFTConfig,
    )
    known = {
        f.name
        for part in (*parts, configs.REARLDPOConfig, ModelConfig)
        for f in dataclasses.fields(part)
    }
    assert {*FREE, *EVALUATION} <= known


# --- Launches -------------------------------------------------------------------------------------

# Launch and ranks of a run of 4 rows a step, of a command, and whether it may go on.
LAUNCHES = [
    (("one process", 1), ("ddp", 2), True),
    (("ddp", 2), ("one process", 1), True),
    (("ddp", 2), ("ddp", 4), True),
    (("zero2", 2), ("zero2", 2), True),
    (("zero2", 2), ("zero2", 1), False),
    (("zero2", 2), ("ddp", 2), False),
    (("ddp", 2), ("zero2", 2), False),
    (("zero2", 2), ("one process", 1), False),
    (("one process", 1), ("zero2", 2), False),
    (("zero2", 2), ("zero3", 2), False),
    (("fsdp", 2), ("ddp", 2), False),
]


@pytest.mark.parametrize(
    ("program", "rows", "exact"), [("grpo", 10, True), ("sft", 16, True), ("sft", 14, False)]
)
def test_launches_that_read_each_others_state_may_follow_each_other(complete, program, rows, exact):
    """On ranks that share out the same rows: of 14 rows, several ranks would fill the last step
    up with others."""
    record = json.loads((complete[program] / RECORD).read_text())

    def launched(kind, ranks):
        batch = {"per_device_train_batch_size": 4 // ranks, "gradient_accumulation_steps": 1}
        return {
            **record,
            "launch": kind,
            "ranks": ranks,
            "batch": batch,
            "rows": {"number": rows, "digest": "x"},
        }

    for before, now, same_state in LAUNCHES:
        if same_state and (exact or before[1] == now[1]):
            check_same(launched(*before), launched(*now), "out")
            continue
        with pytest.raises(ValueError, match="another output_dir") as refused:
            check_same(launched(*before), launched(*now), "out")
        assert ("the number of ranks was" if same_state else "the launch was") in str(refused.value)


# What a loss is a mean over: program, changed settings, rows, and whether a step's rows may be
# dealt otherwise.
LOSSES = [
    ("sft", {}, 14, True),
    ("dpo", {}, 16, True),
    ("dpo", {}, 14, False),  # the last pass of an epoch is smaller
    ("dpo", {"loss_type": ["sigmoid", "sft"]}, 16, False),
    ("grpo", {"loss_type": "dapo"}, 8, True),
    ("grpo", {"loss_type": "bnpo"}, 8, False),
    ("grpo", {"entropy_coef": 0.1}, 8, False),
    ("grpo", {"top_entropy_quantile": 0.2}, 8, False),
    ("sft", {"router_aux_loss_coef": 0.01}, 16, False),
]


def test_the_numbers_of_the_launch_are_compared_and_their_state_is_looked_for(
    complete, workplace, monkeypatch
):
    """accelerate's launcher says a type by a variable, where the recipe does not."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    line = refusal("sft", workplace, output_dir=complete["sft"])
    assert "mixed_precision was no and is bf16" in line
    checkpoint = complete["sft"] / "checkpoint-2"
    record = json.loads((complete["sft"] / RECORD).read_text())
    half = {"mixed_precision": "fp16", "use_cpu": False}
    scaled = record | {"settings": record["settings"] | half}
    assert missing_parts(checkpoint, record) == []
    assert missing_parts(checkpoint, scaled) == ["scaler.pt"]


def test_rows_of_a_step_may_be_dealt_otherwise_where_the_loss_does_not_notice(complete):
    for program, settings, rows, allowed in LOSSES:
        record = json.loads((complete[program] / RECORD).read_text())
        record |= {
            "settings": record["settings"] | settings,
            "rows": {"number": rows, "digest": "x"},
        }
        other = record | {
            "batch": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        }
        if allowed:
            check_same(record, other, "out")
            continue
        with pytest.raises(ValueError, match="per_device_train_batch_size was 4 and is 2"):
            check_same(record, other, "out")


@pytest.mark.slow
def test_two_processes_hand_over_to_one(run_ranks, workplace, server, tmp_path):
    """DDP for two steps, one process for two more: the weights of one process up to rounding."""
    settings = {"lr_scheduler_type": "constant"}
    half = arguments(
        "sft",
        workplace,
        output_dir=tmp_path / "moved",
        max_steps=2,
        per_device_train_batch_size=2,
        **settings,
    )
    done = run_ranks("run_program.py", "sft", *half)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rea_rl.run.training: this run") == 1 and "ddp, 2 ranks" in done.stderr
    begin("sft", workplace, server, output_dir=tmp_path / "moved", max_steps=4, **settings)
    begin("sft", workplace, server, output_dir=tmp_path / "one", max_steps=4, **settings)
    moved, one = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("moved", "one")
    )
    for name in one:
        torch.testing.assert_close(moved[name], one[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_a_run_of_zero2_is_continued_by_zero2_only(run_ranks, workplace, tmp_path):
    flags = {"output_dir": tmp_path / "out", "lr_scheduler_type": "constant"}
    half = arguments("sft", workplace, per_device_train_batch_size=2, max_steps=2, **flags)
    done = run_ranks("run_program.py", "sft", *half, config="zero2")
    assert done.returncode == 0, done.stderr
    before = contents(tmp_path / "out")
    line = refusal("sft", workplace, max_steps=4, **flags)
    assert "the launch was zero2 on 2 ranks and is one process" in line
    assert contents(tmp_path / "out") == before
    checkpoint = tmp_path / "out" / "checkpoint-2"
    record = record_of(checkpoint)
    assert missing_parts(checkpoint, record) == []
    adaptive = record | {"settings": {"use_adaptive_entropy": True}}
    assert missing_parts(checkpoint, adaptive) == ["state of use_adaptive_entropy"]
    next(checkpoint.glob("global_step*/*optim_states.pt")).unlink()
    assert missing_parts(checkpoint, record) == ["global_step*/*optim_states.pt of 2 ranks"]


@pytest.mark.slow
def test_ranks_that_do_not_share_output_dir_are_told_so(
    fast_python, workplace, complete, free_port, tmp_path
):
    """As on two hosts: each rank has an `out` of its own, and only the first one's has a
    checkpoint."""
    folders = [tmp_path / f"host{rank}" for rank in range(2)]
    for folder in folders:
        folder.mkdir()
    shutil.copytree(complete["sft"] / "checkpoint-2", folders[0] / "out" / "checkpoint-2")
    flags = arguments("sft", workplace, output_dir="out", per_device_train_batch_size=2)
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "ACCELERATE_USE_CPU": "true",
    }
    ranks = [
        subprocess.Popen(
            [fast_python, "-m", "rea_rl.sft", *flags], cwd=folder, stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": str(rank),
                 "LOCAL_RANK": str(rank)},
        )
        for rank, folder in enumerate(folders)
    ]  # fmt: skip
    said = [rank.communicate(timeout=180)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], said
    assert (
        "rank 1 on" in said[0].splitlines()[-1]
        and "give a folder that all ranks share" in said[0].splitlines()[-1]
    )
    assert not [line for line in said[1].splitlines() if line.startswith("error: ")]
    assert [path.name for path in (folders[0] / "out").iterdir()] == ["checkpoint-2"]


# --- The start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_log_says_what_is_about_to_be_trained(workplace, server, tmp_path, capsys, program):
    begin(program, workplace, server, output_dir=tmp_path, max_steps=1)
    _, block = capsys.readouterr().err.split("rea_rl.run.training: this run\n")
    block = "".join(
        itertools.takewhile(lambda line: line.startswith("  "), block.splitlines(keepends=True))
    )
    lines = dict(
        line.strip().split(None, 1)
        for line in block.replace("a step", "a_step")
        .replace("resumed from", "resumed")
        .splitlines()
    )
    assert len(block.splitlines()) <= 14
    assert (
        lines["model"].startswith(f"{workplace / 'model'} (")
        and "Qwen2ForCausalLM, float32" in lines["model"]
    )
    assert "LoRA r 4, alpha 8 on 4 modules (q_proj 2, v_proj 2)" in lines["trained"] and lines[
        "trained"
    ].startswith("448 of 13,584")
    assert lines["resumed"] == "nothing: a new run" and lines["output_dir"] == str(tmp_path)
    assert (
        "padded" in lines["data"]
        and "cudnn" in lines["attention"]
        and lines["launch"] == "one process, 1 rank, cpu"
    )
    if program == "grpo":
        assert (
            lines["a_step"] == "2 prompts x (2 responses) x 1 rank = 4 rows"
            and lines["rewards"] == "accuracy"
        )
        assert lines["data"] == "8 problems; responses are padded: packing is none"
        assert lines["policy"] == f"server     {server.url}, vLLM 0.0.1"
    else:
        assert lines["a_step"] == "4 rows x 1 accumulated x 1 rank = 4 rows"


@pytest.mark.parametrize(
    ("config", "expected"),
    [({}, "packed: shared"), ({"attention_dropout": 0.1}, "padded: it drops out attention")],
)
def test_the_log_says_whether_paths_are_packed_and_why_not(
    workplace, server, tmp_path, capsys, config, expected
):
    model = shutil.copytree(workplace / "model", tmp_path / "model")
    (model / "config.json").write_text(
        json.dumps(json.loads((model / "config.json").read_text()) | config)
    )
    server.models.append(str(model))
    flags = {
        "output_dir": tmp_path / "out",
        "model_name_or_path": model,
        "packing": "shared_prefix",
        "max_steps": 1,
    }
    begin("grpo", workplace, server, **flags)
    assert f"8 problems; responses are {expected}" in capsys.readouterr().err
