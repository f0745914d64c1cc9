"""Large files: work by many processes gives the same as by one, cuts are those of the rollouts,
memory stays flat."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_tokenizer, save_model

from generation import generate, math_verify_all, parallel
from generation.counting import Counting, answers_of, count_rows
from generation.cuts import PathCuts, cut_completion_ids, decode_completion, think_end_finder
from generation.generation_file import read_generations, sample_seed
from generation.parallel import Shared, map_rows
from generation.rendering import encode_text
from generation.segments import num_tokens, split_paragraphs
from generation.word_counts import in_ascii, word_counts
from rea_core.models import load_tokenizer
from rea_core.row_files import write_json

ROOT = Path(__file__).parents[2]
WORDS = (
    "so the sum is 12 and x = 3.5, wait, let me check, but then √2 · π ≈ 4.44 “naïve” 日本 𝔸 it's"
).split()


def text(rng: random.Random, size: int, ends: bool = True) -> str:
    """Thinking of about so many characters, and an answer."""
    parts = []
    while sum(map(len, parts)) < size:
        parts.append(
            " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 40)))
            + rng.choice([".", "", "。", "?"])
        )
    thinking = "".join(part + rng.choice(["\n\n", "\n \n", "\n\n\n"]) for part in parts)
    return f"{thinking}</think>\n\n\\boxed{{7}}" if ends else thinking


def paths(file: Path, number: int, size: int) -> Path:
    rng = random.Random(0)
    rows = (
        {
            "id": f"p{i}",
            "problem": "3+4?",
            "answer": "7",
            "responses": [
                {"text": text(rng, size, i % 5 > 0), "num_tokens": 9, "finish_reason": "stop"}
            ],
        }
        for i in range(number)
    )
    write_json(file, rows)
    return file


def test_many_processes_give_what_one_gives_in_order(tmp_path, monkeypatch):
    rows = read_generations(paths(tmp_path / "a.json", 60, 500))
    counting = Counting(Shared(make_tokenizer()), [None, 100], word_bounded=True)
    alone = list(map_rows(count_rows, rows, counting, 1))
    monkeypatch.setattr(parallel, "BYTES_PER_PROCESS", 1000)
    monkeypatch.setattr(parallel, "BATCH_BYTES", 4000)
    assert parallel.processes_for(rows, 2) == 2
    assert list(map_rows(count_rows, rows, counting, 2)) == alone
    assert [row.head["id"] for row in alone] == [f"p{i}" for i in range(60)]


def test_a_mistake_in_a_process_is_an_error_here(tmp_path, monkeypatch):
    rows = read_generations(paths(tmp_path / "a.json", 8, 500))
    monkeypatch.setattr(parallel, "BYTES_PER_PROCESS", 1000)
    with pytest.raises(AttributeError, match="encode"):
        list(map_rows(count_rows, rows, Counting(Shared(None), [1]), 2))
    rows.path.write_text("[]")
    with pytest.raises(ValueError, match="was changed while it was read"):
        list(map_rows(answers_of, rows, Shared(None), 2))


@pytest.mark.parametrize("name", ["bytes", "model/Miniature-LRM", "model/Miniature-Instruct"])
@pytest.mark.parametrize("is_fast", [True, False])
def test_cuts_of_a_text_are_those_of_the_rollouts(monkeypatch, name, is_fast):
    tokenizer = make_tokenizer() if name == "bytes" else load_tokenizer(str(ROOT / name))
    rng = random.Random(1)
    for ends in (True, True, False):
        whole = text(rng, 600, ends)
        ids = tokenizer.encode(whole, add_special_tokens=False)
        if decode_completion(tokenizer, ids) != whole:  # a tokenizer that does not know all letters
            whole = decode_completion(tokenizer, ids)
            ids = tokenizer.encode(whole, add_special_tokens=False)
        paragraphs = split_paragraphs(whole, len, min_tokens=1, max_tokens=40)
        assert len(paragraphs) > 5
        cuts = PathCuts(whole, tokenizer)
        if not is_fast:
            monkeypatch.setattr(cuts, "_starts", None)
        for last in range(len(paragraphs) - 1):
            kept, forced = cut_completion_ids(ids, tokenizer, paragraphs, last)
            share = len(kept) / think_end_finder(tokenizer)(ids)
            assert cuts.after(paragraphs[last].end) == (
                decode_completion(tokenizer, kept) + forced,
                share,
            )


def odd_text(rng: random.Random) -> str:
    """Letters of any kind, contractions, blanks, combining marks and added tokens."""
    kinds = (
        lambda: chr(rng.randrange(32, 127)),
        lambda: chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x20000)))),
        lambda: rng.choice((" ", "\n", "\n\n", "'s", "'LL", "'ſ", "e\u0301", "é", " the", "12")),
        lambda: "</think>" if rng.random() < 0.02 else "√",
    )
    return "".join(rng.choice(kinds)() for _ in range(rng.randrange(80)))


@pytest.mark.parametrize("name", ["Miniature-LRM", "Miniature-Instruct"])
def test_tokens_counted_by_words_are_those_of_the_encoding(name):
    tokenizer = load_tokenizer(str(ROOT / "model" / name))
    rng = random.Random(2)
    texts = [odd_text(rng) for _ in range(600)] + [text(rng, 600) for _ in range(5)]
    counts = [word_counts(tokenizer).count(one) for one in texts]
    encoded = [len(tokenizer.encode(one, add_special_tokens=False)) for one in texts]
    assert num_tokens(texts, tokenizer) == encoded
    known = [count for count in counts if count is not None]
    assert known == [n for n, count in zip(encoded, counts, strict=True) if count is not None]
    assert len(known) > 200  # many texts are counted, and some have to be encoded
    assert None in counts


def test_an_ascii_text_is_counted_as_it_is_encoded():
    """Every ASCII character next to every other one, and runs of them."""
    tokenizer = load_tokenizer(str(ROOT / "model" / "Miniature-LRM"))
    rng, ascii_texts = random.Random(3), [chr(i) for i in range(128)]
    texts = [f"x{a}{b}y" for a in ascii_texts for b in ascii_texts]
    texts += ["".join(rng.choices("ab1 \n\t'.-", k=rng.randint(1, 40))) for _ in range(2000)]
    counts = [word_counts(tokenizer).count(one) for one in texts]
    encoded = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    wrong = [
        one for one, n, m in zip(texts, counts, encoded, strict=True) if n is not None and n != m
    ]
    assert wrong == [] and sum(n is not None for n in counts) > 15_000


@pytest.mark.parametrize(
    "pattern, written",
    [
        (r" ?[^\s\p{L}\p{N}]+|\p{N}{1,3}", r" ?[^\sa-zA-Z0-9]+|[0-9]{1,3}"),
        (r"\[\p{L}\]", r"\[[a-zA-Z]\]"),  # brackets that are no class
        (r"[\]\p{L}]", r"[\]a-zA-Z]"),
        (r"\p{Lu}+", None),
        (r"\P{L}+", None),
        (r"\pL+", None),
    ],
)
def test_properties_of_characters_are_written_out_for_ascii_texts(pattern, written):
    made = in_ascii(pattern)
    assert (made and made.pattern) == written


def test_a_tokenizer_without_words_encodes():
    tokenizer = make_tokenizer()
    assert word_counts(tokenizer) is None and num_tokens(["ab", ""], tokenizer) == [2, 0]


@pytest.mark.slow
def test_the_benchmark_reports_stages_and_slopes(tmp_path):
    out = tmp_path / "offline.json"
    command = [sys.executable, str(ROOT / "scripts/benchmark/offline.py"), "--json", str(out)]
    sizes = ["--responses", "8", "16", "--characters", "300", "--repeats", "1"]
    subprocess.run([*command, *sizes, "--stages", "label", "candidates", "confirm"], check=True)
    report = json.loads(out.read_text())
    assert report["stages"].keys() == {"label", "candidates", "confirm"}
    for by_checkout in report["stages"].values():
        assert by_checkout["this"]["runs"].keys() == {"8", "16"}
        (slope,) = by_checkout["this"]["per_1000"]
        assert slope.keys() == {"seconds", "cpu_seconds", "peak_mb"}
        assert all(
            cost["peak_mb"] > 5 for costs in by_checkout["this"]["runs"].values() for cost in costs
        )


def test_the_lookup_is_used_where_it_can_be():
    assert PathCuts("So π.\n\nYes.</think>", make_tokenizer())._starts is not None


PEAKS = """
import sys
from generation.{module} import main
for argv in {argvs}:
    main(argv)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("PEAK", peak.split()[1], file=sys.stderr)
"""


def peaks_mb(module: str, argvs: list[list[str]], folder: Path) -> list[float]:
    """Largest memory of a process in MB after each of several commands."""
    code = PEAKS.format(module=module, argvs=argvs)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    lines = (line.split() for line in done.stderr.splitlines() if line.startswith("PEAK"))
    return [int(kilobytes) / 1024 for _, kilobytes in lines]


def argv_of(module: str, file: str, model: str) -> list[str]:
    if module == "answer_judge":
        stage = ["--split", "labeling_distill_use_asw", "--model_dir", "judge"]
        return ["--qaf", file, *stage, "--paragraph_tokenizer", model, "--num_workers", "1"]
    budgets = ["--budgets", "900", "--out", f"{file}.b.json"] if module == "forced_budgets" else []
    return [file, "--model_dir", model, *budgets, "--num_workers", "1"]


@pytest.mark.parametrize("module", ["math_verify_all", "forced_budgets", "answer_judge"])
def test_memory_does_not_grow_with_the_file(tmp_path, module):
    """What is held of 120 more responses of 20,000 characters is none of their text, 2.4 MB, nor of
    its tokens and their places, 140 MB."""
    model = str(save_model(tmp_path / "model"))
    files = [str(paths(tmp_path / f"{number}.json", number, 20_000)) for number in (10, 130)]
    few, many = peaks_mb(module, [argv_of(module, file, model) for file in files], tmp_path)
    assert many - few < 40


def test_a_file_is_scored_alike_by_one_and_by_many(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = str(save_model(tmp_path / "model"))
    written = []
    for workers in (1, 2):
        monkeypatch.setattr(parallel, "BYTES_PER_PROCESS", 10_000)
        file = paths(tmp_path / "a.json", 40, 900)
        math_verify_all.main(
            [
                str(file),
                "--model_dir",
                model,
                "--num_workers",
                str(workers),
                "--budgets",
                "400",
                "9000",
            ]
        )
        written.append(
            (tmp_path / "a.scores.json").read_text() + (tmp_path / "a.verdicts.jsonl").read_text()
        )
    assert (
        written[0] == written[1]
        and json.loads((tmp_path / "a.scores.json").read_text())["num_responses"] == 40
    )


def test_prompts_of_many_problems_are_made_by_many_processes(tmp_path, monkeypatch, serve):
    """A file of 8 MB or more has several of them; its rows are sent there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel, "BYTES_PER_PROCESS", 100)
    write_json(Path("p.json"), [{"question": f"{i}+1?", "answer": i + 1} for i in range(9)])
    flags = ["--qaf", "p.json", "--model_dir", "m", "--api", "--api_base", serve().url]
    flags += ["--api_model", "m", "--prompt_template", "{problem}", "--seed", "0"]
    for workers in ("1", "2"):
        generate.main([*flags, "--num_workers", workers, "--save_suffix", workers])
    alone, together = (json.loads(Path(f"output/m/p_math_cot{n}.json").read_text()) for n in "12")
    assert alone == together
    assert [row["responses"][0]["text"] for row in alone] == [
        f"{i}+1? {sample_seed(0, str(i), 0)}</think>\\boxed{{1}}" for i in range(9)
    ]


@pytest.mark.parametrize("name", ["bytes", "model/Miniature-LRM"])
@pytest.mark.parametrize("setting", ["plain", "truncated", "padded", "split"])
def test_texts_are_encoded_as_by_the_plain_call_whatever_was_set_before(name, setting):
    tokenizer = make_tokenizer() if name == "bytes" else load_tokenizer(str(ROOT / name))
    rng = random.Random(2)
    texts = ["", "<think>\n", *(odd_text(rng) for _ in range(30))]
    if setting == "split":
        tokenizer.split_special_tokens = True
        texts.append(tokenizer.eos_token)
    expected = [tokenizer.encode(each, add_special_tokens=False) for each in texts]
    if setting == "truncated":
        tokenizer.backend_tokenizer.enable_truncation(3)
    elif setting == "padded":
        tokenizer.backend_tokenizer.enable_padding(length=50)
    assert [encode_text(each, tokenizer) for each in texts] == expected
