"""The chain against scripted servers: ids, log-probs, cuts and texts computed by hand."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import openai
import pytest
from rollouts import (
    CUT,
    FORCED,
    SAMPLE,
    THINKING,
    TOKENIZER,
    VERSION,
    encode,
    ended,
    is_finish,
    labels,
    make_engine,
    make_row,
    policy,
    run,
)
from scripted_server import ScriptedServer, completion
from tiny import make_tokenizer

from rea_core.problems import problem_digest
from rea_rl.rollout.record import (
    STAGES,
    Batch,
    Rollout,
    longest_metrics,
    record_line,
    rollout_metrics,
    trained_rows,
)


def test_original_and_revision_by_hand(tmp_path):
    (original, revision), server, _ = run(tmp_path, policy(), labels(0.2, 0.9, 0.1, 0.9))
    assert original.completion_ids == ended(SAMPLE)
    assert original.prompt_ids == encode("<U>2+2? 0<A><think>\n")
    assert original.logprobs == [-i / 8 for i in range(len(ended(SAMPLE)))]
    assert (original.kind, original.text, original.correct) == ("original", SAMPLE, True)
    assert (original.problem_id, original.step, original.policy_version) == ("p0", 7, VERSION)
    assert original.num_think_tokens == len(encode(THINKING + "\n"))
    assert original.num_reflections == 1  # "Wait, check" is one cluster

    kept, forced, finish = encode(CUT), encode(FORCED), ended("\\boxed{4}")
    assert revision.completion_ids == kept + forced + finish
    assert revision.logprobs == (
        original.logprobs[: len(kept)] + [None] * len(forced) + [-i / 8 for i in range(len(finish))]
    )
    assert (revision.kind, revision.cut, revision.num_paragraphs, revision.correct) == (
        "revision",
        1,
        4,
        True,
    )
    # the first hit is the cut, whatever comes
    assert revision.p_result == pytest.approx([0.2, 0.9])
    assert (revision.num_label_tokens, revision.num_label_tokens_saved) == (
        4,
        len("[3]. Think\n[4]. Think\n"),
    )
    assert revision.num_cached_tokens == 40
    assert revision.num_kept_tokens == len(kept)
    assert revision.text == CUT + FORCED + "\\boxed{4}"
    assert revision.num_reflections == 0
    assert revision.num_tokens == len(revision.completion_ids)
    assert server.bodies("completions")[1]["prompt"] == original.prompt_ids + kept + forced


def test_requests_say_everything_about_sampling(tmp_path):
    # What a request leaves out is taken from the model's generation_config.json by the server.
    _, first, second = run(tmp_path, policy(), labels(0.2, 0.9, 0.1, 0.9))
    sampled, finished = first.bodies("completions")
    expected = {
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": 0,
    }
    for body in (sampled, finished):
        assert expected.items() <= body.items()
        assert (body["model"], body["return_token_ids"]) == (VERSION, True)
    assert sampled["max_tokens"] == 200
    (label,) = second.bodies("completions")
    assert {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "logprobs": 5,
        "model": "refl",
        "stream_interval": 14,
        "return_token_ids": False,
    }.items() <= label.items()
    assert sampled["prompt"] == encode("<U>2+2? 0<A><think>\n")


def test_the_client_does_not_look_at_every_id_of_a_prompt(tmp_path, monkeypatch):
    """It takes 10 us an id to do so, which was most of what a rollout cost the trainer."""
    from openai._utils import _transform

    seen = []
    plain = _transform._async_transform_recursive

    async def counted(data, **kwargs):
        seen.append(data)
        return await plain(data, **kwargs)

    monkeypatch.setattr(_transform, "_async_transform_recursive", counted)
    row = make_row() | {"prompt": f"<U>{'x' * 500}<A><think>\n"}
    _, server, _ = run(tmp_path, policy(), labels(0.2, 0.9, 0.1, 0.9), [row])
    assert len(server.bodies("completions")[0]["prompt"]) > 500
    assert len(seen) < 100


@pytest.mark.parametrize("interval", [1, 3, 14, 100])
def test_events_of_several_tokens_have_the_same_labels(tmp_path, interval):
    """The server sends so many tokens at a time; what is unread is counted by labels."""
    reply = labels(0.2, 0.1, 0.9, 0.1)

    with (
        ScriptedServer(policy(), [VERSION]) as first,
        ScriptedServer(reply, ["refl"]) as second,
        make_engine(tmp_path, first.url, second.url) as engine,
    ):
        second.tokens_an_event = interval
        _, revision = engine.run([make_row()], Batch(7, VERSION, True))
    expected = [0.2, 0.1, 0.9, 0.1][: 4 if interval > 6 else 3]
    assert revision.p_result == pytest.approx(expected) and revision.cut == 2


def test_labels_are_asked_in_the_training_format(tmp_path):
    _, _, server = run(tmp_path, policy(), labels(0.2, 0.9, 0.1, 0.9))
    (body,) = server.bodies("completions")
    prompt = TOKENIZER.decode(body["prompt"])
    assert prompt.startswith("<U>") and "2+2? 0" in prompt
    assert "[2]. The result is 4.\n\n[3]. Wait, check it." in prompt
    assert prompt.endswith("<A><think>\n[1].")
    # Byte tokens: the longer label of "[1]. Result\n[2]. Result\n[3]. Result\n[4]. Result".
    assert body["max_tokens"] == len("[1]. Result") * 4 + 3


def test_compact_labels_are_one_token_each(tmp_path):
    def reply(body):
        steps = labels(0.2, 0.9, 0.1, 0.9)(body)[1]["choices"][0]["logprobs"]["top_logprobs"][1::2]
        return completion([0] * len(steps), top_logprobs=steps)

    settings = {"reflection_reply": "compact", "label_until_decided": False}
    (_, revision), _, server = run(tmp_path, policy(), reply, **settings)
    (body,) = server.bodies("completions")
    prompt = TOKENIZER.decode(body["prompt"])
    assert "Write one word for each part" in prompt and prompt.endswith("<A><think>\nLabels:")
    assert body["max_tokens"] == len("Labels: Result Result Result Result")  # byte tokens
    assert revision.p_result == pytest.approx([0.2, 0.9, 0.1, 0.9])
    assert (revision.num_label_tokens, revision.cut) == (4, 1)


@pytest.mark.parametrize("wave, least", [(1, [1, 2, 3, 4, 5]), (2, [2, 2, 4, 4, 5]), (9, [5] * 5)])
def test_paths_are_labelled_and_finished_in_waves(tmp_path, wave, least):
    """Five paths end one after the other; at each request for labels, and for an answer, so many
    were ready for it."""
    sampled, labelled, before_labels, before_answer = [], [], [], []

    def sample(body):
        if is_finish(body):
            before_answer.append(len(labelled))
        else:
            number = int(re.search(r"\? (\d)", TOKENIZER.decode(body["prompt"]))[1])
            time.sleep(0.3 * number)
            sampled.append(number)
        return policy()(body)

    def label(body):
        before_labels.append(len(sampled))
        time.sleep(0.05 * len(before_labels))  # replies of different lengths
        labelled.append(body)
        return labels(0.2, 0.9, 0.1, 0.9)(body)

    rows = [make_row(i) for i in range(5)]
    rollouts, _, _ = run(tmp_path, sample, label, rows, stage_batch_size=wave)
    assert [r.problem_id for r in rollouts[::2]] == [row["problem_id"] for row in rows]
    assert [r.cut for r in rollouts[1::2]] == [1] * 5
    for found in (before_labels, before_answer):
        assert len(found) == 5 and all(
            ready >= needed for ready, needed in zip(found, least, strict=True)
        )
        assert found[0] < 5 or wave == 9  # the first did not wait for all


def test_a_wave_does_not_wait_for_paths_without_labels(tmp_path):
    """An empty path needs none; the others are fewer than a wave."""
    empty = iter([True, False])

    def replies(body):
        ends_at_once = not is_finish(body) and next(empty)
        return completion([TOKENIZER.eos_token_id]) if ends_at_once else policy()(body)

    rollouts, _, server = run(
        tmp_path,
        replies,
        labels(0.2, 0.9, 0.1, 0.9),
        [make_row(0), make_row(1)],
        stage_batch_size=2,
    )
    assert len(server.bodies("completions")) == 1
    assert sorted(r.kind for r in rollouts) == ["original", "original", "original", "revision"]


def test_a_path_that_fails_ends_those_that_wait_for_it(tmp_path):
    """The first labels come; the second path's do not, and the first one waits for it before its
    answer."""
    replies = iter([labels(0.2, 0.9, 0.1, 0.9), lambda body: (500, {"error": {"message": "boom"}})])
    with pytest.raises(ConnectionError, match="reflection_server .* failed a request 1 times"):
        run(
            tmp_path,
            policy(),
            lambda body: next(replies)(body),
            [make_row(0), make_row(1)],
            stage_batch_size=2,
        )


def test_reply_is_left_as_soon_as_the_cut_is_decided(tmp_path):
    replies = labels(0.2, 0.9, *[0.1] * 200)
    with (
        ScriptedServer(policy(), [VERSION]) as first,
        ScriptedServer(replies, ["refl"]) as second,
        make_engine(tmp_path, first.url, second.url) as engine,
    ):
        second.pause = 0.005
        _, revision = engine.run([make_row()], Batch(7, VERSION, True))
        engine.args.label_until_decided = False
        _, whole = engine.run([make_row()], Batch(7, VERSION, True))
    assert revision.num_label_tokens == 4 and whole.num_label_tokens == 404
    assert revision.completion_ids == whole.completion_ids
    assert second.streamed[0] < 100 and second.streamed[1] == 404


def test_no_labels_are_asked_for_where_they_cannot_matter(tmp_path):
    # Half of the four paragraphs are cut off at least, and a normal cut keeps half of them at
    # least.
    (_, revision), _, server = run(
        tmp_path, policy(), labels(0.9), cut_second_half=0.5, cut_cap_share=1.0, cut_cap_max=2
    )
    assert server.bodies("completions") == []
    assert (revision.cut, revision.p_result, revision.num_label_tokens) == (1, [], 0)
    assert revision.num_label_tokens_saved == len("[1]. Think") * 4 + 3


def test_a_record_says_which_problem_was_asked(tmp_path):
    """Originals, revisions and places of missing responses; the ids of two files may be equal."""
    rows = [make_row(0), {**make_row(1), "problem_id": "p0"}]
    rollouts, _, _ = run(tmp_path, policy(), labels(0.2, 0.9, 0.1), rows)
    assert [r.kind for r in rollouts] == ["original", "revision"] * 2
    wanted = [problem_digest(row["problem"]) for row in rows for _ in range(2)]
    assert [json.loads(record_line(r))["problem_digest"] for r in rollouts] == wanted
    missing = Rollout.missing(rows[1], Batch(0, VERSION, False), [5], 0)
    assert missing.problem_digest == wanted[-1]


def test_a_path_without_a_result_may_stay_as_it_is(tmp_path):
    (original, twin), server, _ = run(
        tmp_path, policy(), labels(0.1, 0.1, 0.1, 0.1), always_cut=False
    )
    assert (twin.kind, twin.completion_ids) == ("original", original.completion_ids)
    assert not any(is_finish(body) for body in server.bodies("completions"))
    # labelled until that was decided
    assert original.p_result == twin.p_result == pytest.approx([0.1] * 3)
    assert "label" in original.seconds and twin.seconds == {}
    metrics = rollout_metrics([original, twin], True)
    found = [
        metrics[key]
        for key in ("revision/missing", "reflection/labelled", "reflection/result_share")
    ]
    assert found == [1, 3 / 4, 0]


def test_a_reply_that_ends_by_itself_saves_nothing(tmp_path):
    (_, revision), _, _ = run(tmp_path, policy(), labels(0.1))
    assert (revision.p_result, revision.num_label_tokens) == (pytest.approx([0.1]), 2)
    assert revision.num_label_tokens_saved == 0


def test_lost_stream_is_one_clear_error(tmp_path):
    with (
        ScriptedServer(policy(), [VERSION]) as first,
        ScriptedServer(labels(0.1, 0.1, 0.1, 0.1), ["refl"]) as second,
        make_engine(tmp_path, first.url, second.url) as engine,
    ):
        second.stream_limit = 3
        with pytest.raises(ConnectionError, match="reflection_server .* failed a request 1 times"):
            engine.run([make_row()], Batch(7, VERSION, True))


def test_closing_the_engine_ends_what_is_under_way(tmp_path):
    with ScriptedServer(lambda body: time.sleep(5) or policy()(body), [VERSION]) as server:
        engine = make_engine(tmp_path, server.url)
        with ThreadPoolExecutor(1) as executor:
            batch = executor.submit(engine.run, [make_row()], Batch(0, VERSION, False))
            while not (server.requests or batch.done()):
                time.sleep(0.01)
            start = time.perf_counter()
            with engine:
                pass
            with pytest.raises(CancelledError):
                batch.result()
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "strength, kept",
    # weak: the last part has to go, see below
    [("strong", "Set up."), ("normal", CUT), ("weak", THINKING)],
)
def test_strength_chooses_the_cut(tmp_path, strength, kept):
    # strong: 0.95 is the most certain up to the normal cut; weak: the first result after the normal
    # one.
    (_, revision), _, _ = run(
        tmp_path,
        policy(),
        labels(0.95, 0.9, 0.1, 0.9),
        revision_strength=strength,
        cut_second_half=0.25,
    )
    if strength == "weak":  # all four would be kept, so the last blank-line part is cut off
        kept = "Set up.\n\nThe result is 4.\n\nWait, check it."
    assert revision.text == kept + FORCED + "\\boxed{4}"


def test_forced_text_after_a_token_with_the_newline(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([".\n\n"])
    with (
        ScriptedServer(
            lambda body: completion(tokenizer.encode("\\boxed{4}" if is_finish(body) else SAMPLE)),
            [VERSION],
        ) as first,
        ScriptedServer(labels(0.2, 0.9, 0.1, 0.9), ["refl"]) as second,
        make_engine(tmp_path, first.url, second.url) as engine,
    ):
        engine.tokenizer = tokenizer
        _, revision = engine.run([make_row()], Batch(7, VERSION, True))
    assert revision.text == CUT + "\n\n" + FORCED.lstrip("\n") + "\\boxed{4}"
    assert revision.completion_ids[: revision.num_kept_tokens] == tokenizer.encode(CUT + "\n\n")


def test_truncated_path_is_cut_and_finished_too(tmp_path):
    truncated = policy(THINKING.removesuffix("again."), finish_reason="length")
    (original, revision), _, _ = run(tmp_path, truncated, labels(0.2, 0.9, 0.1))
    assert (original.finish_reason, original.correct) == ("length", False)
    assert revision.text == CUT + FORCED + "\\boxed{4}"
    assert (revision.finish_reason, revision.correct) == ("stop", True)
    assert original.num_think_tokens == len(original.completion_ids)  # no </think>: all of it


def test_finished_path_without_an_end_of_thinking_is_all_thinking(tmp_path):
    (original, revision), _, _ = run(
        tmp_path, policy(THINKING + "\n\n\\boxed{4}"), labels(0.2, 0.9, 0.1, 0.9, 0.9)
    )
    # a box inside the thinking is no answer
    assert (original.finish_reason, original.correct) == ("stop", False)
    assert original.num_think_tokens == original.num_tokens
    assert (revision.num_paragraphs, revision.text) == (5, CUT + FORCED + "\\boxed{4}")


def test_empty_completion_is_a_wrong_path_that_stands_twice(tmp_path):
    rollouts, server, _ = run(tmp_path, lambda _: completion([TOKENIZER.eos_token_id]), labels(0.9))
    assert [(r.kind, r.text, r.num_tokens, r.correct) for r in rollouts] == [
        ("original", "", 1, False)
    ] * 2
    assert len(server.bodies("completions")) == 1
    metrics = rollout_metrics(rollouts, revision=True)
    assert metrics["reflection/density"] == 0 and metrics["revision/missing"] == 1


def test_single_part_stands_twice(tmp_path):
    rollouts, server, _ = run(tmp_path, policy("It is 4.\n</think>\n\n\\boxed{4}"), labels(0.9))
    assert [r.kind for r in rollouts] == ["original", "original"]
    assert rollouts[0].completion_ids == rollouts[1].completion_ids
    assert len(server.bodies("completions")) == 1  # nothing was finished
    assert rollout_metrics(rollouts, revision=True)["revision/missing"] == 1


def test_no_labels_where_the_reflection_context_is_too_short(tmp_path):
    (_, revision), _, server = run(tmp_path, policy(), labels(0.9), context=100)
    assert server.bodies("completions") == []
    assert (revision.p_result, revision.cut) == ([], 3)
    assert revision.text.startswith("Set up.\n\nThe result is 4.\n\nWait, check it.\n</think>")


def test_order_of_rows_does_not_depend_on_who_is_first(tmp_path):
    def slow_first(body):
        if not is_finish(body):
            number = int(re.search(r"2\+2\? (\d)", TOKENIZER.decode(body["prompt"]))[1])
            time.sleep(0.05 * (5 - number))
        return policy()(body)

    rollouts, _, _ = run(
        tmp_path, slow_first, labels(0.2, 0.9, 0.1, 0.9), rows=[make_row(i) for i in range(5)]
    )
    assert [r.problem_id for r in rollouts] == [f"p{i}" for i in range(5) for _ in range(2)]
    assert [r.kind for r in rollouts] == ["original", "revision"] * 5


def test_open_requests_are_bounded(tmp_path):
    def slow(body):
        time.sleep(0.02)
        return policy()(body)

    _, server, _ = run(
        tmp_path,
        slow,
        labels(0.2, 0.9),
        rows=[make_row(i) for i in range(9)],
        max_concurrent_requests=3,
    )
    assert server.most_open == 3
    assert len(server.bodies("completions")) == 18


def test_without_revision_one_row_per_path(tmp_path):
    with ScriptedServer(policy(), [VERSION]) as server, make_engine(tmp_path, server.url) as engine:
        (original,) = engine.run([make_row()], Batch(0, VERSION, False))
    assert (original.kind, original.correct, original.cut) == ("original", True, None)
    assert engine.verifier.closed


def test_dead_server_is_one_clear_error(tmp_path):
    start = time.perf_counter()
    with make_engine(
        tmp_path, "http://127.0.0.1:9/v1", request_retries=2, server_deadline=0.3
    ) as engine:
        message = (
            r"policy_server \(http://127.0.0.1:9/v1\) does not answer, 0 s "
            r"\(server_deadline\) after .* start it again"
        )
        with pytest.raises(ConnectionError, match=message):
            engine.run([make_row(i) for i in range(3)], Batch(0, VERSION, False))
        assert engine.counts["servers/outages"] == 1
    assert time.perf_counter() - start < 5


def test_refused_request_stops_the_batch(tmp_path):
    refuse = lambda body: (400, {"error": {"message": "The prompt is too long."}})  # noqa: E731
    with (
        ScriptedServer(refuse, [VERSION]) as server,
        make_engine(tmp_path, server.url, request_retries=5) as engine,
    ):
        with pytest.raises(openai.BadRequestError, match="too long"):
            engine.run([make_row()], Batch(0, VERSION, False))
        # It would be refused again. The other one asked whether the server answers at all.
        assert len(server.bodies("completions")) == 2


def test_rollouts_use_a_tokenizer_of_their_own(tmp_path, monkeypatch):
    """The trainer's is in use in another thread, and fast tokenizers are for one at a time."""
    first, second = (
        ScriptedServer(policy(), [VERSION]),
        ScriptedServer(labels(0.2, 0.9, 0.1, 0.9), ["refl"]),
    )
    trainers = make_tokenizer()
    with first, second, make_engine(tmp_path, first.url, second.url, trainers) as engine:

        def in_use(*_, **__):
            raise AssertionError("the trainer's tokenizer was used")

        for method in ("encode", "decode", "convert_tokens_to_ids"):
            monkeypatch.setattr(trainers, method, in_use)
        _, revision = engine.run([make_row()], Batch(7, VERSION, True))
        assert revision.kind == "revision"


def make_rollout(kind, correct, num_tokens, **fields):
    defaults = {
        "num_think_tokens": num_tokens - 10,
        "num_reflections": 0,
        "finish_reason": "stop",
        "logprobs": [],
    }
    fields = defaults | fields
    return Rollout(
        "p",
        0,
        VERSION,
        kind,
        [1],
        [2] * num_tokens,
        text="",
        num_tokens=num_tokens,
        correct=correct,
        **fields,
    )


def revised(correct, num_tokens, cut, p_result, **fields):
    return make_rollout(
        "revision",
        correct,
        num_tokens,
        cut=cut,
        num_paragraphs=4,
        p_result=p_result,
        num_kept_tokens=20,
        **fields,
    )


def test_wrong_revision_gives_its_row_to_its_original():
    rows = [
        make_rollout("original", False, 100), revised(False, 40, 0, []),
        make_rollout("original", False, 100), revised(True, 40, 0, []),
    ]  # fmt: skip
    assert trained_rows(rows) == [rows[0], rows[0], rows[2], rows[3]]


def test_metrics_by_hand():
    rollouts = [
        make_rollout("original", True, 100, num_reflections=3,
                     seconds={"sample": 2.0, "verify": 1.0}),
        revised(
            False, 40, 1, [0.1, 0.9, 0.2, 0.2], seconds={"label": 4.0, "verify": 3.0},
            num_label_tokens=12, num_cached_tokens=16,
            logprobs=[-0.1] * 20 + [None] * 9 + [-0.1] * 11,
        ),
        make_rollout("original", False, 210, finish_reason="length",
                     seconds={"sample": 4.0, "verify": 1.0}),
        revised(
            True, 42, 0, [0.6, 0.9], seconds={"label": 2.0, "verify": 3.0}, num_label_tokens=4,
            num_label_tokens_saved=4, num_cached_tokens=0,
            logprobs=[-0.1] * 20 + [None] * 9 + [-0.1] * 13,
        ),
        make_rollout("original", True, 20, seconds={}),
        make_rollout("original", True, 20, seconds={}),
    ]  # fmt: skip
    metrics = rollout_metrics(rollouts, revision=True)
    assert metrics == pytest.approx(
        {
            "rollout/accuracy": 2 / 3,
            "rollout/num_tokens": 110,
            "rollout/num_think_tokens": 100,
            "rollout/truncated": 1 / 3,
            "rollout/unanswered": 0,
            "reflection/density": 3 / 300,
            "revision/missing": 1 / 3,
            "revision/success": 1 / 2,
            "revision/broken": 1 / 2,
            "revision/repaired": 1 / 2,
            "revision/num_tokens": 41,
            "revision/tokens_saved": (0.6 + 0.8) / 2,
            "revision/cut_position": (2 / 4 + 1 / 4) / 2,
            "revision/truncated": 0,
            "reflection/labelled": (1 + 0.5) / 2,
            "reflection/result_share": (1 / 4 + 1) / 2,
            "reflection/num_label_tokens": 8,
            "reflection/label_tokens_saved": 4 / 20,
            "revision/cached_prompt": 16 / 60,  # twice 1 token of the prompt, 20 kept, 9 forced
            "timing/sample": 3,
            "timing/label": 3,
            "timing/verify": 2,
            "share/sample": 6 / 20,
            "share/label": 6 / 20,
            "share/verify": 8 / 20,
        }
    )


def test_the_parts_of_the_longest_response_add_up_by_hand():
    """Its original is verified while it is revised; a pair without a revision is no longer one."""
    rollouts = [
        make_rollout("original", True, 20, seconds={"sample": 5.0, "verify": 9.0}),
        revised(True, 10, 0, [], seconds={"turn": 2.0, "label": 1.0, "finish": 1.5, "verify": 0.5}),
        make_rollout("original", True, 20, seconds={"sample": 9.0, "label": 0.5, "verify": 4.0}),
        make_rollout("original", True, 20, seconds={}),
    ]
    parts = {"sample": 5, "text": 0, "turn": 2, "label": 1, "finish": 1.5, "verify": 0.5}
    expected = {f"timing/longest_{key}": value for key, value in (parts | {"other": 2}).items()}
    assert longest_metrics(rollouts, 12.0) == pytest.approx(expected)
    plain = [make_rollout("original", True, 20, seconds={"sample": 5.0, "verify": 2.0})]
    assert longest_metrics(plain, 7.5)["timing/longest_other"] == pytest.approx(0.5)
    assert longest_metrics([], 1.0)["timing/longest_other"] == 1.0


def test_a_batch_says_for_what_its_longest_response_waited(tmp_path):
    """Three responses are ready at once, the fourth a second later, and all wait for its wave."""

    def sample(body):
        time.sleep(1.0 if not is_finish(body) and "? 3" in TOKENIZER.decode(body["prompt"]) else 0)
        return policy()(body)

    rows = [make_row(i) for i in range(4)]
    start = time.perf_counter()
    rollouts, _, _ = run(tmp_path, sample, labels(0.2, 0.9, 0.1, 0.9), rows, stage_batch_size=4)
    seconds = time.perf_counter() - start
    parts = longest_metrics(rollouts, seconds)
    assert sum(parts.values()) == pytest.approx(seconds)
    assert (
        parts["timing/longest_sample"] + parts["timing/longest_turn"] > 0.9
        and parts["timing/longest_other"] >= 0
    )
    metrics = rollout_metrics(rollouts, revision=True)
    assert 0.7 < metrics["timing/turn"] and metrics["timing/text"] > 0
    assert {f"timing/{stage}" for stage in STAGES} <= metrics.keys()
    assert rollouts[7].seconds["turn"] < 0.5 < rollouts[1].seconds["turn"]


def test_gain_is_the_advantage_of_right_revisions_over_their_originals():
    """Only pairs in which both are right count, and only where advantages are known."""
    rollouts = []
    for right in (True, True, False):
        rollouts += [make_rollout("original", right, 20), revised(right, 10, 0, [0.6])]
    assert "revision/gain" not in rollout_metrics(rollouts, revision=True)
    for rollout, advantage in zip(rollouts, (0.2, -0.1, -0.3, 0.1, 0.9, -0.9), strict=True):
        rollout.advantage = advantage
    metrics = rollout_metrics(rollouts, revision=True)
    assert metrics["revision/gain"] == pytest.approx((-0.3 + 0.4) / 2)


def test_a_record_has_five_digits_of_each_probability(tmp_path):
    """In half of the bytes that a float64 takes; all else, and what has no log-prob, stays."""
    values = [-0.123456789012, None, -1e-9, -23.45678912345] * 100
    rollout = Rollout(
        "p",
        0,
        "v",
        "original",
        [1],
        list(range(400)),
        values,
        "text",
        "stop",
        400,
        400,
        1,
        p_result=[0.987654321],
    )
    line = record_line(rollout)
    read = json.loads(line)
    assert read["logprobs"][:4] == [-0.12346, None, 0.0, -23.45679] and read["p_result"] == [
        0.98765
    ]
    others = [key for key in vars(rollout) if key not in ("logprobs", "p_result")]
    assert {key: read[key] for key in others} == {key: vars(rollout)[key] for key in others}
    assert rollout.logprobs[0] == values[0]  # what is trained is not rounded
    assert len(line) < 0.8 * len(json.dumps(vars(rollout)))
