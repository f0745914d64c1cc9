"""Every benchmark runs at tiny size on a CPU, in this process; servers are scripted."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

import pytest
from rollouts import labels
from scripted_server import ScriptedServer, completion

from rea_core.models import load_tokenizer
from rea_rl.rollout.record import STAGES

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "scripts" / "benchmark"
MODEL, REFLECTION = (str(ROOT / "model" / f"Miniature-{name}") for name in ("LRM", "Reflection"))
SAMPLE = "First, go.\n10+5=15\n\nSo the result is 15.\n\nWait, 10+5=15.\n\n</think>\n\n\\boxed{15}"
ELSEWHERE = {
    "train_step.py": "test_benchmark_train_step.py", "trl_tree.py": "test_benchmark_train_step.py",
    "end_to_end.py": "../integration/test_benchmarks.py",
    "two_steps.py": "../integration/test_two_steps.py", "launched.py": "test_launched.py",
}  # fmt: skip


def policy_reply(body):
    """A sampled response, or as many tokens as are asked for."""
    if body.get("ignore_eos"):
        ids = [20 + i % 300 for i in range(body["max_tokens"])]
        if body.get("stream"):
            step = [{" Think": -0.1, " Result": -2.0}] * len(ids)
            return completion(ids, top_logprobs=step)
        return completion(ids, cached=len(body["prompt"]) // 2)
    tokenizer = load_tokenizer(MODEL)
    ids = [*tokenizer.encode(SAMPLE, add_special_tokens=False), tokenizer.eos_token_id]
    return completion(ids[-min(len(ids), body["max_tokens"]) :], cached=4)


@pytest.fixture(autouse=True)
def logging_as_before():
    yield
    logging.disable(logging.NOTSET)  # what a program of its own may do


@pytest.fixture
def servers():
    """A policy server and a reflection server."""
    with ExitStack() as stack:
        policy = stack.enter_context(ScriptedServer(policy_reply, [MODEL]))
        reflection = stack.enter_context(ScriptedServer(labels(0.2, 0.9), [REFLECTION, MODEL]))
        for server, folder in ((policy, MODEL), (reflection, REFLECTION)):
            tokenizer = load_tokenizer(folder)
            server.encode = lambda text, t=tokenizer: t.encode(text, add_special_tokens=False)
        yield policy, reflection


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Function that runs a benchmark with options, and returns its results."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def go(name, *options):
        out = tmp_path / "results.json"
        monkeypatch.setattr(sys, "argv", [name, *map(str, options), "--json", str(out)])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return json.loads(out.read_text())

    return go


def test_every_benchmark_has_a_test():
    here = Path(__file__).read_text()
    for path in BENCHMARKS.glob("*.py"):
        other = ELSEWHERE.get(path.name)
        text = (Path(__file__).parent / other).read_text() if other else here
        assert path.name in text or path.stem in text, path.name


def test_rollout_chain(run, servers):
    policy, reflection = servers
    reflection.complete = policy_reply
    urls = ["--servers", policy.url, reflection.url]
    sizes = ["--prompts", 2, "--group", 2, "--repeats", 2, "--median_tokens", 30]
    results = run("rollout_chain.py", *urls, *sizes, "--max_tokens", 60, "--label_wave", 4)
    ways = {"plain, G", "plain, 2G", "barriers", "chain", "chain, waves"}
    assert results["seconds"].keys() == ways
    best = min(results["seconds"]["chain"], results["seconds"]["chain, waves"])
    overhead = best / results["seconds"]["plain, 2G"] - 1
    assert results["revision_overhead"] == pytest.approx(overhead)
    assert {"torch", "trl", "transformers"} <= results["versions"].keys()
    assert 0 < results["label_tokens_saved"] < 1
    for way, runs in results["runs"].items():
        assert len(runs) == 2 and results["spread"][way] == pytest.approx(max(runs) / min(runs) - 1)


def test_cuts_are_those_of_a_trained_detector(monkeypatch):
    shares = json.loads((BENCHMARKS / "detector_cuts.json").read_text())["shares"]
    assert len(shares) == 400 and all(0 < kept <= 1 and 0 < read <= 1 for kept, read in shares)
    monkeypatch.syspath_prepend(BENCHMARKS)
    from rollout_chain import draw_plans
    from serving import PRESETS

    plans = draw_plans(PRESETS["7b"], 4, seed=0)
    mean = sum(plan.kept / plan.sample for plan in plans) / len(plans)
    assert mean == pytest.approx(sum(kept for kept, _ in shares) / 400, abs=0.05)


def test_revisions_of_the_training_step_are_cut_there_too(monkeypatch):
    shares = json.loads((BENCHMARKS / "detector_cuts.json").read_text())["shares"]
    monkeypatch.syspath_prepend(BENCHMARKS)
    from train_step import make_batch

    sizes = Namespace(prompts=30, group=4, preset="7b", seed=0)
    paths = make_batch(sizes, 1000).paths
    kept = []
    for original, revision in zip(paths[::2], paths[1::2], strict=True):
        differs = (original.ids[: len(revision.ids)] != revision.ids[: len(original.ids)]).argmax()
        kept.append((differs - original.num_prompt) / (len(original.ids) - original.num_prompt))
    assert sum(kept) / len(kept) == pytest.approx(sum(k for k, _ in shares) / 400, abs=0.05)


def test_two_steps_compiles_nothing_and_takes_a_port(monkeypatch, tmp_path, capsys):
    """The launcher gets both as variables; here it is one that has trained already."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import two_steps

    launched = []

    def launch(command, env):
        launched.append(env)
        logged = [{"grad_norm": 0.5, "loss": 0.1}, {"grad_norm": 0.4, "loss": 0.2}, {"runtime": 3}]
        state = Path(command[command.index("--output_dir") + 1], "trainer_state.json")
        state.parent.mkdir()
        state.write_text(json.dumps({"log_history": logged}))
        return Namespace(returncode=0)

    monkeypatch.setattr(two_steps.subprocess, "run", launch)
    two_steps.main(["Qwen3-1.7B", "--tiny", "--out", str(tmp_path / "a")])
    two_steps.main(
        ["Qwen3-1.7B", "--tiny", "--compile", "--port", "23456", "--out", str(tmp_path / "b")]
    )
    names = ("RECIPE_SET", "SERVER_COMPILE", "SERVER_PORT")
    assert [[env.get(name) for name in names] for env in launched] == [
        ["Qwen3-1.7B", "false", None],
        ["Qwen3-1.7B", "true", "23456"],
    ]
    written = json.loads((tmp_path / "b" / "steps.json").read_text())
    assert [step["loss"] for step in written["steps"]] == [0.1, 0.2]
    assert {"torch", "trl", "transformers"} <= written["versions"].keys()
    assert "0.4" in capsys.readouterr().out


def test_labels(run):
    results = run("labels.py", "--labels", 9, "--replies", 3, "--repeats", 2)
    assert [(row["form"], row["tokens"]) for row in results["rows"]] == [
        ("long", 63),
        ("compact", 9),
    ]
    assert all(row["us_per_paragraph"] == min(row["runs"]) > 0 for row in results["rows"])
    assert all(len(row["runs"]) == 2 for row in results["rows"]) and results["versions"]["trl"]


def test_weight_sync(run, servers):
    results = run("weight_sync.py", "--servers", servers[0].url, "--repeats", 3)
    assert results["full_by"] == "files" and results["adapter_seconds"] > 0
    for way in ("adapter", "full"):
        runs = results["runs"][way]
        assert len(runs) == 3 and results[f"{way}_seconds"] == sorted(runs)[1]
        assert results["spread"][way] == pytest.approx(max(runs) / min(runs) - 1)


@pytest.mark.slow
def test_growth(run, servers, tmp_path):
    sizes = ["--tiny", "--lengths", 40, "--steps", 3]
    options = [*sizes, "--picture", tmp_path / "growth.png"]
    results = run("growth.py", "--servers", servers[0].url, servers[1].url, *options)
    assert [(p["tokens"], p["group"]) for p in results["points"]] == [(40, 2), (40, 4)]
    for point in results["points"]:
        trainer = [point[f"share/{part}"] for part in ("rollout_wait", "weight_sync", "train")]
        assert sum(trainer) == pytest.approx(1) and point["memory_gib"] > 0
        assert sum(point[f"share/{part}"] for part in STAGES) == pytest.approx(1)
        assert len(point["runs"]) == 1 and point["spread"] == 0
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_offline(run):
    sizes = ["--responses", 8, "--characters", 2000, "--repeats", 2]
    label = run("offline.py", *sizes, "--stages", "label")["stages"]["label"]["this"]
    assert len(label["runs"]["8"]) == 2 and label["spread"]["8"] >= 0
    assert all(cost["seconds"] > 0 and cost["peak_mb"] > 10 for cost in label["runs"]["8"])


def test_verifier(monkeypatch, capsys, tmp_path):
    rows = json.loads((ROOT / "tests" / "data" / "verifier" / "pairs.json").read_text())[:6]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    options = ["--pairs", str(tmp_path / "pairs.json"), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["verifier.py", *options])
    runpy.run_path(str(BENCHMARKS / "verifier.py"), run_name="__main__")
    assert "this verifier" in capsys.readouterr().out


def test_gold_pairs(monkeypatch, capsys, tmp_path):
    golds = [{"answer": r"\frac{1}{2}"}, {"answer": "0.5"}, {"answer": "x+1"}]
    (tmp_path / "golds.json").write_text(json.dumps(golds))
    monkeypatch.setattr(sys, "argv", ["gold_pairs.py", str(tmp_path), "--workers", "1"])
    runpy.run_path(str(BENCHMARKS / "gold_pairs.py"), run_name="__main__")
    (pair,) = json.loads(capsys.readouterr().out)
    assert {*pair.values()} == {r"\frac{1}{2}", "0.5"}


def test_serving_makes_a_model(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from serving import make_model

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 800}
    make_model({**sizes, **heads}, tmp_path)
    assert len(load_tokenizer(str(tmp_path))) == 800
