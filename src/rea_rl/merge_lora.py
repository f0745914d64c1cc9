"""Merge a LoRA adapter into its base model: a plain model folder, which vLLM serves without knowing
of LoRA.

    python -m rea_rl.merge_lora model/Qwen2.5-7B-Instruct model/Reflection_Model_Lora \
        model/Reflection_Model

Merging is done in float32 and checked there: merged and unmerged model must give the same logits.
The result is stored in the base model's type. OUT appears only when it is complete.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from generation.reflection_reply import copy_form
from rea_core import moved
from rea_core.checks import user_name
from rea_core.command import add_flags, command
from rea_core.json_text import read_json
from rea_core.model_files import cause, check_files, read_model
from rea_core.models import (
    adapter_digest,
    check_adapter,
    check_model,
    load_tokenizer,
    read_chat_template,
)
from rea_core.ownership import own_output_folder
from rea_core.row_files import digest, write_json

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.nn import Module


__getattr__ = moved.names_of(__name__)  # names that have left this module
logger = logging.getLogger(__name__)

MERGED_FROM = "merged_from.json"
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)  # of models that see
PROBE_TOKENS = 64  # of the sequence whose logits are compared
# largest difference of logits, as a share of the unmerged ones' standard deviation
TOLERANCE = 1e-3


def merge_lora(
    base: str, adapter: str, out: str, device: str = "cpu", chat_template: str | None = None
) -> Path:
    """Write `base` with `adapter` merged into it, and its tokenizer, to the new folder `out`.

    A folder that was made of the same base, adapter and template is left as it is. `chat_template`
    is a Jinja file that takes the place of the tokenizer's own template.

    Raises ValueError if `out` exists and is another, if `adapter` is not a LoRA adapter of `base`,
    or if its shapes do not fit; RuntimeError if merged and unmerged logits differ.
    """
    if Path(out).exists():
        check_same(out, merged_from(base, adapter, chat_template))
        logger.info("%s is complete", out)
        return Path(out)
    own_output_folder(out, "OUT")
    check_model(base)
    check_adapter(base, adapter)
    check_files(adapter)
    tokenizer = load_tokenizer(base, "BASE")
    if chat_template is not None:
        tokenizer.chat_template = read_chat_template(chat_template)

    import torch
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(base)
    model = read_model(base, "BASE", dtype=torch.float32).to(device).eval()
    generation_config: GenerationConfig = model.generation_config
    merged = _merge(model, adapter, config.get_text_config(decoder=True).vocab_size)
    dtype = config.dtype or config.get_text_config(decoder=True).dtype or torch.float32
    merged.to(dtype).generation_config = generation_config

    unfinished = Path(out).with_name(f".{Path(out).name}.{os.getpid()}")
    merged.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    for name in PROCESSOR_FILES:
        if (Path(base) / name).is_file():
            shutil.copy(Path(base) / name, unfinished)
    copy_form(adapter, unfinished)
    write_json(unfinished / MERGED_FROM, merged_from(base, adapter, chat_template))
    os.replace(unfinished, out)
    logger.info("%s merged into %s: %s", adapter, base, out)
    return Path(out)


def merged_from(base: str, adapter: str, chat_template: str | None) -> dict[str, str | None]:
    """Sources of a merged model; they are written next to the weights."""
    template = None if chat_template is None else digest([read_chat_template(chat_template)])
    return {"base": Path(base).name, "adapter": adapter_digest(adapter), "chat_template": template}


def check_same(out: str, made_of: dict[str, str | None]) -> None:
    """Raise ValueError unless a folder holds a model that was merged from the same."""
    record = Path(out) / MERGED_FROM
    before = read_json(record) if record.is_file() else None
    if before != made_of:
        what = f", merged from {before}, not {made_of}" if before else ""
        raise ValueError(f"{out} exists already{what}; delete it or give another folder")


def _merge(model: Module, adapter: str, vocab_size: int) -> Module:
    """Model without LoRA layers whose logits are those of `model` with the adapter."""
    import torch
    from peft import PeftModel

    # (1, T)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randint(vocab_size, (1, PROBE_TOKENS), generator=generator)
    probe = probe.to(model.device)
    with torch.no_grad():
        try:
            unmerged: PeftModel = PeftModel.from_pretrained(model, adapter)
        except RuntimeError as error:  # of load_state_dict, for shapes that do not fit
            raise ValueError(
                f"{adapter} does not fit the base model {model.name_or_path}: {cause(error)}"
            ) from error
        _check_all_loaded(unmerged, adapter)
        before = unmerged(probe).logits  # (1, T, V)
        merged = unmerged.merge_and_unload(safe_merge=True)
        difference = (merged(probe).logits - before).abs().max()
    difference = (difference / before.std()).item()
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"merged and unmerged logits differ by {difference:.1e} of their deviation, over "
            f"{TOLERANCE}"
        )
    logger.info("merged and unmerged logits differ by %.1e of their deviation", difference)
    return merged


def _check_all_loaded(model: PeftModel, adapter: str) -> None:
    """Raise ValueError unless each weight of the adapter has its layer, and each layer its
    weights: PEFT leaves the others as they are."""
    names = getattr(model.get_base_model(), "_checkpoint_conversion_mapping", None)
    loaded = model.load_adapter(adapter, "default", key_mapping=names)
    lacking = [key for key in loaded.missing_keys if ".lora_" in key]
    for keys, what in (
        (lacking, "lacks weights of layers that its adapter_config.json names"),
        (loaded.unexpected_keys, "has weights of layers that adapter_config.json does not name"),
    ):
        if keys:
            raise ValueError(
                f"{adapter} {what} ({len(keys)}, {keys[0]} first); give a whole adapter of this "
                "model"
            )


@command(RuntimeError)
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a mistake in the arguments."""
    parser = argparse.ArgumentParser(description="Merge a LoRA adapter into its base model.")
    parser.add_argument("base", type=user_name, help="folder or Hub id of the base model")
    parser.add_argument("adapter", type=user_name, help="folder of the adapter")
    parser.add_argument("out", type=user_name, help="new folder for the merged model")
    add_flags(
        parser,
        device=("cpu", "cpu or cuda; a merge takes 4 bytes a parameter"),
        chat_template=(str, "Jinja file in place of the base's chat template"),
    )
    args = parser.parse_args(argv)
    merge_lora(args.base, args.adapter, args.out, args.device, args.chat_template)


if __name__ == "__main__":
    main()
