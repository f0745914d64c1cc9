"""The study: which runs there are, their commands, resuming, and the arithmetic of table,
intervals and checks."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from scripted_server import ScriptedServer
from study_rows import counts

from generation.evaluation.plots import pareto_front
from generation.scoring import ALL, aes, interval, ratio_interval
from generation.stated_results import count_empty_checks, count_rechecks, recomputes
from rea_core.problems import problem_digest
from rea_core.row_files import write_json
from rea_rl.study import run as study
from rea_rl.study.places import make_places
from rea_rl.study.report import (
    all_figures,
    json_row,
    read_row,
    row_ratios,
    seconds,
    tables,
    words_outgrow_rechecks,
    write_report,
)
from rea_rl.study.rows import Row

ROOT = Path(__file__).parents[2]
RECIPE_SETS = sorted(path.parent.name for path in ROOT.glob("recipes/*/study.yaml"))
# Their studies are the 7B's but for the evaluation.
COPIES = ["DeepSeek-R1-Distill-Qwen-1.5B", "DeepSeek-R1-Distill-Llama-8B", "Qwen3-1.7B", "Qwen3-8B"]
TRAINER = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(flags["--output_dir"])
runs = int((folder / "runs").read_text()) if (folder / "runs").exists() else 0
(folder / "runs").write_text(str(runs + 1))
if runs == 0:
    sys.exit(3)
(folder / "adapter_model.safetensors").write_text("")
"""


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def arguments(tmp_path, *flags):
    return study.parse_arguments(
        [*flags, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    )


# --- runs and commands ----------------------------------------------------------------------------


def test_base_comes_first_and_main_rows_have_three_seeds(tmp_path):
    runs = study.all_runs(arguments(tmp_path, "--rows", "rea_rl", "dler"))
    assert [(run.row.name, run.seed) for run in runs] == [
        ("base", 0), ("base", 1), ("base", 2), ("rea_rl", 0), ("rea_rl", 1), ("rea_rl", 2),
        ("dler", 0),
    ]  # fmt: skip
    one = study.all_runs(arguments(tmp_path, "--rows", "rea_rl", "base", "--seeds", "1"))
    assert [str(run.directory.relative_to(tmp_path)) for run in one] == [
        "work/base/seed-0",
        "work/rea_rl/seed-0",
    ]
    assert {row.name for row in study.ROWS.values() if row.num_seeds == 3} == {
        "base", "grpo", "grpo_len", "reward_only", "model_only", "rea_rl"
    }  # fmt: skip


def test_unknown_row_lists_the_others(tmp_path):
    with pytest.raises(
        ValueError, match=r"rows \['grpo_long'\] are unknown; there are base, grpo, .*density"
    ):
        study.all_runs(arguments(tmp_path, "--rows", "grpo_long"))


def test_command_of_a_row_by_hand(tmp_path):
    args = arguments(
        tmp_path, "--rows", "dler", "--steps", "7", "--policy_server", "http://127.0.0.1:1/v1"
    )
    assert study.train_command(study.all_runs(args)[-1], args) == [
        sys.executable, "-m", "rea_rl.grpo", "--config", "recipes/miniature/config_GRPO.yaml",
        "--reward_funcs", "truncated_accuracy", "--target_lengths", "150", "--scale_rewards",
        "batch",
        "--dynamic_sampling", "true", "--seed", "0", "--output_dir",
        str(tmp_path / "work/dler/seed-0"),
        "--model_name_or_path", "model/Miniature-LRM",
        "--max_steps", "7",
    ]  # fmt: skip
    (place,) = make_places(args).queue
    assert place.flags == [
        "--policy_server",
        "http://127.0.0.1:1/v1",
        "--reflection_server",
        "http://127.0.0.1:12346/v1",
    ]


def test_places_on_gpus_have_servers_and_ports_of_their_own(tmp_path):
    args = arguments(tmp_path, "--rows", "base", "--gpus", "0", "3", "--runs_per_gpu", "2")
    places = list(make_places(args).queue)
    assert [place.gpu for place in places] == ["0", "3", "0", "3"]
    assert (
        len({url for place in places for url in (place.policy_server, place.reflection_server)})
        == 8
    )
    assert places[1].environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert places[0].server_flags[:4] == ["--kv_cache_gib", "4", "--compile", "false"]
    assert len({tuple(place.server_flags) for place in places}) == 4, (
        "servers share a sampling seed"
    )
    on_cpu = make_places(arguments(tmp_path, "--rows", "base", "--gpus", "cpu")).get()
    assert on_cpu.environment["CUDA_VISIBLE_DEVICES"] == "" and "--use_cpu" in on_cpu.flags


def test_runs_are_dealt_to_pairs_of_servers_and_gpus(tmp_path, monkeypatch):
    servers = [
        "--policy_server",
        "http://a/v1",
        "http://b/v1",
        "--reflection_server",
        "http://c/v1",
    ]
    places = list(make_places(arguments(tmp_path, "--rows", "base", *servers)).queue)
    assert [(place.policy_server, place.reflection_server) for place in places] == [
        ("http://a/v1", "http://c/v1"),
        ("http://b/v1", "http://c/v1"),
    ]
    flags = [*servers, "--jobs", "3", "--train_gpus", "0", "1"]
    places = list(make_places(arguments(tmp_path, "--rows", "base", *flags)).queue)
    assert [place.policy_server[7] for place in places] == ["a", "b", "a"]
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "1", "0"]
    assert "--use_cpu" not in places[0].flags
    monkeypatch.setenv("TRAIN_GPUS", "0,1")
    assert "TRAIN_GPUS" not in places[1].environment
    (plain,) = make_places(arguments(tmp_path, "--rows", "base")).queue
    assert plain.environment["TRAIN_GPUS"] == "0,1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "recipe_set is New, but recipes/New/study.yaml is missing; the study knows .*mini"),
        ("generation: x\ntarget: 1\n", "the key buffer is missing"),
        ("target: 0\n", "the key buffer is missing"),
        ("targets: 3\n", "there is no key targets; there are generation, target,"),
    ],
)
def test_a_recipe_set_without_its_settings_is_one_line(tmp_path, monkeypatch, text, words):
    folder = tmp_path / "recipes" / "New"
    shutil.copytree(ROOT / "recipes" / "miniature", folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "miniature").mkdir()
    shutil.copy(folder / "study.yaml", tmp_path / "recipes" / "miniature")
    assert study.parse_arguments(["--recipe_set", "New"]).set.target == 150
    if text is None:
        (folder / "study.yaml").unlink()
    else:
        (folder / "study.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        study.parse_arguments(["--recipe_set", "New"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("target: 150", "target: 0", "target is 0; it must be a number greater than 0"),
        ("slope: 0.005", "slope: steep", "slope is 'steep'; it must be a number"),
        ("slips: true", "slips: 1", "slips is 1; it must be true or false"),
        ("eval_dataset: d", "eval_dataset: [1] #", "eval_dataset is .*; it must be a text"),
    ],
)
def test_a_setting_of_another_type_is_one_line(tmp_path, monkeypatch, old, new, words):
    folder = tmp_path / "recipes" / "miniature"
    folder.mkdir(parents=True)
    text = (ROOT / "recipes" / "miniature" / "study.yaml").read_text()
    assert old in text
    (folder / "study.yaml").write_text(text.replace(old, new, 1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        study.parse_arguments([])


def test_processes_that_do_not_divide_a_step(tmp_path):
    args = arguments(tmp_path, "--rows", "grpo", "--num_processes", "5")
    with pytest.raises(
        ValueError, match="num_processes is 5, which does not divide prompts_per_step .* 12; give"
    ):
        study.train_command(study.all_runs(args)[-1], args)
    args.num_processes = 3
    assert "batch_size" not in " ".join(study.train_command(study.all_runs(args)[-1], args))


def test_row_of_a_script(tmp_path, monkeypatch):
    row = Row("sft", "SFT", script="scripts/grpo.sh", adapter="output/{recipe_set}/SFT")
    monkeypatch.setitem(study.ROWS, "sft", row)
    args = arguments(tmp_path, "--rows", "sft")
    run = study.all_runs(args)[-1]
    assert study.train_command(run, args) == [
        "env",
        "RECIPE_SET=miniature",
        "bash",
        "scripts/grpo.sh",
    ]
    assert (run.adapter, run.directory) == (
        Path("output/miniature/SFT"),
        tmp_path / "work/sft/seed-0",
    )
    monkeypatch.setitem(study.ROWS, "sft", Row("sft", "SFT", script="scripts/nobody.sh"))
    with pytest.raises(ValueError, match="row sft needs scripts/nobody.sh, which does not exist"):
        study.all_runs(args)


def test_plan_says_what_is_left(tmp_path, capsys):
    flags = [
        "--rows",
        "grpo",
        "--seeds",
        "1",
        "--dry_run",
        "--work",
        str(tmp_path),
        "--",
        "trainer",
        "--flag",
        "a b",
    ]
    study.main(flags)
    base, grpo = capsys.readouterr().out.splitlines()
    assert base == "base seed 0: evaluate"
    assert grpo.startswith(
        "grpo seed 0: train and evaluate  trainer --flag 'a b' --config "
        "recipes/miniature/config_GRPO"
    )
    assert not any(tmp_path.iterdir())


# All rows of the first sets; of the others those that read their sizes, and the method.
COMMANDS = [
    (recipe_set, row.name)
    for recipe_set in RECIPE_SETS
    for row in study.ROWS.values()
    if row.variant and (recipe_set not in COPIES or "{" in row.changes or row.name == "rea_rl")
]


@pytest.mark.parametrize(("recipe_set", "name"), COMMANDS)
def test_every_row_is_a_recipe_with_valid_flags(tmp_path, recipe_set, name):
    from rea_rl.grpo import parse_recipe
    from rea_rl.rewards import get_reward_funcs

    args = arguments(tmp_path, "--recipe_set", recipe_set, "--rows", name)
    run = study.all_runs(args)[-1]
    _, config, _ = parse_recipe([*study.train_command(run, args)[3:], "--use_cpu", "true"])
    assert len(get_reward_funcs(config.reward_funcs, 99.0, **config.reward_settings)) == len(
        config.reward_funcs
    )


def test_training_goes_on_after_a_failure_and_is_not_repeated(tmp_path):
    args = arguments(tmp_path, "--rows", "grpo", "--seeds", "1")
    args.trainer = [sys.executable, "-c", TRAINER]
    run = study.all_runs(args)[-1]
    with pytest.raises(study.subprocess.CalledProcessError):
        study.train(run, make_places(args).get(), args)
    assert not run.trained
    study.train(run, make_places(args).get(), args)
    assert run.trained and (run.directory / "runs").read_text() == "2"


def test_a_run_is_not_continued_with_another_command(tmp_path):
    args = arguments(tmp_path, "--rows", "grpo", "--steps", "3")
    run = study.all_runs(args)[-1]
    run.directory.mkdir(parents=True)
    (run.directory / "command.json").write_text(json.dumps(["earlier", "--max_steps", "2"]))
    with pytest.raises(
        ValueError, match="made with another command: earlier --max_steps 2; delete it"
    ):
        study.train(run, make_places(args).get(), args)


def test_a_stopped_study_leaves_no_trainer_behind():
    code = (
        "import signal, subprocess; from rea_rl import study; signal.signal(signal.SIGTERM, "
        "study.stop); subprocess.run(['sh', '-c', 'echo $$; exec sleep 60'])"
    )
    study_process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    trainer = int(study_process.stdout.readline())
    study_process.terminate()
    assert study_process.wait(timeout=30) == 128 + signal.SIGTERM
    assert (
        not psutil.pid_exists(trainer) or psutil.Process(trainer).status() == psutil.STATUS_ZOMBIE
    )


def test_a_script_is_one_run_however_many_seeds(tmp_path):
    runs = study.all_runs(arguments(tmp_path, "--rows", "sft", "grpo", "--seeds", "2"))
    assert [(run.row.name, run.seed) for run in runs] == [
        ("base", 0),
        ("base", 1),
        ("sft", 0),
        ("grpo", 0),
        ("grpo", 1),
    ]


@pytest.mark.slow
def test_base_is_evaluated_on_the_running_server(tmp_path, serve):
    server = serve()
    args = arguments(
        tmp_path,
        "--rows",
        "base",
        "--seeds",
        "1",
        "--eval_problems",
        "3",
        "--policy_server",
        server.url,
    )
    run = study.all_runs(args)[0]
    study.evaluate(run, make_places(args).get(), args, lambda: run.scores)
    assert run.evaluated and run.generations.name == "test_math_cot.json"
    scores = json.loads(run.scores.read_text())
    assert [problem["id"] for problem in scores["problems"]] == ["test-0", "test-1", "test-2"]
    assert {"first_right", "num_reflections"} <= scores["problems"][0]["responses"][0].keys()


def test_adapter_is_served_under_a_name_of_its_weights(tmp_path):
    with ScriptedServer(None, ["model/Miniature-LRM"]) as server:
        args = arguments(tmp_path, "--rows", "grpo", "--seeds", "1", "--policy_server", server.url)
        base, run = study.all_runs(args)
        run.directory.mkdir(parents=True)
        (run.directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        (run.directory / "adapter_model.safetensors").write_bytes(b"weights")
        with study.served(run, server.url, args) as name:
            assert name.startswith("study-grpo-0-") and server.models == [
                "model/Miniature-LRM",
                name,
            ]
        assert server.models == ["model/Miniature-LRM"]
        assert server.bodies("load_lora_adapter")[0]["lora_path"] == str(run.directory)
        with study.served(base, server.url, args) as name:
            assert name == "model/Miniature-LRM"


# --- figures --------------------------------------------------------------------------------------


BASE = counts("base", [[1, 1, 1, 1, 1, 0]], [[100, 100, 200, 200, 300, 300]])
SHORT = counts("short", [[1, 1, 1, 0, 0, 0]], [[50, 50, 100, 100, 150, 150]], words=0.5)


def test_figures_by_hand():
    figures = all_figures([BASE, SHORT])
    base, short = figures["base"], figures["short"]
    assert (
        base[ALL]["accuracy"].value == pytest.approx(5 / 6)
        and base["hard"]["accuracy"].value == 0.5
    )
    assert (
        short[ALL]["tokens"].value,
        short["easy"]["tokens"].value,
        short["hard"]["tokens"].value,
    ) == (100, 50, 150)
    assert base["medium"]["tokens_per_word"].value == 200 and base[ALL][
        "words"
    ].value == pytest.approx(5.0)
    # Tokens are halved problem by problem: the paired interval has no width.
    assert [getattr(short[ALL]["tr"], part) for part in ("value", "low", "high")] == pytest.approx(
        [50, 50, 50]
    )
    # Half of the tokens saved, accuracy from 5/6 to 3/6: 0.5 - 5 x 0.4.
    assert short[ALL]["aes"].value == pytest.approx(-1.5)
    assert base[ALL]["aes"].value == 0 == base[ALL]["aes"].high


def test_interval_of_one_seed_is_the_bootstrap_over_problems():
    row = counts("r", [[1, 0] * 50], [[10, 30] * 50], levels=[None] * 100)
    ours = interval(row_ratios(row, ALL)["accuracy"])
    theirs = ratio_interval([1, 0] * 50, [1, 1] * 50)
    assert ours.value == theirs.value == 0.5
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_seeds_that_disagree_widen_the_interval():
    agree = counts("a", [[1, 1, 1, 0, 1, 1]] * 3, [[100] * 6] * 3)
    differ = counts("d", [[1] * 6, [1] * 6, [0, 0, 1, 0, 1, 0]], [[100] * 6] * 3)

    def width(row):
        values = interval(row_ratios(row, ALL)["accuracy"])
        return values.high - values.low

    assert width(differ) > width(agree) > 0
    # All problems right in two seeds of three, so nearly no draw of problems matters: the width is
    # that of the seeds.
    whole = counts("w", [[1] * 6, [1] * 6, [0] * 6], [[100] * 6] * 3)
    values = interval(row_ratios(whole, ALL)["accuracy"])
    assert (values.value, values.low, values.high) == pytest.approx((2 / 3, 0.0, 1.0))


def test_aes_weighs_losses_more_than_gains():
    def value(accuracy, tokens):
        return float(aes(*(np.array([x]) for x in (accuracy, tokens, 0.8, 200.0)))[0])

    assert value(0.8, 100) == pytest.approx(0.5)
    assert value(0.88, 200) == pytest.approx(0.3)
    assert value(0.72, 200) == pytest.approx(-0.5)


def test_rows_on_other_problems_are_refused():
    other = counts("other", [[1]], [[5]], levels=[1])
    with pytest.raises(ValueError, match=r"rows \['other'\] were evaluated on other problems"):
        all_figures([BASE, other])


def test_words_that_outgrow_re_checks():
    wordy = counts("wordy", BASE.counts["correct"], BASE.counts["num_tokens"], words=9, rechecks=1)
    hollow = counts(
        "hollow", BASE.counts["correct"], BASE.counts["num_tokens"], words=2, rechecks=0
    )
    silent = counts(
        "silent", BASE.counts["correct"], BASE.counts["num_tokens"], words=0, rechecks=0
    )
    figures = all_figures([BASE, SHORT, wordy, hollow, silent])
    outgrown = {name: words_outgrow_rechecks(f, figures["base"]) for name, f in figures.items()}
    assert outgrown == {
        "base": False,
        "short": False,
        "wordy": True,
        "hollow": True,
        "silent": False,
    }


def test_table_and_json_say_the_same():
    rows = [BASE, SHORT]
    figures = all_figures(rows)
    main, reflection = (part.splitlines() for part in tables(rows, figures, True).split("\n\n"))
    header = [cell.strip() for cell in main[0].strip("|").split("|")]
    assert header == [
        "", "accuracy %", "easy %", "medium %", "hard %", "tokens", "TR %", "AES", "truncated %",
        "corrected, hard %",
        "of mistakes, hard %", "seeds",
    ]  # fmt: skip
    assert (
        main[3].startswith("| row short | 50.0 ±")
        and "| 25.0 ± 0.0          | 50.0 ± 0.0 " in main[3]
    )
    assert reflection[2].rstrip("| ").endswith("no")
    row = json_row(SHORT, figures["short"])
    assert {
        "name",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "tokens",
        "hard",
        "corrected",
        "seeds",
    } <= row.keys()
    assert (row["name"], row["accuracy"], row["tokens"], row["hard"], row["seeds"]) == (
        "short",
        0.5,
        100,
        0,
        1,
    )
    assert row["accuracy_low"] < 0.5 < row["accuracy_high"]


def test_time_is_told_by_row_and_device(tmp_path):
    names = [("grpo", 0), ("grpo", 1), ("sft", 0)]
    runs = [
        study.Run(study.ROWS[name], seed, tmp_path / f"{name}-{seed}", tmp_path)
        for name, seed in names
    ]
    for run, device in zip(runs, ("GPU", "GPU", "CPU"), strict=True):
        write_json(run.directory / "trained.json", {"seconds": 60.0, "device": device})
    write_json(runs[0].directory / "evaluated.json", {"seconds": 5.0, "device": "CPU"})
    assert seconds(runs) == ({"grpo": 125.0, "sft": 60.0}, {"GPU": 120.0, "CPU": 65.0})


def test_problems_without_levels_have_one_group():
    row = counts("r", [[1, 0]], [[10, 30]], levels=[None, None])
    figures = all_figures([row])
    assert list(figures["r"]) == [ALL] and "tokens/word, all" in tables([row], figures, False)
    assert json_row(row, figures["r"])["hard"] == 0.5


def test_pareto_front():
    base, short, worse, ours, tie = (250, 0.97), (90, 0.6), (100, 0.55), (150, 0.96), (250, 0.96)
    assert pareto_front([base, short, worse, ours, tie]) == [short, ours, base]


# --- re-checks ------------------------------------------------------------------------------------


FIRST = "First, go step by step.\n10+5=15\n15-3=12\nSo the result is 12."


@pytest.mark.parametrize(
    "paragraph, real",
    [
        ("Wait, let me check that again.\n10+5=15\n15-3=12\nYes, the result is 12.", True),
        (
            "Let me check by going back from 12.\n12+3=15\n15-5=10\nThis is the start, so the "
            "result is 12.",
            True,
        ),
        ("Some steps at once:\n10+5-3=12\nThat means the result is 12.", True),
        ("Wait, let me check. But wait, alternatively, check. The result is 12.", False),
        ("Check:\n10+5=15\n99-3=96\nYes, the result is 12.", False),
        ("I am confident. The result is 12.", False),
    ],
)
def test_a_re_check_computes_something(paragraph, real):
    assert recomputes(paragraph) is real
    assert count_rechecks(f"{FIRST}\n\n{paragraph}") == int(real)
    empty = not real and "heck" in paragraph  # "I am confident" claims no check
    assert count_empty_checks(f"{FIRST}\n\n{paragraph}") == int(empty)


def test_the_first_pass_is_no_re_check():
    assert count_rechecks(f"Okay. Start 10: +5, -3.\n\n{FIRST}") == 0
    assert count_rechecks("10+5=15\n\nno result yet") == 0


# --- report ---------------------------------------------------------------------------------------


def test_report_of_two_finished_runs(tmp_path):
    args = arguments(tmp_path, "--rows", "grpo", "--seeds", "1")
    runs = study.all_runs(args)
    for run, tokens in zip(runs, (200, 150), strict=True):
        write_evaluation(run, tokens)
    write_report(args, runs)
    assert {path.name for path in args.out.iterdir()} == {
        "study.md", "study.json", "tradeoff.png", "training.png", "reflection.png"
    }  # fmt: skip
    report = json.loads((args.out / "study.json").read_text())
    assert [(row["name"], row["tokens"], row["tr"]) for row in report["rows"]] == [
        ("base", 200, 100),
        ("grpo", 150, 75),
    ]
    assert report["settings"]["eval_problems"] == 5
    assert "| GRPO" in (args.out / "study.md").read_text()


def test_texts_are_counted_for_the_problem_that_they_answer(tmp_path):
    """Rows of the generation file may have another order, but no other problems."""
    run = study.all_runs(arguments(tmp_path, "--rows", "grpo", "--seeds", "1"))[1]
    write_evaluation(run, 200)
    scores, rows = (json.loads(file.read_text()) for file in (run.scores, run.generations))
    for row, problem in zip(rows, scores["problems"], strict=True):
        row["problem"] = f"{row['id']}?"
        problem["problem_digest"] = problem_digest(row["problem"])
    rows[1]["responses"][0]["text"] = "10+2=12\n</think>\n\n\\boxed{12}"  # no re-check
    run.scores.write_text(json.dumps(scores))
    for order in ((0, 1, 2, 3, 4), (4, 1, 0, 3, 2), (1, 2, 3, 4, 0)):
        run.generations.write_text(json.dumps([rows[i] for i in order]))
        assert read_row([run]).counts["rechecks"].tolist() == [[1, 0, 1, 1, 1]]
    rows[2]["problem"], rows[3]["problem"] = rows[3]["problem"], rows[2]["problem"]
    run.generations.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="'p2' is about another problem than 'p2' of the scores"):
        read_row([run])


def write_evaluation(run, tokens):
    folder = run.directory / "eval" / "Miniature-LRM"
    folder.mkdir(parents=True)
    log = [
        {
            "step": 1,
            "rollout/accuracy": 0.9,
            "rollout/num_tokens": 200.0,
            "reflection/density": 0.02,
        }
    ]
    (run.directory / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    text = f"{FIRST}\n\nWait, check.\n10+5=15\n</think>\n\n\\boxed{{12}}"
    response = {"text": text, "num_tokens": tokens, "finish_reason": "stop"}
    rows = [
        {"id": f"p{i}", "problem": "x", "answer": "12", "level": i + 1, "responses": [response]}
        for i in range(5)
    ]
    (folder / "test_math_cot.json").write_text(json.dumps(rows))
    scored = {"correct": True, "truncated": False, "first_right": True, "num_reflections": 1}
    scored |= {"num_tokens": tokens, "num_think_tokens": tokens}
    problems = [{"id": row["id"], "level": row["level"], "responses": [scored]} for row in rows]
    (folder / "test_math_cot.scores.json").write_text(
        json.dumps({"groups": {}, "problems": problems})
    )
