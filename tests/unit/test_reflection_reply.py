"""Long and compact replies of the reflection model: one setting from the training file to the
rollouts, which the model's folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapters import save_adapter
from recipe_files import write_recipe
from stage_files import build_tasks, make_stages
from supervised import sft_arguments, write_rows
from tiny import save_model

from generation import generate
from generation.arguments import GenerateArguments
from generation.labeling_distill_utils import reflection_example
from generation.reflection_reply import FILE, copy_form, form_of, reply_form, write_form
from miniature import label
from rea_rl import adapter_pack, grpo
from rea_rl.merge_lora import merge_lora
from rea_rl.sft import build_trainer, parse_recipe

COMPACT = '{"reflection_reply": "compact"}'


@pytest.mark.parametrize(
    ("given", "said", "form"),
    [
        (None, None, "long"),  # a model of an earlier version
        ("long", None, "long"),
        ("compact", None, "compact"),
        (None, COMPACT, "compact"),
        ("compact", COMPACT, "compact"),
        (None, '{"reflection_reply": "long"}', "long"),
    ],
)
def test_a_model_is_asked_in_the_form_that_its_folder_or_the_recipe_says(
    tmp_path, given, said, form
):
    if said is not None:
        (tmp_path / FILE).write_text(said)
    assert reply_form(given, tmp_path) == form


@pytest.mark.parametrize(
    ("given", "said", "message"),
    [
        ("long", COMPACT, r"reflection_reply is long, but .* was trained on compact replies"),
        ("compact", '{"reflection_reply": "long"}', "leave the key out, or train the model"),
        (None, '{"reflection_reply": "short"}', "has the reflection_reply 'short'; it must be one"),
        (None, "[]", "has the reflection_reply None; it must be one of long, compact"),
        (None, "{", "not JSON"),
    ],
)
def test_a_form_that_the_model_was_not_trained_on_is_refused(tmp_path, given, said, message):
    (tmp_path / FILE).write_text(said)
    with pytest.raises(ValueError, match=message):
        reply_form(given, tmp_path)


@pytest.mark.parametrize(
    ("completion", "form"),
    [
        ("[1]. Think\n[2]. Result", "long"),
        ("[1]. Result", "long"),
        ("Labels: Result Think", "compact"),
        ("[1]. Thus", None),
        ("Labels: none", None),
        ("So [1]. Think", None),
        ("", None),
    ],
)
def test_a_reply_shows_its_form(completion, form):
    assert form_of(completion) == form


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "model"))


def sft_trainer(folder: Path, rows: list[dict]) -> Path:
    """Trainer of a tiny model on rows; returns its output_dir."""
    folder.mkdir()
    flags = sft_arguments(folder, dataset_name=write_rows(folder / "rows.json", rows))
    build_trainer(*parse_recipe(flags))
    return folder / "out"


def test_the_form_of_the_training_file_goes_with_the_model(tmp_path, model, monkeypatch):
    """From the judge's labels to the offline labels and the start of a training, by commands."""
    paths, train = str(make_stages(tmp_path)["paths"]), tmp_path / "work/train.json"
    reply = ["--reflection_reply", "compact"]
    label.main([paths, "--out", str(train), "--model_dir", model, *reply])
    (example,) = json.loads(train.read_text())
    assert example["completion"][0]["content"] == "Labels: Think Result Think"
    assert "Write one word for each part" in example["prompt"][0]["content"]

    trained = sft_trainer(tmp_path / "sft", [example] * 4)
    save_adapter(Path(model), trained)
    packed, unpacked = str(tmp_path / "packed"), str(tmp_path / "unpacked")
    adapter_pack.main(["pack", str(trained), packed])
    adapter_pack.main(["unpack", packed, unpacked])
    merged = merge_lora(model, unpacked, str(tmp_path / "merged"))
    assert (merged / FILE).read_text() == (trained / FILE).read_text()

    settings = {"paragraph_tokenizer": model, "paragraph_min_tokens": 1, "logprobs": 5}
    for asked in ({"model_dir": str(merged)}, {"model_dir": model, "lora": unpacked}):
        (task,) = build_tasks(GenerateArguments(paths, split="labeling", **settings, **asked))
        assert task.prompt.messages == example["prompt"] and task.prompt.prefill == "Labels:"
    flags = ["--qaf", paths, "--split", "labeling", "--paragraph_tokenizer", model]
    flags += ["--logprobs", "5", "--model_dir", str(merged), "--reflection_reply", "long"]
    says = "reflection_reply is long, but .*merged was trained on compact replies"
    with pytest.raises(SystemExit, match=f"error: {says}"):
        generate.main(flags)
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, Path(model), f"{{reflection_model: {merged}}}")
    with pytest.raises(SystemExit, match=f"error: {says}"):
        grpo.main([*recipe, "--reflection_reply", "long", "--dry_run"])
    # it is asked in compact form, and cannot answer, since each byte is a token here
    with pytest.raises(SystemExit, match="writes 'Labels: Think' as"):
        grpo.main([*recipe, "--dry_run"])


def test_only_rows_of_one_form_say_one(tmp_path):
    forms = [reflection_example("1+1?", ["It is 2."], [True], form) for form in ("long", "compact")]
    other = {"prompt": "<U>1<A>", "completion": "one"}
    rows = {"long": forms[:1] * 4, "mixed": forms * 2, "other": [*forms[:1] * 3, other]}
    said = {name: sft_trainer(tmp_path / name, each) / FILE for name, each in rows.items()}
    assert json.loads(said.pop("long").read_text()) == {"reflection_reply": "long"}
    assert not any(file.exists() for file in said.values())


def test_a_checkpoint_has_the_form_of_its_training(tmp_path):
    write_form(tmp_path, "compact")
    for name, says in (("checkpoint-5", True), ("other", False)):
        source, copy = tmp_path / name, tmp_path / f"copy of {name}"
        source.mkdir()
        copy.mkdir()
        copy_form(source, copy)
        assert (copy / FILE).is_file() is says
