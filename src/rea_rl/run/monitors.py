"""Monitors of a policy in training: reflections, truncation, accuracy, detector, signal, sampler,
entropy.

A monitor compares the mean of a metric over the last steps with a threshold, or with its mean over
the first steps of the run. It warns in the log when it is crossed, is logged as `monitor/<name>` (1
while it is), and ends the run if `monitor_stop` names it. Values come from the run's own log, so
a resumed run remembers its first steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rea_core.options import option
from rea_rl.run.endings import MonitorError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Monitor:
    """A metric, and when it is a reason to worry.

    Attributes:
        name: in `monitor/<name>` and `monitor_stop`.
        metric: as logged; one with the prefix `eval_` has a value for each evaluation, without a
            mean over steps.
        key: of the recipe, its threshold; None there switches it off.
        above: whether it is crossed from below.
        against: `first`: the threshold is a share of the first steps' mean; `best`: a distance from
            the best evaluation.
        means: a likely cause, and the way out.
    """

    name: str
    metric: str
    key: str
    above: bool
    against: str | None
    means: str


MONITORS = (
    Monitor(
        "reflections", "reflection/density", "monitor_reflections", False, "first",
        "the policy gives up reflection: add the reflect reward, or weigh length less",
    ),
    Monitor(
        "entropy", "entropy", "monitor_entropy", False, "first",
        "the policy hardly samples anything else any more: lower learning_rate, or raise beta",
    ),
    Monitor(
        "truncated", "rollout/truncated", "monitor_truncated", True, None,
        "responses do not end: raise max_completion_length, or look whether they repeat themselves",
    ),
    Monitor(
        "no_signal", "groups/no_signal", "monitor_no_signal", True, None,
        "steps teach next to nothing: take problems that are right sometimes, or more responses a "
        "problem",
    ),
    Monitor(
        "found_none", "reflection/found", "monitor_found_min", False, None,
        "the detector finds no results: look at its labels, and whether it was trained on such "
        "responses",
    ),
    Monitor(
        "found_all", "reflection/found", "monitor_found_max", True, None,
        "the detector finds a result in every response, perhaps also without one: look at its "
        "labels and cut_threshold",
    ),
    Monitor(
        "gain", "revision/gain", "monitor_gain", False, None,
        "right revisions get less reward than their originals, perhaps because nothing that is "
        "kept reflects: cut later (cut_second_half), or weigh the reflect reward less",
    ),
    Monitor(
        "sampler", "sampling/logp_difference", "monitor_sampler", True, None,
        "the policy server's log-probs are not those of the trainer: see that it has "
        "--logprobs-mode processed_logprobs and the same model, and that max_rollout_lag is low",
    ),
    Monitor(
        "accuracy", "eval_rollout/accuracy", "monitor_accuracy", False, "best",
        "the policy forgets: go back to the best checkpoint, with a lower learning_rate",
    ),
)  # fmt: skip
NAMES = tuple(monitor.name for monitor in MONITORS)


@dataclass(kw_only=True)
class MonitorKeys:
    """Recipe keys of the monitors; an empty threshold switches one off."""

    monitor_window: int = option(
        5, "Steps that a monitor takes the mean over: the first of the run, and the last."
    )
    monitor_reflections: float | None = option(
        0.5, "Warn below this share of the first steps' reflection words per thinking token."
    )
    monitor_entropy: float | None = option(
        0.2, "Warn below this share of the first steps' entropy."
    )
    monitor_truncated: float | None = option(0.3, "Warn above this share of truncated responses.")
    monitor_no_signal: float | None = option(
        0.9, "Warn above this share of groups whose advantages are all 0."
    )
    monitor_found_min: float | None = option(
        0.02, "Warn below this share of responses with a result, by the detector."
    )
    monitor_found_max: float | None = option(
        0.995, "Warn above this share of responses with a result, by the detector."
    )
    monitor_gain: float | None = option(
        0.0, "Warn below this advantage of right revisions over their right originals."
    )
    monitor_sampler: float | None = option(
        0.2, "Warn above this difference of the log-probs of trainer and server."
    )
    monitor_accuracy: float | None = option(
        0.1, "Warn if validation accuracy is so much below its best."
    )
    monitor_stop: list[str] = option(
        [], f"Monitors that end the run: all, or some of {', '.join(NAMES)}."
    )


def check_monitors(keys: MonitorKeys) -> None:
    """Raise ValueError for a monitor that is none, and for a threshold that is no share."""
    if unknown := [name for name in keys.monitor_stop if name not in (*NAMES, "all")]:
        raise ValueError(f"monitor_stop has {unknown}; it takes all, or some of {', '.join(NAMES)}")
    if keys.monitor_window < 1:
        raise ValueError(f"monitor_window is {keys.monitor_window}; it must be at least 1")
    for monitor in MONITORS:
        limit = getattr(keys, monitor.key)
        if limit is not None and not 0 <= limit <= 1:
            raise ValueError(
                f"{monitor.key} is {limit}; it must be a share from 0 to 1, or empty to switch it "
                "off"
            )


class Monitors:
    """The monitors of a run; a rank that `speaks` writes the warnings, the same on all."""

    def __init__(self, keys: MonitorKeys, speaks: bool = True):
        self._keys, self._speaks = keys, speaks
        self._crossed: dict[str, str] = {}  # warnings that hold now, by monitor

    def check(
        self, history: Iterable[Mapping[str, Any]], now: Mapping[str, float], step: int
    ) -> dict[str, float]:
        """Warn of newly crossed thresholds; `monitor/<name>` of each monitor whose metric is in
        `now`, which is about to be logged for `step`. Entries of `history` have theirs."""
        entries = [*history, {**now, "step": step}]
        results = {}
        for monitor in MONITORS:
            limit = getattr(self._keys, monitor.key)
            if limit is None or not _is_number(now.get(monitor.metric)):
                continue
            values = [
                (entry["step"], entry[monitor.metric])
                for entry in entries
                if _is_number(entry.get(monitor.metric))
            ]
            warning = self._warning(monitor, limit, values)
            if warning and self._speaks and monitor.name not in self._crossed:
                logger.warning("step %d: %s", step, warning)
            self._crossed = {
                name: text for name, text in self._crossed.items() if name != monitor.name
            }
            self._crossed |= {monitor.name: warning} if warning else {}
            prefix = "eval_" if monitor.metric.startswith("eval_") else ""
            results[f"{prefix}monitor/{monitor.name}"] = float(warning is not None)
        return results

    def reason_to_stop(self) -> str | None:
        """Warning of a monitor in `monitor_stop`, or None."""
        stops = NAMES if "all" in self._keys.monitor_stop else self._keys.monitor_stop
        return next((text for name, text in self._crossed.items() if name in stops), None)

    def _warning(
        self, monitor: Monitor, limit: float, values: Sequence[tuple[int, float]]
    ) -> str | None:
        """Warning, or None. `values` are (step, value), in order, the last one now."""
        if monitor.against == "best":
            now, best = values[-1][1], max(value for _, value in values)
            crossed, compared = best - now > limit, f"{now:.4g} against {best:.4g} at its best"
        else:
            window, last_step = self._keys.monitor_window, values[-1][0]
            now = fmean(value for step, value in values if step > last_step - window)
            first = fmean(value for step, value in values if step <= max(window, values[0][0]))
            if last_step <= window and monitor.against == "first":
                return None
            bound = limit * first if monitor.against == "first" else limit
            crossed = now > bound if monitor.above else now < bound
            compared = f"{now:.4g} over the last {window} steps"
            compared += f", {first:.4g} over the first" if monitor.against == "first" else ""
        if not crossed:
            return None
        return f"{monitor.metric} is {compared} ({monitor.key}: {limit:g}): {monitor.means}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


class Monitored:
    """Goes before a trainer's class: checks the monitors when it logs, and keeps the best
    checkpoint next to the last ones.

    Raises MonitorError, on all ranks, for a monitor of `monitor_stop`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.monitors = Monitors(self.args, self.is_world_process_zero())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        # TRL adds their means to the logs
        collected = self._metrics["train"] if "loss" in logs else {}
        means = {
            key: _mean(collected[key])
            for key in {monitor.metric for monitor in MONITORS} & collected.keys()
        }
        logs |= self.monitors.check(self.state.log_history, logs | means, self.state.global_step)
        super().log(logs, *args, **kwargs)
        if self.is_in_train and (reason := self.monitors.reason_to_stop()):
            raise MonitorError(
                f"monitor_stop ends the run at step {self.state.global_step}: {reason}"
            )

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Whether an evaluation is the best so far; then a checkpoint is due, which
        save_total_limit does not remove."""
        is_best = super()._determine_best_metric(*args, **kwargs)
        self.control.should_save |= is_best and self.args.save_strategy != "no"
        return is_best

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Log the best checkpoint; keep the last, which transformers removes at a limit of 1."""
        best, state = self.state.best_model_checkpoint, self.state
        if best is not None:
            logger.info(
                "%s was best, %.4g, in %s", self.args.metric_for_best_model, state.best_metric, best
            )
        if not self.args.load_best_model_at_end:
            state.best_model_checkpoint = None
        output = super()._finalize_training(*args, **kwargs)
        state.best_model_checkpoint = best
        return output


def _mean(values: Iterable[float]) -> float:
    values = [value for value in values if _is_number(value)]
    return fmean(values) if values else math.nan
