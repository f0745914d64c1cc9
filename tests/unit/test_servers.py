"""Prompts on several servers: dealt evenly, kept where they began, moved if a server dies."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from os.path import commonprefix

import pytest
from rollouts import (
    SAMPLE,
    TOKENIZER,
    VERSION,
    ended,
    is_finish,
    labels,
    make_engine,
    make_row,
    policy,
)
from scripted_server import ScriptedServer, completion

from rea_rl.rollout import endpoint
from rea_rl.rollout.record import Batch, rollout_metrics

SAMPLED = Batch(0, VERSION, False)
REVISED = Batch(0, VERSION, True)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(endpoint, "POLL_SECONDS", 0.02)


class Fleet:
    """Scripted policy servers and reflection servers."""

    def __init__(self, stack, policies=2, reflections=2):
        self.policies = [
            stack.enter_context(ScriptedServer(policy(), [VERSION])) for _ in range(policies)
        ]
        self.reflections = [
            stack.enter_context(ScriptedServer(labels(0.2, 0.9, 0.1, 0.9), ["refl"]))
            for _ in range(reflections)
        ]

    def engine(self, tmp_path, **changes):
        urls = [[s.url for s in servers] for servers in (self.policies, self.reflections)]
        return make_engine(tmp_path, *urls, **{"request_retries": 3, **changes})


@pytest.fixture
def fleet():
    with ExitStack() as stack:
        yield Fleet(stack)


def rows(prompts, each=2):
    return [make_row(i) for i in range(prompts) for _ in range(each)]


def asked(server):
    """Prompts of the completions that a server was asked for: sampled, and finished."""
    return [tuple(body["prompt"]) for body in server.bodies("completions")]


def prompts_of(server, num_prompts):
    """Numbers of the prompts, one for each sampled or finished response of a server."""
    starts = [tuple(TOKENIZER.encode(make_row(i)["prompt"])) for i in range(num_prompts)]
    return [
        next(i for i, start in enumerate(starts) if ids[: len(start)] == start)
        for ids in asked(server)
    ]


def test_prompts_are_dealt_evenly_and_all_that_they_ask_stays_there(tmp_path, fleet):
    with fleet.engine(tmp_path) as engine:
        rollouts = engine.run(rows(6), REVISED)
    assert [r.problem_id for r in rollouts] == [f"p{i}" for i in range(6) for _ in range(4)]
    first, second = (Counter(prompts_of(server, 6)) for server in fleet.policies)
    # two responses each, sampled and finished
    assert first == {0: 4, 2: 4, 4: 4} and second == {1: 4, 3: 4, 5: 4}
    assert [len(server.bodies("completions")) for server in fleet.reflections] == [6, 6]


class PrefixCache:
    """A policy whose answer follows from its prompt, and which says how much of a prompt it has
    seen before."""

    def __init__(self):
        self.seen: list[list[int]] = []

    def __call__(self, body):
        ids, number = body["prompt"], len(body["prompt"]) % 7
        start = len(TOKENIZER.encode(make_row()["prompt"]))  # what prompts share is not counted
        shared = [len(commonprefix([ids, known])) for known in self.seen]
        cached = max((n for n in shared if n > start), default=0)
        sample, finish = SAMPLE.replace("Set up", "Set up" + "p" * number), f"\\boxed{{{number}}}"
        reply = ended(finish if is_finish(body) else sample)
        if not is_finish(body):  # what two finishing prompts share depends on who is first
            self.seen.append(ids + reply)
        return completion(reply, cached=cached)


def test_several_servers_and_ranks_make_the_responses_of_one(tmp_path, monkeypatch):
    """The same responses, labels and advantages' facts, and the finishing prompts as well
    cached."""
    made = {}
    for servers, ranks in ((1, 1), (2, 2), (3, 2)):
        with ExitStack() as stack:
            fleet = Fleet(stack, servers, servers)
            for server in fleet.policies:
                server.complete = PrefixCache()
            found = []
            for rank in range(ranks):
                part = rows(8)[rank * 16 // ranks : (rank + 1) * 16 // ranks]
                with fleet.engine(tmp_path) as engine:
                    monkeypatch.setattr(type(engine.args), "process_index", rank)
                    found += engine.run(part, REVISED)
            assert all(server.bodies("completions") for server in fleet.reflections)
            cached = rollout_metrics(found, True)["revision/cached_prompt"]
            made[servers] = [replace(r, seconds={}, num_cached_tokens=0) for r in found], cached
    assert made[1][0] == made[2][0] == made[3][0] and len(made[1][0]) == 32
    assert made[1][1] > 0.6
    # a finishing request may come before the prompt of its group is in the cache
    assert [made[2][1], made[3][1]] == pytest.approx([made[1][1]] * 2, abs=0.1)


@pytest.mark.parametrize(("ranks", "prompts", "servers"), [(2, 8, 3), (4, 4, 3), (1, 16, 3)])
def test_all_ranks_together_deal_evenly(tmp_path, monkeypatch, ranks, prompts, servers):
    with ExitStack() as stack:
        fleet = Fleet(stack, servers, 0)
        urls = [server.url for server in fleet.policies]
        for rank in range(ranks):
            with make_engine(tmp_path, urls) as engine:
                monkeypatch.setattr(type(engine.args), "process_index", rank)
                engine.run(rows(prompts, 1), SAMPLED)
        counts = [len(server.bodies("completions")) for server in fleet.policies]
    assert sum(counts) == ranks * prompts and max(counts) - min(counts) <= 1


def test_only_the_prompts_of_a_dead_server_move(tmp_path, fleet, caplog):
    dead = fleet.policies[0]
    seen = threading.Event()

    def dies(body):
        dead.broken = True
        seen.set()
        return policy()(body)

    dead.complete = dies
    with fleet.engine(tmp_path) as engine:
        rollouts = engine.run(rows(6), REVISED)
        counts = engine.counts
    assert seen.is_set() and len(rollouts) == 24
    assert [r.problem_id for r in rollouts] == [f"p{i}" for i in range(6) for _ in range(4)]
    assert counts["servers/alive"] == 3 and counts["servers/outages"] == 1
    assert len(fleet.policies[1].bodies("completions")) == 24  # each response once
    assert "is away" in caplog.text and "the others do its work" in caplog.text


def test_a_server_that_is_back_gets_the_policy_before_any_request(tmp_path, fleet):
    back = fleet.policies[1]
    back.broken = True
    with fleet.engine(tmp_path) as engine:
        engine.run(rows(4), SAMPLED)
        assert engine.counts["servers/alive"] == 3 and not asked(back)
        back.broken, back.models[:], back.only_known_models = False, [], True
        back.requests.clear()
        engine.run(rows(4), SAMPLED)
        assert engine.counts["servers/alive"] == 4
        assert engine.counts["servers/reloaded_adapters"] == 1
        assert engine.counts["servers/downtime_seconds"] > 0
    routes = [route for route, _ in back.requests]
    assert routes[0] == "/v1/load_lora_adapter" and len(asked(back)) == 4


def test_labels_move_too(tmp_path, fleet):
    fleet.reflections[0].broken = False
    with fleet.engine(tmp_path) as engine:
        fleet.reflections[0].broken = True
        rollouts = engine.run(rows(4), REVISED)
        assert engine.counts["servers/alive"] == 3
    assert all(r.p_result for r in rollouts if r.kind == "revision")
    assert len(fleet.reflections[1].bodies("completions")) == 8


def test_a_server_that_refuses_the_adapter_is_left_out_while_others_are_there(tmp_path, fleet):
    refusing = fleet.policies[0]
    refusing.models[:] = []
    refusal = (400, {"error": {"message": "rank 32 is greater than max_lora_rank 16"}})
    refusing.first["/v1/load_lora_adapter"] = [refusal] * 10
    with fleet.engine(tmp_path) as engine:
        assert len(engine.run(rows(4), SAMPLED)) == 8
        assert engine.counts["servers/alive"] == 3
    assert not asked(refusing)


def test_only_when_none_is_left_does_the_deadline_end_the_run(tmp_path, fleet):
    with fleet.engine(tmp_path, server_deadline=0.4) as engine:
        for server in fleet.policies:
            server.broken = True
        with pytest.raises(ConnectionError, match="none of the 2 servers of policy_server answers"):
            engine.run(rows(2), SAMPLED)


def test_all_wait_for_the_first_one_that_is_back(tmp_path, fleet):
    with fleet.engine(tmp_path, server_deadline=30.0) as engine:
        for server in fleet.policies:
            server.broken = True
        threading.Timer(0.6, setattr, (fleet.policies[1], "broken", False)).start()
        assert len(engine.run(rows(4), SAMPLED)) == 8
    assert len(asked(fleet.policies[1])) >= 8


def test_a_passing_failure_stays_where_it_was(tmp_path, fleet):
    boom = (500, {"error": {"message": "boom"}})
    for server in fleet.policies:
        server.first["/v1/completions"] = [boom]
    with fleet.engine(tmp_path) as engine:
        assert len(engine.run(rows(4), SAMPLED)) == 8
        assert engine.counts["servers/alive"] == 4 and engine.counts["servers/outages"] == 0
    assert [len(asked(server)) for server in fleet.policies] == [5, 5]


def test_one_server_is_not_looked_at_before_a_batch(tmp_path):
    with ExitStack() as stack:
        server = Fleet(stack, 1, 0).policies[0]
        server.first["/health"] = [(500, {})] * 10
        with make_engine(tmp_path, server.url) as engine:
            assert len(engine.run(rows(2), SAMPLED)) == 4
        assert len(server.first["/health"]) == 10
