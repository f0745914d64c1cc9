"""Generation: arguments, rows, files that survive a kill, a server with the OpenAI interface,
engines that die."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_api import ROWS, api_arguments
from stage_files import build_tasks
from tiny import save_model

from generation.arguments import GenerateArguments
from generation.generate import generate, main
from generation.generation_file import GenerationFile, read_generations, sample_seed
from generation.vllm_worker import Worker, _collect, device_groups, lora_rank
from rea_core.problems import problem_digest
from rea_core.row_files import write_json

# --- Arguments and rows ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "math_eval"}, "split is 'math_eval'; it must be one of math_cot"),
        ({"n_generate_sample": 0}, "must be at least 1"),
        ({"n_generate_sample": 4, "temperature": 0.0}, "n_generate_sample is 4 at temperature 0"),
        ({"api_model": None}, "api needs api_base and api_model"),
        ({"lora": "adapter"}, "lora .'adapter'. is for engines"),
        ({"prompt_template": "Solve it."}, r"must contain \{problem\}"),
    ],
)
def test_wrong_arguments_are_refused(problems, changes, message):
    with pytest.raises(ValueError, match=message):
        api_arguments(problems, "http://x/v1", **changes)


def test_output_is_named_after_model_problems_split_and_suffix():
    args = GenerateArguments(
        qaf="dataset/miniature/test.jsonl", model_dir="model/Some-LRM/", save_suffix="_base"
    )
    assert args.output_path == Path("output/Some-LRM/test_math_cot_base.json")


def test_unknown_recipe_key_is_one_line(tmp_path, problems):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("temperatur: 0.6\n")
    with pytest.raises(SystemExit, match="temperatur"):
        main(["--config", str(recipe), "--qaf", problems, "--model_dir", "m"])


def test_math_cot_prompts_are_those_of_training(problems):
    (first, *rest) = build_tasks(
        api_arguments(problems, "x", prompt_template="Q: {problem} \\boxed{{}}")
    )
    assert first.prompt.messages == [{"role": "user", "content": "Q: 0+0? \\boxed{}"}]
    assert len(rest) == 11 and first.row == ROWS[0]
    assert len(build_tasks(api_arguments(problems, "x", qaf_limit=3))) == 3


def test_seeds_depend_on_row_and_sample_only():
    seeds = {
        sample_seed(seed, row, sample)
        for seed in (0, 1)
        for row in ("1", "11")
        for sample in (0, 1, 11)
    }
    assert len(seeds) == 12 and all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(0, "p3", 1) == sample_seed(0, "p3", 1)


TOO_LONG = "This model's maximum context length is 64 tokens. However, you requested 99."
WITHHELD = "The response was filtered due to the prompt triggering a content management policy"
UNCLEAR = "Half a character in the 17th message"


@pytest.mark.parametrize(
    ("message", "end"), [(TOO_LONG, "no_room"), (WITHHELD, "refused"), (UNCLEAR, "refused")]
)
@pytest.mark.parametrize(
    "refused", [["p0"], ["p11"], ["p3", "p4", "p5"], [f"p{i}" for i in range(11)]]
)
def test_a_request_that_is_refused_is_unanswered(problems, serve, caplog, message, end, refused):
    asked = {row["problem"]: row["id"] for row in ROWS}
    server = serve(
        refuse=lambda body: message if asked.get(body["messages"][0]["content"]) in refused else ""
    )
    rows = read_generations(generate(api_arguments(problems, server.url)))
    ends = {row["id"]: {r["finish_reason"] for r in row["responses"]} for row in rows}
    assert ends == {row["id"]: {end if row["id"] in refused else "stop"} for row in ROWS}
    assert f"{len(refused)} rows are refused and count as unanswered: p" in caplog.text


def test_a_server_that_refuses_all_ends_the_run(problems, serve):
    server = serve(refuse=lambda body: TOO_LONG)
    with pytest.raises(ConnectionError, match="refuses a request: .*maximum context length"):
        generate(api_arguments(problems, server.url))
    many = [{"id": str(i), "problem": f"{i}?", "answer": "1"} for i in range(60)]
    Path(problems).write_text(json.dumps(many))  # a user's own file
    server = serve(refuse=lambda body: "" if body["messages"][0]["content"] == "0?" else TOO_LONG)
    with pytest.raises(ConnectionError, match="refuses a request"):
        generate(api_arguments(problems, server.url))
    assert len(server.bodies) < 60


# --- Files ----------------------------------------------------------------------------------------


def test_rows_are_kept_as_they_come_and_written_in_order(tmp_path):
    path = tmp_path / "out" / "a.json"
    output = GenerationFile(path, {"seed": 0})
    output.append(1, {"id": "b"})
    output.append(0, {"id": "a"})
    assert GenerationFile(path, {"seed": 0}).finished == {0, 1}
    output.close()
    assert path.read_text() == '[\n{"id": "a"},\n{"id": "b"}\n]\n'
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.json", "a.settings.json"]
    assert GenerationFile(path, {"seed": 0}).complete


def test_unfinished_last_line_is_made_again(tmp_path):
    output = GenerationFile(tmp_path / "a.json", {})
    output.append(0, {"id": "a"})
    output.append(1, {"id": "b"})
    part = tmp_path / "a.part.jsonl"
    part.write_bytes(part.read_bytes()[:-3])
    again = GenerationFile(tmp_path / "a.json", {})
    assert again.finished == {0}
    again.append(1, {"id": "b"})
    again.close()
    assert json.loads((tmp_path / "a.json").read_text()) == [{"id": "a"}, {"id": "b"}]


@pytest.mark.parametrize("complete", [False, True])
def test_file_of_other_settings_is_not_continued(tmp_path, complete):
    output = GenerationFile(tmp_path / "a.json", {"seed": 0, "temperature": 0.6})
    output.append(0, {"id": "a"})
    if complete:
        output.close()
    with pytest.raises(
        ValueError,
        match=r"other settings: temperature \(0.6, now 1.0\); give another --save_suffix",
    ):
        GenerationFile(tmp_path / "a.json", {"seed": 0, "temperature": 1.0})


def test_generation_files_are_checked(tmp_path):
    write_json(tmp_path / "a.json", [{"id": "1", "problem": "p", "answer": "1", "responses": []}])
    with pytest.raises(ValueError, match="row 0 has no responses"):
        read_generations(tmp_path / "a.json")
    write_json(tmp_path / "b.json", [{"id": "1", "problem": "p"}])
    with pytest.raises(ValueError, match=r"row 0 lacks \['answer', 'responses'\]"):
        read_generations(tmp_path / "b.json")


# --- A server -------------------------------------------------------------------------------------


def test_server_is_asked_once_per_response(problems, serve):
    server = serve()
    rows = json.loads(generate(api_arguments(problems, server.url)).read_text())
    asked = {
        "prompt_template": "{problem}",
        "system_prompt": None,
        "chat_template_kwargs": {},
        "prefill": "",
    }
    by = {"model_dir": "model/Some-LRM", "api_model": "policy-7"}
    assert [{k: v for k, v in row.items() if k != "responses"} for row in rows] == [
        row
        | {"prompt_format": asked, "answered_by": by}
        | {"problem_digest": problem_digest(row["problem"])}
        for row in ROWS
    ]
    assert len(server.bodies) == 24
    seeds = [sample_seed(0, "p5", 0), sample_seed(0, "p5", 1)]
    texts = [f"5+5? {seed}</think>\\boxed{{1}}" for seed in seeds]
    assert rows[5]["responses"] == [
        {"text": t, "num_tokens": len(t), "finish_reason": "stop"} for t in texts
    ]
    assert {body["model"] for body in server.bodies} == {"policy-7"}
    assert {body["temperature"] for body in server.bodies} == {0.6}


def test_failed_run_goes_on_where_it_stopped(problems, serve, tmp_path):
    whole = generate(api_arguments(problems, serve().url, save_suffix="_whole")).read_bytes()
    broken = serve(fail_after=13)
    with pytest.raises(SystemExit, match="the engine is gone"):
        main(flags(problems, broken.url))
    kept = len(
        (tmp_path / "output/Some-LRM/test_math_cot_again.part.jsonl").read_text().splitlines()
    )
    assert 0 < kept < 12
    server = serve()
    main(flags(problems, server.url))
    assert len(server.bodies) == 2 * (12 - kept)
    assert (tmp_path / "output/Some-LRM/test_math_cot_again.json").read_bytes() == whole
    main(flags(problems, server.url))  # complete: nothing is asked again
    assert len(server.bodies) == 2 * (12 - kept)


@pytest.mark.faults
def test_killed_run_yields_the_same_file(problems, serve, tmp_path):
    whole = generate(api_arguments(problems, serve().url, save_suffix="_whole")).read_bytes()
    server = serve(seconds=0.2)
    command = [sys.executable, "-m", "generation.generate", *flags(problems, server.url)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    part = tmp_path / "output/Some-LRM/test_math_cot_again.part.jsonl"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert part.exists() and not (tmp_path / "output/Some-LRM/test_math_cot_again.json").exists()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "output/Some-LRM/test_math_cot_again.json").read_bytes() == whole


def flags(qaf: str, url: str) -> list[str]:
    """The command line of `api_arguments(qaf, url, save_suffix="_again")`."""
    given = api_arguments(qaf, url, save_suffix="_again")
    keys = ("qaf", "model_dir", "prompt_template", "n_generate_sample", "output_dir", "save_suffix")
    keys += ("api", "api_base", "api_model", "max_concurrent_requests", "request_retries")
    return [part for key in keys for part in (f"--{key}", str(getattr(given, key)))]


def test_server_that_does_not_answer_is_named(problems):
    with pytest.raises(SystemExit, match="api_base: http://127.0.0.1:9/v1 does not answer"):
        main(flags(problems, "http://127.0.0.1:9/v1"))


# --- Engines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "n_gpu", "groups"),
    [
        ([], 1, [[]]),
        (["0"], 1, [["0"]]),
        (["0", "2", "3"], 1, [["0"], ["2"], ["3"]]),
        (["0", "1", "2", "3"], 2, [["0", "1"], ["2", "3"]]),
        (["0", "1", "2"], 2, [["0", "1"]]),
    ],
)
def test_gpus_are_grouped(visible, n_gpu, groups):
    assert device_groups(visible, n_gpu) == groups


def test_too_few_gpus():
    with pytest.raises(ValueError, match="n_gpu is 2, but only 1 GPUs are visible: 5"):
        device_groups(["5"], 2)


def test_engine_that_dies_stops_the_run():
    receiver, sender = Pipe(duplex=False)
    sender.send((3, [{"text": "a"}]))
    sender.close()
    process = SimpleNamespace(exitcode=-9, join=lambda: None)
    results = _collect({receiver: Worker(process, ["1"], sender)}, iter(()))
    assert next(results) == (3, [{"text": "a"}])
    with pytest.raises(RuntimeError, match="engine on GPU 1 ended with code -9"):
        next(results)


def test_prompt_without_room_is_unanswered_and_warned_about_once(tmp_path, caplog):
    write_json(
        tmp_path / "p.json",
        [{"problem": "x" * 99, "answer": ""}, {"problem": "y" * 99, "answer": "2"}],
    )
    model = str(save_model(tmp_path / "model"))
    args = GenerateArguments(
        qaf=str(tmp_path / "p.json"),
        model_dir=model,
        max_model_len=64,
        n_generate_sample=2,
        output_dir=str(tmp_path / "output"),
    )
    with caplog.at_level(logging.WARNING):
        rows = read_generations(generate(args))  # all prompts are too long, so no engine is started
    unasked = {
        "text": "",
        "num_tokens": 0,
        "finish_reason": "no_room",
        "logprobs": [],
        "prompt_thinking": "open",
    }
    assert [row["responses"] for row in rows] == [[unasked] * 2] * 2
    assert len([r for r in caplog.records if "2 prompts leave no room" in r.getMessage()]) == 1


@pytest.mark.parametrize(("rank", "engine_rank"), [(4, 8), (8, 8), (16, 16), (24, 32)])
def test_engine_takes_the_adapters_rank(tmp_path, rank, engine_rank):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
    assert lora_rank(str(tmp_path)) == engine_rank


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 2, ["0", "1"]),
        ("3,5", 2, ["3", "5"]),
        ("", 0, []),
        ("-1", 0, []),
        (None, 0, []),
        ("GPU-5f2e", 1, ["GPU-5f2e"]),
    ],
)
def test_engines_are_on_the_gpus_that_are_visible(monkeypatch, visible, count, expected):
    from generation.vllm_worker import _visible_gpus

    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _visible_gpus() == expected


def test_gpus_that_do_not_exist_do_not_become_the_cpu(monkeypatch):
    from generation.vllm_worker import _visible_gpus

    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES is '7', but torch sees no such GPU"):
        _visible_gpus()


def test_an_engine_that_cannot_load_its_model_ends_the_command_with_one_line(tmp_path, monkeypatch):
    from generation import generate, vllm_worker

    def die(*_: object) -> None:
        raise vllm_worker.EngineError("engine on the CPU ended with code 1; its error is above")

    monkeypatch.setattr(vllm_worker, "run_engines", die)
    (tmp_path / "p.json").write_text('[{"problem": "3+4?", "answer": "7"}]')
    flags = [
        "--qaf",
        str(tmp_path / "p.json"),
        "--model_dir",
        str(save_model(tmp_path / "model")),
        "--output_dir",
        str(tmp_path),
    ]
    with pytest.raises(SystemExit, match="^error: engine on the CPU ended with code 1"):
        generate.main(flags)
