"""Files of measurements that a training takes its thresholds from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from generation.provenance import check_comparable, known_parts, weights_digest
from rea_core.checks import NUMBER, is_a
from rea_core.json_text import read_json


def read_tokens_per_reflection(
    path: str | Path,
    word_bounded: bool,
    prompt_format: dict[str, Any] | None = None,
    model: str | None = None,
) -> float:
    """Threshold of the reflect reward from the JSON file of a measurement.

    The file holds `tokens_per_reflection`, `word_bounded`, the way the words were counted, how
    the prompts were made, and the model. Raises ValueError if it is missing, or was measured
    another way than training counts words and makes prompts, or on another model.
    """
    name = f"tokens_per_reflection_file: {path}"
    measured = _read_measurement(name, Path(path))
    if measured["word_bounded"] != word_bounded:
        raise ValueError(
            f"{name} was measured with word_bounded {measured['word_bounded']}, but "
            f"word_bounded_reflections is {word_bounded}; measure again or change the key"
        )
    if prompt_format is not None:
        names = f"tokens_per_reflection_file: the responses of {path}", "the prompts of the recipe"
        remedy = (
            "sample the base model's responses with the recipe's keys and measure again, or change "
            "the recipe"
        )
        check_comparable(known_parts(measured), {"prompt_format": prompt_format}, names, remedy)
    if model is not None:
        _check_model(name, known_parts(measured).get("model", {}), model)
    return float(measured["tokens_per_reflection"])


def _read_measurement(name: str, path: Path) -> dict[str, Any]:
    """A file of `tokens_per_reflection`, which is a number. Raises ValueError for another one."""
    if not path.is_file():
        raise ValueError(
            f"{name} does not exist; measure the base model first, or give tokens_per_reflection "
            "instead"
        )
    measured = read_json(path, finite=True)
    keys = {"tokens_per_reflection", "word_bounded"}
    if not isinstance(measured, dict) or not keys <= measured.keys():
        raise ValueError(
            f"{name} has no tokens_per_reflection; write it by scoring the base model's responses "
            "with --reflection_quantile"
        )
    if not is_a(measured["tokens_per_reflection"], NUMBER):
        raise ValueError(
            f"{name} has the tokens_per_reflection {measured['tokens_per_reflection']!r}, which is "
            "no number; measure again"
        )
    return measured


def _check_model(name: str, measured_on: dict[str, Any], model: str) -> None:
    """Raise ValueError for a file of other weights than those of a local model."""
    known, own = measured_on.get("model_digest"), weights_digest(model)
    if known and own and known != own and not measured_on.get("lora"):
        raise ValueError(
            f"{name} was measured on the model {measured_on.get('model_dir')}, whose weights are "
            f"not those of {model}; measure again, or give the numbers as keys of the recipe"
        )


def read_cut_file(path: str | Path, reflection_model: str | None = None) -> dict[str, float]:
    """`cut_threshold` and `cut_second_half` that `generation.calibrate` chose.

    Raises ValueError if the file is missing or holds something else, or if it was chosen with the
    labels of another reflection model.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"cut_file: {path} does not exist; choose the cut first (generation.calibrate), or "
            "leave the key out"
        )
    chosen = read_json(path)
    keys = ("cut_threshold", "cut_second_half")
    if not isinstance(chosen, dict) or not all(
        isinstance(chosen.get(key), (int, float)) for key in keys
    ):
        raise ValueError(
            f"cut_file: {path} has no {' and '.join(keys)}; it must be a file of "
            "generation.calibrate"
        )
    labelled_by = chosen.get("labelled_by")
    if reflection_model is not None and isinstance(labelled_by, dict):
        _check_model(f"cut_file: {path}", labelled_by, reflection_model)
    return {key: float(chosen[key]) for key in keys}
