"""A LoRA adapter in eight bits and in small files, to travel between machines and to lie in a
repository.

    python -m rea_rl.adapter_pack pack output/Qwen2.5-Coder-0.5B-Instruct/LRM_lora \
        model/Qwen2.5-Coder-0.5B-LRM
    python -m rea_rl.adapter_pack unpack model/Qwen2.5-Coder-0.5B-LRM \
        output/Qwen2.5-Coder-0.5B-Instruct/LRM_lora

Each row of a matrix is stored as int8 with one float32 scale: half the size of bfloat16, and an
error of at most 1/254 of the row's largest weight. What is unpacked is an ordinary adapter in
bfloat16.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from generation.reflection_reply import copy_form
from rea_core.checks import user_path
from rea_core.command import command
from rea_core.models import ADAPTER_WEIGHTS, read_adapter_config
from rea_core.ownership import own_output_folder

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 10_000_000
CONFIG = "adapter_config.json"
PART = "adapter-int8-{:02d}.safetensors"
SCALE = ".scale"


def pack(adapter: Path, out: Path) -> list[Path]:
    """Write an adapter in eight bits to a folder; returns its files of weights.

    Raises ValueError if `adapter` is none, or if there is one in `out` already.
    """
    from safetensors.torch import load_file, save_file

    read_adapter_config(adapter)
    if any(out.glob(PART.replace("{:02d}", "*"))):
        raise ValueError(f"{out} has a packed adapter already; delete it, or name another folder")
    own_output_folder(out, "out")
    out.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, weight in sorted(load_file(adapter / ADAPTER_WEIGHTS).items()):
        if size + weight.numel() > MAX_FILE_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][name], parts[-1][name + SCALE] = quantize(weight)
        size += weight.numel()
    files = [out / PART.format(i) for i in range(len(parts))]
    for file, tensors in zip(files, parts, strict=True):
        save_file(tensors, file)
    shutil.copy(adapter / CONFIG, out / CONFIG)
    copy_form(adapter, out)
    return files


def unpack(folder: Path, out: Path) -> Path:
    """Write a packed adapter to the new folder `out`. Raises ValueError if there is none."""
    import torch
    from safetensors.torch import load_file, save_file

    files = sorted(folder.glob(PART.replace("{:02d}", "*")))
    if not files or not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} has no packed adapter ({PART.format(0)} and {CONFIG}); pack one first"
        )
    if (out / ADAPTER_WEIGHTS).exists():
        raise ValueError(f"{out} has an adapter already; delete it, or name another folder")
    own_output_folder(out, "out")
    tensors = {name: value for file in files for name, value in load_file(file).items()}
    names = [name for name in tensors if not name.endswith(SCALE)]
    weights = {name: tensors[name].float() * tensors[name + SCALE] for name in names}
    weights = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / CONFIG, out / CONFIG)
    copy_form(folder, out)
    save_file(weights, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    return out


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (R, C) and scale (R, 1) of a matrix (R, C)."""
    import torch

    weight = weight.float()
    largest = weight.abs().amax(dim=1, keepdim=True)
    scale = largest.clamp(min=1e-12) / 127
    return (weight / scale).round().to(torch.int8), scale


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a folder that is not what it must be."""
    parser = argparse.ArgumentParser(description="Adapters in eight bits.")
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("source", type=user_path, help="folder of an adapter, or of a packed one")
    parser.add_argument("out", type=user_path, help="folder to write to")
    args = parser.parse_args(argv)
    (pack if args.action == "pack" else unpack)(args.source, args.out)
    logger.info("%s: %s to %s", args.action, args.source, args.out)


if __name__ == "__main__":
    main()
