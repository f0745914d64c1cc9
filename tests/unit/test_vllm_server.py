"""Commands, checks and the life of a server process; vLLM itself is started by
tests/integration/test_vllm_server.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import yaml
from scripted_server import ScriptedServer

from rea_core.models import resolve_dtype
from rea_rl import vllm_server
from rea_rl.vllm_server import ServerConfig, VLLMServer, check_server

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return str(folder)


@pytest.fixture
def listener() -> Iterator[tuple[ThreadingHTTPServer, dict[str, tuple[int, bytes]]]]:
    """A web server with settable answers; unknown routes are 404, and a key other than `secret`
    is 401."""
    answers: dict[str, tuple[int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answers.get(self.path, (404, b""))
            if self.headers["Authorization"] != "Bearer secret":
                status = 401
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    yield server, answers
    server.shutdown()
    server.server_close()


def pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run a Python program in vLLM's place; `sys.argv[1]` is the port."""
    monkeypatch.setattr(
        vllm_server,
        "server_command",
        lambda config, device: [sys.executable, "-c", program, str(config.port)],
    )


def options(command: list[str]) -> dict[str, str | None]:
    """Each option with its value, None for a switch."""
    pairs = zip(command, [*command[1:], "--"], strict=True)
    return {
        name: None if value.startswith("--") else value
        for name, value in pairs
        if name.startswith("--")
    }


def test_policy_command_on_the_cpu(model):
    config = ServerConfig(model, 12345, "policy", max_lora_rank=32, max_model_len=1024)
    command = vllm_server.server_command(config, "cpu")
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert options(command) == {
        "--model": model,
        "--host": "127.0.0.1",
        "--port": "12345",
        "--dtype": resolve_dtype("auto", "cpu"),
        "--enable-prefix-caching": None,
        "--generation-config": "vllm",
        "--disable-uvicorn-access-log": None,
        "--max-model-len": "1024",
        "--enforce-eager": None,
        "--no-enable-chunked-prefill": None,
        "--enable-lora": None,
        "--max-lora-rank": "32",
        "--max-loras": "2",
        "--logprobs-mode": "processed_logprobs",
        "--enable-prompt-tokens-details": None,
    }


def test_reflection_command_on_two_gpus(model):
    config = ServerConfig(
        model, 1, "reflection", gpu="2,3", gpu_memory_utilization=0.45, extra_args=["--seed", "1"]
    )
    command = options(vllm_server.server_command(config, "cuda"))
    assert command["--tensor-parallel-size"] == "2"
    assert command["--gpu-memory-utilization"] == "0.45"
    assert command["--max-logprobs"] == "20"
    assert command["--seed"] == "1"
    assert not {"--enforce-eager", "--enable-lora", "--logprobs-mode", "--max-model-len"} & set(
        command
    )


@pytest.mark.parametrize(
    ("given", "device", "eager"),
    [(None, "cuda", False), (True, "cuda", True), (False, "cpu", False)],
)
def test_enforce_eager_overrides_the_device(model, given, device, eager):
    config = ServerConfig(model, 1, "policy", enforce_eager=given)
    assert ("--enforce-eager" in vllm_server.server_command(config, device)) is eager


def test_environment_of_the_policy_on_the_cpu(model, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    variables = vllm_server.server_environment(
        ServerConfig(model, 1, "policy", kv_cache_gib=3), "cpu"
    )
    assert variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert variables["OMP_NUM_THREADS"] == "4"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["VLLM_NO_USAGE_STATS"] == "1"
    assert variables["TORCH_COMPILE_DISABLE"] == "1"


def test_environment_of_a_hub_model_on_a_gpu():
    config = ServerConfig("owner/name", 1, "reflection", gpu="2", api_key="secret")
    variables = vllm_server.server_environment(config, "cuda")
    assert variables["CUDA_VISIBLE_DEVICES"] == "2"
    assert variables["VLLM_API_KEY"] == "secret"
    assert not {"HF_HUB_OFFLINE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "OMP_NUM_THREADS"} & set(
        variables
    )
    assert "secret" not in vllm_server.server_command(config, "cuda")


@pytest.mark.parametrize(
    ("keys", "full"),
    [("use_peft: false\nlora_r: 32\n", True), ("use_peft: true\n", False), ("", False)],
)
def test_a_recipe_says_whether_all_weights_are_sent(tmp_path, keys, full):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: m\npolicy_server: http://127.0.0.1:1/v1\n{keys}")
    config, _ = vllm_server.parse_args(["--role", "policy", "--recipe", str(recipe)])
    assert config.full_weights is full


def test_a_server_that_takes_all_weights_has_no_adapters(model):
    config = ServerConfig(model, 1, "policy", full_weights=True)
    command = vllm_server.server_command(config, "cuda")
    assert command[command.index("--weight-transfer-config") + 1] == '{"backend": "nccl"}'
    assert "--enable-lora" not in command and "--max-loras" not in command
    variables = vllm_server.server_environment(config, "cuda")
    assert (
        variables["VLLM_SERVER_DEV_MODE"] == "1"
        and "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in variables
    )
    adapters = vllm_server.server_environment(ServerConfig(model, 1, "policy"), "cuda")
    assert "VLLM_SERVER_DEV_MODE" not in adapters  # its routes are not for everyone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "judge"}, "role is 'judge'; it must be one of policy, reflection"),
        ({"port": 70000}, "port is 70000"),
        ({"gpu": "-1"}, "gpu is '-1'; give indices or UUIDs, .* device: cpu"),
        ({"gpu": ""}, "gpu is ''"),
        ({"gpu": "0,"}, "gpu is '0,'"),
        ({"max_lora_rank": 12}, "max_lora_rank is 12; vLLM takes 8, 16"),
        (
            {"full_weights": True, "device": "cpu"},
            "full_weights is for the policy server on a GPU, .* device cpu",
        ),
        ({"full_weights": True, "role": "reflection"}, "but role is reflection"),
        (
            {"full_weights": True, "host": "0.0.0.0", "api_key": "secret"},
            "needs no key, .* host 0.0.0.0",
        ),
        ({"host": "0.0.0.0"}, "host is 0.0.0.0, which other machines may reach; give api_key"),
    ],
)
def test_mistakes_in_the_configuration(monkeypatch, changes, message):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(ValueError, match=message):
        ServerConfig(**({"model": "m", "port": 1, "role": "policy"} | changes))


@pytest.mark.parametrize(
    "gpu", ["0", "2,3", "GPU-5f2e7c9a-0000-1111", "MIG-1d4b-aaaa", "MIG-GPU-5f2e/7/0"]
)
def test_gpus_may_be_named_by_index_or_uuid(gpu):
    config = ServerConfig("m", 1, "reflection", gpu=gpu)
    assert vllm_server.server_environment(config, "cuda")["CUDA_VISIBLE_DEVICES"] == gpu


def test_open_host_with_a_key_is_allowed(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert ServerConfig("m", 8000, "policy", host="0.0.0.0").base_url == "http://0.0.0.0:8000/v1"


def test_model_folder_is_checked_before_anything_starts(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for missing in ("model/Reflection_Model", "./x", "a/b/c", str(tmp_path / "nothing")):
        with pytest.raises(ValueError, match=f"no model folder {missing}"):
            VLLMServer(ServerConfig(missing, 1, "reflection"))
    VLLMServer(ServerConfig("HuggingFaceTB/SmolLM2-135M-Instruct", 1, "policy"))
    Path(model, "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has none of tokenizer.json"):
        VLLMServer(ServerConfig(model, 1, "policy"))
    Path(model, "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json; give the folder of a whole model"):
        VLLMServer(ServerConfig(model, 1, "policy"))


def test_busy_port_is_refused_at_start(model, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = VLLMServer(
            ServerConfig(model, port, "policy", device="cpu", log_dir=str(tmp_path / "logs"))
        )
        with pytest.raises(ValueError, match=f"port {port} on 127.0.0.1 cannot be used"):
            server.start()
    assert server.pid is None
    assert not (tmp_path / "logs").exists()


def test_check_server_accepts_what_is_needed():
    with ScriptedServer(None, ["base", "policy-3"], context=1024) as server:
        assert check_server(server.url, "policy-3", 1024) is None


def test_check_server_names_the_served_models_and_the_context():
    with ScriptedServer(None, ["base", "policy-3"], context=1024) as server:
        with pytest.raises(ValueError, match="serves 'base', 'policy-3', but 'other' is needed"):
            check_server(server.url, "other")
        with pytest.raises(ValueError, match="context of 1024 tokens, but 1025 are needed"):
            check_server(server.url, "base", 1025)


def test_check_server_without_a_server(free_port):
    with pytest.raises(ConnectionError, match="no server answers at http://127.0.0.1:.* start it"):
        check_server(f"http://127.0.0.1:{free_port()}/v1", "base", timeout=0.3)


def test_check_server_waits_for_a_late_server(listener):
    server, answers = listener
    answers |= {
        "/health": (503, b""),
        "/v1/models": (200, b'{"data": [{"id": "base", "max_model_len": 8}]}'),
    }
    timer = threading.Timer(0.5, lambda: answers.update({"/health": (200, b"")}))
    timer.start()
    check_server(f"http://127.0.0.1:{server.server_port}/v1", "base", timeout=20, key="secret")
    timer.join()
    answers["/health"] = (503, b"")
    with pytest.raises(ConnectionError, match="not healthy: /health answers 503"):
        check_server(f"http://127.0.0.1:{server.server_port}/v1", "base", timeout=0.1, key="secret")


def test_check_server_with_a_program_that_is_no_vllm(listener):
    server, answers = listener
    url = f"http://127.0.0.1:{server.server_port}/v1"
    answers["/health"] = (200, b"")
    for body, message in (
        (b"<html>", "/v1/models answers with no JSON object"),
        (b"[1]", "/v1/models answers with no JSON object"),
        (b"{}", "/v1/models answers with no list of models"),
        (b'{"data": null}', "/v1/models answers with no list of models"),
        (b'{"data": [{"name": "base"}]}', "/v1/models answers with no list of models"),
        (b'{"data": [{"id": "base"}]}', "does not tell the context of 'base'"),
        (b'{"data": [{"id": "base", "max_model_len": "9"}]}', "does not tell the context"),
    ):
        answers["/v1/models"] = (200, body)
        with pytest.raises(ValueError, match=message):
            check_server(url, "base", 8, key="secret")


def test_check_server_with_a_wrong_key_or_another_program(listener):
    url = f"http://127.0.0.1:{listener[0].server_port}/v1"
    with pytest.raises(ValueError, match="refuses the key; set VLLM_API_KEY"):
        check_server(url, "base", key="guess")
    with pytest.raises(ValueError, match="is no vLLM server: /health answers 404"):
        check_server(url, "base", key="secret")


SERVE_WITH_CHILD = """
import http.server, json, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": MODEL, "max_model_len": 64}]}).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_stop_ends_the_children_too(model, tmp_path, free_port, monkeypatch):
    pretend(monkeypatch, f"MODEL = {model!r}\n" + SERVE_WITH_CHILD)
    monkeypatch.setattr(vllm_server, "STOP_SECONDS", 1.0)
    server = VLLMServer(
        ServerConfig(model, free_port(), "policy", device="cpu", log_dir=str(tmp_path))
    )
    with server:
        pid, child = server.pid, int(server.log_path.read_text().split()[1])
        assert psutil.pid_exists(pid) and psutil.pid_exists(child)
    assert not psutil.pid_exists(pid)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert server.pid is None
    server.stop()  # nothing is left to do


def test_a_server_that_dies_is_reported_with_its_log(model, tmp_path, free_port, monkeypatch):
    lines = "\\n".join(
        ["(Worker pid=7) ERROR 01-01 [core.py:1] RuntimeError: out of memory"] + ["later"] * 30
    )
    pretend(
        monkeypatch, f"import sys; print({lines!r}.replace(chr(92) + 'n', chr(10))); sys.exit(3)"
    )
    server = VLLMServer(
        ServerConfig(model, free_port(), "reflection", device="cpu", log_dir=str(tmp_path))
    )
    with pytest.raises(ConnectionError) as caught, server:
        pass
    message = str(caught.value).splitlines()
    assert message[0] == (
        f"the reflection server for {model} ended with exit code 3; the end of its log "
        f"{server.log_path}:"
    )
    assert (
        message[1]
        == "    first error: (Worker pid=7) ERROR 01-01 [core.py:1] RuntimeError: out of memory"
    )
    assert message[2:] == ["    later"] * vllm_server.LOG_TAIL_LINES
    assert server.pid is None


def test_a_server_that_is_never_ready_is_stopped_at_the_deadline(
    model, tmp_path, free_port, monkeypatch
):
    pretend(monkeypatch, "import time; print('loading', flush=True); time.sleep(600)")
    config = ServerConfig(
        model, free_port(), "policy", device="cpu", log_dir=str(tmp_path), startup_timeout=0.5
    )
    server = VLLMServer(config)
    server.start()
    pid = server.pid
    with pytest.raises(ConnectionError, match="was not ready within 0 s"):
        server.wait_ready()
    server.stop()
    assert not psutil.pid_exists(pid)


@pytest.fixture
def command(model, tmp_path, free_port):
    """Function that starts `rea_rl.vllm_server` as a process, with a Python program in vLLM's
    place."""
    started, timers = [], []

    def start(program=SERVE_WITH_CHILD, *flags):
        served = f"MODEL = {model!r}\n" + program
        main = f"""
import os, sys
from rea_rl import vllm_server
start = [sys.executable, "-c", {served!r}]
vllm_server.server_command = lambda config, device: [*start, str(config.port)]
vllm_server.STOP_SECONDS = 1.0
vllm_server.RESTART_WINDOW = float(os.environ.get("WINDOW", vllm_server.RESTART_WINDOW))
vllm_server.main(sys.argv[1:])
"""
        given = [
            "--role",
            "policy",
            "--model",
            model,
            "--port",
            str(free_port()),
            "--device",
            "cpu",
            *flags,
        ]
        line = [sys.executable, "-c", main, *given, "--log_dir", str(tmp_path)]
        started.append(subprocess.Popen(line, stderr=subprocess.PIPE, text=True))
        timers.append(threading.Timer(60, started[-1].kill))  # so that no test reads for ever
        timers[-1].start()
        return started[-1]

    yield start
    for process, timer in zip(started, timers, strict=True):
        process.terminate()
        process.wait(30)
        timer.cancel()


def read_until(process, text):
    """Lines of a process's stderr up to the first with `text`."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"no {text!r} in: {''.join(lines)}")


def alive(processes):
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGTERM, signal.SIGTERM]]
)
def test_the_command_stops_its_server_on_a_signal(command, signals):
    """Also where Ctrl-C reaches the whole group and the launcher adds its own SIGTERM while the
    server stops."""
    process = command()
    read_until(process, "ready after")
    tree = psutil.Process(process.pid).children(recursive=True)
    assert len(tree) == 2
    for number in signals:
        process.send_signal(number)
        time.sleep(0.1)
    assert process.wait(30) == 128 + signals[0]
    assert not alive(tree)


def test_vllm_ends_when_its_supervisor_is_killed(command):
    process = command()
    read_until(process, "ready after")
    (served,) = psutil.Process(process.pid).children()
    (child,) = served.children()
    process.kill()
    process.wait(30)
    served.wait(10)
    child.kill()  # vLLM's own children watch their parent; this one does not


DIES = """
import os, pathlib, threading
starts = pathlib.Path(os.environ["STARTS"])
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
print("start", len(starts.read_text()), flush=True)
if len(starts.read_text()) <= int(os.environ["DEATHS"]):
    threading.Timer(1.0, os._exit, (7,)).start()
"""


def test_a_server_that_ends_is_started_again(command, tmp_path, monkeypatch):
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("DEATHS", "2")
    process = command(DIES + SERVE_WITH_CHILD)
    log = "".join(read_until(process, "ready after") for _ in range(3))
    assert log.count("ended with exit code 7; the end of its log") == 2
    assert "restart 1 of at most 3" in log and "restart 2 of at most 3" in log
    (path,) = tmp_path.glob("vllm_policy_*.log")
    assert [line for line in path.read_text().splitlines() if "start" in line] == [
        "start 1",
        "start 2",
        "start 3",
    ]
    tree = psutil.Process(process.pid).children(recursive=True)
    assert len(tree) == 2  # nothing of the first two is left
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not alive(tree)


def test_restarts_are_bounded(command, model, tmp_path, monkeypatch):
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("DEATHS", "99")
    process = command(DIES + SERVE_WITH_CHILD, "--max_restarts", "1")
    log = process.stderr.read()
    assert process.wait(30) == 1
    assert (tmp_path / "starts").read_text() == "xx"
    assert log.count("restart ") == 1
    assert f"error: the policy server for {model} ended with exit code 7" in log


def test_restarts_are_counted_by_the_hour(command, tmp_path, monkeypatch):
    """Three deaths, of which two are never in one window."""
    for name, value in {"STARTS": str(tmp_path / "starts"), "DEATHS": "3", "WINDOW": "0.5"}.items():
        monkeypatch.setenv(name, value)
    process = command(DIES + SERVE_WITH_CHILD, "--max_restarts", "1")
    log = "".join(read_until(process, "ready after") for _ in range(4))
    assert log.count("restart 1 of at most 1 in an hour") == 3


def test_recipe_gives_model_address_and_rank(tmp_path):
    recipe = {
        "model_name_or_path": "model/LRM",
        "policy_server": "http://127.0.0.1:4000/v1",
        "lora_r": 12,
        "reflection_model": "owner/name",
        "reflection_server": "http://127.0.0.1:4001/v1",
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(recipe))
    config, _ = vllm_server.parse_args(
        ["--recipe", str(path), "--role", "policy", "--port", "5000"]
    )
    assert (config.model, config.port, config.host, config.max_lora_rank) == (
        "model/LRM",
        5000,
        "127.0.0.1",
        16,
    )
    config, given = vllm_server.parse_args(
        ["--recipe", str(path), "--role", "reflection", "--wait", "--max-num-seqs", "8"]
    )
    assert (config.model, config.port, config.role, given.wait) == (
        "owner/name",
        4001,
        "reflection",
        True,
    )
    assert config.extra_args == ["--max-num-seqs", "8"]


def test_recipe_with_values_of_another_type(tmp_path):
    path = tmp_path / "config.yaml"
    right = "model_name_or_path: m\npolicy_server: http://127.0.0.1:4000/v1\n"
    for line, message in (
        ("policy_server: 5", "policy_server is 5; it must be a text"),
        ("model_name_or_path: [m]", r"model_name_or_path is \['m'\]; it must be a text"),
        ("lora_r: sixteen", "lora_r is 'sixteen'; it must be a whole number"),
        ("lora_r:", "lora_r is None; it must be a whole number"),
        ("max_rollout_lag: '1'", "max_rollout_lag is '1'; it must be a whole number"),
        ("use_peft: 'no'", "use_peft is 'no'; it must be true or false"),
    ):
        key = line.partition(":")[0]
        kept = [old for old in right.splitlines() if not old.startswith(f"{key}:")]
        path.write_text("\n".join([*kept, line]))
        with pytest.raises(ValueError, match=f"config.yaml: {message}"):
            vllm_server.parse_args(["--recipe", str(path), "--role", "policy"])


def test_recipe_without_a_reflection_model(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model_name_or_path: m\npolicy_server: http://127.0.0.1:4000/v1\n")
    with pytest.raises(
        ValueError, match="config.yaml has no reflection_model and no reflection_server"
    ):
        vllm_server.parse_args(["--recipe", str(path), "--role", "reflection"])


def test_main_ends_with_one_line_for_a_mistake(tmp_path, free_port):
    with pytest.raises(SystemExit, match="error: there is no model folder"):
        vllm_server.main(
            [
                "--role",
                "policy",
                "--model",
                str(tmp_path / "x"),
                "--port",
                str(free_port()),
                "--dry_run",
            ]
        )


def test_dry_run_prints_the_command(model, free_port, capsys):
    vllm_server.main(
        [
            "--role",
            "policy",
            "--model",
            model,
            "--port",
            str(free_port()),
            "--device",
            "cpu",
            "--dry_run",
        ]
    )
    assert f"-m vllm.entrypoints.openai.api_server --model {model} " in capsys.readouterr().out
