"""Pages say what is there: links lead somewhere, commands exist, and tables hold what the code
has."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "docs", "docs/*", "recipes", "model/*", "dataset/*")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
PROGRAM = re.compile(r"python -m ([\w.]+)")
FILE = re.compile(
    r"(?:bash |python |--config )((?:scripts|docs|recipes|examples)/[\w./-]+)|(reflect_rl\.sh)"
)

# Blocks that hold no sentences, and marks that are no words.
NO_PROSE = (
    r"\A---\n.*?\n---\n", r"```.*?```", r"\$\$.*?\$\$", r"^(?: {4,}|\|[-|]+\|).*$",
)  # fmt: skip
SENTENCE_END = r"(?<=[.!?:;])\s+(?=[A-Z0-9`(*±])"
UNPLAIN = re.compile(r"(?i)\b(anew|afresh|beside|go(es|ing)? on|went on|of which)\b|\b(slips?)\b")
MAX_WORDS = 25


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if re.match(r"https?:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target) if target else page
        assert file.exists(), f"{link}: there is no {file}"
        assert not anchor or anchor in anchors(file), f"{link}: {file} has {sorted(anchors(file))}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page):
    text = page.read_text()
    for program in {match.rstrip(".") for match in PROGRAM.findall(text)}:
        assert importlib.util.find_spec(program), f"python -m {program}: there is no such program"
    for file in {"".join(match).rstrip(".") for match in FILE.findall(text)}:
        assert (ROOT / file).exists(), f"{file} does not exist"


def sentences(page: Path) -> list[str]:
    """Of paragraphs, list items and cells of tables; inline code and formulas count as one word."""
    text = page.read_text()
    for block in NO_PROSE:
        text = re.sub(block, "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`]*`|\$[^$\n]*\$", "`code`", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    pieces = re.split(r"\n\s*\n|\n(?=[-*#]|\d+\. )|\||(?<=\|)\n", text)
    return [s for piece in pieces for s in re.split(SENTENCE_END, " ".join(piece.split()))]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_sentences_are_short_and_plain(page):
    """CONTRIBUTING.md has the rules, and names the words that are left out here."""
    found = sentences(page)
    long = [s for s in found if len(re.findall(r"\S*\w\S*", s)) > MAX_WORDS]
    assert not long, f"over {MAX_WORDS} words"
    if page.name != "CONTRIBUTING.md":
        assert not [s for s in found if UNPLAIN.search(s)]


@pytest.mark.parametrize(
    "folder", ["src/rea_core", "src/generation", "src/miniature", "src/rea_rl"]
)
def test_docstrings_and_comments_are_plain(folder):
    """Names keep their words, such as the flag --slips; the answer check is left out."""
    files = [file for file in (ROOT / folder).rglob("*.py") if file.parent.name != "math_verify"]
    assert files
    for file in files:
        with file.open("rb") as stream:
            tokens = list(tokenize.tokenize(stream.readline))
        for token in tokens:
            is_docstring = token.type == tokenize.STRING and '"""' in token.string[:4]
            if token.type == tokenize.COMMENT or is_docstring:
                text = re.sub(r"`[^`]*`|--slips|^ *slips:", "", token.string, flags=re.MULTILINE)
                found = UNPLAIN.search(text)
                assert not found, f"{file}, line {token.start[0]}: {found[0]!r} in {text}"


def test_a_long_or_unplain_sentence_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        f"A `long piece of code`. {'Word ' * 26}.\n\n| It goes on | fine |\n|---|---|\n"
    )
    assert [len(s.split()) for s in sentences(page) if s] == [2, 27, 3, 1]
    assert [s for s in sentences(page) if UNPLAIN.search(s)] == ["It goes on"]


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert (
        len(text.splitlines()) <= 200
        and len(text.split()) <= 1500
        and len(text.encode()) <= 12 * 1024
    )


TABLES = {  # of the README: first cell of the head, the file, and the columns
    "0.5B, word problems": (
        "docs/real/real.json",
        [("all", "accuracy", 100), ("all", "corrected", 100), ("all", "tr", 1)],
    ),
    "miniature": (
        "docs/study/study.json",
        [
            ("all", "accuracy", 100),
            ("hard", "accuracy", 100),
            ("hard", "slips_corrected", 100),
            ("all", "tr", 1),
        ],
    ),
}
TITLES = {"base": "reasoning model (LRM)"}  # of the README and of the real report


@pytest.mark.parametrize("head", TABLES)
def test_the_results_of_the_readme_are_those_of_the_reports(head):
    path, keys = TABLES[head]
    known = {row["title"]: row["groups"] for row in json.loads((ROOT / path).read_text())["rows"]}
    text = (ROOT / "README.md").read_text()
    table = re.search(rf"^\| {re.escape(head)} \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)[1]
    rows = re.findall(r"^\| \**([^|*]+)\** \| (.* ± .*) \|$", table, re.MULTILINE)
    assert len(rows) >= 3
    for title, cells in rows:
        groups = known.get(title.strip()) or known[TITLES[title.strip()]]
        shown = []
        for group, key, scale in keys:
            each = groups[group][key]
            half = (each["high"] - each["low"]) / 2 * scale
            shown.append(f"{each['value'] * scale:.1f} ± {half:.1f}")
        assert cells.split(" | ") == [cell.replace("100.0 ± 0.0", "100") for cell in shown], title


def test_the_page_of_recipe_keys_is_generated_from_the_code():
    spec = importlib.util.spec_from_file_location(
        "make_configuration", ROOT / "docs/make_configuration.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run: python docs/make_configuration.py"


def test_all_keys_of_a_rollout_are_explained():
    from rea_rl.rollout.record import Rollout

    page = (ROOT / "docs/outputs.md").read_text()
    assert [
        field.name for field in dataclasses.fields(Rollout) if f"`{field.name}`" not in page
    ] == []
