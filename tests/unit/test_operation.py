"""Around a run: paths and texts as users write them, rows that belong together, tables that say
what differs. Each kind is tried by the functions behind the commands.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from generation import calibrate, clean_dataset, forced_budgets, math_verify_all, parallel
from generation.arguments import GenerateArguments
from generation.evaluation import benchmarks, plots, strategies, table
from generation.generate import generate
from generation.provenance import distinct_names
from generation.rendering import PromptFormat
from generation.scoring import Interval, ScoredProblem, ScoredResponse, figures, intervals
from rea_core.checks import check_output, check_output_folder, user_path
from rea_core.command import Needed, add_flags
from rea_core.problems import load_problems
from rea_core.recipe import RecipeParser
from rea_core.row_files import write_json
from rea_core.rows import read_rows
from rea_rl import vllm_server
from rea_rl.run.checkpoints import last_checkpoint

ROOT = Path(__file__).parents[2]
LRM = str(ROOT / "model/Miniature-LRM")


def response(answer: str) -> dict:
    text = f"So {answer}.\n\n</think>\\boxed{{{answer}}}"
    return {"text": text, "num_tokens": 9, "finish_reason": "stop"}


def generated(file: Path, problems: list[str], answers: list[str]) -> Path:
    rows = [
        {"id": str(i), "problem": problem, "answer": "7", "responses": [response(answer)]}
        for i, (problem, answer) in enumerate(zip(problems, answers, strict=True))
    ]
    write_json(file, rows)
    return file


def scored(file: Path, *flags: str) -> Path:
    log = ["--results", str(file.with_suffix(".log")), "--num_workers", "1"]
    math_verify_all.main([str(file), "--model_dir", LRM, *log, *flags])
    return file.with_suffix(".scores.json")


# --- Paths ----------------------------------------------------------------------------------------


def test_paths_are_expanded_wherever_they_are_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("SCRATCH", "/s")
    cases = {"~/gen": "/h/gen", "$SCRATCH/r 1": "/s/r 1", "${SCRATCH}/é": "/s/é", "a$b/~": "a$b/~"}
    for given, meant in cases.items():
        assert user_path(given) == Path(meant)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("qaf: $SCRATCH/p.json\nmodel_dir: ~/m\noutput_dir: $SCRATCH/out\n")
    template = "$\\boxed{{}}$ {problem}"
    flags = ["--config", str(recipe), "--prompt_template", template]
    (args,) = RecipeParser(GenerateArguments).parse_args_and_config(flags)
    found = (args.qaf, args.model_dir, args.output_dir, args.prompt_template)
    assert found == ("/s/p.json", "/h/m", "/s/out", template)
    recipe.write_text("qaf: $NOT_SET/p.json\nmodel_dir: m\n")
    with pytest.raises(ValueError, match=r"qaf is '\$NOT_SET/p.json': .*not set; write the path"):
        RecipeParser(GenerateArguments).parse_args_and_config(["--config", str(recipe)])
    with pytest.raises(SystemExit):
        plots.main(["--scores", "a", "--save_to", "~nobody-here/x.png"])


def test_flags_have_types_of_their_defaults_and_paths_are_expanded(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/h")
    parser = argparse.ArgumentParser()
    words = "of no matter"
    flags = {"out": (Needed(Path), words), "log": (Path("logs"), words), "old": (Path, words)}
    add_flags(parser, **flags, steps=(3, words), limit=(int, words), fast=(False, words))
    given = "--out ~/a --log ~/b --old ~/c --steps 4 --limit 5 --fast".split()
    paths = {"out": Path("/h/a"), "log": Path("/h/b"), "old": Path("/h/c")}
    assert vars(parser.parse_args(given)) == {**paths, "steps": 4, "limit": 5, "fast": True}
    defaults = {"log": Path("logs"), "old": None, "steps": 3, "limit": None, "fast": False}
    assert vars(parser.parse_args(["--out", "a"])) == {"out": Path("a"), **defaults}
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "required: --out" in capsys.readouterr().err


@pytest.mark.parametrize("home", ["~", "$HOME", "${HOME}"])
def test_names_that_may_be_hub_ids_are_expanded_too(tmp_path, monkeypatch, home):
    """A model, a data set and a recipe, under a home with blanks and other letters."""
    at_home = tmp_path / "my höme 数"
    at_home.mkdir()
    monkeypatch.setenv("HOME", str(at_home))
    (at_home / "m").symlink_to(LRM)
    paths = generated(at_home / "p.json", ["3+4?", "1+1?"], ["7", "2"])
    (at_home / "r.yaml").write_text("qaf: x\nmodel_dir: y\nsplit: math_cot\n")
    model = f"--model_dir {home}/m"
    math_verify_all.main(f"{home}/p.json {model} --results {home}/log --num_workers 1".split())
    forced_budgets.main(f"{home}/p.json {model} --budgets 3 --out {home}/b.json".split())
    verdicts = f"--verdicts {home}/p.scores.json"
    clean_dataset.main(f"--dataset {home}/p.json {verdicts} --out {home}/c/c.json".split())
    benchmarks.main(f"collect {home} --out {home}/x --extra mine={home}/p.json".split())
    made = ("log", "p.scores.json", "b.json", "c/c.json", "x/x1.json")
    assert all((at_home / name).exists() for name in made)
    (settings,) = RecipeParser(GenerateArguments).parse_args_and_config(
        ["--config", f"{home}/r.yaml"]
    )
    assert settings.qaf == "x"
    config, _ = vllm_server.parse_args(["--role", "policy", "--model", f"{home}/m", "--port", "1"])
    assert config.model == str(at_home / "m")
    flags = f"--dataset {home}/p.json {verdicts} --out".split()
    with pytest.raises(SystemExit, match="out is .*p.json, which this command also reads"):
        clean_dataset.main([*flags, str(paths)])
    assert len(json.loads(paths.read_text())) == 2


def test_a_link_to_itself_is_no_file(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dead").symlink_to("gone")
    for name in ("loop", "dead"):
        with pytest.raises(ValueError, match=f"{name}' is no file of rows; name a file"):
            read_rows(str(tmp_path / name))
        check_output(tmp_path / "o.json", "out", [tmp_path / name])


@pytest.mark.parametrize("closed, status", [(">&-", 0), (">/dev/full", 1)])
def test_a_closed_stream_costs_no_result(tmp_path, closed, status):
    file = generated(tmp_path / "a b.json", ["3+4?"], ["7"])
    line = f'"{sys.executable}" -m generation.math_verify_all "{file}" --model_dir {LRM}'
    done = subprocess.run(
        ["bash", "-c", f'{line} --results "{tmp_path}/log" --num_workers 1 {closed}'],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "LC_ALL": "C"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "a b.scores.json").exists()
    if status:
        assert done.stderr.splitlines()[-1] == "error: [Errno 28] No space left on device"


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    """Nothing of the file is left."""
    file = generated(tmp_path / "p.json", ["3+4? " + "x" * 30000], ["7"])
    line = (
        f"-m generation.forced_budgets {file} --model_dir {LRM} --budgets 3 --out {tmp_path}/o.json"
    )
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f 8; exec "{sys.executable}" {line}'],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = f"error: {tmp_path}/o.json: File too large; correct the name, or give another place"
    assert done.stderr.splitlines()[-1] == said
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "output").symlink_to(tmp_path / "gone")
    for check in (check_output, check_output_folder):
        for place in ("output", "output/a/b"):
            with pytest.raises(ValueError, match=r"out: .*/output is a link to .*/gone, which"):
                check(tmp_path / place, "out")
    (tmp_path / "gone").mkdir()
    check_output_folder(tmp_path / "output", "out")


@pytest.mark.parametrize("name", ["checkpoint-8-old", "checkpoint-8.bak", "checkpoint-", "x"])
def test_a_copy_of_a_checkpoint_is_none(tmp_path, name):
    for folder in ("checkpoint-4", name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "trainer_state.json").write_text('{"global_step": 4}')
    assert (last_checkpoint(tmp_path) or "checkpoint-4").endswith("checkpoint-4")


def test_line_ends_of_scripts_and_sums_are_pinned():
    assert "\n* text=auto eol=lf\n" in (ROOT / ".gitattributes").read_text()


def test_programs_of_a_moved_environment_are_not_taken(tmp_path):
    """Setup asks pip, whose first line names an interpreter that is gone."""
    script = (ROOT / "scripts/setup.sh").read_text()
    (line,) = [line for line in script.splitlines() if "-m venv --clear" in line]
    pip = tmp_path / "v/bin/pip"
    pip.parent.mkdir(parents=True)
    for interpreter, made in ((tmp_path / "gone/python", True), (sys.executable, False)):
        pip.write_text(f"#!{interpreter}\n")
        pip.chmod(0o755)
        run = f"stage() {{ echo made; }}; VENV={tmp_path}/v python=x\n{line}"
        said = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=True)
        assert (said.stdout == "made\n") is made


# --- Texts ----------------------------------------------------------------------------------------

ONE_BACKSLASH = ["\frac{1}{2}", "3\times 4", "\boxed", "a\rb", "x\x00", "1\x7f", "\x85"]


@pytest.mark.parametrize("gold", [*ONE_BACKSLASH, "7\t"])
def test_a_gold_with_a_control_character_is_refused(tmp_path, gold):
    write_json(
        tmp_path / "p.json", [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": gold}]
    )
    with pytest.raises(
        ValueError, match=r"p.json: row 1: the 'answer' .* control character .*twice"
    ):
        load_problems(str(tmp_path / "p.json"))


@pytest.mark.parametrize("key", ["prompt_template", "system_prompt", "prefill"])
@pytest.mark.parametrize("text", ONE_BACKSLASH)
def test_a_template_with_a_control_character_is_refused(key, text):
    value = text.replace("{", "{{").replace("}", "}}") + "{problem}"
    with pytest.raises(ValueError, match=f"{key} has the control character"):
        PromptFormat(**{key: value if key == "prompt_template" else text})
    PromptFormat(**{key: "Two\nlines \\frac é {problem}"})


def test_control_characters_of_problems_are_counted(tmp_path, caplog):
    texts = ["plain", "tab\tand\r\nline ends", "\frac{1}{2}", "a\x08"]
    write_json(tmp_path / "p.json", [{"problem": text, "answer": "1"} for text in texts])
    rows = load_problems(str(tmp_path / "p.json"))
    assert [row["problem"] for row in rows] == texts
    assert "2 problems have control characters" in caplog.text and "row 2 '\\x0c'" in caplog.text


# --- Tables ---------------------------------------------------------------------------------------


def test_files_of_one_name_have_two_rows(tmp_path, capsys):
    files = [tmp_path / model / "test.json" for model in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        generated(file, ["1+6?"], ["7"])
    log = ["--results", str(tmp_path / "log"), "--num_workers", "1"]
    math_verify_all.main([*map(str, files), "--model_dir", LRM, *log])
    table = capsys.readouterr().out
    assert "one/test" in table and "two/test" in table
    with pytest.raises(SystemExit, match="a file is given twice"):
        math_verify_all.main(
            [str(files[0]), f"{tmp_path}/one/../one/test.json", "--model_dir", LRM]
        )
    scores = [str(file.with_suffix(".scores.json")) for file in files]
    with pytest.raises(SystemExit, match="give each a name of its own"):
        plots.main(["--scores", *scores, "--names", "a", "a", "--save_to", str(tmp_path / "x.png")])


def test_names_are_as_long_as_they_must_be():
    paths = [Path(p) for p in ("/a/x/t.json", "/b/x/t.json", "/b/y/u.scores.json")]
    assert list(distinct_names(paths).values()) == ["a/x/t.json", "b/x/t.json", "b/y/u.scores.json"]
    assert distinct_names(paths[:1]) == {paths[0]: "t"}
    assert distinct_names([Path("/m/base.json")], taken=["base"]) == {
        Path("/m/base.json"): "m/base.json"
    }


@pytest.mark.parametrize(
    ("correct", "written"), [(True, "100.0 [72.2, 100.0]"), (False, "0.0 [0.0, 27.8]")]
)
def test_all_right_and_all_wrong_have_an_interval(correct, written):
    """Wilson's interval for 10 of 10 and 0 of 10."""
    problems = [
        ScoredProblem(str(i), None, [ScoredResponse(correct, 5, 3, 1, False)]) for i in range(10)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = figures(problems)
    assert found["accuracy"].format(100) == written
    assert found["tokens"].format() == "5.0 ± 0.0"
    assert Interval(0.5, 0.4, 0.6).format(100) == "50.0 ± 10.0"


def test_every_table_has_an_interval_at_100_percent():
    right = {"num_tokens": 5, "correct": True, "truncated": False, "answered": True}
    problems = [{"id": str(i), "mean_tokens": 5.0, "responses": [right]} for i in range(10)]
    assert table.average({"s": problems}, "correct").format(100) == "100.0 [72.2, 100.0]"
    assert table.average({"s": problems}, "num_tokens").format() == "5.0 ± 0.0"
    found = strategies.detector_figures(
        [strategies.DetectedPath(str(i), {1}, {1}) for i in range(10)]
    )
    assert found["recall"].format(100) == "100.0 [72.2, 100.0]"
    assert found["missed"].format(100) == "0.0 [0.0, 27.8]"
    assert found["position_error"].format() == "0.0 ± 0.0"
    whole = calibrate.CutResponse(True, 5)
    held = [calibrate.HeldOut(str(i), [5], [0.1], set(), {0: whole}) for i in range(10)]
    assert calibrate.outcome(held, [0] * 10).accuracy.format(100) == "100.0 [72.2, 100.0]"
    ones = np.ones(20)
    found = intervals({"mistakes": ones, "tr": ones}, 10)
    assert {key: one.format() for key, one in found.items()} == {
        "mistakes": "1.0 [0.7, 1.0]",
        "tr": "1.0 ± 0.0",
    }


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_tables_are_written_to_any_terminal(tmp_path, monkeypatch, encoding):
    buffer = io.BytesIO()
    file = generated(tmp_path / "é.json", ["1+6?", "2+5?"], ["7", "0"])
    with monkeypatch.context() as patched:
        patched.setenv("COLUMNS", "20")
        patched.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding))
        scored(file)
        sys.stdout.flush()
        written = buffer.getvalue().decode(encoding)
    assert "accuracy %" in written and "50.0 " + ("+-" if encoding == "ascii" else "±") in written


def test_one_problem_warns_of_nothing():
    problems = [ScoredProblem("a", None, [ScoredResponse(True, 5, 3, 0, False)])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figures(problems)["tokens_wrong"].format() == "-"


# --- A bad row ------------------------------------------------------------------------------------


def test_a_prompt_over_the_model_s_own_context_is_unanswered(tmp_path, monkeypatch, caplog):
    asked = []

    def run_engines(tasks, args):
        for task in tasks:
            asked.append(task.index)
            yield task.index, [{"text": "7", "num_tokens": 1, "finish_reason": "stop"}]

    monkeypatch.setattr("generation.vllm_worker.run_engines", run_engines)
    texts = ["1+6?", "1+6? " * 9000, "2+5?"]
    write_json(tmp_path / "p.json", [{"problem": text, "answer": "7"} for text in texts])
    args = GenerateArguments(
        qaf=str(tmp_path / "p.json"), model_dir=LRM, output_dir=str(tmp_path / "out")
    )
    rows = json.loads(generate(args).read_text())
    assert [row["responses"][0]["finish_reason"] for row in rows] == ["stop", "no_room", "stop"]
    assert asked == [0, 2] and "1 prompts leave no room" in caplog.text


# --- The machine ----------------------------------------------------------------------------------


def test_a_long_folder_of_temporary_files_is_named(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/" + "t" * 129)
    flags = ["--role", "policy", "--model", LRM, "--port", "23985", "--dry_run"]
    with pytest.raises(SystemExit, match=r"error: TMPDIR is /t+, of 130 bytes, .*at most 70; set"):
        vllm_server.main(flags)


def test_shared_memory_that_cannot_be_written_is_named(monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", refuse)
    with pytest.raises(ValueError, match="num_workers is 2, .*/dev/shm .Permission denied.; make"):
        list(parallel.ordered_map(len, [[1]], dict, 2))


@pytest.mark.parametrize(
    ("recorded", "given", "found"),
    [
        ("deepseek-ai/DeepSeek-R1", "", "deepseek-ai/DeepSeek-R1"),
        ("/gone/base", "", "which is missing; set BASE_MODEL"),
        ("model/gone", "", "which is missing; set BASE_MODEL"),
        ("/gone/base", LRM, LRM),
        ("/gone/base", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
    ],
)
def test_the_base_of_an_adapter_may_be_elsewhere(tmp_path, recorded, given, found):
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": recorded})
    script = (ROOT / "scripts/math_eval.sh").read_text()
    begin = script.index("find_model() {")
    body = script[begin : script.index("\n}\n", begin) + 3]
    run = f'die() {{ echo "$1"; exit; }}\n{body}\nfind_model {tmp_path} 0; echo "$MODEL"'
    environment = {**os.environ, "BASE_MODEL": given}
    said = subprocess.run(
        ["bash", "-c", run], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found in said.stdout
