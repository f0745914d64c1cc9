"""How a model opens and ends its thinking: found from template and vocabulary, or set by keys, and
read by sampling, cutting, scoring and viewing alike."""

from __future__ import annotations

import json
import re

import pytest
from hybrid import HYBRID, UNFINISHED, score
from recipe_files import read_recipe, write_recipe
from rollouts import VERSION, Verifier, is_finish, labels, make_engine
from scripted_server import ScriptedServer, completion
from tiny import CHAT_TEMPLATE, make_tokenizer, save_model

from generation import forced_budgets, generate
from generation.cuts import PathCuts, cut_completion_ids, think_end_finder
from generation.generation_file import read_generations
from generation.markers import R1, Markers, decode_completion
from generation.path_cutting import cut_row
from generation.provenance import check_all_comparable, differences
from generation.rendering import PromptFormat, after_thinking, answer_of, thinking_in
from generation.segments import split_paragraphs
from generation.verifiers import answer_part
from rea_core.row_files import write_json
from rea_rl.rollout.engine import RolloutEngine
from rea_rl.rollout.record import Batch, record_line
from rea_rl.viewer import page_data

CHANNELS = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
BRACKETS = ["[THINK]", "[/THINK]"]
# Templates of ours, of the same structure as the models' own.
TURNS = "{% for m in messages %}<U>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}"
PLAIN = TURNS + "<A>{% endif %}"
HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}{% if m['role'] == 'assistant' %}"
    "<|channel|>analysis<|message|>{{ m['content'] }}{% else %}<|message|>{{ m['content'] }}"
    "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
MAGISTRAL = "{# Write [THINK]a draft[/THINK] first. #}" + PLAIN
SMOLLM3 = (  # `/no_think` in the system message decides, else the keyword
    "{% set ns = namespace(on=enable_thinking if enable_thinking is defined else true) %}"
    "{% for m in messages %}{% if '/no_think' in m['content'] %}{% set ns.on = false %}{% endif %}"
    "<U>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<A>{% if not ns.on %}"
    "<think>\n\n</think>\n{% endif %}{% endif %}"
)

SWITCH = TURNS + "<A>{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
HINT = PLAIN.replace("{% endfor %}", " (in <think></think>){% endfor %}")  # words of the template


def tokenizer_of(template, special=(), tokens=("<think>", "</think>")):
    tokenizer = make_tokenizer()
    if not tokens:  # a byte tokenizer, to which a marker is text
        known = json.loads(tokenizer.backend_tokenizer.to_str())
        known["added_tokens"] = [t for t in known["added_tokens"] if "think" not in t["content"]]
        tokenizer = make_tokenizer().__class__(
            tokenizer_object=tokenizer.backend_tokenizer.__class__.from_str(json.dumps(known)),
            eos_token="<eos>",
            pad_token="<pad>",
        )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


GPT_OSS = tokenizer_of(HARMONY, CHANNELS, ())
BRACKETED = tokenizer_of(PLAIN, BRACKETS, ())
EMPTY = "{{ '<|channel>thought\\n<channel|>' }}"
GEMMA = PLAIN.replace("<A>", "<A>{% if not enable_thinking %}" + EMPTY + "{% endif %}")
FOUND = [
    ("R1: a token, which the template writes", make_tokenizer(), "<think>", "</think>"),
    ("Qwen3: the template writes both", tokenizer_of(HYBRID), "<think>", "</think>"),
    ("Qwen3 with a bare template", tokenizer_of(PLAIN), "<think>", "</think>"),
    ("SmolLM3", tokenizer_of(SMOLLM3, tokens=()), "<think>", "</think>"),
    ("Phi-4-mini: text, and nothing says so", tokenizer_of(PLAIN, (), ()), "<think>", "</think>"),
    ("Magistral by its template", tokenizer_of(MAGISTRAL, (), ()), *BRACKETS),
    ("Magistral by its vocabulary", BRACKETED, *BRACKETS),
    ("gpt-oss by its template", tokenizer_of(HARMONY, (), ()), ANALYSIS, FINAL),
    ("gpt-oss by its vocabulary", tokenizer_of(PLAIN, CHANNELS, ()), ANALYSIS, FINAL),
    ("Gemma 4", tokenizer_of(GEMMA, (), ()), "<|channel>thought\n", "<channel|>"),
    ("R1's template, others' tokens", tokenizer_of(CHAT_TEMPLATE, BRACKETS), "<think>", "</think>"),
]  # fmt: skip


def test_markers_are_found_from_the_template_and_else_from_the_vocabulary():
    for name, tokenizer, start, end in FOUND:
        markers = Markers.of({}, tokenizer)
        assert (markers.think_start, markers.think_end) == (start, end), name
    assert Markers.of({}, make_tokenizer()) == R1 == Markers.of({}, None)
    assert Markers.of({}, GPT_OSS).forced_answer == FINAL + "**Final Answer:**\n\n"
    assert Markers.of({}, BRACKETED).forced_answer == "\n[/THINK]\n\n**Final Answer:**\n\n"


def test_keys_set_markers_and_what_is_forced():
    both = {"think_start": "<a>", "think_end": "</a>"}
    assert Markers.of(both, make_tokenizer()).forced(True) == "</a>\n\n**Final Answer:**\n\n"
    own = Markers.of(both | {"forced_answer": "\nEnough.</a>So: "}, make_tokenizer())
    assert (own.forced(False), own.forced(True)) == ("\nEnough.</a>So: ", "Enough.</a>So: ")
    only_forced = Markers.of({"forced_answer": "\n</think>\n\n"}, make_tokenizer())
    assert only_forced == Markers(forced_answer="\n</think>\n\n")


BAD = [
    ({"think_end": "</a>"}, "think_end is '</a>', but think_start is not given"),
    ({"think_start": "<a>"}, "think_start is '<a>', but think_end is not given"),
    ({"think_start": "", "think_end": "b"}, "think_start is ''; write a text"),
    ({"think_start": 3, "think_end": "b"}, "think_start is 3; write a text"),
    ({"think_start": "<|b|>", "think_end": "b"}, "has think_end .'b'. in it"),
    ({"forced_answer": "Final Answer:"}, "must have think_end .'</think>'. in it"),
    ({"forced_answer": "</think></think>"}, "must have think_end .'</think>'. in it, once"),
]


def test_markers_that_mark_nothing_are_refused(tmp_path, monkeypatch):
    for keys, message in BAD:
        with pytest.raises(ValueError, match=message):
            Markers.of(keys, make_tokenizer())
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    with pytest.raises(ValueError, match="think_end is '</a>', but think_start is not given"):
        read_recipe(write_recipe(tmp_path, tmp_path / "model", 'think_end: "</a>"'))
    with pytest.raises(SystemExit, match="think_end is '</a>', but think_start is not given"):
        generate.main(["--qaf", "p.json", "--model_dir", "model", "--think_end", "</a>"])
    own = "{think_start: '<U>', think_end: '<eos>'}"
    with pytest.raises(ValueError, match="'<eos>' in it ends a response of .*no answer could foll"):
        read_recipe(write_recipe(tmp_path, tmp_path / "model", own))


def test_markers_that_contradict_the_template_are_taken_with_a_warning(caplog):
    own = {"think_start": "<a>", "think_end": "</a>"}
    for template, warns in ((PLAIN + "{# own #}", False), (HARMONY + "{# own #}", True)):
        caplog.clear()
        tokenizer = tokenizer_of(template)
        assert Markers.of(own, tokenizer).think_end == "</a>"
        PromptFormat("{problem}", **own).ask("1+1?", tokenizer)
        said = [r.getMessage() for r in caplog.records if "chat template writes" in r.getMessage()]
        assert len(said) == warns
    assert "'<|channel|>analysis<|message|>'" in said[0] and "count as answer" in said[0]


def test_the_answer_part_is_the_same_for_every_reader():
    for tokenizer, start, end, _ in [(None, "<think>", "</think>", ""), *MODELS]:
        markers = Markers.of({}, tokenizer).column
        for text, thinking, answer in (
            (f"{start}a{end}b{start}c \\boxed{{1}}", "unknown", "b"),  # a second one has no end
            (f"a{end}b{end}\\boxed{{2}}", "open", f"b{end}\\boxed{{2}}"),
            ("\\boxed{3}", "open", ""),
            ("\\boxed{3}", "unknown", "\\boxed{3}"),
            (f"a{end}\\boxed{{4}}", "closed", f"a{end}\\boxed{{4}}"),
        ):
            row = {"prompt_thinking": thinking, **markers}
            assert after_thinking({"text": text, **row}) == answer_part(text, row) == answer
            box = re.search(r"\d", answer)
            assert answer_of({"text": text, **row}) == (box[0] if box else None), text


def test_a_switch_of_the_template_says_whether_the_model_thinks():
    for system, keywords, thinking in (
        (None, {}, "unknown"),
        ("/think", {}, "unknown"),
        ("/no_think", {}, "closed"),
        (None, {"enable_thinking": False}, "closed"),
    ):
        prompts = PromptFormat("{problem}", system, keywords)
        assert prompts.ask("1+1?", tokenizer_of(SMOLLM3)).thinking == thinking
    for keywords, thinking in (({}, "closed"), ({"enable_thinking": True}, "unknown")):
        prompts = PromptFormat("{problem}", None, keywords)
        assert prompts.ask("1+1?", tokenizer_of(GEMMA)).thinking == thinking
    for template, keywords, thinking in (
        (SWITCH, {"thinking": True}, "open"),
        (SWITCH, {}, "closed"),  # as DeepSeek-V3.1: an end without a start
        (SWITCH.replace("{% if add_generation_prompt %}", "{% if true %}"), {}, "closed"),
        (HINT, {}, "unknown"),
        (HINT.replace("<A>", "<A><think>\n"), {}, "open"),
        ("{{ '' if add_generation_prompt else 1 / 0 }}" + SWITCH, {}, "closed"),  # it refuses
    ):
        asked = PromptFormat("{problem}", None, keywords).ask(
            "Is </think> a tag?", tokenizer_of(template)
        )
        assert asked.thinking == thinking, (template, keywords)
    opened = PromptFormat("{problem}", prefill="[THINK]")
    assert opened.ask("1+1?", BRACKETED).thinking == "open"
    closed = PromptFormat("{problem}", prefill=f"{ANALYSIS}It is easy.{FINAL}")
    assert closed.ask("1+1?", GPT_OSS).thinking == "closed"


# --- Rollouts, cuts and the viewer ----------------------------------------------------------------

THINKING = "Set up.\n\nThe result is 4.\n\nWait, check it.\n\nYes, 4 again."
MODELS = [
    (GPT_OSS, ANALYSIS, FINAL, FINAL + "**Final Answer:**\n\n"),
    (BRACKETED, "[THINK]", "[/THINK]", "\n[/THINK]\n\n**Final Answer:**\n\n"),
]


def revise(tmp_path, tokenizer, text, finish):
    def answer(body):
        ids = tokenizer.encode(finish if is_finish(body) else text)
        return completion([*ids, tokenizer.eos_token_id])

    with (
        ScriptedServer(answer, [VERSION]) as first,
        ScriptedServer(labels(0.2, 0.9, 0.1, 0.9), ["refl"], 1024) as second,
    ):
        engine = make_engine(tmp_path, first.url, second.url)
        engine.__exit__()
        with RolloutEngine(engine.args, tokenizer, make_tokenizer(), Verifier()) as engine:
            prompt = PromptFormat("{problem}").ask("2+2?", tokenizer)
            row = {"problem": "2+2?", "problem_id": "p", "answer": "4", "prompt": prompt.text}
            return engine.run([row], Batch(0, VERSION, True))


def test_a_response_with_other_markers_is_cut_finished_verified_and_shown(tmp_path):
    for tokenizer, start, end, forced in MODELS:
        text = f"{start}{THINKING}{end}It is \\boxed{{4}}"
        original, revision = rollouts = revise(tmp_path, tokenizer, text, "\\boxed{4}")
        assert original.text == text and original.correct and revision.correct
        assert original.num_think_tokens == len(tokenizer.encode(THINKING))
        assert original.num_reflections == 1
        kept = tokenizer.encode(f"{start}Set up.\n\nThe result is 4.")
        ids = [*kept, *tokenizer.encode(forced), *tokenizer.encode("\\boxed{4}")]
        assert revision.completion_ids == [*ids, tokenizer.eos_token_id]
        assert revision.completion_ids[: len(kept)] == original.completion_ids[: len(kept)]
        folder = tmp_path / "rollouts"
        folder.mkdir(exist_ok=True)
        for rollout in rollouts:
            rollout.advantage = 0.0
        lines = [record_line(rollout) + "\n" for rollout in rollouts]
        (folder / "step-0.jsonl").write_text("".join(lines))
        (shown,) = page_data(tmp_path)["step-0"]
        parts = shown["revision"]["parts"]
        assert [p["text"] for p in parts if p["kind"] == "forced"] == [forced.strip("\n")]
        assert parts[-1]["text"] == "\\boxed{4}"
        assert shown["original"]["parts"][-1]["text"] == f"{end}It is \\boxed{{4}}"


def test_an_answer_inside_another_models_thinking_does_not_count(tmp_path):
    for tokenizer, start, end, _ in MODELS:
        for text, correct in (
            (f"{start}so \\boxed{{4}}. Wait, let me check", False),
            (f"{start}It is \\boxed{{5}}.{end}\\boxed{{4}}", True),
            (f"{start}Write </think>.{end}\\boxed{{4}}", True),
            ("\\boxed{4}", True),
        ):
            assert revise(tmp_path, tokenizer, text, "?")[0].correct is correct, text


def test_cuts_of_a_text_are_those_of_its_ids():
    for tokenizer, start, end, _ in MODELS:
        markers = Markers.of({}, tokenizer)
        text = f"{start}{THINKING}{end}It is \\boxed{{4}}"
        ids = tokenizer.encode(text)
        assert decode_completion(tokenizer, [*ids, tokenizer.eos_token_id], markers) == text
        paragraphs = split_paragraphs(text, len, min_tokens=1, think_end=end)
        assert [p.text for p in paragraphs] == f"{start}{THINKING}".split("\n\n")
        for last in range(3):
            kept, forced = cut_completion_ids(ids, tokenizer, paragraphs, last, markers=markers)
            prefix, _ = PathCuts(text, tokenizer, markers).after(paragraphs[last].end)
            assert prefix == decode_completion(tokenizer, kept, markers) + forced
        assert think_end_finder(tokenizer, markers)(ids) == len(tokenizer.encode(start + THINKING))


# --- Generation files -----------------------------------------------------------------------------


def save_with(folder, tokenizer):
    save_model(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_file_says_its_markers_and_every_reader_takes_them(
    tmp_path,
    generated,
    capfd,
):
    model = save_with(tmp_path / "gpt_oss", tokenizer_of(HARMONY, CHANNELS))
    text = f"{ANALYSIS}{THINKING}{FINAL}It is \\boxed{{2}}"
    file = generated(text, model)
    assert "special tokens" in capfd.readouterr().err  # as the real tokenizer has them
    (row,) = read_generations(file)
    (response,) = row["responses"]
    assert row["prompt_format"]["think_end"] == response["markers"]["think_end"] == FINAL
    assert thinking_in(response) == ANALYSIS + THINKING and answer_of(response) == "2"
    assert after_thinking(response) == "It is \\boxed{2}"
    ((problem,),) = [score(file, model)["problems"]]
    (counts,) = problem["responses"]
    assert counts["correct"] and counts["num_reflections"] == 1
    assert counts["num_think_tokens"] == len(THINKING)
    tokenizer = tokenizer_of(HARMONY, CHANNELS)
    (forced, _) = forced_budgets.budget_rows([row], [20, 999], tokenizer, 1)
    assert forced["prefix"].endswith(FINAL + "**Final Answer:**\n\n")
    paragraphs = split_paragraphs(text, len, min_tokens=1, think_end=FINAL)
    cut = cut_row(row, response, paragraphs, 1, tokenizer)
    assert not cut["truncated"] and cut["prefix"].startswith(f"{ANALYSIS}Set up.")


def test_an_r1_like_file_is_written_as_before(tmp_path, generated, capfd):
    (row,) = read_generations(generated(UNFINISHED, save_model(tmp_path / "model")))
    assert "special tokens" not in capfd.readouterr().err
    assert row["prompt_format"].keys() == {
        *("prompt_template", "system_prompt", "chat_template_kwargs", "prefill")
    }
    assert "markers" not in row["responses"][0]


def test_files_with_different_markers_are_not_combined(tmp_path, generated):
    model = save_model(tmp_path / "model")
    ours = generated("a</think>\\boxed{2}", model)
    flags = ["--think_start", "<a>", "--think_end", "</a>", "--save_suffix", "_own"]
    generated("a</a>\\boxed{2}", model, *flags)
    theirs = ours.with_name("p_math_cot_own.json")
    assert score(ours, model) and score(theirs, model)["problems"][0]["responses"][0]["correct"]
    base = str(ours.with_suffix(".scores.json"))
    with pytest.raises(SystemExit, match="think_start .*'<think>'.*'<a>'.*think_end"):
        score(theirs, model, "--base", base)
    (row,) = read_generations(theirs)
    write_json(tmp_path / "begun.json", [row | {"prefix": "a", "responses": None}])
    with pytest.raises(SystemExit, match="was begun with another prompt .*think_start"):
        generate.main(
            ["--qaf", "begun.json", "--model_dir", str(model), "--think_start", "<b>"]
            + ["--think_end", "</b>"]
        )


def test_markers_of_two_models_may_differ_in_one_table():
    def made(model, end):
        known = {"prompt_template": "{problem}", "prefill": "", "think_end": end}
        return {"model": {"model_dir": model}, "prompt_format": known}

    assert differences(made("a", "</think>"), made("b", "[/THINK]")) == ""
    assert "[/THINK]" in differences(made("a", "</think>"), made("a", "[/THINK]"))
    check_all_comparable([("f", made("a", "</think>")), ("g", made("b", "[/THINK]"))], "")
    with pytest.raises(ValueError, match="f and g were not made in the same way: think_end"):
        check_all_comparable([("f", made("a", "</think>")), ("g", made("a", "[/THINK]"))], "")


def test_a_response_with_spoiled_markers_is_refused(tmp_path):
    response = {"text": "a", "num_tokens": 1, "finish_reason": "stop"}
    row = {"id": "p", "problem": "1+1?", "answer": "2"}
    for spoiled in ("<think>", {"think_end": "</a>"}, {**R1.record, "think_end": ""}):
        write_json(tmp_path / "f.json", [{**row, "responses": [{**response, "markers": spoiled}]}])
        with pytest.raises(ValueError, match="row 0: (markers are|think_end is '').*again"):
            list(read_generations(tmp_path / "f.json"))
