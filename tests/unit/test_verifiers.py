"""Verifiers next to mathematics: functions of one's own, exact text, multiple choice, programs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import small_runs
from tiny import save_model

from generation import clean_dataset, math_verify_all, sft_data
from generation.answer_judge import AnswerJudge
from generation.verifiers.bounded import run_bounded
from generation.verifiers.choice import choice
from generation.verifiers.exact import exact
from generation.verifiers.pool import Asked, FunctionPool, facts_of
from generation.verifiers.program import program
from rea_rl import grpo

ROOT = Path(__file__).parents[2]
OWN = """
import os, subprocess, sys, time

def right(responses, rows):
    print("printed by a verifier")
    for response in responses:
        if response == "hang":
            time.sleep(60)
        if response.startswith("spawn"):
            child = subprocess.Popen(["sleep", "60"])
            open(response.partition(" ")[2], "w").write(f"{child.pid} {os.getpid()}")
            time.sleep(60)
        if response == "die":
            os._exit(3)
        if response == "leave":
            sys.exit(0)
        if response == "raise":
            raise KeyError("tests")
        if response == "fill":
            bytearray(64 << 30)
    return [row["answer"] in response for response, row in zip(responses, rows, strict=True)]

def short(responses, rows):
    return [True]

def number(responses, rows):
    return [0.5 for _ in responses]

def no_list(responses, rows):
    return True

def by_place(responses, rows):
    return dict(enumerate(True for _ in responses))

def interrupted(responses, rows):
    raise KeyboardInterrupt

def fork(responses, rows):
    if os.fork() == 0:
        if "raise" in responses:
            raise SystemExit(3)
        return [False for _ in responses]
    return [True for _ in responses]

class Silent(Exception):
    def __str__(self):
        raise TypeError("no text")

def silent(responses, rows):
    if "raise" in responses:
        raise Silent()
    rows.clear()
    return iter([True] * len(responses))

def needs_column(responses, rows):
    return [row["tests"] == "x" for row in rows]

constant = 3
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


def judge(pool: FunctionPool, *texts: str) -> list[bool]:
    verdicts = [pool.submit(facts_of({"answer": "4"}), Asked(text)) for text in texts]
    return [verdict.result() for verdict in verdicts]


def test_one_bad_response_costs_no_other_and_is_counted(own, caplog, capfd):
    texts = ["4", "hang", "5", "die", "4!", "raise", "leave", "fill", "44"]
    others, begin = set(psutil.Process().children()), time.monotonic()
    with FunctionPool(f"{own}:right", 2, timeout=0.6) as pool, caplog.at_level(logging.WARNING):
        verdicts = judge(pool, *texts)
        started = set(psutil.Process().children()) - others
        workers = [p for p in started if "spawn_main" in str(p.cmdline())]
    assert verdicts == ["4" in text for text in texts]
    assert pool.stats == {"pairs": 9, "timeouts": 1, "crashes": 1, "errors": 3}
    assert time.monotonic() - begin < 30
    assert all(
        word in caplog.text for word in ("'hang'", "KeyError", "MemoryError", "own.py:right")
    )
    assert len(workers) >= 2 and not any(worker.is_running() for worker in workers)
    assert "printed" not in capfd.readouterr().out


def test_children_that_a_verifier_forks_do_not_answer(own):
    with FunctionPool(f"{own}:fork", 1, timeout=5) as pool:
        assert [judge(pool, text) for text in ("a", "raise", "b")] == [[True]] * 3
        assert set(pool.stats.values()) == {0, 3}


def test_an_error_without_a_message_is_one_of_its_response(own, caplog):
    with FunctionPool(f"{own}:silent", 1, timeout=5) as pool:
        assert judge(pool, "a") + judge(pool, "raise") + judge(pool, "b") == [True, False, True]
        assert pool.stats["errors"] == 1 and "Silent: its message cannot be shown" in caplog.text


def has_ended(*pids: int) -> bool:
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_children_of_a_verifier_end_with_its_time(own, tmp_path):
    with FunctionPool(f"{own}:right", 1, timeout=1) as pool:
        assert judge(pool, f"spawn {tmp_path}/pids") == [False] and pool.stats["timeouts"] == 1
        assert has_ended(*map(int, (tmp_path / "pids").read_text().split()))
        assert judge(pool, "4") == [True]


def test_a_verifier_that_hangs_ends_with_a_killed_trainer(own, tmp_path):
    program = (
        "from generation.verifiers.pool import *\n"
        f"pool = FunctionPool('{own}:right', 1, timeout=60)\n"
        f"pool.submit('{{}}', Asked('spawn {tmp_path}/pids')).result()"
    )
    trainer = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 30
    while not ((tmp_path / "pids").exists() and (tmp_path / "pids").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    trainer.kill()
    trainer.wait()
    assert has_ended(*map(int, (tmp_path / "pids").read_text().split()))


def test_closing_leaves_no_verdict_open(own):
    pool = FunctionPool(f"{own}:right", 2, timeout=60)
    verdicts = [pool.submit(facts_of({"answer": "4"}), Asked("hang")) for _ in range(9)]
    pool.close()
    assert [verdict.result(timeout=5) for verdict in verdicts] == [False] * 9
    with pytest.raises(RuntimeError, match="not active"):
        pool.submit("{}", Asked("4"))


def test_the_event_loop_goes_on_while_a_verifier_works(own):
    async def longest_pause(pool: FunctionPool) -> float:
        judged = asyncio.create_task(pool.averify(facts_of({"answer": "4"}), "hang"))
        longest = 0.0
        while not judged.done():
            start = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - start)
        assert judged.result() is False
        return longest

    with FunctionPool(f"{own}:right", 1, timeout=1) as pool:
        assert asyncio.run(longest_pause(pool)) < 0.9


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exakt", "must be math, exact, choice, program, or name a function"),
        ("nowhere.py:right", "there is no file nowhere.py"),
        ("nowhere_at_all:right", "there is no module nowhere_at_all|No module named"),
        ("{own}:wrong", "has no attribute 'wrong'"),
        ("{own}:constant", "constant is int, and no function"),
        ("{own}:short", "it gave 1 verdicts for 2 responses"),
        ("{own}:number", "it gave 0.5; each verdict must be True or False"),
        ("{own}:no_list", "'bool' object is not iterable"),
        ("{own}:by_place", "it gave a dict; give a list"),
        ("{own}:interrupted", "KeyboardInterrupt"),
        ("{own}:needs_column", "KeyError: 'tests'"),
    ],
)
def test_a_command_refuses_a_verifier_that_cannot_judge(own, workplace, name, words):
    name = name.format(own=own)
    assert re.search(words, small_runs.refusal("grpo", workplace, verifier=name))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    return small_runs.make_workplace(tmp_path_factory.mktemp("workplace"))


def test_own_verdicts_are_what_rewards_and_advantages_are_made_of(own, workplace, tmp_path):
    file = tmp_path / "every_other.py"
    file.write_text(
        "import itertools\nturn = itertools.count()\n"
        "def right(responses, rows):\n    return [next(turn) % 2 == 1 for _ in responses]\n"
    )
    with small_runs.policy_server(workplace / "model") as server:
        small_runs.run(
            "grpo",
            workplace,
            verifier=f"{file}:right",
            policy_server=server.url,
            output_dir=tmp_path / "out",
            lr_scheduler_type="constant",
        )
    lines = [
        json.loads(line)
        for path in sorted((tmp_path / "out/rollouts").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert 0 < sum(line["correct"] for line in lines) < len(lines)
    assert all(line["rewards"]["accuracy"] == line["correct"] for line in lines)
    assert any(line["advantage"] for line in lines)
    words = small_runs.refusal(
        "grpo", workplace, policy_server="http://127.0.0.1:9/v1", output_dir=tmp_path / "out",
        max_steps=4, lr_scheduler_type="constant",
    )  # fmt: skip
    assert "verifier" in words and "every_other.py:right" in words
    file.write_text(f"{file.read_text()}# changed\n")
    words = small_runs.refusal(
        "grpo", workplace, policy_server="http://127.0.0.1:9/v1", output_dir=tmp_path / "out",
        max_steps=4, lr_scheduler_type="constant", verifier=f"{file}:right",
    )  # fmt: skip
    assert "verifier_version was" in words


SUM = "```python\ndef add(a, b):\n    return a + b\n```"
SCRIPT = "```\nprint(sum(map(int, input().split())))\n```"
ASSERTS = {"tests": ["assert add(2, 3) == 5", "assert add(-1, 1) == 0"]}
PAIRS = {"tests": [{"input": "2 3\n", "output": "5"}, {"input": "0 0", "output": "0\n"}]}
CHOICES = {"choices": ["red", "dark blue", "green"]}

ONE_LETTER = [
    "B.", "b)", "option b", "( B )", "[B]", "{B}", '"B"', "`B`", "\\(B\\)", "\\boxed{\\{B\\}}",
    "<answer>B</answer>", "B - dark blue", "answer=B", "\uff22", "\\boxed{\\text{B}}", "B;",
    "The answer is B, not C.", "The answer is B, A is wrong.", "Both A and C are wrong. B",
    "Hence, B is the answer.", "A is incorrect, B is correct.", "I don't know, B", "B or B",
]  # fmt: skip
SEVERAL_LETTERS = [
    "\\boxed{A, B}", "A and B", "B or C", "The answer is B and C.", "(B), (C)", "B/C", "A & B",
    "The answer is (B) or (C).", "\\boxed{\\text{B or C}}", "The answer is B, C and D",
]  # fmt: skip


@pytest.mark.parametrize(
    ("verifier", "text", "row", "right"),
    [
        (exact, "It is \\boxed{a  red fox}.", {"answer": "a red fox"}, True),
        (exact, "\\boxed{\\text{a red fox}}", {"answer": "a red fox"}, True),
        (exact, "\\boxed{A red fox}", {"answer": "a red fox"}, False),
        (exact, "\n\n**Final Answer:**\n\na red fox", {"answer": "a red fox"}, True),
        (exact, "a red fox, or two", {"answer": "a red fox"}, False),
        (exact, "Answer = fox.", {"answer": "fox", "answer_markers": ["Answer ="]}, True),
        (exact, "", {"answer": ""}, False),
        (choice, "\\boxed{B}", {"answer": "B"}, True),
        (choice, "\\boxed{\\text{(B) dark blue}}", {"answer": "B"}, True),
        (choice, "(b)", {"answer": "B"}, True),
        (choice, "The answer is **B**, since it is dark.", {"answer": "B"}, True),
        (choice, "Not A. The correct option is (B).", {"answer": "B"}, True),
        (choice, "First A.\n\nAnswer: C", {"answer": "B"}, False),
        (choice, "Since it is dark, it must be (B).", {"answer": "B"}, True),
        (choice, "A. First look.\n\nAnswer: B", {"answer": "B"}, True),
        (choice, "Answer: (B) because A is wrong.", {"answer": "B"}, True),
        (choice, "I think B is correct.", {"answer": "B"}, True),
        (choice, "The answer is A because it is.", {"answer": "A"}, True),
        (choice, "**answer is b**", {"answer": "B"}, True),
        (choice, "Answer: A red fox", {"answer": "A"}, False),
        (choice, "A good question.", {"answer": "A"}, False),
        (choice, "I do not know", {"answer": "I"}, False),
        (choice, "\\boxed{dark blue}", {"answer": "1", **CHOICES}, True),
        (choice, "B", {"answer": "dark blue", **CHOICES}, True),
        (choice, "B", {"answer": "2", **CHOICES}, False),
        (choice, "", {"answer": "A"}, False),
        *((choice, text, {"answer": "B"}, True) for text in ONE_LETTER),
        *((choice, text, {"answer": "B"}, False) for text in SEVERAL_LETTERS),
        (program, f"So:\n{SUM}", ASSERTS, True),
        (program, f"Wrong:\n```\nadd = max\n```\nRight:\n{SUM}", ASSERTS, True),
        (program, f"{SUM}\nor\n```\nadd = max\n```", ASSERTS, False),
        (program, SUM, {"answer": "assert add(2, 3) == 6"}, False),
        (program, SUM.replace("return", "import os; os._exit(0)"), ASSERTS, False),
        (program, "```\nimport sys; sys.exit(0)\n```", ASSERTS, False),
        (program, SUM.replace("return", "while True: pass"), ASSERTS, False),
        (program, SUM.replace("    return", "    bytearray(3 << 30)\n    return"), ASSERTS, False),
        (program, SCRIPT, PAIRS, True),
        (program, SCRIPT.replace("))))", "))))\nimport sys; sys.exit()"), PAIRS, True),
        (program, SCRIPT.replace("sum", "max"), PAIRS, False),
        (program, "", PAIRS, False),
    ],
)
def test_shipped_verifiers_tell_right_from_wrong(verifier, text, row, right):
    row = {"verifier_timeout": 3.0, "prompt_thinking": "open", **row}
    responses = [f"Is it so?</think>{text}", text]  # the second never ended its thinking
    assert verifier(responses, [row, row]) == [right, False]


def test_a_program_has_no_other_folder_network_or_time(tmp_path):
    assert run_bounded("open('a', 'w').write('b'); print(open('a').read())") == "b\n"
    assert run_bounded("open('a', 'wb').write(bytes(9 << 20))") is None
    assert run_bounded("fs = [open(f'{i}', 'w') for i in range(100)]") is None
    assert run_bounded("import os; print(os.environ.get('SECRET'))") == "None\n"
    marker = tmp_path / "marker"
    late = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(1.5)\n"
    late += f"    open({str(marker)!r}, 'w')"
    begin = time.monotonic()
    assert run_bounded(f"{late}\nelse:\n    print(1)") == "1\n"
    assert run_bounded("import time; time.sleep(60)", seconds=0.5) is None
    assert run_bounded("import os\nwhile True: os.fork()", seconds=0.5) is None
    time.sleep(max(begin + 2.5 - time.monotonic(), 0))
    assert not marker.exists(), "a child of a program has outlived it, or wrote elsewhere"


def test_a_script_cannot_find_the_right_output_or_judge_itself():
    found = run_bounded("import sys; print(sys._getframe(1).f_locals['job'])", stdin="2 3\n")
    assert found and "'tests': []" in found and "'end': ''" in found
    row = {"tests": [{"input": "2 3\n", "output": "4217"}], "verifier_timeout": 5.0}
    anything = "class A(str):\n    __eq__ = __ne__ = lambda *_: True\n    __hash__ = str.__hash__\n"
    # looks for digits that would be the right output
    look = "import os, re, sys\nprint(*re.findall(r'\\b4\\d{{3}}\\b', {}))".format
    for code in (
        f"{anything}print(A('4'))",
        look("str(sys._getframe(1).f_locals)"),
        look("open(f'/proc/{os.getppid()}/cmdline').read()"),
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nprint(5)",
        look("open('job.json').read()"),
    ):
        assert program([f"</think>```\n{code}\n```"], [row]) == [False], code


def write_responses(path: Path, column: dict, *texts: str) -> str:
    responses = [{"text": t, "num_tokens": len(t), "finish_reason": "stop"} for t in texts]
    responses = [{**r, "prompt_thinking": "open"} for r in responses]
    row = {"id": "p", "problem": "3+4?", "answer": "B", **column, "responses": responses}
    path.write_text(json.dumps([row]))
    return str(path)


def test_scores_are_of_the_verifier_that_was_named_and_say_so(own, tmp_path):
    model = str(save_model(tmp_path / "model"))
    texts = ["Hm.</think>The answer is B.", "Hm. B</think>No."]
    file = write_responses(tmp_path / "a.json", {}, *texts)
    other = write_responses(tmp_path / "b.json", {}, *texts)
    results = ["--results", str(tmp_path / "log.json")]
    shares = {"choice": 0.5, f"{own}:right": 1.0, "math": 0.0, "exact": 0.0}
    for name, share in shares.items():
        math_verify_all.main([file, "--model_dir", model, "--verifier", name, *results])
        scores = json.loads((tmp_path / "a.scores.json").read_text())
        assert scores["groups"]["all"]["accuracy"]["value"] == share, name
        made = scores["made_by"]["scoring"]
        assert made["verifier"] == name.rpartition("/")[2] and len(made["verifier_version"]) == 12
    command = [other, "--model_dir", model, "--verifier", "choice", *results]
    with pytest.raises(SystemExit, match=r"verifier \('exact' and 'choice'\)"):
        math_verify_all.main([*command, "--base", str(tmp_path / "a.scores.json")])
    math_verify_all.main(command)
    lines = [json.loads(x) for x in (tmp_path / "b.verdicts.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines] == ["The answer is B.", "No."]


def test_scoring_says_how_often_a_verifier_failed(own, tmp_path, capsys):
    model = str(save_model(tmp_path / "model"))
    file = write_responses(tmp_path / "a.json", {}, "raise", "It is B", "raise")
    flags = ["--verifier", f"{own}:right", "--results", str(tmp_path / "log.json")]
    math_verify_all.main([file, "--model_dir", model, *flags])
    assert "count as wrong: errors 2" in capsys.readouterr().err
    scores = json.loads((tmp_path / "a.scores.json").read_text())
    assert scores["verifier"] == "own.py:right"
    assert scores["groups"]["all"]["accuracy"]["value"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("flags", "column", "words"),
    [
        ({"verifier": "exact", "mode": "original"}, {}, "only the verifier math has modes"),
        (
            {"verifier": "choice"},
            {"answer": "seven"},
            "row 'p': verifier choice: the answer 'seven'",
        ),
        ({"verifier": "choice"}, {"choices": ["x"]}, "none of its 1 choices"),
        ({"verifier": "program"}, {"tests": []}, "tests are no Python|no tests"),
        ({"verifier": "program"}, {"tests": ["assert ("]}, "its tests are no Python"),
        ({"verifier": "nowhere.py:f"}, {}, "there is no file nowhere.py"),
    ],
)
def test_scoring_refuses_what_a_verifier_cannot_judge(tmp_path, flags, column, words):
    if not column.get("tests", True):
        column = {"tests": [], "answer": ""}
    file = write_responses(tmp_path / "a.json", column, "B")
    command = [part for key, value in flags.items() for part in (f"--{key}", value)]
    model = str(save_model(tmp_path / "model"))
    with pytest.raises(SystemExit) as stop:
        math_verify_all.main([file, "--model_dir", model, *command])
    assert re.search(words, str(stop.value)) and "\n" not in str(stop.value)


def test_baselines_and_the_judge_ask_the_verifier(own, tmp_path):
    paths = write_responses(tmp_path / "paths.json", {}, "Hm. Hm. Hm. Hm.</think>B, or B")
    row = json.loads(Path(paths).read_text())[0]
    short = {**row["responses"][0], "text": "Hm.</think>It is B", "num_tokens": 3}
    cut = {**row, "id": "p/0", "problem_id": "p", "path": 0, "cut": 0, "responses": [short]}
    (tmp_path / "finished.json").write_text(json.dumps([cut]))
    command = [str(tmp_path / "finished.json"), "--paths", paths]
    command += ["--sft_out", str(tmp_path / "s.json"), "--rpo_out", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit, match="none of its 1 responses is cut, shorter"):
        sft_data.main(command)
    sft_data.main([*command, "--verifier", "choice"])
    assert "It is B" in (tmp_path / "s.json").read_text()
    paragraphs = ["So the answer is B.", "So the answer is x1."]
    with FunctionPool("choice", 1) as pool:
        labels = AnswerJudge(pool).labels(paragraphs, facts_of({"answer": "B"}))
    assert labels == ["Right Result", "Wrong Result"]


def test_the_card_of_a_filtered_set_names_the_verifier(tmp_path):
    model = str(save_model(tmp_path / "model"))
    file = write_responses(tmp_path / "a.json", {}, "Hm.</think>B")
    results = ["--results", str(tmp_path / "log.json")]
    math_verify_all.main([file, "--model_dir", model, "--verifier", "choice", *results])
    (tmp_path / "problems.json").write_text('[{"id": "p", "problem": "3+4?", "answer": "B"}]')
    verdicts = ["--verdicts", str(tmp_path / "a.scores.json"), "--out", str(tmp_path / "d/k.json")]
    clean_dataset.main(["--dataset", str(tmp_path / "problems.json"), *verdicts])
    assert "of the verifier choice |" in (tmp_path / "d/README.md").read_text()


def test_the_example_and_the_one_of_the_page_can_be_named(workplace, tmp_path, monkeypatch):
    page = (ROOT / "docs/verifiers.md").read_text()
    (tmp_path / "my_verifier.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    example = ROOT / "examples/custom_verifier.py"
    with FunctionPool(f"{example}:near", 1) as pool:
        facts = facts_of({"answer": "3.14"})
        texts = ["Hm.</think>So \\boxed{3.15}.", "3.14</think>\\boxed{3}", "", "</think>3.14 or so"]
        verdicts = [pool.submit(facts, Asked(text, "open")).result() for text in texts]
    assert verdicts == [True, False, False, True]
    monkeypatch.chdir(tmp_path)
    for name in (
        f"{example}:near",
        "my_verifier.py:short_and_right",
        "my_verifier:short_and_right",
    ):
        grpo.main([*small_runs.arguments("grpo", workplace, verifier=name), "--dry_run"])
