"""What the table of bad input shares: the demand on a refusal, and folders of models that lack
something."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import save_model

from rea_core import ownership

LONGEST_MESSAGE = 420  # characters, without the folder of the test


def tree(folder: Path) -> dict[str, bytes]:
    """Contents of all files below a folder, by relative path, once this process holds no lock, as
    at its end."""
    ownership.release_all()
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_message(message: str, says: tuple[str, ...], folder: Path) -> None:
    """A message is one line of a readable length, and names what, where and the way out: at
    least two parts."""
    assert len(says) > 1, "name what is wrong, and the remedy"
    assert "\n" not in message and len(message.replace(str(folder), "")) < LONGEST_MESSAGE, message
    missing = [part for part in says if part not in message]
    assert not missing, f"{missing} not in: {message}"


@contextmanager
def refused(folder: Path, says: tuple[str, ...]) -> Iterator[None]:
    """What is called here raises one clear error, and neither writes nor changes a file below
    the folder."""
    before = tree(folder)
    with pytest.raises((ValueError, ConnectionError)) as caught:
        yield
    check_message(str(caught.value), says, folder)
    assert tree(folder) == before


def make_models(folder: Path) -> dict[str, Path]:
    """A model, copies of it that lack something, and adapters, by name."""
    whole = save_model(folder / "whole")
    models = {"whole": whole}
    for name in COPIES:
        models[name] = shutil.copytree(whole, folder / name)
    (models["no_config"] / "config.json").unlink()
    (models["no_tokenizer"] / "tokenizer.json").unlink()
    (models["no_template"] / "chat_template.jinja").unlink()
    (models["no_weights"] / "model.safetensors").unlink()
    (models["broken_config"] / "config.json").write_text('{"vocab_size": 262,\n"hidden_size" 16}')
    change_json(models["no_end"] / "tokenizer_config.json", eos_token=None)
    change_json(models["few_ids"] / "config.json", vocab_size=100)
    hide_marker(models["hidden"])
    for name, config in ADAPTERS.items():
        models[name] = folder / name
        models[name].mkdir()
        (models[name] / "adapter_config.json").write_text(config.format(base=whole))
        (models[name] / "adapter_model.safetensors").touch()
    (models["adapter_without_weights"] / "adapter_model.safetensors").unlink()
    return models


COPIES = (
    "no_config",
    "no_tokenizer",
    "no_template",
    "no_end",
    "no_weights",
    "few_ids",
    "broken_config",
    "hidden",
)
ADAPTERS = {
    "adapter": '{{"peft_type": "LORA", "base_model_name_or_path": "{base}", "r": 8}}',
    "adapter_without_weights": '{{"peft_type": "LORA", "base_model_name_or_path": "{base}", "r": '
    "8}}",
    "adapter_of_another": '{{"peft_type": "LORA", "base_model_name_or_path": "model/Other-7B", '
    '"r": 8}}',
    "adapter_of_nobody": '{{"peft_type": "LORA", "r": 8}}',
    "adapter_too_wide": '{{"peft_type": "LORA", "base_model_name_or_path": "{base}", "r": 1024}}',
    "prefix_tuning": '{{"peft_type": "PREFIX_TUNING", "base_model_name_or_path": "{base}"}}',
    "broken_adapter": '{{"peft_type": "LORA",',
}


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def hide_marker(folder: Path) -> None:
    """Make `</think>` a text with a character that the vocabulary lacks."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens = tokenizer["added_tokens"]
    tokenizer["added_tokens"] = [token for token in tokens if token["content"] != "</think>"]
    del tokenizer["model"]["vocab"]["/"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
