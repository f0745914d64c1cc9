"""Units of measurement: what follows (or, for money, precedes) the value of an answer."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

# Dimension, then size: names. Sizes compare units of one dimension (1500 mm^2 is 15 cm^2, 540 cents are 5.40 dollars).
# Months, tons, gallons and the like differ from place to place: they are plain nouns.
_TABLE = {
    "length": {"0.001": "mm millimeter millimetre", "0.01": "cm centimeter centimetre", "1": "m meter metre",
               "1000": "km kilometer kilometre", "0.0254": "in inch inche", "0.3048": "ft foot feet",
               "0.9144": "yd yard", "1609.344": "mi mile"},
    "mass": {"0.001": "mg milligram", "1": "g gram", "1000": "kg kilogram", "453.59237": "lb pound",
             "28.349523125": "oz ounce"},
    "time": {"1": "s sec second", "60": "min minute", "3600": "h hr hour", "86400": "day", "604800": "week"},
    "money": {"1": "dollar usd buck", "0.01": "cent"},
    "degree": {"1": "degree deg"},
    "percent": {"1/100": "%"},
    "volume": {"1": "l liter litre", "0.001": "ml milliliter millilitre"},
    "": {"1": "unit rad radian", "100": "hundred", "1000": "thousand", "1000000": "million", "1000000000": "billion"},
}  # fmt: skip
_NAMES = {
    name: (dimension, Fraction(size))
    for dimension, sizes in _TABLE.items()
    for size, names in sizes.items()
    for name in names.split()
}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_SINGLE = {"m", "s", "g", "h"}
_FILLERS = {"of", "the", "a", "an"}

_TEXT = r"(?:\\text\{[^{}]*\}|%)"
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_MARKED = re.compile(rf"^(?P<value>.*?)\s*(?P<unit>{_TEXT}{_POWER}(?:[\s/.]*{_TEXT}{_POWER})*)$")
_WORD = rf"[a-zA-Z]+\.?{_POWER}"
_BARE = re.compile(rf"^(?P<value>.*?(?:[\d}})!]|\\pi))(?P<gap>\s*)(?P<unit>{_WORD}(?:\s*/\s*{_WORD}| {_WORD})*)$")
_MONEY = re.compile(r"^(?P<sign>-?)\s*(?:\\\$|\\text\{(?P<unit>euros|dollars|USD|GBP|yuan)\})\s*(?P<value>.*)$")


@dataclass(frozen=True)
class Unit:
    """A size and the powers of its dimensions; a noun such as "men" is a dimension of its own."""

    size: Fraction
    dimensions: tuple[tuple[str, int], ...]

    def of(self, dimension: str) -> bool:
        return self.dimensions == ((dimension, 1),)


def parse_unit(text: str) -> Unit:
    """Read `cm^2`, `square inches`, `km/h`, `dollars per hour`, `women`."""
    size, dimensions = Fraction(1), Counter()
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).replace("%", " % ").replace("/", " per ")
    sign, power = 1, 1
    for word, raised, exponent in re.findall(r"([a-zA-Z%]+)\.?(?:\s*\^\s*\{?\s*(-?\d)|\s+(squared|cubed))?", text):
        if word == "per":
            sign = -1
        elif word.lower() in _POWERS:
            power = _POWERS[word.lower()]
        elif word not in _FILLERS:
            dimension, unit_size = _look_up(word)
            power *= sign * (int(raised or 1) if not exponent else _POWERS[exponent])
            size *= unit_size**power
            dimensions[dimension] += power
            power = 1
    return Unit(size, tuple(sorted((name, count) for name, count in dimensions.items() if name and count)))


def _look_up(word: str) -> tuple[str, Fraction]:
    for name in (word, word.lower(), word.lower().removesuffix("s")):
        if name in _NAMES:
            return _NAMES[name]
    return word.lower().removesuffix("s"), Fraction(1)


def split_unit(text: str) -> tuple[str, Unit | None, bool]:
    r"""Split an answer into its value, its unit if it has one, and whether that surely is a unit.

    Words in `\text`, `%`, known units of two letters and nouns of four are sure. The single letters `m`, `s`, `g` and
    `h` are after a blank or pi only: `6m` is a product first. `2s` is a time: `s` is hardly a variable.
    """
    if match := _MONEY.match(text):
        value, unit, _ = split_unit(match["value"])
        money = parse_unit(match["unit"] or "dollars")
        scale = unit.size if unit and not unit.dimensions else 1  # $3 million
        return match["sign"] + value, Unit(money.size * scale, money.dimensions), True
    if (match := _MARKED.match(text)) and match["value"]:
        return match["value"], parse_unit(match["unit"]), True
    if match := _BARE.match(text):
        words = [word.lower() for word in re.findall(r"[a-zA-Z]+", match["unit"])]
        single = len(words) == 1 and words[0] in _SINGLE
        known = len(words[0]) > 1 and all(_is_known(word) for word in words)
        if single or known or all(len(word) > 3 for word in words):
            seconds = words == ["s"] and re.fullmatch(r"[\d.]+", match["value"]) is not None
            apart = bool(match["gap"]) or match["value"].endswith(r"\pi") or seconds
            return match["value"], parse_unit(match["unit"]), apart or not single
    return text, None, True


def _is_known(word: str) -> bool:
    return word == "per" or word in _POWERS or word in _NAMES or word.removesuffix("s") in _NAMES
