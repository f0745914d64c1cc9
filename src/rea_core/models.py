"""Models by folder or Hub id: tokenizers, contexts, types and adapters, checked before anything
loads them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from rea_core.checks import NUMBER, Kind, is_a, is_path
from rea_core.json_text import read_json, read_text
from rea_core.model_files import check_files, read_tokenizer, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def resolve_dtype(dtype: str, device: str) -> str:
    """`dtype`; on a CPU without bfloat16 `auto` is `float32`, which is 40 times faster there."""
    if dtype != "auto" or device != "cpu":
        return dtype
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return "auto" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def resolve_device(device: str) -> str:
    """`cuda` or `cpu`; `auto` is whichever torch finds."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_tokenizer(
    path: str,
    key: str = "model_name_or_path",
    trust_remote_code: bool = False,
    trained: bool = False,
) -> PreTrainedTokenizerBase:
    """Tokenizer with a chat template, padded on the left.

    Args:
        path: local folder or Hub id.
        key: recipe key that named it, for the error.
        trust_remote_code: run code that comes with it.
        trained: whether rows are padded with it.

    Raises ValueError with the cause if it cannot be loaded, or if its tokenizer has no chat
    template, no end of sequence, or ids that the model of its folder has not.
    """
    tokenizer = read_tokenizer(path, key, trust_remote_code)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{key}: the tokenizer of {path!r} has no chat template; take a model that was tuned "
            "on dialogues, or put its chat_template.jinja next to the tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{key}: the tokenizer of {path!r} has no eos_token; name it in its "
            "tokenizer_config.json"
        )
    config = text_config(path) if (Path(path) / "config.json").is_file() else None
    size = getattr(config, "vocab_size", None)
    # added tokens apart: some of them no text ever uses
    if size is not None and tokenizer.vocab_size > size:
        raise ValueError(
            f"{key}: the tokenizer of {path!r} has {tokenizer.vocab_size} ids, but the model's "
            f"vocab_size is {size}; put the model's own tokenizer next to it"
        )
    for name in ("eos_token", *(("pad_token",) if trained else ())):
        number = getattr(tokenizer, f"{name}_id")
        if size is not None and number is not None and number >= size:
            raise ValueError(
                f"{key}: the tokenizer of {path!r} has the {name} {getattr(tokenizer, name)!r} of "
                f"id {number}, but the model's vocab_size is {size}; name one of the model's "
                f"tokens as {name} in its tokenizer_config.json"
            )
    return tokenizer


def read_chat_template(path: str) -> str:
    """Text of a Jinja chat template. Raises ValueError for a missing file, or another ending."""
    if not path.endswith((".jinja", ".j2")):
        raise ValueError(
            f"chat template: {path} does not end in .jinja; give a file with a Jinja template"
        )
    return read_text(path)


LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # vLLM takes no other value of --max-lora-rank
DTYPES = ("auto", "bfloat16", "float16", "half", "float32", "float")  # of vLLM
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_model(model: str) -> None:
    """Raise ValueError for a local folder whose files are missing or broken; Hub ids are vLLM's."""
    folder = Path(model)
    if not folder.is_dir():
        if is_path(model):
            raise ValueError(
                f"there is no model folder {model}; train or download it first, or give a Hub id"
            )
        return
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{model} has no config.json; give the folder of a whole model (merge_lora.py makes "
            "one)"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{model} has none of {', '.join(TOKENIZER_FILES)}; save the tokenizer next to the "
            "model"
        )
    check_files(folder)


def context_of(model: str) -> int | None:
    """Context of a model in a local folder, in tokens; None if it does not say."""
    if not (Path(model) / "config.json").is_file():
        return None
    return getattr(text_config(model), "max_position_embeddings", None)


def check_context(model: str, max_model_len: int | None) -> None:
    """Raise ValueError for a context beyond that of a model in a local folder."""
    if max_model_len is None or not (Path(model) / "config.json").is_file():
        return
    config = text_config(model)
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = [
        rope.get("rope_type", "default")
        for rope in (ropes, *ropes.values())
        if isinstance(rope, dict)
    ]
    scaled = any(kind != "default" for kind in kinds)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and max_model_len > limit and not scaled:
        raise ValueError(
            f"max_model_len is {max_model_len}, but {model} has a context of {limit} tokens; lower "
            "it"
        )


ADAPTER_WEIGHTS = "adapter_model.safetensors"


def read_adapter_config(adapter: str | Path) -> dict[str, Any]:
    """`adapter_config.json` of a LoRA adapter. Raises ValueError if the folder is none."""
    folder = Path(adapter)
    for name in ("adapter_config.json", ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f"{adapter} is not the folder of an adapter: it has no {name}; name a run's "
                "output_dir"
            )
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict):
        raise ValueError(f"{folder}/adapter_config.json is no object; train the adapter again")
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{adapter} is an adapter of the kind {config.get('peft_type')}, not LORA; train a "
            "LoRA adapter"
        )
    kinds: dict[str, Kind] = {"r": int, "lora_alpha": NUMBER}
    kinds["base_model_name_or_path"] = (str, NoneType)
    for key, kind in kinds.items():
        if key in config and not is_a(config[key], kind):  # PEFT has defaults for them
            raise ValueError(
                f"{folder}/adapter_config.json has the {key} {config.get(key)!r}; correct it, or "
                "train the adapter again"
            )
    return config


def check_adapter(base: str, adapter: str | Path) -> dict[str, Any]:
    """Configuration of an adapter of `base`.

    Two names mean one model if they are one folder, or if their last parts are equal
    (`Qwen/Qwen2.5-7B-Instruct` and `model/Qwen2.5-7B-Instruct`). Raises ValueError if the adapter
    was trained on another model.
    """
    config = read_adapter_config(adapter)
    trained_on = config.get("base_model_name_or_path")
    if trained_on is None:
        raise ValueError(
            f"{adapter}/adapter_config.json has no base_model_name_or_path; write {base!r} there "
            "if it was"
        )
    if (
        Path(trained_on).resolve() != Path(base).resolve()
        and Path(trained_on).name != Path(base).name
    ):
        raise ValueError(
            f"{adapter} is an adapter of {trained_on!r}, not of {base!r}; if that is the same "
            "model under another name, change base_model_name_or_path in its adapter_config.json"
        )
    return config


def adapter_digest(adapter: str | Path) -> str:
    """Short fingerprint of an adapter's weights."""
    read_adapter_config(adapter)
    return hashlib.blake2b(
        (Path(adapter) / ADAPTER_WEIGHTS).read_bytes(), digest_size=8
    ).hexdigest()
