"""Servers that somebody else started: each thing that one cannot do is one line before the policy
loads, and says how to start it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer, completion
from small_runs import make_workplace, policy_server, refusal, run
from tiny import make_tokenizer

from generation import generate
from rea_core.row_files import write_json
from rea_rl.rollout.server_check import check_alternatives_of, needed_context

NOT_ENABLED = "LoRA is not enabled. Use --enable-lora to enable LoRA."
RANK = "LoRA rank 4 is greater than max_lora_rank 2."
NO_WEIGHTS = "/out/adapters/.offer doesn't contain tensors"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("workplace"))


def error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message}}


LOADING = {
    "no route": ((404, {"detail": "Not Found"}), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    "no adapters": (error(500, NOT_ENABLED), "takes no adapters; start it with --enable-lora"),
    "rank": (error(500, RANK), r"of rank 4 (lora_r): "),
    "no weights": (error(500, NO_WEIGHTS), None),
    "folder not seen yet": (error(404, "No adapter found for .offer"), None),
}


@pytest.mark.parametrize("name", LOADING)
def test_a_server_is_offered_an_adapter_before_the_policy_loads(
    tmp_path, workplace, monkeypatch, name
):
    answer, says = LOADING[name]
    flags = {"output_dir": tmp_path / "out", "max_steps": "1"}
    with policy_server(workplace / "model") as server:
        server.first = {"/v1/load_lora_adapter": [answer]}
        if says is None:
            run("grpo", workplace, policy_server=server.url, **flags)
            return
        monkeypatch.setattr("rea_rl.run.training.load_model", None)
        said = refusal("grpo", workplace, policy_server=server.url, **flags)
    assert says in said and server.url in said and "start it with" in said
    assert "max_lora_rank" not in said or name == "rank"  # nothing is blamed that was not seen
    assert not list((tmp_path / "out").rglob(".offer*"))


def told(processed: bool, answer: Any) -> Any:
    """A server that tells five alternatives to those who ask, as their temperature has them."""

    def complete(body: dict[str, Any]) -> tuple[int, Any]:
        if body["logprobs"] != 5:
            return answer(body)
        logits = [-i / (body["temperature"] if processed else 1.0) for i in range(5)]
        total = math.log(sum(map(math.exp, logits)))
        return completion([1], top_logprobs=[{str(i): x - total for i, x in enumerate(logits)}])

    return complete


@pytest.mark.parametrize(
    ("processed", "temperature", "refused"),
    [(True, "0.6", False), (False, "0.6", True), (False, "1.0", False)],
)
def test_log_probs_that_are_not_sampled_from_are_noticed(
    tmp_path, workplace, processed, temperature, refused
):
    flags = {"output_dir": tmp_path / "out", "max_steps": "1", "temperature": temperature}
    flags |= {"top_p": "1.0", "top_k": "0"}
    with policy_server(workplace / "model") as server:
        server.complete = told(processed, server.complete)
        if not refused:
            run("grpo", workplace, policy_server=server.url, **flags)
            return
        said = refusal("grpo", workplace, policy_server=server.url, **flags)
    assert "start it with --logprobs-mode processed_logprobs" in said and "temperature 0.6" in said


def test_other_weights_are_noticed_before_the_first_step(tmp_path, workplace):
    flags = {"output_dir": tmp_path / "out", "max_steps": "1"}
    with policy_server(workplace / "model") as server:
        answer = server.complete

        def complete(body: dict[str, Any]) -> tuple[int, Any]:
            if body.get("prompt_logprobs") is None:
                return answer(body)
            status, reply = completion([1])
            steps = [{str(i): {"logprob": -2.0}} for i in body["prompt"][1:]]
            reply["choices"][0]["prompt_logprobs"] = [None, *steps]
            return status, reply

        server.complete = complete
        said = refusal("grpo", workplace, policy_server=server.url, **flags)
    assert "with other weights than model_name_or_path" in said and "(median)" in said
    assert not list((tmp_path / "out").rglob("step-*"))


def test_a_reflection_server_without_alternatives_is_noticed():
    asked = "Requested sample logprobs of 5, which is greater than max allowed: 2"
    for answer, refused in ((error(400, asked), True), (completion([1]), False)):
        with ScriptedServer(lambda body, answer=answer: answer, ["refl"]) as server:
            if not refused:
                check_alternatives_of(server.url, "refl", make_tokenizer())
                continue
            with pytest.raises(
                ValueError, match="max allowed: 2.*; start it with --max-logprobs 5"
            ):
                check_alternatives_of(server.url, "refl", make_tokenizer())


@pytest.mark.parametrize(
    ("served", "changes", "says"),
    [
        (
            "vllm",
            {"api_model": "other"},
            "api_model is 'other', but the server at .*serves 'm', 'adapter'",
        ),
        (
            "vllm",
            {"max_tokens": 1024},
            "max_tokens is 1024, .*a context of 1024 tokens, .*lower it",
        ),
        ("vllm", {}, None),
        ("vllm", {"api_model": "adapter"}, None),  # whose context vLLM does not tell
        ("else", {"api_model": "other", "max_tokens": 1024}, None),  # it may know further names
    ],
)
def test_a_server_of_generate_is_asked_before_any_row(tmp_path, served, changes, says):
    def complete(body: dict[str, Any]) -> tuple[int, Any]:
        message = {"role": "assistant", "content": "7"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        shared = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        return 200, {**shared, "choices": [choice], "usage": {"completion_tokens": 1}}

    write_json(tmp_path / "p.json", [{"problem": "3+4?", "answer": "7"}])
    cards = [{"id": "m", "owned_by": served, "max_model_len": 1024}]
    cards.append({"id": "adapter", "owned_by": served, "max_model_len": None})
    with ScriptedServer(complete, ["m"]) as server:
        server.first = {"/v1/models": [(200, {"object": "list", "data": cards})]}
        flags = {"qaf": tmp_path / "p.json", "output_dir": tmp_path, "model_dir": "m", "api": True}
        flags |= {"api_base": server.url, "api_model": "m", "max_tokens": 100, **changes}
        line = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
        if says is None:
            generate.main(line)
            return
        with pytest.raises(SystemExit, match=f"error: {says}"):
            generate.main(line)
        assert not server.bodies("chat/completions")


def test_few_prompts_over_the_context_are_named_and_do_not_decide(caplog):
    prompts = [(10 + i, f"p{i}") for i in range(20)]
    cases = [  # context, what is needed, the problems that have no room
        (100, 49, None),
        (48, 48, "p19"),
        (47, 47, "p18, p19"),
        (46, 49, None),
        (None, 49, None),
    ]
    for context, needed, named in cases:
        caplog.clear()
        assert needed_context(prompts, 20, context, "http://a/v1")[0] == needed
        assert (f"problems {named}" in caplog.text) if named else not caplog.text
