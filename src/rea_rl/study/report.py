"""Table, pictures and JSON of the study from the evaluations of its runs.

Intervals (95 %) come from a bootstrap that draws problems and, if a row has several, seeds. All
rows share the draws of problems, so that TR and AES compare a row with the base on the same
problems. Every figure is a ratio of sums.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from generation.evaluation.plots import (
    GREY,
    label_points,
    plot_points,
    point_style,
    read_log,
    running_mean,
    save_panels,
    series,
)
from generation.figure_table import Column, percent, render
from generation.generation_file import read_generations
from generation.identity import Identities
from generation.math_verify_all import problem_id, read_scores
from generation.provenance import MadeBy, check_comparable, known_parts
from generation.rendering import thinking_in
from generation.scoring import ALL, Interval, against, intervals, resampled_ratios
from generation.stated_results import count_empty_checks, count_rechecks
from rea_core.checks import check_made
from rea_core.problems import problem_digest
from rea_core.row_files import Row, write_json
from rea_core.rows import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rea_rl.study.rows import Run

DIFFICULTIES = {"easy": (1, 2), "medium": (3, 4), "hard": (5,)}  # levels of the miniature
SIZES = ("num_tokens", "num_think_tokens", "num_reflections", "truncated")
COUNTS = ("responses", "correct", *SIZES, "corrected", "slips")
# name -> numerator, denominator, factor
RATIOS = {
    "accuracy": ("correct", "responses", 1),
    "tokens": ("num_tokens", "responses", 1),
    "truncated": ("truncated", "responses", 1),
    "corrected": ("corrected", "responses", 1),
    "slips_corrected": ("corrected", "slips", 1),
    "tokens_per_word": ("num_think_tokens", "num_reflections", 1),
    "words": ("num_reflections", "num_think_tokens", 1000),
    "rechecks": ("rechecks", "num_think_tokens", 1000),
    "words_per_recheck": ("num_reflections", "rechecks", 1),
    "empty_checks": ("empty_checks", "responses", 1),
}
# of the axes
ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "frameon": False, "fontsize": 8}
MAIN_ROWS = "base grpo grpo_len reward_only model_only rea_rl density".split()
METHODS = MAIN_ROWS[:-1]  # density is there to be caught, not to be compared
STYLES = {name: point_style(i) for i, name in enumerate(MAIN_ROWS)}
CURVES = {
    "rollout/accuracy": "accuracy of training responses",
    "rollout/num_tokens": "tokens per response",
    "reflection/density": "reflection words per token",
}
PALE = "#B5B5B5"
AGAIN = "delete the .scores.json of the older one, or its folder, and start the study again"
Problems = list[tuple[str, str | None]]  # ids and digests
Figures = dict[str, dict[str, Interval]]  # by group (all, easy, ...) and name
Styles = Mapping[str, dict[str, Any]]  # of rows, see `point_style`


@dataclass(frozen=True)
class RowCounts:
    """Counts of one row, summed over the responses to a problem.

    `counts[name]` is (S, P): seeds, problems.
    """

    name: str
    title: str
    ids: Problems
    levels: list[int | None]
    counts: dict[str, np.ndarray]
    made_by: MadeBy = field(default_factory=dict)

    @property
    def num_seeds(self) -> int:
        return len(self.counts["responses"])


def read_row(runs: Sequence[Run]) -> RowCounts:
    """Counts of the runs of one row. Raises ValueError if they were evaluated on different
    problems, or in other ways."""
    scored = [read_scores(run.scores) for run in runs]
    ids = problems_of(scored[0])
    for run, scores in zip(runs, scored, strict=True):
        if not same_problems(problems_of(scores), ids):
            raise ValueError(
                f"{run.scores} has other problems than {runs[0].scores}; delete one, or use "
                "another --work"
            )
        check_comparable(
            known_parts(scored[0]),
            known_parts(scores),
            (str(runs[0].scores), str(run.scores)),
            AGAIN,
        )
    counts = {name: np.array([_count(scores, name) for scores in scored]) for name in COUNTS}
    for name, count in {"rechecks": count_rechecks, "empty_checks": count_empty_checks}.items():
        counts[name] = np.array([_count_texts(run.generations, ids, count) for run in runs])
    levels = [problem["level"] for problem in scored[0]["problems"]]
    row, made_by = runs[0].row, known_parts(scored[0])
    return RowCounts(row.name, row.title, ids, levels, counts, made_by)


def problems_of(scores: Row) -> Problems:
    """Ids and digests of the problems of scores; of those of an earlier version no digests."""
    return [(problem["id"], problem.get("problem_digest")) for problem in scores["problems"]]


def same_problems(one: Problems, other: Problems) -> bool:
    """Whether two lists have the same problems in the same order, as far as it is known."""
    return len(one) == len(other) and all(
        a == b and (None in (first, second) or first == second)
        for (a, first), (b, second) in zip(one, other, strict=True)
    )


def _count(scores: Row, name: str) -> list[float]:
    values: dict[str, Callable[[Row], float]] = {
        "responses": lambda response: 1,
        "corrected": lambda response: response["correct"] and response["first_right"] is False,
        "slips": lambda response: response["first_right"] is False,
    }
    value = values.get(name, lambda response: response[name])
    return [
        float(sum(value(response) for response in problem["responses"]))
        for problem in scores["problems"]
    ]


def _count_texts(generations: Path, ids: Problems, count: Callable[[str], int]) -> list[float]:
    """Sums over the responses to each problem, whatever the order of the file is."""
    scored, sums = Identities(f"the scores of {generations}"), {key: 0.0 for key, _ in ids}
    for key, known in ids:
        scored.add(key, (known, None))
    for row in read_generations(generations):
        key = problem_id(row)
        scored.check(f"{generations}: {row['id']!r}", key, (problem_digest(row["problem"]), None))
        sums[key] += sum(count(thinking_in(r)) for r in row["responses"])
    return [*sums.values()]


def all_figures(rows: Sequence[RowCounts]) -> dict[str, Figures]:
    """Figures by row, group and name; the first row is the base. ValueError for other problems."""
    base = rows[0]
    if other := [row.name for row in rows if not same_problems(row.ids, base.ids)]:
        raise ValueError(
            f"rows {other} were evaluated on other problems than the base; delete their evaluations"
        )
    for row in rows[1:]:
        check_comparable(base.made_by, row.made_by, (f"row {base.name}", f"row {row.name}"), AGAIN)
    groups = [ALL, *(DIFFICULTIES if base.levels[0] is not None else ())]
    of_base = {group: row_ratios(base, group) for group in groups}
    result: dict[str, Figures] = {}
    for row in rows:
        result[row.name] = {}
        for group in groups:
            ratios = against(row_ratios(row, group), of_base[group])
            result[row.name][group] = intervals(ratios, int(inside(row, group).sum()))
    return result


def row_ratios(row: RowCounts, group: str) -> dict[str, np.ndarray]:
    """(1 + R,) values of every figure of `RATIOS` over the problems of a group."""
    return resampled_ratios(row.counts, RATIOS, inside(row, group))


def inside(row: RowCounts, group: str) -> np.ndarray:
    """(P,) whether each problem is of a group."""
    return np.array([group == ALL or level in DIFFICULTIES[group] for level in row.levels])


def words_outgrow_rechecks(figures: Figures, base: Figures) -> bool:
    """Whether a row writes more reflection words a real re-check than the base, beyond both
    intervals.

    Then the density of words, which the reflection reward sees, says more than there is.
    """
    own, reference = figures[ALL]["words_per_recheck"], base[ALL]["words_per_recheck"]
    if own.value is None:  # words without any re-check; a row with neither does not reflect at all
        return figures[ALL]["words"].value > 0
    return own.low is not None and reference.high is not None and own.low > reference.high


def tables(rows: Sequence[RowCounts], figures: dict[str, Figures], miniature: bool) -> str:
    """The study's two tables in Markdown. Only the miniature's mistakes and re-checks are known."""
    base = figures[rows[0].name]
    groups = [group for group in DIFFICULTIES if group in base]
    hardest = groups[-1] if groups else ALL
    main = [percent("accuracy %", "all accuracy")]
    main += [percent(f"{group} %", f"{group} accuracy") for group in groups]
    main += [
        Column("tokens", "all tokens", digits=0),
        Column("TR %", "all tr"),
        Column("AES", "all aes", digits=2),
        percent("truncated %", "all truncated"),
    ]
    reflection = [
        Column(f"tokens/word, {group}", f"{group} tokens_per_word", digits=0)
        for group in groups or [ALL]
    ]
    reflection.append(Column("words/1000 tokens", "all words"))
    if miniature:
        main += [
            percent(f"corrected, {hardest} %", f"{hardest} corrected"),
            percent(f"of mistakes, {hardest} %", f"{hardest} slips_corrected"),
        ]
        reflection += [
            Column("re-checks/1000 tokens", "all rechecks"),
            Column("words/re-check", "all words_per_recheck", digits=2),
            Column("empty checks", "all empty_checks", digits=2),
            Column("words outgrow re-checks", "outgrow"),
        ]
    cells: dict[str, dict[str, Any]] = {}
    for row in rows:
        by_group = figures[row.name]
        cells[row.title] = {
            f"{g} {name}": f for g, named in by_group.items() for name, f in named.items()
        }
        outgrow = miniature and words_outgrow_rechecks(by_group, base)
        cells[row.title] |= {"seeds": row.num_seeds, "outgrow": "yes" if outgrow else "no"}
    main.append(Column("seeds", "seeds"))
    shown = (render(cells, columns, markdown=True) for columns in (main, reflection))
    return "\n\n".join(shown)


def json_row(row: RowCounts, figures: Figures) -> dict[str, Any]:
    """One row of `study.json`; accuracies and the like are shares."""
    overall, hardest = figures[ALL], figures.get("hard", figures[ALL])
    return {
        "name": row.name,
        "title": row.title,
        "seeds": row.num_seeds,
        "accuracy": overall["accuracy"].value,
        "accuracy_low": overall["accuracy"].low,
        "accuracy_high": overall["accuracy"].high,
        **{name: overall[name].value for name in ("tokens", "tr", "aes")},
        "hard": hardest["accuracy"].value,
        **{name: hardest[name].value for name in ("corrected", "slips_corrected")},
        "groups": {group: plain(named) for group, named in figures.items()},
    }


def plain(figures: Mapping[Any, Interval]) -> dict[Any, dict[str, float | None]]:
    """Intervals by name as JSON has them."""
    return {name: asdict(figure) for name, figure in figures.items()}


def draw(
    rows: Sequence[RowCounts], figures: dict[str, Figures], runs: Sequence[Run], out: Path
) -> None:
    """Pictures: accuracy against tokens, training curves, reflection by difficulty."""
    groups = [group for group in (ALL, "hard") if group in figures[rows[0].name]]
    panels = [partial(_plot_group, rows=rows, figures=figures, group=group) for group in groups]
    save_panels(panels, out / "tradeoff.png", columns=len(groups), height=4.6)
    first_seeds = [run for run in runs if run.row.name in MAIN_ROWS[1:] and run.seed == 0]
    logs = {run.row.name: read_log(run.directory / "trainer_state.json") for run in first_seeds}
    if logs:
        titles = {run.row.name: run.row.title for run in first_seeds}
        panels = [
            partial(plot_curves, logs=logs, styles=STYLES, titles=titles, key=key, label=label)
            for key, label in CURVES.items()
        ]
        save_panels(panels, out / "training.png", columns=3)
    if "hard" in figures[rows[0].name]:
        shown = [row for row in rows if row.name in MAIN_ROWS]
        panels = [
            partial(plot_difficulties, rows=shown, figures=figures, key=key)
            for key in ("words", "rechecks")
        ]
        save_panels(panels, out / "reflection.png")


def _plot_group(
    axes: Axes, rows: Sequence[RowCounts], figures: dict[str, Figures], group: str
) -> None:
    """The main rows have colours and names, the others are grey."""
    of_group = {row.name: figures[row.name][group] for row in rows}
    titles = {row.name: row.title for row in rows if row.name in METHODS}
    pale = {"color": PALE, "marker": ".", "zorder": 1}
    main = {name: {**STYLES[name], "markersize": 7, "zorder": 2} for name in titles}
    heading = "all problems" if group == ALL else f"{group} problems"
    plot_pareto(axes, of_group, {**dict.fromkeys(of_group, pale), **main}, titles, heading)


def plot_pareto(
    axes: Axes,
    figures: Mapping[str, Mapping[str, Interval]],
    styles: Styles,
    titles: Mapping[str, str],
    heading: str,
) -> None:
    """Tokens and accuracy of each row with intervals, and the front that no row beats; rows with
    a title have it next to their point."""
    line = {"capsize": 2, "elinewidth": 1}
    points = {name: (f["tokens"], f["accuracy"]) for name, f in figures.items()}
    places = plot_points(axes, points, {name: {**line, **styles[name]} for name in points})
    labels = [(places[name], title, styles[name]["color"]) for name, title in titles.items()]
    label_points(axes, labels, list(places.values()))
    axes.set_title(heading)


def plot_curves(
    axes: Axes,
    logs: Mapping[str, list[Row]],
    styles: Styles,
    titles: Mapping[str, str],
    key: str,
    label: str,
) -> None:
    """Running mean of one figure over training steps, a line per row."""
    for name, history in logs.items():
        steps, values = series(history, key)
        marks = {"markevery": max(len(steps) // 6, 1), "markersize": 4}
        axes.plot(steps, running_mean(values), label=titles[name], **styles[name], **marks)
    axes.set(xlabel="optimizer step", ylabel=label)
    axes.legend(**ABOVE)


def plot_difficulties(
    axes: Axes, rows: Sequence[RowCounts], figures: dict[str, Figures], key: str
) -> None:
    """One figure by difficulty, a bar with its interval per row."""
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        values = [figures[row.name][group][key] for group in DIFFICULTIES]
        heights = [v.value or 0.0 for v in values]
        below = [v.value - v.low for v in values]
        above = [v.high - v.value for v in values]
        shift = (i - (len(rows) - 1) / 2) * width
        places = [x + shift for x in range(len(values))]
        bars = {"color": STYLES[row.name]["color"], "label": row.title}
        bars |= {"error_kw": {"elinewidth": 1, "ecolor": GREY}}
        axes.bar(places, heights, width, yerr=[below, above], **bars)
    words = {"words": "reflection words", "rechecks": "re-checks"}[key]
    axes.set(ylabel=f"{words} / 1000 tokens")
    axes.set_xticks(range(len(DIFFICULTIES)), list(DIFFICULTIES))
    axes.legend(**ABOVE)


def seconds(runs: Sequence[Run]) -> tuple[Counter[str], Counter[str]]:
    """Seconds of training and evaluation by row, over its seeds, and by device."""
    by_row: Counter[str] = Counter()
    by_device: Counter[str] = Counter()
    for run in runs:
        for file in ("trained.json", "evaluated.json"):
            if (path := run.directory / file).is_file():
                spent = json.loads(path.read_text())
                by_row[run.row.name] += spent["seconds"]
                by_device[spent.get("device", "unknown device")] += spent["seconds"]
    return by_row, by_device


def write_report(args: Namespace, runs: Sequence[Run]) -> None:
    """`study.md`, `study.json` and the pictures in `args.out`, of the runs that are evaluated."""
    names = [*dict.fromkeys(run.row.name for run in runs)]
    rows = [read_row([run for run in runs if run.row.name == name]) for name in names]
    figures = all_figures(rows)
    by_row, by_device = seconds(runs)
    draw(rows, figures, runs, args.out)
    settings = {
        key: getattr(args, key) for key in ("recipe_set", "steps", "eval_dataset", "eval_samples")
    }
    study = {
        "settings": settings | {"eval_problems": len(rows[0].ids)},
        "rows": [json_row(row, figures[row.name]) for row in rows],
        "seconds": by_row,
        "seconds_by_device": by_device,
    }
    write_json(args.out / "study.json", study)
    times = " and ".join(f"{time / 60:.0f} minutes on {kind}" for kind, time in by_device.items())
    intro = (
        f"`{args.recipe_set}`, {args.steps or 'all'} steps, {len(rows[0].ids)} held-out problems. "
        f"Responses to a problem and seed: {args.eval_samples}. ± is half of the 95 % interval "
        f"over problems and seeds. Training and evaluation took at least {times}. That is the sum "
        "over runs; with --jobs, several run at a time."
    )
    parts = ["# The study", intro, tables(rows, figures, args.set.slips), PICTURES, LEGEND]
    check_made(page := args.out / "study.md", page, parts[0])
    write_atomically(page, ["\n\n".join(parts)])


PICTURES = "\n\n".join(
    f"![{text}]({name}.png)"
    for name, text in (
        (
            "tradeoff",
            "Accuracy against tokens on all and on hard problems. Dashed: Pareto front; grey: "
            "other experiments.",
        ),
        ("training", "Accuracy, tokens and density of reflection words over training."),
        ("reflection", "Reflection words and re-checks by difficulty."),
    )
)
LEGEND = (
    "TR: tokens in percent of the base's. AES: accuracy-efficiency score (arXiv 2501.12570). "
    "Corrected: share of the responses with a wrong first result and a right answer. Of mistakes: "
    "share of the responses with a wrong first result that end in a right answer. A re-check is a "
    "paragraph after the first result that computes something. An empty check has a reflection "
    "word and computes nothing; the table has their number in a response. Words outgrow re-checks "
    "if an experiment writes more words for a re-check than the base, beyond both intervals: its "
    "density of words then says more than there is."
)
