"""Options of a command as fields of a dataclass: each has its default, help and range in one place.

@dataclass
class Arguments:
    rounds: PositiveInt = option(3, "How often.")
    way: Annotated[str, one_of("there", "back")] = option("there", "Where to.")

    def __post_init__(self) -> None:
        check_options(self)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_type_hints


@dataclasses.dataclass(frozen=True)
class Rule:
    """Condition on the value of an option."""

    words: str
    holds: Callable[[Any], bool]


AT_LEAST_1 = Rule("at least 1", lambda number: number >= 1)
POSITIVE = Rule("greater than 0", lambda number: number > 0)
NOT_NEGATIVE = Rule("0 or more", lambda number: number >= 0)
SHARE = Rule("from 0 to 1", lambda number: 0 <= number <= 1)

PositiveInt = Annotated[int, POSITIVE]
PositiveFloat = Annotated[float, POSITIVE]
Count = Annotated[int, NOT_NEGATIVE]
Share = Annotated[float, SHARE]
PositiveShare = Annotated[float, POSITIVE, SHARE]


def one_of(*choices: str) -> Rule:
    """The value must be one of these."""
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices)


def either(*choices: str) -> Rule:
    """The same for two or three choices."""
    return Rule(" or ".join(map(repr, choices)), lambda value: value in choices)


def option(default: Any, help: str, *aliases: str) -> Any:
    """Field with a default; lists are copied. `aliases` are other names of its key."""
    metadata = _metadata(help, aliases)
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(help: str, *aliases: str) -> Any:
    """Field without a default."""
    return dataclasses.field(metadata=_metadata(help, aliases))


def _metadata(help: str, aliases: tuple[str, ...]) -> dict[str, Any]:
    return {"help": help, "aliases": [f"--{name}" for name in aliases]}


def check_options(config: Any) -> None:
    """Raise ValueError naming the first option of a dataclass whose value breaks its rule; None is
    no value."""
    for key, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, key, None)
        for rule in _rules(hint):
            if value is not None and not rule.holds(value):
                raise ValueError(f"{key} is {value!r}; it must be {rule.words}")


def _rules(hint: Any) -> Iterator[Rule]:
    """Rules of a type, also inside of a union with None."""
    for part in (hint, *get_args(hint)):
        yield from (rule for rule in getattr(part, "__metadata__", ()) if isinstance(rule, Rule))
