"""Merging: the folder computes what base and adapter compute, and what does not belong together
is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapters import save_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import make_tokenizer, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rea_core.models import adapter_digest, check_adapter
from rea_rl.merge_lora import main, merge_lora

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(base, tmp_path / "adapter")


def test_merged_folder_has_the_adapters_logits(base, adapter, tmp_path):
    out = merge_lora(str(base), str(adapter), str(tmp_path / "merged"))
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        base_logits = plain(IDS).logits
        expected = PeftModel.from_pretrained(plain, adapter)(IDS).logits
        merged = AutoModelForCausalLM.from_pretrained(out)(IDS).logits
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-4)
    assert (merged - base_logits).abs().max() > 0.01
    assert not list(out.glob("adapter*"))
    assert AutoTokenizer.from_pretrained(out).chat_template == make_tokenizer().chat_template


def test_base_type_is_kept(tmp_path):
    base = save_model(tmp_path / "base", dtype=torch.bfloat16)
    out = merge_lora(
        str(base), str(save_adapter(base, tmp_path / "adapter")), str(tmp_path / "merged")
    )
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_only_the_complete_folder_appears(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("rea_rl.merge_lora.TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="merged and unmerged logits differ"):
        merge_lora(str(base), str(adapter), str(tmp_path / "merged"))
    shown = [path.name for path in tmp_path.iterdir() if path.name != ".merged.lock"]
    assert sorted(shown) == ["adapter", "base"]  # the lock is this process's until its end


def test_adapter_of_another_base_is_refused(base, adapter, tmp_path):
    other = save_model(tmp_path / "other")
    with pytest.raises(ValueError, match=r"is an adapter of '.*base', not of '.*other'"):
        merge_lora(str(other), str(adapter), str(tmp_path / "merged"))


def test_adapter_whose_shapes_do_not_fit_is_refused(adapter, tmp_path):
    namesake = save_model(tmp_path / "elsewhere" / "base", hidden_size=32)
    with pytest.raises(ValueError, match="does not fit the base model"):
        merge_lora(str(namesake), str(adapter), str(tmp_path / "merged"))


def test_one_model_under_two_names_is_accepted(adapter):
    assert check_adapter("some-organization/base", adapter)["r"] == 4


def test_what_is_merged_already_is_left_as_it_is(base, adapter, tmp_path, capsys):
    out = str(tmp_path / "merged")
    merge_lora(str(base), str(adapter), out)
    before = {path: path.stat().st_mtime_ns for path in Path(out).iterdir()}
    main([str(base), str(adapter), out])
    assert "merged is complete" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path(out).iterdir()} == before
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    others = [
        (base, save_adapter(base, tmp_path / "other", ["k_proj"])),
        (save_model(tmp_path / "base2"), adapter),
    ]
    commands = [[str(b), str(a), out] for b, a in others]
    for arguments in (*commands, [str(base), str(adapter), out, "--chat_template", str(template)]):
        with pytest.raises(
            SystemExit, match="exists already, merged from .*; delete it or give another folder"
        ):
            main(arguments)


def test_existing_folder_is_refused(base, adapter):
    with pytest.raises(SystemExit) as stop:
        main([str(base), str(adapter), str(base)])
    assert "exists already" in str(stop.value)


def test_folder_without_adapter_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        merge_lora(str(base), str(base), str(tmp_path / "merged"))


def test_weights_and_layers_that_do_not_belong_together_are_refused(base, adapter, tmp_path):
    """PEFT leaves layers without weights as the base's, and weights without layers out."""
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    first, *others = weights
    for wrong, message in (
        ({}, "lacks weights of layers"),
        ({key: weights[key] for key in others}, "lacks weights of layers .*1, .*down_proj"),
        ({key.replace("mlp", "mpl"): weights[key] for key in weights}, "lacks weights of layers"),
        (
            weights | {first.replace("down", "up"): weights[first].clone()},
            "has weights of layers that",
        ),
    ):
        save_file(wrong, file)
        with pytest.raises(ValueError, match=message):
            merge_lora(str(base), str(adapter), str(tmp_path / "merged"))
        assert not (tmp_path / "merged").exists()


def test_an_adapter_config_with_odd_values_is_one_line(base, adapter, tmp_path):
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    for wrong, message in (
        ([], "adapter_config.json is no object"),
        (config | {"r": "x"}, "has the r 'x'"),
        (config | {"lora_alpha": None}, "has the lora_alpha None"),
        (config | {"base_model_name_or_path": ["x"]}, "has the base_model_name_or_path"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            main([str(base), str(adapter), str(tmp_path / "merged")])


def test_digest_follows_the_weights(base, adapter, tmp_path):
    same, other = (
        save_adapter(base, tmp_path / "same"),
        save_adapter(base, tmp_path / "o", ["k_proj"]),
    )
    assert adapter_digest(adapter) == adapter_digest(same) != adapter_digest(other)
