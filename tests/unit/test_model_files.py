"""Models that cannot be loaded: every program ends with one line that keeps the cause, before
servers are asked.

Also models whose sizes stand in a nested `text_config`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters import save_adapter
from broken import change_json, check_message
from safetensors.torch import load_file, save_file
from tiny import make_tokenizer, save_model
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from rea_core import model_files
from rea_core.models import load_tokenizer
from rea_core.row_files import write_json
from rea_rl import dpo, grpo, merge_lora, sft, vllm_server
from rea_rl.run import training as entry

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 988097824\n"
)
GATED = (
    "You are trying to access a gated repo.\nMake sure to have access to it at "
    "https://huggingface.co/meta-llama/X.\n"
    "401 Client Error. (Request ID: Root=1-66)\n\nCannot access gated repo for url "
    "https://huggingface.co/meta-llama/X."
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A model and an adapter of it, beside it."""
    folder = save_model(tmp_path_factory.mktemp("models") / "model")
    save_adapter(folder, folder.parent / "adapter")
    return folder


@pytest.fixture
def model(whole, tmp_path, monkeypatch) -> Path:
    """A copy that a test may break, in whose parent the programs run."""
    shutil.copytree(whole, tmp_path / "model")
    shutil.copytree(whole.parent / "adapter", tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    write_json(
        tmp_path / "problems.json", [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(2)]
    )
    write_json(
        tmp_path / "rows.json", [{"prompt": "1", "completion": "2", "chosen": "2", "rejected": "3"}]
    )
    response = {"text": "\\boxed{7}", "num_tokens": 9, "finish_reason": "stop"}
    write_json(
        tmp_path / "paths.json",
        [{"id": "p", "problem": "3+4?", "answer": "7", "responses": [response]}],
    )
    return tmp_path / "model"


COMMON = (
    "--model_name_or_path model --use_cpu true --bf16 false --report_to none --use_peft true "
    "--output_dir out"
)
RL = (
    f"{COMMON} --dataset_name problems.json --reward_funcs accuracy --revision false "
    "--num_generations 2 --per_device_train_batch_size 2 --max_completion_length 16 "
    "--max_rollout_lag 0"
)


def commands() -> dict[str, tuple[Callable[[list[str]], None], str]]:
    from generation import generate, math_verify_all

    return {
        "grpo": (grpo.main, RL),
        "sft": (sft.main, f"{COMMON} --dataset_name rows.json"),
        "dpo": (dpo.main, f"{COMMON} --dataset_name rows.json"),
        "merge_lora": (merge_lora.main, "model adapter merged"),
        "vllm_server": (vllm_server.main, "--role policy --model model --port 1234 --dry_run"),
        "generate": (generate.main, "--qaf problems.json --model_dir model"),
        "math_verify_all": (math_verify_all.main, "paths.json --model_dir model"),
    }


PROGRAMS = ("grpo", "sft", "dpo", "merge_lora", "vllm_server", "generate", "math_verify_all")
LOADERS = PROGRAMS[:-1]  # of weights


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def shorten(name: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return cut


def lose_a_shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    save_file(
        {n: w for n, w in weights.items() if "00001" in shards[n]},
        folder / "model-00001-of-00002.safetensors",
    )
    write_json(folder / "model.safetensors.index.json", {"weight_map": shards})
    (folder / "model.safetensors").unlink()


BROKEN = [
    ("tokenizer not fetched", write("tokenizer.json", POINTER), PROGRAMS,
     "tokenizer.json is a pointer", "git lfs pull"),
    ("config not fetched", write("config.json", POINTER), PROGRAMS, "config.json is a pointer",
     "git lfs pull"),
    ("template not fetched", write("chat_template.jinja", POINTER), PROGRAMS,
     "template.jinja is a p", "git lfs pull"),
    ("weights not fetched", write("model.safetensors", POINTER), LOADERS,
     "safetensors is a pointer", "git lfs pull"),
    ("weights cut off", shorten("model.safetensors", 0.5), LOADERS, "not fully covered",
     "write it again"),
    ("header cut off", shorten("model.safetensors", 0.01), LOADERS,
     "Error while deserializing header", "write it again"),
    ("no weights", shorten("model.safetensors", 0), LOADERS, "header too small",
     "fetch or write it again"),
    ("shard missing", lose_a_shard, LOADERS, "model-00002-of-00002.safetensors does not exist",
     "fetch all weights"),
    ("tokenizer cut off", shorten("tokenizer.json", 0.5), PROGRAMS, "tokenizer.json, line",
     "mend that place"),
]  # fmt: skip


def check_refused(program: str, says: tuple[str, ...], folder: Path, *more: str) -> None:
    main, flags = commands()[program]
    with pytest.raises(SystemExit) as stop:
        main([*flags.split(), *more])
    message = stop.value.code
    assert isinstance(message, str) and message.lstrip().startswith("error: "), (program, message)
    check_message(message.lstrip(), says, folder)


@pytest.mark.parametrize("row", BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_files_are_named_by_every_program_that_reads_them(model, tmp_path, row):
    _, breaks, programs, *says = row
    breaks(model)
    for program in programs:
        check_refused(program, tuple(says), tmp_path)


def test_adapters_are_looked_at_too(model, tmp_path):
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text(POINTER)
    check_refused(
        "merge_lora",
        ("adapter_model.safetensors is a pointer of Git LFS", "git lfs pull"),
        tmp_path,
    )
    says = ("adapter_model.safetensors is a pointer of Git LFS", "git lfs pull")
    check_refused("generate", says, tmp_path, "--lora", "adapter")


# What the tokenizer's loader says, and the remedy.
CAUSES = [
    (OSError(GATED), "access a gated repo", "log in: hf auth login"),
    (
        OSError("We couldn't connect to 'https://hub' to load the files"),
        "couldn't connect",
        "can be reached",
    ),
    (
        ImportError("SentencePiece is needed.\nRun `pip install sentencepiece`"),
        "pip install sentencepiece",
        "install that",
    ),
    (
        Exception("data did not match any variant of untagged enum ModelWrapper"),
        "untagged enum",
        "folder of a model",
    ),
    (
        ValueError("please pass `trust_remote_code=True` to run its code"),
        "to run its code",
        "read that code",
    ),
]


@pytest.mark.parametrize("row", CAUSES, ids=[str(row[0])[:20] for row in CAUSES])
def test_a_tokenizer_that_cannot_be_loaded_says_why(model, tmp_path, monkeypatch, row):
    error, *says = row

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    for program in ("grpo", "sft", "dpo", "merge_lora", "math_verify_all"):
        check_refused(program, ("no tokenizer at 'model'", *says), tmp_path)


@pytest.mark.parametrize("name", ["eos_token", "pad_token"])
def test_a_token_that_the_model_has_not_is_refused_before_rows_are_encoded(model, tmp_path, name):
    """transformers' class of the model adds one of its own where the tokenizer names none."""
    file = tmp_path / "model" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in config.items() if key != name}))
    says = (f"has the {name} '<|endoftext|>' of id", "vocab_size is", f"as {name} in its")
    for program in ("sft", "dpo", "grpo"):
        check_refused(program, says, tmp_path)


def test_code_of_a_model_is_not_run_and_nobody_is_asked(model, tmp_path, monkeypatch):
    change_json(
        model / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "configuration_own.OwnConfig"},
    )
    change_json(
        model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]}
    )
    for name in ("configuration_own", "tokenization_own"):
        (model / f"{name}.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    check_refused(
        "sft", ("cannot be made here", "contains custom code", "set trust_remote_code"), tmp_path
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("program", ["grpo", "sft", "dpo"])
@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "no_such_attention"])
def test_attention_that_is_not_there_is_refused_before_rows_are_read(
    model, tmp_path, program, name
):
    (tmp_path / "rows.json").write_text("no rows")
    check_refused(program, (name, "model_name_or_path"), tmp_path, "--attn_implementation", name)


@pytest.mark.parametrize("program", ["grpo", "sft", "dpo"])
@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio", "comet_ml", "wanbd"])
def test_reporters_that_are_not_there_are_refused_before_anything_else(
    model, tmp_path, monkeypatch, program, name
):
    monkeypatch.setattr(
        "transformers.integrations.integration_utils.importlib.util.find_spec", lambda _: None
    )
    for package in ("wandb", "tensorboard", "trackio", "comet"):
        known = f"transformers.integrations.integration_utils.is_{package}_available"
        monkeypatch.setattr(known, lambda: False, raising=False)
    (tmp_path / "model" / "config.json").unlink()
    check_refused(program,
                  (f"report_to is {name}" if name != "wanbd" else "report_to is 'wanbd'", "none"),
                  tmp_path,
                  "--report_to", name)  # fmt: skip


def test_weights_that_would_be_drawn_at_random_are_refused(model, tmp_path):
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    says = (
        "model_name_or_path",
        "lacks 1 of the weights",
        "model.layers.1.mlp.up_proj.weight",
        "a whole model",
    )
    check_refused("sft", says, tmp_path)
    check_refused("merge_lora", ("BASE", *says[1:]), tmp_path)


def test_weights_of_another_config_are_refused_with_the_loaders_words(model, tmp_path):
    change_json(model / "config.json", intermediate_size=64)
    check_refused("sft", ("ignore_mismatched_sizes", "belong together"), tmp_path)


@pytest.mark.parametrize("kind", ["qwen9", "vit"])
def test_an_architecture_that_writes_no_text_is_refused_first(model, tmp_path, kind):
    change_json(model / "config.json", model_type=kind)
    check_refused(
        "grpo", ("model_name_or_path", "cannot be made here", "that transformers knows"), tmp_path
    )


# --- Nested configurations ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nested(tmp_path_factory) -> Path:
    """Gemma 3 as from 4B on: text and vision, the text's sizes below `text_config`."""
    tokenizer = make_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 512,
    }  # fmt: skip
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=text, vision_config={**vision, "patch_size": 14}, mm_tokens_per_image=4
    )
    folder = tmp_path_factory.mktemp("nested") / "model"
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "Gemma3ImageProcessor"}'
    )
    assert "vocab_size" not in json.loads((folder / "config.json").read_text())
    return folder


def test_an_adapter_of_a_nested_model_is_merged(nested, tmp_path):
    adapter = save_adapter(nested, tmp_path / "adapter", ["language_model.*q_proj", "down_proj"])
    out = merge_lora.merge_lora(str(nested), str(adapter), str(tmp_path / "merged"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        base, merged = (
            AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (nested, out)
        )
    assert (merged - base).abs().max() > 0.01
    assert (out / "preprocessor_config.json").is_file()  # a server reads it


def test_sizes_of_a_nested_model_are_checked(nested, tmp_path):
    assert model_files.text_config(nested).max_position_embeddings == 512
    vllm_server.check_context(str(nested), 512)
    with pytest.raises(
        ValueError, match="max_model_len is 99999999, but .* has a context of 512 tokens"
    ):
        vllm_server.check_context(str(nested), 99_999_999)
    load_tokenizer(str(nested))
    small = shutil.copytree(nested, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    config["text_config"]["vocab_size"] = 100
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has 256 ids, but the model's vocab_size is 100"):
        load_tokenizer(str(small))


def test_a_model_that_transformers_does_not_know_is_served_unchecked(model, caplog):
    change_json(model / "config.json", model_type="qwen9")
    vllm_server.check_context(str(model), 99_999_999)
    assert "its sizes are not checked" in caplog.text


def test_reporters_that_are_there_pass():
    entry.check_reporters([])
