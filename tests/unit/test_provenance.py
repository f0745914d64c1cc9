"""What made a file travels with it, and files of different makes are not combined: scores,
tables, labels, data, study."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from fake_api import FakeServer
from hybrid import save_hybrid
from recipe_files import read_recipe, write_recipe
from safetensors.torch import load_file, save_file
from stage_files import build_tasks

from generation import (
    generate,
    labeling_distill_utils,
    labeling_to_prefix,
    math_verify_all,
    sft_data,
)
from generation.arguments import GenerateArguments
from generation.evaluation import benchmarks as eval_data
from generation.evaluation import plots
from generation.evaluation import strategies as strategy_report
from generation.evaluation import table as eval_table
from generation.generation_file import read_generations
from generation.provenance import made_by, weights_digest
from generation.rendering import PromptFormat
from generation.stages import SPLITS
from rea_core.row_files import digest, write_json
from rea_rl.sft import encode_example
from rea_rl.study import run as study

ROOT = Path(__file__).parents[2]
TEXT = "Add them.\n\nIt is 2.\n\nWait, yes.\n</think>\n\n\\boxed{2}"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_hybrid(tmp_path / "model")
    write_json(tmp_path / "p.json", [{"id": "p", "problem": "1+1?", "answer": "2"}])
    return tmp_path


def sample(name: str, *flags: str) -> Path:
    """Paths to the one problem over a server; the name is the end of the file's."""
    server = FakeServer(text=lambda body: TEXT)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    argv = [
        "--qaf",
        "p.json",
        "--model_dir",
        "model",
        "--api",
        "--api_base",
        server.url,
        "--api_model",
        "m",
    ]
    generate.main([*argv, "--output_dir", "out", "--save_suffix", f"_{name}", *flags])
    server.shutdown()
    server.server_close()
    return Path("out/model", f"p_math_cot_{name}.json")


def score(file: Path, *flags: str) -> Path:
    math_verify_all.main([str(file), "--model_dir", "model", *flags])
    return file.with_suffix(".scores.json")


# --- Scores ---------------------------------------------------------------------------------------


def test_scores_say_what_made_them(work):
    flags = (
        "--temperature",
        "0.7",
        "--system_prompt",
        "Be brief.",
        "--chat_template_kwargs",
        '{"enable_thinking": true}',
    )
    file = sample("a", *flags)
    asked = {
        "prompt_template": GenerateArguments(qaf="x", model_dir="m").prompt_template,
        "system_prompt": "Be brief.",
        "chat_template_kwargs": {"enable_thinking": True},
        "prefill": "",
    }
    assert read_generations(file)[0]["prompt_format"] == asked
    made = json.loads(score(file, "--budgets", "20", "30").read_text())["made_by"]
    assert made["prompt_format"] == asked and made["sampling"]["temperature"] == 0.7
    assert made["model"] == {"model_dir": "model", "api_model": "m"}
    scoring = made["scoring"]
    assert (scoring["mode"], scoring["word_bounded"], scoring["budget"]) == ("strict", False, 30)
    file.with_suffix(".settings.json").unlink()  # the rows say it, too
    assert made_by(file, read_generations(file))["prompt_format"] == asked


def test_a_base_of_another_make_is_refused(work):
    base = score(sample("base"))
    for i, (asked, scored, message) in enumerate(
        [
            (("--temperature", "1.0"), (), "temperature (0.6 and 1.0)"),
            (("--max_tokens", "99"), (), "max_tokens (16384 and 99)"),
            (("--prompt_template", "{problem}"), (), "prompt_template ("),
            (("--system_prompt", "Be brief."), (), "system_prompt (None and 'Be brief.')"),
            (
                ("--chat_template_kwargs", '{"enable_thinking": true}'),
                (),
                "chat_template_kwargs ({} and {'enable_thinking'",
            ),
            ((), ("--mode", "original"), "mode ('strict' and 'original')"),
            ((), ("--word_bounded",), "word_bounded (False and True)"),
            ((), ("--budgets", "20"), "budget (None and 20)"),
        ]
    ):
        file = sample(str(i), *asked)
        with pytest.raises(
            SystemExit, match="error: .*base.scores.json and .* were not made in the same way"
        ) as refused:
            score(file, "--base", str(base), *scored)
        assert message in str(refused.value) and "make and score the base's" in str(refused.value)
    score(sample("same"), "--base", str(base))


def test_two_files_of_one_name_are_two_rows(work, capsys):
    for folder in ("A", "B"):
        Path(folder).mkdir()
        sample(folder).rename(f"{folder}/x.json")
    capsys.readouterr()
    math_verify_all.main(["A/x.json", "B/x.json", "--model_dir", "model"])
    assert "A/x.json" in (printed := capsys.readouterr().out) and "B/x.json" in printed


def test_responses_of_other_weights_are_not_continued(work, monkeypatch):
    engines = []

    def run_engines(tasks, args):
        tasks = list(tasks)
        engines.append(len(tasks))
        yield from (
            (task.index, [{"text": TEXT, "num_tokens": 9, "finish_reason": "stop"}])
            for task in tasks
        )

    monkeypatch.setattr("generation.vllm_worker.run_engines", run_engines)
    args = GenerateArguments(qaf="p.json", model_dir="model", output_dir="out")
    generate.generate(args)
    generate.generate(args)
    weights = load_file("model/model.safetensors")
    name = next(iter(weights))
    before = weights_digest("model")
    save_file(
        weights | {name: weights[name] + 1}, "model/model.safetensors", metadata={"format": "pt"}
    )
    assert weights_digest("model") != before
    with pytest.raises(ValueError, match="was made with other settings: model_digest"):
        generate.generate(args)
    assert engines == [1]


# --- Prompts --------------------------------------------------------------------------------------


def test_training_and_sampling_ask_the_same_prompt(work):
    keys = {
        "prompt_template": "Q: {problem}",
        "system_prompt": "Be brief.",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    recipe = json.dumps(keys | {"revision": False})  # JSON is YAML
    *_, inputs = read_recipe(write_recipe(work, work / "model", recipe))
    write_json(work / "problems.json", [{"problem": "0+1?", "answer": "1"}])
    args = GenerateArguments(qaf="problems.json", model_dir="model", **keys)
    (task,) = build_tasks(args, make_hybrid_tokenizer(work))
    row = inputs.train_rows[0]
    assert (row["prompt"], row["prompt_thinking"]) == task.rendered
    assert row["prompt"] == "<U>Be brief.<U>Q: 0+1?<A><think>\n\n</think>\n\n"


def make_hybrid_tokenizer(work: Path):
    from rea_core.models import load_tokenizer

    return load_tokenizer(str(work / "model"))


def test_a_threshold_of_other_prompts_is_refused(work):
    flags = ("--prompt_template", "{problem} Think.", "--system_prompt", "Be brief.")
    measured = score(sample("base", *flags), "--reflection_quantile", "0.2")
    change = f"{{tokens_per_reflection: null, tokens_per_reflection_file: {measured}"
    with pytest.raises(
        ValueError,
        match=r"tokens_per_reflection_file: .*not made in the same way: prompt_template .*system_p",
    ):
        read_recipe(write_recipe(work, work / "model", f"{change}}}"))
    *_, inputs = read_recipe(
        write_recipe(
            work,
            work / "model",
            f'{change}, prompt_template: "{{problem}} Think.", system_prompt: Be brief.}}',
        )
    )
    assert len(inputs.train_rows) == 9


def test_labels_and_data_of_other_prompts_are_refused(work):
    paths, others = (
        sample("a", "--prompt_template", "{problem}"),
        sample("b", "--prompt_template", "Q: {problem}"),
    )
    splitting = ["--paragraph_tokenizer", "model", "--paragraph_min_tokens", "1"]
    (row,) = read_generations(others)
    reply = {
        "text": "[1]. Result",
        "num_tokens": 3,
        "finish_reason": "stop",
        "logprobs": [[(-0.1, " Result")]],
    }
    label = row | {"id": "p/0", "problem_id": "p", "path": 0, "responses": [reply]}
    write_json(work / "labels.json", [label])
    cut = {key: value for key, value in label.items() if key != "responses"} | {
        "cut": 0,
        "prefix": "Add them.",
    }
    write_json(work / "cuts.json", [cut])
    judged = label | {"id": "p/0/0", "use_answer": True, "paragraphs": ["Add them."], "chunk": 0}
    write_json(work / "judged.json", [judged])
    write_json(work / "yes.json", [label])
    finished = cut | {"responses": row["responses"]}
    write_json(work / "finished.json", [finished])
    commands = {
        "labels": lambda: labeling_to_prefix.main(
            [str(paths), "--labels", "labels.json", "--out", "o.json", *splitting]
        ),
        "cuts": lambda: labeling_to_prefix.main(
            [str(paths), "--judge_cuts", "cuts.json", "--out", "o.json", *splitting]
        ),
        "judgements": lambda: labeling_distill_utils.main(
            [
                "judged.json",
                "--clean",
                "--confirmations",
                "yes.json",
                "--paths",
                str(paths),
                "--out",
                "o.json",
                *splitting,
            ]
        ),
        "data": lambda: sft_data.main(["finished.json", "--paths", str(paths)]),
    }
    for name, command in commands.items():
        with pytest.raises(
            SystemExit, match="error: .*not made in the same way: prompt_template .*'Q: {problem}'"
        ) as stop:
            command()
        assert "give two files of the same paths" in str(stop.value), name
    argv = [
        "--qaf",
        "cuts.json",
        "--model_dir",
        "model",
        "--output_dir",
        "out",
        "--prompt_template",
        "{problem}",
    ]
    with pytest.raises(
        SystemExit, match="row 'p/0' was begun with another prompt .*prompt_template"
    ):
        generate.main(argv)


def test_labels_of_other_paragraphs_are_refused(work):
    paths = sample("a")
    (row,) = read_generations(paths)
    reply = {
        "text": "[1]. Result",
        "num_tokens": 3,
        "finish_reason": "stop",
        "logprobs": [[(-0.1, " Result")]],
    }
    label = row | {"id": "p/0", "problem_id": "p", "path": 0, "responses": [reply]}
    write_json(
        work / "labels.json", [label | {"paragraphs": ["Add them.", "It is 2.", "Wait, yes.\n"]}]
    )
    flags = [
        str(paths),
        "--labels",
        "labels.json",
        "--out",
        "o.json",
        "--paragraph_tokenizer",
        "model",
    ]
    labeling_to_prefix.main([*flags, "--paragraph_min_tokens", "1"])
    with pytest.raises(
        SystemExit, match="paths: p/0 has other paragraphs than its labels.*paragraph_min_tokens"
    ):
        labeling_to_prefix.main(flags)


def test_training_data_asks_what_its_paths_were_asked(work):
    keys = {
        "prompt_template": "Q: {problem}",
        "system_prompt": "Be brief.",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    record = PromptFormat.of(keys | {"prefill": "So "}).record
    long = {
        "text": "x" * 40 + "\\boxed{2}",
        "num_tokens": 40,
        "finish_reason": "stop",
        "prompt_thinking": "closed",
    }
    path = {"id": "p", "problem": "1+1?", "answer": "2", "prompt_format": record}
    write_json(work / "paths.json", [path | {"responses": [long]}])
    short = long | {"text": "\\boxed{2}", "num_tokens": 9}
    write_json(
        work / "finished.json",
        [path | {"id": "p/0", "problem_id": "p", "cut": 0, "responses": [short]}],
    )
    out = ["--sft_out", "sft.json", "--rpo_out", "rpo.json"]
    with pytest.raises(
        SystemExit,
        match="prompt_template .'Q: {problem}' and '{problem}'.; leave out --prompt_template",
    ):
        sft_data.main(
            ["finished.json", "--paths", "paths.json", *out, "--prompt_template", "{problem}"]
        )
    sft_data.main(["finished.json", "--paths", "paths.json", *out])
    (row,) = json.loads(Path("sft.json").read_text())
    tokenizer = make_hybrid_tokenizer(work)
    trained = tokenizer.decode(encode_example(row, tokenizer)["input_ids"])
    assert trained == PromptFormat.of(record).ask("1+1?", tokenizer).text + "\\boxed{2}<eos>"
    assert trained.startswith("<U>Be brief.<U>Q: 1+1?<A><think>\n\n</think>\n\nSo ")


def test_models_of_other_prompts_are_not_in_one_report_with_strategies(work):
    model = score(sample("model", "--prompt_template", "{problem}"))
    (row,) = read_generations(sample("paths", "--prompt_template", "Q: {problem}"))
    write_json(
        work / "finished.json", [row | {"strategy": "none", "truncated": False, "kept": 1.0}]
    )
    flags = ["finished.json", "--model_dir", "model", "--out", "report", "--models", f"SFT={model}"]
    with pytest.raises(
        SystemExit,
        match="finished.json and models: SFT were not made in the same way: prompt_template",
    ):
        strategy_report.main(flags)


def test_a_picture_refuses_scores_of_different_makes(work):
    one, two = score(sample("one")), score(sample("two", "--temperature", "1.0"))
    with pytest.raises(
        SystemExit,
        match=r"error: .*one.scores.json and .*two.scores.json .*: temperature \(0.6 and 1.0\)",
    ):
        plots.main(["--scores", str(one), str(two), "--save_to", "x.png"])
    assert not Path("x.png").exists()


def test_a_finished_file_of_an_earlier_version_is_complete(work):
    """Its settings have neither the keys nor the digest that were added since."""
    args = GenerateArguments(qaf="p.json", model_dir="model", output_dir="out")
    settings = generate._settings(
        args, SPLITS["math_cot"].open(args), generate.Making.of(args, None)
    )
    added = (
        "system_prompt",
        "chat_template_kwargs",
        "prefill",
        "model_digest",
        "input_digest",
        "first_prompt",
        "num_workers",
    )
    write_json(work / "out/model/p_math_cot.json", [])
    old = {key: value for key, value in settings.items() if key not in added}
    old["prompts"] = digest(f"{task.row['id']} {task.prompt}" for task in build_tasks(args))
    write_json(work / "out/model/p_math_cot.settings.json", old)
    assert generate.generate(args) == Path("out/model/p_math_cot.json")
    with pytest.raises(ValueError, match=r"other settings: prefill \(None, now 'So '\)"):
        generate.generate(
            GenerateArguments(qaf="p.json", model_dir="model", output_dir="out", prefill="So ")
        )
    write_json(work / "p.json", [{"id": "p", "problem": "1+1?", "answer": "3"}])
    with pytest.raises(ValueError, match=r"other settings: prompts"):
        generate.generate(args)


# --- The table of all models ----------------------------------------------------------------------


def scored(correct: bool, problem: str = "amc23/0", benchmark: str = "amc23") -> dict:
    response = {
        "correct": correct,
        "num_tokens": 9,
        "truncated": False,
        "answered": True,
        "no_room": False,
    }
    return {"id": problem, "benchmark": benchmark, "mean_tokens": 9.0, "responses": [response]}


def put(file: str, *problems: dict, **changes: dict) -> None:
    made = {
        "model": {"model_dir": "model/7B"},
        "sampling": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 99},
        "prompt_format": {"prompt_template": "{problem}", "system_prompt": None},
        "scoring": {
            "mode": "strict",
            "verifier_version": "1",
            "word_bounded": False,
            "budget": None,
        },
    }
    made = {part: values | changes.get(part, {}) for part, values in made.items()}
    write_json(
        Path(file), {"groups": {}, "problems": list(problems or [scored(True)]), "made_by": made}
    )


def table(*flags: str) -> None:
    eval_table.main(["eval", "--save_to", "eval/tradeoff.png", *flags])


def test_two_adapters_of_one_name_are_two_rows(work, capsys):
    for base, correct in (("model/7B", True), ("model/1B", False)):
        adapter = {"model_dir": base, "lora": f"{base[6:]}/ReflectRL", "lora_digest": base}
        put(
            f"eval/ReflectRL-200/{base[6:]}/x1_math_cot.scores.json", scored(correct), model=adapter
        )
    put("eval/7B-0/7B/x1_math_cot.scores.json")
    table("--base", "7B-0")
    rows = [line for line in capsys.readouterr().out.splitlines() if "ReflectRL-200 (" in line]
    # accuracy, and tokens
    assert ["7B/ReflectRL" in row for row in rows].count(True) == 2 and len(rows) == 4
    assert "100.0" in next(row for row in rows if "7B/ReflectRL" in row)
    assert (
        eval_table.read_models(Path("eval"))["ReflectRL-200 (1B/ReflectRL)"]["amc23"][0][
            "responses"
        ][0]["correct"]
        is False
    )


def test_a_table_refuses_scores_of_different_makes(work):
    for part, key, value in (
        ("sampling", "temperature", 1.0),
        ("sampling", "max_tokens", 16),
        ("prompt_format", "system_prompt", "Be brief."),
        ("scoring", "mode", "original"),
        ("scoring", "verifier_version", "2"),
        ("scoring", "budget", 16),
    ):
        put("eval/7B-0/7B/x1_math_cot.scores.json")
        put(
            "eval/mine-9/7B/x1_math_cot.scores.json", model={"lora": "mine"}, **{part: {key: value}}
        )
        with pytest.raises(
            SystemExit, match=f"error: .* were not made in the same way: {key} .*EVAL_OUT"
        ):
            table()
        put("eval/mine-9/7B/x1_math_cot.scores.json", scored(True, "math500/0"))
        put("eval/mine-9/7B/x8_math_cot.scores.json", **{part: {key: value}})  # of one row
        with pytest.raises(SystemExit, match=f"error: .* were not made in the same way: {key}"):
            table()
        Path("eval/mine-9/7B/x8_math_cot.scores.json").unlink()


def test_a_row_of_two_sets_of_weights_is_refused(work):
    # of a version that took no digest
    put("eval/7B-0/7B/x1_math_cot.scores.json", scored(True, "math500/0"))
    put("eval/7B-0/7B/x8_math_cot.scores.json", model={"model_digest": "a"})
    assert list(eval_table.read_models(Path("eval"))) == ["7B-0"]
    put(
        "eval/7B-0/7B/x1_math_cot.scores.json",
        scored(True, "math500/0"),
        model={"model_digest": "b"},
    )
    with pytest.raises(
        SystemExit,
        match="x1_math_cot.scores.json and .*x8_math_cot.scores.json are of different weights",
    ):
        table()


def test_scores_of_an_earlier_number_of_samples_are_not_mixed_in(work, capsys):
    write_json(work / "data/amc23_test.json", [{"problem": "1+1?", "answer": "2"}])
    collect = ["collect", "data", "--out", "eval/7B-0/problems"]
    eval_data.main(collect)
    assert [path.name for path in Path("eval/7B-0/problems").iterdir()] == ["x8.json"]
    put("eval/7B-0/7B/x8_math_cot.scores.json", scored(True))
    eval_data.main([*collect, "--num_samples", "4"])
    assert [path.name for path in Path("eval/7B-0/problems").iterdir()] == ["x4.json"]
    put("eval/7B-0/7B/x4_math_cot.scores.json", scored(False))
    table("--base", "7B-0")
    row = next(
        line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("7B-0")
    )
    assert row.split()[1] == "0.0" and "100.0 ± 0.0" in row  # its own TR
    put("eval/other/7B/x8_math_cot.scores.json", scored(True))
    put("eval/other/7B/x4_math_cot.scores.json", scored(False))
    with pytest.raises(
        SystemExit,
        match="x4_math_cot.scores.json and .*x8_math_cot.scores.json both have .*'amc23/0'",
    ):
        table()


# --- The study ------------------------------------------------------------------------------------


def test_the_study_of_another_recipe_set_has_problems_and_places_of_its_own(monkeypatch):
    monkeypatch.chdir(ROOT)
    miniature = study.parse_arguments([])
    assert (miniature.eval_dataset, str(miniature.out)) == (
        "dataset/miniature/test.json",
        "docs/study",
    )
    other = study.parse_arguments(["--recipe_set", "DeepSeek-R1-Distill-Qwen-7B"])
    assert (
        other.eval_dataset is None
        and other.work != miniature.work
        and other.out.is_relative_to(other.work)
    )
    with pytest.raises(
        SystemExit, match="error: eval_dataset is missing: name the held-out problems of DeepSeek"
    ):
        study.main(["--recipe_set", "DeepSeek-R1-Distill-Qwen-7B", "--dry_run"])


def test_an_evaluation_of_other_problems_is_not_taken_for_this_one(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    flags = [
        "--rows",
        "base",
        "--seeds",
        "1",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
    ]
    args = study.parse_arguments([*flags, "--eval_samples", "2"])
    (run,) = study.all_runs(args)
    folder = run.directory / "eval" / "Miniature-LRM"
    write_json(folder / "test_math_cot.scores.json", {"groups": {}, "problems": []})
    settings = {
        "model_dir": args.model,
        "qaf": args.eval_dataset,
        "qaf_limit": args.eval_problems,
        "n_generate_sample": 2,
    }
    write_json(folder / "test_math_cot.settings.json", settings)
    study.main([*flags, "--eval_samples", "2", "--dry_run"])
    for changed, message in (
        (["--eval_samples", "4"], "n_generate_sample (2, now 4)"),
        (["--eval_problems", "9"], "qaf_limit (500, now 9)"),
        (
            ["--eval_dataset", "dataset/miniature/validation.json"],
            "qaf ('dataset/miniature/test.json', now",
        ),
        (["--model", "model/Miniature-Instruct"], "model_dir ("),
    ):
        with pytest.raises(SystemExit, match="was made with other settings") as refused:
            study.main([*flags, "--eval_samples", "2", "--dry_run", *changed])
        assert message in str(refused.value)


def test_rows_of_the_study_that_were_scored_differently_are_refused():
    from study_rows import counts

    from rea_rl.study.report import all_figures

    rows = [counts(name, [[1] * 6], [[9] * 6]) for name in ("base", "grpo")]
    made = {"scoring": {"mode": "strict"}}, {"scoring": {"mode": "original"}}
    rows = [
        type(row)(**{**vars(row), "made_by": known}) for row, known in zip(rows, made, strict=True)
    ]
    with pytest.raises(
        ValueError,
        match=r"row base and row grpo were not made in the same way: mode \('strict' and 'orig",
    ):
        all_figures(rows)
