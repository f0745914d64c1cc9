"""Verifiers next to mathematics: functions of one's own, exact text, multiple choice, programs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from pathlib import Path

import psutil
import pytest
import small_runs

from generation.verifiers.pool import Asked, FunctionPool, facts_of

OWN = """
import os, sys, time

def right(responses, rows):
    print("printed by a verifier")
    for response in responses:
        if response == "hang":
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
    begin = time.monotonic()
    with FunctionPool(f"{own}:right", 2, timeout=0.6) as pool, caplog.at_level(logging.WARNING):
        verdicts = judge(pool, *texts)
        workers = [p for p in psutil.Process().children() if "spawn_main" in str(p.cmdline())]
    assert verdicts == ["4" in text for text in texts]
    assert pool.stats == {"pairs": 9, "timeouts": 1, "crashes": 1, "errors": 3}
    assert time.monotonic() - begin < 30
    assert all(
        word in caplog.text for word in ("'hang'", "KeyError", "MemoryError", "own.py:right")
    )
    assert len(workers) >= 2 and not any(worker.is_running() for worker in workers)
    assert "printed" not in capfd.readouterr().out


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
