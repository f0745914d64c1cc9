"""A bad row among good ones: it is left unanswered, counted and named, and the command continues.
Many of them, or all, end it with one line."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from rollouts import VERSION, ended, labels, make_engine, make_row, policy
from scripted_server import ScriptedServer, completion
from small_runs import logged, make_workplace, policy_server, refusal, run
from tiny import make_tokenizer, save_model

from generation import answer_judge, generate
from generation.arguments import GenerateArguments
from generation.generation_file import GenerationFile
from generation.vllm_worker import EngineTask, _submit
from miniature import judge as oracle
from rea_core.row_files import write_json
from rea_rl.rollout.record import Batch, rollout_metrics

PICKY = (
    "{% for m in messages %}{% if 'BAD' in m['content'] %}{{ raise_exception('no BAD') }}"
    "{% endif %}{% endfor %}"
)


def make_picky(folder: Path) -> str:
    """A model whose template refuses messages with BAD."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = PICKY + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def picky(tmp_path_factory) -> str:
    return make_picky(save_model(tmp_path_factory.mktemp("picky") / "model"))


# --- Generation -----------------------------------------------------------------------------------


def generated(folder: Path, model: str, problems: list[str], monkeypatch, **changes) -> list[dict]:
    """Rows that engines made, which answer 7 to all that they are asked."""

    def run_engines(tasks, args):
        for task in tasks:
            yield task.index, [{"text": "7", "num_tokens": 1, "finish_reason": "stop"}]

    monkeypatch.setattr("generation.vllm_worker.run_engines", run_engines)
    write_json(folder / "p.json", [{"problem": text, "answer": "7"} for text in problems])
    settings = {"qaf": str(folder / "p.json"), "model_dir": model, "output_dir": str(folder / "o")}
    args = GenerateArguments(**settings, **changes)
    return json.loads(generate.generate(args).read_text())


@pytest.mark.parametrize("bad", [[0], [2], [0, 1, 3], [4]])
def test_a_row_that_the_template_refuses_is_unanswered(tmp_path, picky, monkeypatch, caplog, bad):
    texts = [f"{i}? {'BAD' if i in bad else ''}" for i in range(5)]
    rows = generated(tmp_path, picky, texts, monkeypatch)
    ends = [row["responses"][0]["finish_reason"] for row in rows]
    assert ends == ["refused" if i in bad else "stop" for i in range(5)]
    assert "no BAD" in rows[bad[0]]["responses"][0]["cause"]
    ids = ", ".join(map(str, bad))
    assert f"p.json: {len(bad)} rows are refused and count as unanswered: {ids}; " in caplog.text


@pytest.mark.parametrize(
    ("good", "bad", "changes", "says"),
    [
        (0, 3, {}, "no row gets an answer: .*p.json: row '0': .*no BAD"),
        (9, 17, {}, r"17 rows in a row \(max_unanswered\) get no answer: .*row '25': .*no BAD"),
        (9, 3, {"max_unanswered": 2}, "3 rows in a row .* row '11'"),
        (9, 16, {}, None),
        (9, 30, {"max_unanswered": 30}, None),
    ],
)
def test_many_rows_that_the_template_refuses_end_the_run(
    tmp_path, picky, monkeypatch, good, bad, changes, says
):
    texts = [f"{i}?" for i in range(good)] + ["BAD"] * bad
    if says is None:
        rows = generated(tmp_path, picky, texts, monkeypatch, **changes)
        assert sum(row["responses"][0]["finish_reason"] == "refused" for row in rows) == bad
        return
    with pytest.raises(ValueError, match=says):
        generated(tmp_path, picky, texts, monkeypatch, **changes)
    assert not (tmp_path / "o/model/p_math_cot.json").exists()


@pytest.mark.parametrize("judge", [answer_judge, oracle])
def test_a_row_that_cannot_be_judged_is_unanswered(tmp_path, judge, capsys):
    asked = {"messages": [{"role": "user", "content": "?"}], "answer": "7"}
    rows = [{**asked, "id": f"r{i}", "paragraph": "The result is 7."} for i in range(3)]
    del rows[1]["paragraph"]
    write_json(tmp_path / "c.json", rows)
    flags = ["--qaf", str(tmp_path / "c.json"), "--split", "json", "--model_dir", "judge"]
    judge.main([*flags, "--output_dir", str(tmp_path)])
    made = json.loads((tmp_path / "judge/c_json.json").read_text())
    assert [row["responses"][0]["finish_reason"] for row in made] == ["stop", "refused", "stop"]
    assert made[0]["responses"][0]["text"].startswith("Yes")
    assert "row 'r1' has no 'paragraph', which is judged" in capsys.readouterr().err
    write_json(tmp_path / "d.json", rows[1:2])
    flags[1] = str(tmp_path / "d.json")
    with pytest.raises(SystemExit, match="error: no row gets an answer: .*row 'r1' has no 'parag"):
        judge.main([*flags, "--output_dir", str(tmp_path)])


def test_many_prompts_without_room_end_the_run(tmp_path, picky, monkeypatch):
    texts = ["1?"] * 3 + ["1? " * 40] * 17
    changes = {"max_model_len": 64, "prompt_template": "{problem}"}
    with pytest.raises(ValueError, match=r"17 rows in a row .* leave no room in max_model_len"):
        generated(tmp_path, picky, texts, monkeypatch, **changes)


def test_a_resumed_run_tells_the_rows_that_it_does_not_ask_again(tmp_path, caplog):
    missing = {"text": "", "num_tokens": 0, "finish_reason": "refused", "cause": "no BAD"}
    answered = missing | {"text": "7", "finish_reason": "stop"}
    with GenerationFile(tmp_path / "a.json", {}) as output:
        for i, response in enumerate((answered, missing, answered)):
            output.append(i, {"id": f"p{i}", "responses": [response]})
    caplog.set_level(logging.INFO)
    with GenerationFile(tmp_path / "a.json", {}) as output:
        assert output.finished == {0, 1, 2}
    assert "continuing after 3 finished rows" in caplog.text
    assert "1 of them are unanswered, and are not asked again: p1; delete the file" in caplog.text


@pytest.mark.parametrize("kind", ["ValueError", "VLLMValidationError"])
def test_a_prompt_that_an_engine_refuses_ends_no_other(kind):
    from vllm import exceptions

    asked, refusal_of = [], {"ValueError": ValueError, **vars(exceptions)}[kind]

    def add_request(name, prompt, params, lora_request):
        if prompt["prompt_token_ids"] == []:
            raise refusal_of("The decoder prompt cannot be empty")
        asked.append(name)

    args = SimpleNamespace(
        lora=None, temperature=0.6, top_p=1.0, max_tokens=4, logprobs=None, n_generate_sample=2
    )
    tasks = [EngineTask(i, ids, [0, 1]) for i, ids in enumerate(([5], [], [6]))]
    refused = _submit(SimpleNamespace(add_request=add_request), tasks, args)
    assert refused == [(1, "the engine refuses the prompt: The decoder prompt cannot be empty")]
    assert asked == ["0/0", "0/1", "2/0", "2/1"]


# --- Rollouts -------------------------------------------------------------------------------------

TOO_LONG = 400, {"error": {"message": "The prompt is too long."}}


def refusing(problems: set[int], others=None):
    """A policy server that refuses to sample for some problems of `make_row`."""
    texts = [ended(make_row(i)["prompt"])[:-1] for i in problems]
    answer = others or policy()
    return lambda body: TOO_LONG if body["prompt"] in texts else answer(body)


@pytest.mark.parametrize("revision", [False, True])
def test_a_refused_prompt_has_no_response_and_all_others_have(tmp_path, caplog, revision):
    rows = [make_row(i) for i in range(4) for _ in range(2)]
    with (
        ScriptedServer(refusing({1}), [VERSION]) as first,
        ScriptedServer(labels(0.2, 0.9, 0.1, 0.9), ["refl"]) as second,
        make_engine(tmp_path, first.url, *[second.url] * revision) as engine,
    ):
        rollouts = engine.run(rows, Batch(0, VERSION, revision))
        assert engine.counts["servers/refused_requests"] == 2
    assert [r.problem_id for r in rollouts if r.is_missing] == ["p1"] * 2 * (1 + revision)
    assert all(r.correct for r in rollouts if not r.is_missing)
    (missing, *_) = [r for r in rollouts if r.is_missing]
    assert (missing.text, missing.num_tokens, missing.correct) == ("", 0, False)
    metrics = rollout_metrics(rollouts, revision)
    assert metrics["rollout/unanswered"] == 0.25 and metrics["rollout/accuracy"] == 1.0
    assert "refuses 2 responses, whose groups give no signal, of problems p1; " in caplog.text


def test_many_refused_prompts_end_the_run(tmp_path):
    with (
        ScriptedServer(refusing(set(range(1, 40))), [VERSION]) as server,
        make_engine(tmp_path, server.url) as engine,
    ):
        for first in (0, 8):  # 7 refused, then 8 more; the next one is one too many
            engine.run([make_row(i) for i in range(first, first + 8)], Batch(0, VERSION, False))
        with pytest.raises(ConnectionError, match=r"refuses 17 problems in a row; .*too long"):
            engine.run([make_row(i) for i in range(16, 24)], Batch(2, VERSION, False))


@pytest.mark.parametrize("who", ["finish", "labels"])
def test_a_refused_part_of_a_revision_leaves_the_original(tmp_path, who, caplog):
    def finish(body):
        return TOO_LONG if body["max_tokens"] == 16 and who == "finish" else policy()(body)

    reflection = (lambda body: TOO_LONG) if who == "labels" else labels(0.2, 0.9, 0.1, 0.9)
    with (
        ScriptedServer(finish, [VERSION]) as first,
        ScriptedServer(reflection, ["refl"]) as second,
        make_engine(tmp_path, first.url, second.url) as engine,
    ):
        original, revision = engine.run([make_row()], Batch(0, VERSION, True))
        assert engine.counts["servers/refused_requests"] == 1
    assert original.correct and not original.is_missing
    assert (revision.kind == "original") is (who == "finish") and "too long" in caplog.text


# --- Training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = make_workplace(tmp_path_factory.mktemp("workplace"))
    make_picky(folder / "model")
    return folder


@pytest.mark.parametrize("packing", ["none", "shared_prefix"])
@pytest.mark.parametrize("bad", [{3}, {1, 2, 3, 5, 6, 7}])  # of eight, two in a step
def test_grpo_trains_on_all_other_problems(tmp_path, workplace, capsys, bad, packing):
    with policy_server(workplace / "model") as server:
        answer = server.complete

        def complete(body):
            if body["max_tokens"] == 1:  # whether it answers at all
                return completion([1])
            text = make_tokenizer().decode(body["prompt"])
            return TOO_LONG if any(f"{i}+1" in text for i in bad) else answer(body)

        server.complete = complete
        changes = {"max_steps": "4", "packing": packing, "beta": "0.1"}
        run("grpo", workplace, output_dir=tmp_path, policy_server=server.url, **changes)
    found = [
        json.loads(line)
        for file in sorted(tmp_path.glob("rollouts/step-*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    missing = [row for row in found if row["finish_reason"] == "refused"]
    assert {row["problem_id"] for row in missing} == {f"p{i}" for i in bad}
    assert {(row["advantage"], len(row["prompt_ids"])) for row in missing} == {(0.0, 1)}
    assert "of problems p" in capsys.readouterr().err
    assert logged(tmp_path, "servers/refused_requests")[-1] == len(missing) == 2 * len(bad)
    losses = logged(tmp_path)
    assert len(losses) == 4 and all(map(math.isfinite, losses))
    assert logged(tmp_path, "non_finite_steps") == [0.0] * 4


@pytest.mark.parametrize("program", ["sft", "dpo", "grpo"])
def test_a_row_that_the_template_refuses_is_left_out(tmp_path, workplace, program, capsys):
    def row(i: int, text: str) -> dict:
        if program == "grpo":
            return {"id": f"p{i}", "problem": f"{text}{i}+1?", "answer": str(i + 1)}
        prompt = [{"role": "user", "content": f"{text}{i}"}]
        return {"prompt": prompt, "completion": "ab", "chosen": "ab", "rejected": "cd"}

    file = tmp_path / "rows.json"
    flags = {"dataset_name": file, "output_dir": tmp_path / "out", "max_steps": "1"}
    write_json(file, [row(i, "BAD" if i in (1, 7) else "") for i in range(18)])
    with policy_server(workplace / "model") as server:
        served = {"policy_server": server.url} if program == "grpo" else {}
        run(program, workplace, **flags, **served)
        told = "rows 1 ('p1'), 7 ('p7'); the first: row 1 ('p1'): " if served else "rows 1, 7; "
        assert (
            f"rows.json: 2 of 18 rows are refused and left out: {told}" in capsys.readouterr().err
        )
        write_json(file, [row(i, "" if i < 9 else "BAD") for i in range(40)])
        said = refusal(program, workplace, **flags | {"output_dir": tmp_path / "b"}, **served)
        assert "17 rows in a row are refused; row 25" in said and "no BAD" in said


def test_rows_that_are_too_long_are_named(tmp_path, workplace, capsys):
    rows = [{"prompt": "1?", "completion": "a" * (99 if i == 2 else 2)} for i in range(8)]
    write_json(tmp_path / "r.json", rows)
    run(
        *("sft", workplace),
        **{"dataset_name": tmp_path / "r.json", "output_dir": tmp_path / "out"},
        **{"max_length": "32", "max_steps": "1"},
    )
    assert "r.json: 7 rows; 1 over 32 tokens are left out: rows 2" in capsys.readouterr().err
