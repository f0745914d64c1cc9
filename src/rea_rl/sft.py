"""Supervised fine-tuning on prompt-completion data, loss on the completion only: reflection model,
SFT baseline.

    python -m rea_rl.sft --config recipes/miniature/config_reflection_model.yaml
    accelerate launch --config_file recipes/accelerate_configs/ddp.yaml \\
        --num_processes 2 -m rea_rl.sft \\
        --config recipes/DeepSeek-R1-Distill-Qwen-7B/config_reflection_model.yaml \\
        --dataset_name FILE

A row has `prompt` and `completion`, each a text or a list of chat messages; further formats are in
`rea_rl.run.dialogues`. It may have `chat_template_kwargs` and a `prefill` of its own, with which
its prompt was sampled. An interrupted run continues from its last checkpoint. The adapter is
written to `output_dir`; `rea_rl.merge_lora` makes a plain model of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generation.reflection_reply import form_of, write_form
from generation.rendering import PromptFormat, encode_continuation, encode_text
from rea_core.checks import is_dialogue
from rea_core.interruption import interruptible
from rea_rl.run.dialogues import split_row
from rea_rl.run.left_out import made_of_rows, named
from rea_rl.run.training import (
    check_buildable,
    check_evaluation,
    check_master_weights,
    load_model,
    parse,
    run,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer
    from trl import ModelConfig, SFTTrainer

    from rea_rl.configs import REARLSFTConfig, SFTScriptArguments

logger = logging.getLogger(__name__)

Example = dict[str, Any]
BEGIN = 16  # tokens in which a reply of the reflection model shows its form


# recipe (`--config FILE`) and overriding flags, or None for those of the command line
parse_recipe = partial(parse, "sft")


def encode_prompt(row: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a row's prompt, text or messages, rendered as for sampling: with its own template
    keywords and begin of the reply, if it has any.

    Raises ValueError for messages that the model's template refuses.
    """
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        keywords, prefill = row.get("chat_template_kwargs"), row.get("prefill")
        form = PromptFormat(chat_template_kwargs=keywords or {}, prefill=prefill or "")
        prompt = form.text(prompt, tokenizer)
    return encode_text(prompt, tokenizer)


def encode_completion(completion: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of what the model is to sample after a prompt: the text as it is, and the end of
    sequence.

    Not a rendered assistant's turn, which in R1's templates lacks the thinking.
    """
    if not isinstance(completion, str):
        completion = completion[-1]["content"]
    return encode_continuation(completion, tokenizer) + [tokenizer.eos_token_id]


def encode_example(example: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """`input_ids` (T,) and `labels` (T,), -100 on the prompt, of one row. Raises ValueError as
    `split_row` does."""
    example = split_row(example, ("completion",))
    prompt_ids = encode_prompt(example, tokenizer)
    completion_ids = encode_completion(example["completion"], tokenizer)
    return {
        "input_ids": prompt_ids + completion_ids,
        "labels": [-100] * len(prompt_ids) + completion_ids,
    }


def read_examples(
    name: str, split: str, columns: tuple[str, ...], config: str | None = None
) -> list[Example]:
    """Rows of a file or Hub dataset with these columns, `prompt` first, whose completions are
    one turn each.

    Raises ValueError naming file and row if it is not clear what is trained.
    """
    from rea_core.rows import read_rows

    return [
        _example(row, columns, f"{name}: row {i}")
        for i, row in enumerate(read_rows(name, split, config))
    ]


def _example(row: Example, columns: tuple[str, ...], place: str) -> Example:
    try:
        row = split_row(row, columns[1:])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if missing := [column for column in columns if not row.get(column)]:
        needed = " and a ".join(map(repr, columns))
        has = f"but has an empty {missing[0]!r}" if missing[0] in row else f"but has {sorted(row)}"
        raise ValueError(f"{place} needs a {needed}, {has}; fill it in, or drop the row")
    if wrong := [
        column
        for column in columns
        if not (isinstance(row[column], str) or is_dialogue(row[column]))
    ]:
        raise ValueError(
            f"{place} has the {wrong[0]!r} {str(row[wrong[0]])[:60]!r}; it must be a text, or a "
            "list of messages with 'role' and 'content'"
        )
    return row


def load_encoded(
    columns: tuple[str, ...],
    encode: Callable[[Example, PreTrainedTokenizerBase], dict[str, list[int]]],
    name: str,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    limit: int | None = None,
    config: str | None = None,
) -> Dataset:
    """Encoded rows of a file or Hub dataset, and their number there as `row`.

    Rows with a sequence of more than `max_length` ids are left out, counted and named in the log:
    the end of a completion must not be missing. So are those that the model's template refuses.
    Raises ValueError as `read_examples` does, and if no row is left.
    """
    from datasets import Dataset

    rows = read_examples(name, split, columns, config)[:limit]
    made = made_of_rows(name, rows, lambda row: encode(row, tokenizer))
    encoded = [example | {"row": i} for i, _, example in made]
    kept = [
        example for example in encoded if max_length is None or num_tokens(example) <= max_length
    ]
    rows_of = [{example["row"] for example in some} for some in (encoded, kept)]
    long = [str(row) for row in sorted(rows_of[0] - rows_of[1])]
    if not kept:
        raise ValueError(
            f"{name}: none of its {len(rows)} rows has at most max_length ({max_length}) tokens; "
            "raise max_length"
        )
    logger.info(
        "%s: %d rows; %d over %s tokens are left out%s",
        *(name, len(kept), len(long), max_length, long and f": rows {named(long)}"),
    )
    return Dataset.from_list(kept)


load_examples = partial(load_encoded, ("prompt", "completion"), encode_example)


def num_tokens(example: dict[str, list[int]]) -> int:
    """Tokens of the longest sequence that is trained from an encoded row."""
    if "input_ids" in example:
        return len(example["input_ids"])
    return len(example["prompt_ids"]) + max(
        len(example["chosen_ids"]), len(example["rejected_ids"])
    )


def trainer_class() -> type[SFTTrainer]:
    """`trl.SFTTrainer` whose runs may be started again, and that leaves out steps whose loss or
    gradient is NaN or infinite."""
    from trl import SFTTrainer

    from rea_rl.run.continued import Continued
    from rea_rl.run.numerics import NumberedRows

    class RowTrainer(Continued, NumberedRows, SFTTrainer):
        pass

    return RowTrainer


def load_data(
    load: Callable[..., Dataset],
    script: SFTScriptArguments,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> tuple[Dataset, Dataset | None]:
    """Rows to train on, and those to evaluate on if the recipe names any, each by `load`."""
    lengths = tokenizer, max_length
    config = script.dataset_config
    rows = load(script.dataset_name, script.dataset_train_split, *lengths, config=config)
    if script.eval_dataset_name is None:
        return rows, None
    place = script.eval_dataset_name, script.dataset_eval_split
    return rows, load(*place, *lengths, script.max_eval_rows, config)


def assemble(
    method: str,
    trainer_class: Callable[[], type[Trainer]],
    load: Callable[..., Dataset],
    parts: tuple[SFTScriptArguments, Any, ModelConfig],
    chat_template: str | None = None,
) -> Trainer:
    """Trainer of a recipe. Everything that can be wrong with it is a ValueError before the model
    loads.

    The run is recorded under the name of its method. `trainer_class` imports the trainer's class
    after all checks; `load` encodes the rows of a file, as `load_examples`.

    Raises RunComplete if the run in output_dir needs nothing more.
    """
    from rea_core.models import load_tokenizer, read_chat_template
    from rea_rl.run.lora import check_lora_keys, lora_config
    from rea_rl.run.resume import plan_run

    script, args, model_args = parts
    check_lora_keys(model_args, served=False)
    check_evaluation(args, script.eval_dataset_name)
    tokenizer = load_tokenizer(
        model_args.model_name_or_path, trust_remote_code=args.trust_remote_code, trained=True
    )
    if chat_template is not None:
        tokenizer.chat_template = read_chat_template(chat_template)
    check_buildable(model_args, args.trust_remote_code)
    check_master_weights(args, model_args)
    train_dataset, eval_dataset = load_data(load, script, tokenizer, args.max_length)
    plan = plan_run(method, parts, train_dataset)
    model = load_model(model_args, args.trust_remote_code, script.torch_threads)
    trainer = trainer_class()(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=lora_config(model, model_args, served=False),
    )
    trainer.plan = plan
    return trainer


def build_trainer(
    script: SFTScriptArguments, args: REARLSFTConfig, model_args: ModelConfig
) -> SFTTrainer:
    """Trainer of a recipe, see `assemble`. If it makes a reflection model, output_dir says which
    form its replies have."""
    parts = script, args, model_args
    trainer = assemble("sft", trainer_class, load_examples, parts, args.chat_template_path)
    if trainer.is_world_process_zero() and (form := trained_form(trainer)) is not None:
        write_form(Path(args.output_dir), form)
    return trainer


def trained_form(trainer: SFTTrainer) -> str | None:
    """Form of the reflection model's replies that all rows train; None for other rows."""
    first: str | None = None
    for row in trainer.train_dataset:
        completion = [i for i in row["labels"] if i != -100][:BEGIN]
        form = form_of(trainer.processing_class.decode(completion).lstrip())
        if form is None or form != (first := first or form):
            return None
    return first


@interruptible
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the recipe or the data."""
    run("sft", build_trainer, argv)


if __name__ == "__main__":
    main()
