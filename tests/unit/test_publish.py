"""Weights and responses on a Hub that is a program of this file: which files, and the card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_runs
import yaml
from tiny import save_model

from generation import math_verify_all
from rea_rl import publish
from rea_rl.run import training

SETUP = Path(__file__).parents[2] / "setup.py"


class Hub:
    """Stands for `huggingface_hub.HfApi`; keeps the last commit to each repository."""

    def __init__(self, fails=None):
        self.repos, self.fails = {}, fails

    def __call__(self, token=None, **_):
        self.token = token
        return self

    def whoami(self, *_, **__):
        return {"name": "me"}

    def create_repo(self, repo, repo_type=None, private=None, exist_ok=False, **_):
        repo = repo if "/" in repo else f"me/{repo}"
        self.repos[repo] = {"kind": repo_type, "private": private, "files": {}}
        return SimpleNamespace(repo_id=repo, __str__=lambda: repo)

    def create_branch(self, repo, branch, **_):
        self.repos[repo]["branch"] = branch

    def create_commit(self, repo, operations, commit_message, repo_type, revision):
        if self.fails:
            raise self.fails
        for operation in operations:
            with operation.as_file() as file:
                self.repos[repo]["files"][operation.path_in_repo] = file.read()


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    monkeypatch.setattr("transformers.trainer.hf_api", hub, raising=False)
    return hub


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    return small_runs.make_workplace(tmp_path_factory.mktemp("workplace"))


def card_of(hub: Hub, repo: str) -> tuple[dict, str]:
    text = hub.repos[repo]["files"]["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def scores_of(folder: Path) -> str:
    row = {"id": "p", "problem": "1+1?", "answer": "2", "responses": [
        {"text": "Hm.</think>\\boxed{2}", "num_tokens": 9, "finish_reason": "stop"}
    ]}  # fmt: skip
    (folder / "a.json").write_text(json.dumps([row]))
    model = str(save_model(folder / "scorer"))
    log = str(folder / "log.json")
    math_verify_all.main([str(folder / "a.json"), "--model_dir", model, "--results", log])
    return str(folder / "a.scores.json")


def test_a_run_with_push_to_hub_is_published_when_it_ends(workplace, tmp_path, hub):
    out = tmp_path / "out"
    small_runs.run(
        "sft", workplace, output_dir=out, max_steps=2, push_to_hub="true",
        hub_model_id="me/mine", hub_private_repo="true", hub_token="secret-token",
    )  # fmt: skip
    repo = hub.repos["me/mine"]
    assert (repo["kind"], repo["private"]) == ("model", True)
    assert {"adapter_model.safetensors", "adapter_config.json", "run_record.json", "tokenizer.json",
            "train_results.json"} <= repo["files"].keys()  # fmt: skip
    kept = [name for name in repo["files"] if "/" in name or name.endswith((".bin", ".pt"))]
    assert kept == [] and not any(b"secret-token" in content for content in repo["files"].values())
    head, body = card_of(hub, "me/mine")
    assert head["library_name"] == "peft" and "rea-rl" in head["tags"] and "base_model" not in head
    assert all(words in body for words in ("# mine", "lora_r: 4", "max_steps: 2", "@inproceedings"))
    commit = json.loads((out / "run_record.json").read_text())["code"]["commit"]
    assert f"commit {commit}" in body and body.strip() in (out / "README.md").read_text()


def test_a_hub_that_fails_at_the_end_leaves_a_complete_run(workplace, tmp_path, hub):
    hub.fails = OSError("the line is cut")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        small_runs.run("sft", workplace, output_dir=out, max_steps=1, push_to_hub="true")
    said = str(stop.value).strip()
    assert "the line is cut" in said and f"python -m rea_rl.publish {out} me/out" in said
    assert "\n" not in said and (out / "train_results.json").is_file()
    hub.fails = None
    publish.main([str(out), "me/out", "--scores", scores_of(tmp_path)])
    _, body = card_of(hub, "me/out")
    assert "accuracy %" in body and "verifier: math" in body


def test_a_merged_model_is_published_without_a_run(tmp_path, hub, capsys):
    folder = save_model(tmp_path / "reflection_model")
    merged = {"base": "Instruct", "adapter": "abc", "chat_template": None}
    (folder / "merged_from.json").write_text(json.dumps(merged))
    (folder / "training_args.bin").write_bytes(b"a pickle")
    publish.main([str(folder), "me/reflection", "--private", "--dry_run"])
    assert "files: " in capsys.readouterr().out and not hub.repos
    publish.main([str(folder), "me/reflection", "--private", "--revision", "v1"])
    repo = hub.repos["me/reflection"]
    assert repo["private"] is True and repo["branch"] == "v1"
    assert "model.safetensors" in repo["files"] and "training_args.bin" not in repo["files"]
    assert "Merged from the base `Instruct`" in card_of(hub, "me/reflection")[1]
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# My own card")
    publish.main([str(folder), "me/reflection"])
    assert card_of(hub, "me/reflection") == ({"license": "mit"}, "# My own card")


def test_responses_are_published_with_settings_and_scores(tmp_path, hub):
    scores_of(tmp_path)
    (tmp_path / "a.settings.json").write_text('{"split": "math_cot", "temperature": 0.6}')
    publish.main([str(tmp_path / "a.json"), "me/data"])
    repo = hub.repos["me/data"]
    assert repo["kind"] == "dataset"
    names = ["README.md", "a.json", "a.scores.json", "a.settings.json", "a.verdicts.jsonl"]
    assert sorted(repo["files"]) == names
    body = card_of(hub, "me/data")[1]
    assert "temperature: 0.6" in body and "accuracy %" in body


def test_no_place_of_the_users_machine_is_published(workplace, tmp_path, hub):
    here = tmp_path / "user_me"
    here.mkdir()
    small_runs.run("sft", workplace, output_dir=here / "out", max_steps=1)
    scores = scores_of(here)
    (row,) = json.loads((here / "a.json").read_text())
    text = f"</think>{here}/a is \\boxed{{2}}"
    row["responses"][0]["text"] = text
    row["answered_by"] = {"model_dir": str(workplace / "model"), "model_digest": "abc"}
    (here / "a.json").write_text(json.dumps([row]))
    settings = {
        "model_dir": str(workplace / "model"),
        "api_base": "http://node7.corp:8000/v1",
        "split": "math_cot",
        "system_prompt": "/no_think",
        "qaf": "../mine/x.json",
    }
    (here / "a.settings.json").write_text(json.dumps(settings))
    publish.main([str(here / "out"), "me/model", "--scores", scores])
    publish.main([str(here / "a.json"), "me/data"])
    for repo in hub.repos.values():
        for name, content in repo["files"].items():
            shown = content.decode(errors="replace").replace(json.dumps(text), "")
            for leak in (str(tmp_path), str(workplace), str(Path.home()) + "/", "node7", "../mine"):
                assert leak not in shown, (name, leak)
    files = hub.repos["me/data"]["files"]
    (published,) = json.loads(files["a.json"])
    assert published["responses"][0]["text"] == text
    assert published["answered_by"] == {"model_dir": "model", "model_digest": "abc"}
    known = json.loads(files["a.settings.json"])
    assert known == {"model_dir": "model", "split": "math_cot", "system_prompt": "/no_think",
                     "qaf": "x.json"}  # fmt: skip
    adapter = json.loads(hub.repos["me/model"]["files"]["adapter_config.json"])
    assert adapter["base_model_name_or_path"] == "model" and adapter["r"] == 4
    assert str(workplace) in (here / "out" / "adapter_config.json").read_text()  # ours stays


def test_what_cannot_be_published_is_one_line(tmp_path, hub):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "b.json").write_text("[1]")
    for paths, words in (
        ([empty], "neither an adapter nor a model"),
        ([tmp_path / "none.json"], "does not exist"),
        ([tmp_path / "b.json"], "b.json"),
        ([empty, tmp_path / "b.json"], "is a folder; give it alone"),
    ):
        with pytest.raises(SystemExit) as stop:
            publish.main([*map(str, paths), "me/x"])
        said = str(stop.value)
        assert said.startswith("error: ") and words in said and "\n" not in said
    assert not hub.repos


@pytest.mark.parametrize("name", training.EXTRAS)
def test_a_reporter_that_is_not_installed_is_named_with_its_extra(name, monkeypatch):
    from transformers.integrations import integration_utils

    def absent() -> None:
        raise RuntimeError(f"it requires {name} to be installed")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, absent)
    with pytest.raises(ValueError, match=rf"report_to is {name}, .* pip install -e '.\[{name}\]'"):
        training.check_reporters([name])
    assert re.search(rf'"{name}": \[', SETUP.read_text())
