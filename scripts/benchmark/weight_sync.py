"""Time of bringing a policy to the server: its adapter, against all of its weights, in one run.

    python scripts/benchmark/weight_sync.py
    python scripts/benchmark/weight_sync.py --preset 7b        # GPUs: 7B dimensions, random weights

`publish` is what the trainer does in each step. `AdapterSync`: write the adapter, load it on the
server, unload the old one. The alternative is all weights: with two GPUs, one for the server and
one for the trainer, `FullSync` sends them over NCCL; with less, they are written to files, the
least that a synchronization by files has to do.
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
from serving import add_arguments, model_folder, report, running_servers, spread


def make_policy(model_path: str, device: str):
    """The preset's model with an adapter as the recipes have it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto").to(device)
    return get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def change(model) -> None:
    """As an optimizer step does."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1e-3)


def timed(work: Callable[[int], object], repeats: int) -> list[float]:
    """Seconds of a work that gets its number; the first time, which is slow on a fresh server, does
    not count."""
    seconds = []
    for number in range(repeats + 1):
        start = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def size_mb(model, trained: bool) -> float:
    """Megabytes of the trained parameters, or of all others, in the base model's precision, in
    which they travel."""
    sizes = (p.numel() for p in model.parameters() if p.requires_grad == trained)
    return sum(sizes) * model.dtype.itemsize / 1e6


def sync_adapter(model, url: str, folder: Path, repeats: int) -> list[float]:
    """Seconds of each time."""
    from rea_rl.rollout.weight_sync import AdapterSync

    sync = AdapterSync(url, folder)

    def work(step: int) -> None:
        change(model)
        sync.publish(model, step)

    return timed(work, repeats)


def sync_full(model, url: str, model_path: str, repeats: int) -> list[float]:
    """Seconds of each time."""
    from rea_rl.rollout.weight_sync import FullSync

    sync = FullSync(url, model_path)
    return timed(lambda step: sync.publish(model, step), repeats)


def main() -> None:
    """Print the table and write the results."""
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--repeats", type=int, default=5, help="times that each way is measured; the median counts"
    )
    arguments = parser.parse_args()
    num_gpus = torch.cuda.device_count()
    # TRL's client sends from the first GPU, whichever is current
    device = "cuda:0" if num_gpus else "cpu"
    server_gpu = str(max(num_gpus - 1, 0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_path = model_folder(arguments, folder / "model")
        policy = make_policy(model_path, device)
        with running_servers({"policy": model_path}, arguments, gpu=server_gpu) as urls:
            adapter = sync_adapter(policy, urls[0], folder / "adapters", arguments.repeats)
        results = {
            "adapter_seconds": statistics.median(adapter),
            "adapter_mb": size_mb(policy, True),
            "full_mb": size_mb(policy, False),
        }
        plain = policy.unload()
        if num_gpus > 1:
            arguments.servers = arguments.servers and arguments.servers[1:]
            with running_servers(
                {"policy": model_path}, arguments, gpu=server_gpu, full_weights=True
            ) as urls:
                full, by = sync_full(plain, urls[0], model_path, arguments.repeats), "NCCL"
        else:
            full, by = (
                timed(lambda _: plain.save_pretrained(folder / "full"), arguments.repeats),
                "files",
            )
    runs = {"adapter": adapter, "full": full}
    results |= {"full_seconds": statistics.median(full), "full_by": by, "runs": runs}
    results["spread"] = {way: spread(seconds) for way, seconds in runs.items()}
    table = [["synchronization", "seconds", "MB", "times the adapter's"]]
    for way, title in (("adapter", "adapter"), ("full", f"all weights, {by}")):
        seconds, size = results[f"{way}_seconds"], results[f"{way}_mb"]
        times = seconds / results["adapter_seconds"]
        table.append([title, f"{seconds:.3f}", f"{size:.1f}", f"{times:.1f}"])
    report(
        "weight_sync",
        table,
        {"preset": arguments.preset, "gpus": num_gpus, **results},
        arguments.json,
    )


if __name__ == "__main__":
    main()
