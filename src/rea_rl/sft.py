"""Supervised fine-tuning on prompt-completion data, loss on the completion only: reflection model, SFT baseline.

    python -m rea_rl.sft --config recipes/miniature/config_reflection_model.yaml
    accelerate launch --config_file recipes/accelerate_configs/zero2.yaml --num_processes 2 -m rea_rl.sft \\
        --config recipes/DeepSeek-R1-Distill-Qwen-7B/config_reflection_model.yaml --dataset_name FILE

A row has `prompt` and `completion`, each a text or a list of chat messages. An interrupted run continues from its last
checkpoint. The adapter is written to `output_dir`; `rea_rl.merge_lora` makes a plain model of it.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import ModelConfig, SFTConfig, SFTTrainer

    from rea_rl.configs import SFTScriptArguments

logger = logging.getLogger(__name__)

Example = dict[str, Any]


def parse_recipe(argv: list[str] | None = None) -> tuple[SFTScriptArguments, SFTConfig, ModelConfig]:
    """Recipe (`--config FILE`) and overriding flags as dataclasses. Raises ValueError for a key that none has."""
    from trl import ModelConfig, SFTConfig, TrlParser

    from rea_rl.configs import SFTScriptArguments

    return TrlParser((SFTScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config(argv)


def encode_example(example: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """`input_ids` (T,) and `labels` (T,), -100 on the prompt, of one row.

    The prompt is rendered as for sampling. The completion is what the model is to sample after it: its text as it
    stands and the end of sequence, not a rendered assistant's turn, which in R1's templates lacks the thinking.
    """
    prompt, completion = example["prompt"], example["completion"]
    if not isinstance(prompt, str):
        prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    if not isinstance(completion, str):
        completion = completion[0]["content"]
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    completion_ids = tokenizer.encode(completion, add_special_tokens=False) + [tokenizer.eos_token_id]
    return {"input_ids": prompt_ids + completion_ids, "labels": [-100] * len(prompt_ids) + completion_ids}


def load_examples(
    name: str, split: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None, limit: int | None = None
) -> Dataset:
    """Encoded rows of a file or Hub dataset.

    Rows over `max_length` tokens are left out and counted in the log: the end of a completion must not be missing.
    Raises ValueError naming file and row of a malformed one, and if no row is left.
    """
    from datasets import Dataset

    from generation.utils import read_rows

    rows = read_rows(name, split)[:limit]
    for i, row in enumerate(rows):
        if not row.get("prompt") or not row.get("completion"):
            raise ValueError(f"{name}: row {i} needs a 'prompt' and a 'completion', but has {sorted(row)}")
    encoded = [encode_example(row, tokenizer) for row in rows]
    kept = [example for example in encoded if max_length is None or len(example["input_ids"]) <= max_length]
    if not kept:
        raise ValueError(f"{name}: none of its {len(rows)} rows has at most max_length ({max_length}) tokens")
    logger.info("%s: %d rows; %d over %s tokens are left out", name, len(kept), len(rows) - len(kept), max_length)
    return Dataset.from_list(kept)


def build_trainer(script: SFTScriptArguments, args: SFTConfig, model_args: ModelConfig) -> SFTTrainer:
    """Trainer of a recipe. Everything that can be wrong with it is a ValueError before the model loads."""
    from rea_rl.utils import load_tokenizer

    if args.packing:
        raise ValueError("packing is true, but rows are trained one by one: leave it out")
    tokenizer = load_tokenizer(model_args.model_name_or_path)
    train_dataset = load_examples(script.dataset_name, script.dataset_train_split, tokenizer, args.max_length)
    eval_dataset = None
    if script.eval_dataset_name is not None:
        eval_dataset = load_examples(
            script.eval_dataset_name, script.dataset_eval_split, tokenizer, args.max_length, script.max_eval_rows
        )

    import torch
    from transformers import AutoModelForCausalLM
    from trl import SFTTrainer, get_peft_config

    if script.torch_threads is not None:
        torch.set_num_threads(script.torch_threads)
    model = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        trust_remote_code=args.trust_remote_code,
    )
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )


def train(trainer: SFTTrainer) -> None:
    """Train from the last checkpoint or from the start, evaluate, save weights, state and metrics."""
    from rea_rl.utils import last_checkpoint

    args = trainer.args
    checkpoint = args.resume_from_checkpoint or last_checkpoint(args.output_dir)
    if checkpoint:
        logger.info("continuing from %s", checkpoint)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    if trainer.eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    logger.info("weights and metrics are in %s", args.output_dir)


def main(argv: list[str] | None = None) -> None:
    """Exit code 0 after a complete run, 1 with one line on stderr for a mistake in the recipe or the data."""
    from rea_rl.utils import setup_logging

    setup_logging()
    try:
        trainer = build_trainer(*parse_recipe(argv))
    except ValueError as error:
        sys.exit(f"error: {error}")
    train(trainer)


if __name__ == "__main__":
    main()
