"""The picture of a run: accuracy and tokens over training, and accuracy against tokens of scored
models.

    python -m generation.evaluation.plots \\
        --trainer_state output/miniature/ReflectRL/trainer_state.json \\
        --scores base.scores.json trained.scores.json --names base REA-RL \\
        --save_to output/quickstart/quickstart.png
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generation.math_verify_all import Scores, check_same_problems, read_scores
from generation.provenance import check_all_comparable, distinct_names, known_parts
from generation.scoring import ALL, Interval
from rea_core.checks import check_made, user_path
from rea_core.command import Needed, add_flags, command
from rea_core.json_text import read_json
from rea_core.ownership import own_file, own_output
from rea_core.row_files import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


logger = logging.getLogger(__name__)

PICTURE = "atplotlib"  # in a picture: the name of the library that drew it
MARKED = (".png", ".pdf", ".svg", ".ps", ".eps")  # which have it

# Okabe and Ito's colours, told apart by colour-blind readers too; markers differ as well, for
# prints in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"
# Sizes of names at points, in shares of a panel of 5 x 4.6 inches.
LETTER_WIDTH, LINE_HEIGHT, LABEL_GAP = 0.0165, 0.06, 0.04
Point = tuple[float, float]
# Keys of the trainer's log, with "eval_" before them in evaluations.
ACCURACY_KEY = "rollout/accuracy"
TOKENS_KEY = "rollout/num_tokens"
EVAL = "eval_"
SMOOTHING = 5  # training steps in a running mean: one step has a few prompts only


def read_log(trainer_state: str | Path) -> list[Row]:
    """Log of a training run. Raises ValueError if the file does not exist or has none."""
    path = Path(trainer_state)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it is written to the run's output_dir")
    state = read_json(path)
    history = state.get("log_history", []) if isinstance(state, dict) else []
    if not any(ACCURACY_KEY in entry for entry in history):
        raise ValueError(
            f"{path}: no entry of its log has {ACCURACY_KEY!r}; is it the state of a run of "
            "rea_rl.grpo?"
        )
    return history


def series(history: list[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one key of a log."""
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    return [step for step, _ in points], [value for _, value in points]


def running_mean(values: Sequence[float], width: int = SMOOTHING) -> list[float]:
    """Mean over each value and up to `width` - 1 before it.

    >>> running_mean([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    windows = [values[max(0, i + 1 - width) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def plot_training(axes: Axes, history: list[Row], key: str, label: str, scale: float = 1.0) -> None:
    """One figure over training: every step faintly, their running mean, evaluations as points."""
    steps, values = series(history, key)
    axes.plot(steps, [scale * v for v in values], color=COLOURS[0], alpha=0.25, linewidth=1)
    axes.plot(
        steps,
        [scale * v for v in running_mean(values)],
        color=COLOURS[0],
        linewidth=2,
        label="training responses",
    )
    eval_steps, eval_values = series(history, EVAL + key)
    if eval_steps:
        axes.plot(
            eval_steps,
            [scale * v for v in eval_values],
            color=COLOURS[1],
            marker=MARKERS[1],
            label="held-out problems",
        )
    axes.set(xlabel="optimizer step", ylabel=label)
    axes.legend(frameon=False)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (tokens, accuracy) that no other beats: none has as few tokens and as much accuracy.
    Fewest tokens first.

    >>> pareto_front([(2.0, 0.9), (1.0, 0.8), (3.0, 0.85)])
    [(1.0, 0.8), (2.0, 0.9)]
    """
    front: list[tuple[float, float]] = []
    for tokens, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((tokens, accuracy))
    return front


def point_style(i: int) -> dict[str, str]:
    """Colour and shape of the `i`-th point; no pair comes twice among 49."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
    }


def label_points(
    axes: Axes, labels: Sequence[tuple[Point, str, str]], taken: Sequence[Point]
) -> None:
    """Write names next to their points, each at the first free place from there downwards.

    Args:
        axes: with everything drawn that changes their limits.
        labels: point, name and colour.
        taken: points that no name may cover.
    """
    axes.autoscale_view()
    fraction = axes.transLimits.transform  # of the panel, from data
    boxes = [(x - 0.02, y - 0.03, x + 0.02, y + 0.03) for x, y in map(fraction, taken)]
    for point, name, colour in sorted(labels, reverse=True):  # from the right
        x, y = fraction(point)
        width = LETTER_WIDTH * len(name)
        on_the_right = x + LABEL_GAP + width < 1
        left = x + LABEL_GAP if on_the_right else x - LABEL_GAP - width
        while any(
            left < box[2] and box[0] < left + width and abs(y - (box[1] + box[3]) / 2) < LINE_HEIGHT
            for box in boxes
        ):
            y -= LINE_HEIGHT / 4
        boxes.append((left, y - LINE_HEIGHT / 2, left + width, y + LINE_HEIGHT / 2))
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 5}
        axes.annotate(
            name,
            point,
            xytext=(left, y),
            textcoords="axes fraction",
            color=colour,
            va="center",
            arrowprops={**line, "relpos": (0 if on_the_right else 1, 0.5)},
        )


def plot_points(
    axes: Axes, points: Mapping[str, tuple[Interval, Interval]], styles: Mapping[str, Any]
) -> dict[str, Point]:
    """Tokens and accuracy of each row with their 95 % intervals, and the Pareto front.

    Args:
        axes: of the panel.
        points: tokens and accuracy, a share, by row.
        styles: of each row's point, as pyplot takes them.

    Returns each row's place: tokens, and accuracy in percent.
    """
    places = {name: (tokens.value, 100 * share.value) for name, (tokens, share) in points.items()}
    front = pareto_front(list(places.values()))
    label = "Pareto front" if len(front) > 1 else None
    dashed = {"color": GREY, "linewidth": 1, "linestyle": "--", "zorder": 0}
    axes.plot(*zip(*front, strict=True), **dashed, label=label)
    for name, (tokens, share) in points.items():
        errors = {"xerr": error_bar(tokens), "yerr": error_bar(share, 100)}
        axes.errorbar(*places[name], **errors, **styles[name], linestyle="none")
    axes.set(xlabel="tokens per response", ylabel="accuracy (%)")
    return places


def plot_tradeoff(axes: Axes, scored: dict[str, Scores]) -> None:
    """Accuracy against mean tokens of scored models."""
    groups = {name: scores["groups"][ALL] for name, scores in scored.items()}
    points = {
        name: (Interval(**group["tokens"]), Interval(**group["accuracy"]))
        for name, group in groups.items()
    }
    styles = {
        name: {**point_style(i), "markersize": 8, "capsize": 3, "label": name}
        for i, name in enumerate(scored)
    }
    plot_points(axes, points, styles)
    axes.margins(0.2)
    axes.legend(frameon=False)


def plot_levels(axes: Axes, scored: dict[str, Scores]) -> None:
    """Mean tokens by level, one group of bars per level: where the tokens were saved."""
    levels = [name for name in next(iter(scored.values()))["groups"] if name != ALL]
    width = 0.8 / len(scored)
    for i, (name, scores) in enumerate(scored.items()):
        tokens = [scores["groups"][level]["tokens"] for level in levels]
        axes.bar(
            [x + (i - (len(scored) - 1) / 2) * width for x in range(len(levels))],
            [t["value"] for t in tokens],
            width,
            yerr=[[error_bar(Interval(**t))[side][0] for t in tokens] for side in (0, 1)],
            color=COLOURS[i % len(COLOURS)],
            error_kw={"elinewidth": 1, "ecolor": GREY},
            label=name,
        )
    axes.set(ylabel="tokens per response")
    axes.set_xticks(range(len(levels)), levels)
    axes.legend(frameon=False)


def error_bar(figure: Interval, scale: float = 1) -> list[list[float]]:
    """Lengths of an error bar below and above a figure, as pyplot takes them."""
    value, low, high = (scale * bound for bound in (figure.value, figure.low, figure.high))
    return [[value - low], [high - value]]


def draw(history: list[Row] | None, scored: dict[str, Scores], save_to: str | Path) -> Path:
    """Draw what is given, one panel each, and save it as an image.

    Args:
        history: log of a training run; None leaves out the two panels over training.
        scored: scores by the name in the legend; empty leaves out accuracy against tokens. Those of
            rows with levels also get a panel of tokens by level.
        save_to: image file; the extension says which kind.
    """
    panels = []
    if history:
        panels.append(lambda axes: plot_training(axes, history, ACCURACY_KEY, "accuracy (%)", 100))
        panels.append(lambda axes: plot_training(axes, history, TOKENS_KEY, "tokens per response"))
    if scored:
        panels.append(lambda axes: plot_tradeoff(axes, scored))
        if all(len(scores["groups"]) > 1 for scores in scored.values()):
            panels.append(lambda axes: plot_levels(axes, scored))
    save_panels(panels, Path(save_to), columns=min(len(panels), 2), least_width=0)
    return Path(save_to)


def save_panels(
    panels: Sequence[Callable[[Axes], None]],
    save_to: Path,
    columns: int = 2,
    height: float = 3.8,
    least_width: float = 8,
) -> None:
    """Draw the panels in rows of `columns`, each `height` inches high, and save the image;
    it is at least `least_width` inches wide."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    style = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
    }
    rows = -(-len(panels) // columns)
    with pyplot.rc_context({**style, "axes.axisbelow": True, "font.size": 10}):
        size = max(5 * columns, least_width), height * rows
        figure, axes = pyplot.subplots(
            rows, columns, figsize=size, squeeze=False, layout="constrained"
        )
        for panel, cell in zip(panels, axes.flat, strict=False):
            panel(cell)
        for cell in axes.flat[len(panels) :]:
            cell.set_axis_off()
        if save_to.suffix.lower() in MARKED:
            check_made(save_to, save_to, PICTURE)
        save_to.parent.mkdir(parents=True, exist_ok=True)
        with own_file(save_to):
            figure.savefig(save_to, dpi=150)
        pyplot.close(figure)


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 0 with the image written, 1 with one line on stderr for a mistake."""
    parser = argparse.ArgumentParser(
        description="Draw training curves and accuracy against tokens."
    )
    add_flags(
        parser,
        trainer_state=(Path, "trainer_state.json of a run of rea_rl.grpo"),
        save_to=(Needed(Path), "image file, such as run.png"),
    )
    parser.add_argument(
        "--scores", nargs="*", type=user_path, default=[],
        help=".scores.json files of generation.math_verify_all",
    )  # fmt: skip
    parser.add_argument("--names", nargs="*", help="their names in the legend; default: the files'")
    args = parser.parse_args(argv)
    named = distinct_names(args.scores) if args.scores else {}
    names = args.names or list(named.values())
    if len(set(names)) < len(names):
        raise ValueError(f"names are {names}; give each a name of its own")
    if len(names) != len(args.scores) or not (args.scores or args.trainer_state):
        raise ValueError(
            f"there are {len(args.scores)} scores and {len(names)} names; give as many, or a "
            "trainer_state"
        )
    own_output(args.save_to, "save_to", (*args.scores, args.trainer_state))
    history = read_log(args.trainer_state) if args.trainer_state else None
    scored = {name: read_scores(path) for name, path in zip(names, args.scores, strict=True)}
    made = (
        (str(path), known_parts(scores))
        for path, scores in zip(args.scores, scored.values(), strict=True)
    )
    check_all_comparable(made, "evaluate or score them again with the same settings")
    for path in args.scores[1:]:
        check_same_problems(args.scores[0], path)
    draw(history, scored, args.save_to)
    logger.info("wrote %s", args.save_to)


if __name__ == "__main__":
    main()
