"""Trainers of tests: a model of a few thousand parameters, and recorded responses."""

from __future__ import annotations

import copy
import json

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import make_tokenizer
from transformers import AutoModelForCausalLM

from rea_rl.configs import REARLConfig
from rea_rl.rea_rl_trainer import REARLTrainer
from rea_rl.rewards import get_reward_funcs
from rea_rl.rollout.record import Rollout

TOKENIZER = make_tokenizer()
REWARDS = ["accuracy", "refine_length"]


class RecordedPaths:
    """Engine with paths from a script: `correct[i]` for the i-th row of a batch, `lengths[i]`
    its tokens."""

    counts = {"verifier/pairs": 0}

    def __init__(self, correct=(True, True, False, True), lengths=(40, 12, 30, 9)):
        self.correct, self.lengths, self.batches = correct, lengths, []

    def run(self, rows, batch):
        self.batches.append((batch, [row["problem_id"] for row in rows]))
        places = len(rows) * (2 if batch.revision else 1)
        return [self.path(rows[i // 2 if batch.revision else i], batch, i) for i in range(places)]

    def path(self, row, batch, i):
        generator = torch.Generator().manual_seed(i)
        length = self.lengths[i % len(self.lengths)]
        ids = torch.randint(97, 122, (length - 1,), generator=generator).tolist() + [
            TOKENIZER.eos_token_id
        ]
        is_revision = batch.revision and i % 2 == 1
        logprobs = (-7.0 + 2 * torch.rand(length, generator=generator)).tolist()
        if is_revision:
            logprobs[2:5] = [None] * 3
        return Rollout(
            row["problem_id"], batch.step, batch.policy_version,
            "revision" if is_revision else "original",
            TOKENIZER.encode(row["prompt"]), ids, logprobs, "", "stop", length, length - 3, 1,
            correct=self.correct[i % len(self.correct)], num_paragraphs=3, cut=1,
            p_result=[0.1, 0.9, 0.9],
            num_kept_tokens=2, seconds={"sample": 0.5},
        )  # fmt: skip


class NamedVersions:
    """Weight sync that only counts."""

    def __init__(self):
        self.steps, self.in_use, self.counts = [], [], {}

    def publish(self, model, step, in_use):
        self.steps.append(step)
        self.in_use.append(in_use)
        return f"policy-{step}"


def make_rows(n=8):
    return [
        {"prompt": f"<U>{'x' * i}<A>", "problem": "", "problem_id": f"p{i}", "answer": "4"}
        for i in range(n)
    ]


def make_trainer(
    folder, output_dir, engine=None, cls=REARLTrainer, rewards=tuple(REWARDS), lora_dropout=0.0,
    targets=("q_proj", "v_proj"), **changes,
):  # fmt: skip
    keys = {
        "use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 2,
        "num_generations": 2,
        "gradient_checkpointing": False, "max_steps": 2, "logging_steps": 1, "save_strategy": "no",
        "beta": 0.04,
        "learning_rate": 1e-2, "reflection_model": "x", "reward_funcs": list(rewards),
        "disable_tqdm": True, "seed": 3,
        "vllm_importance_sampling_clip_max": 2.0, "tokens_per_reflection": 9.0,
        "max_rollout_lag": 0,
    }  # fmt: skip
    args = REARLConfig(output_dir=str(output_dir), **{**keys, **changes})
    before = copy.deepcopy(args.to_dict())
    extra = (
        {"engine": engine or RecordedPaths(), "weight_sync": NamedVersions()}
        if cls is REARLTrainer
        else {}
    )
    torch.manual_seed(1)
    trainer = cls(
        args=args,
        model=AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=get_reward_funcs(list(rewards), 9.0),
        train_dataset=Dataset.from_list(make_rows()),
        eval_dataset=Dataset.from_list(make_rows(3)),
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(
            r=4, lora_dropout=lora_dropout, target_modules=list(targets), task_type="CAUSAL_LM"
        )
        if targets
        else None,
        **extra,
    )
    assert trainer.args.to_dict() == before  # the recipe is what a checkpoint stores
    return trainer


def records(output_dir, name):
    return [
        json.loads(line)
        for line in (output_dir / "rollouts" / f"{name}.jsonl").read_text().splitlines()
    ]


def adapter(trainer):
    return {
        name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad
    }


class RelatedPaths(RecordedPaths):
    """Revisions share the first half of their original, as in a rollout."""

    def path(self, row, batch, i):
        path = super().path(row, batch, i)
        if path.kind == "revision":
            original = super().path(row, batch, i - 1)
            kept = len(original.completion_ids) // 2
            path.completion_ids = original.completion_ids[:kept] + path.completion_ids[:5]
            path.logprobs = (
                [-7.0] * kept + [None] * 2 + [-6.5] * (len(path.completion_ids) - kept - 2)
            )
        return path
