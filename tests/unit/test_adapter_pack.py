"""An adapter packed in eight bits is nearly the same when it is unpacked."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from rea_rl import adapter_pack
from rea_rl.adapter_pack import main, quantize


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "m", "r": 4}'
    )
    torch.manual_seed(0)
    weights = {
        f"layers.{i}.lora_{k}.weight": torch.randn(4, 30) * 10**-i for i in range(3) for k in "AB"
    }
    save_file(weights, folder / "adapter_model.safetensors")
    return folder, weights


def test_a_row_has_a_scale_of_its_own():
    values, scale = quantize(torch.tensor([[127.0, -63.5], [0.0, 0.0]]))
    assert values.tolist() == [[127, -64], [0, 0]] and scale[0].item() == 1.0


def test_unpacked_weights_differ_by_less_than_a_hundredth(adapter, tmp_path, monkeypatch):
    folder, weights = adapter
    monkeypatch.setattr(adapter_pack, "MAX_FILE_BYTES", 250)
    main(["pack", str(folder), str(tmp_path / "packed")])
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) == 3
    main(["unpack", str(tmp_path / "packed"), str(tmp_path / "out")])
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert (found[name].float() - weight).abs().max() <= 0.01 * weight.abs().max()
    assert (tmp_path / "out" / "adapter_config.json").read_text() == (
        folder / "adapter_config.json"
    ).read_text()


def test_nothing_is_overwritten_or_invented(adapter, tmp_path):
    folder, _ = adapter
    main(["pack", str(folder), str(tmp_path / "packed")])
    for action, source, message in (
        ("pack", folder, "has a packed adapter already"),
        ("unpack", folder, "has no packed adapter"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([action, str(source), str(tmp_path / "packed")])
    with pytest.raises(SystemExit, match="has an adapter already"):
        main(["unpack", str(tmp_path / "packed"), str(folder)])
