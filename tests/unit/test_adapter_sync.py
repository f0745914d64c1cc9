"""Adapters on their way to the policy server: what it refuses, does not see yet, or loads
without effect."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import LOAD, UNLOAD, Serving, bad_request, error, make_adapter
from rollouts import VERSION, make_engine, make_row, policy, run_sampling
from scripted_server import ScriptedServer, completion
from tiny import save_model

from rea_rl.rollout import endpoint, probe, weight_sync
from rea_rl.rollout.endpoint import EndedElsewhere, failing_together, refusal
from rea_rl.rollout.probe import Probe
from rea_rl.rollout.record import Batch
from rea_rl.rollout.weight_sync import AdapterSync

UNSEEN = (
    404,
    {"error": {"message": "Loading lora policy failed: No adapter found for /there", "code": 404}},
)


@pytest.fixture(autouse=True)
def hurry(monkeypatch) -> None:
    for module in (endpoint, weight_sync):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
        monkeypatch.setattr(module, "VISIBLE_SECONDS", 0.5)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


# --- Refused, not seen, gone ----------------------------------------------------------------------


def test_a_version_that_is_gone_when_it_is_to_be_unloaded_is_no_failure(base, tmp_path, caplog):
    with ScriptedServer(None, ["base"]) as server:
        sync = AdapterSync(server.url, tmp_path)
        first = sync.publish(make_adapter(base, 0.1), 0)
        server.first[UNLOAD] = [error(404, f"The lora adapter '{first}' cannot be found.")]
        second = sync.publish(make_adapter(base, 0.2), 1)
        assert second in server.models and [path.name for path in tmp_path.iterdir()] == [second]
    assert f"has no {first} any more" in caplog.text


@pytest.mark.parametrize("answers", [1, 5])
def test_an_adapter_that_is_not_seen_yet_is_asked_for_again(base, tmp_path, answers):
    with ScriptedServer(None, ["base"]) as server:
        server.first[LOAD] = [UNSEEN] * answers
        name = AdapterSync(server.url, tmp_path).publish(make_adapter(base, 0.1), 0)
        assert name in server.models and len(server.bodies("load_lora_adapter")) == answers + 1


def test_a_restarted_server_that_does_not_see_its_adapter_yet_is_asked_again(tmp_path):
    with (
        ScriptedServer(policy(), []) as server,
        make_engine(tmp_path, server.url, request_retries=1) as engine,
    ):
        server.only_known_models, server.first[LOAD] = True, [UNSEEN] * 4
        assert len(engine.run([make_row()], Batch(7, VERSION, False))) == 1
        assert len(server.bodies("load_lora_adapter")) == 5


def test_an_adapter_that_is_never_seen_ends_the_run(base, tmp_path):
    with ScriptedServer(None, ["base"]) as server:
        server.first[LOAD] = [UNSEEN] * 1000
        with pytest.raises(
            ConnectionError, match="No adapter found.*must see that folder under the same path"
        ):
            AdapterSync(server.url, tmp_path).publish(make_adapter(base, 0.1), 0)
        assert 3 < len(server.bodies("load_lora_adapter")) < 60


@pytest.mark.parametrize(
    ("route", "answer", "says"),
    [
        (
            "/v1/models",
            error(401, "Unauthorized"),
            "refuses requests .*Unauthorized.*set VLLM_API_KEY to the key",
        ),
        (
            "/v1/models",
            error(403, "Forbidden"),
            "refuses requests .*Forbidden.*set VLLM_API_KEY to the key",
        ),
        (LOAD, error(401, "Unauthorized"), "Unauthorized.*set VLLM_API_KEY"),
        (LOAD, (404, {"detail": "Not Found"}), "Not Found.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        (
            LOAD,
            error(400, "LoRA rank 32 is greater than max_lora_rank 16"),
            "max_lora_rank of at least lora_r",
        ),
        (LOAD, error(422, "lora_path: field required"), "field required.*its log says more"),
    ],
)
def test_what_a_server_refuses_of_an_adapter_is_one_error_with_its_own_remedy(
    base, tmp_path, route, answer, says
):
    with ScriptedServer(None, ["base"]) as server:
        server.first[route] = [answer]
        with pytest.raises(ConnectionError, match=says):
            AdapterSync(server.url, tmp_path, retries=0).publish(make_adapter(base, 0.1), 0)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("LoRA rank 32 is greater than max_lora_rank 16.", "max_lora_rank of at least lora_r"),
        (
            "vLLM only supports modules_to_save being None.",
            "see lora_target_modules and lora_modules_to_save",
        ),
        (
            "expected target modules in ['q_proj'] but received ['lm_head']",
            "see lora_target_modules",
        ),
        ("CUDA error: an illegal memory access", "its log says more"),
    ],
)
def test_a_refusal_blames_only_what_the_server_says(words, remedy):
    message = refusal(Path("/adapters/policy-3"), words)
    assert remedy in message and words in message
    assert ("max_lora_rank of at least" in message) == ("rank 32" in words)


def test_answers_of_500_to_an_adapter_end_with_the_servers_words(base, tmp_path):
    with ScriptedServer(None, ["base"]) as server:
        server.first[LOAD] = [error(500, "vLLM only supports modules_to_save being None.")] * 2
        with pytest.raises(ConnectionError, match="being None.*lora_modules_to_save"):
            AdapterSync(server.url, tmp_path, retries=1).publish(make_adapter(base, 0.1), 0)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (error(401, "Unauthorized"), "set VLLM_API_KEY"),
        (error(403, "Forbidden"), "set VLLM_API_KEY"),
    ],
)
def test_a_key_that_is_refused_is_no_reason_to_repeat(tmp_path, answer, says):
    with pytest.raises(ConnectionError, match=says):
        run_sampling(tmp_path, lambda _: answer, num_rows=1, request_retries=5)


def test_a_hung_server_is_left_when_all_tries_are_over(tmp_path):
    """Tries of a request and the wait for its server add up as the recipe's check says; no more
    is waited between."""
    release = threading.Event()

    def hang(body: dict[str, Any]) -> tuple[int, Any]:
        release.wait(20)
        return policy()(body)

    begin = time.monotonic()
    with pytest.raises(
        ConnectionError, match="failed a request 4 times, at last with: APITimeoutError"
    ):
        run_sampling(tmp_path, hang, num_rows=1, request_retries=3, request_timeout=0.4)
    release.set()
    assert 1.6 < time.monotonic() - begin < 1.6 + 1.5


# --- Failures of any kind -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "message", "traceback"),
    [
        (ConnectionError("away"), "away", False),
        (bad_request(), "BadRequestError: prompt too long", False),
        (OSError(28, "No space left on device"), "No space left on device", False),
        (KeyError("x"), "KeyError: 'x'", True),
    ],
)
def test_any_failure_ends_all_ranks_at_one_point(failure, message, traceback, caplog):
    with pytest.raises(ConnectionError) as caught, failing_together():
        raise failure
    assert message in str(caught.value)
    assert caught.value is failure or (
        type(caught.value) is EndedElsewhere and caught.value.__cause__ is failure
    )
    assert ("Traceback" in caplog.text) is traceback


# --- On the disk ----------------------------------------------------------------------------------


def test_an_adapter_is_on_the_disk_before_it_has_its_name(base, tmp_path, monkeypatch):
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def note_flush(opened: int) -> None:
        done.append(("flushed", Path(os.readlink(f"/proc/self/fd/{opened}")).name))
        fsync(opened)

    def note_rename(old: Any, new: Any) -> None:
        done.append(("renamed", Path(new).name))
        replace(old, new)

    monkeypatch.setattr("os.fsync", note_flush)
    monkeypatch.setattr("os.replace", note_rename)
    with ScriptedServer(None, ["base"]) as server:
        name = AdapterSync(server.url, tmp_path).publish(make_adapter(base, 0.1), 0)
    rename = done.index(("renamed", name))
    flushed = {place for _, place in done[:rename]}
    assert {path.name for path in (tmp_path / name).iterdir()} | {
        f".unfinished-{os.getpid()}"
    } <= flushed
    assert done[rename + 1 :] == [("flushed", tmp_path.name)]


# --- Without effect -------------------------------------------------------------------------------


IDS = list(range(97, 122)) * 4


@pytest.fixture
def publish(base, tmp_path) -> Callable[..., list[int]]:
    """Function that publishes adapters of some sizes in turn; how many requests about prompts
    each of them caused."""

    def run(serving: Serving | Callable, *sizes: float) -> list[int]:
        with ScriptedServer(serving, ["base"]) as server:
            serving.server = server
            sync = AdapterSync(server.url, tmp_path, retries=0, probe=Probe("base", IDS))
            counts = []
            for step, size in enumerate(sizes):
                before = len(server.bodies("completions"))
                sync.publish(make_adapter(base, size), step)
                counts.append(len(server.bodies("completions")) - before)
            return counts

    return run


def test_an_adapter_with_its_effect_is_seen_once(base, publish, caplog):
    caplog.set_level(logging.INFO)
    # Not before it can be told from the base, then base and adapter, and never again.
    assert publish(Serving(base), 0.0, 0.3, 0.4) == [0, 2, 0]
    assert "has its effect on the policy server: 1.00 of the trainer's" in caplog.text


@pytest.mark.parametrize(
    ("applies", "shows"), [(0.0, "0.00"), (0.2, "0.20"), (2.0, "2.00"), (-1.0, "-1.00")]
)
def test_an_adapter_without_its_effect_ends_the_run(base, publish, applies, shows):
    with pytest.raises(
        ConnectionError,
        match=f"has loaded the adapter policy-1-.*, but shows {shows} of its effect",
    ):
        publish(Serving(base, applies), 0.0, 0.3)


@pytest.mark.parametrize("applies", [0.0, 1.0])
def test_an_effect_below_the_noise_is_not_judged(base, publish, applies):
    """Nor does noise hide a larger one. This adapter changes log-probs by some 0.05."""
    assert publish(Serving(base, applies, noise=0.1), 1.0, 1.0) == [1, 0]
    if applies:
        assert publish(Serving(base, applies, noise=0.005), 1.0, 1.0) == [2, 0]
    else:
        with pytest.raises(ConnectionError, match=r"but shows -?0\.[01]\d of its effect"):
            publish(Serving(base, applies, noise=0.005), 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_roundings_that_an_adapter_only_makes_others_are_not_taken_for_its_effect(
    base, publish, monkeypatch, seed
):
    """In bfloat16 a tiny change of a weight moves log-probs as far as another engine does, each
    time elsewhere."""
    noise, exact = torch.Generator().manual_seed(seed), probe.trainer_logps

    def rounded(*args: Any) -> torch.Tensor:
        return exact(*args) + 0.02 * torch.randn(len(IDS) - 1, generator=noise)

    monkeypatch.setattr(probe, "trainer_logps", rounded)
    assert publish(Serving(base, noise=0.02), 1e-4, 2e-4, 3e-4) == [1, 0, 0]


def test_a_server_that_tells_nothing_of_prompts_is_trusted_with_a_warning(publish, caplog):
    def answer(_: dict[str, Any]) -> tuple[int, Any]:
        return completion([1])

    assert publish(answer, 0.3, 0.3) == [1, 0]
    assert "the effect of adapters is not checked" in caplog.text


def test_the_model_is_left_as_it_was(base):
    from rea_rl.rollout.probe import trainer_logps

    model = make_adapter(base, 0.3)
    for training in (True, False):
        model.train(training)
        logps = trainer_logps(model, IDS)
        assert (
            model.training is training
            and not logps.requires_grad
            and logps.shape == (len(IDS) - 1,)
        )
