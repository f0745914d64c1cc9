"""Counters of a run: sums of all ranks since its first step, over resumes, too. In a logging window
the last value of a counter stands, not a mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerState

COUNTS = "counts"  # in trainer_state.json, among the states of callbacks
COUNTERS = ("servers/", "verifier/")
ALIVE, AWAY = "servers/alive", "servers/away"
EXTREMES = {ALIVE: min, "sampling/ratio_max": max}  # of a logging window


def counts_of(state: TrainerState) -> dict[str, float]:
    """Totals of a run, which its checkpoints keep. Whoever counts changes them in place."""
    return state.stateful_callbacks.setdefault(COUNTS, {})


def collect(window: dict[str, list[float]], metrics: Mapping[str, float]) -> None:
    """Add the metrics of a step to those of a logging window, whose means are logged."""
    for key, value in metrics.items():
        if key in EXTREMES:
            window[key] = [EXTREMES[key]([*window[key], value])]
        elif key.startswith(COUNTERS):
            window[key] = [value]
        else:
            window[key].append(value)


class Counters:
    """Counts of this command's processes, added to those that the run had before."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}

    def add(self, of_ranks: Sequence[Mapping[str, Any]], state: TrainerState) -> dict[str, float]:
        """Totals of the run, and how many servers are alive, as that process sees it that sees the
        fewest. `of_ranks`: counts since the start of the command, of everybody who counts."""
        now = {
            key: float(sum(each.get(key, 0) for each in of_ranks))
            for key in dict.fromkeys(key for each in of_ranks for key in each)
            if key not in (ALIVE, AWAY)
        }
        now |= outages(span for each in of_ranks for span in each.get(AWAY, ()))
        totals = counts_of(state)
        for key, value in now.items():
            totals[key] = totals.get(key, 0.0) + value - self._before.get(key, 0.0)
        self._before = now
        alive = [each[ALIVE] for each in of_ranks if ALIVE in each]
        known = {key: totals[key] for key in now}
        return known | {ALIVE: float(min(alive))} if alive else known


def outages(away: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Outages and their seconds, of servers that were away from one time to another; one that
    several processes saw is one."""
    number, seconds, until = 0, 0.0, dict[str, float]()
    for url, begin, end in sorted(away):
        known = until.get(url, float("-inf"))
        number += begin > known
        seconds += max(end - max(begin, known), 0.0)
        until[url] = max(end, known)
    return {"servers/outages": float(number), "servers/downtime_seconds": seconds}
