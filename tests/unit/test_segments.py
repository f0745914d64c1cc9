"""Paragraph splitter: its three rules one by one, and where each paragraph ends in the text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from generation.segments import chunk_paragraphs, split_paragraphs


def split(text: str) -> list[tuple[str, int]]:
    paragraphs = split_paragraphs(text, lambda part: len(part.split()), min_tokens=3, max_tokens=5)
    return [(p.text, p.num_tokens) for p in paragraphs]


def test_closes_at_a_sentence_end_with_enough_tokens():
    assert split("a b.\n\nc?\n\nd e f!") == [("a b.\n\nc?", 3), ("d e f!", 3)]


def test_stays_open_without_a_sentence_end():
    assert split("a b c\n\nd.") == [("a b c\n\nd.", 4)]


def test_part_that_ends_a_sentence_may_exceed_the_maximum():
    assert split("a b\n\nc d e f.") == [("a b\n\nc d e f.", 6)]


def test_part_that_reaches_the_maximum_opens_the_next_paragraph():
    assert split("a b\n\nc d e\n\nf.") == [("a b", 2), ("c d e\n\nf.", 4)]


def test_overlong_part_is_a_paragraph_only_if_nothing_is_open():
    assert split("a b c d e f\n\ng") == [("a b c d e f", 6), ("g", 1)]
    # It opens a paragraph here and is not tested again, so the next part joins it or is shut out by
    # it.
    assert split("z\n\na b c d e f\n\ng.") == [("z", 1), ("a b c d e f\n\ng.", 7)]
    assert split("z\n\na b c d e f\n\ng") == [("z", 1), ("a b c d e f", 6), ("g", 1)]


def test_only_the_thinking_is_split_and_blank_parts_are_dropped():
    assert split("a b c.\n\n \n\n\nd e f.\n</think>\n\n\\boxed{1}") == [
        ("a b c.", 3),
        ("d e f.\n", 3),
    ]
    assert split("\n\n</think>\n\n\\boxed{1}") == []


def test_blank_lines_of_all_systems_separate_parts():
    for newline in ("\n", "\r\n", "\r"):
        for blank in (
            newline * 2,
            f"{newline} {newline}",
            f"{newline}\t{newline}  {newline}",
            f"{newline}\u3000{newline}",
        ):
            text = f"a b c.{blank}d e{newline}f.{blank}</think>"
            assert split(text) == [("a b c.", 3), (f"d e{newline}f.", 3)], repr(text)
    text = "a b c.\r\n \r\nd e f.\r\n\r\n"
    ends = [
        p.end
        for p in split_paragraphs(text, lambda part: len(part.split()), min_tokens=3, max_tokens=5)
    ]
    assert ends == [len("a b c."), len("a b c.\r\n \r\nd e f.")]


def test_sentences_end_with_full_width_signs_too():
    for end in "。！？；":
        assert split(f"a b 三{end}\n\nd e f") == [(f"a b 三{end}", 3), ("d e f", 3)]
    assert split("a b 三，\n\nd") == [("a b 三，\n\nd", 4)]


def test_part_ends_are_offsets_in_the_text():
    text = "a.\n\nb\n\n\n\nc d.\n\ne f g.\n</think>"
    first, second = split_paragraphs(
        text, lambda part: len(part.split()), min_tokens=3, max_tokens=5
    )
    assert (first.text, first.part_ends, first.end) == ("a.\n\nb\n\nc d.", (2, 5, 13), 13)
    assert (second.text, second.part_ends, second.end) == ("e f g.\n", (22,), 22)


@given(st.text(alphabet="ab .!?\n", max_size=200))
def test_paragraphs_hold_every_part_once_and_in_order(text):
    paragraphs = split_paragraphs(text, lambda part: len(part.split()), min_tokens=3, max_tokens=5)
    assert "".join("".join(p.text for p in paragraphs).split()) == "".join(text.split())
    assert sum(p.num_tokens for p in paragraphs) == len(text.split())
    ends = [end for p in paragraphs for end in p.part_ends]
    assert ends == sorted(set(ends))
    for paragraph in paragraphs:
        last_part = paragraph.text.split("\n\n")[-1]
        assert text[: paragraph.end].endswith(last_part)


@given(st.lists(st.integers(1, 1500), max_size=30))
def test_chunks_partition_the_paragraphs(num_tokens):
    chunks = chunk_paragraphs(num_tokens, 1024)
    assert [i for chunk in chunks for i in chunk] == list(range(len(num_tokens)))
    for chunk in chunks:
        tokens = sum(num_tokens[i] for i in chunk)
        assert len(chunk) == 1 or tokens <= 1024
        assert chunk.stop == len(num_tokens) or tokens + num_tokens[chunk.stop] > 1024
