r"""Choose from which P(Result) a response is cut, on held-out responses, and write it where recipes
read it.

    python -m generation.calibrate rows PATHS --labels LABELS --judge_cuts CUTS --out ROWS \
        --paragraph_tokenizer MODEL
    python -m generation.calibrate choose FINISHED --labels LABELS --judge_cuts CUTS --out cut.json

LABELS is a file of split `labeling`, CUTS one of `labeling_distill_utils --clean`, both for PATHS.
ROWS has every cut that a setting of the grid can choose, and random ones; split `math_cot` finishes
them to FINISHED. The second command compares all settings without further generation. It takes the
one that keeps the fewest tokens while

- the accuracy of cut responses is at most `--margin` points below that of whole ones, and
- at least `--min_safe` of the right responses keep their first right result (a safe cut), and
- cut responses keep `--min_reflect` of the reflection reward of whole ones, on average. A model
  that reflects only after its first result would else get less reward for a cut than for none.
  This limit needs `--tokens_per_reflection_file`.

`cut.json` is for the recipe key `cut_file`. `<out stem>.png` shows the choice and how reliable
P(Result) is.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from generation.counting import first_verdicts
from generation.cuts import CutRule
from generation.evaluation.strategies import open_judged
from generation.figure_table import Column, percent, render
from generation.generation_file import read_generations
from generation.identity import Identities, identity
from generation.labeling_distill_utils import add_paragraph_arguments, splitting_of
from generation.labeling_to_prefix import CAP_FLAGS, Judged, Labels, PathFile, label_probabilities
from generation.measured import read_tokens_per_reflection
from generation.parallel import num_cores, ordered_map
from generation.path_cutting import SplitPath, Wanted
from generation.provenance import model_in, read_settings
from generation.reflection_words import count_reflections, relative_density
from generation.rendering import thinking_in
from generation.scoring import Interval, at_an_end, ratio_interval, sums_by_problem
from generation.verifiers.opening import VERIFIER_FLAGS, check_verifier, open_verifier
from generation.verifiers.pool import facts_of
from rea_core.checks import check_made, check_numbers, user_path
from rea_core.command import Needed, add_flags, command
from rea_core.ownership import own_output
from rea_core.row_files import Row, RowWriter, open_rows, write_json

logger = logging.getLogger(__name__)

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(2, 20))  # 0.1 ... 0.95
SECOND_HALVES = (0.0, 0.25, 0.5)
LABELS_AT_ONCE = 256  # responses whose cuts a process chooses
EVERYWHERE = 0.95  # share of paragraphs over the threshold from which a detector tells nothing


@dataclass(frozen=True, order=True)
class Rule:
    """Settings of the normal cut that are chosen."""

    threshold: float
    second_half: float

    def cut(self, p_result: Sequence[float], num_paragraphs: int, cap: CutRule) -> int:
        """Index of the last kept paragraph."""
        rule = replace(cap, threshold=self.threshold, second_half=self.second_half)
        return replace(rule, strong_threshold=0.0).choose(p_result, num_paragraphs).normal


RULES = tuple(Rule(threshold, half) for half in SECOND_HALVES for threshold in THRESHOLDS)


def rule_cuts(cap: CutRule, paths: Sequence[tuple[Sequence[float], int]]) -> list[list[int]]:
    """Cuts of each response by all rules, from its P(Result) and the number of its paragraphs."""
    return [[rule.cut(p_result, number, cap) for rule in RULES] for p_result, number in paths]


def cuts_to_finish(
    paths: Sequence[SplitPath],
    p_result: Labels,
    judged: Judged,
    args: argparse.Namespace,
) -> list[list[int]]:
    """Cuts of each response by any rule, its random control or the judge, and none; in order."""
    labels = [(p_result[path.id], len(path.tokens)) for path in paths]
    batches = (labels[i : i + LABELS_AT_ONCE] for i in range(0, len(labels), LABELS_AT_ONCE))
    processes = max(1, min(args.num_workers or num_cores(), len(labels) // (4 * LABELS_AT_ONCE)))
    setup = partial(cap_of, args)
    by_rule = np.array(
        [*chain.from_iterable(ordered_map(rule_cuts, batches, setup, processes))], dtype=np.int32
    )
    shares = np.array(
        [[path.share(cut) for cut in cuts] for path, cuts in zip(paths, by_rule, strict=True)]
    )
    # the control of the same budget: shares are exchanged between the responses
    for place in range(len(RULES)):
        column = list(shares[:, place])
        random.Random(args.seed).shuffle(column)
        shares[:, place] = column
    found = []
    for i, path in enumerate(paths):
        first = judged[path.id]
        wanted = {
            len(path.tokens) - 1,
            *by_rule[i].tolist(),
            *path.nearest_cuts(shares[i]).tolist(),
        }
        found.append(sorted(wanted if first is None else wanted | {first}))
    return found


def cap_of(args: argparse.Namespace) -> CutRule:
    """Rule whose cap is given; the rest of it is to be chosen."""
    caps = ("cap_share", "cap_offset", "cap_max")
    return CutRule(**{key: getattr(args, f"cut_{key}") for key in caps})


# --- Choosing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CutResponse:
    """A response that was cut after a paragraph, and finished."""

    correct: bool
    num_tokens: int
    reflect: float = 1.0  # reflection reward, 0 to 1


@dataclass(frozen=True)
class HeldOut:
    """One held-out response: its labels, the judge's, and itself cut in several places."""

    problem: str
    thinking: list[int]  # tokens of each paragraph
    p_result: Sequence[float]
    confirmed: set[int]  # paragraphs with a right result, by the judge
    finished: dict[int, CutResponse]  # by the last kept paragraph

    @property
    def last(self) -> int:
        return len(self.thinking) - 1

    @property
    def whole(self) -> CutResponse:
        return self.finished[self.last]

    def share(self, cut: int) -> float:
        """Share of the thinking's tokens up to a paragraph."""
        return sum(self.thinking[: cut + 1]) / sum(self.thinking)

    def nearest_cut(self, share: float) -> int:
        return min(range(len(self.thinking)), key=lambda cut: abs(self.share(cut) - share))


Responses = Sequence[HeldOut]


@dataclass(frozen=True)
class Outcome:
    """Effect of a choice of cuts on all held-out responses."""

    accuracy: Interval
    drop: float  # of accuracy against whole responses, as a share
    tokens: float  # share of the whole responses' tokens
    safe: float  # share of right responses, with a right result, that keep their first one
    cut: float  # share of responses that are cut at all
    reflect: float = 1.0  # share of the reflection reward that these keep


ByName = dict[str, Outcome]  # by the kind of cuts


def outcome(responses: Responses, cuts: Sequence[int]) -> Outcome:
    """Figures of one cut per response."""
    chosen = [response.finished[cut] for response, cut in zip(responses, cuts, strict=True)]
    problems = [response.problem for response in responses]
    right = [response.correct for response in chosen]
    accuracy = ratio_interval(*sums_by_problem(problems, right, [1] * len(right)))
    accuracy = at_an_end(accuracy, len({*problems}))
    at_risk = [
        cut >= min(response.confirmed)
        for response, cut in zip(responses, cuts, strict=True)
        if response.whole.correct and response.confirmed
    ]
    whole = sum(response.whole.num_tokens for response in responses)
    shorter = [(c, r.whole) for c, r in zip(chosen, responses, strict=True) if c is not r.whole]
    before = sum(w.reflect for _, w in shorter)
    return Outcome(
        accuracy,
        drop=sum(r.whole.correct for r in responses) / len(responses) - accuracy.value,
        tokens=sum(c.num_tokens for c in chosen) / whole,
        safe=sum(at_risk) / len(at_risk) if at_risk else 1.0,
        cut=len(shorter) / len(responses),
        reflect=sum(c.reflect for c, _ in shorter) / before if before else 1.0,
    )


def held_out(
    rows: Iterable[Row],
    correct: Iterable[bool],
    p_result: Labels,
    confirmed: Mapping[str, set[int]],
    tokens_per_reflection: float | None = None,
) -> list[HeldOut]:
    """Responses with all their cuts, from finished rows and a verdict for each.

    Without a threshold, `tokens_per_reflection`, all have the full reflection reward.
    """
    found: dict[str, HeldOut] = {}
    for row, is_correct in zip(rows, correct, strict=True):
        path, response = row["path_id"], row["responses"][0]
        new = HeldOut(row["problem_id"], row["thinking"], p_result[path], confirmed[path], {})
        finished = found.setdefault(path, new).finished
        reflect = reflection_reward(row, tokens_per_reflection)
        finished[row["last_kept"]] = CutResponse(is_correct, response["num_tokens"], reflect)
    return list(found.values())


def reflection_reward(row: Row, tokens_per_reflection: float | None) -> float:
    """Reward `reflect` of a finished row: reflection words per token of the thinking that is
    kept, times the threshold, at most 1."""
    if tokens_per_reflection is None:
        return 1.0
    response, kept = row["responses"][0], sum(row["thinking"][: row["last_kept"] + 1])
    words = count_reflections(thinking_in(response), word_bounded=True)
    return min(relative_density(words, kept, tokens_per_reflection), 1.0)


def outcomes(responses: Responses, cap: CutRule) -> dict[Rule, Outcome]:
    """Outcome of every rule."""
    return {
        rule: outcome(responses, [rule.cut(r.p_result, len(r.thinking), cap) for r in responses])
        for rule in RULES
    }


def choose(
    by_rule: dict[Rule, Outcome], margin: float, min_safe: float, min_reflect: float = 0.0
) -> Rule:
    """Rule that keeps the fewest tokens within the limits.

    Args:
        by_rule: outcome of every rule.
        margin: share that accuracy may lose.
        min_safe: smallest share of safe cuts.
        min_reflect: smallest share of the reflection reward that cut responses keep.

    Raises ValueError if no rule that cuts anything is within them.
    """
    cutting = {rule: o for rule, o in by_rule.items() if o.cut > 0}
    if not cutting:
        raise ValueError(
            "no setting cuts any response: the reflection model finds no result; train it on more "
            "responses"
        )
    safe = {rule: o for rule, o in cutting.items() if o.drop <= margin and o.safe >= min_safe}
    within = {rule: o for rule, o in safe.items() if o.reflect >= min_reflect}
    if safe and not within:
        most = max(o.reflect for o in safe.values())
        raise ValueError(
            f"no setting of the cut keeps {100 * min_reflect:.0f} % of the reflection reward: the "
            f"best keeps {100 * most:.0f} %, since this model reflects after its first result; "
            "give a smaller --min_reflect, or train without the reward `reflect`"
        )
    if not within:
        best = min(cutting.values(), key=lambda o: (o.safe < min_safe, o.drop))
        raise ValueError(
            f"no setting of the cut keeps accuracy within {100 * margin:.1f} points with "
            f"{100 * min_safe:.0f} % safe cuts: the best loses {100 * best.drop:.1f} points with "
            f"{100 * best.safe:.1f} %; train the reflection model on more responses, or give a "
            "larger --margin or a smaller --min_safe"
        )
    return min(within, key=lambda rule: (within[rule].tokens, -rule.threshold))


def check_detector(responses: Responses) -> None:
    """Raise ValueError for labels that tell nothing: none is a result anywhere, or all are."""
    p = [value for r in responses for value in r.p_result]
    if not p:
        raise ValueError(
            "the reflection model gave no label at all; does its tokenizer write Think and Result "
            "as one token?"
        )
    if max(p) < THRESHOLDS[0]:
        raise ValueError(
            f"the reflection model never says Result: its largest P(Result) over {len(p)} "
            f"paragraphs is {max(p):.2f}; train it on more responses, or on a model that is right "
            "more often"
        )
    if sum(value >= THRESHOLDS[-1] for value in p) >= EVERYWHERE * len(p):
        raise ValueError(
            f"the reflection model says Result everywhere: P(Result) is {THRESHOLDS[-1]} or more "
            f"in {EVERYWHERE:.0%} of {len(p)} paragraphs; look at its training file"
        )


def reliability(responses: Responses, bins: int = 10) -> list[dict[str, float]]:
    """Mean P(Result) and share of right results in bins of P(Result); empty bins are left out."""
    p, hit = label_arrays(responses)
    places = np.minimum((p * bins).astype(int), bins - 1)
    return [
        {
            "p": float(p[here].mean()),
            "share": float(hit[here].mean()),
            "paragraphs": int(here.sum()),
        }
        for here in (places == i for i in range(bins))
        if here.any()
    ]


def label_arrays(responses: Responses) -> tuple[np.ndarray, np.ndarray]:
    """P(Result) of all labelled paragraphs and whether the judge confirmed them, both (N,)."""
    pairs = [
        (p, i in r.confirmed)
        for r in responses
        for i, p in enumerate(r.p_result[: len(r.thinking)])
    ]
    return np.array([p for p, _ in pairs]), np.array([hit for _, hit in pairs])


def detector_figures(responses: Responses, threshold: float) -> dict[str, float]:
    """Precision, recall and area under the ROC curve of single labels against the judge."""
    from scipy.stats import mannwhitneyu

    p, hit = label_arrays(responses)
    found = p >= threshold
    area = float("nan")
    if hit.any() and not hit.all():
        pairs = hit.sum() * (~hit).sum()
        area = mannwhitneyu(p[hit], p[~hit]).statistic / pairs
    return {
        "precision": float(hit[found].mean()) if found.any() else float("nan"),
        "recall": float(found[hit].mean()) if hit.any() else float("nan"),
        "auc": float(area),
        "results": float(hit.mean()),
    }


def controls(responses: Responses, rule: Rule, cap: CutRule, seed: int) -> ByName:
    """The chosen rule, whole responses, the judge's cuts and random cuts of the same budget."""
    cuts = [rule.cut(r.p_result, len(r.thinking), cap) for r in responses]
    shares = [r.share(cut) for r, cut in zip(responses, cuts, strict=True)]
    random.Random(seed).shuffle(shares)
    by_name = {
        "whole": [r.last for r in responses],
        "judge": [min(r.confirmed, default=r.last) for r in responses],
        "reflection model": cuts,
        "random, same budget": [
            r.nearest_cut(share) for r, share in zip(responses, shares, strict=True)
        ],
    }
    return {name: outcome(responses, chosen) for name, chosen in by_name.items()}


def cut_figures(by_name: ByName) -> dict[str, Row]:
    """Figures of each kind of cut, as `cut.json` has them: shares."""
    keys = ("drop", "tokens", "safe", "cut", "reflect")
    bounds = {"accuracy": "value", "accuracy_low": "low", "accuracy_high": "high"}
    return {
        name: {key: getattr(o.accuracy, bound) for key, bound in bounds.items()}
        | {key: getattr(o, key) for key in keys}
        for name, o in by_name.items()
    }


def cut_table(cuts: dict[str, Row], corner: str, **style: bool) -> str:
    """One line per kind of cut, from the figures of `cut_figures`."""
    columns = (
        percent("accuracy %", "accuracy"),
        Column("tokens kept %", "tokens"),
        Column("safe %", "safe"),
        Column("responses cut %", "cut"),
        Column("reflection reward kept %", "reflect"),
    )
    rows = {
        name: {"accuracy": Interval(*(values[f"accuracy{end}"] for end in ("", "_low", "_high")))}
        | {column.key: f"{100 * values[column.key]:.1f}" for column in columns[1:]}
        for name, values in cuts.items()
    }
    return render(rows, columns, corner, **style)


def draw(
    responses: Responses,
    by_rule: dict[Rule, Outcome],
    rule: Rule,
    names: ByName,
    save_to: Path,
) -> None:
    """Two panels: accuracy against tokens of rules and controls; reliability of P(Result)."""
    from generation.evaluation.plots import COLOURS, GREY, save_panels

    def tradeoff(axes: Any) -> None:
        points = [(100 * o.tokens, 100 * o.accuracy.value) for o in by_rule.values()]
        axes.scatter(*zip(*points, strict=True), color=GREY, s=12, label="settings of the cut")
        for i, (name, o) in enumerate(names.items()):
            axes.scatter(
                100 * o.tokens,
                100 * o.accuracy.value,
                color=COLOURS[i],
                marker="osD^"[i],
                s=60,
                label=name,
            )
        axes.set(xlabel="tokens (% of whole responses)", ylabel="accuracy (%)")
        axes.set_title(
            f"chosen: P(Result) >= {rule.threshold}, from {rule.second_half:.0%} of the paragraphs "
            "on",
            fontsize=9,
        )
        axes.legend(frameon=False, fontsize=8)

    def reliable(axes: Any) -> None:
        bins = reliability(responses)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
        axes.plot(
            [b["p"] for b in bins],
            [b["share"] for b in bins],
            color=COLOURS[0],
            marker="o",
            label="reflection model",
        )
        axes.axvline(rule.threshold, color=COLOURS[1], linewidth=1, label="threshold")
        axes.set(xlabel="P(Result)", ylabel="share of right results")
        axes.legend(frameon=False, fontsize=8)

    save_panels([tradeoff, reliable], save_to)


def run_rows(args: argparse.Namespace) -> None:
    """Write the cuts that are to be finished."""
    own_output(args.out, "out", (args.file, args.labels, args.judge_cuts))
    splitting = splitting_of(args)
    judged: dict[str, int | None] = {}  # first right result of each response
    open_judged(
        args.judge_cuts,
        lambda row, _: judged.update({row["id"]: next(iter(row["confirmed"]), None)}),
    )
    p_result = label_probabilities(args.labels)
    ids = [path if path in judged else None for path in p_result]
    labels = open_rows(args.labels)
    file = PathFile(args.file, splitting, args.num_workers, labels, args.labels, ids)
    cuts = cuts_to_finish(file.paths, p_result, judged, args)

    def wanted(i: int) -> list[Wanted]:
        path = file.paths[i]
        shared = {"thinking": list(path.tokens), "path_id": path.id}
        return [
            Wanted(cut, {"id": f"{path.id}/{cut}"}, {**shared, "last_kept": cut}) for cut in cuts[i]
        ]

    with RowWriter(args.out, is_output=True) as out:
        for line in chain.from_iterable(file.cut(wanted, splitting.tokenizer)):
            out.add_text(line)
    logger.info("wrote %s: %d cuts of %d responses", args.out, out.num_rows, len(file.paths))


def run_choose(args: argparse.Namespace) -> str:
    """Write the chosen setting with its figures and picture; returns the table."""
    check_numbers(
        vars(args),
        not_negative=("margin",),
        shares=("min_safe", "min_reflect"),
        positive=("num_workers", "timeout"),
    )
    own_output(args.out, "out", (args.file, args.labels, args.judge_cuts))
    check_made(args.out, args.out, '"cut_threshold"')
    columns = {"path_id": str, "last_kept": int, "thinking": list}
    labelled, judged = Identities(args.labels), Identities(args.judge_cuts)
    p_result = label_probabilities(args.labels, lambda row: labelled.add(row["id"], identity(row)))
    confirmed: dict[str, set[int]] = {}

    def look_at_judged(row: Row, _: int) -> None:
        confirmed[row["id"]] = set(row["confirmed"])
        judged.add(row["id"], identity(row))

    def look(row: Row) -> None:
        for others in (labelled, judged):
            others.check(f"{args.file}: {row['id']!r}", row["path_id"], identity(row))

    open_judged(args.judge_cuts, look_at_judged)
    remedy = "finish a file of `generation.calibrate rows`"
    rows = read_generations(args.file, columns, remedy, look=look)
    check_verifier(args.verifier, facts_of(rows[0]), args.timeout)
    with open_verifier(args.verifier, args.num_workers or num_cores(), args.timeout) as pool:
        correct = first_verdicts(rows, pool, args.num_workers)
    tokens_per_reflection = None
    if (file := args.tokens_per_reflection_file) is not None:
        tokens_per_reflection = read_tokens_per_reflection(file, word_bounded=True)
    responses = held_out(rows, correct, p_result, confirmed, tokens_per_reflection)
    check_detector(responses)
    by_rule = outcomes(responses, cap_of(args))
    rule = choose(by_rule, args.margin / 100, args.min_safe, args.min_reflect)
    names = controls(responses, rule, cap_of(args), args.seed)
    write_json(args.out, report(responses, rule, names, args))
    draw(responses, by_rule, rule, names, args.out.with_suffix(".png"))
    logger.info(
        "wrote %s: cut_threshold %s, cut_second_half %s", args.out, rule.threshold, rule.second_half
    )
    return cut_table(cut_figures(names), "cut") + "\n"


def report(
    responses: Responses, rule: Rule, names: ByName, args: argparse.Namespace
) -> dict[str, Any]:
    """Content of `cut.json`: the chosen keys, and the measurements behind the choice."""
    return {
        "cut_threshold": rule.threshold,
        "cut_second_half": rule.second_half,
        "margin": args.margin,
        "min_safe": args.min_safe,
        "min_reflect": args.min_reflect,
        "responses": len(responses),
        "problems": len({r.problem for r in responses}),
        "settings_tried": len(RULES),
        "detector": detector_figures(responses, rule.threshold),
        "cuts": cut_figures(names),
        "reliability": reliability(responses),
        "labelled_by": model_in(read_settings(args.labels)),
    }


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line; the cut_* flags are those of the training recipe."""
    parser = argparse.ArgumentParser(
        description="Choose the threshold of the cut on held-out responses."
    )
    steps = parser.add_subparsers(dest="step", required=True)
    for name, words, file, out in (
        ("rows", "cut responses at each threshold, to be finished",
         "generation file", "rows for split math_cot"),
        ("choose", "choose the cut by the finished responses",
         "finished file of the first step", "file for the recipe key cut_file"),
    ):  # fmt: skip
        step = steps.add_parser(name, help=words, description=f"{words.capitalize()}.")
        step.add_argument("file", type=user_path, help=file)
        add_flags(
            step,
            labels=(Needed(Path), "file of split labeling"),
            judge_cuts=(Needed(Path), "file of labeling_distill_utils --clean"),
            out=(Needed(Path), out),
            seed=(0, "of the random controls"),
            **CAP_FLAGS,
        )
        if name == "rows":
            add_paragraph_arguments(step)
    add_flags(
        step,
        margin=(1.0, "points of accuracy that cut responses may lose"),
        min_safe=(0.97, "share of right responses that must keep their result"),
        tokens_per_reflection_file=(Path, "threshold of the reward `reflect`"),
        min_reflect=(0.7, "share of the reflection reward that cut responses must keep"),
        **VERIFIER_FLAGS,
    )
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake, or a detector that tells nothing."""
    args = parse_arguments(argv)
    if args.step == "rows":
        run_rows(args)
    else:
        sys.stdout.write(run_choose(args))


if __name__ == "__main__":
    main()
