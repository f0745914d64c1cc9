"""A byte tokenizer and a model of a few thousand parameters, made in milliseconds, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

# As R1's: the prompt ends in an opened thinking, and an assistant's turn is rendered without its
# thinking.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<A>{{ "
    "m['content'].split('</think>')[-1] }}<eos>"
    "{% else %}<U>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt "
    "%}<A><think>\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and `</think>` as one id, which is not special."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>")
    tokenizer.add_tokens(["<U>", "<A>", "<think>", "</think>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_model(folder: Path, hidden_size: int = 16, dtype: torch.dtype = torch.float32) -> Path:
    """Save a random model with its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
