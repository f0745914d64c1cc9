"""REA-RL on TRL's GRPO trainer. Differences from plain GRPO:

1. Responses come from a vLLM server through `RolloutEngine`, one set per optimizer step, also after
   a resume. The adapter is hot-swapped there in each step (without one, all weights are sent). With
   `max_rollout_lag` the responses of the next step are made meanwhile (lookahead.py).
2. Every sampled response is cut after its result and finished by the policy. Original and
   revision are two rows of one group, which has 2G rows; they alternate and stay on one rank. The
   sampler still deals G rows per prompt.
3. A revision with a wrong answer is replaced by its original. A group without a right answer has
   advantage 0, and so has one with a response that the server refused; that one is not trained.
4. The correction for the server's log-probs (truncated importance sampling per token) uses the
   log-probs of the loss's own forward pass. With one inner iteration these are the old policy's, so
   TRL's extra pass for them is not needed.
5. Rows are forwarded sorted by length without padding; the token-mean loss is unchanged.
6. Evaluation samples without revision and reports accuracy and length; it computes no loss. The
   best checkpoint stays.
7. Every response of the run is recorded under `<output_dir>/rollouts/`.
8. With `packing: shared_prefix` shared prefixes of responses are forwarded once, without padding
   (`packing.step`).

Loss, KL to the base model (adapter off), clipping, optimizer, checkpoints and logging are TRL's and
transformers'.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Sampler

from generation.cuts import think_end_finder
from generation.markers import Markers
from rea_core.row_files import Row
from rea_core.rows import write_atomically
from rea_rl.configs import REARLConfig
from rea_rl.packing.logprobs import (
    Output,
    leave_load_balancing,
    padded_logps,
    sampling_metrics,
    takes_one_pass,
)
from rea_rl.packing.prefix_tree import without_adapter
from rea_rl.packing.step import PackedStep, relatives_together, why_not_packed
from rea_rl.revision import differing_groups, group_advantages, pair_signals, token_advantages
from rea_rl.rewards import reward_columns
from rea_rl.rollout.endpoint import failing_together
from rea_rl.rollout.engine import RolloutEngine
from rea_rl.rollout.lookahead import Lookahead, epoch_sampler, upcoming_rows
from rea_rl.rollout.record import (
    Batch,
    Metrics,
    Rollout,
    detector_metrics,
    longest_metrics,
    record_line,
    rollout_metrics,
    trained_rows,
)
from rea_rl.rollout.weight_sync import AdapterSync, FullSync
from rea_rl.run.continued import Continued
from rea_rl.run.counts import Counters, collect
from rea_rl.run.monitors import Monitored
from rea_rl.run.numerics import FiniteSteps
from rea_rl.run.step_clock import StepClock
from rea_rl.trl_trainer import GRPOTrainer

logger = logging.getLogger(__name__)


@dataclass
class StepInWork:
    """Batch of an optimizer step on its way through TRL's hooks; each hook fills in its part.

    Attributes:
        rows: one per sampled response of this rank.
        rollouts: their records, originals and revisions.
        trained: the record that is trained in each place of the batch.
        rewards: (B, F) of all ranks.
        loss_inputs: micro-batch whose loss is being computed, tensors (b, ...).
    """

    rows: list[Row]
    rollouts: list[Rollout] = field(default_factory=list)
    trained: list[Rollout] = field(default_factory=list)
    rewards: Tensor | None = None
    loss_inputs: dict[str, Tensor] | None = None


def gathered_on_first(rows: list[Any]) -> list[Any] | None:
    """Rows of all ranks, in their order, on the first rank; None on the others."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return rows
    everyone = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(rows, everyone)
    return everyone and [row for part in everyone for row in part]


class REARLTrainer(Monitored, Continued, FiniteSteps, GRPOTrainer):
    """GRPO with online revision.

    Args:
        engine: makes the responses of a batch.
        weight_sync: brings the policy to its server and says under which name it is served.
        args: recipe; never changed.
        **kwargs: those of `trl.GRPOTrainer`: `model`, `reward_funcs`, `train_dataset`,
            `eval_dataset`, `processing_class`, `peft_config`, `callbacks`. Datasets have the
            columns `prompt` (rendered text), `problem`, `problem_id` and `answer`.
    """

    _tag_names = ["trl", "grpo", "rea-rl"]
    _name = "REA-RL"
    _paper = {
        "title": "REA-RL: Reflection-Aware Online Reinforcement Learning for Efficient Reasoning",
        "id": "2505.19862",
    }
    args: REARLConfig
    padded_because: str | None = None  # why rows are padded though the recipe packs them

    def __init__(
        self,
        *,
        engine: RolloutEngine,
        weight_sync: AdapterSync | FullSync,
        args: REARLConfig,
        **kwargs: Any,
    ):
        super().__init__(args=args, **kwargs)
        self.engine = engine
        self.weight_sync = weight_sync
        self.num_generations = args.num_generations * args.rows_per_path  # rows of a group
        self.rollout_func = self._rollout_columns
        self.lookahead = Lookahead(engine, upcoming_rows(self), args.max_rollout_lag)
        self._policy_version = ""
        self._synced_step = -1
        self._clock = StepClock()
        self._counters = Counters()
        self._work: StepInWork
        leave_load_balancing(self)
        self.packed_step = self._make_packed_step() if args.packing != "none" else None
        self._one_pass = self.packed_step is None and takes_one_pass(args)

    def _make_packed_step(self) -> PackedStep | None:
        self.padded_because = why_not_packed(self)
        if self.padded_because is None:
            model = without_adapter(self.accelerator.unwrap_model(self.model))
            return PackedStep(model, self.accelerator, self.args)
        logger.warning(
            "packing: shared_prefix is not possible with this model, because %s; rows are padded",
            self.padded_because,
        )
        return None

    def _send_telemetry(self) -> None:
        """TRL's telemetry is off."""

    # --- Batch: rows -> responses -> rewards -> advantages ----------------------------------------

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        """One row per sampled response: G rows of a prompt follow each other, on one rank."""
        return epoch_sampler(self, lambda: int(self.state.epoch or 0), dataset)

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Tensor]:
        """Sampled rows of one rank -> padded tensors of its trained rows, with advantages (B,)."""
        self._work = work = StepInWork(inputs)
        output = super()._generate_and_score_completions(
            [dict(row) for row in inputs for _ in range(self.args.rows_per_path)]
        )
        rewards = work.rewards * self.reward_weights.to(work.rewards.device)  # (B, F) of all ranks
        correct = gather_object([rollout.correct for rollout in work.trained])
        advantages = group_advantages(
            rewards,
            torch.tensor(correct, device=rewards.device),
            self.num_generations,
            scale={"none": False, "batch": "batch"}.get(self.scale_rewards, True),
        )
        there = torch.tensor(gather_object([not r.is_missing for r in work.trained]))  # (B,)
        if not there.all():
            there = there.to(advantages.device)
            whole = there.view(-1, self.num_generations).all(dim=1)  # (N,)
            advantages *= whole.repeat_interleave(self.num_generations)
            self._leave_out(output, self._of_this_rank(there))
        no_signal = (advantages.view(-1, self.num_generations) == 0).all(dim=1)  # (N,)
        self._metrics["train"]["groups/no_signal"].append(no_signal.float().mean().item())
        output["advantages"] = self._of_this_rank(advantages)
        self._note_training(self._of_this_rank(work.rewards), output["advantages"])
        self._apply_switches(output, rewards)
        return output

    def _of_this_rank(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) of all ranks -> those of this one."""
        return rows.chunk(self.accelerator.num_processes)[self.accelerator.process_index]

    def _apply_switches(self, output: dict[str, Tensor], rewards: Tensor) -> None:
        """Recipe's `overthinking_loss` makes advantages (B, C); `dynamic_sampling` masks groups
        with equal `rewards`, (B, F) of all ranks."""
        if self.args.overthinking_loss != "none":
            paths = [(rollout.completion_ids, rollout.correct) for rollout in self._work.trained]
            markers = Markers.of(vars(self.args), self.processing_class)
            signals = pair_signals(paths, think_end_finder(self.processing_class, markers))
            shape = self.num_generations, output["completion_ids"].size(1)
            output["advantages"] = token_advantages(
                output["advantages"], signals, *shape, self.args.overthinking_loss
            )
        if self.args.dynamic_sampling:
            differs = differing_groups(rewards, self.num_generations)
            self._leave_out(output, self._of_this_rank(differs))

    def _leave_out(self, output: dict[str, Tensor], kept: Tensor) -> None:
        """Train no token of the rows (b,) that are not kept. All ranks do it together."""
        output["completion_mask"] *= kept.unsqueeze(1)
        num_tokens = self.accelerator.gather(output["completion_mask"].sum())
        output["num_items_in_batch"] = num_tokens.sum().clamp(min=1)  # which is divided by

    def _rollout_columns(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list]:
        """TRL's rollout function. `prompts` repeats what the rows in work say with answers."""
        step, work = self.state.global_step, self._work
        metrics = self._clock.begin()
        batch = Batch(step, self._publish(), self.args.revision)
        self._clock.mark("weight_sync")
        self.lookahead.start(work.rows, batch, self.state.max_steps)
        with failing_together():
            work.rollouts, of_batch = self.lookahead.take(step, work.rows)
        of_batch |= longest_metrics(work.rollouts, of_batch["timing/rollout"])
        self._clock.mark("rollout_wait")
        collect(self._metrics["train"], metrics | of_batch)
        work.trained = work.rollouts
        if self.args.revision:
            work.trained = trained_rows(work.rollouts, self.args.construction)
        columns = ("prompt_ids", "completion_ids", "logprobs", *reward_columns())
        return {column: [getattr(each, column) for each in work.trained] for column in columns}

    def _calculate_rewards(self, *args: Any) -> Tensor:
        self._work.rewards = super()._calculate_rewards(*args)
        return self._work.rewards

    def _publish(self) -> str:
        """Bring the policy to the server, once per optimizer step; name of its version."""
        if self._synced_step != self.state.global_step:
            start = time.perf_counter()
            self._policy_version = self.weight_sync.publish(
                self.model, self.state.global_step, self.lookahead.versions
            )
            self._synced_step = self.state.global_step
            metrics = self._metrics["train" if self.model.training else "eval"]
            metrics["timing/weight_sync"].append(time.perf_counter() - start)
        return self._policy_version

    # --- Loss -------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.packed_step is not None and self._buffered_inputs is not before:
            self._buffered_inputs = relatives_together(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def compute_loss(self, model: Module, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
        if self.packed_step is None:
            return super().compute_loss(model, inputs, **kwargs)
        metrics = self._metrics["train"]
        return self.note_loss(self.packed_step.loss(model, inputs, self._compute_loss, metrics))

    def row_names(self) -> list[str]:
        """Problems of the step, since its micro-batches mix them."""
        return list(dict.fromkeys(row["problem_id"] for row in self._work.rows))

    def _compute_loss(self, model: Module, inputs: dict[str, Tensor]) -> Tensor:
        self._work.loss_inputs = dict(inputs)
        loss = super()._compute_loss(model, self._work.loss_inputs)
        self._work.loss_inputs = None
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Module,
        input_ids: Tensor,  # (B, P + C), prompts padded on the left, completions on the right
        attention_mask: Tensor,  # (B, P + C)
        logits_to_keep: int,  # C
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Output:
        """Log-probs (B, C), entropies (B, C) and load-balancing loss (), packed or on
        `rows_per_forward` rows at a time."""
        batch = input_ids, attention_mask, logits_to_keep
        if self.packed_step is None:
            forward = partial(super()._get_per_token_logps_and_entropies, model, **kwargs)
            rows = self.args.rows_per_forward or batch_size
            if self._one_pass and torch.is_grad_enabled():
                rows = None
            logps, entropies, balance = padded_logps(forward, *batch, rows or len(input_ids))
        else:
            logps, entropies = self.packed_step.logps(model, *batch)
            balance = None
        if self._work.loss_inputs is not None:
            self._correct_for_sampler(self._work.loss_inputs, logps.detach())
        return logps, entropies, balance

    def _correct_for_sampler(self, inputs: dict[str, Tensor], logps: Tensor) -> None:
        """Weigh each token's advantage by its truncated ratio trainer / server; 1 for forced tokens
        and padding.

        Scaling the advantage by a positive weight scales the clipped policy loss and leaves the KL
        term alone, just as TRL's `token_truncate` does.

        Args:
            inputs: micro-batch; `advantages` (B,) or (B, C) becomes (B, C).
            logps: (B, C) of the loss's forward pass, detached.
        """
        difference = logps - inputs["sampling_per_token_logps"]  # (B, C), NaN for forced tokens
        ratio = difference.nan_to_num(nan=0.0).exp()
        clip_max = None
        if self.vllm_importance_sampling_correction:
            clip_max = self.vllm_importance_sampling_clip_max
            weights = ratio.clamp(self.vllm_importance_sampling_clip_min, clip_max)
            inputs["advantages"] = inputs["advantages"].view(len(weights), -1) * weights
        mask = inputs["completion_mask"].bool()
        metrics = sampling_metrics(self.accelerator, difference, mask, clip_max)
        collect(self._metrics["train"], metrics)

    # --- Evaluation and records -------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Metrics:
        """Sample `num_generations_eval` responses per problem, without revision; their metrics."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = [row for row in dataset for _ in range(self.num_generations_eval)]
        self._clock.mark("train")
        self.model.eval()
        self.lookahead.wait()  # an evaluation has the servers for itself
        batch = Batch(self.state.global_step, self._publish(), revision=False)
        start = time.perf_counter()
        with failing_together(), self.accelerator.split_between_processes(rows) as local_rows:
            rollouts = self.engine.run(local_rows, batch)
        self._metrics["eval"]["timing/rollout"].append(time.perf_counter() - start)
        metrics = self._record(rollouts, f"eval-{self.state.global_step}", revision=False)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in metrics.items()}
        self.log(metrics)
        self._clock.mark("evaluation")
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _note_training(self, rewards: Tensor, advantages: Tensor) -> None:
        """Complete the records of a training batch and log their metrics."""
        rollouts = self._work.rollouts
        rows = list(zip(self._work.trained, rewards.tolist(), advantages.tolist(), strict=True))
        for i, rollout in enumerate(rollouts):
            trained, values, advantage = rows[i * len(rows) // len(rollouts)]
            rollout.kept = trained is rollout
            rollout.rewards = dict(zip(self.reward_func_names, values, strict=True))
            rollout.advantage = advantage
        metrics = self._record(rollouts, f"step-{self.state.global_step}", self.args.revision)
        collect(self._metrics["train"], metrics)

    def _record(self, rollouts: list[Rollout], name: str, revision: bool) -> Metrics:
        """Write the responses of all ranks, in the order of one process; their metrics."""
        of_ranks = gather_object([self.engine.counts, self.weight_sync.counts])
        counts = self._counters.add(of_ranks, self.state)
        metrics: list[Metrics] = [{}]
        everyone = gathered_on_first(rollouts)
        if everyone is not None:
            path = Path(self.args.output_dir, "rollouts", f"{name}.jsonl")
            write_atomically(path, map(record_line, everyone))
            metrics[0] = rollout_metrics(everyone, revision, max(self.args.num_serial_cuts, 1))
            if self.args.needs_labels and revision:
                metrics[0] |= detector_metrics(everyone)
        return broadcast_object_list(metrics)[0] | counts
