"""Requests that fail: what is repeated, what is counted, and that a restarted server gets its
adapter first."""

from __future__ import annotations

import copy
import threading
import time

import pytest
from rollouts import (
    SAMPLED,
    VERSION,
    Verifier,
    ended,
    labels,
    make_engine,
    make_row,
    policy,
    run_sampling,
)
from scripted_server import ScriptedServer, completion

from rea_rl.rollout.record import Batch
from rea_rl.rollout.replies import Completion

REVISED = Batch(7, VERSION, True)


def every(n, reply, failure):
    """A server that answers `failure` to each n-th request."""
    lock, count = threading.Lock(), iter(range(10**6))

    def answer(body):
        with lock:
            fails = next(count) % n == n - 1
        return failure if fails else reply(body)

    return answer


def test_one_request_in_ten_is_answered_500(tmp_path, caplog):
    broken = every(10, policy(), (500, {"error": {"message": "boom"}}))
    rollouts, counts, server = run_sampling(tmp_path, broken, num_rows=40, request_retries=5)
    assert [r.problem_id for r in rollouts] == [f"p{i}" for i in range(40)]  # each once, in order
    failed = len(server.bodies("completions")) - 40
    assert failed >= 4 and counts["servers/failed_requests"] == failed
    assert counts["servers/outages"] == 0
    assert "policy_server" in caplog.text and "boom" in caplog.text and "repeating" in caplog.text


def test_always_500_ends_after_the_retries(tmp_path):
    with pytest.raises(
        ConnectionError, match="failed a request 3 times, at last with: InternalServerError.*boom"
    ):
        run_sampling(
            tmp_path,
            lambda body: (500, {"error": {"message": "boom"}}),
            num_rows=1,
            request_retries=2,
        )


def test_a_reply_that_a_dying_server_broke_off_is_repeated(tmp_path):
    replies = iter([completion(ended("\\boxed"), "abort")])
    (rollout,), counts, server = run_sampling(
        tmp_path, lambda body: next(replies, None) or policy()(body), num_rows=1, request_retries=1
    )
    assert rollout.finish_reason == "stop" and len(server.bodies("completions")) == 2
    assert counts["servers/failed_requests"] == 1


NAN, NONE = float("nan"), None
IDS = ended("\\boxed{4}")


@pytest.mark.parametrize(
    "logprobs, message",
    [
        (
            [NAN] + [-0.1] * (len(IDS) - 1),
            "1 log-probs that are missing or not finite, such as nan",
        ),
        (
            [-0.1, NONE] + [-0.1] * (len(IDS) - 2),
            "1 log-probs that are missing or not finite, such as None",
        ),
        ([-0.1] * (len(IDS) - 1) + [float("-inf")], "not finite, such as -inf"),
        ([-0.1] * (len(IDS) - 1), f"a reply of {len(IDS)} tokens with {len(IDS) - 1} log-probs"),
        (NONE, f"a reply of {len(IDS)} tokens with 0 log-probs"),
    ],
)
def test_unusable_log_probs_are_asked_for_again_and_never_trained(
    tmp_path, caplog, logprobs, message
):
    bad = completion(IDS, token_logprobs=logprobs)
    rollouts, counts, _ = run_sampling(
        tmp_path, every(2, policy("\\boxed{4}"), bad), num_rows=1, request_retries=1
    )
    assert counts["servers/failed_requests"] == 0
    rollouts, counts, server = run_sampling(
        tmp_path, every(2, policy("\\boxed{4}"), bad), num_rows=3, request_retries=5
    )
    assert all(value == -i / 8 for r in rollouts for i, value in enumerate(r.logprobs))
    assert counts["servers/failed_requests"] == len(server.bodies("completions")) - 3 > 0
    assert message in caplog.text
    with pytest.raises(
        ConnectionError, match="failed a request 2 times, at last with: UnusableReply"
    ):
        run_sampling(tmp_path, lambda body: bad, num_rows=1, request_retries=1)


def test_reply_without_a_token_is_unusable(tmp_path):
    with pytest.raises(ConnectionError, match="a reply without a token"):
        run_sampling(tmp_path, lambda _: completion([]), num_rows=1, request_retries=0)


def test_reply_without_any_log_probs_is_unusable(tmp_path):
    status, body = completion(IDS)
    body["choices"][0]["logprobs"] = None
    with pytest.raises(ConnectionError, match=f"a reply of {len(IDS)} tokens with 0 log-probs"):
        run_sampling(tmp_path, lambda _: (status, body), num_rows=1, request_retries=0)


@pytest.mark.parametrize("step", [{" Result": NAN, " Think": -0.1}, {}, None])
def test_unusable_labels_are_asked_for_again(tmp_path, caplog, step):
    good = labels(0.2, 0.9, 0.1, 0.9)
    status, broken = copy.deepcopy(good(None))
    broken["choices"][0]["logprobs"]["top_logprobs"][1] = step
    replies = iter([(status, broken), good(None)])
    with (
        ScriptedServer(policy(), [VERSION]) as first,
        ScriptedServer(lambda body: next(replies), ["refl"]) as second,
        make_engine(tmp_path, first.url, second.url, request_retries=1) as engine,
    ):
        _, revision = engine.run([make_row()], REVISED)
        assert engine.counts["servers/failed_requests"] == 1
    assert revision.p_result == pytest.approx([0.2, 0.9]) and revision.num_label_tokens == 4
    assert "UnusableReply" in caplog.text


def test_stream_that_breaks_is_read_from_its_beginning(tmp_path):
    good = labels(0.1, 0.1, 0.1, 0.9)
    with (
        ScriptedServer(policy(), [VERSION]) as first,
        ScriptedServer(good, ["refl"]) as second,
        make_engine(tmp_path, first.url, second.url, request_retries=2) as engine,
    ):
        second.stream_limit = 3
        threading.Timer(0.4, setattr, (second, "stream_limit", None)).start()
        _, revision = engine.run([make_row()], REVISED)
        assert engine.counts["servers/failed_requests"] >= 1
    # the cut is decided then; none of the broken reply's
    assert revision.p_result == pytest.approx([0.1, 0.1, 0.1])


class Restarted:
    """A policy server that dies at its n-th request and comes back empty on the same port."""

    def __init__(self, after, away=0.6):
        self.first, self.second = ScriptedServer(self.answer, [VERSION]), None
        self.after, self.away, self.count, self.lock = after, away, 0, threading.Lock()

    def answer(self, body):
        with self.lock:
            self.count += 1
            if self.count == self.after:
                threading.Thread(target=self.restart).start()
            self.first.broken = self.count >= self.after
        return policy()(body)

    def restart(self):
        self.first.__exit__()
        time.sleep(self.away)
        self.second = ScriptedServer(policy(), [], port=self.first.port)
        self.second.only_known_models = True
        self.second.__enter__()


def test_restarted_server_gets_its_adapter_before_any_sample(tmp_path, caplog):
    restarted = Restarted(after=5)
    folder = tmp_path / "adapters" / VERSION
    folder.mkdir(parents=True)
    restarted.first.__enter__()
    with make_engine(
        tmp_path, restarted.first.url, request_retries=5, max_concurrent_requests=1
    ) as engine:
        rollouts = engine.run([make_row(i) for i in range(12)], SAMPLED)
        counts = engine.counts
    restarted.second.__exit__()
    assert [r.problem_id for r in rollouts] == [f"p{i}" for i in range(12)]
    # What was answered before is not asked again: no prompt was answered twice.
    asked = [body["prompt"] for body in restarted.second.bodies("completions")]
    assert len(asked) == len({tuple(prompt) for prompt in asked}) == 12 - 4
    assert restarted.second.requests[0] == (
        "/v1/load_lora_adapter", {"lora_name": VERSION, "lora_path": str(folder)}
    )  # fmt: skip
    assert (counts["servers/outages"], counts["servers/reloaded_adapters"]) == (1, 1)
    assert 0.5 < counts["servers/downtime_seconds"] < 10
    assert (
        "it is away" in caplog.text
        and "loaded it again" in caplog.text
        and "is back after" in caplog.text
    )


def test_server_that_was_restarted_unnoticed_gets_its_adapter(tmp_path):
    """Nothing was under way while it was down: the first sign is that the version is unknown."""
    with (
        ScriptedServer(policy(), []) as server,
        make_engine(tmp_path, server.url, request_retries=1) as engine,
    ):
        server.only_known_models = True
        assert len(engine.run([make_row(i) for i in range(3)], SAMPLED)) == 3
        assert (
            engine.counts["servers/outages"] == 0
            and engine.counts["servers/reloaded_adapters"] == 1
        )
    assert [path for path, _ in server.requests].count("/v1/load_lora_adapter") == 1


def test_adapter_that_a_restarted_server_refuses_ends_the_run(tmp_path):
    refused = Batch(7, "refused", False)
    with (
        ScriptedServer(policy(), []) as server,
        make_engine(tmp_path, server.url, request_retries=5) as engine,
    ):
        server.only_known_models = True
        with pytest.raises(
            ConnectionError, match="refuses the adapter .*adapters/refused .*at least lora_r"
        ):
            engine.run([make_row()], refused)


def test_hung_server_is_noticed_at_the_request_timeout(tmp_path, caplog):
    hung, release = threading.Event(), threading.Event()

    def answer(body):
        if not hung.is_set():
            hung.set()
            release.wait(20)
        return policy()(body)

    rollouts, counts, _ = run_sampling(
        tmp_path, answer, num_rows=2, request_retries=2, request_timeout=0.5
    )
    release.set()
    assert len(rollouts) == 2 and counts["servers/failed_requests"] == 1
    assert "APITimeoutError" in caplog.text


def test_two_batches_wait_together_and_the_run_ends_once(tmp_path):
    """The batch ahead does not wait for another deadline after that of the current one."""
    with make_engine(
        tmp_path, "http://127.0.0.1:9/v1", request_retries=3, server_deadline=1.0
    ) as engine:
        failures, start = [], time.perf_counter()

        def sample():
            with pytest.raises(ConnectionError) as caught:
                engine.run([make_row()], SAMPLED)
            failures.append(str(caught.value))

        threads = [threading.Thread(target=sample) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert time.perf_counter() - start < 4
    assert len(failures) == 2 and failures[0] == failures[1]
    assert isinstance(engine.verifier, Verifier) and engine.verifier.closed


def test_a_reply_that_does_not_say_how_it_ended_is_read():
    choice = {"token_ids": [7], "logprobs": {"token_logprobs": [-0.5]}}
    assert Completion.of({"choices": [choice]}) == Completion([7], [-0.5], None, None)
