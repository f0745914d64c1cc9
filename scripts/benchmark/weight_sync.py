"""Time of bringing a policy to the server: its adapter, against all of its weights, in one run.

    python scripts/benchmark/weight_sync.py
    python scripts/benchmark/weight_sync.py --preset 7b        # a GPU: 7B dimensions, random weights

`publish` is what the trainer does in each step: write the adapter, load it on the server, unload the old one. Against
it stands the least that a synchronization of all weights by files has to do, which is to write them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from serving import MINIATURE, PRESETS, Preset, add_arguments, model_folder, report, running_servers


def make_policy(preset: Preset):
    """The preset's model with an adapter as the recipes have it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    if preset.dimensions is None:
        model = AutoModelForCausalLM.from_pretrained(MINIATURE)
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(Qwen2Config(**preset.dimensions), dtype=torch.bfloat16)
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))


def change(model) -> None:
    """As an optimizer step does."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1e-3)


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6


def measure(model, url: str, folder: Path, repeats: int) -> dict[str, float]:
    """Median seconds and megabytes of both ways."""
    from rea_rl.weight_sync import AdapterSync

    sync, adapter, full = AdapterSync(url, folder / "adapters"), [], []
    for step in range(repeats + 1):
        change(model)
        adapter.append(seconds_of(lambda step=step: sync.publish(model, step)))
    for _ in range(repeats):
        full.append(seconds_of(lambda: model.get_base_model().save_pretrained(folder / "full")))
    return {
        "adapter_seconds": statistics.median(adapter[1:]),  # the first request of a server is slow
        "full_seconds": statistics.median(full),
        "adapter_mb": size_mb(folder / "adapters"),
        "full_mb": size_mb(folder / "full"),
    }


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5, help="times that each way is measured; the median counts")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    with tempfile.TemporaryDirectory() as folder:
        model_path = model_folder(preset, Path(folder, "model"))
        policy = make_policy(preset)
        with running_servers({"policy": model_path}, arguments) as urls:
            results = measure(policy, urls[0], Path(folder), arguments.repeats)
    table = [["synchronization", "seconds", "MB", "times the adapter's"]]
    for way in ("adapter", "full"):
        ratio = results[f"{way}_seconds"] / results["adapter_seconds"]
        table.append([way, f"{results[f'{way}_seconds']:.3f}", f"{results[f'{way}_mb']:.1f}", f"{ratio:.1f}"])
    report("weight_sync", table, {"preset": arguments.preset, **results}, arguments.json)


if __name__ == "__main__":
    main()
