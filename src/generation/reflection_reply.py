"""The form of a reflection model's replies, which its folder says.

`rea_rl.sft` writes it next to the adapter that it trained, and it goes with the model from there.
Nothing else needs to be told it: a model that was trained on one form gives no labels in another.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from generation.prompts import LONG, REFLECTION_REPLIES, reflection_labels
from rea_core.json_text import read_json
from rea_core.row_files import write_json

KEY = "reflection_reply"
FILE = f"{KEY}.json"


def form_of(completion: str) -> str | None:
    """Form of a text that begins as a reply of the reflection model; None for another one."""
    for form in REFLECTION_REPLIES:
        begins = tuple(reflection_labels([label], form) for label in (False, True))
        if completion.startswith(begins):
            return form
    return None


def write_form(folder: Path, form: str) -> None:
    """Say in the folder of a model or adapter which form it was trained on."""
    write_json(folder / FILE, {KEY: form})


def copy_form(source: str | Path, folder: str | Path) -> None:
    """Let the folder of a model that was made of another one say the same; of a checkpoint, whose
    training says it in its own folder."""
    source = Path(source)
    places = [source, source.parent] if source.name.startswith("checkpoint-") else [source]
    if file := next((place / FILE for place in places if (place / FILE).is_file()), None):
        shutil.copy(file, folder)


def reply_form(given: str | None, model: str | Path) -> str:
    """Form in which a reflection model is asked: that of its folder, or the one that a recipe
    gives; `long` without either, as models of earlier versions were trained.

    Raises ValueError if both contradict each other, or if the file says no form.
    """
    file = Path(model) / FILE
    if not file.is_file():
        return given or LONG
    record = read_json(file)
    trained = record.get(KEY) if isinstance(record, dict) else None
    if trained not in REFLECTION_REPLIES:
        raise ValueError(
            f"{file} has the {KEY} {trained!r}; it must be one of {', '.join(REFLECTION_REPLIES)}"
        )
    if given not in (None, trained):
        raise ValueError(
            f"{KEY} is {given}, but {model} was trained on {trained} replies ({FILE}); leave the "
            "key out, or train the model on rows of the other form"
        )
    return trained
