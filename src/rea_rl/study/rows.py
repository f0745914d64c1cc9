"""Rows of the study, and their runs."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

SEEDS = 3  # of the rows that the paper's claim is about; one for the others


@dataclass(frozen=True)
class Row:
    """One row of the study: a recipe with changed keys, a script that makes an adapter, or the base
    model.

    In `changes`, {target}, {target_easy}, {target_hard}, {slope} and {buffer} are the recipe set's
    sizes, see `rea_rl.study.recipe_set`. A `script` is run without arguments and leaves the adapter
    in `adapter`, where {recipe_set} is the set's name.
    """

    name: str
    title: str
    variant: str | None = None
    changes: str = ""
    script: str | None = None
    adapter: str | None = None
    num_seeds: int = 1


ROWS = {
    row.name: row
    for row in (
        Row("base", "base", num_seeds=SEEDS),
        Row("grpo", "GRPO", "GRPO", num_seeds=SEEDS),
        Row("grpo_gen8", "GRPO Gen8", "GRPO_Gen8"),
        Row("grpo_len", "GRPO + length", "GRPO_len", num_seeds=SEEDS),
        Row(
            "reward_only", "reflection reward only", "ReflectRL_noReflectionModel", num_seeds=SEEDS
        ),
        Row("model_only", "reflection model only", "ReflectRL_noReflectReward", num_seeds=SEEDS),
        Row("rea_rl", "REA-RL", "ReflectRL", num_seeds=SEEDS),
        Row("revisions_only", "revisions only", "ReflectRL", "--construction revisions_only"),
        Row(
            "sft", "SFT, offline", script="scripts/sft_train.sh", adapter="output/{recipe_set}/SFT"
        ),
        Row(
            "rpo", "RPO, offline", script="scripts/rpo_train.sh", adapter="output/{recipe_set}/RPO"
        ),
        Row(
            "overthinking_mean",
            "REA-RL, mean signal at the cut",
            "ReflectRL",
            "--overthinking_loss mean",
        ),
        Row(
            "overthinking_max",
            "REA-RL, max signal at the cut",
            "ReflectRL",
            "--overthinking_loss max",
        ),
        Row(
            "length_batch",
            "GRPO + batch-wide length",
            "GRPO_len",
            "--reward_funcs accuracy length_batch",
        ),
        Row("sigmoid", "Arora & Zanette", "GRPO", "--reward_funcs sigmoid_length"),
        Row("laser", "LASER", "GRPO", "--reward_funcs accuracy laser --target_lengths {target}"),
        Row(
            "laser_d",
            "LASER-D, fixed targets",
            "GRPO",
            "--reward_funcs accuracy laser --target_lengths {target_easy} {target} {target_hard}",
        ),
        Row(
            "l1_max",
            "L1-Max",
            "GRPO",
            "--reward_funcs l1_max --target_lengths {target} --l1_alpha {slope}",
        ),
        Row(
            "dler",
            "DLER",
            "GRPO",
            "--reward_funcs truncated_accuracy --target_lengths {target} --scale_rewards batch "
            "--dynamic_sampling true",
        ),
        Row(
            "overlong",
            "DAPO's overlong punishment",
            "GRPO",
            "--reward_funcs accuracy overlong --overlong_buffer {buffer}",
        ),
        Row("serial", "S-GRPO", "ReflectRL", "--construction serial --reward_funcs serial_decay"),
        Row(
            "density",
            "density alone (adversary)",
            "ReflectRL_noReflectionModel",
            "--reward_funcs density",
        ),
    )
}


@dataclass(frozen=True)
class Run:
    """One row with one seed."""

    row: Row
    seed: int
    directory: Path
    adapter: Path  # the directory, unless a script makes the adapter elsewhere

    @property
    def trained(self) -> bool:
        """Whether the adapter is there and final."""
        return self.row.name == "base" or (self.directory / "trained.json").is_file()

    @property
    def evaluated(self) -> bool:
        return self.scores is not None

    @property
    def generations(self) -> Path | None:
        """Generation file of the finished evaluation."""
        scores = self.scores
        return scores.with_name(scores.name.replace(".scores.json", ".json")) if scores else None

    @property
    def scores(self) -> Path | None:
        return next((self.directory / "eval").glob("*/*.scores.json"), None)


def make_run(row: Row, seed: int, args: Namespace) -> Run:
    """The row with one seed, and the place of its results."""
    directory = args.work / row.name / f"seed-{seed}"
    return Run(
        row,
        seed,
        directory,
        Path(row.adapter.format(recipe_set=args.recipe_set)) if row.adapter else directory,
    )
