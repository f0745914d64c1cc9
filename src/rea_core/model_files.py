"""Models on their way in: their files are looked at before anything loads them, and what a loader
says is passed on.

Loaders raise every error of the library below them, `Exception` itself among it. Here every
failure becomes one ValueError with the cause in its own words; `from` keeps the traceback for who
looks for it.
"""

from __future__ import annotations

import logging
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from rea_core.json_text import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
JSON_FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "tokenizer.json"),
)
OTHER_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja")
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
INDEX = "model.safetensors.index.json"
CAUSE_LENGTH = 220  # characters of a library's message


def check_files(folder: str | Path, weights: bool = True) -> None:
    """Raise ValueError for a file of a local model or adapter that no loader could read.

    These are pointers of Git LFS in place of files, JSON with a mistake, and `weights` that are
    missing or were cut off, according to their headers. What is missing, and not named by an
    index, is left to its loader.
    """
    folder = Path(folder)
    for file in (folder / name for name in (*JSON_FILES, *OTHER_FILES)):
        if file.is_file():
            _check_no_pointer(file)
    for file in (folder / name for name in JSON_FILES):
        if file.is_file():
            read_json(file)
    for name in _weights(folder) if weights else ():
        check_weights(folder / name)


def check_weights(file: Path) -> None:
    """Raise ValueError for safetensors that are missing, a pointer of Git LFS, or not whole."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; fetch all weights of the model")
    _check_no_pointer(file)
    try:
        with safe_open(file, "np"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{file} is no whole safetensors file ({cause(error)}); fetch or write it again"
        ) from error


def _weights(folder: Path) -> list[str]:
    """Names of a model's or an adapter's weights: those of its index, or the usual ones that are
    there."""
    index = folder / INDEX
    if not index.is_file():
        return [name for name in WEIGHTS if (folder / name).is_file()]
    _check_no_pointer(index)
    return sorted(set(read_json(index).get("weight_map", {}).values()))


def _check_no_pointer(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            is_pointer = opened.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror}); give a file that can"
        ) from None
    if is_pointer:
        raise ValueError(
            f"{file} is a pointer of Git LFS in place of the file; run `git lfs pull` in its folder"
        )


def text_config(model: str | Path) -> PreTrainedConfig | None:
    """Configuration of the part of a local model that reads and writes text; None if
    transformers knows no such model.

    Models that also see keep its sizes below a key of their `config.json`, or leave them to the
    class's defaults.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(model), trust_remote_code=False).get_text_config(
            decoder=True
        )
    # a newer model, or code of its own
    except (OSError, ValueError, KeyError, ImportError) as error:
        logger.warning(
            "%s: its sizes are not checked, since transformers does not know it (%s)",
            model,
            cause(error),
        )
        return None


def read_tokenizer(path: str, key: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder or Hub id, padded left. Raises ValueError with `key` and cause."""
    from transformers import AutoTokenizer

    if Path(path).is_dir():
        check_files(path, weights=False)
    try:
        return AutoTokenizer.from_pretrained(
            path, padding_side="left", trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the tokenizers library raises no other type
        remedy = _remedy(error, "it must be the folder of a model, or a Hub id that can be reached")
        raise ValueError(f"{key}: no tokenizer at {path!r} ({cause(error)}); {remedy}") from error


def read_model(path: str, key: str, **settings: Any) -> PreTrainedModel:
    """Causal language model with all of its weights.

    Args:
        path: folder or Hub id.
        key: recipe key that named it, for the error.
        settings: further arguments of `from_pretrained`.

    Raises ValueError with the cause if it cannot be loaded, or if weights are missing, which would
    be drawn at random.
    """
    from transformers import AutoModelForCausalLM
    from transformers.integrations import is_deepspeed_zero3_enabled

    if Path(path).is_dir():
        check_files(path)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, **settings
        )
    except Exception as error:
        remedy = _remedy(error, "give the folder of a whole model")
        raise ValueError(f"{key}: {path!r} cannot be loaded ({cause(error)}); {remedy}") from error
    missing = sorted(report["missing_keys"])
    if missing and not is_deepspeed_zero3_enabled():  # which reports them otherwise
        raise ValueError(
            f"{key}: {path!r} lacks {len(missing)} of the weights that its config.json asks for, "
            f"such as {missing[0]}; give the folder of a whole model"
        )
    return model


def check_buildable(path: str, key: str, attn_implementation: str | None, **settings: Any) -> None:
    """Raise ValueError with the cause if a model could not be made here. Of its weights only the
    headers are read.

    Its files may be broken, its architecture unknown, or a package missing, such as that of
    `attn_implementation`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations import is_deepspeed_zero3_enabled

    if Path(path).is_dir():
        check_files(path)
    if is_deepspeed_zero3_enabled():  # it would make the weights, and share them out
        return
    try:
        config = AutoConfig.from_pretrained(path, **settings)
        trusted = {"trust_remote_code": settings.get("trust_remote_code", False)}
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(
                config, attn_implementation=attn_implementation, **trusted
            )
    except Exception as error:
        remedy = _remedy(error, "give a model and an attn_implementation that transformers knows")
        raise ValueError(
            f"{key}: a model such as {path!r} cannot be made here, with attn_implementation "
            f"{attn_implementation} ({cause(error)}); {remedy}"
        ) from error


def cause(error: BaseException) -> str:
    """Message of an error in one readable line; its type too if the message alone says little."""
    words = textwrap.shorten(" ".join(str(error).split()), CAUSE_LENGTH).rstrip(".")
    if words and isinstance(
        error, (OSError, ValueError, ImportError, RuntimeError, SafetensorError)
    ):
        return words
    return f"{type(error).__name__}: {words}".removesuffix(": ")


def _remedy(error: Exception, otherwise: str) -> str:
    """Way out of what an error names, or `otherwise`."""
    words = str(error)
    if "gated" in words:
        return "ask for access on its page, and log in: hf auth login"
    if "trust_remote_code" in words:
        return (
            "read that code, and set trust_remote_code if there is such a key, or take another "
            "model"
        )
    if isinstance(error, ImportError):
        return "install that package, or choose what does not need it"
    if isinstance(error, RuntimeError):
        return "see that its weights and its config.json belong together, and fit into the memory"
    return otherwise
