"""A model whose template closes the thinking on demand, and scores of its responses."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import make_tokenizer, save_model

from generation import math_verify_all

# As Qwen3's: without thinking the prompt closes it, with thinking it ends with no marker.
HYBRID = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<A>{{ m['content'] }}<eos>{% else "
    "%}<U>{{ m['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<A>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif "
    "%}{% endif %}"
)
UNFINISHED = "So we get \\boxed{2}. Wait, let me check"


def tokenizer_of(template: str):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def save_hybrid(folder: Path) -> Path:
    save_model(folder)
    tokenizer_of(HYBRID).save_pretrained(folder)
    return folder


def score(file: Path, model: Path, *flags: str) -> dict:
    math_verify_all.main([str(file), "--model_dir", str(model), *flags])
    return json.loads(file.with_suffix(".scores.json").read_text())
