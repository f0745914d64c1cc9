"""Preference optimization on pairs; with the recipe's losses it is RPO, the offline baseline: DPO
plus SFT on the chosen.

    python -m rea_rl.dpo --config recipes/miniature/config_RPO.yaml
    accelerate launch --config_file recipes/accelerate_configs/ddp.yaml \\
        --num_processes 2 -m rea_rl.dpo \\
        --config recipes/DeepSeek-R1-Distill-Qwen-7B/config_RPO.yaml

A row has `prompt`, `chosen` and `rejected`, each a text or a list of chat messages; further formats
are in `rea_rl.run.dialogues`. The reference model is the base
model: the adapter, off. Ids, checkpoints and outputs are as in `rea_rl.sft`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from rea_core.interruption import interruptible
from rea_rl.run.dialogues import split_row
from rea_rl.run.training import parse, run
from rea_rl.sft import Example, assemble, encode_completion, encode_prompt, load_encoded

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import DPOTrainer, ModelConfig

    from rea_rl.configs import REARLDPOConfig, SFTScriptArguments


parse_recipe = partial(parse, "dpo")  # as `rea_rl.sft.parse_recipe`


def encode_pair(pair: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """`prompt_ids` (P,), `chosen_ids` (C,) and `rejected_ids` (R,) of one row; completions end with
    EOS.

    Raises ValueError as `split_row` does.
    """
    pair = split_row(pair, ("chosen", "rejected"))
    return {
        "prompt_ids": encode_prompt(pair, tokenizer),
        "chosen_ids": encode_completion(pair["chosen"], tokenizer),
        "rejected_ids": encode_completion(pair["rejected"], tokenizer),
    }


load_pairs = partial(load_encoded, ("prompt", "chosen", "rejected"), encode_pair)


def trainer_class() -> type[DPOTrainer]:
    """`trl.DPOTrainer` for rows that are ids already: its own encoding would add a second begin of
    sequence.

    Steps with a NaN or infinite loss or gradient are left out.
    """
    from trl import DPOTrainer

    from rea_rl.run.continued import Continued
    from rea_rl.run.numerics import NumberedRows

    class PairTrainer(Continued, NumberedRows, DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

    return PairTrainer


def build_trainer(
    script: SFTScriptArguments, args: REARLDPOConfig, model_args: ModelConfig
) -> DPOTrainer:
    """Trainer of a recipe, see `rea_rl.sft.assemble`. Raises ValueError without an adapter, too."""
    if not model_args.use_peft:
        raise ValueError(
            "use_peft must be true: the reference model is the base model without the adapter"
        )
    return assemble("dpo", trainer_class, load_pairs, (script, args, model_args))


@interruptible
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the recipe or the data."""
    run("dpo", build_trainer, argv)


if __name__ == "__main__":
    main()
