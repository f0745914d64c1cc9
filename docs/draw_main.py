"""Draw main.png, the method in one picture: one response from sampling to revision, and one group
from rewards to adapter.

    python docs/draw_main.py main.png

Rewards and advantages in it are computed by the project's own functions; lengths and word counts
are an example.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from generation.cuts import choose_cuts
from rea_rl.revision import group_advantages, keep_or_replace
from rea_rl.rewards import refined_length_reward_values, reflection_reward_values

# Okabe and Ito's colours; labels, symbols and hatches say everything a second time.
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#A8457E"
THINK, RESULT, REMOVED, DARK = "#CFE6F5", "#F5C04A", "#F3F3F3", "#3A3F46"
TEXT, MUTED, EDGE = "#22262B", "#666B73", "#8A9099"

P_RESULT = (0.02, 0.01, 0.07, 0.04, 0.93, 0.11, 0.88, 0.97)  # of the response in the upper half
TOKENS_PER_REFLECTION = 225.09


@dataclass
class Row:
    """One trained row of the example group."""

    name: str
    think_tokens: int
    words: int
    correct: bool
    results: tuple[int, ...]  # paragraphs labelled Result
    num_paragraphs: int
    answer_tokens: int = 120

    @property
    def tokens(self) -> int:
        return self.think_tokens + self.answer_tokens


def pair(name: int, original: Row, words: int, correct: bool) -> list[Row]:
    """An original and its revision, cut where the rule says; `words` and `correct` are the
    revision's."""
    p_result = [float(i in original.results) for i in range(original.num_paragraphs)]
    kept = choose_cuts(p_result, original.num_paragraphs).normal + 1
    think_tokens = original.think_tokens * kept // original.num_paragraphs
    results = tuple(i for i in original.results if i < kept)
    return [original, Row(f"revision {name}", think_tokens, words, correct, results, kept)]


ROWS = [
    *pair(1, Row("original 1", 1000, 8, True, (4, 6, 7), 8), 2, True),
    *pair(2, Row("original 2", 1500, 9, True, (5, 8, 9), 10), 3, True),
    *pair(3, Row("original 3", 760, 5, True, (3, 5), 6), 1, False),
    *pair(4, Row("original 4", 1300, 10, False, (5, 7, 9), 10), 2, True),
]


def box(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    colour: str,
    *,
    edge: str = EDGE,
    **style,
) -> None:
    """Rounded rectangle with its lower left corner at (x, y)."""
    shape = f"round,pad=0,rounding_size={style.pop('rounding', 0.7)}"
    style = {"linewidth": 0.9, **style}
    ax.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle=shape, facecolor=colour, edgecolor=edge, **style
        )
    )


def label(ax: Axes, x: float, y: float, text: str, size: float = 9, **style) -> None:
    """Text centred at (x, y) unless `ha` says otherwise."""
    ax.text(x, y, text, fontsize=size, **{"ha": "center", "va": "center", "color": TEXT, **style})


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = DARK, **style
) -> None:
    """Arrow from `start` to `end`."""
    style = {
        "arrowstyle": "-|>",
        "mutation_scale": 11,
        "linewidth": 1.4,
        "shrinkA": 0,
        "shrinkB": 0,
        **style,
    }
    ax.add_patch(FancyArrowPatch(start, end, color=colour, **style))


def number(ax: Axes, x: float, y: float, value: int) -> None:
    """Number of a step in a disc."""
    ax.plot([x], [y], "o", markersize=15, color=DARK)
    label(ax, x, y - 0.05, str(value), 9.5, color="white", fontweight="bold")


def step(ax: Axes, y: float, value: int, actor: str, colour: str, what: str) -> None:
    """Left part of a line of the upper half: number, who acts, and the sentence above the strip."""
    number(ax, 6.9, y + 2.2, value)
    box(ax, 9.1, y, 14.4, 4.4, colour, edge=colour)
    label(ax, 16.3, y + 2.2, actor, 9, color="white", fontweight="bold")
    arrow(ax, (23.7, y + 2.2), (26.6, y + 2.2))
    label(ax, 27, y + 6.0, what, 9, ha="left")


def strip(ax: Axes, y: float, kinds: list[str], texts: list[str]) -> None:
    """Paragraphs of the upper half's response; a kind is think, result, plain or removed."""
    colours = {"think": THINK, "result": RESULT, "plain": "#E4E7EA", "removed": REMOVED}
    for i, (kind, text) in enumerate(zip(kinds, texts, strict=True)):
        removed = {"linestyle": (0, (3, 2)), "edge": "#B9BEC4"} if kind == "removed" else {}
        box(ax, 27 + 6.6 * i, y, 6.1, 4.4, colours[kind], **removed)
        label(
            ax,
            30.05 + 6.6 * i,
            y + 2.2,
            text,
            8.5,
            fontweight="bold" if kind == "result" else "normal",
        )


def ending(ax: Axes, x: float, y: float, text: str, right: bool) -> None:
    """End of the thinking, and the answer with its verdict."""
    box(ax, x, y, 8.2, 4.4, DARK, edge=DARK)
    label(ax, x + 4.1, y + 2.2, "</think>", 8.5, color="white", family="monospace")
    box(ax, x + 8.7, y, 9.5, 4.4, "white")
    label(ax, x + 12.4, y + 2.2, text, 8.5, family="monospace")
    verdict(ax, x + 16.8, y + 2.2, right)


def verdict(ax: Axes, x: float, y: float, right: bool) -> None:
    """Tick or cross."""
    label(
        ax, x, y, "✓" if right else "✗", 11, color=BLUE if right else VERMILION, fontweight="bold"
    )


def draw_response(ax: Axes) -> None:
    """Upper half: sample, label, cut, finish."""
    count = len(P_RESULT)
    cut = choose_cuts(list(P_RESULT), count).normal
    labels = ["Result" if p >= 0.5 else "Think" for p in P_RESULT]
    kinds = [text.lower() for text in labels]
    label(ax, 5.4, 77.6, "One response", 12.5, ha="left", fontweight="bold")

    step(
        ax,
        67.0,
        1,
        "policy",
        BLUE,
        "Sample G = 4 responses to a problem. One of them, paragraph by paragraph:",
    )
    strip(ax, 67.0, ["plain"] * count, [f"¶ {i}" for i in range(1, count + 1)])
    ending(ax, 80.0, 67.0, "42", True)

    step(
        ax,
        57.0,
        2,
        "reflection model",
        PURPLE,
        "Label every paragraph in one pass; P(Result) is below.",
    )
    strip(ax, 57.0, kinds, labels)
    for i, p in enumerate(P_RESULT):
        label(ax, 30.05 + 6.6 * i, 55.6, f"{p:.2f}", 8, color=MUTED)

    x = 26.75 + 6.6 * (cut + 1)
    ax.plot([x, x], [42.6, 61.9], color=VERMILION, linewidth=1.6, linestyle=(0, (4, 2)))
    ax.add_patch(
        Rectangle((x - 1.3, 52.3), 2.6, 2.3, facecolor="white", edgecolor="none", zorder=3)
    )
    label(ax, x, 53.4, "✂", 16, color=VERMILION, zorder=4)
    number(ax, x + 4.0, 53.4, 3)
    label(ax, x + 6.3, 53.4, "Cut after the first result in the second half.", 9, ha="left")

    step(ax, 43.5, 4, "policy", BLUE, "Force </think>, let the policy answer.")
    strip(ax, 43.5, kinds[: cut + 1], labels[: cut + 1])
    ending(ax, x + 0.6, 43.5, "42", True)
    label(ax, x + 20.3, 45.7, "= the revision", 9.5, ha="left", fontweight="bold")


def rewards_of(rows: list[Row]) -> tuple[list[Row], list[tuple[float, float, float]], list[float]]:
    """Rows as they are trained, their three rewards, their advantages."""
    trained = [rows[source] for source in keep_or_replace([row.correct for row in rows])]
    correct = [row.correct for row in trained]
    rewards = list(
        zip(
            map(float, correct),
            refined_length_reward_values(
                [0] * len(trained), correct, [row.tokens for row in trained]
            ),
            reflection_reward_values(
                [row.words for row in trained],
                [row.think_tokens for row in trained],
                TOKENS_PER_REFLECTION,
            ),
            strict=True,
        )
    )
    advantages = group_advantages(torch.tensor(rewards), torch.tensor(correct), len(trained))
    return trained, rewards, advantages.tolist()


def draw_row(ax: Axes, y: float, row: Row, replaced: bool) -> None:
    """One row's paragraphs to scale, with its verdict."""
    scale, x = 27.0 / 1620, 14.5
    width = row.think_tokens * scale / row.num_paragraphs
    style = {
        "height": 1.9,
        "edgecolor": "white",
        "linewidth": 0.7,
        "alpha": 0.35 if replaced else 1.0,
    }
    for i in range(row.num_paragraphs):
        ax.add_patch(
            Rectangle((x, y), width, facecolor=RESULT if i in row.results else THINK, **style)
        )
        x += width
    ax.add_patch(Rectangle((x, y), row.answer_tokens * scale, facecolor=DARK, **style))
    x += row.answer_tokens * scale + 1.3
    verdict(ax, x, y + 0.95, row.correct)
    if replaced:
        text = "wrong: its original takes the row"
        label(ax, x + 1.4, y + 0.95, text, 8, ha="left", color=MUTED, style="italic")


def cell(ax: Axes, x: float, y: float, value: float, text: str) -> None:
    """A reward, shaded from orange (-0.5) over white (0) to blue (1)."""
    colour = BLUE if value > 0 else VERMILION
    ax.add_patch(
        Rectangle(
            (x - 3.4, y - 0.25),
            6.8,
            2.4,
            facecolor=colour,
            alpha=0.34 * abs(value),
            edgecolor="none",
        )
    )
    label(ax, x, y + 0.95, text, 8.5)


def draw_group(ax: Axes) -> None:
    """Lower half: rows, rewards, advantages."""
    trained, rewards, advantages = rewards_of(ROWS)
    label(ax, 5.4, 38.6, "One group of 2G rows", 12.5, ha="left", fontweight="bold")
    for x, value, text in ((54.6, 5, "Rewards, added up"), (79.4, 6, "Advantage in the group")):
        number(ax, x, 38.6, value)
        label(ax, x + 1.9, 38.6, text, 9, ha="left")
    for x, colour, text in (
        (30.6, THINK, "think"),
        (37.6, RESULT, "result"),
        (45.0, DARK, "answer"),
    ):
        ax.add_patch(Rectangle((x, 37.7), 1.6, 1.7, facecolor=colour, edgecolor="none"))
        label(ax, x + 2.2, 38.5, text, 8.5, ha="left", color=MUTED)
    for x, text in ((56.6, "accuracy"), (64.0, "length"), (71.4, "reflection")):
        label(ax, x, 36.0, text, 8.5, color=MUTED)
    zero = 88.6
    ax.plot([zero, zero], [11.0, 35.4], color=EDGE, linewidth=0.9)
    for i, (row, used, values, advantage) in enumerate(
        zip(ROWS, trained, rewards, advantages, strict=True)
    ):
        y = 32.7 - 3.0 * i - 0.35 * (i // 2)
        replaced = used is not row
        label(ax, 5.6, y + 0.95, row.name, 8.5, ha="left", color=MUTED if replaced else TEXT)
        draw_row(ax, y, row, replaced)
        for x, value, text in zip(
            (56.6, 64.0, 71.4), values, ("{:.0f}", "{:+.2f}", "{:.2f}"), strict=True
        ):
            cell(ax, x, y, value, text.format(value).replace("-", "−"))
        colour = BLUE if advantage > 0 else VERMILION
        ax.add_patch(Rectangle((zero, y), 5.2 * advantage, 1.9, facecolor=colour, edgecolor="none"))
        side = 1 if advantage > 0 else -1
        text = f"{advantage:+.2f}".replace("-", "−")
        if 5.2 * abs(advantage) > 6:
            label(
                ax,
                zero + side * 0.6,
                y + 0.95,
                text,
                8,
                ha="left" if side > 0 else "right",
                color="white",
            )
        else:
            label(
                ax,
                zero + 5.2 * advantage + side * 0.5,
                y + 0.95,
                text,
                8,
                ha="left" if side > 0 else "right",
            )


def draw_loop(ax: Axes) -> None:
    """Bottom line and the way back to the policy."""
    y = 1.2
    for x, width, value, text in (
        (66.3, 32.7, 7, "GRPO loss, KL to the base model"),
        (36.9, 25.4, 8, "step of the LoRA adapter"),
        (5.6, 27.3, 9, "hot swap into the policy"),
    ):
        box(ax, x, y, width, 5.0, "white", edge=DARK, linewidth=1.2)
        number(ax, x + 2.4, y + 2.5, value)
        label(ax, x + 4.6, y + 2.5, text, 9, ha="left")
    arrow(ax, (88.6, 10.6), (88.6, 6.5))
    arrow(ax, (66.1, y + 2.5), (62.6, y + 2.5))
    arrow(ax, (36.7, y + 2.5), (33.2, y + 2.5))
    ax.plot(
        [5.4, 2.6, 2.6],
        [y + 2.5, y + 2.5, 69.2],
        color=BLUE,
        linewidth=1.8,
        solid_joinstyle="round",
    )
    arrow(ax, (2.6, 69.2), (5.2, 69.2), BLUE, linewidth=1.8)
    label(ax, 1.2, 40.0, "the next step samples from the new adapter", 8.5, rotation=90, color=BLUE)


def main(path: str) -> None:
    """Write the picture."""
    figure = plt.figure(figsize=(9.3, 7.44))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 100), ylim=(0, 80))
    ax.axis("off")
    ax.plot([5.4, 99], [41.3, 41.3], color="#D5D8DC", linewidth=1.0)
    draw_response(ax)
    draw_group(ax)
    draw_loop(ax)
    figure.savefig(path, dpi=180, facecolor="white")


if __name__ == "__main__":
    main(sys.argv[1])
