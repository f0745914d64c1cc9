"""Tables of figures with their intervals, as terminals and Markdown show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tabulate import tabulate

from generation.scoring import Interval


class Column(NamedTuple):
    """A column: its title, the figure's name in a row, and how the figure is written."""

    title: str
    key: str
    scale: float = 1
    digits: int = 1


def percent(title: str, key: str, digits: int = 1) -> Column:
    """Column of a share in percent."""
    return Column(title, key, 100, digits)


def render(
    rows: Mapping[str, Mapping[str, Any]],
    columns: Iterable[Column],
    corner: str = "",
    *,
    markdown: bool = False,
    bounds: bool = False,
) -> str:
    """Table with a line for each row.

    Args:
        rows: figures by name; each is an `Interval`, one as JSON has it, or a text or number that
            is written as it is. A missing one becomes `-`.
        columns: in their order.
        corner: title of the column of names.
        markdown: make it a table of Markdown.
        bounds: write `value [low, high]` in place of `value ± half`.
    """
    columns = list(columns)
    lines = [
        [name, *(_cell(figures.get(column.key), column, bounds) for column in columns)]
        for name, figures in rows.items()
    ]
    style = {"tablefmt": "github"} if markdown else {"stralign": "right"}
    titles = [corner, *(column.title for column in columns)]
    return tabulate(lines, titles, disable_numparse=True, **style)


def _cell(figure: Any, column: Column, bounds: bool) -> str:
    if figure is None:
        return "-"
    if isinstance(figure, Mapping):
        figure = Interval(**figure)
    if not isinstance(figure, Interval):
        return str(figure)
    return figure.format(column.scale, column.digits, bounds)
