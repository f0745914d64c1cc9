"""The table of docs/models.md is true: a tiny random model of each of its families is built,
checked for packing, given an adapter and merged, by the code of a training."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from adapters import lora_keys
from families import make_model
from tiny import save_model
from trainers import make_trainer

from rea_core.model_files import check_buildable
from rea_rl.merge_lora import merge_lora
from rea_rl.run.lora import lora_config

ROOT = Path(__file__).parents[2]
SEVEN = "`q_proj` `k_proj` `v_proj` `o_proj` `gate_proj` `up_proj` `down_proj`"
CHANGES = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mistral": {"sliding_window": 9},  # shorter than the rows
    "opt": {"dropout": 0.0},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
}


def table() -> dict[str, list[str]]:
    """Cells of each family of the page's first table, by the family's type in transformers."""
    page = (ROOT / "docs" / "models.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    start = next(i for i, row in enumerate(rows) if row[0].strip() == "family")
    found = {}
    for row in rows[start + 1 :]:
        cells = [cell.strip() for cell in row]
        if len(cells) != 6 or cells[0].startswith("--"):
            break
        found |= {family: cells[1:] for family in re.findall(r"`(\w+)`", cells[0])}
    return found


TABLE = table()


def vllm_takes_adapters(architecture: str) -> str:
    """As vLLM's own sources say it; they are read and not imported, which takes ten seconds."""
    models = Path(importlib.util.find_spec("vllm").origin).parent / "model_executor" / "models"
    places = re.findall(
        rf'"{architecture}":\s*\(\s*"(\w+)",\s*"(\w+)"', (models / "registry.py").read_text()
    )
    if not places:
        return "no such model"
    module, name = places[0]
    if module == "transformers":  # any model with transformers' code
        generic = (models / "transformers" / "base.py").read_text()
        return "generic" if "SupportsLoRA" in generic else "no"
    return "yes" if "SupportsLoRA" in bases(models, module, name) else "no"


def bases(models: Path, module: str, name: str) -> set[str]:
    """Names of the classes that a class of vLLM's is made of."""
    code = ast.parse((models / f"{module}.py").read_text())
    for node in ast.walk(code):
        if isinstance(node, ast.ClassDef) and node.name == name:
            above = {ast.unparse(base) for base in node.bases}
            return above.union(*(bases(models, module, base) for base in above))
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            above = (node.module or "").rpartition(".")[2]
            return bases(models, above, name) if name.endswith("ForCausalLM") else set()
    return set()


def facts(folder: Path, family: str) -> tuple[str, str, str, str]:
    """Why rows are padded or nothing, names of layers, served, merged."""
    model = make_model(family, **CHANGES.get(family, {}))
    layers = lora_config(model, lora_keys(["all-linear"]), served=True).target_modules
    base = save_model(folder / family)  # its tokenizer
    model.save_pretrained(base)
    out = folder / f"{family}_run"
    trainer = make_trainer(base, out, packing="shared_prefix", targets=sorted(layers))
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    trainer.save_model(str(folder / f"{family}_adapter"))
    merged = merge_lora(
        str(base), str(folder / f"{family}_adapter"), str(folder / "merged" / family)
    )
    config = json.loads((merged / "config.json").read_text())
    served = vllm_takes_adapters(config["architectures"][0])
    return trainer.padded_because or "", " ".join(sorted(layers)), served, "yes"


@pytest.mark.parametrize("family", TABLE)
def test_a_row_of_the_table_is_true(tmp_path, family):
    rows, layers, served, merged, _ = TABLE[family]
    why, found, takes, merges = facts(tmp_path, family)
    assert rows == (f"padded: {why}" if why else "packed")
    names = SEVEN if layers == "the seven" else layers
    assert " ".join(sorted(re.findall(r"`(\w+)`", names))) == found
    assert (served, merged) == (takes, merges)


def test_the_table_has_the_families_that_recipes_and_users_need():
    assert TABLE.keys() >= {
        *("qwen2", "qwen3", "llama", "smollm3", "phi3", "mistral", "gemma3_text", "gpt_oss"),
        *("qwen3_moe", "gemma3"),
    }
    assert {cells[4] for cells in TABLE.values()} <= {"CI", "CI, trained", "CI, trained; GPU"}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "t5"}, "T5"),
        ({"model_type": "bert_of_the_future"}, "bert_of_the_future"),
        ({"architectures": ["LlamaForCausalLM"]}, "model_type"),
    ],
)
def test_a_model_that_cannot_be_a_policy_is_refused_with_the_reason(tmp_path, config, why):
    save_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"(?s)model_name_or_path.*{why}"):
        check_buildable(str(tmp_path / "model"), "model_name_or_path", None)


def test_a_model_whose_layers_take_no_adapter_is_refused_with_the_reason(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    model = make_model("mamba", **small)
    with pytest.raises(ValueError, match="no linear layer q_proj .* it has dt_proj, in_proj"):
        lora_config(model, lora_keys(["q_proj"]), served=True)
    base = save_model(tmp_path / "mamba")
    model.save_pretrained(base)
    with pytest.raises(ValueError, match="(?s)out_proj.*Mamba"):
        make_trainer(base, tmp_path / "run", packing="shared_prefix", targets=["out_proj"])
    trainer = make_trainer(base, tmp_path / "run", packing="shared_prefix", targets=["in_proj"])
    assert trainer.padded_because
