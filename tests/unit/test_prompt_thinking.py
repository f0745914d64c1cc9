"""What a prompt did to the thinking travels with each response: rendering, rollouts, files,
scores, data, viewer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hybrid import HYBRID, UNFINISHED, save_hybrid, score, tokenizer_of
from recipe_files import read_recipe, write_recipe
from rollouts import VERSION, Verifier, ended, labels, make_engine, policy, run
from scripted_server import ScriptedServer, completion
from tiny import make_tokenizer, save_model

from generation import generate, labeling_distill_utils, sft_data
from generation.generation_file import read_generations
from generation.math_verify import VerifierPool
from generation.path_cutting import Splitting
from generation.rendering import PromptFormat, known_thinking, marker_decoder, prompt_thinking
from generation.vllm_worker import _response
from rea_core.row_files import write_json
from rea_rl.rollout.engine import RolloutEngine
from rea_rl.rollout.record import Batch
from rea_rl.viewer import page_data

# with or without a generation prompt
ALWAYS = "{% for m in messages %}<U>{{ m['content'] | trim }}{% endfor %}<A><think>\n"
FINISHED = "Add them.\n\nIt is 2.\n</think>\n\n\\boxed{2}"
# Template, keywords of the template, prefill, problem, what the prompt does.
PROMPTS = [
    (make_tokenizer().chat_template, {}, "", "1+1?", "open"),
    (make_tokenizer().chat_template, {}, "Okay, ", "1+1?", "open"),
    (make_tokenizer().chat_template, {}, "It is easy.\n</think>\n\n", "1+1?", "closed"),
    (HYBRID, {}, "", "1+1?", "unknown"),
    (HYBRID, {"enable_thinking": True}, "", "1+1?", "unknown"),
    (HYBRID, {"enable_thinking": False}, "", "1+1?", "closed"),
    (HYBRID, {"enable_thinking": False}, "The answer is ", "1+1?", "closed"),
    (HYBRID, {}, "<think>\n", "1+1?", "open"),
    (HYBRID, {}, "", "What does <think> mean?", "unknown"),
    (HYBRID, {}, "", "Reason inside <think> and </think>.", "unknown"),
    (HYBRID, {"enable_thinking": False}, "", "Begin with <think>", "closed"),
    (make_tokenizer().chat_template, {}, "", "Write </think> last: </think>", "open"),
    (ALWAYS, {}, "", "  What is <think>?  ", "open"),
    (ALWAYS, {}, "", " ", "open"),
]


def test_a_prompt_knows_what_it_did_to_the_thinking():
    for template, keywords, prefill, problem, expected in PROMPTS:
        prompts = PromptFormat("{problem}", None, keywords, prefill)
        rendered = prompts.ask(problem, tokenizer_of(template))
        assert rendered.thinking == expected, (keywords, prefill, problem)
        assert rendered.text.endswith(prefill) and problem.strip() in rendered.text


def test_text_of_a_prompt_says_what_its_end_did():
    cases = {
        ("<U>1?<A><think>\n", "1?"): "open",
        ("<U>1?<A><think>\nOkay, ", "1?"): "open",
        ("<U>1?<A><think>\n\n</think>\n\n", "1?"): "closed",
        ("<U>1?\nReason in <think></think>.<A>", "1?"): "unknown",
        ("<U>What is <think>?<A>", "What is <think>?"): "unknown",
        ("<U>What is <think>?<A>", ""): "unknown",
        ("<U>1?<A>", "1?"): "unknown",
    }
    assert {key: prompt_thinking(*key) for key in cases} == cases


# --- Rollouts -------------------------------------------------------------------------------------


def one_path(tmp_path: Path, sample: str, prompt: str, **row):
    with (
        ScriptedServer(policy(sample), [VERSION]) as server,
        make_engine(tmp_path, server.url) as engine,
    ):
        facts = {"problem": "2+2?", "problem_id": "p", "answer": "4"}
        (rollout,) = engine.run([{"prompt": prompt, **facts, **row}], Batch(7, VERSION, False))
    return rollout


def test_a_box_in_a_thinking_that_never_ended_is_no_answer_of_a_path(tmp_path):
    open_, closed, neither = (
        "<U>2+2?<A><think>\n",
        "<U>2+2?<A><think>\n\n</think>\n\n",
        "<U>2+2?<A>",
    )
    # Prompt, response, whether it is right, whether all of it is thinking.
    cases = [
        (open_, "so \\boxed{4}. Wait, let me check", False, True),
        (open_, "<think>\nso \\boxed{4}. Wait, let me check", False, None),
        (open_, "It is 5.</think>\\boxed{4}", True, None),
        (open_, "It is \\boxed{4}.</think>It is \\boxed{5}", False, None),
        (closed, "so \\boxed{4}. Wait, let me check", True, False),
        (neither, "so \\boxed{4}. Wait, let me check", True, True),
        (neither, "<think>so \\boxed{4}. Wait, let me check", False, None),
    ]
    for prompt, text, correct, is_thinking in cases:
        rollout = one_path(tmp_path, text, prompt)
        assert rollout.correct is correct, (prompt, text)
        if is_thinking is not None:
            expected = (rollout.num_tokens, 1) if is_thinking else (0, 0)
            assert (rollout.num_think_tokens, rollout.num_reflections) == expected, (prompt, text)
    assert (
        one_path(tmp_path, UNFINISHED, neither, prompt_thinking="open").prompt_thinking == "open"
    )  # known is not guessed


def test_verifier_pool_is_told_too(tmp_path):
    with (
        ScriptedServer(policy("so \\boxed{4}. Wait"), [VERSION]) as server,
        make_engine(tmp_path, server.url) as engine,
    ):
        engine.verifier = VerifierPool(1)
        rows = [
            {"prompt": prompt, "problem": "2?", "problem_id": prompt, "answer": "4"}
            for prompt in ("<U>2?<A><think>\n", "<U>2?<A><think></think>")
        ]
        assert [r.correct for r in engine.run(rows, Batch(7, VERSION, False))] == [False, True]


def test_a_path_whose_prompt_closed_the_thinking_is_not_cut(tmp_path):
    row = {
        "prompt": "<U>2?<A><think>\n\n</think>\n\n",
        "problem": "2?",
        "problem_id": "p",
        "answer": "4",
    }
    sample = "Set up.\n\nIt is 4.\n\nWait.\n\n\\boxed{4}"
    rollouts, server, reflection = run(tmp_path, policy(sample), labels(0.9), [row])
    assert [(r.kind, r.correct, r.prompt_thinking) for r in rollouts] == [
        ("original", True, "closed")
    ] * 2
    assert len(server.bodies("completions")) == 1 and not reflection.bodies("completions")


def test_a_special_marker_separates_words_as_it_separates_tokens(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    text = "No doubt.</think>But wait, check \\boxed{4}"

    def answer(body):
        return completion(tokenizer.encode(text) + [tokenizer.eos_token_id])

    with ScriptedServer(answer, [VERSION]) as server:
        args = make_engine(tmp_path, server.url).args
        with RolloutEngine(args, tokenizer, None, Verifier()) as engine:
            row = {"prompt": "<U>2?<A><think>\n", "problem": "2?", "problem_id": "p", "answer": "4"}
            (rollout,) = engine.run([row], Batch(7, VERSION, False))
    assert (rollout.num_reflections, rollout.num_think_tokens) == (0, len("No doubt."))
    assert rollout.text == text and rollout.correct


def test_revision_of_a_closed_thinking_is_refused_before_a_model_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_hybrid(tmp_path / "model")
    closed = "chat_template_kwargs: {enable_thinking: false}"
    with pytest.raises(
        ValueError,
        match=r"close the thinking .*9 of 9.*chat_template_kwargs or prefill.*revision: false",
    ):
        read_recipe(write_recipe(tmp_path, model, closed))
    *_, inputs = read_recipe(write_recipe(tmp_path, model, f"{{{closed}, revision: false}}"))
    assert {row["prompt_thinking"] for row in inputs.train_rows} == {"closed"}
    *_, inputs = read_recipe(write_recipe(tmp_path, model, 'prefill: "<think>\\n"'))
    assert {row["prompt_thinking"] for row in inputs.train_rows} == {"open"}
    assert inputs.train_rows[0]["prompt"].endswith("<A><think>\n")


# --- Generation files -----------------------------------------------------------------------------


def counts(file: Path, model: Path, *flags: str) -> dict:
    ((problem,),) = [score(file, model, *flags)["problems"]]
    return {
        key: problem["responses"][0][key]
        for key in ("correct", "answered", "num_think_tokens", "num_reflections")
    }


def test_an_unfinished_thinking_is_no_answer_in_files_and_scores(tmp_path, generated):
    model = save_model(tmp_path / "open")
    file = generated(UNFINISHED, model)
    assert known_thinking(read_generations(file)[0]["responses"][0]) == "open"
    tokens = len(UNFINISHED)
    expected = {
        "correct": False,
        "answered": False,
        "num_think_tokens": tokens,
        "num_reflections": 1,
    }
    assert counts(file, model) == expected
    verdict = json.loads(file.with_suffix(".verdicts.jsonl").read_text())
    assert (verdict["answer"], verdict["correct"]) == (None, False)


def test_a_budget_that_cuts_the_thinking_leaves_no_answer(tmp_path, generated):
    model = save_model(tmp_path / "open")
    text = "It is \\boxed{2}. Check: 1+1.</think>It is \\boxed{3}"
    scores = score(generated(text, model), model, "--budgets", "20", "99")
    accuracy = {
        budget: figures["all"]["accuracy"]["value"] for budget, figures in scores["budgets"].items()
    }
    assert accuracy == {"20": 0.0, "99": 0.0}


def test_a_closed_thinking_makes_all_of_the_response_answer(tmp_path, generated):
    model = save_hybrid(tmp_path / "hybrid")
    file = generated(UNFINISHED, model, "--chat_template_kwargs", '{"enable_thinking": false}')
    assert generated.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    expected = {"correct": True, "answered": True, "num_think_tokens": 0, "num_reflections": 0}
    assert counts(file, model) == expected


def test_a_file_that_does_not_say_it_is_scored_by_the_models_template(tmp_path, generated, capfd):
    open_, hybrid = save_model(tmp_path / "open"), save_hybrid(tmp_path / "hybrid")
    file = generated(UNFINISHED, "some-name")
    assert "some-name is only a name" in capfd.readouterr().err
    assert "prompt_thinking" not in read_generations(file)[0]["responses"][0]
    assert counts(file, open_)["correct"] is False
    logged = capfd.readouterr().err
    assert "1 responses do not say" in logged and "chat template of model_dir: open" in logged
    assert counts(file, hybrid)["correct"] is True


def test_a_file_without_a_tokenizer_is_scored_with_the_keywords_that_it_was_asked_with(
    tmp_path, generated
):
    hybrid = save_hybrid(tmp_path / "hybrid")
    file = generated(
        "<think>" + UNFINISHED, "some-name", "--chat_template_kwargs", '{"enable_thinking": false}'
    )
    assert counts(file, hybrid) == {
        "correct": True,
        "answered": True,
        "num_think_tokens": 0,
        "num_reflections": 0,
    }


def test_an_engine_keeps_a_special_marker():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    ids = [*tokenizer.encode("a</think>b"), tokenizer.eos_token_id]
    output = SimpleNamespace(text="ab", token_ids=ids, finish_reason="stop", logprobs=None)
    assert _response(output, marker_decoder(tokenizer))["text"] == "a</think>b"
    # as the engine has it
    assert _response(output, marker_decoder(make_tokenizer()))["text"] == "ab"


def test_an_unfinished_thinking_is_no_training_data(tmp_path, generated):
    model = save_model(tmp_path / "open")
    (path,) = read_generations(generated(FINISHED + " " * 99, model))
    write_json(tmp_path / "paths.json", [path])
    columns = {"id": "p/0", "problem": "1+1?", "answer": "2", "problem_id": "p", "cut": 0}
    for text, taken in ((FINISHED, 1), (UNFINISHED, 0)):
        response = {
            "text": text,
            "num_tokens": 9,
            "finish_reason": "stop",
            "prompt_thinking": "open",
        }
        write_json(tmp_path / "finished.json", [columns | {"responses": [response]}])
        flags = [str(tmp_path / "finished.json"), "--paths", str(tmp_path / "paths.json")]
        flags += ["--sft_out", str(tmp_path / "sft.json"), "--rpo_out", str(tmp_path / "rpo.json")]
        if taken:
            sft_data.main(flags)
            assert len(json.loads((tmp_path / "sft.json").read_text())) == 1
        else:
            with pytest.raises(
                SystemExit, match="none of its 1 responses is cut, shorter than before and right"
            ):
                sft_data.main(flags)


def test_a_judge_that_thinks_is_read_after_its_thinking(tmp_path):
    labels = "[1]. Think: a\nLabel: Reasoning\n\n[2]. Think: b\nLabel: Right Result"
    thinking = "[1]. I am not sure.\n\n[3]. Think: c\nLabel: Reasoning"
    row = {"paragraphs": ["a", "b"]}
    for text, known, expected in (
        (labels, {}, [False, True]),
        (f"<think>{thinking}</think>{labels}", {}, [False, True]),
        (f"{thinking}</think>{labels}", {"prompt_thinking": "open"}, [False, True]),
        (labels, {"prompt_thinking": "open"}, None),
        (labels, {"prompt_thinking": "closed"}, [False, True]),
    ):
        assert (
            labeling_distill_utils.chunk_candidates(row | {"responses": [{"text": text} | known]})
            == expected
        ), text


def test_a_closed_thinking_has_no_paragraphs_to_label(tmp_path):
    model = save_model(tmp_path / "model")
    response = {
        "text": "One.\n\nTwo.",
        "num_tokens": 9,
        "finish_reason": "stop",
        "prompt_thinking": "closed",
    }
    row = {"id": "p", "problem": "1+1?", "answer": "2", "responses": [response]}
    write_json(tmp_path / "paths.json", [row])
    flags = [
        "--qaf",
        str(tmp_path / "paths.json"),
        "--model_dir",
        str(model),
        "--paragraph_tokenizer",
        str(model),
    ]
    with pytest.raises(SystemExit, match="none of its responses has a thinking to label"):
        generate.main([*flags, "--split", "labeling_distill", "--output_dir", str(tmp_path)])
    splitter = Splitting(make_tokenizer(), 1, 9).paragraphs
    assert splitter(response) == [] and len(splitter(response | {"prompt_thinking": "open"})) == 2


def test_viewer_shows_no_thinking_where_the_prompt_closed_it(tmp_path):
    rollout = one_path(tmp_path, "Wait, it is \\boxed{4}", "<U>2+2?<A><think></think>")
    (tmp_path / "rollouts").mkdir()
    line = json.dumps(vars(rollout) | {"completion_ids": ended("")})
    (tmp_path / "rollouts" / "step-0.jsonl").write_text(line + "\n")
    (shown,) = page_data(tmp_path)["step-0"]
    assert shown["original"]["prompt_thinking"] == "closed"
    assert [piece["text"] for piece in shown["original"]["parts"] if piece.get("thinking")] == []
