"""Recipe files: read strictly, so that every mistake is one ValueError that names file, key,
value and remedy."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from trl import TrlParser

from rea_core.checks import expand_paths, user_name
from rea_core.json_text import read_text

HELP_NOTE = """Each key is a line of a recipe, the YAML file of --config, and a flag, which wins.
A flag that is true or false may stand alone: it is true then. docs/configuration.md and
recipes/README.md say more."""
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which does not let the second of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = []
        for key_node, _ in node.value:
            if (key := self.construct_object(key_node)) in keys:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key} is given twice", problem_mark=key_node.start_mark
                )
            keys.append(key)
        return super().construct_mapping(node, deep)


def read_recipe(path: str) -> dict[str, Any]:
    """Keys and values of a recipe. Raises ValueError naming file and line of a mistake in YAML."""
    text = read_text(path)
    try:
        recipe = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise ValueError(
            f"{path}, line {line}: not YAML ({error.problem}); write one `key: value` a line"
        ) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ValueError(
            f"{path}: not YAML ({' '.join(str(error).split())}); write it as plain text"
        ) from None
    if not isinstance(recipe, dict):
        found = type(recipe).__name__ if recipe else "empty"
        raise ValueError(
            f"{path}: a recipe has one `key: value` a line, but this one is {found}; correct it"
        )
    return recipe


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that say something, and texts as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "") or "default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Names as recipes write them, without those with hyphens."""
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        return f"{', '.join(names)} {self._format_args(action, 'VALUE')}".rstrip()


class RecipeParser(TrlParser):
    """`trl.TrlParser` that holds a recipe's values to the flags' types, and raises ValueErrors. Its
    help begins with the program's docstring and the project's own keys."""

    def __init__(self, dataclass_types: Any):
        super().__init__(
            dataclass_types,
            allow_abbrev=False,
            description=sys.modules["__main__"].__doc__,
            usage="%(prog)s [--config RECIPE] [--KEY VALUE ...]",
            epilog=HELP_NOTE,
            formatter_class=_HelpFormatter,
        )
        self._hints = {
            key: hint
            for type_ in self.dataclass_types
            for key, hint in get_type_hints(type_).items()
        }
        # Reversed, since `--no_X` comes after `--X` and has the same key.
        self._flags = {
            action.dest: action for action in reversed(self._actions) if action.dest in self._hints
        }

        self._aliases = {
            name: field.name
            for type_ in self.dataclass_types
            for field in dataclasses.fields(type_)
            for name in field.metadata.get("aliases", ())
        }

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; correct the flag, --help lists all")

    def format_help(self) -> str:
        """The own keys first, among hundreds; `--no_KEY` and `-h` are left out."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        own = dict.fromkeys(self._own_keys())
        others = [key for key in reversed(self._flags) if key not in own]
        for title, keys in (("keys", own), ("keys of TRL and transformers", others)):
            formatter.start_section(title)
            formatter.add_arguments([self._flags[key] for key in keys])
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def _own_keys(self) -> Iterator[str]:
        """Keys whose last definition is in this project."""
        for type_ in self.dataclass_types:
            for field in dataclasses.fields(type_):
                written = (
                    c for c in type_.__mro__ if field.name in vars(c).get("__annotations__", ())
                )
                if next(written).__module__.partition(".")[0] not in ("trl", "transformers"):
                    yield field.name

    def parse_args_and_config(self, args: Sequence[str] | None = None, **_: Any) -> tuple[Any, ...]:
        """Dataclasses of the recipe that `--config FILE` names and of the flags, which override it.
        Raises ValueError for a mistake in either."""
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.error = self.error  # type: ignore[method-assign]
        first.add_argument("--config", type=user_name)
        given, flags = first.parse_known_args(sys.argv[1:] if args is None else args)
        if given.config is not None:
            self._take_defaults(given.config)
        *parts, unknown = self.parse_args_into_dataclasses(flags, return_remaining_strings=True)
        if unknown:
            self.error(f"unknown arguments {' '.join(unknown)}{self._meant(unknown[0])}")
        for part in parts:
            expand_paths(part)
        return tuple(parts)

    def _take_defaults(self, path: str) -> None:
        recipe: dict[str, Any] = {}
        for name, value in read_recipe(path).items():
            key = self._aliases.get(f"--{name}", name)
            if key in recipe:
                raise ValueError(f"{path}: {key} is given twice, also as {name}; keep one of them")
            recipe[key] = value
        for key, value in recipe.items():
            if key not in self._flags:
                raise ValueError(
                    f"{path}: there is no key {key}{self._meant(str(key))}; correct it, or leave "
                    "it out"
                )
            recipe[key] = self._typed(
                key, value, f"{path}: {key} is {'empty' if value is None else repr(value)}"
            )
        self.set_defaults_with_config(**recipe)

    def _typed(self, key: str, value: Any, what: str) -> Any:
        """Value of a recipe, as the flag would have it."""
        action, kinds = self._flags[key], _kinds(self._hints[key])
        if value is None:
            if type(None) not in kinds:
                raise ValueError(f"{what}; give it a value, or leave it out")
            return None
        if action.nargs == "+" and not isinstance(value, dict):
            return [
                _converted(action, kinds, one, what)
                for one in (value if isinstance(value, list) else [value])
            ]
        return (
            value if type(value) in kinds & {list, dict} else _converted(action, kinds, value, what)
        )

    def _meant(self, key: str) -> str:
        close = difflib.get_close_matches(key.lstrip("-"), self._flags, n=1)
        return f" (did you mean {close[0]}?)" if close else ""


def _kinds(hint: Any) -> set[Any]:
    """Types that a field takes: of a union its members, of a list `list` and its elements' type."""
    kinds = {hint, get_origin(hint)}
    return kinds.union(
        *(_kinds(part) for part in get_args(hint) if isinstance(part, type) or get_args(part))
    )


def _converted(action: argparse.Action, kinds: set[Any], value: Any, what: str) -> Any:
    words = next((words for kind, words in WORDS.items() if kind in kinds), "of another type")
    if isinstance(value, bool) and action.type is str and not action.choices:
        if bool in kinds or action.dest == "scale_rewards":  # a text, or a truth value
            return value
        raise ValueError(f"{what}; it must be {words}, in quotes if it is one")
    convert: Any = action.type
    try:
        if isinstance(value, (list, dict)):
            raise ValueError
        converted = convert(str(value))
    except (TypeError, ValueError, argparse.ArgumentTypeError):
        raise ValueError(f"{what}; it must be {words}") from None
    if action.choices and converted not in action.choices:
        quote = (
            ", in quotes if YAML reads yes, no, on or off as a truth value"
            if isinstance(value, bool)
            else ""
        )
        raise ValueError(f"{what}; it must be one of {', '.join(map(str, action.choices))}{quote}")
    return converted
