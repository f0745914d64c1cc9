"""Random edits of valid rows, recipes and command lines: a program ends with 0 and the right
result, or with one line that says what is wrong; never with a traceback.

    RANDOM_EDITS=1000 python -m pytest tests/unit/test_random_edits.py    # many more of each
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from recipe_files import write_recipe
from stage_files import make_stages
from tiny import save_model
from viewer_run import write_run

from generation import (
    calibrate,
    clean_dataset,
    forced_budgets,
    labeling_distill_utils,
    labeling_to_prefix,
)
from generation.evaluation import benchmarks, plots, table
from miniature import judge
from rea_core import ownership
from rea_core.golds import gold_texts
from rea_core.problems import problem_digest
from rea_core.row_files import write_json
from rea_core.rows import read_rows
from rea_rl import grpo, viewer

ROOT = Path(__file__).parents[2]
LRM = str(ROOT / "model/Miniature-LRM")
NUMBER = int(os.environ.get("RANDOM_EDITS", "10"))
# the same edits each time
SEEDED = settings(
    max_examples=NUMBER, derandomize=True, database=None, print_blob=False,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
ODD = [
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e300, float("nan"), float("inf"), 10**30,
    "", " ", "x", "7", "é\u2028好", "\x00", "\frac{1}{2}", "~/x", "~nobody-here/x", "$NO_SUCH/x",
    "a" * 200, "no", "null", "[1]", "{problem}", "{", "\\boxed{7}", "#### 7", "../x", "/", ".",
    [], [1], ["7"], [[]], [None], {}, {"a": 1}, {"text": "x"}, "\ud800",
]  # fmt: skip
odd = st.sampled_from(range(len(ODD))).map(lambda i: copy.deepcopy(ODD[i]))
place = st.integers(0, 1 << 20)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """An edited name may be a Hub id, and asking for it takes half a minute without a network."""
    for place in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{place}.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with valid inputs of all programs."""
    folder = tmp_path_factory.mktemp("valid")
    make_stages(folder)
    write_run(folder / "run", pairs_a_step=1)
    (folder / "model").mkdir()
    save_model(folder / "model/tiny")
    write_recipe(folder, Path("model/tiny"))
    problems = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(6)]
    write_json(folder / "problems.json", problems)
    scored = [
        {
            "id": str(i), "problem_digest": problem_digest(row["problem"]), "mean_tokens": 5.0,
            "benchmark": "s", "level": None,
            "responses": [{"correct": i % 2 == 0, "num_tokens": 5, "truncated": False,
                           "answered": True, "no_room": False}],
        }
        for i, row in enumerate(problems)
    ]  # fmt: skip
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    scores = {
        "groups": {"all": {"accuracy": share, "tokens": share}}, "mode": "strict",
        "num_responses": 6, "num_problems": 6, "problems": scored,
    }  # fmt: skip
    write_json(folder / "s.scores.json", scores)
    write_json(folder / "models/m/s.scores.json", scores)
    write_json(folder / "bench/math500_test.json", problems)
    return folder


@contextlib.contextmanager
def workplace(template: Path) -> Iterator[Path]:
    """A copy of the folder, in which a program runs."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        shutil.copytree(template, "w", symlinks=True)
        with contextlib.chdir("w"):
            yield Path.cwd()
            ownership.release_all()


def ends(main: Callable[[list[str]], None], argv: list[str]) -> str | None:
    """Error of a program; None if it did its work."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(argv)
        except SystemExit as end:
            if end.code in (None, 0):
                return None
            # argparse says it below the usage, and ends with 2
            error = end.code if isinstance(end.code, str) else said.getvalue().splitlines()[-1]
            assert error.startswith("error: ") or end.code == 2, error
            assert "\n" not in error and len(error) < 1000, error
            assert "Traceback" not in said.getvalue()
            return error
    return None


# --- Rows -----------------------------------------------------------------------------------------


def edited(value: Any, where: int, new: Any) -> Any:
    """A copy of JSON in which one value, by its number, is another one; the odd ones are left out
    with their key."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def visit(part: Any) -> None:
        keys = (
            part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        )
        for key in keys:
            places.append((part, key))
            visit(part[key])

    visit(value)
    part, key = places[where // 2 % len(places)]
    if where % 2:
        part[key] = new
    else:
        del part[key]
    return value


ROW_PROGRAMS = {
    "paths.json": (forced_budgets, f"paths.json --model_dir {LRM} --budgets 3 --out out.json"),
    "chunks.json": (
        labeling_distill_utils,
        f"chunks.json --clean --confirmations confirmed.json --paths paths.json --out out.json "
        f"--paragraph_tokenizer {LRM} --paragraph_min_tokens 1 --paragraph_max_tokens 9",
    ),
    "labels.json": (
        labeling_to_prefix,
        f"paths.json --labels labels.json --out out.json --paragraph_tokenizer {LRM} "
        "--paragraph_min_tokens 1 --paragraph_max_tokens 9",
    ),
    "cuts.json": (
        calibrate,
        f"rows paths.json --labels labels.json --judge_cuts cuts.json --out out.json "
        f"--paragraph_tokenizer {LRM} --paragraph_min_tokens 1 --paragraph_max_tokens 9",
    ),
    "s.scores.json": (
        clean_dataset, "--dataset problems.json --verdicts s.scores.json --out out.json",
    ),
    "models/m/s.scores.json": (table, "models --save_to out.png --base m"),
}  # fmt: skip


@SEEDED
@given(
    st.sampled_from(sorted(ROW_PROGRAMS)), st.lists(st.tuples(place, odd), min_size=1, max_size=3)
)
def test_edited_rows_are_read_or_refused(template, file, edits):
    module, line = ROW_PROGRAMS[file]
    with workplace(template) as folder:
        content = json.loads((folder / file).read_text())
        for where, new in edits:
            content = edited(content, where, new) if content else content
        (folder / file).write_text(json.dumps(content))
        error = ends(module.main, line.split())
        assert (folder / ("out.png" if module is table else "out.json")).exists() is (error is None)


@SEEDED
@given(
    st.permutations(range(6)),
    st.lists(st.tuples(place, odd), max_size=2),
    st.sampled_from(["list", "lines", "gzip", "CSV"]),
)
def test_problems_in_any_order_and_format_are_filtered_by_their_own_verdicts(
    template, order, edits, form
):
    """What is kept is what the verdicts say of these very problems."""
    with workplace(template) as folder:
        rows = json.loads((folder / "problems.json").read_text())
        known = {row["problem"]: i % 2 == 0 for i, row in enumerate(rows)}
        rows = [rows[i] for i in order]
        for where, new in edits:
            rows = edited(rows, where, new) if rows else rows
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        if form == "CSV" and rows and all(isinstance(row, dict) for row in rows):
            cells = ['"' + str(row.get(key, "")).replace('"', '""') + '"' for row in rows
                     for key in ("problem", "answer")]  # fmt: skip
            pairs = zip(cells[::2], cells[1::2], strict=True)
            text = "problem,answer\n" + "\n".join(",".join(pair) for pair in pairs) + "\n"
            content = text.encode("utf-8", "surrogatepass")
        else:
            content = (lines if form == "lines" else json.dumps(rows)).encode()
        (folder / "d").write_bytes(gzip.compress(content) if form == "gzip" else content)
        flags = ["--dataset", str(folder / "d"), "--verdicts", "s.scores.json", "--out", "out.json"]
        if ends(clean_dataset.main, flags) is None:
            kept = json.loads((folder / "out.json").read_text())
            given = read_rows(str(folder / "d"))
            blank = {" ".join(text.split()): solved for text, solved in known.items()}
            texts = [row.get("problem", row.get("question")) for row in given]
            assert all(" ".join(text.split()) in blank for text in texts)
            assert [row["problem"] for row in kept] == [
                text for text in texts if blank[" ".join(text.split())]
            ]


@SEEDED
@given(odd, st.sampled_from(["answer", "final_answer", "solution"]))
def test_a_gold_is_what_the_row_says_or_refused(template, value, column):
    with workplace(template) as folder:
        row = {"problem": "3+4?", column: value}
        (folder / "p.json").write_text(json.dumps([row]))
        flags = ["collect", "bench", "--out", "out", "--extra", "mine=p.json"]
        if ends(benchmarks.main, flags) is None:
            (found,) = [
                r for r in json.loads((folder / "out/x1.json").read_text())
                if r["benchmark"] == "mine"
            ]  # fmt: skip
            golds = [gold.strip() for gold in gold_texts(value)]
            assert found["answer"] == (golds[0] if len(golds) == 1 else golds)
            assert "7" in str(value) or not isinstance(value, str) or golds == [value.strip()]


# --- Recipes --------------------------------------------------------------------------------------


def same(given: Any, taken: Any) -> bool:
    """Whether an argument has the value of the recipe, as its type writes it."""
    taken = getattr(taken, "value", taken)
    if isinstance(taken, list) and not isinstance(given, list):
        taken = taken[0] if len(taken) == 1 else taken
    if isinstance(taken, bool) and not isinstance(given, bool):
        return str(given).lower() in {True: ("1", "yes"), False: ("0", "-0.0", "no")}[taken]
    if isinstance(given, list) and isinstance(taken, list):
        return len(given) == len(taken) and all(map(same, given, taken))
    with contextlib.suppress(TypeError, ValueError):
        if math.isclose(float(given), float(taken)):
            return True
    if isinstance(given, str) and given.startswith(("~", "$")):
        return str(taken) == os.path.expanduser(given)
    return str(given).lower() == str(taken).lower()


@pytest.fixture(scope="module")
def keys(template: Path) -> list[str]:
    recipe = yaml.safe_load((template / "recipe.yaml").read_text())
    return [*recipe, "max_steps", "seed", "learning_rate", "beta", "temperature", "top_p",
            "revision", "reward_funcs", "reward_weights", "cut_threshold", "cut_file",
            "prompt_template", "system_prompt", "prefill", "chat_template_kwargs",
            "problem_column", "answer_column", "dataset_config", "policy_server",
            "reflection_server", "finish_max_tokens", "paragraph_min_tokens", "run_name",
            "eval_dataset_name", "max_eval_problems", "save_steps", "logging_steps",
            "construction", "packing", "lora_target_modules", "num_train_epochs", "warmup_steps",
            "lr_scheduler_type", "gradient_checkpointing", "max_grad_norm", "verifier",
            "answer_markers", "stage_batch_size", "prompts_per_step", "torch_threads"]  # fmt: skip


@SEEDED
@given(st.lists(st.tuples(place, odd), min_size=1, max_size=2), st.booleans())
def test_edited_recipes_are_followed_or_refused(template, keys, edits, as_flag):
    with workplace(template) as folder:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        flags, wanted = [], {}
        for where, value in edits:
            key = keys[where % len(keys)]
            wanted[key] = value
            if as_flag and isinstance(value, (str, int, float)):
                flags += [f"--{key}", str(value)]
            else:
                recipe[key] = value
        try:
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True))
        except UnicodeEncodeError:
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        argv = ["--config", "recipe.yaml", *flags]
        with contextlib.suppress(UnicodeEncodeError):
            if ends(grpo.main, [*argv, "--dry_run"]) is None:
                parts = grpo.parse_recipe(argv)
                for key, value in wanted.items():
                    part = next(part for part in parts if hasattr(part, key))
                    if key not in ("report_to", "bf16"):
                        assert same(value, getattr(part, key)), (key, value, getattr(part, key))


# --- Command lines --------------------------------------------------------------------------------

COMMANDS = {
    "clean": (clean_dataset, "--dataset problems.json --verdicts s.scores.json --out o/c.json"),
    "cut": (
        labeling_to_prefix,
        f"paths.json --labels labels.json --out o.json --paragraph_tokenizer {LRM} "
        "--paragraph_min_tokens 1 --paragraph_max_tokens 9 --seed 1 --num_workers 1",
    ),
    "calibrate": (
        calibrate,
        f"rows paths.json --labels labels.json --judge_cuts cuts.json --out o.json "
        f"--paragraph_tokenizer {LRM} --paragraph_min_tokens 1 --paragraph_max_tokens 9",
    ),
    "labels": (labeling_distill_utils, "chunks.json --candidates o.json"),
    "budgets": (forced_budgets, f"paths.json --out o.json --budgets 3 9 --model_dir {LRM}"),
    "collect": (benchmarks, "collect bench --out o --extra x=problems.json --limit 2"),
    "table": (table, "models --base m --save_to t.png"),
    "plots": (plots, "--scores s.scores.json --names a --save_to p.png"),
    "viewer": (viewer, "run --out page.html"),
    "judge": (
        judge,
        "--qaf paths.json --split labeling_distill --model_dir o --output_dir out "
        f"--paragraph_tokenizer {LRM} --seed 3",
    ),
}  # fmt: skip
token = st.sampled_from(
    ["", " ", "x", "-1", "0", "1.5", "--", "-", "--x", "--out", "--out=", "--seed", "nan", "é",
     "paths.json", ".", "/", "/dev/null", "none.json", "problems.json", "model", "~nobody/x",
     "$NO_SUCH", "a=b", "--help", "-h", "1e9", "99999999999999999999", "\x00", "o/c.json",
     "x" * 300]
)  # fmt: skip


@SEEDED
@given(
    st.sampled_from(sorted(COMMANDS)),
    st.lists(
        st.tuples(st.sampled_from(["drop", "twice", "replace", "insert", "swap"]), place, token),
        min_size=1, max_size=2,
    ),
)  # fmt: skip
def test_edited_command_lines_are_followed_or_refused(template, name, edits):
    module, line = COMMANDS[name]
    argv = line.split()
    for kind, where, new in edits:
        i = where % len(argv) if argv else 0
        if kind == "insert" or not argv:
            argv.insert(i, new)
        elif kind == "replace":
            argv[i] = new
        elif kind == "twice":
            argv.insert(i, argv[i])
        elif kind == "swap":
            argv[i], argv[i - 1] = argv[i - 1], argv[i]
        else:
            del argv[i]
    with workplace(template) as folder:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        error = ends(module.main, argv)
        changed = [path for path, data in before.items()
                   if not path.is_file() or path.read_bytes() != data]  # fmt: skip
        assert not changed, (error, changed)


# --- Outputs --------------------------------------------------------------------------------------

OTHERS = {
    "notes": b"my notes\n",
    "list": b'[{"problem": "1+1?", "answer": "2"}]',
    "indented": b'[\n  {"id": "1", "messages": []}\n]\n',
    "columns": b'[\n{"mine": 1}\n]\n',
    "lines": b'{"mine": 1}\n{"mine": 2}\n',
    "object": b'{\n "mine": 1,\n "yours": 2\n}\n',
    "binary": b"\x89PNG\r\n\x1a\n\x00\xff",
}
OUTPUTS = {"o.json": "cut calibrate labels budgets".split(), "o/c.json": ["clean"],
           "o/README.md": ["clean"], "o/x1.json": ["collect"], "o/x3.json": ["collect"],
           "t.png": ["table"], "p.png": ["plots"], "page.html": ["viewer"]}  # fmt: skip


@pytest.mark.parametrize("output, name", [(o, n) for o, names in OUTPUTS.items() for n in names])
def test_a_file_is_replaced_only_if_it_is_an_earlier_output(template, output, name):
    module, line = COMMANDS[name]
    with workplace(template) as folder:
        path = folder / output
        path.parent.mkdir(exist_ok=True)
        for content in OTHERS.values():
            path.write_bytes(content)
            error = ends(module.main, line.split())
            assert error and f"{output} is there, and is no earlier output of this command" in error
            assert path.read_bytes() == content
            path.unlink()
        path.touch()  # nothing is lost with an empty file
        for _ in range(2):
            assert ends(module.main, line.split()) is None


def test_rows_of_an_earlier_version_are_replaced(template):
    module, line = COMMANDS["cut"]
    with workplace(template) as folder:
        assert ends(module.main, line.split()) is None
        made = (folder / "o.json").read_bytes()
        rows = [dict(list(row.items())[:-1]) for row in json.loads(made)]
        for earlier in (rows, []):
            write_json(folder / "o.json", earlier)
            assert ends(module.main, line.split()) is None
            assert (folder / "o.json").read_bytes() == made


@pytest.mark.parametrize("name", ["clean", "cut", "table"])
def test_a_device_is_no_output(template, name, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    module, line = COMMANDS[name]
    with workplace(template):
        words = [str(tmp_path / "pipe") if w in OUTPUTS else w for w in line.split()]
        assert "which is a device or pipe; name a file" in ends(module.main, words)
