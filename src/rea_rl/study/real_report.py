"""The report of `scripts/real.sh`: table, pictures and JSON of all rows on the test problems.

    python -m rea_rl.study.real_report output/Qwen2.5-Coder-0.5B-Instruct \
        --model_dir output/Qwen2.5-Coder-0.5B-Instruct/LRM

Figures and their intervals are those of `rea_rl.study.real_figures`.
"""

from __future__ import annotations

import json
import logging
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from generation.answer_judge import AnswerJudge
from generation.calibrate import cut_table
from generation.evaluation.plots import PICTURE, point_style, save_panels
from generation.figure_table import Column, percent, render
from generation.generation_file import read_generations
from generation.identity import Identities, check_same, identity
from generation.scoring import interval, resample
from rea_core.checks import check_made, user_path
from rea_core.command import Needed, add_flags, command
from rea_core.json_text import read_json
from rea_core.models import load_tokenizer
from rea_core.ownership import own_output_folder
from rea_core.problems import problem_digest
from rea_core.row_files import Row, write_json
from rea_core.rows import write_atomically
from rea_rl.run.card import code_version, package_versions
from rea_rl.study.real_figures import (
    BUDGETS,
    STUDY_NAMES,
    TITLES,
    WITHOUT_THINKING,
    Counter,
    Curves,
    Report,
    RowData,
    make_report,
    read_row,
    read_verdicts,
    verdict_on,
)
from rea_rl.study.report import CURVES, Styles, plain, plot_curves, plot_pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

# --- Tables, pictures, JSON -----------------------------------------------------------------------

COLUMNS = (
    percent("accuracy %", "accuracy"),
    Column("tokens", "tokens", digits=0),
    Column("TR %", "tr"),
    Column("AES", "aes", digits=2),
    Column("right", "tokens_right", digits=0),
    Column("wrong", "tokens_wrong", digits=0),
    percent("truncated %", "truncated"),
    Column("seeds", "seeds"),
)
REFLECTION = (
    Column("reflection words / 1,000", "words"),
    Column("re-checks / 1,000", "rechecks"),
    Column("re-checks a response", "rechecks_per_response", digits=2),
    percent("mistakes %", "mistakes"),
    percent("corrected %", "corrected"),
    percent("thinking after the first right result %", "after_first"),
    percent("area under the budget curve", "area"),
)
DIFFERENCE_COLUMNS = (
    percent("accuracy", "accuracy"),
    Column("tokens", "tokens"),
    Column("words", "words"),
    percent("corrected", "corrected"),
    percent("accuracy, GSM8K", "accuracy, GSM8K"),
    percent("area", "area"),
)


def table(rows: dict[str, Any], columns: Iterable[Column], corner: str = "") -> str:
    """One line a row in Markdown."""
    titled = {TITLES.get(name, name): figures for name, figures in rows.items()}
    return render(titled, columns, corner, markdown=True, bounds=True)


def group_table(report: Report, groups: Sequence[str]) -> str:
    """Accuracy by group of problems, one line a row."""
    rows = {
        name: {group: by_group[group]["accuracy"] for group in groups}
        for name, by_group in report.figures.items()
    }
    return table(rows, [percent(group, group) for group in groups], "accuracy %")


def curve_table(curves: Curves) -> str:
    """Accuracy at each budget, one line a row."""
    columns = [percent(f"{b} tokens", b) for b in next(iter(curves.values()))]
    return table(curves, columns, "accuracy %")


def difference_table(report: Report) -> str:
    """Paired differences between rows."""
    known = next(iter(report.differences.values()))
    columns = [column for column in DIFFERENCE_COLUMNS if column.key in known]
    return table(report.differences, columns, "difference")


def json_rows(report: Report, rows: Sequence[RowData]) -> list[dict[str, Any]]:
    """Rows of `real.json`: accuracies are fractions."""
    found = []
    for row in rows:
        figures = report.figures[row.name]
        main = {key: figures["all"][key].value for key in ("accuracy", "tokens", "tr")}
        groups = {group: plain(values) for group, values in figures.items()}
        title = TITLES.get(row.name, row.name)
        found.append(
            {"name": row.name, "title": title, "seeds": row.num_seeds, **main, "groups": groups}
        )
    return found


def draw(report: Report, forced: Curves, logs: dict[str, list[dict]], out: Path) -> list[str]:
    """Pictures: accuracy against tokens, budget curves, training curves; their file names."""
    names = [name for name in report.figures if name not in WITHOUT_THINKING]
    # rows that are trained but not evaluated have curves only
    drawn = dict.fromkeys([*names, *logs])
    styles = {name: point_style(i) for i, name in enumerate(drawn)}
    every = {name: TITLES.get(name, name) for name in styles}
    overall = {name: report.figures[name]["all"] for name in names}
    titles = {name: every[name] for name in names}
    curves = {"as the model answers": report.curves, "with a forced answer at the budget": forced}
    panels = {
        "tradeoff": [
            partial(plot_pareto, figures=overall, styles=styles, titles=titles, heading=FRONT)
        ],
        "budgets": [
            partial(_plot_budgets, curves=each, styles=styles, titles=titles, heading=heading)
            for heading, each in curves.items()
            if each
        ],
        "training": [
            partial(plot_curves, logs=logs, styles=styles, titles=every, key=key, label=label)
            for key, label in CURVES.items()
            if logs
        ],
    }
    panels = {name: plots for name, plots in panels.items() if plots}
    for name, plots in panels.items():
        save_panels(plots, out / f"{name}.png", columns=len(plots), height=4.6)
    return list(panels)


FRONT = "dashed: Pareto front"


def _plot_budgets(
    axes: Axes,
    curves: Curves,
    styles: Styles,
    titles: dict[str, str],
    heading: str,
) -> None:
    for name in [name for name in curves if name in titles]:
        budgets, figures = zip(*curves[name].items(), strict=True)
        middle, low, high = (
            [100 * getattr(figure, part) for figure in figures] for part in ("value", "low", "high")
        )
        axes.plot(budgets, middle, label=titles[name], **styles[name])
        axes.fill_between(budgets, low, high, color=styles[name]["color"], alpha=0.12)
    axes.set(xscale="log", xlabel="tokens allowed", ylabel="accuracy (%)", title=heading)
    axes.set_xticks(list(BUDGETS), [str(b) for b in BUDGETS])
    axes.legend(frameon=False, fontsize=8)


# --- Examples and provenance ----------------------------------------------------------------------


def example_pairs(run: Path, problems: dict[str, str], limit: int = 3) -> list[str]:
    """Original and revision of some problems of SVAMP and GSM8K as text; the last one is a
    revision that broke an answer."""
    files = (run / "rollouts").glob("step-*.jsonl")
    files = sorted(files, key=lambda path: int(path.stem.split("-")[1]))
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for path in files:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for original, revision in zip(lines[::2], lines[1::2], strict=True):
            if (
                revision["kind"] == "revision"
                and original["correct"]
                and original["problem_id"] in problems
            ):
                problem = problems[original["problem_id"]]
                place = f"{path}: {original['problem_id']!r}"
                check_same(
                    place, identity(original), "train_problems", (problem_digest(problem), None)
                )
                text = _example(problem, original, revision, path.stem)
                kinds[revision["correct"]].append(text)
    return kinds[True][: limit - 1] + kinds[False][:1]


def _example(problem: str, original: Row, revision: Row, step: str) -> str:
    verdict = "right" if revision["correct"] else "wrong"
    return (
        f"**{problem}** ({step}; original right with {original['num_tokens']} tokens, revision "
        f"{verdict} with "
        f"{revision['num_tokens']})\n\nOriginal:\n\n```text\n{original['text']}\n```\n\nRevision:\n\n```text\n{revision['text']}\n```"
    )


def find_rows(work: Path) -> dict[str, list[Path]]:
    """Generation files of all rows in a work folder of `scripts/real.sh`, by name, one a seed."""
    found: dict[str, list[Path]] = {}
    for name in ("instruct", "solver"):
        if files := sorted((work / "generated" / name).glob("*/test_math_cot.json")):
            found[name] = files[:1]
    for row in sorted((work / "study").glob("*")):
        if files := sorted(row.glob("seed-*/eval/*/test_math_cot.json")):
            found[STUDY_NAMES.get(row.name, row.name)] = files
    if files := sorted((work / "generated").glob("*/cut_test_math_cot.json")):
        found["lrm_cut"] = files[:1]
    if "lrm" not in found:
        raise ValueError(
            f"{work} has no evaluation of the reasoning model itself (study/base); run "
            "scripts/real.sh first"
        )
    return {name: found[name] for name in [*TITLES, *found] if name in found}


def forced_curves(work: Path, problems: Sequence[Row]) -> Curves:
    """Accuracy with an answer that is forced at each budget, by row."""
    found = {}
    order = {row["id"]: i for i, row in enumerate(problems)}
    tested = Identities("the test set")
    for row in problems:
        tested.add(row["id"], identity(row))
    for path in sorted((work / "forced").glob("*/*_math_cot.json")):
        name = path.stem.removesuffix("_math_cot")
        verdicts = read_verdicts(path)
        by_budget: dict[int, np.ndarray] = {}
        for row in read_generations(path):
            counts = by_budget.setdefault(row["budget"], np.zeros((2, 1, len(problems), 1)))
            tested.check(f"{path}: {row['id']!r}", row["problem_id"], identity(row))
            correct = verdict_on(row, 0, verdicts, path)
            counts[:, 0, order[row["problem_id"]], 0] += (correct, 1)
        shares = {}
        for budget, counts in by_budget.items():
            sums = resample(np.moveaxis(counts[..., 0], 0, -1))  # (1 + R, 2)
            shares[budget] = sums[:, 0] / sums[:, 1]
        found[STUDY_NAMES.get(name, name)] = {b: interval(shares[b]) for b in sorted(shares)}
    return found


def training_logs(work: Path) -> dict[str, list[dict]]:
    """Log of each trained row's first seed."""
    logs = {}
    for path in sorted((work / "study").glob("*/seed-0/trainer_state.json")):
        logs[path.parts[-3]] = read_json(path)["log_history"]
    return logs


def provenance(work: Path) -> dict[str, Any]:
    """Seconds of all training steps by row, devices, and what the cut was chosen by."""
    found: dict[str, Any] = {"seconds": {}, "devices": []}
    for path in sorted((work / "study").glob("*/seed-*/trainer_state.json")):
        # A run that was continued has the seconds of its last piece only in trained.json.
        seconds = sum(step.get("step_time", 0.0) for step in read_json(path)["log_history"])
        row = path.parts[-3]
        found["seconds"][row] = found["seconds"].get(row, 0.0) + seconds
    for path in sorted((work / "study").glob("*/seed-*/trained.json")):
        found["devices"] = sorted({*found["devices"], read_json(path)["device"]})
    if (work / "cut.json").is_file():
        found["cut"] = read_json(work / "cut.json")
    return found


TEXT = """# The method on a real model

Made by `bash scripts/real.sh`: {num_problems} test problems, {answers} answers each at temperature
0.6, at most 2,048 tokens. Square brackets are 95 % intervals over problems and, if a row has
several, seeds. The seed changes the order of the training problems and the sampled responses of the
training; the reasoning model is the same for all rows. TR: tokens in percent of the reasoning
model's. AES: accuracy-efficiency score (arXiv 2501.12570). A mistake is a first stated result that
is wrong; it is corrected if the answer is right. A re-check is a result that is stated again.
{notes}

{main}

{reflection}

{detector}## Differences

Paired over problems; tokens are counted per response, words per 1,000 tokens of thinking.

{differences}

## By set and difficulty

{by_set}

{by_level}

## Budgets

A response that needs more tokens than the budget has no answer.

{curves}
{forced}
{pictures}

## Originals and revisions

Problems of SVAMP and GSM8K (MIT).

{examples}
"""


DETECTOR = """## The reflection model

On {responses} responses to {problems} held-out problems it finds results with precision
{precision:.2f} and recall {recall:.2f}; the area under the curve (AUC) is {auc:.2f}. A response is
cut behind the first paragraph whose P(Result) is above {cut_threshold:g}, at the earliest behind
{cut_second_half:.0%} of the paragraphs. {settings_tried} settings were tried on these responses. A
cut is safe if it keeps the first right result. The last column is the share of the reflection
reward that cut responses keep.

{cuts}

![the choice of the cut](cut.png)

"""


def detector_section(cut: dict[str, Any] | None) -> str:
    """Quality of the reflection model and of its cuts, from the file of `generation.calibrate`."""
    if cut is None:
        return ""
    cuts = cut_table(cut["cuts"], "cuts by", markdown=True, bounds=True)
    return DETECTOR.format(**cut | cut["detector"] | {"cuts": cuts})


def page(
    report: Report, rows: Sequence[RowData], problems: Sequence[Row], parts: dict[str, Any]
) -> str:
    """The page."""
    sets = sorted({row["benchmark"] for row in problems if row.get("benchmark")})
    levels = sorted({row["level"] for row in problems if row.get("level")})
    forced = ""
    if parts["forced"]:
        forced = (
            "\nWith an answer that is forced at the budget (one response a "
            f"problem):\n\n{curve_table(parts['forced'])}\n"
        )
    seeds = {row.name: row.num_seeds for row in rows}
    overall = {
        name: {**groups["all"], "seeds": seeds[name]} for name, groups in report.figures.items()
    }
    return TEXT.format(
        num_problems=len(problems),
        answers=int(rows[-1].counts["responses"].shape[2]),
        notes=parts["notes"],
        main=table(overall, COLUMNS),
        reflection=table(overall, REFLECTION),
        detector=detector_section(parts["cut"]),
        differences=difference_table(report) if report.differences else "-",
        by_set=group_table(report, sets),
        by_level=group_table(report, levels),
        curves=curve_table(report.curves),
        forced=forced,
        pictures="\n\n".join(f"![{name}]({name}.png)" for name in parts["pictures"]),
        examples="\n\n".join(parts["examples"]) or "-",
    )


def run(args: Namespace) -> None:
    """Write page, pictures and JSON. Raises ValueError if something is missing."""
    from generation.math_verify import VerifierPool

    own_output_folder(args.out, "out")
    files = find_rows(args.work)
    columns = ("id", "problem", "answer", "benchmark", "level")
    tested = read_generations(files["lrm"][0])
    problems = [{key: row.get(key) for key in columns} for row in tested]
    tokenizer = load_tokenizer(args.model_dir, "model_dir")
    with VerifierPool(args.num_workers) as pool:
        counter = Counter(AnswerJudge(pool), tokenizer)
        rows = [read_row(name, paths, problems, counter) for name, paths in files.items()]
    report = make_report(rows, problems)
    forced, logs = forced_curves(args.work, problems), training_logs(args.work)
    made_with = provenance(args.work)
    shown = {row["id"]: row["problem"] for row in shown_problems(args.train_problems)}
    parts = {
        "forced": forced,
        "pictures": draw(report, forced, logs, args.out),
        "examples": example_pairs(args.work / "study" / "rea_rl" / "seed-0", shown)
        if shown
        else [],
        "notes": args.notes,
        "cut": made_with.get("cut"),
    }
    if (args.work / "cut.png").is_file():
        check_made(picture := args.out / "cut.png", picture, PICTURE)
        shutil.copy(args.work / "cut.png", picture)
    check_made(card := args.out / "README.md", card, TEXT.splitlines()[0])
    write_atomically(card, page(report, rows, problems, parts).splitlines())
    found = {"differences": report.differences, "budgets": report.curves, "forced": forced}
    found = {key: {n: plain(figures) for n, figures in by.items()} for key, by in found.items()}
    found |= {"rows": json_rows(report, rows), "versions": package_versions() | code_version()}
    write_json(args.out / "real.json", found | made_with)
    logger.info("wrote %s: %s", args.out / "README.md", ", ".join(row.name for row in rows))


def shown_problems(path: Path | None) -> list[Row]:
    """Training problems whose texts may be shown: of SVAMP and GSM8K only."""
    if path is None:
        return []
    return [row for row in read_json(path) if row.get("benchmark") in ("SVAMP", "GSM8K")]


def parse_arguments(argv: list[str] | None) -> Namespace:
    """Command line."""
    parser = ArgumentParser(description="Table, pictures and JSON of scripts/real.sh.")
    parser.add_argument("work", type=user_path, help="folder of the stages, output/<recipe set>")
    add_flags(
        parser,
        model_dir=(Needed(str), "reasoning model; its tokenizer counts tokens"),
        train_problems=(Path, "training problems, for examples of revisions"),
        out=(Path("docs/real"), "folder of the report"),
        notes=("", "sentences that the page says of this run"),
        num_workers=(2, "processes that compare answers"),
    )
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments or files."""
    run(parse_arguments(argv))


if __name__ == "__main__":
    main()
