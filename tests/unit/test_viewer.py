"""The viewer's page: its data, its structure, and that no text of a model can break it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from viewer_run import HOSTILE, pair, record, write_run

from rea_rl.viewer import main, page_data, pairs, script_json

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Ids, references and JSON scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.references, self.scripts, self._script = set(), [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        self.references += [attributes[key] for key in ("src", "href") if key in attributes]
        if tag == "script":
            self._script = attributes.get("id", "program")
            self.scripts[self._script] = ""

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] += data


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def test_page_is_whole_and_refers_to_nothing(run):
    main([str(run)])
    page = Page((run / "viewer.html").read_text())
    assert set(page.scripts) == {"index", "step-0", "step-1", "eval-2", "program"}
    assert page.references == [] and "http" not in re.sub(
        r"http://www\.w3\.org/2000/svg", "", page.scripts["program"]
    )
    assert {"step", "problem", "show", "sort", "list", "original", "revision", "curves"} <= page.ids
    index = json.loads(page.scripts["index"])
    assert [len(json.loads(page.scripts[name])) for name in index["batches"]] == [6, 6, 2]
    assert index["paired"] == ["step-0", "step-1"]


def test_text_of_a_model_cannot_end_the_script(run):
    main([str(run)])
    text = (run / "viewer.html").read_text()
    assert text.count("</script>") == 5 and HOSTILE not in text
    first = json.loads(Page(text).scripts["step-0"])[0]
    assert first["original"]["parts"][0]["text"] == HOSTILE
    assert json.loads(script_json("<!--\u2028</SCRIPT>")) == "<!--\u2028</SCRIPT>"


def test_pieces_of_a_pair_by_hand(tmp_path):
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    original = "One.\n\nSo 4.\n\nWait, 4.\n</think>\n\n\\boxed{4}"
    revision = "One.\n\nSo 4.\n\n</think>\n\n**Final Answer:**\n\n\\boxed{4}"
    labels = {"paragraph_ends": [4, 11, 21], "p_result": [0.0, 0.75], "num_paragraphs": 3, "cut": 1}
    rows = [
        record("original", "p", original, 0, 1, correct=True),
        record("revision", "p", revision, 0, 1, correct=True, kept=True, **labels),
    ]
    (run / "rollouts" / "step-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (entry,) = page_data(run)["step-0"]
    kept = [("kept", "One.", 0.0), ("kept", "So 4.", 0.75), ("cut", None, None)]

    def brief(parts):
        return [(part["kind"], part.get("text"), part.get("p")) for part in parts]

    assert brief(entry["original"]["parts"]) == [
        *kept, ("removed", "Wait, 4.", None), ("removed", "</think>\n\n\\boxed{4}", None)
    ]  # fmt: skip
    assert brief(entry["revision"]["parts"]) == [
        ("kept", "One.", None), ("kept", "So 4.", None), kept[2],
        ("forced", "</think>\n\n**Final Answer:**", None), ("kept", "\\boxed{4}", None),
    ]  # fmt: skip


def test_list_says_what_the_filters_need(run):
    # seed 6: original right, its revision wrong and replaced
    row = page_data(run, ["step-1"])["index"]["paths"][0]
    original, revision = pair("train-0", 1, 6)
    assert row == {
        "batch": "step-1", "at": 0, "problem": "train-0", "correct": True, "revised": True,
        "revision_correct": False,
        "kept": False, "tokens": len(original["text"]),
        "saved": len(original["text"]) - len(revision["text"]),
        "advantage": 0.5,
    }  # fmt: skip


def test_original_that_stands_twice_is_one_path():
    first, second = pair("p", 0, 1), pair("q", 0, 2)
    assert list(pairs([*first, second[0], dict(second[0])])) == [
        (first[0], first[1]),
        (second[0], None),
    ]
    # sampled without revision
    assert list(pairs([second[0], dict(second[0])])) == [(second[0], None)] * 2


def test_curves_have_training_and_held_out_values(run):
    accuracy, tokens, kl = page_data(run)["index"]["curves"]
    assert accuracy == {
        "key": "rollout/accuracy",
        "lines": [
            {"name": "training", "steps": [1], "values": [0.9]},
            {"name": "eval", "steps": [2], "values": [0.95]},
        ],
    }
    assert (tokens["key"], kl["key"]) == ("rollout/num_tokens", "kl")


def test_pattern_is_the_one_that_the_run_counted_with(run):
    assert page_data(run)["index"]["word_pattern"] == r"\b(?:wait|alternatively|check|but)\b"
    path = run / "rollouts" / "step-0.jsonl"
    rows = [json.loads(line) | {"num_reflections": 99} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert page_data(run, ["step-0"])["index"]["word_pattern"] == "(?:wait|alternatively|check|but)"


def test_prompts_are_decoded_once_the_run_has_saved_its_tokenizer(run):
    assert page_data(run)["step-0"][0]["prompt"] == ""
    (run / "checkpoint-1").mkdir()
    shutil.copy(ROOT / "model" / "Miniature-LRM" / "tokenizer.json", run / "checkpoint-1")
    assert page_data(run)["step-0"][0]["prompt"] != ""


@pytest.mark.parametrize(
    "arguments, message", [([], "has no rollouts"), (["--batches", "step-9"], "step-9")]
)
def test_mistakes_end_with_one_line(tmp_path, arguments, message):
    run = tmp_path / "run"
    if arguments:
        write_run(run)
    with pytest.raises(SystemExit, match=message):
        main([str(run), *arguments])
