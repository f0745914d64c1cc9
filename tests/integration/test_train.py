"""Training on real vLLM servers: two steps on the miniature, a resumed run, and two processes."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import torch
import xxhash
import yaml
from safetensors.torch import load_file

from rea_rl.grpo import build_engine, build_trainer, load_inputs, parse_recipe, train

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STEPS = 2
CHANGES = {
    "max_steps": STEPS,
    "prompts_per_step": 2,
    "rows_per_forward": 4,
    "max_eval_problems": 4,
    "eval_strategy": "no",
    "save_steps": 1,
    "save_total_limit": None,
    "warmup_steps": 0,
    "learning_rate": 1.0e-2,
    "lr_scheduler_type": "constant",  # so that a second start may ask for more steps
    "tokens_per_reflection_file": None,
    "tokens_per_reflection": 60.0,
    "max_completion_length": 384,
    "max_rollout_lag": 0,
    "always_cut": True,  # the untrained reflection model sees no results
}


@pytest.fixture(scope="module")
def recipe(policy_server, reflection_server, tmp_path_factory):
    """The miniature's own recipe, smaller, for the servers of this session."""
    recipe = (
        yaml.safe_load((ROOT / "recipes" / "miniature" / "config_ReflectRL.yaml").read_text())
        | CHANGES
    )
    recipe["model_name_or_path"], recipe["policy_server"] = (
        policy_server.config.model,
        policy_server.base_url,
    )
    recipe["reflection_model"] = reflection_server.config.model
    recipe["reflection_server"] = reflection_server.base_url
    for key in ("dataset_name", "eval_dataset_name"):
        recipe[key] = str(ROOT / recipe[key])
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """A finished run of two steps in this process, with the ids of each micro-batch that was
    trained."""
    output = tmp_path_factory.mktemp("run")
    data, args, model_args = parse_recipe(["--config", str(recipe), "--output_dir", str(output)])
    inputs = load_inputs(data, args, model_args)
    trained, told = [], []
    (log := logging.getLogger("rea_rl.rollout.probe")).addHandler(handler := logging.Handler())
    log.setLevel(logging.DEBUG)
    handler.emit = lambda record: told.append(record.getMessage())
    with build_engine(args, model_args.model_name_or_path, inputs) as engine:
        trainer = build_trainer(args, model_args, inputs, engine)
        compute_loss = trainer._compute_loss

        def recording(model, batch):
            masks = batch["prompt_mask"].bool(), batch["completion_mask"].bool()
            for i, (prompt, completion) in enumerate(
                zip(batch["prompt_ids"], batch["completion_ids"], strict=True)
            ):
                trained.append((prompt[masks[0][i]].tolist(), completion[masks[1][i]].tolist()))
            return compute_loss(model, batch)

        trainer._compute_loss = recording
        train(trainer)
    return SimpleNamespace(
        output=output, trained=trained, log=trainer.state.log_history, inputs=inputs, told=told
    )


def records(output, name):
    return [
        json.loads(line)
        for line in (Path(output) / "rollouts" / f"{name}.jsonl").read_text().splitlines()
    ]


def problems(output, step):
    return [row["problem_id"] for row in records(output, f"step-{step}")]


@pytest.fixture(scope="module")
def command_line(fast_python):
    """Function that runs a command; how it ended."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return lambda *command: subprocess.run(
        [fast_python, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_every_weight_of_the_adapter_changes(run):
    first, second = (
        load_file(run.output / f"checkpoint-{n}" / "adapter_model.safetensors") for n in (1, 2)
    )
    assert len(first) == 4 * 7 * 2  # layers x linear layers x (A, B)
    assert all(not torch.equal(first[name], second[name]) for name in first)
    assert all(weights.any() for name, weights in second.items() if "lora_B" in name)


def test_rollouts_on_disk_are_what_was_trained(run):
    written = []
    for step in range(STEPS):
        rows = records(run.output, f"step-{step}")
        assert [row["kind"] for row in rows[::2]] == ["original"] * 8
        assert {row["step"] for row in rows} == {step}
        assert {row["policy_version"].rsplit("-", 2)[0] for row in rows} == {f"policy-{step}"}
        written += [row if row["kept"] else rows[i - 1] for i, row in enumerate(rows)]
    assert sorted((row["prompt_ids"], row["completion_ids"]) for row in written) == sorted(
        run.trained
    )


def test_revisions_share_the_sampled_ids_up_to_the_forced_text(run):
    tokenizer = run.inputs.tokenizer
    revisions = label_tokens = 0
    for step in range(STEPS):
        rows = records(run.output, f"step-{step}")
        for original, revision in zip(rows[::2], rows[1::2], strict=True):
            kept = revision["num_kept_tokens"]
            assert original["problem_id"] == revision["problem_id"]
            assert len(revision["logprobs"]) == len(revision["completion_ids"])
            if revision["kind"] == "original":
                continue
            revisions += 1
            assert revision["completion_ids"][:kept] == original["completion_ids"][:kept]
            assert revision["logprobs"][:kept] == original["logprobs"][:kept]
            forced = [i for i, logprob in enumerate(revision["logprobs"]) if logprob is None]
            assert forced == list(range(kept, kept + len(forced)))
            text = tokenizer.decode([revision["completion_ids"][i] for i in forced])
            assert text.lstrip("\n") == "</think>\n\n**Final Answer:**\n\n"
            # the untrained model may not write one label that can be read
            label_tokens += revision["num_label_tokens"]
    assert revisions > 0 and label_tokens > 0


def test_the_servers_outputs_change_with_the_adapter(run, policy_server):
    """The version that is served now is the trained one, and it gives the trained model's
    log-probs."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    client = openai.OpenAI(base_url=policy_server.base_url, api_key="EMPTY")
    (version,) = [folder.name for folder in (run.output / "adapters").iterdir()]
    assert version.startswith(f"policy-{STEPS}-") and version in {
        model.id for model in client.models.list()
    }
    row = records(run.output, "step-0")[0]
    ids = row["prompt_ids"] + row["completion_ids"]

    def served(model):
        # The last log-probs are those of the prompt's tokens; the one generated token is cut off.
        choice = client.completions.create(
            model=model, prompt=ids, max_tokens=1, temperature=1.0, logprobs=0, echo=True
        ).choices[0]
        return torch.tensor(choice.logprobs.token_logprobs[len(row["prompt_ids"]) : len(ids)])

    model = AutoModelForCausalLM.from_pretrained(policy_server.config.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, run.output)
    with torch.no_grad():
        logps = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    expected = logps.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)[
        len(row["prompt_ids"]) - 1 :
    ]
    base, trained = served(policy_server.config.model), served(version)
    assert (base - trained).abs().max() > 0.05
    assert (trained - expected).abs().mean() < 0.02 < (base - expected).abs().max()


def test_the_adapters_effect_is_seen_on_the_server(run):
    """At the first version that is trained: the one before the first step has none."""
    line = run.told[-1]
    slope = float(re.search(r"effect on the policy server: (\S+) of the trainer's", line)[1])
    assert slope == pytest.approx(1, abs=0.1)


def test_metrics_are_finite_and_say_that_it_is_on_policy(run):
    steps = [entry for entry in run.log if "loss" in entry]
    assert len(steps) == STEPS
    for entry in steps:
        assert all(math.isfinite(value) for value in entry.values())
        # Server (bf16) and trainer compute the same policy: the corrections are small.
        assert entry["sampling/logp_difference"] < 0.02
        assert entry["sampling/ratio"] == pytest.approx(1, abs=0.02)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6) and steps[1]["kl"] > 1e-5


def test_results_are_saved(run):
    names = {"adapter_model.safetensors", "tokenizer.json", "README.md", "trainer_state.json"}
    names |= {"train_results.json", "eval_results.json", "rollouts", "adapters"}
    assert names <= {path.name for path in run.output.iterdir()}
    assert "REA-RL" in (run.output / "README.md").read_text()
    assert len(records(run.output, f"eval-{STEPS}")) == 4
    assert "eval_rollout/accuracy" in json.loads((run.output / "eval_results.json").read_text())


def test_a_second_start_resumes_from_the_last_checkpoint(command_line, run, recipe):
    before = (run.output / "rollouts" / "step-1.jsonl").read_bytes()
    finished = command_line(
        "-m",
        "rea_rl.grpo",
        "--config",
        str(recipe),
        "--output_dir",
        str(run.output),
        "--max_steps",
        "3",
    )
    assert finished.returncode == 0, finished.stderr
    assert f"continuing from {run.output}/checkpoint-2" in finished.stderr
    assert (run.output / "rollouts" / "step-1.jsonl").read_bytes() == before
    # Its first samples come from the checkpoint's adapter, not from the base model.
    weights = (run.output / "checkpoint-2" / "adapter_model.safetensors").read_bytes()
    digest = xxhash.xxh3_64_hexdigest(weights)[:8]
    assert {row["policy_version"].rsplit("-", 1)[1] for row in records(run.output, "step-2")} == {
        digest
    }
    assert not set(problems(run.output, 2)) & set(problems(run.output, 0) + problems(run.output, 1))


def test_overlapped_run_trains_the_same_batches_one_policy_later(
    command_line, run, recipe, tmp_path
):
    finished = command_line(
        *("-m", "rea_rl.grpo", "--config", str(recipe), "--output_dir", str(tmp_path)),
        *("--max_rollout_lag", "1", "--max_steps", "3", "--save_strategy", "no"),
    )
    assert finished.returncode == 0, finished.stderr
    for step in range(STEPS):
        assert problems(tmp_path, step) == problems(run.output, step)
    names = [
        {row["policy_version"] for row in records(tmp_path, f"step-{step}")} for step in range(3)
    ]
    assert all(len(versions) == 1 for versions in names)
    assert [versions.pop().split("-")[1] for versions in names] == ["0", "0", "1"]
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    log = [entry for entry in state["log_history"] if "loss" in entry]
    assert [entry["rollout/lag"] for entry in log] == [0, 1, 1]
    assert all(math.isfinite(value) for entry in log for value in entry.values())
    # Finishing requests find the sampled path in the server's prefix cache, but for the block, of
    # 128 ids on a CPU, that is not whole.
    revisions = [
        row
        for step in range(3)
        for row in records(tmp_path, f"step-{step}")
        if row["kind"] == "revision"
    ]
    lost = [
        len(row["prompt_ids"]) + row["num_kept_tokens"] - row["num_cached_tokens"]
        for row in revisions
    ]
    assert lost and max(lost) <= 128 and any(row["num_cached_tokens"] for row in revisions)


def test_two_processes_take_the_batches_of_one(command_line, run, recipe, tmp_path):
    finished = command_line(
        *(
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            "recipes/accelerate_configs/cpu.yaml",
        ),
        *(
            "--num_processes",
            "2",
            "-m",
            "rea_rl.grpo",
            "--config",
            str(recipe),
            "--output_dir",
            str(tmp_path),
        ),
        *("--torch_threads", "1"),
    )
    assert finished.returncode == 0, finished.stderr
    for step in range(STEPS):
        assert problems(tmp_path, step) == problems(run.output, step)
    assert load_file(tmp_path / "adapter_model.safetensors").keys()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--per_device_train_batch_size", "3"], "(3) does not divide"),
        (
            ["--reflection_model", "model/Reflection_Model_of_nobody"],
            "model/Reflection_Model_of_nobody",
        ),
        (["--policy_server", "http://127.0.0.1:9/v1"], "http://127.0.0.1:9/v1"),
        (["--max_completion_length", "5000"], "has a context of 1024 tokens"),
        (["--answer_column", "solution"], "no column 'solution'"),
    ],
)
def test_mistakes_end_with_one_line(command_line, recipe, tmp_path, flags, message):
    finished = command_line(
        "-m", "rea_rl.grpo", "--config", str(recipe), "--output_dir", str(tmp_path), *flags
    )
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith("error: ")
    assert message in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr


def test_server_of_another_model_is_named(
    command_line, recipe, tmp_path, policy_server, reflection_server
):
    finished = command_line(
        *("-m", "rea_rl.grpo", "--config", str(recipe), "--output_dir", str(tmp_path)),
        *("--policy_server", reflection_server.base_url),
    )
    assert finished.returncode == 1
    assert (
        policy_server.config.model in finished.stderr
        and reflection_server.config.model in finished.stderr
    )
