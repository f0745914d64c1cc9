"""The origin of a file's responses and scores, so that no number is compared with one that
means something else.

    model           folder, weights and adapter, or the name on a server
    input           problems, and responses a problem
    sampling        temperature and the like
    prompt_format   see `generation.rendering`
    scoring         how answers were compared and words counted, and the largest budget

Models and inputs of two compared scores may differ, and with the models the markers of their
thinking. The other parts may not, if both are known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from generation.generation_file import MODEL, Settings
from generation.markers import KEYS as MARKER_KEYS
from generation.markers import R1
from generation.rendering import PromptFormat
from rea_core import boxes
from rea_core.json_text import read_json
from rea_core.row_files import Row

# what tells two models apart, whatever their folders are called
WEIGHTS = ("model_digest", "lora_digest", "api_model")
INPUT = ("qaf", "qaf_limit", "n_generate_sample")
SAMPLING = ("temperature", "top_p", "max_tokens")
COMPARED = ("sampling", "prompt_format", "scoring")
NUM_SAMPLES, SAMPLE_BYTES = 256, 4096  # of each file of weights

MadeBy = dict[str, Settings]
Parts = Mapping[str, Mapping[str, Any]]  # the same, only read


def distinct_names(paths: Sequence[Path], taken: Collection[str] = ()) -> dict[Path, str]:
    """Names of files in tables: their stems, or as much of the end of each path as tells them
    apart.

    Raises ValueError for a file that is given twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"{', '.join(map(str, paths))}: a file is given twice; give each once")
    names = {path: path.name.removesuffix(".json").removesuffix(".scores") for path in paths}
    depth, longest = 1, max(len(path.resolve().parts) for path in paths)
    while len({*names.values(), *taken}) < len(paths) + len(taken) and depth < longest:
        depth += 1
        names = {path: "/".join(path.resolve().parts[-depth:]) for path in paths}
    return names


def read_settings(path: str | Path) -> Settings:
    """Settings that a generation file was made with; empty without its `.settings.json`."""
    settings = Path(path).with_suffix(".settings.json")
    return read_json(settings) if settings.is_file() else {}


def model_in(settings: Mapping[str, Any]) -> Settings:
    """The model that settings of a file name."""
    return {key: settings[key] for key in MODEL if settings.get(key) is not None}


def prompt_format_of(rows: Sequence[Row], path: str | Path) -> Settings:
    """How a file's prompts were made; empty if not known. Raises ValueError if rows differ."""
    settings = read_settings(path)
    known = PromptFormat.of(settings).record if settings.get("split") == "math_cot" else {}
    first: int | None = None
    for i, row in enumerate(rows):
        if (given := row.get("prompt_format")) is None:
            continue
        others = first is not None and given != known
        if others and (differs := differences({"prompt_format": known}, {"prompt_format": given})):
            raise ValueError(
                f"{path}: rows {first} and {i} were asked in different ways: {differs}; split the "
                "file"
            )
        first, known = i if first is None else first, given
    return known


def made_by(path: str | Path, rows: Sequence[Row]) -> MadeBy:
    """The known origin of a generation file. Raises ValueError for rows of several origins."""
    settings = read_settings(path)
    parts = {"model": MODEL, "input": INPUT, "sampling": SAMPLING}
    known = {
        part: {key: settings[key] for key in keys if settings.get(key) is not None}
        for part, keys in parts.items()
    }
    known["model"] = model_of(rows, path) | known["model"]
    return known | {"prompt_format": prompt_format_of(rows, path)}


def model_of(rows: Sequence[Row], path: str | Path) -> Settings:
    """The model that answered the rows of a file, as they say it; empty if they do not. Raises
    ValueError for rows of two models."""
    model: Settings = {}
    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        given = row.get("answered_by")
        if not isinstance(given, dict):  # a column of the user's
            continue
        for key in given.keys() & model.keys() & {*WEIGHTS}:
            if given[key] != model[key]:
                raise ValueError(
                    f"{path}: rows {first[key]} and {i} are of two models, {key} {model[key]!r} "
                    f"and {given[key]!r}; split the file"
                )
        first |= {key: i for key in given.keys() - first.keys()}
        model = given | model
    return model


def differences(first: Parts, second: Parts) -> str:
    """Keys of the compared parts that both know and that differ, with both values; may be empty."""
    first, second = _with_markers(first), _with_markers(second)
    models = [made.get("model", {}).get("model_dir") for made in (first, second)]
    the_models_own = MARKER_KEYS if None not in models and models[0] != models[1] else ()
    pairs = [
        (key, value, second[part][key])
        for part in COMPARED
        for key, value in first.get(part, {}).items()
        if key in second.get(part, {}) and second[part][key] != value and key not in the_models_own
    ]
    return ", ".join(f"{key} ({old!r} and {new!r})" for key, old, new in pairs)


def _with_markers(made: Parts) -> Parts:
    """The same with the markers of a whole prompt format that names none: R1's."""
    prompt_format = made.get("prompt_format", {})
    is_whole = {"prompt_template", "prefill"} <= prompt_format.keys()
    return {**made, "prompt_format": R1.record | prompt_format} if is_whole else made


def check_comparable(first: MadeBy, second: MadeBy, names: tuple[str, str], remedy: str) -> None:
    """Raise ValueError naming the differences of two files that are compared, with both values."""
    if differs := differences(first, second):
        raise ValueError(
            f"{names[0]} and {names[1]} were not made in the same way: {differs}; {remedy}"
        )


def check_all_comparable(files: Iterable[tuple[str, MadeBy]], remedy: str) -> None:
    """Raise ValueError naming two files that differ, of those for one table or picture."""
    # by part and key: the first file that knows it, and what it was made by
    seen: dict[tuple[str, str], tuple[str, Mapping[str, Any]]] = {}
    for name, file_made_by in files:
        made = _with_markers(file_made_by)
        for part in COMPARED:
            for key in made.get(part, {}):
                first, before = seen.setdefault((part, key), (name, made))
                one_key = (
                    {part: {key: each[part][key]}, "model": each.get("model", {})}
                    for each in (before, made)
                )
                check_comparable(*one_key, (first, name), remedy)


def check_same_prompts(
    rows: Sequence[Row], file: str | Path, other_rows: Sequence[Row], other_file: str | Path
) -> None:
    """Raise ValueError if two files belong together, but are of responses whose prompts were made
    in different ways."""
    parts = [
        {"prompt_format": prompt_format_of(*pair)}
        for pair in ((rows, file), (other_rows, other_file))
    ]
    names = (f"the prompts of {file}", f"those of {other_file}")
    check_comparable(*parts, names, "give two files of the same paths")


def known_parts(scores: Mapping[str, Any]) -> MadeBy:
    """`made_by` of scores; earlier versions only knew the comparison and the counting of words."""
    scoring = {key: scores[key] for key in ("mode", "word_bounded") if key in scores}
    made_by = scores.get("made_by") or {"scoring": scoring}
    if not isinstance(made_by, dict) or not all(isinstance(p, dict) for p in made_by.values()):
        raise ValueError(f"made_by is {str(made_by)[:60]}, and not what made the scores by part")
    return made_by


@cache
def verifier_version() -> str:
    """Fingerprint of the answer check: its code and tables, and the versions of its libraries."""
    import generation.math_verify

    libraries = f"{version('lark')} {version('mpmath')}"
    hasher = hashlib.blake2b(libraries.encode(), digest_size=6)
    folder = Path(generation.math_verify.__file__).parent
    for file in [*sorted(folder.glob("*.*")), Path(boxes.__file__)]:
        hasher.update(file.read_bytes())
    return hasher.hexdigest()


def weights_digest(folder: str | Path) -> str | None:
    """Fingerprint of a model's weights from samples of each file; None for a model that is no local
    folder.

    Reading all of a 7B's takes minutes. Training or merging changes most of the weights, so samples
    tell.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        return None
    hasher = hashlib.blake2b(digest_size=8)
    for file in files:
        size = file.stat().st_size
        hasher.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for sample in range(NUM_SAMPLES):
                stream.seek(sample * size // NUM_SAMPLES)
                hasher.update(stream.read(SAMPLE_BYTES))
    return hasher.hexdigest()
