"""Addresses, and proxies of the environment: none is asked for this machine's own servers, by
any client."""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from rollouts import VERSION, make_engine, make_row, policy
from scripted_server import ScriptedServer, completion

from rea_core import clients
from rea_rl.rollout.record import Batch
from rea_rl.rollout.weight_sync import AdapterSync
from rea_rl.study import run as study
from rea_rl.vllm_server import ServerConfig, check_port_free, check_server, parse_args

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture
def proxy(monkeypatch) -> None:
    """An environment whose proxy answers nobody, and that makes no exceptions."""
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def chat(_: object) -> tuple[int, dict]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "7"}}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return 200, {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def generate(server: ScriptedServer, folder: Path) -> None:
    from generation.arguments import GenerateArguments
    from generation.generate import generate as run

    (folder / "p.json").write_text(json.dumps([{"problem": "3+4?", "answer": "7"}]))
    server.complete = chat
    settings = {
        "qaf": str(folder / "p.json"),
        "model_dir": "m",
        "output_dir": str(folder),
        "api": True,
    }
    written = run(
        GenerateArguments(**settings, api_base=server.url, api_model="m", request_retries=0)
    )
    assert json.loads(written.read_text())[0]["responses"][0]["text"] == "7"


def evaluate_in_the_study(server: ScriptedServer, folder: Path) -> None:
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (adapter / "adapter_model.safetensors").touch()
    run = SimpleNamespace(row=SimpleNamespace(name="rea_rl"), seed=0, adapter=adapter)
    with study.served(run, server.url, argparse.Namespace(model="m")) as name:
        assert name in server.models


@pytest.mark.parametrize(
    ("route", "answer", "words"),
    [
        ("/v1/load_lora_adapter", "modules_to_save is no None", "see lora_target_modules"),
        (
            "/v1/load_lora_adapter",
            "LoRA rank 64 is greater than max_lora_rank 16",
            "max_lora_rank of at least lora_r",
        ),
        (
            "/v1/unload_lora_adapter",
            "The lora adapter cannot be found",
            "did not unload study-rea_rl-0-",
        ),
    ],
)
def test_what_a_server_refuses_of_a_studys_adapter_is_said_in_its_words(
    tmp_path, caplog, route, answer, words
):
    with ScriptedServer(None, ["m"]) as server:
        server.first[route] = [(404, {"error": {"message": answer}})]
        try:
            evaluate_in_the_study(server, tmp_path)
            said = caplog.text
        except ConnectionError as error:
            said = str(error)
        assert words in said and answer in said


def sample(server: ScriptedServer, folder: Path) -> None:
    server.complete = policy()
    with make_engine(folder, server.url, request_retries=0) as engine:
        assert len(engine.run([make_row()], Batch(7, VERSION, False))) == 1


def send_all_weights(server: ScriptedServer, folder: Path) -> None:
    clients.bypass_proxies(server.url)
    assert requests.get(server.url + "/models", timeout=5).ok  # with what TRL's client asks


USES: dict[str, Callable[[ScriptedServer, Path], None]] = {
    "generation": generate,
    "the study": evaluate_in_the_study,
    "rollouts": sample,
    "adapters": lambda server, folder: AdapterSync(server.url, folder)._swap(VERSION, set()),
    "whole models": send_all_weights,
    "checks": lambda server, _: check_server(server.url, "m", timeout=1),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_proxy_is_asked_for_a_server_of_this_machine(proxy, tmp_path, use, host):
    with ScriptedServer(lambda _: completion([1]), ["m", VERSION], host=host) as server:
        USES[use](server, tmp_path)


@pytest.mark.parametrize(
    ("host", "loopback", "own"),
    [
        ("127.0.0.1", True, True),
        ("127.3.2.1", True, True),
        ("127.1", True, True),
        ("localhost", True, True),
        ("LOCALHOST", True, True),
        ("policy.localhost", True, True),
        ("localhost.", True, True),
        ("ip6-localhost", True, True),
        ("localhost.localdomain", True, True),
        ("::1", True, True),
        ("::ffff:127.0.0.1", True, True),
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("192.0.2.77", False, False),
        ("2001:db8::7", False, False),
        ("127.example.com", False, False),
        ("localhost.example.com", False, False),
    ],
)
def test_what_a_host_is(host, loopback, own):
    assert (clients.is_loopback(host), clients.is_own(host)) == (loopback, own)


def test_the_name_of_this_machine_is_its_own(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Node7")
    assert clients.is_own("node7") and not clients.is_own("node8")
    assert clients.is_own("node7.cluster") and not clients.is_own("node.cluster")
    monkeypatch.setattr(socket, "gethostname", lambda: "node7.cluster")
    assert clients.is_own("node7") and not clients.is_own("node7.elsewhere")


def test_a_proxy_that_cannot_be_asked_is_named(monkeypatch):
    for name, value in (
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("https_proxy", "ftp://proxy:1"),
        ("SSL_CERT_FILE", "/nowhere/certificates"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            for make in (clients.openai_client, clients.async_openai_client):
                with pytest.raises(ValueError, match="as the environment says .*ALL_PROXY"):
                    make("https://judge.example/v1", proxies=True)
                make("http://127.0.0.1:1/v1", proxies=True)
                make("https://policy.example/v1")


def test_a_judge_elsewhere_may_be_behind_a_proxy_and_our_servers_are_not(proxy):
    trusts = [
        clients.openai_client(url, proxies=proxies)._client.trust_env
        for url in ("https://api.example.com/v1", "http://127.0.0.1:1/v1")
        for proxies in (True, False)
    ]
    assert trusts == [True, False, False, False]


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("127.0.0.1:8000/v1", "is '127.0.0.1:8000/v1'; write it as http://HOST:PORT/v1"),
        ("http:///v1", "http://HOST:PORT/v1"),
        ("http://::1:8000/v1", "an IPv6 address in brackets"),
        ("http://[::1:8000/v1", "Invalid IPv6 URL"),
        ("http://a:70000/v1", "Port out of range"),
        ("http://a:http/v1", "could not be cast"),
        ("http://a:0/v1", "http://HOST:PORT/v1"),
    ],
)
def test_addresses_that_no_client_takes(url, part):
    with pytest.raises(ValueError) as caught:
        clients.split_url(url, "policy_server")
    assert str(caught.value).startswith("policy_server is ") and part in str(caught.value)


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        ("http://a:1/v1 http://a:1/v1", "has 'http://a:1/v1' twice; name each server once"),
        ("http://127.0.0.1:1/v1 http://localhost:1/v1", "and 'http://localhost:1/v1', one server"),
        ("http://127.0.0.1:1/v1 https://127.0.0.1:1/v1", "one server; name each server once"),
        ("http://a:1/v1 HTTP://A.:1/v1", "one server"),
        ("http://a:80/v1 http://a/v1", "one server"),
        ("http://[::1]:1/v1 http://[0:0::1]:1/v1", "one server"),
        ("http://a:1/v1 http://a:1/v1/", "is 'http://a:1/v1/'; write it as http://HOST:PORT/v1"),
        ("http://a:1/v1 http://a:2", "is 'http://a:2'; write it as http://HOST:PORT/v1"),
        ("", "is an empty list; give one address or more"),
    ],
)
def test_a_server_is_named_once_in_whatever_spelling(urls, words):
    with pytest.raises(ValueError) as caught:
        clients.check_urls(urls.split(), "policy_server")
    assert words in str(caught.value)
    if len(urls.split()) > 1:
        given = ["--policy_server", *urls.split(), "--recipe_set", "miniature", "--dry_run"]
        with pytest.raises(ValueError, match="policy_server (has|is)"):
            study.parse_arguments(given)


def test_servers_that_differ_in_host_or_port_are_several():
    urls = "http://a:1/v1 http://a:2/v1 http://b:1/v1 http://127.0.0.1:1/v1 http://127.0.0.2:1/v1"
    clients.check_urls(urls.split(), "policy_server")


def test_an_address_of_six_groups_is_written_in_brackets_and_needs_no_key(tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model_name_or_path: m\npolicy_server: http://[::1]:12345/v1\n")
    config, _ = parse_args(["--role", "policy", "--recipe", str(recipe)])
    assert (config.host, config.port, config.base_url) == ("::1", 12345, "http://[::1]:12345/v1")
    with pytest.raises(ValueError, match="host is ::, which other machines may reach"):
        ServerConfig("m", 1, "policy", host="::")
    with pytest.raises(ValueError, match="host is 127.example.com, which other machines may reach"):
        ServerConfig("m", 1, "policy", host="127.example.com")


@pytest.fixture
def listener6():
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_ports_are_probed_in_the_kind_of_address_that_is_asked_for(listener6, free_port):
    with pytest.raises(
        ValueError,
        match=rf"port {listener6} on ::1 cannot be used \(.*in use\); stop what listens there",
    ):
        check_port_free("::1", listener6)
    check_port_free("127.0.0.1", listener6)
    check_port_free("::1", free_port())


@pytest.mark.parametrize(
    ("host", "remedy"),
    [
        ("192.0.2.77", "an address that this machine has"),
        ("no-such-host.invalid", "no such host is known here"),
    ],
)
def test_a_port_that_cannot_be_used_blames_what_was_seen(host, remedy):
    with pytest.raises(ValueError, match=remedy) as caught:
        check_port_free(host, 12345)
    assert "stop what listens there" not in str(caught.value)
