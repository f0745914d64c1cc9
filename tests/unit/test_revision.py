"""Revision: ids are cut exactly, rows are paired and replaced, advantages and the token signal
are as worked out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from generation.cuts import (
    cut_completion_ids,
    decode_completion,
    find_marker,
    think_end_finder,
    think_end_ids,
)
from generation.segments import Paragraph, split_paragraphs
from rea_rl.revision import group_advantages, keep_or_replace, overthinking_signal

# Qwen's rule that matters here: punctuation takes the newlines after it, so `.\n\n` becomes one
# token.
QWEN_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2_WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CORPUS = [
    "So it is two.\n\nWait, let me check.\n\nYes, it is two.\n",
    "Hmm\n\nWait\n\n",
    "</think>\n\n",
] * 50


def build_tokenizer(words: str, think_token: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE; characters outside the corpus are several ids."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(words), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    if think_token:
        fast.add_tokens(["</think>"])
    return fast


QWEN_LIKE = build_tokenizer(QWEN_WORDS, think_token=True)
GPT2_LIKE = build_tokenizer(GPT2_WORDS, think_token=False)


def encode(text: str, tokenizer: PreTrainedTokenizerFast = QWEN_LIKE) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def split(text: str, min_tokens: int = 1) -> list[Paragraph]:
    return split_paragraphs(
        text, lambda part: len(part.split()), min_tokens=min_tokens, max_tokens=8
    )


def cut_text(
    text: str, last_kept: int, tokenizer=QWEN_LIKE, min_tokens: int = 1
) -> tuple[str, str] | None:
    ids = encode(text, tokenizer)
    cut = cut_completion_ids(ids, tokenizer, split(text, min_tokens), last_kept)
    if cut is None:
        return None
    assert cut.kept_ids == ids[: len(cut.kept_ids)]
    return decode_completion(tokenizer, cut.kept_ids), cut.forced_text


WITH_NEWLINE = "\n</think>\n\n**Final Answer:**\n\n"
WITHOUT_NEWLINE = "</think>\n\n**Final Answer:**\n\n"
ANSWER = "</think>\n\n\\boxed{2}"


def test_id_with_the_newlines_after_the_text_is_kept_whole():
    assert QWEN_LIKE.convert_ids_to_tokens(encode("two.\n\nWait"))[-2] == ".ĊĊ"
    text = "So it is two.\n\nWait, let me check.\n\nYes, it is two.\n" + ANSWER
    assert cut_text(text, 0) == ("So it is two.\n\n", WITHOUT_NEWLINE)
    assert cut_text(text, 1) == ("So it is two.\n\nWait, let me check.\n\n", WITHOUT_NEWLINE)


def test_newlines_in_ids_of_their_own_are_left_out():
    assert cut_text("So it is two.\n\nWait.\n\nYes.\n" + ANSWER, 0, GPT2_LIKE) == (
        "So it is two.",
        WITH_NEWLINE,
    )
    assert cut_text("So it is 2\n\nWait.\n\nYes.\n" + ANSWER, 0, min_tokens=5) == (
        "So it is 2\n\nWait.\n\n",
        WITHOUT_NEWLINE,
    )


@pytest.mark.parametrize("character", ["二", "é", "😀", "👩‍👧"])
def test_last_character_of_several_ids_is_kept_whole(character):
    assert len(encode(character)) > 1
    kept, forced = cut_text(
        f"It is {character}!\n\nIt is {character}\n\nYes.\n\nIt is {character}." + ANSWER, 1
    )
    # The second paragraph is open until `Yes.`, so the cut before the last part follows below.
    assert (kept, forced) == (
        f"It is {character}!\n\nIt is {character}\n\nYes.\n\n",
        WITHOUT_NEWLINE,
    )
    kept, forced = cut_text(f"It is {character}!\n\nIt is {character}\n\nYes." + ANSWER, 1)
    assert (kept, forced) == (f"It is {character}!\n\nIt is {character}", WITH_NEWLINE)


def test_everything_kept_cuts_before_the_last_part():
    assert cut_text("One.\n\nTwo.\n\nThree.\n" + ANSWER, 2) == ("One.\n\nTwo.\n\n", WITHOUT_NEWLINE)
    # One paragraph of two parts is cut inside.
    assert cut_text("One\n\nTwo.\n" + ANSWER, 0, min_tokens=9) == ("One", WITH_NEWLINE)


def test_everything_kept_may_be_left_as_it_is():
    ids = encode("One.\n\nTwo.\n\nThree.\n" + ANSWER)
    paragraphs = split("One.\n\nTwo.\n\nThree.\n" + ANSWER)
    assert cut_completion_ids(ids, QWEN_LIKE, paragraphs, 2, always_cut=False) is None
    assert cut_completion_ids(ids, QWEN_LIKE, paragraphs, 1, always_cut=False).kept_ids == encode(
        "One.\n\nTwo.\n\n"
    )


def test_single_part_or_empty_thinking_has_no_revision():
    assert cut_text("One two three.\n" + ANSWER, 0) is None
    assert cut_text("\n" + ANSWER, 0) is None


def test_truncated_path_is_cut_likewise():
    assert cut_text("One.\n\nTwo.\n\nThr", 0) == ("One.\n\n", WITHOUT_NEWLINE)
    assert cut_text("One.\n\nTwo.\n\nThr", 2) == ("One.\n\nTwo.\n\n", WITHOUT_NEWLINE)
    assert cut_text("One two thr", 0) is None


def test_special_ids_are_no_text_but_stay_in_the_prefix():
    eos = QWEN_LIKE.eos_token_id
    ids = [*encode("One.\n\n"), eos, *encode("Two.\n\nThree."), eos]
    text = decode_completion(QWEN_LIKE, ids)
    assert text == "One.\n\nTwo.\n\nThree."
    assert (
        cut_completion_ids(ids, QWEN_LIKE, split(text), 0).kept_ids
        == ids[: len(encode("One.\n\n"))]
    )
    assert eos in cut_completion_ids(ids, QWEN_LIKE, split(text), 1).kept_ids


PARTS = st.tuples(
    st.text("ab1 .,?\n二é😀", max_size=12),
    st.sampled_from(["\n\n", ".\n\n", "\n\n\n", "二\n\n", " \n\n"]),
)
TEXTS = st.lists(PARTS.map("".join), min_size=2, max_size=10).map("".join)


def check_every_cut(ids: list[int], tokenizer: PreTrainedTokenizerFast) -> None:
    text = decode_completion(tokenizer, ids)
    paragraphs = split(text, min_tokens=2)
    for last_kept, paragraph in enumerate(paragraphs[:-1]):
        kept_ids, forced_text = cut_completion_ids(ids, tokenizer, paragraphs, last_kept)
        prefixes = (
            n
            for n in range(len(ids))
            if decode_completion(tokenizer, ids[:n]).startswith(text[: paragraph.end])
        )
        assert kept_ids == ids[: next(prefixes)]  # what a scan id by id finds
        assert forced_text.startswith("\n") is not decode_completion(tokenizer, kept_ids).endswith(
            "\n"
        )


@settings(deadline=None, max_examples=150)
@given(TEXTS, st.sampled_from([QWEN_LIKE, GPT2_LIKE]))
def test_cut_of_any_text(text, tokenizer):
    ids = encode(text, tokenizer)
    assert decode_completion(tokenizer, ids) == text
    check_every_cut(ids, tokenizer)
    paragraphs = split(text, min_tokens=2)
    for last_kept in range(len(paragraphs) - 1):
        kept_ids, _ = cut_completion_ids(ids, tokenizer, paragraphs, last_kept)
        kept = split(decode_completion(tokenizer, kept_ids), min_tokens=2)
        assert [p.text.strip() for p in kept] == [
            p.text.strip() for p in paragraphs[: last_kept + 1]
        ]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_cut_of_any_ids(data):
    """Sampled ids need not be an encoding of their text, nor valid UTF-8."""
    any_id = st.integers(0, len(QWEN_LIKE) - 1)
    ids = data.draw(
        st.lists(any_id | st.sampled_from(encode("Hmm.\n\nWait\n\n二")), min_size=20, max_size=60)
    )
    check_every_cut(ids, QWEN_LIKE)


@pytest.mark.parametrize(
    "tokenizer", [QWEN_LIKE, GPT2_LIKE, build_tokenizer(QWEN_WORDS, think_token=False)]
)
def test_end_of_the_thinking_is_found_whatever_follows(tokenizer):
    """Without a token of its own, a Qwen tokenizer ends it in one that holds the blank line,
    too."""
    find = think_end_finder(tokenizer)
    for after in ("", " so", "\n\n**Final Answer:**", "\n\nNo</think>"):
        ids = encode("It is two.\n</think>" + after, tokenizer)
        assert decode_completion(tokenizer, ids[: find(ids)]).rstrip("\n") == "It is two."
        assert decode_completion(tokenizer, ids[find(ids) :]).lstrip("\n").startswith("</think>")
    unfinished = encode("It is two.\n</think", tokenizer)
    assert find(unfinished) == len(unfinished)
    assert find([]) == 0


def test_think_end_is_one_id_or_several():
    assert len(think_end_ids(QWEN_LIKE)) == 1
    marker = think_end_ids(GPT2_LIKE)
    assert GPT2_LIKE.decode(marker) == "</think>"
    assert len(marker) > 1
    thinking = encode("So it is two.\n", GPT2_LIKE)
    assert find_marker(thinking + marker + encode("\n\nTwo", GPT2_LIKE), marker) == len(thinking)
    assert find_marker(thinking + marker[:-1], marker) == len(thinking) + len(marker) - 1


@pytest.mark.parametrize(
    ("ids", "marker", "index"),
    [
        ([5, 9, 9], 9, 1),
        ([5, 6], 9, 2),
        ([], 9, 0),
        ([7, 7, 8, 3], [7, 8], 1),
        ((7, 8), [7, 8], 0),
        ([7], [7, 8], 1),
    ],
)
def test_find_marker(ids, marker, index):
    assert find_marker(ids, marker) == index


def test_wrong_revision_is_replaced_by_its_original():
    # original, revision: right/wrong, wrong/wrong, wrong/right, right/right
    assert keep_or_replace([True, False, False, False, False, True, True, True]) == [
        0,
        0,
        2,
        2,
        4,
        5,
        6,
        7,
    ]
    with pytest.raises(ValueError, match="3 rows cannot alternate"):
        keep_or_replace([True, True, True])


def test_group_advantages_by_hand():
    # First group: sums 2, 0, 2, 2; mean 1.5, unbiased standard deviation sqrt((3 x 0.25 + 2.25) /
    # 3) = 1.
    rewards = torch.tensor(
        [
            [1.0, 1.0],
            [0.0, 0.0],
            [1.0, 1.0],
            [1.0, 1.0],
            [1.0, 0.5],
            [1.0, 0.5],
            [1.0, 0.5],
            [1.0, 0.5],
        ]
    )
    correct = rewards[:, 0] == 1
    unscaled = [0.5, -1.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert group_advantages(rewards, correct, 4, scale=False).tolist() == pytest.approx(unscaled)
    assert group_advantages(rewards, correct, 4).tolist() == pytest.approx(
        [a / 1.0001 for a in unscaled]
    )


@pytest.mark.parametrize("scale", [True, False])
def test_group_without_a_right_path_has_no_advantage(scale):
    rewards = torch.tensor([[0.0, 0.3], [0.0, 0.9], [1.0, 0.0], [0.0, 0.0]])
    advantages = group_advantages(
        rewards, torch.tensor([0.0, 0.0, 1.0, 0.0]), group_size=2, scale=scale
    )
    assert advantages[:2].tolist() == [0.0, 0.0]
    assert advantages[2] > 0 > advantages[3]
    assert torch.isfinite(advantages).all()
    assert (
        group_advantages(rewards, torch.zeros(4), group_size=4, scale=scale).tolist() == [0.0] * 4
    )


@pytest.mark.parametrize("group_size", [0, 1, 3])
def test_group_size_must_divide_the_rows(group_size):
    with pytest.raises(
        ValueError, match=f"group_size {group_size} must be at least 2 and divide the 4 rows"
    ):
        group_advantages(torch.zeros(4, 1), torch.zeros(4), group_size)


@pytest.mark.parametrize("marker", [9, [9], [9, 8]])
def test_overthinking_signal(marker):
    end = [9] if isinstance(marker, int) else marker
    original, revision = [1, 2, 3, 4, 5, *end, 6], [1, 2, *end, 7]
    signal = overthinking_signal(original, revision, marker, (False, True))
    assert signal.mask_original == [0, 0, 1, 1, 1] + [1] * len(end) + [1]
    assert signal.mask_revision == [0, 0] + [1] * len(end) + [1]
    assert signal.sign == (-1.0, 1.0)
    # A wrong revision keeps the masks and loses the sign; a truncated original ends at its length.
    assert overthinking_signal(original, revision, marker, (True, False)).sign == (0.0, 0.0)
    assert overthinking_signal([1, 2, 3, 4], revision, marker, (False, True)).mask_original == [
        0,
        0,
        1,
        1,
    ]


def test_overthinking_signal_needs_more_than_one_saved_id():
    signal = overthinking_signal([1, 2, 3, 9, 6], [1, 2, 9, 7], 9, (True, True))
    assert (signal.mask_original, signal.mask_revision, signal.sign) == (
        [0] * 5,
        [0] * 4,
        (0.0, 0.0),
    )
