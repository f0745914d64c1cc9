"""A tiny model, runs of it in several processes, which fork from one that has torch loaded, and
servers of an OpenAI-style API."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_api import ROWS, FakeServer

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "recipes" / "accelerate_configs"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that no test changes."""
    from tiny import save_model

    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def run_ranks(
    fast_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess]:
    """Function that runs a script of this folder in processes that train together.

    With the name of an accelerate configuration its launcher starts them, else torch's.
    """

    def run(
        name: str, *given: object, ranks: int = 2, config: str = "", **variables: object
    ) -> subprocess.CompletedProcess:
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", ranks]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        if config:
            recipe = (CONFIGS / f"{config}.yaml").read_text()
            assert "use_cpu: false" in recipe
            file = tmp_path_factory.mktemp("launch") / "config.yaml"
            file.write_text(recipe.replace("use_cpu: false", "use_cpu: true"))
            launch = ["accelerate.commands.launch", "--config_file", file]
            launch += ["--num_processes", ranks]
        else:
            environment["ACCELERATE_USE_CPU"] = "true"
        command = [fast_python, "-m", *launch, HERE / name, *given]
        environment |= {key: str(value) for key, value in variables.items()}
        return subprocess.run(
            [str(part) for part in command], env=environment, capture_output=True, text=True,
            timeout=240,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def same_step(
    run_ranks: Callable[..., subprocess.CompletedProcess], model_folder: Path
) -> Callable[..., Path]:
    """Function that takes the steps of same_step.py in a folder, which it returns."""

    def take(folder: Path, **how: object) -> Path:
        done = run_ranks("same_step.py", model_folder, folder, **how)
        assert done.returncode == 0, done.stderr
        return folder

    return take


@pytest.fixture(scope="session")
def one_process(same_step: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of one process with padded rows: what other launches have to do too."""
    return same_step(tmp_path_factory.mktemp("one_process"), ranks=1, STOP=3)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is the test's: the log of all scored files goes to its output/."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    """Function that starts a server."""
    servers = []

    def start(**kwargs: object) -> FakeServer:
        server = FakeServer(**kwargs)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def problems(tmp_path: Path) -> str:
    path = tmp_path / "test.json"
    path.write_text(json.dumps(ROWS))
    return str(path)


@pytest.fixture
def generated(
    tmp_path: Path, elsewhere: None, serve: Callable[..., FakeServer]
) -> Callable[..., Path]:
    """Function that answers one problem, gold 2, with a text over `--api`; returns the file."""
    from generation import generate

    problem = {"id": "p", "problem": "1+1?", "answer": "2"}
    (tmp_path / "p.json").write_text(json.dumps([problem]))

    def make(text: str, model: str | Path, *flags: str) -> Path:
        server = serve(text=lambda body: text)
        argv = ["--qaf", "p.json", "--model_dir", str(model), "--output_dir", "out"]
        argv += ["--api", "--api_base", server.url, "--api_model", "m"]
        generate.main([*argv, *flags])
        make.bodies = server.bodies
        return Path("out", Path(model).name, "p_math_cot.json")

    return make
