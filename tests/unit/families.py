"""Random models of a few thousand parameters of many families, made in milliseconds, for tests."""

from __future__ import annotations

import logging
from typing import Any

import torch
from tiny import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
MLA = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v3": {**MLA, "first_k_dense_replace": 1},
    "glm4_moe_lite": MLA,
    "gpt_oss": {
        **LOCAL_EXPERTS,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
    },
    "mixtral": LOCAL_EXPERTS,
    "minimax_m2": LOCAL_EXPERTS,
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "phimoe": LOCAL_EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
}


def make_model(family: str, std: float = 0.25, **changes: Any) -> PreTrainedModel:
    """Model of a transformers type, with a spread of weights that makes its log-probs differ."""
    tokenizer = make_tokenizer()
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    keys = {**SIZES, **ids, "vocab_size": len(tokenizer), **OWN.get(family, {}), **changes}
    if family == "gemma3":
        image = {**VISION, "image_size": 28, "patch_size": 14}
        config = AutoConfig.for_model(family, text_config=keys, vision_config=image)
    else:
        config = AutoConfig.for_model(family, **keys)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    return model
