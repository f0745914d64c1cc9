"""The offline pipeline by hand-made values: prompts of each split, judgements, cuts, controls,
baselines' data, reports."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from stage_files import build_tasks
from tiny import make_tokenizer, save_model

from generation import clean_dataset, labeling_distill_utils, labeling_to_prefix, sft_data
from generation.arguments import GenerateArguments
from generation.cuts import CutRule
from generation.evaluation import strategies as strategy_report
from generation.evaluation.strategies import (
    DetectedPath,
    by_strategy,
    detected_paths,
    detector_figures,
    kept_tokens,
    table,
)
from generation.generate import check_model_folder, generate, main
from generation.labeling_distill_utils import (
    LabelledPath,
    candidate_rows,
    chunk_candidates,
    confirmed_results,
    cut_row,
    labelled_paths,
    parse_confirmation,
)
from generation.labeling_to_prefix import reflection_cuts, with_controls
from generation.path_cutting import SplitPath
from generation.prompts import confirmation_messages, judge_messages
from generation.segments import split_paragraphs
from generation.sft_data import shortened_paths, training_rows
from generation.stages import SPLITS, path_rows
from generation.vllm_worker import _best_first
from miniature import judge, label
from rea_core.problems import problem_digest
from rea_core.row_files import write_json

# Three paragraphs of 16, 16 and 17 bytes: a plan, a wrong result, the right result.
THINKING = "Add the numbers.\n\nresult is 6 now.\n\nresult is 7 now.\n"
TEXT = f"{THINKING}</think>\n\nThe result is 7. \\boxed{{7}}"


def response(text: str = TEXT, finish_reason: str = "stop") -> dict:
    return {"text": text, "num_tokens": len(text), "finish_reason": finish_reason}


def paths_row(name: str = "p", *responses: dict) -> dict:
    return {
        "id": name,
        "problem": "3+4?",
        "answer": "7",
        "level": 1,
        "responses": list(responses) or [response()],
    }


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "model"))


@pytest.fixture
def paths(tmp_path: Path) -> str:
    write_json(
        tmp_path / "paths.json",
        [paths_row("p", response(), response("result is 7 and more")), paths_row("q")],
    )
    return str(tmp_path / "paths.json")


def arguments(qaf: str, model: str, split: str, **changes) -> GenerateArguments:
    settings = {
        "model_dir": model,
        "paragraph_tokenizer": model,
        "paragraph_min_tokens": 1,
        "prompt_template": "{problem}",
    }
    return GenerateArguments(
        qaf=qaf, split=split, output_dir=str(Path(qaf).parent), **{**settings, **changes}
    )


def paragraphs(text: str = TEXT):
    return split_paragraphs(text, len, min_tokens=1)


# --- Splits ---------------------------------------------------------------------------------------


def test_unknown_split_lists_the_valid_ones():
    with pytest.raises(ValueError) as error:
        GenerateArguments(qaf="x.json", model_dir="m", split="math_eval")
    valid = "math_cot, json, labeling, labeling_distill, labeling_distill_use_asw"
    assert str(error.value) == f"split is 'math_eval'; it must be one of {valid}"
    assert ", ".join(SPLITS) == valid


def test_judge_gets_one_prompt_per_chunk(paths, model):
    tasks = build_tasks(arguments(paths, model, "labeling_distill_use_asw", chunk_tokens=34))
    assert [task.row["id"] for task in tasks] == ["p/0/0", "p/0/1", "p/1/0", "q/0/0", "q/0/1"]
    assert tasks[0].row["paragraphs"] == ["Add the numbers.", "result is 6 now."]
    assert tasks[1].row["paragraphs"] == ["result is 7 now.\n"]
    assert tasks[0].row["path_digest"] == tasks[1].row["path_digest"] != tasks[2].row["path_digest"]
    assert tasks[0].row | {"paragraphs": 0, "path_digest": 0} == {
        "path_digest": 0,
        "id": "p/0/0", "problem": "3+4?", "answer": "7", "level": 1, "problem_id": "p", "path": 0,
        "chunk": 0,
        "use_answer": True, "paragraphs": 0,
    }  # fmt: skip
    assert tasks[0].prompt.messages == judge_messages(
        "3+4?", ["Add the numbers.", "result is 6 now."], "7"
    )


def test_judge_without_answer_is_not_asked_to_compare():
    told, untold = (judge_messages("P", ["a"], answer)[0]["content"] for answer in ("42", None))
    assert "Gold answer\n\n42" in told and "Right Result" in told and "Wrong Result" in told
    for word in ("gold", "Gold", "Right", "Wrong", "42"):
        assert word not in untold
    for answer, asks in (("42", True), (None, False)):
        assert ("old answer" in confirmation_messages("P", "a", answer)[0]["content"]) == asks


def test_reflection_model_is_asked_as_in_training(paths, model):
    task = build_tasks(arguments(paths, model, "labeling", logprobs=5))[2]
    example = labeling_distill_utils.reflection_example("3+4?", task.row["paragraphs"], [False] * 3)
    assert task.prompt.messages == example["prompt"]
    assert example["completion"][0]["content"].startswith(task.prompt.prefill)
    assert task.row["id"] == "q/0"


def test_prefix_is_gone_on_from_and_null_passes_a_path_on(tmp_path, model):
    rows = [{"id": "a", "problem": "1", "answer": "1", "prefix": "So far"}]
    rows += [{"id": "b", "problem": "2", "answer": "2", "prefix": None, "responses": [response()]}]
    write_json(tmp_path / "cuts.json", rows)
    args = arguments(str(tmp_path / "cuts.json"), model, "math_cot")
    first, second = build_tasks(args)
    assert (first.prompt.prefill, first.prompt.responses) == ("So far", None)
    assert second.prompt.responses == [response()] and second.row == {
        "id": "b",
        "problem": "2",
        "answer": "2",
    }
    asked = []

    def respond(args, tasks, keep):
        asked.extend(task.index for task in tasks)
        keep(0, [{"text": "So far so good", "num_tokens": 9, "finish_reason": "stop"}])

    written = json.loads(generate(args, respond).read_text())
    assert asked == [0]
    assert [row["responses"][0]["num_tokens"] for row in written] == [9, len(TEXT)]


def test_json_rows_need_their_messages(tmp_path, model):
    rows = [{"id": "a", "messages": [{"role": "user", "content": "x"}]}, {"id": "b"}]
    write_json(tmp_path / "rows.json", rows)
    with pytest.raises(ValueError, match=r"rows\.json: row 1 needs an 'id' and its 'messages'"):
        build_tasks(arguments(str(tmp_path / "rows.json"), model, "json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "labeling_distill", "paragraph_tokenizer": None}, "needs paragraph_tokenizer"),
        ({"split": "labeling"}, "split labeling needs logprobs"),
        (
            {"split": "labeling", "logprobs": 5, "api": True, "api_base": "x", "api_model": "m"},
            "api gives neither",
        ),
    ],
)
def test_labelling_flags_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        arguments("x.json", "m", **changes)


def test_path_too_long_to_be_labelled_is_kept_without_labels(tmp_path, paths, model, monkeypatch):
    """Path p/1 is short enough for the context; the prompts of the two others are not and never
    reach an engine."""
    lengths = []

    def run_engines(tasks, args):
        tasks = list(tasks)
        lengths.extend(len(task.prompt_ids) for task in tasks)
        steps = [[(-0.1, " Result"), (-2.5, " Think")]]
        reply = {"text": " Result", "num_tokens": 3, "finish_reason": "stop", "logprobs": steps}
        yield from ((task.index, [reply]) for task in tasks)

    monkeypatch.setattr("generation.vllm_worker.run_engines", run_engines)
    tasks = build_tasks(arguments(paths, model, "labeling", logprobs=5))
    tokenizer = make_tokenizer()
    texts = [
        tokenizer.apply_chat_template(t.prompt.messages, add_generation_prompt=True, tokenize=False)
        for t in tasks
    ]
    needed = [len(tokenizer.encode(text)) + len("[1].") for text in texts]
    file = generate(arguments(paths, model, "labeling", logprobs=5, max_model_len=needed[1] + 1))
    assert lengths == [needed[1]] and needed[1] < needed[0]
    responses = [row["responses"][0] for row in json.loads(file.read_text())]
    assert [r["text"] for r in responses] == ["", "[1]. Result", ""]
    assert (
        responses[1]["num_tokens"] == 3 + len("[1].") and responses[0]["finish_reason"] == "no_room"
    )
    found = labeling_to_prefix.label_probabilities(file)
    assert list(found["p/0"]) == [] and found["p/1"][0] > 0.9


def test_most_likely_token_comes_first():
    tokens = [
        SimpleNamespace(logprob=-2.0, decoded_token=" Think"),
        SimpleNamespace(logprob=-0.1, decoded_token="\n"),
    ]
    assert _best_first(tokens) == [(-0.1, "\n"), (-2.0, " Think")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"problem": "1", "answer": "1"}\n{"problem"\n',
            r"a\.jsonl, line 2, column 11: not JSON",
        ),
        ("a.json", "[]", r"a\.json: must be a list of at least one row, but is empty"),
        ("a.json", '[{"problem": "1"}]', r"a\.json: row 0 has no column 'answer'"),
    ],
)
def test_malformed_problems_are_named_before_anything_is_generated(
    tmp_path, model, name, text, message
):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(
            [
                "--qaf",
                str(tmp_path / name),
                "--model_dir",
                model,
                "--output_dir",
                str(tmp_path / "out"),
            ]
        )
    assert not (tmp_path / "out").exists()


# --- Models that cannot be used -------------------------------------------------------------------


def test_context_beyond_the_models_own_is_refused(paths, model):
    limit = json.loads((Path(model) / "config.json").read_text())["max_position_embeddings"]
    check_model_folder(arguments(paths, model, "math_cot", max_model_len=limit))
    with pytest.raises(
        ValueError, match=f"max_model_len is {limit + 1}, but .* has a context of {limit} tokens"
    ):
        check_model_folder(arguments(paths, model, "math_cot", max_model_len=limit + 1))


def test_folder_without_tokenizer_is_refused(paths, model):
    for file in Path(model).glob("tokenizer*"):
        file.unlink()
    with pytest.raises(SystemExit, match=r"has none of tokenizer\.json"):
        main(["--qaf", paths, "--model_dir", model])


def test_adapter_of_another_base_is_refused(paths, model, tmp_path):
    (tmp_path / "adapter").mkdir()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "model/Other-7B",
        "r": 8,
        "lora_alpha": 16,
    }
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter/adapter_model.safetensors").touch()
    with pytest.raises(SystemExit, match="is an adapter of 'model/Other-7B', not of"):
        main(["--qaf", paths, "--model_dir", model, "--lora", str(tmp_path / "adapter")])


# --- Judgements -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Yes", True),
        ("**No**.", False),
        ("yes, it does", True),
        ("Maybe", None),
        ("", None),
        ("Nothing", None),
    ],
)
def test_confirmation_is_not_guessed(reply, verdict):
    assert parse_confirmation(reply) is verdict


def chunk(path: str, number: int, texts: list[str], reply: str, use_answer: bool = True) -> dict:
    columns = {
        "id": f"{path}/{number}",
        "problem": "3+4?",
        "answer": "7",
        "problem_id": path.split("/")[0],
        "path": 0,
    }
    return columns | {
        "chunk": number, "use_answer": use_answer, "paragraphs": texts,
        "responses": [{"text": reply}]
    }  # fmt: skip


REASONING, RIGHT = "[1]. Think: x\nLabel: Reasoning", "[2]. Think: y\nLabel: Right Result"
CHUNKS = [
    chunk("p/0", 0, ["a", "b"], f"{REASONING}\n\n{RIGHT}"),
    chunk("p/0", 1, ["c"], "[1]. Think: z\nLabel: Wrong Result"),
    chunk("p/1", 0, ["a", "b"], REASONING),  # one label for two parts
]


def test_chunks_of_a_path_are_joined_and_unparsed_ones_spoil_it():
    first, second = labelled_paths(CHUNKS)
    assert first.is_candidate == [False, True, False] and first.paragraphs == ["a", "b", "c"]
    assert first.row == {
        "id": "p/0",
        "problem": "3+4?",
        "answer": "7",
        "problem_id": "p",
        "path": 0,
    }
    assert second.is_candidate is None
    assert [row["id"] for row in candidate_rows([first, second])] == ["p/0/1"]


def test_bare_result_is_a_candidate_too():
    row = chunk("p/0", 0, ["a"], "[1]. Think: x\nLabel: Result", use_answer=False)
    assert chunk_candidates(row) == [True]
    (candidate,) = candidate_rows(labelled_paths([row]))
    assert candidate["messages"] == confirmation_messages("3+4?", "a", None)


def test_second_judgement_confirms():
    path = LabelledPath({"id": "p/0"}, True, ["a", "b", "c"], [True, False, True])
    assert confirmed_results(path, {"p/0/0": "No", "p/0/2": "Yes"}) == [False, False, True]
    assert confirmed_results(path, {"p/0/0": "No", "p/0/2": "Perhaps"}) is None
    with pytest.raises(ValueError, match="no reply for candidate p/0/2"):
        confirmed_results(path, {"p/0/0": "No"})


def test_cut_row_keeps_up_to_the_paragraph():
    tokenizer = make_tokenizer()
    row = cut_row({"id": "p/0"}, response(), paragraphs(), 1, tokenizer)
    kept = "Add the numbers.\n\nresult is 6 now."
    assert row["prefix"] == f"{kept}\n</think>\n\n**Final Answer:**\n\n"
    assert row["kept"] == len(kept) / len(THINKING)  # a token a byte
    assert (row["cut"], row["num_paragraphs"], row["truncated"]) == (1, 3, False)
    for all_kept in (2, None):
        row = cut_row({"id": "p/0"}, response(), paragraphs(), all_kept, tokenizer)
        assert (row["prefix"], row["cut"], row["kept"], row["responses"]) == (
            None,
            None,
            1.0,
            [response()],
        )


def test_truncated_path_is_cut_likewise():
    text = THINKING[:-2]
    row = cut_row({"id": "p/0"}, response(text, "length"), paragraphs(text), 0, make_tokenizer())
    assert (
        row["truncated"] and row["prefix"] == "Add the numbers.\n</think>\n\n**Final Answer:**\n\n"
    )


# --- Cuts -----------------------------------------------------------------------------------------


def split_path(name: str, text: str = TEXT) -> SplitPath:
    return SplitPath(name, [paragraph.num_tokens for paragraph in paragraphs(text)])


def test_nearest_cut():
    path = split_path("p/0")  # 16, 16 and 17 of 49 tokens
    assert [path.share(cut) for cut in range(3)] == [16 / 49, 32 / 49, 1.0]
    assert [path.nearest_cut(share) for share in (0.0, 0.5, 0.8, 0.9)] == [1 - 1, 1, 1, 2]


def test_strengths_are_those_of_choose_cuts():
    rule = CutRule(second_half=0.0, cap_share=0.0)
    cuts = reflection_cuts(
        [split_path("p/0"), split_path("p/1")], {"p/0": [0.3, 0.9, 0.1], "p/1": []}, rule
    )
    assert cuts == {"weak": [1, 2], "normal": [1, 2], "strong": [1, 2]}


def test_control_keeps_the_same_shares_on_other_paths():
    paths = [split_path(f"p/{i}") for i in range(40)]
    cuts = [0] * 20 + [2] * 20
    strategies = with_controls(paths, {"normal": cuts}, seed=0)
    assert sorted(strategies["random_normal"]) == cuts != strategies["random_normal"]
    assert (
        strategies["none"] == [2] * 40
        and strategies["random_70"] == [1] * 40
        and strategies["random_90"] == [2] * 40
    )
    assert strategies == with_controls(paths, {"normal": cuts}, seed=0)
    assert list(strategies) == [
        "none",
        "normal",
        "random_normal",
        *(f"random_{n}" for n in (50, 60, 70, 80, 90)),
    ]


def test_labels_without_logprobs_are_refused(tmp_path):
    write_json(tmp_path / "labels.json", [paths_row()])
    with pytest.raises(ValueError, match="row 0 has no logprobs"):
        labeling_to_prefix.label_probabilities(tmp_path / "labels.json")


# --- Baselines ------------------------------------------------------------------------------------


def finished(path: str, cut: int | None, tokens: int, finish_reason: str = "stop") -> dict:
    reply = {"text": f"short {path}", "num_tokens": tokens, "finish_reason": finish_reason}
    return {"id": path, "problem_id": path[0], "problem": "P", "cut": cut, "responses": [reply]}


def test_only_verified_shortened_paths_are_taken():
    rows = [
        finished("a/0", 1, 10),
        finished("a/1", None, 10),
        finished("a/2", 1, 30),
        finished("a/3", 1, 10, "length"),
    ]
    rows += [
        finished("a/4", 1, 10),
        finished("a/5", 0, 9),
        finished("a/6", 0, 9),
        finished("b/0", 0, 9),
    ]
    originals = {row["id"]: {"text": f"long {row['id']}", "num_tokens": 30} for row in rows}
    correct = [True] * 4 + [False] + [True] * 3
    taken = list(shortened_paths(rows, correct, originals, max_per_problem=2))
    # a/6 is the third of its problem
    assert [row["id"] for row, _, _ in taken] == ["a/0", "a/5", "b/0"]
    sft, pairs = training_rows(taken[:1], "Q: {problem}")
    assert sft[0]["prompt"] == pairs[0]["prompt"] == [{"role": "user", "content": "Q: P"}]
    assert (
        sft[0]["completion"]
        == pairs[0]["chosen"]
        == [{"role": "assistant", "content": "short a/0"}]
    )
    assert pairs[0]["rejected"] == [{"role": "assistant", "content": "long a/0"}]


def test_unsolved_problems_are_dropped(tmp_path):
    problems = [{"problem": str(i), "answer": "1"} for i in range(3)]
    write_json(tmp_path / "d.json", problems)
    verdicts = [
        {
            "id": str(i),
            "problem_digest": problem_digest(str(i)),
            "responses": [{"correct": c} for c in row],
        }
        for i, row in enumerate([[1, 0], [0, 0], [0, 1]])
    ]
    scores = {
        "groups": {},
        "mode": "strict",
        "num_responses": 6,
        "num_problems": 3,
        "problems": verdicts,
    }
    write_json(tmp_path / "s.scores.json", scores)
    out = tmp_path / "clean/Clean.json"
    flags = [
        "--dataset",
        str(tmp_path / "d.json"),
        "--verdicts",
        str(tmp_path / "s.scores.json"),
        "--out",
        str(out),
    ]
    clean_dataset.main(flags)
    assert [row["problem"] for row in json.loads(out.read_text())] == ["0", "2"]
    card = " ".join((tmp_path / "clean/README.md").read_text().split())
    assert "2 of the 3 problems" in card and "one of its 2 responses" in card
    write_json(tmp_path / "s.scores.json", {**scores, "problems": verdicts[:2]})
    with pytest.raises(SystemExit, match="s.scores.json: 1 of 3 problems are not .* row 2; "):
        clean_dataset.main(flags)


# --- Reports --------------------------------------------------------------------------------------


def test_detector_figures_by_hand():
    detected = [
        DetectedPath("a", {2, 3}, {2}),
        DetectedPath("a", {1}, {3, 1}),
        DetectedPath("b", {4}, {2}),
        DetectedPath("b", {1}, set()),
        DetectedPath("b", set(), {0}),
    ]
    values = {key: figure.value for key, figure in detector_figures(detected).items()}
    assert values == {
        "precision": 2 / 5, "recall": 2 / 5, "position_error": 2 / 3, "missed": 1 / 5,
        "spurious": 1 / 5
    }  # fmt: skip


def test_labels_beyond_the_last_paragraph_are_dropped():
    judged = [
        {"id": "a/0", "problem_id": "a", "confirmed": [1], "num_paragraphs": 2},
        {"id": "c/0"},
    ]
    assert detected_paths({"a/0": [0.4, 0.5, 0.9]}, judged) == [DetectedPath("a", {1}, {1})]


def test_a_detector_is_judged_by_the_threshold_that_it_cuts_with():
    judged = [{"id": "a/0", "problem_id": "a", "confirmed": [2], "num_paragraphs": 3}]
    for threshold, found in ((0.5, {1, 2}), (0.7, {2}), (0.95, set())):
        paths = detected_paths({"a/0": [0.4, 0.6, 0.9]}, judged, threshold)
        assert paths == [DetectedPath("a", {2}, found)]


def test_truncated_paths_are_apart_too():
    rows = [
        {"strategy": s, "truncated": t, "kept": k, "id": "x"}
        for s, t, k in [("none", False, 1.0), ("weak", True, 0.5)]
    ]
    groups = by_strategy(rows)
    assert list(groups) == ["none", "weak", "weak_truncated"] and groups["weak"] == groups[
        "weak_truncated"
    ] == [1]
    assert kept_tokens(rows).value == 0.75


def test_table_has_a_dash_where_a_model_has_no_cut():
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    scored = {"weak": {"accuracy": figure, "kept": figure}, "SFT": {"accuracy": figure}}
    text = table({name: {"groups": {"all": group}} for name, group in scored.items()})
    weak, sft = (line for line in text.splitlines() if "weak" in line or "SFT" in line)
    assert weak.count("50.0 ± 10.0") == 2 and sft.count("50.0 ± 10.0") == 1 and sft.count(" -") == 3


# --- Stage after stage ----------------------------------------------------------------------------


def test_oracle_route_writes_every_stage(paths, model, tmp_path):
    out = tmp_path / "work/train.json"
    label.main([paths, "--out", str(out), "--model_dir", model])
    completions = [example["completion"][0]["content"] for example in json.loads(out.read_text())]
    assert completions == [
        "[1]. Think\n[2]. Think\n[3]. Result",
        "[1]. Result",
        "[1]. Think\n[2]. Think\n[3]. Result",
    ]
    (cuts,) = (tmp_path / "work/oracle").glob("*_cuts.json")
    assert [(row["id"], row["confirmed"],
             row["truncated"]) for row in json.loads(cuts.read_text())] == [
        ("p/0", [2], False), ("p/1", [0], True), ("q/0", [2], False)
    ]  # fmt: skip


def test_labels_of_other_paths_are_refused(paths, model, tmp_path):
    settings = {"paragraph_min_tokens": 1, "paragraph_tokenizer": model}
    label.label(paths, tmp_path / "work/train.json", settings)
    (labels,) = (tmp_path / "work/oracle").glob("*_use_asw.json")
    (confirmations,) = (tmp_path / "work/oracle").glob("*_candidates_json.json")
    flags = [
        str(labels),
        "--clean",
        "--confirmations",
        str(confirmations),
        "--out",
        str(tmp_path / "c.json"),
    ]
    flags += ["--paragraph_tokenizer", model, "--paths"]
    with pytest.raises(SystemExit, match="p/0 has other paragraphs than its labels"):
        labeling_distill_utils.main([*flags, paths, "--paragraph_min_tokens", "60"])
    with pytest.raises(SystemExit, match="clean needs confirmations"):
        labeling_distill_utils.main([str(labels), "--clean"])


def test_oracle_has_both_judgements():
    assert judge.reply({"paragraphs": ["x", "result is 7"], "answer": "7"}).endswith(
        "Label: Right Result"
    )
    assert judge.reply({"paragraph": "result is 6", "answer": "7"}) == "No"


def test_path_ids():
    ids = [
        (row["id"], row["problem_id"], row["path"])
        for row, _ in path_rows([paths_row("p", response(), response())])
    ]
    assert ids == [("p/0", "p", 0), ("p/1", "p", 1)]


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (sft_data.main, ["{paths}", "--paths", "{paths}"], "row 0 has no 'cut'"),
        (
            strategy_report.main,
            ["{paths}", "--model_dir", "m", "--out", "o"],
            "row 0 has no 'strategy'",
        ),
        (
            labeling_distill_utils.main,
            ["{paths}", "--candidates", "c.json"],
            "row 0 has no 'use_answer'",
        ),
        (clean_dataset.main, ["--verdicts", "none.scores.json"], "none.scores.json does not exist"),
    ],
)
def test_file_of_another_stage_is_named(paths, command, flags, message):
    with pytest.raises(SystemExit, match=message):
        command([flag.format(paths=paths) for flag in flags])
