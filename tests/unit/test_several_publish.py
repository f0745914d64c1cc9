"""A version on several policy servers: all that are alive have it before the first request."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import pytest
from adapters import LOAD, error, make_adapter
from scripted_server import ScriptedServer
from tiny import save_model

from rea_rl.rollout import endpoint, weight_sync
from rea_rl.rollout.weight_sync import AdapterSync


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    for module in (endpoint, weight_sync):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
        monkeypatch.setattr(module, "VISIBLE_SECONDS", 0.2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def servers():
    """Three policy servers without adapters."""
    with ExitStack() as stack:
        yield [stack.enter_context(ScriptedServer(None, ["base"])) for _ in range(3)]


def make_sync(servers, tmp_path, **settings):
    urls = [server.url for server in servers]
    return AdapterSync(urls, tmp_path, **{"retries": 1, "deadline": 0.3, **settings})


def test_every_server_gets_every_version(base, servers, tmp_path):
    sync = make_sync(servers, tmp_path)
    first = sync.publish(make_adapter(base, 0.1), 0)
    assert [server.models for server in servers] == [["base", first]] * 3
    second = sync.publish(make_adapter(base, 0.2), 1, {first})
    assert [server.models for server in servers] == [["base", first, second]] * 3
    third = sync.publish(make_adapter(base, 0.3), 2, {second})
    assert [server.models for server in servers] == [["base", second, third]] * 3
    assert {path.name for path in tmp_path.iterdir()} == {second, third}
    assert sync.counts["servers/outages"] == 0


def test_a_server_that_is_away_is_left_out_and_gets_the_next_version(base, servers, tmp_path):
    sync = make_sync(servers, tmp_path)
    first = sync.publish(make_adapter(base, 0.1), 0)
    servers[1].broken = True
    begin = time.monotonic()
    second = sync.publish(make_adapter(base, 0.2), 1)
    assert time.monotonic() - begin < 5.0  # nobody waits for it
    assert [servers[i].models for i in (0, 2)] == [["base", second]] * 2
    assert sync.counts["servers/outages"] == 1 and sync.counts["servers/failed_requests"] == 1
    servers[1].broken, servers[1].models[:] = False, ["base", first]  # it was not started again
    third = sync.publish(make_adapter(base, 0.3), 2)
    assert [server.models for server in servers] == [["base", third]] * 3
    assert sync.counts["servers/downtime_seconds"] > 0


def test_a_version_that_one_server_refuses_is_on_none(base, servers, tmp_path):
    servers[2].first[LOAD] = [error(400, "LoRA rank 32 is greater than max_lora_rank 16")]
    with pytest.raises(ConnectionError, match="max_lora_rank of at least lora_r"):
        make_sync(servers, tmp_path).publish(make_adapter(base, 0.1), 0)
    assert [server.models for server in servers] == [["base"]] * 3


def test_only_when_all_are_away_does_the_deadline_end_the_run(base, servers, tmp_path):
    sync = make_sync(servers, tmp_path)
    for server in servers:
        server.broken = True
    with pytest.raises(ConnectionError, match=r"none of the 3 servers of policy_server answers"):
        sync.publish(make_adapter(base, 0.1), 0)


def test_the_first_server_that_is_back_gets_the_version(base, servers, tmp_path):
    sync = make_sync(servers, tmp_path, deadline=20.0)
    for server in servers:
        server.broken = True
    threading.Timer(0.5, setattr, (servers[1], "broken", False)).start()
    version = sync.publish(make_adapter(base, 0.1), 0)
    assert [server.models for server in servers] == [["base"], ["base", version], ["base"]]


def test_a_run_that_is_ended_waits_for_no_server(base, servers, tmp_path):
    sync = make_sync(servers, tmp_path, deadline=100.0)
    for server in servers:
        server.broken = True
    sync.cancel()
    with pytest.raises(ConnectionError, match="the run is being ended"):
        sync.publish(make_adapter(base, 0.1), 0)
