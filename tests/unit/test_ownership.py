"""One process at a time: a second writer of a file, run of a folder or server of a port is told who
is there, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage_files import make_stages

from generation import bootstrap, calibrate, clean_dataset, forced_budgets, math_verify_all
from generation.generation_file import GenerationFile
from miniature import judge
from rea_core import ownership
from rea_core.ownership import check_folder_free, own_file, own_folder, own_port
from rea_core.problems import problem_digest
from rea_core.row_files import write_json
from rea_rl import dpo, grpo, merge_lora, sft, vllm_server
from rea_rl.study import run as study

ROOT = Path(__file__).parents[2]
LRM = str(ROOT / "model/Miniature-LRM")
HOLD = """
import sys
import threading
from rea_core import ownership
getattr(ownership, sys.argv[1])(*[int(x) if x.isdecimal() else x for x in sys.argv[2:]])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold() -> Iterator:
    """Function that makes another process own a place, and returns that process."""
    started = []

    def start(kind: str, *where: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, kind, *map(str, where)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def generated(file: Path) -> str:
    response = {"text": "So 3.\n\n</think>\\boxed{7}", "num_tokens": 9, "finish_reason": "stop"}
    row = {"id": "p", "problem": "3+4?", "answer": "7", "responses": [response]}
    write_json(file, [row])
    return str(file)


# program, its arguments, what another process owns; {0} is a folder, {1} a generation file
COMMANDS = {
    "generation": (
        judge.main,
        "--qaf {1} --split labeling_distill_use_asw --model_dir oracle --output_dir {0} "
        f"--paragraph_tokenizer {LRM}",
        ("own_file", "{0}/oracle/a_labeling_distill_use_asw.json"),
    ),
    "scoring": (
        math_verify_all.main,
        f"{{1}} --model_dir {LRM} --results {{0}}/all.json",
        ("own_file", "{0}/a.verdicts.jsonl"),
    ),
    "forced budgets": (
        forced_budgets.main,
        f"{{1}} --model_dir {LRM} --budgets 3 --out {{0}}/b.json",
        ("own_file", "{0}/b.json"),
    ),
    "filtering": (
        clean_dataset.main,
        "--dataset {1} --verdicts none.json --out {0}/b.json",
        ("own_file", "{0}/b.json"),
    ),
    "cuts to finish": (
        calibrate.main,
        "rows {1} --labels none --judge_cuts none --out {0}/b.json --paragraph_tokenizer x",
        ("own_file", "{0}/b.json"),
    ),
    "the cut": (
        calibrate.main,
        "choose {1} --labels none --judge_cuts none --out {0}/b.json",
        ("own_file", "{0}/b.json"),
    ),
    "rows for a solver": (
        bootstrap.main,
        "solver {1} --out {0}/b.json",
        ("own_file", "{0}/b.json"),
    ),
    "merging": (merge_lora.main, f"{LRM} {{0}}/lora {{0}}/out", ("own_folder", "{0}/out", "OUT")),
    "sft": (
        sft.main,
        "--config recipes/miniature/config_reflection_model.yaml --output_dir {0}/run",
        ("own_folder", "{0}/run", "output_dir"),
    ),
    "grpo": (
        grpo.main,
        "--config recipes/miniature/config_GRPO.yaml --output_dir {0}/run",
        ("own_folder", "{0}/run", "output_dir"),
    ),
    "grpo checked": (
        grpo.main,
        "--config recipes/miniature/config_GRPO.yaml --output_dir {0}/run --dry_run",
        ("own_folder", "{0}/run", "output_dir"),
    ),
    "dpo": (
        dpo.main,
        "--config recipes/miniature/config_RPO.yaml --output_dir {0}/run",
        ("own_folder", "{0}/run", "output_dir"),
    ),
    "study": (
        study.main,
        "--work {0}/work --out {0}/tables --rows base",
        ("own_folder", "{0}/work", "work"),
    ),
    "server": (
        vllm_server.main,
        f"--role policy --model {LRM} --port 23987 --device cpu --log_dir {{0}}",
        ("own_port", "23987"),
    ),
    "server on one log": (
        vllm_server.main,
        f"--role policy --model {LRM} --port 23986 --device cpu --log_dir {{0}}",
        ("own_file", "{0}/vllm_policy_23986.log"),
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_of_two_is_told_who_is_there(tmp_path, monkeypatch, hold, name):
    program, line, place = COMMANDS[name]
    monkeypatch.chdir(ROOT)
    file = generated(tmp_path / "a.json")
    first = hold(*(part.format(tmp_path, file) for part in place))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        program(line.format(tmp_path, file).split())
    said = str(ended.value)
    assert said.startswith("error: ") and "\n" not in said
    assert f"in use by process {first.pid} since " in said and "; wait" in said
    written = [path.name for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert all(name.endswith((".settings.json", ".lock")) for name in written), written


WRITERS = {
    "bootstrap": (
        "solver paths.json --min_tokens 1 --num_workers 1 --prompt_template {{problem}}-{0}",
        ("out.json", "out.md"), "-{0}",
    ),
    "calibrate": (
        f"rows paths.json --labels labels.json --judge_cuts cuts.json --paragraph_tokenizer {LRM} "
        "--paragraph_min_tokens 1 --paragraph_max_tokens 9 --seed {0}", ("out.json",), "",
    ),
    "clean_dataset": (
        "--dataset problems{0}.json --verdicts s.scores.json", ("out.json", "README.md"),
        "problems{0}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_of_two_writers_of_one_file_each_writes_all_or_says_one_line(tmp_path, name):
    """Their settings differ, so that the files of one must be of one."""
    make_stages(tmp_path)
    row = {"problem": "3+4?", "answer": "7"}
    for i in range(2):
        write_json(tmp_path / f"problems{i}.json", [row | {"from": f"problems{i}"}])
    scored = {"id": "0", "problem_digest": problem_digest("3+4?"), "responses": [{"correct": True}]}
    scores = {"groups": {}, "mode": "strict", "num_responses": 1, "num_problems": 1}
    write_json(tmp_path / "s.scores.json", scores | {"problems": [scored]})
    line, files, mark = WRITERS[name]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", f"generation.{name}", *line.format(i).split(), "--out=out.json"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=120)[1].splitlines() for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 0], [0, 1]), told
    for code, lines in zip(codes, told, strict=True):
        assert code == 0 or "out.json is in use by process" in lines[-1]
    texts = [(tmp_path / file).read_text() for file in files]
    assert json.loads(texts[0])
    assert any(all(mark.format(i) in text for text in texts) for i in range(2))
    assert not list(tmp_path.glob(".*"))


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path, hold):
    for kind in (signal.SIGKILL, signal.SIGTERM):
        first = hold("own_folder", tmp_path / "run", "output_dir")
        with pytest.raises(ValueError, match=f"output_dir .*run is in use by process {first.pid}"):
            own_folder(tmp_path / "run", "output_dir")
        first.send_signal(kind)
        first.wait()
        with own_folder(tmp_path / "run", "output_dir"):
            pass
        assert list(tmp_path.iterdir()) == []  # nothing is left of it


def test_a_lock_is_of_the_place_and_not_of_the_name_that_leads_there(tmp_path, hold):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    hold("own_folder", tmp_path / "run", "output_dir")
    for name in ("run", "run/", "x/../run", "link"):
        with pytest.raises(ValueError, match="in use"):
            own_folder(f"{tmp_path}/{name}", "output_dir")
    with own_folder(tmp_path / "another", "output_dir"):
        pass


def test_a_check_takes_nothing(tmp_path, hold):
    check_folder_free(tmp_path / "run", "output_dir")
    assert list(tmp_path.iterdir()) == []
    hold("own_folder", tmp_path / "run", "output_dir")
    with pytest.raises(ValueError, match="in use"):
        check_folder_free(tmp_path / "run", "output_dir")


def test_a_place_without_room_for_a_lock_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership.tempfile, "gettempdir", lambda: str(tmp_path / "no"))
    (tmp_path / "no").write_text("")
    with pytest.raises(ValueError, match="port 4: .*no/.* cannot be locked"):
        own_port(4)


def test_a_file_that_lost_rows_is_not_closed(tmp_path):
    for lose in (lambda part: part.unlink(), lambda part: part.write_text('[0, {"id": "a"}]\n')):
        output = GenerationFile(tmp_path / "a.json", {})
        for index in range(3):
            output.append(index, {"id": str(index)})
        lose(tmp_path / "a.part.jsonl")
        with pytest.raises(ValueError, match=r"lost [23] rows, the first is row [01]"):
            output.close()
        assert not (tmp_path / "a.json").exists()
        output.__exit__()
        (tmp_path / "a.part.jsonl").unlink(missing_ok=True)
    with GenerationFile(tmp_path / "a.json", {}) as output:
        output.append(1, {"id": "b"})  # row 0 is missing
        with pytest.raises(ValueError, match="lost 1 rows, the first is row 0"):
            output.close()


# --- Who listens ----------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which this process listens, and others may, too."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listening:
        yield listening.getsockname()[1]


def test_a_server_of_another_process_is_not_waited_for(port):
    assert os.getpid() in vllm_server.listeners(port)
    launcher = subprocess.Popen(["sleep", "0.5"])
    ended = threading.Thread(target=launcher.wait)
    ended.start()
    with pytest.raises(ConnectionError, match=f"{launcher.pid}, .* port {port}, has ended"):
        vllm_server.wait_until_listening(port, launcher.pid)
    ended.join()
    vllm_server.wait_until_listening(port, os.getppid())


def test_a_port_that_another_process_shares_ends_the_start(port, tmp_path, monkeypatch):
    """vLLM binds with SO_REUSEPORT, so that both get requests."""
    monkeypatch.setattr(vllm_server, "check_port_free", lambda host, port: None)
    monkeypatch.setattr(vllm_server, "server_command", lambda *_: ["sleep", "60"])
    monkeypatch.setattr(vllm_server, "request", lambda *_: None)  # the other one is healthy
    monkeypatch.setattr(vllm_server, "check_server", lambda *_, **__: None)
    config = vllm_server.ServerConfig(LRM, port, "policy", device="cpu", log_dir=str(tmp_path))
    with pytest.raises(ConnectionError, match=f"shares port {port} with process {os.getpid()}"):
        with vllm_server.VLLMServer(config):
            pass
    own_file(tmp_path / f"vllm_policy_{port}.log").release()  # free again
