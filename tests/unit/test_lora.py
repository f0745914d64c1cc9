"""Layers that get an adapter: every name has to match, towers are left alone, and vLLM has to
take the result."""

from __future__ import annotations

import pytest
from adapters import lora_keys
from families import make_model
from peft import get_peft_model
from supervised import dpo_arguments, sft_arguments

from rea_rl import dpo, sft
from rea_rl.grpo import load_inputs, parse_recipe
from rea_rl.run.lora import lora_config

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


def trained(model, config):
    """Last names, and whole paths, of the layers that get an adapter."""
    adapted = get_peft_model(model, config)
    paths = [
        name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name
    ]
    return {path.rpartition(".")[2] for path in paths}, paths


@pytest.mark.parametrize(
    ("family", "targets", "layers"),
    [
        ("qwen2", SEVEN, set(SEVEN)),
        ("phi3", ["qkv_proj", "o_proj"], {"qkv_proj", "o_proj"}),
        ("phi3", ["all-linear"], {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        (
            "gpt_neox",
            ["All-Linear"],
            {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
        ),
        ("qwen2", ["q_proj"], {"q_proj"}),  # one name, which TRL hands on as a text
        ("llama", [r".*\.(q|v)_proj"], {"q_proj", "v_proj"}),
        ("llama", [r"model\.layers\.1\.mlp\..*_proj"], {"gate_proj", "up_proj", "down_proj"}),
        ("llama", ["layers.0.self_attn.q_proj", "v_proj"], {"q_proj", "v_proj"}),
        ("gpt_oss", ATTENTION, ATTENTION),
        ("qwen3_moe", ATTENTION, ATTENTION),
        ("qwen3_moe", ["all-linear"], ATTENTION),
        (
            "deepseek_v3",
            ["all-linear"],
            {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
        ),
    ],
)
def test_layers_that_are_named_get_an_adapter(family, targets, layers):
    model = make_model(family)
    assert trained(model, lora_config(model, lora_keys(targets), served=True))[0] == layers


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize(
    ("family", "targets", "missing", "has"),
    [
        (
            "phi3",
            SEVEN,
            "gate_proj, k_proj, q_proj, up_proj, v_proj ",
            "down_proj, gate_up_proj, o_proj, qkv_proj",
        ),
        ("glm4", SEVEN, "gate_proj, up_proj ", "gate_up_proj"),
        ("mixtral", SEVEN, "down_proj, gate_proj, up_proj ", "k_proj, o_proj, q_proj, v_proj"),
        ("nemotron", SEVEN, "gate_proj ", "up_proj"),
        ("opt", ["q_proj", "out_proj", "w1"], "w1 ", "fc1, fc2"),
        ("qwen2", ["q_proj", "wrong"], "wrong ", "q_proj"),
        ("qwen2", ["wrong"], "wrong ", "q_proj"),
        ("qwen2", [r".*\.wq"], r".*\.wq ", "q_proj"),
        # an expression among names is a name
        ("qwen2", ["q_proj", r".*k_proj"], r".*k_proj ", "k_proj"),
        ("qwen2", ["q_proj", "lm_head"], "lm_head ", "q_proj"),
        ("qwen2", ["embed_tokens"], "embed_tokens ", "q_proj"),
        ("qwen2", ["mlp"], "mlp ", "gate_proj"),  # no linear layer
        ("gemma3", ["fc1"], "fc1 ", "gate_proj"),  # of the vision tower alone
        ("gemma3", [r".*vision_tower.*q_proj"], "vision_tower", "gate_proj"),
    ],
)
def test_a_name_that_matches_nothing_is_refused_with_what_the_model_has(
    family, targets, missing, has, served
):
    model = make_model(family)
    with pytest.raises(ValueError, match="^lora_target_modules: ") as refused:
        lora_config(model, lora_keys(targets), served)
    message = str(refused.value)
    assert f"{type(model).__name__} has no linear layer " in message
    before, after = message.split(" in its language model; it has ")
    assert missing.strip() in before and has in after and "all-linear" in after


@pytest.mark.parametrize("targets", [SEVEN, ["all-linear"], [r".*(q|v)_proj"]])
def test_a_vision_tower_is_left_alone(targets):
    model = make_model("gemma3")
    layers, paths = trained(model, lora_config(model, lora_keys(targets), served=True))
    assert "q_proj" in layers and all("language_model" in path for path in paths)
    assert len(paths) % 2 == 0  # both layers


def test_an_expression_that_is_none_is_refused():
    with pytest.raises(
        ValueError, match=r"lora_target_modules: '\*q_proj' is no regular expression"
    ):
        lora_config(make_model("qwen2"), lora_keys(["*q_proj"]), served=False)


def test_experts_are_trained_but_not_served():
    for family in ("qwen3_moe", "olmoe"):
        model = make_model(family)
        with pytest.raises(
            ValueError,
            match="down_proj, gate_proj, up_proj would train the experts .* k_proj, o_proj",
        ):
            lora_config(model, lora_keys(SEVEN), served=True)
        assert {"experts"} <= trained(model, lora_config(model, lora_keys(SEVEN), served=False))[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--lora_modules_to_save", "lm_head"], "lora_modules_to_save is .*lm_head.*leave it out"),
        (["--lora_modules_to_save", "embed_tokens"], "lora_modules_to_save is .*vLLM"),
        (["--use_dora", "true"], "use_dora is True, .*vLLM.*leave it out"),
        (
            ["--lora_target_parameters", "mlp.experts.down_proj"],
            "lora_target_parameters is .*leave it out",
        ),
        (["--lora_task_type", "SEQ_CLS"], "lora_task_type is 'SEQ_CLS'; leave it out"),
    ],
)
def test_what_the_server_refuses_later_is_refused_before_the_model_loads(flags, says):
    with pytest.raises(ValueError, match=says):
        load_inputs(*parse_recipe(["--config", "recipes/miniature/config_GRPO.yaml", *flags]))


def test_names_of_other_modules_and_of_parameters_are_checked_too():
    """PEFT passes over those that match nothing, and trains without them."""
    model = make_model("qwen2")
    for key, right, wrong, has in (
        ("lora_modules_to_save", "lm_head", "score", "lm_head"),
        ("lora_modules_to_save", "model.embed_tokens", "embed_token", "model.embed_tokens"),
        ("lora_target_parameters", "o_proj.weight", "experts.down_proj", "o_proj.weight"),
    ):
        args = lora_keys(["q_proj"])
        setattr(args, key, [right])
        lora_config(model, args, served=False)
        setattr(args, key, [right, wrong])
        with pytest.raises(
            ValueError, match=f"{key}: Qwen2ForCausalLM has no {wrong}; it has .*{has}"
        ):
            lora_config(model, args, served=False)


@pytest.mark.parametrize("program", [sft, dpo])
def test_quantized_weights_are_not_asked_for_in_vain(tmp_path, program):
    with pytest.raises(ValueError, match="load_in_4bit is true.*leave it out"):
        program.build_trainer(*program.parse_recipe(sft_arguments(tmp_path, load_in_4bit="true")))


@pytest.mark.parametrize("program", [sft, dpo])
def test_the_other_programs_check_names_too(tmp_path, program):
    flags = {"lora_target_modules": "q_proj qkv_proj"}
    make = dpo_arguments if program is dpo else sft_arguments
    with pytest.raises(SystemExit, match="error: lora_target_modules: .* no linear layer qkv_proj"):
        program.main(make(tmp_path, **flags))
