"""The table of bad input: recipes, data, models and commands.

Each row is refused with one line that names what is wrong, where, and the way out; before any model
is loaded or server asked for work; and with no file written or changed. What a row says are parts
of that line, the last one the remedy.
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broken import check_message, make_models, refused, tree
from recipe_files import PROBLEMS, read_recipe, write_recipe
from scripted_server import ScriptedServer

from generation.generation_file import read_generations
from generation.measured import read_tokens_per_reflection
from rea_core.problems import load_problems
from rea_core.row_files import write_json
from rea_core.rows import read_rows

ROOT = Path(__file__).parents[2]
THINKING = "Add the numbers.\n\nThe result is 7.\n</think>\n\n\\boxed{7}"
REPLY = {"text": THINKING, "num_tokens": 9, "finish_reason": "stop"}
PATHS = [{"id": "p", "problem": "3+4?", "answer": "7", "responses": [REPLY]}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


def names(rows: list[tuple]) -> list[str]:
    return [row[0] for row in rows]


# --- Recipes --------------------------------------------------------------------------------------


# Changes of a recipe that is right, as YAML.
RECIPES = [
    ("key unknown", "num_generation: 4", "recipe.yaml", "num_generation",
     "did you mean num_generations?"),
    ("key of another program", "rpo_alpha: 1.0", "recipe.yaml", "no key rpo_alpha", "leave it out"),
    # types
    ("text for a number", "learning_rate: fast", "recipe.yaml", "learning_rate is 'fast'",
     "must be a number"),
    ("fraction for a count", "finish_max_tokens: 4.5", "finish_max_tokens is 4.5",
     "must be a whole number"),
    ("list for a number", "max_steps: [3]", "recipe.yaml", "max_steps is [3]",
     "must be a whole number"),
    ("text in a list of numbers", "target_lengths: [a]", "target_lengths is ['a']",
     "must be a whole number"),
    ("list for a text", "reflection_model: [a, b]", "reflection_model is ['a', 'b']",
     "must be a text"),
    ("neither true nor false", "revision: maybe", "revision is 'maybe'", "must be true or false"),
    ("value left empty", "dataset_name:", "dataset_name is empty", "give it a value"),
    ("number left empty", "num_generations: null", "num_generations is empty", "give it a value"),
    ("type of weights misspelt", "dtype: float31", "dtype is 'float31'",
     "bfloat16, float16, float32"),
    ("no without quotes", "eval_strategy: no", "eval_strategy is False", "no, steps, epoch",
     "in quotes"),
    # batch
    ("group larger than the batch", "num_generations: 16", "num_generations (16)", "= 8 sampled",
     "change one of"),
    ("group that does not divide", "num_generations: 3", "batch_size (8)", "num_generations (3)",
     "change one of"),
    ("group of one path", "num_generations: 1", "num_generations is 1", "at least 2"),
    ("no rows", "per_device_train_batch_size: 0", "per_device_train_batch_size is 0",
     "greater than 0"),
    ("negative accumulation", "gradient_accumulation_steps: -2",
     "gradient_accumulation_steps is -2", "greater than 0"),
    ("batches of its own", "steps_per_generation: 2", "steps_per_generation is 2", "leave it out"),
    ("no steps", "max_steps: 0", "max_steps is 0", "at least 1"),
    # revision
    ("strength misspelt", "revision_strength: stronk", "revision_strength is 'stronk'",
     "normal, weak, strong"),
    ("reflection model missing", "reflection_model: null", "reflection_model is missing",
     "set revision: false"),
    ("construction unknown", "construction: triples", "construction is 'triples'",
     "pairs, revisions_only, serial"),
    ("construction of nothing", "{construction: serial, revision: false}", "revision is false",
     "revision: true"),
    ("signal without pairs", "{overthinking_loss: max, construction: revisions_only}", "'max'",
     "construction: pairs"),
    ("threshold over 1", "cut_threshold: 1.2", "cut_threshold is 1.2", "from 0 to 1"),
    ("threshold below 0", "cut_second_half: -0.5", "cut_second_half is -0.5", "from 0 to 1"),
    ("strong cut weaker", "cut_strong_threshold: 0.9", "(0.9) is over cut_threshold (0.5)",
     "lower the first"),
    ("negative cap", "cut_cap_max: -1", "cut_cap_max is -1", "0 or more"),
    ("paragraphs without room", "paragraph_min_tokens: 200", "200 and paragraph_max_tokens 128",
     "not below it"),
    ("answer without room", "finish_max_tokens: 0", "finish_max_tokens is 0", "greater than 0"),
    # rewards
    ("reward unknown", "reward_funcs: [accuracy, brevity]", "['brevity']",
     "valid names are ['accuracy', 'density'"),
    ("no reward", "reward_funcs: []", "reward_funcs is empty", "at least one of ['accuracy'"),
    ("reward twice", "reward_funcs: [accuracy, accuracy]", "['accuracy'] twice", "reward_weights"),
    ("too few weights", "reward_weights: [1.0]", "1 values, but reward_funcs 3",
     "one weight a reward"),
    ("threshold missing", "tokens_per_reflection: null", "has neither",
     "tokens_per_reflection_file"),
    ("threshold negative", "tokens_per_reflection: -5", "'reflect'",
     "a positive tokens_per_reflection, not -5"),
    ("two thresholds", "tokens_per_reflection_file: x.json", "either",
     "tokens_per_reflection and tokens_per_refl"),
    ("target missing", "reward_funcs: [laser]", "'laser'", "a positive target_lengths, not None"),
    ("two targets", "target_lengths: [1, 2]", "target_lengths has 2 values", "one, or three"),
    ("buffer beyond the limit", "overlong_buffer: 999", "overlong_buffer (999)", "length (64)",
     "make it smaller"),
    ("order of exits without exits", "reward_funcs: [serial_decay]", "serial_decay",
     "set construction: serial"),
    # algorithm
    ("loss unknown", "loss_type: grop", "loss_type is 'grop'", "grpo, bnpo, dr_grpo, dapo"),
    ("loss that does not add up", "{loss_type: grpo, packing: shared_prefix}",
     "loss_type is 'grpo'", "'dapo' or"),
    ("packing unknown", "packing: tree", "packing is 'tree'", "'none' or 'shared_prefix'"),
    ("dropout in a shared prefix", "{packing: shared_prefix, lora_dropout: 0.05}", "is 0.05",
     "set lora_dropout: 0"),
    ("TRL's own server", "use_vllm: true", "use_vllm is True", "supports only False"),
    ("old paths uncorrected", "{max_rollout_lag: 1, vllm_importance_sampling_correction: false}",
     "is 1", "or max_roll"),
    ("negative lag", "max_rollout_lag: -1", "max_rollout_lag is -1",
     "0 (strictly on-policy) or more"),
    ("greedy paths", "temperature: 0", "temperature is 0.0", "greater than 0"),
    ("share of probability", "top_p: 1.5", "top_p is 1.5", "from 0 to 1"),
    ("negative KL", "beta: -0.04", "beta is -0.04", "0 or more"),
    ("two precisions", "{fp16: true, bf16: true}", "fp16 and bf16", "At most one"),
    ("no verifier", "verifier_workers: 0", "verifier_workers is 0", "greater than 0"),
    ("no threads", "torch_threads: 0", "torch_threads is 0", "greater than 0"),
    # adapter
    ("all weights on a CPU", "use_peft: false", "use_cpu is True", "over NCCL",
     "set use_peft: true"),
    ("all weights, overlapped", "{use_peft: false, max_rollout_lag: 1}", "max_rollout_lag is 1",
     "max_rollout_lag: 0"),
    ("quantized policy", "load_in_4bit: true", "load_in_4bit", "must be false"),
    ("rank of nothing", "lora_r: 0", "lora_r is 0", "greater than 0"),
    ("rank that no server takes", "lora_r: 1024", "lora_r is 1024", "up to 512", "lower it"),
    # places
    ("server without scheme", "policy_server: 127.0.0.1:8000", "'127.0.0.1:8000'",
     "http://HOST:PORT/v1"),
    ("server without route", "reflection_server: http://a:1", "reflection_server is 'http://a:1'",
     "http://HOST:PORT/v1"),
    ("a wait that other ranks end", "request_timeout: 3000", "3000) x 6 tries", "18600 sec",
     "(12000)", "raise ddp_timeout"),
    ("tries that other ranks end", "{request_timeout: 5, server_deadline: 2, ddp_timeout: 10}",
     "32 sec", "raise ddp_timeout"),
    ("weights in pieces", "fsdp: full_shard", "FSDP has the weights in pieces",
     "launch with ddp.yaml"),
    ("output in a file", "output_dir: problems.json", "output_dir", "problems.json is a file",
     "another place"),
    ("checkpoint of nobody", "resume_from_checkpoint: nowhere", "is nowhere", "leave it out"),
    ("model of nobody", "model_name_or_path: ./nowhere", "model folder ./nowhere",
     "download it first"),
    # data keys
    ("evaluation of nothing", "eval_strategy: steps", "eval_dataset_name is missing",
     "set eval_strategy: 'no'"),
    ("evaluation at the start of nothing", "eval_on_start: true", "eval_dataset_name is missing",
     "set eval_on_start: false"),
    ("evaluation of no problem", "max_eval_problems: 0", "max_eval_problems is 0",
     "greater than 0"),
    ("fewer problems than a step", "gradient_accumulation_steps: 5", "9 problems", "takes 10",
     "give more problems"),
    ("prompt without problem", "prompt_template: Solve it.", "'Solve it.'",
     "must contain {problem}"),
    ("column of nobody", "answer_column: gold", "no column 'gold'", "answer_column name"),
    ("measurement missing", "{tokens_per_reflection: null, tokens_per_reflection_file: m.json}",
     "m.json", "measure the"),
]  # fmt: skip
# Whole recipes.
RECIPE_FILES = [
    (
        "key twice",
        b"seed: 1\nseed: 2\n",
        "recipe.yaml, line 2",
        "seed is given twice",
        "write one `key: value` a line",
    ),
    (
        "broken YAML",
        b"seed: 1\nreward_funcs: [accuracy\n",
        "recipe.yaml, line 3",
        "not YAML",
        "`key: value`",
    ),
    ("list", b"- seed\n- 1\n", "recipe.yaml", "is list", "`key: value`"),
    ("empty", b"", "recipe.yaml", "is empty", "`key: value`"),
    (
        "Latin-1",
        b"seed: 1\nrun_name: caf\xe9\n",
        "recipe.yaml, line 2",
        "not UTF-8",
        "save the file as UTF-8",
    ),
    ("control character", b"run_name: \x00\n", "recipe.yaml", "not YAML", "plain text"),
    ("missing", None, "recipe.yaml does not exist", "correct the name"),
    (
        "without data",
        b"output_dir: out\nuse_cpu: true\nbf16: false\n",
        "--dataset_name",
        "required",
        "--help",
    ),
]


def test_recipe_without_changes_is_right(tmp_path, monkeypatch, models):
    monkeypatch.chdir(tmp_path)
    *_, inputs = read_recipe(write_recipe(tmp_path, models["whole"]))
    assert len(inputs.train_rows) == 9


@pytest.mark.parametrize("row", RECIPES, ids=names(RECIPES))
def test_recipe(tmp_path, monkeypatch, models, row):
    monkeypatch.chdir(tmp_path)
    _, changes, *says = row
    flags = write_recipe(tmp_path, models["whole"], changes)
    with refused(tmp_path, tuple(says)):
        read_recipe(flags)


@pytest.mark.parametrize("row", RECIPE_FILES, ids=names(RECIPE_FILES))
def test_recipe_file(tmp_path, monkeypatch, row):
    monkeypatch.chdir(tmp_path)
    _, content, *says = row
    if content is not None:
        (tmp_path / "recipe.yaml").write_bytes(content)
    with refused(tmp_path, tuple(says)):
        read_recipe(["--config", "recipe.yaml"])


# --- Data -----------------------------------------------------------------------------------------


def read_completions(name: str) -> Any:
    from rea_rl.sft import read_examples

    return read_examples(name, "train", ("prompt", "completion"))


def read_pairs(name: str) -> Any:
    from rea_rl.sft import read_examples

    return read_examples(name, "train", ("prompt", "chosen", "rejected"))


def read_threshold(name: str) -> Any:
    return read_tokens_per_reflection(name, word_bounded=True)


def read_scores(name: str) -> Any:
    from generation.math_verify_all import read_scores

    return read_scores(name)


def ask(name: str) -> Any:
    from stage_files import build_tasks

    from generation.arguments import GenerateArguments

    return build_tasks(GenerateArguments(qaf=name, model_dir="m", split="json"))


GOOD = {"problem": "1+1?", "answer": "2"}
BROKEN = b'[\n{"problem": "1+1?",\n "answer" "2"}\n]\n'
ONE = b'{"problem": "1+1?", "answer": "2"}\n'
# Reader, file, what it holds (bytes, or what JSON is made of; None: no file).
DATA = [
    ("missing", load_problems, "a.json", None, "a.json does not exist", "correct the name"),
    ("folder", load_problems, ".", None, "'.' is no file", "name a file (.json"),
    ("table", load_problems, "a.csv", b"problem,answer\n", "a.csv", "but is empty", "write [{...}"),
    ("ragged table", load_problems, "a.csv", b"problem,answer\n1+1?,2\n1,5?,3\n", "a.csv: row 1",
     "3 cells, but there are 2 columns", "in quotes"),
    ("quotes of a table", load_problems, "a.csv", b'problem,answer\n"1+1?,2\n', "a.csv: line",
     "no line of a table", "mend the quotes"),
    ("column twice", load_problems, "a.csv", b"problem,problem\n1,2\n", "a.csv", "one name",
     "rename one"),
    ("table in Latin-1", load_problems, "a.csv", b"problem,answer\ncaf\xe9,1\n", "a.csv: not UTF-8",
     "save the file as UTF-8"),
    ("Parquet that was cut off", load_problems, "a.json", b"PAR1\0\0PAR1", "a.json: not Parquet",
     "make the file again"),
    ("packed file that was cut off", load_problems, "a.json.gz", gzip.compress(ONE * 9)[:-9],
     "a.json.gz cannot be unpacked", "make the file again"),
    ("broken JSON, packed", load_problems, "a.json.gz", gzip.compress(BROKEN),
     "a.json.gz, line 3, column 11", "mend that place"),
    ("zip file", load_problems, "a.csv", b"PK\x03\x04", "is a zip file", "give a file (.json"),
    ("empty file", load_problems, "a.json", b"\n", "a.json is empty", "make the file again"),
    ("empty lines", load_problems, "a.jsonl", b"", "a.jsonl", "but is empty", "write [{...}"),
    ("empty list", load_problems, "a.json", [], "a.json", "but is empty", "write [{...}"),
    ("not a list", load_problems, "a.json", {"data": [GOOD]}, "a.json", "but is dict",
     "write [{...}"),
    ("row that is a number", load_problems, "a.json", [GOOD, 7], "a.json: row 1", "is '7'",
     "write {...}"),
    ("broken JSON", load_problems, "a.json", BROKEN, "a.json, line 3, column 11", "not JSON",
     "mend that place"),
    ("broken line", load_problems, "a.jsonl", ONE + b'{"problem"\n', "a.jsonl, line 2, column 11",
     "mend that place"),
    ("blank line", load_problems, "a.jsonl", ONE + b"\n" + ONE, "a.jsonl, line 2", "not JSON",
     "mend that place"),
    ("Latin-1", load_problems, "a.jsonl", ONE + b'{"problem": "caf\xe9"}', "a.jsonl, line 2",
     "not UTF-8", "save the"),
    ("UTF-16", load_problems, "a.json", "[]".encode("utf-16"), "a.json, line 1", "not UTF-8",
     "save the file as UTF-8"),
    ("no problem", load_problems, "a.json", [{"text": "x", "answer": "2"}], "row 0",
     "'problem' or 'question'", "name"),
    ("no answer", load_problems, "a.json", [GOOD, {"problem": "x"}], "row 1", "no column 'answer'",
     "name them"),
    ("solution without an answer", load_problems, "a.json", [{"problem": "x", "solution": "So 2."}],
     "row 0", "no column 'answer'", "answer_column name"),
    ("empty answer", load_problems, "a.json", [GOOD | {"answer": " "}], "row 0", "empty 'answer'",
     "drop the row"),
    ("blank problem", load_problems, "a.json", [GOOD | {"problem": " "}], "row 0",
     "empty 'problem'", "drop the row"),
    ("null answer", load_problems, "a.json", [GOOD | {"answer": None}], "row 0", "'answer' None",
     "a text or a number"),
    ("list of answers", load_problems, "a.json", [GOOD | {"answer": ["2", None]}], "row 0",
     "['2', None]",
     "a text or a number"),
    ("truth for an answer", load_problems, "a.json", [GOOD | {"answer": True}], "row 0", "True",
     "a text or a number"),
    ("number for a problem", load_problems, "a.json", [GOOD | {"problem": 2}], "row 0",
     "'problem' 2", "as a text"),
    ("problem twice", load_problems, "a.json", [GOOD | {"id": 5}] * 2, "rows 0 and 1", "'id', '5'",
     "make it unique"),
    # training rows
    ("no completion", read_completions, "a.json", [{"prompt": "x"}], "a.json: row 0",
     "a 'completion'", "drop the row"),
    ("empty completion", read_completions, "a.json", [{"prompt": "x", "completion": ""}],
     "an empty 'compl", "drop the"),
    ("number as prompt", read_completions, "a.json", [{"prompt": 7, "completion": "y"}],
     "'prompt' '7'", "be a text"),
    ("message without text", read_pairs, "a.json",
     [{"prompt": "x", "chosen": [{}], "rejected": "y"}], "'chosen'", "'role'"),
    ("no rejected path", read_pairs, "a.json", [{"prompt": "x", "chosen": "y"}], "row 0",
     "a 'rejected'", "drop the row"),
    # generation files
    ("problems for paths", read_generations, "a.json", [GOOD], "row 0 lacks ['id', 'responses']",
     "generation.generate?"),
    ("no path", read_generations, "a.json", [PATHS[0] | {"responses": []}],
     "row 0 has no responses", "generate it"),
    ("path without text", read_generations, "a.json", [PATHS[0] | {"responses": [{}]}],
     "without ['finish", "generate it"),
    ("paths twice", read_generations, "a.json", PATHS * 2, "rows 0 and 1", "'p'", "make it unique"),
    ("nothing to ask", ask, "a.json", [{"id": "a"}], "a.json: row 0",
     "needs an 'id' and its 'messages'"),
    # other files
    ("scores missing", read_scores, "a.scores.json", None, "a.scores.json does not exist",
     "math_verify_all"),
    ("scores of nobody", read_scores, "a.json", PATHS, "a.json holds no scores",
     "must be a .scores.json file"),
    ("broken scores", read_scores, "a.scores.json", b"{", "a.scores.json, line 1", "not JSON",
     "make the file again"),
    ("no threshold", read_threshold, "a.json", {"groups": {}}, "a.json has no tokens_per_refl",
     "--reflection_quantile"),
    ("threshold counted otherwise", read_threshold, "a.json",
     {"tokens_per_reflection": 9, "word_bounded": False},
     "word_bounded False", "measure again or change the key"),
]  # fmt: skip


def write(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("row", DATA, ids=names(DATA))
def test_data(tmp_path, monkeypatch, row):
    monkeypatch.chdir(tmp_path)
    _, reader, name, content, *says = row
    write(tmp_path / name, content)
    with refused(tmp_path, tuple(says)):
        reader(name)


def test_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach\n'owner/problems' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with refused(
        tmp_path, ("owner/problems: cannot be read", "on the Hub)", "or give a file (.json")
    ):
        load_problems("owner/problems")


@pytest.mark.parametrize(
    ("module", "columns"), [("sft", "prompt completion"), ("dpo", "prompt chosen rejected")]
)
def test_no_row_is_short_enough(tmp_path, models, module, columns):
    from rea_core.models import load_tokenizer

    write_json(tmp_path / "a.json", [dict.fromkeys(columns.split(), "words")])
    load = getattr(
        importlib.import_module(f"rea_rl.{module}"),
        {"sft": "load_examples", "dpo": "load_pairs"}[module],
    )
    with refused(tmp_path, ("a.json", "none of its 1 rows", "max_length (8)", "raise max_length")):
        load(str(tmp_path / "a.json"), "train", load_tokenizer(str(models["whole"])), 8)


def test_separator_inside_a_text_is_no_end_of_a_line(tmp_path):
    row = {"problem": "one\u2028two\x85three\x0bfour", "answer": "4"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows(str(tmp_path / "a.jsonl")) == [row]


# --- Models ---------------------------------------------------------------------------------------


def train_on(models: dict[str, Path], name: str, folder: Path) -> None:
    read_recipe(write_recipe(folder, models[name]))


def tokenizer_of(models: dict[str, Path], name: str, folder: Path) -> None:
    from rea_core.models import load_tokenizer

    load_tokenizer(str(models[name]), "paragraph_tokenizer")


def weights_of(models: dict[str, Path], name: str, folder: Path) -> None:
    from trl import ModelConfig

    from rea_rl.run.training import load_model

    load_model(ModelConfig(str(models[name])), trust_remote_code=False, torch_threads=None)


def serve(models: dict[str, Path], name: str, folder: Path, **changes: Any) -> None:
    from rea_rl.vllm_server import ServerConfig, VLLMServer

    VLLMServer(
        ServerConfig(str(models[name]), 8000, "policy", log_dir=str(folder / "logs"), **changes)
    )


def serve_too_long(models: dict[str, Path], name: str, folder: Path) -> None:
    serve(models, name, folder, max_model_len=99_999)


def generate_with(models: dict[str, Path], name: str, folder: Path, **changes: Any) -> None:
    from generation.arguments import GenerateArguments
    from generation.generate import generate

    settings = {
        "qaf": write_json_file(folder, PROBLEMS),
        "model_dir": str(models["whole"]),
        "output_dir": str(folder),
    }
    generate(GenerateArguments(**settings | {"lora": str(models[name])} | changes))


def generate_too_long(models: dict[str, Path], name: str, folder: Path) -> None:
    generate_with(models, name, folder, max_model_len=99_999)


def merge(models: dict[str, Path], name: str, folder: Path) -> None:
    from rea_rl.merge_lora import merge_lora

    merge_lora(str(models["whole"]), str(models[name]), str(folder / "merged"))


def merge_into(models: dict[str, Path], name: str, folder: Path) -> None:
    from rea_rl.merge_lora import merge_lora

    merge_lora(str(models[name]), str(models["adapter"]), str(folder / "merged"))


def write_json_file(folder: Path, rows: list[Any]) -> str:
    write_json(folder / "problems.json", rows)
    return str(folder / "problems.json")


MODELS = [
    ("folder missing", train_on, "nowhere", "there is no model folder", "nowhere",
     "or give a Hub id"),
    ("no config", train_on, "no_config", "no_config has no config.json", "folder of a whole model"),
    ("no tokenizer", train_on, "no_tokenizer", "no_tokenizer has none of tokenizer.json",
     "save the tokenizer"),
    ("no chat template", train_on, "no_template", "model_name_or_path", "no chat template",
     "chat_template.jinja"),
    ("no end of sequence", train_on, "no_end", "model_name_or_path", "no eos_token",
     "tokenizer_config.json"),
    ("tokenizer of another", train_on, "few_ids", "256 ids", "vocab_size is 100",
     "the model's own tokenizer"),
    ("marker that is hidden", train_on, "hidden", "reads </think> back as '<think>'",
     "think_start and think_end, or set revision: false"),
    ("broken config", train_on, "broken_config", "config.json, line 2, column 15", "not JSON",
     "mend that place"),
    ("weights missing", weights_of, "no_weights", "model_name_or_path", "no_weights",
     "the folder of a whole model"),
    ("tokenizer of paragraphs", tokenizer_of, "nowhere", "paragraph_tokenizer", "nowhere",
     "must be the folder of a"),
    ("server without a model", serve, "nowhere", "no model folder", "nowhere", "download it first"),
    ("server without a tokenizer", serve, "no_tokenizer", "none of tokenizer.json",
     "save the tokenizer"),
    ("server with too long a context", serve_too_long, "whole", "max_model_len is 99999", "32768",
     "lower it"),
    ("engine with too long a context", generate_too_long, "adapter", "max_model_len is 99999",
     "32768", "lower it"),
    ("adapter missing", generate_with, "nowhere", "nowhere is not the folder of an adapter",
     "a run's output_dir"),
    ("model for an adapter", merge, "whole", "no adapter_config.json", "a run's output_dir"),
    ("adapter without weights", merge, "adapter_without_weights", "no adapter_model.safetensors",
     "a run's output_dir"),
    ("adapter of another base", merge, "adapter_of_another", "'model/Other-7B', not of",
     "change base_model_name_or_path"),
    ("adapter of another base, sampled", generate_with, "adapter_of_another",
     "an adapter of 'model/Other-7B'", "change"),
    ("adapter of nobody", merge, "adapter_of_nobody", "has no base_model_name_or_path",
     "there if it was"),
    ("adapter of another kind", merge, "prefix_tuning", "PREFIX_TUNING", "train a LoRA adapter"),
    ("broken adapter", merge, "broken_adapter", "adapter_config.json, line 1", "not JSON",
     "make the file again"),
    ("adapter wider than the server", generate_with, "adapter_too_wide", "has rank 1024",
     "up to 512", "merge it"),
    ("merge into nothing", merge_into, "nowhere", "no model folder", "nowhere",
     "download it first"),
]  # fmt: skip


@pytest.mark.parametrize("row", MODELS, ids=names(MODELS))
def test_model(tmp_path, monkeypatch, models, row):
    monkeypatch.chdir(tmp_path)
    _, use, name, *says = row
    known = {**models, "nowhere": models["whole"].parent / "nowhere"}
    write_recipe(tmp_path, known[name])
    before = tree(models["whole"].parent)
    with refused(tmp_path, tuple(says)):
        use(known, name, tmp_path)
    assert tree(models["whole"].parent) == before


# What a server does otherwise than the trainer expects: models, context, whether it encodes as the
# trainer does.
SERVERS = [
    (
        "another model",
        ["other"],
        1024,
        True,
        "serves 'other'",
        "is needed; start it with that model",
    ),
    (
        "prompt too long",
        None,
        80,
        True,
        "80 tokens",
        "82 of them in the longest prompt, of problem '3'",
        "ask for shorter completions",
    ),
    (
        "another vocabulary",
        None,
        1024,
        False,
        "has another vocabulary",
        "whole'",
        "start it with the same files",
    ),
]


@pytest.mark.parametrize("row", SERVERS, ids=names(SERVERS))
def test_server(tmp_path, monkeypatch, models, row):
    from rea_rl.grpo import build_engine

    monkeypatch.chdir(tmp_path)
    _, served, context, same_vocabulary, *says = row
    flags = write_recipe(tmp_path, models["whole"], "finish_max_tokens: 8")
    write_json(
        tmp_path / "problems.json",
        [*PROBLEMS[:3], {"problem": "1+1+1?", "answer": "3"}, *PROBLEMS[3:]],
    )
    with ScriptedServer(None, served or [str(models["whole"])], context) as server:
        _, args, model_args, inputs = read_recipe([*flags, "--policy_server", server.url])
        if same_vocabulary:
            server.encode = lambda text: inputs.tokenizer.encode(text, add_special_tokens=False)
        with refused(tmp_path, tuple(says)):
            build_engine(args, model_args.model_name_or_path, inputs)


# --- Commands -------------------------------------------------------------------------------------


# Module, arguments. Files of the folder are those of `workplace`; {model} and {models} are folders.
COMMANDS = [
    ("no arguments", "rea_rl.merge_lora", "", "required", "base, adapter, out"),
    ("too few arguments", "generation.math_verify_all", "paths.json", "required", "--model_dir"),
    ("unknown command", "generation.evaluation.benchmarks", "fetsh", "invalid choice: 'fetsh'",
     "'fetch', 'collect'"),
    ("unknown set", "generation.evaluation.benchmarks", "fetch --sets GSM9K",
     "invalid choice: 'GSM9K'",
     "'math500'"),
    ("not a number", "generation.sft_data", "a.json --paths b.json --max_per_problem x",
     "--max_per_problem", "int"),
    ("two sources", "generation.labeling_to_prefix", "a --labels b --judge_cuts c --out d",
     "--judge_cuts", "not allowed"),
    ("stage without seconds", "miniature.report",
     "--base a --trained b --run c --out d --seconds x", "--seconds", "'x'"),
    ("recipe missing", "rea_rl.grpo", "--config none.yaml", "none.yaml does not exist",
     "correct the name"),
    ("flag unknown", "rea_rl.sft",
     "--dataset_name a.json --use_cpu true --bf16 false --learning_rat 1", "--learning_rat 1",
     "did you mean learning_rate?"),
    ("recipe of another program", "rea_rl.dpo", "--config recipe.yaml",
     "recipe.yaml: there is no key", "leave it out"),
    # generate
    ("split unknown", "generation.generate", "--qaf paths.json --model_dir m --split math_eval",
     "'math_eval'", "math_cot, json"),
    ("flag misspelt", "generation.generate", "--qaf paths.json --model_dir m --temprature 1",
     "--temprature", "temperature?"),
    ("rows missing", "generation.generate", "--qaf none.json --model_dir {model}",
     "none.json does not exist", "correct the"),
    ("no samples", "generation.generate", "--qaf paths.json --model_dir m --n_generate_sample 0",
     "n_generate_sample", "least 1"),
    ("no rows", "generation.generate", "--qaf paths.json --model_dir m --qaf_limit 0",
     "qaf_limit is 0", "greater than 0"),
    ("colder than 0", "generation.generate", "--qaf paths.json --model_dir m --temperature -1",
     "temperature is -1", "0 or more"),
    ("more than the memory", "generation.generate",
     "--qaf a.json --model_dir m --gpu_memory_utilization 2", "is 2.0", "0 to 1"),
    ("weights of another type", "generation.generate", "--qaf a.json --model_dir m --dtype fp8",
     "'fp8'", "bfloat16, float16"),
    ("server without scheme", "generation.generate",
     "--qaf paths.json --model_dir m --api --api_base a:1 --api_model m",
     "api_base is 'a:1'", "http://HOST:PORT/v1"),
    ("context too long", "generation.generate",
     "--qaf paths.json --model_dir {model} --max_model_len 99999",
     "max_model_len is 99999", "32768 tokens", "lower it"),
    ("output below a file", "generation.generate",
     "--qaf paths.json --model_dir {model} --output_dir file.txt",
     "output_dir: file.txt is a file", "give another place"),
    # servers
    ("port unknown", "rea_rl.vllm_server", "--role policy --model {model} --port 70000 --dry_run",
     "port is 70000", "65535"),
    ("port no number", "rea_rl.vllm_server", "--role policy --model {model} --port http --dry_run",
     "--port", "'http'"),
    ("role unknown", "rea_rl.vllm_server", "--role judge --model {model} --port 1 --dry_run",
     "'judge'", "'policy', 'reflection'"),
    ("server's context", "rea_rl.vllm_server",
     "--role policy --model {model} --port 8000 --max_model_len 99999 --dry_run",
     "max_model_len is 99999", "lower it"),
    ("server's recipe missing", "rea_rl.vllm_server", "--role policy --recipe none.yaml --dry_run",
     "none.yaml", "correct the"),
    ("address without port", "rea_rl.vllm_server", "--role policy --recipe portless.yaml --dry_run",
     "'http://a/v1'", "HOST:PORT"),
    ("adapters too wide", "rea_rl.vllm_server",
     "--role policy --recipe wide.yaml --max_lora_rank 8 --dry_run",
     "max_lora_rank is 8", "lora_r of wide.yaml is 16", "lower lora_r"),
    ("rank unknown", "rea_rl.vllm_server",
     "--role policy --model {model} --port 1 --max_lora_rank 12", "is 12", "takes 8, 16"),
    # outputs
    ("output is there", "rea_rl.merge_lora", "{model} {models}/adapter paths.json",
     "paths.json exists already", "another folder"),
    ("output is an input", "generation.labeling_to_prefix",
     "paths.json --judge_cuts cuts.json --out paths.json --paragraph_tokenizer {model}",
     "out is paths.json", "another file"),
    ("candidates are labels", "generation.labeling_distill_utils",
     "paths.json --candidates paths.json", "candidates is",
     "name another file"),
    ("two outputs in one", "generation.sft_data",
     "paths.json --paths cuts.json --sft_out o.json --rpo_out o.json",
     "rpo_out is o.json", "name another file"),
    ("output is a folder", "generation.clean_dataset", "--verdicts a.scores.json --out .",
     "out is .", "name a file"),
    ("results below a file", "generation.math_verify_all",
     "paths.json --model_dir {model} --results file.txt/verify.json",
     "results: file.txt is a file", "give another place"),
    ("page below a file", "rea_rl.viewer", "run --out file.txt/page.html", "file.txt is a file",
     "give another place"),
    ("page over rollouts", "rea_rl.viewer", "run --out run/rollouts/step-0.jsonl",
     "out is run/roll", "name another file"),
    ("problems below a file", "miniature.build", "--out file.txt --only-problems",
     "file.txt is a file", "give another place"),
    ("picture is a folder", "generation.evaluation.table", "models --save_to .", "save_to is .",
     "name a file"),
    ("labels below a file", "miniature.label", "paths.json --out file.txt/a.json",
     "file.txt is a file", "give another place"),
    # files of another stage
    ("no cuts", "generation.labeling_to_prefix",
     "paths.json --judge_cuts paths.json --out o.json --paragraph_tokenizer {model}",
     "row 0 has no 'cut'", "labeling_distill_utils --clean"),
    ("no strategies", "generation.evaluation.strategies", "paths.json --model_dir m --out o",
     "no 'strategy'", "labeling_to_prefix"),
    ("half of the labels", "generation.evaluation.strategies",
     "paths.json --model_dir m --out o --labels l.json", "only one", "both"),
    ("scores without a name", "generation.evaluation.strategies",
     "finished.json --model_dir {model} --out o --models a.json",
     "models has 'a.json'", "NAME=FILE.scores.json"),
    ("judgements of others", "generation.labeling_distill_utils",
     "labels.json --clean --paths other.json --out o.json --confirmations confirmed.json "
     "--paragraph_tokenizer {model}", "no response p/0",
     "the file that was judged"),
    ("no paragraph tokenizer", "generation.labeling_distill_utils",
     "paths.json --clean --paths b --confirmations c --out d",
     "needs paragraph_tokenizer", "the model that wrote the responses"),
    ("no rollouts", "rea_rl.viewer", "models", "models has no rollouts",
     "output_dir of a run of rea_rl.grpo?"),
    ("batch unknown", "rea_rl.viewer", "run --batches step-7", "['step-7']",
     "which has ['step-0']"),
    ("rollouts of others", "rea_rl.viewer", "run", "step-0.jsonl: row 0 has no 'kind'; it",
     "a run of rea_rl.grpo"),
    ("log of nobody", "generation.evaluation.plots", "--trainer_state cuts.json --save_to o.png",
     "cuts.json",
     "of a run of rea_rl.grpo?"),
    # evaluation
    ("mode unknown", "generation.math_verify_all", "paths.json --model_dir {model} --mode lax",
     "'lax'", "strict, original"),
    ("budget of nothing", "generation.math_verify_all",
     "paths.json --model_dir {model} --budgets 0", "[0]", "at least 1 token"),
    ("quantile over 1", "generation.math_verify_all",
     "paths.json --model_dir {model} --reflection_quantile 20", "20.0", "0 to 1"),
    ("base of others", "generation.math_verify_all",
     "paths.json --model_dir {model} --base other.scores.json",
     "other.scores.json: 1 of 1 problems are not in it", "score the base on the same"),
    ("slips in words", "generation.math_verify_all", "words.json --model_dir {model} --slips",
     "row 0", "'seven'", "leave it out"),
    ("oracle in words", "miniature.judge",
     "--qaf words.json --split labeling_distill --model_dir o --paragraph_tokenizer {model}",
     "'seven'", "take a large judge"),
    ("oracle as solver", "miniature.judge", "--qaf paths.json --model_dir o", "split is math_cot",
     "labeling_distill* or json"),
    ("benchmark without a file", "generation.evaluation.benchmarks",
     "collect {root}/dataset/eval_sample --out o --extra a=none.json",
     "no file a=none.json", "write NAME=FILE"),
    ("benchmark without a name", "generation.evaluation.benchmarks",
     "collect models --out o --extra none.json",
     "'none.json'", "NAME=FILE"),
    ("negative limit", "generation.evaluation.benchmarks", "collect models --out o --limit -1",
     "limit is -1",
     "greater than 0"),
    ("summary of others", "miniature.report",
     "--base other.scores.json --trained other.scores.json --run run --out o",
     "no corrected mistakes of level 5", "with --slips"),
    # study and build
    ("row unknown", "rea_rl.study", "--rows grpo_long --dry_run", "rows ['grpo_long'] are unknown",
     "there are base, grpo"),
    ("no seeds", "rea_rl.study", "--rows grpo --seeds 0 --dry_run", "seeds is 0", "greater than 0"),
    ("study in a file", "rea_rl.study", "--rows grpo --work file.txt --dry_run",
     "work: file.txt is a file", "another place"),
    ("no time", "miniature.build", "--out o --problems o --minutes 0", "minutes is 0.0",
     "greater than 0"),
    ("nothing to start from", "miniature.build", "--out o --problems o --only-instruct",
     "o has no Miniature-LRM", "build that"),
    ("package missing", "generation.gguf_to_hf", "--package no-such-gguf --out o",
     "no-such-gguf is not installed", "pip install"),
]  # fmt: skip
# Those that run as a user would run them; the second part is whether torch is imported before the
# mistake is found.
SHELL = {
    "no arguments": False,
    "recipe missing": True,
    "split unknown": False,
    "output below a file": False,
    "port unknown": False,
    "adapters too wide": False,
    "output is there": False,
    "output is an input": False,
    "slips in words": True,
    "row unknown": True,
    "rollouts of others": False,
    "benchmark without a file": False,
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: dict[str, Path]) -> Path:
    """Folder with a file of most kinds, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "file.txt").write_text("precious")
    path = {"id": "p/0", "problem": "3+4?", "answer": "7", "problem_id": "p", "path": 0}
    cut = path | {
        "strategy": "none",
        "truncated": False,
        "kept": 1.0,
        "cut": None,
        "responses": [REPLY],
    }
    chunk = path | {"id": "p/0/0", "chunk": 0, "use_answer": True, "paragraphs": ["x"]}
    judged = {
        "text": "[1]. Think: y\nLabel: Right Result",
        "num_tokens": 9,
        "finish_reason": "stop",
    }
    scores = {
        "groups": {"all": {}},
        "problems": [{"id": "z", "mean_tokens": 5.0, "benchmark": None, "responses": []}],
    }
    for name, content in {
        "paths.json": PATHS,
        "words.json": [PATHS[0] | {"answer": "seven"}],
        "other.json": [PATHS[0] | {"id": "q"}],
        "cuts.json": [path | {"cut": None}],
        "finished.json": [cut],
        "labels.json": [chunk | {"responses": [judged]}],
        "confirmed.json": [path | {"id": "p/0/0", "responses": [judged | {"text": "Yes"}]}],
        "other.scores.json": scores,
        "models/small/x.scores.json": scores,
        "run/rollouts/step-0.jsonl": PATHS[0],
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, content)
    write_recipe(tmp_path, models["whole"])
    (tmp_path / "portless.yaml").write_text("model_name_or_path: m\npolicy_server: http://a/v1\n")
    (tmp_path / "wide.yaml").write_text(
        "model_name_or_path: m\npolicy_server: http://127.0.0.1:1/v1\nlora_r: 16\n"
    )
    return tmp_path


def arguments(text: str, models: dict[str, Path]) -> list[str]:
    places = {"model": models["whole"], "models": models["whole"].parent, "root": ROOT}
    return text.format(**places).split()


def check_end(status: Any, stderr: str, says: list[str], folder: Path) -> None:
    """A status other than 0 and, as the last line, `error: ...` or what argparse says below its
    usage."""
    last = stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert (status, last.startswith("error: ")) == (1, True) or (
        status,
        stderr.startswith("usage: "),
    ) == (2, True)
    check_message(last, tuple(says), folder)


@pytest.mark.parametrize("row", COMMANDS, ids=names(COMMANDS))
def test_command(workplace, models, capsys, row):
    _, module, flags, *says = row
    main: Callable[[list[str]], None] = importlib.import_module(module).main
    before = tree(workplace)
    with pytest.raises(SystemExit) as stop:
        main(arguments(flags, models))
    if isinstance(stop.value.code, str):  # Python writes it to stderr and ends with 1
        check_end(1, stop.value.code, says, workplace)
    else:
        check_end(stop.value.code, capsys.readouterr().err, says, workplace)
    assert tree(workplace) == before


@pytest.mark.parametrize("name", SHELL)
def test_command_in_a_shell(workplace, models, name):
    (_, module, flags, *says), *_ = [row for row in COMMANDS if row[0] == name]
    loads_torch = SHELL[name]
    watch = [] if loads_torch else ["-X", "importtime"]
    before = tree(workplace)
    finished = subprocess.run(
        [sys.executable, *watch, "-m", module, *arguments(flags, models)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1",
             "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    imports, said = [], []
    for line in finished.stderr.splitlines():
        (imports if line.startswith("import time:") else said).append(line)
    check_end(finished.returncode, "\n".join(said), says, workplace)
    assert not {"torch", "vllm"} & {line.rpartition("|")[2].strip() for line in imports}
    assert finished.stdout == "" and tree(workplace) == before
