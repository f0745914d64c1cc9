"""Labels of the reflection model and of the judge: probabilities, cuts, parsing, training
examples."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.cuts import CutRule, Cuts, choose_cuts, label_positions, result_probabilities
from generation.labeling_distill_utils import parse_judge_labels, reflection_example

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
LABEL_STEPS = [
    [(math.log(0.75), " Think"), (math.log(0.25), " Result")],
    # a label only if it is the most likely alternative
    [(math.log(0.9), "\n"), (math.log(0.1), " Result")],
    [
        (math.log(0.6), " Result"),
        (math.log(0.1), " result"),
        (math.log(0.1), "Think"),
        (math.log(0.2), "2"),
    ],
    [(math.log(0.9), "think"), (math.log(0.1), " Think")],  # not the label's spelling
]


def test_result_probabilities():
    assert label_positions(LABEL_STEPS) == [0, 2]
    assert result_probabilities(LABEL_STEPS) == pytest.approx([0.25, 0.875])


@pytest.mark.parametrize(
    ("p_result", "num_paragraphs", "cuts"),
    [
        ([0.0] * 4, 4, Cuts(strong=3, normal=3, weak=3)),  # nothing found: all is kept
        ([1.0], 1, Cuts(0, 0, 0)),
        # the half of 7 is 3.5
        ([0.9, 0.9, 0.6, 0.6, 0.1, 0.6, 0.0], 7, Cuts(strong=0, normal=5, weak=5)),
        ([0.0, 0.0, 0.6, 0.6, 0.1, 0.6], 6, Cuts(strong=2, normal=3, weak=5)),  # 2 and 3 are equals
        ([0.0, 0.3, 0.8, 0.8, 0.1, 0.1], 6, Cuts(strong=2, normal=3, weak=3)),
        # strong does not need a normal
        ([0.0, 0.3, 0.2, 0.1], 4, Cuts(strong=1, normal=3, weak=3)),
        # 2 is before the half; labels missing after it
        ([0.0, 0.0, 0.9], 5, Cuts(strong=2, normal=4, weak=4)),
        ([0.0, 0.0, 0.1, 0.9], 3, Cuts(strong=2, normal=2, weak=2)),  # a label too many
        ([0.0] * 20, 20, Cuts(18, 18, 18)),  # floor(30 * 0.05) = 1 is always removed
        ([0.0] * 200, 200, Cuts(194, 194, 194)),  # never more than 5
    ],
)
def test_choose_cuts(p_result, num_paragraphs, cuts):
    assert choose_cuts(p_result, num_paragraphs) == cuts


def test_choose_cuts_settings():
    p_result = [0.0, 0.6, 0.0, 0.0, 0.9, 0.4]
    assert choose_cuts(p_result, 6) == Cuts(strong=4, normal=4, weak=4)
    assert choose_cuts(p_result, 6, second_half=0.0) == Cuts(strong=1, normal=1, weak=4)
    assert choose_cuts(p_result, 6, second_half=0.0, threshold=0.7) == Cuts(
        strong=4, normal=4, weak=4
    )
    assert choose_cuts(p_result, 6, strong_threshold=0.95) == Cuts(strong=4, normal=4, weak=4)
    assert choose_cuts(p_result, 6, cap_share=0.5, cap_offset=0) == Cuts(strong=2, normal=2, weak=2)
    # one paragraph is always kept
    assert choose_cuts(p_result, 6, cap_share=2.0, cap_max=9) == Cuts(0, 0, 0)
    with pytest.raises(ValueError, match="num_paragraphs is 0"):
        choose_cuts([], 0)


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(1, 40))
def test_stronger_cuts_keep_less(p_result, num_paragraphs):
    cuts = choose_cuts(p_result, num_paragraphs)
    assert 0 <= cuts.strong <= cuts.normal <= cuts.weak < num_paragraphs


def test_parse_judge_labels_reads_decorated_replies():
    response = (
        "Sure.\n\n**[1].** Think: sets up.\n**Label:** Reasoning\n\n[2]. Think: 3.\nLabel: "
        "**Right Result**."
    )
    assert parse_judge_labels(response) == {1: "Reasoning", 2: "Right Result"}


@pytest.mark.parametrize(
    "response",
    [
        "",
        "I cannot label this.",
        "[1]. Think: a\nLabel: Reasoning\n\n[2]. Think: cut off in the mid",
        "[1]. Think: a\nLabel: Unsure\n\n[2]. Think: b\nLabel: Reasoning",
        "[1]. Think: a\nLabel: Results vary",
    ],
)
def test_parse_judge_labels_does_not_guess(response):
    assert parse_judge_labels(response) == {}


def test_reflection_example_is_a_prompt_completion_row():
    example = reflection_example("1+1?", ["Add.", "It is 2."], [False, True])
    assert example["completion"] == [{"role": "assistant", "content": "[1]. Think\n[2]. Result"}]
    (message,) = example["prompt"]
    assert message["content"].endswith("[1]. Add.\n\n[2]. It is 2.")
    with pytest.raises(ValueError, match="2 paragraphs but 1 verdicts"):
        reflection_example("1+1?", ["Add.", "It is 2."], [True])


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def assert_early_cuts_are_final(p_result, num_paragraphs, **settings):
    """A cut that a prefix of the labels decides is that of all labels. Returns the number of early
    ones."""
    early = 0
    for strength, final in vars(choose_cuts(p_result, num_paragraphs, **settings)).items():
        decided = [
            CutRule(**settings).decided(strength, p_result[:read], num_paragraphs)
            for read in range(len(p_result) + 1)
        ]
        assert set(decided) <= {None, final}
        first = next((read for read, cut in enumerate(decided) if cut is not None), len(decided))
        assert None not in decided[first:]  # once decided, always
        if len(p_result) >= num_paragraphs:
            assert decided[num_paragraphs] == final
        early += first < min(len(p_result), num_paragraphs)
    return early


def test_early_cut_is_the_cut_of_the_whole_reply_in_all_golden_cases():
    cases = golden("cuts")
    early = [
        assert_early_cuts_are_final(case["p_result"], case["num_paragraphs"]) for case in cases
    ]
    assert sum(early) > len(cases)  # and it saves something
    for case in cases:
        settings = {"second_half": 0.0, "cap_share": 0.0}  # the miniature's
        assert_early_cuts_are_final(case["p_result"], case["num_paragraphs"], **settings)


def test_early_cut_of_a_reply_in_pieces():
    """Label probabilities of the tokens so far are a beginning of those of the whole reply, so
    its cuts are, too."""
    for case in golden("label_probabilities"):
        whole = result_probabilities(case["steps"])
        for read in range(len(case["steps"]) + 1):
            so_far = result_probabilities(case["steps"][:read])
            assert so_far == whole[: len(so_far)]
        for num_paragraphs in range(1, len(whole) + 3):
            assert_early_cuts_are_final(whole, num_paragraphs)


@pytest.mark.parametrize("second_half", [0.0, 0.5])
@pytest.mark.parametrize("cap", [0, 1])
def test_a_cut_is_decided_exactly_when_all_ways_of_going_on_agree(second_half, cap):
    """Every reply of up to 4 labels on a grid, for 4 paragraphs."""
    settings = {"second_half": second_half, "cap_share": 1.0, "cap_max": cap}
    grid = (0.0, 0.3, 0.5, 0.7, 1.0)
    replies = [
        list(reply) for length in range(5) for reply in itertools.product(grid, repeat=length)
    ]
    final = {tuple(reply): vars(choose_cuts(reply, 4, **settings)) for reply in replies}
    for prefix in replies:
        tails = [final[reply] for reply in final if list(reply[: len(prefix)]) == prefix]
        for strength in ("strong", "normal", "weak"):
            possible = {cuts[strength] for cuts in tails}
            expected = possible.pop() if len(possible) == 1 else None
            assert CutRule(**settings).decided(strength, prefix, 4) == expected, (prefix, strength)
