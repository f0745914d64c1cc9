"""Rollouts: the records of sampled responses and their revisions, and the metrics of a batch."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from generation.generation_file import REFUSED
from rea_core.problems import problem_digest
from rea_rl.revision import keep_or_replace, replaced_revisions

if TYPE_CHECKING:
    from generation.math_verify.extract import Thinking
    from generation.segments import Paragraph
    from rea_rl.rollout.labeller import Labels

Metrics = dict[str, float]
Pairs = list[tuple["Rollout", "Rollout"]]  # original and revision
# Of a response: asked for; decoded, split and cut by this process; waiting for its wave; labelled;
# finished; judged.
STAGES = "sample text turn label finish verify".split()


class StageClock:
    """Seconds by stage of something that is always in one of its stages, and has some behind it."""

    def __init__(self, seconds: Mapping[str, float] = MappingProxyType({})):
        self.seconds = dict(seconds)
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """Count the time since the last mark, or since the beginning, for a stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


@dataclass
class Rollout:
    """One response, and one line of `<output_dir>/rollouts/step-<n>.jsonl`.

    With revision, lines alternate original, revision; with serial cuts an original is followed by
    all of its exits. If no cut is possible the original is listed twice, the second time without
    `seconds`. A line with `kept` false was not trained: another one took its place, for a wrong
    revision its original, and `rewards` and `advantage` are that row's.
    """

    problem_id: str
    step: int  # optimizer step that it is trained in, from 0
    policy_version: str  # that sampled it; with `max_rollout_lag` it may be of an earlier step
    kind: Literal["original", "revision"]
    prompt_ids: list[int]
    completion_ids: list[int]
    # of the server under its sampling temperature; None for forced ids
    logprobs: list[float | None]
    text: str
    finish_reason: str  # "stop", "length" for a truncated response, or REFUSED
    num_tokens: int
    num_think_tokens: int
    num_reflections: int
    # whether the prompt opened or closed the thinking, see `generation.rendering`
    prompt_thinking: Thinking = "unknown"
    # of the thinking, see `generation.markers`; empty for R1's
    markers: dict[str, str] = field(default_factory=dict)
    correct: bool | None = None
    num_paragraphs: int | None = None  # of the original, before the cut
    # their ends, characters of the original's text
    paragraph_ends: list[int] = field(default_factory=list)
    # P(Result) per label that was read, see label_until_decided; of a response that was not cut, in
    # both of its lines
    p_result: list[float] = field(default_factory=list)
    num_label_tokens: int = 0  # of the reflection model's reply
    num_label_tokens_saved: int = 0  # at least so many more a whole reply would have had
    cut: int | None = None  # index of the last kept paragraph
    num_kept_tokens: int | None = None  # ids shared with the original
    # of the finishing request's prompt, in the server's prefix cache
    num_cached_tokens: int | None = None
    kept: bool = True
    rewards: dict[str, float] = field(default_factory=dict)
    advantage: float | None = None
    # by stage of the chain, see `STAGES`; an original is verified while its revision is made
    seconds: dict[str, float] = field(default_factory=dict)
    problem_digest: str | None = None  # None in files of earlier versions

    @classmethod
    def missing(cls, row: Mapping[str, Any], batch: Batch, ids: list[int], end: int) -> Rollout:
        """Place of a response that the policy server refused.

        It has the first of its prompt's `ids`, which may be too many to be trained on, and `end`,
        the id of the end of sequence; neither is trained.
        """
        return cls(
            problem_id=row["problem_id"],
            step=batch.step,
            policy_version=batch.policy_version,
            kind="original",
            prompt_ids=ids[:1],
            completion_ids=[end],
            logprobs=[None],
            text="",
            finish_reason=REFUSED,
            num_tokens=0,
            num_think_tokens=0,
            num_reflections=0,
            correct=False,
            problem_digest=problem_digest(row.get("problem", "")),
        )

    @property
    def is_missing(self) -> bool:
        """Whether there is no response, since the server refused to make one."""
        return self.finish_reason == REFUSED

    def take_labels(self, labels: Labels, paragraphs: Sequence[Paragraph]) -> None:
        """Record the labels of the original's paragraphs, from which its cut followed."""
        self.num_paragraphs = len(paragraphs)
        self.paragraph_ends = [paragraph.end for paragraph in paragraphs]
        self.p_result = labels.p_result
        self.num_label_tokens = labels.num_tokens
        self.num_label_tokens_saved = labels.num_tokens_saved


@dataclass(frozen=True)
class Batch:
    """Common settings of the responses of one call."""

    step: int
    policy_version: str
    revision: bool


def record_line(rollout: Rollout) -> str:
    """JSON of one response. Probabilities have five digits, which is what the servers' own numerics
    leave; most of a file is these."""
    values = vars(rollout).copy()
    for key in ("logprobs", "p_result"):
        values[key] = [value if value is None else round(value, 5) for value in values[key]]
    return json.dumps(values)


def trained_rows(rollouts: Sequence[Rollout], construction: str = "pairs") -> list[Rollout]:
    """Rows to train on, in the same places: a revision with a wrong answer gives its place to its
    original.

    If only revisions are trained, each pair has one place. Serial exits are all trained, wrong
    ones too.
    """
    if construction == "serial":
        return list(rollouts)
    sources = {"pairs": keep_or_replace, "revisions_only": replaced_revisions}[construction]
    return [rollouts[source] for source in sources([rollout.correct for rollout in rollouts])]


def rollout_metrics(rollouts: Sequence[Rollout], revision: bool, num_revisions: int = 1) -> Metrics:
    """Means over the responses of a batch, all finite; `rollout/*` of the originals that there
    are, `revision/*` of the revisions.

    With `revision`, `num_revisions` responses follow each original.
    """
    stride = num_revisions + 1 if revision else 1
    every = rollouts[::stride]
    originals = [original for original in every if not original.is_missing]
    metrics = {
        "rollout/accuracy": _mean(r.correct for r in originals),
        "rollout/num_tokens": _mean(r.num_tokens for r in originals),
        "rollout/num_think_tokens": _mean(r.num_think_tokens for r in originals),
        "rollout/truncated": _mean(r.finish_reason == "length" for r in originals),
        "reflection/density": sum(r.num_reflections for r in originals)
        / max(sum(r.num_think_tokens for r in originals), 1),
        "rollout/unanswered": 1 - len(originals) / len(every),
    }
    if revision:
        pairs = [(every[i // stride], r) for i, r in enumerate(rollouts) if r.kind == "revision"]
        metrics["revision/missing"] = 1 - len(pairs) / (len(rollouts) - len(every))
        metrics |= _revision_metrics(pairs) if pairs else {}
        # cut or not
        labelled = [r for i, r in enumerate(rollouts) if i % stride and r.num_paragraphs]
        metrics |= _label_metrics(labelled) if labelled else {}
    return metrics | _stage_metrics(rollouts)


def longest_metrics(rollouts: Sequence[Rollout], seconds: float) -> Metrics:
    """Parts of the seconds that a batch took; they add up to `seconds`.

    A batch ends with its last response, so these are the stages of the one that took longest. The
    rest, `other`, is the beginning of the batch, and results that this process had no time for.
    """
    paths: list[list[Rollout]] = []
    for rollout in rollouts:  # revisions follow their original
        if rollout.kind == "original":
            paths.append([])
        paths[-1].append(rollout)
    stages = _longest(map(_path_seconds, paths))
    parts = {f"timing/longest_{stage}": stages.get(stage, 0.0) for stage in STAGES}
    return parts | {"timing/longest_other": seconds - sum(parts.values())}


def _path_seconds(path: Sequence[Rollout]) -> Metrics:
    """Seconds by stage from a prompt to the last of its revisions."""
    original, *revisions = path
    last = _longest(revision.seconds for revision in revisions)
    first = original.seconds
    if revisions or "label" in first:  # it was verified side by side with them
        first = {stage: value for stage, value in first.items() if stage != "verify"}
    return {stage: first.get(stage, 0.0) + last.get(stage, 0.0) for stage in STAGES}


def _longest(seconds: Iterable[Metrics]) -> Metrics:
    return max(seconds, key=lambda stages: sum(stages.values()), default={})


def _stage_metrics(rollouts: Sequence[Rollout]) -> Metrics:
    """Mean seconds of a response in each stage, and the stage's share of the seconds of all."""
    stages = sorted({stage for r in rollouts for stage in r.seconds})
    seconds = {s: [r.seconds[s] for r in rollouts if s in r.seconds] for s in stages}
    total = sum(map(sum, seconds.values()))
    means = {f"timing/{stage}": _mean(values) for stage, values in seconds.items()}
    shares = {f"share/{stage}": sum(values) / total for stage, values in seconds.items() if total}
    return means | shares


def detector_metrics(rollouts: Sequence[Rollout]) -> Metrics:
    """Share of the labelled responses in which the detector finds a result; nothing if none was
    labelled.

    `rollouts` alternate original and revision; labels are in the second of a pair.
    """
    labelled = [r for r in rollouts[1::2] if r.num_paragraphs]
    found = [any(p >= 0.5 for p in r.p_result) for r in labelled]
    return {"reflection/found": _mean(found)} if found else {}


def _revision_metrics(pairs: Pairs) -> Metrics:
    revisions = [revision for _, revision in pairs]
    return {
        "revision/success": _mean(r.correct for r in revisions),
        "revision/broken": _mean(
            original.correct and not revision.correct for original, revision in pairs
        ),
        "revision/repaired": _mean(
            revision.correct and not original.correct for original, revision in pairs
        ),
        "revision/num_tokens": _mean(r.num_tokens for r in revisions),
        "revision/tokens_saved": _mean(
            1 - revision.num_tokens / original.num_tokens for original, revision in pairs
        ),
        "revision/cut_position": _mean((r.cut + 1) / r.num_paragraphs for r in revisions),
        "revision/truncated": _mean(r.finish_reason == "length" for r in revisions),
        **_gain_metrics(pairs),
        **_cache_metrics(revisions),
    }


def _gain_metrics(pairs: Pairs) -> Metrics:
    """How much more advantage a revision has than its original, where both are right; below 0 the
    rewards work against the cut."""
    gains = [
        revision.advantage - original.advantage
        for original, revision in pairs
        if original.correct
        and revision.correct
        and None not in (original.advantage, revision.advantage)
    ]
    return {"revision/gain": _mean(gains)} if gains else {}


def _label_metrics(labelled: list[Rollout]) -> Metrics:
    read = sum(r.num_label_tokens for r in labelled)
    saved = sum(r.num_label_tokens_saved for r in labelled)
    return {
        "reflection/labelled": _mean(
            min(len(r.p_result) / r.num_paragraphs, 1.0) for r in labelled
        ),
        "reflection/result_share": _mean(
            _mean(p >= 0.5 for p in r.p_result) for r in labelled if r.p_result
        ),
        "reflection/num_label_tokens": read / len(labelled),
        "reflection/label_tokens_saved": saved / max(read + saved, 1),
    }


def _cache_metrics(revisions: list[Rollout]) -> Metrics:
    """Share of the finishing prompts that the server had cached, if it says so."""
    told = [r for r in revisions if r.num_cached_tokens is not None]
    if not told:
        return {}
    forced = sum(r.logprobs.count(None) for r in told)
    prompts = forced + sum(len(r.prompt_ids) + r.num_kept_tokens for r in told)
    return {"revision/cached_prompt": sum(r.num_cached_tokens for r in told) / prompts}


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(statistics.fmean(values)) if values else 0.0
