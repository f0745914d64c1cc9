"""No text makes the comparison raise or take long; equality is reflexive, and symmetric where it
has no direction.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from generation.math_verify.compare import equivalent
from generation.math_verify.normalize import normalize
from generation.math_verify.original import equivalent_original

LIMIT = 5.0  # seconds of CPU time, which other processes do not change
PIECES = (
    r"\frac \sqrt \pi { } ( ) [ ] \{ \} 1 2 3 10 0.5 . x y n i e d + - * / ^ _ , ; = < > \le \ge "
    r"\ne \in \cup \infty "
    r"\pm \mp \text{cm} \text{ \text{and} % \% \$ $ \circ ^\circ ! \binom \begin{pmatrix} "
    r"\end{pmatrix} & "
    r"\\ | : A B am pm \boxed{ \log \sin \lfloor \rfloor \overline{3} ... C_ x= \mathbb{R} "
    r"\setminus f(x)= _8 999 √ "
    r"½ π \left \right \approx east two hundred \begin{cases} \end{cases} \text{if} \sum_{k=1}^ "
    r"\int_0^ \max( \pmod \equiv , \{x| \mid f(x) P(A|B) \forall \text{where} \text{even} 0. (3)"
).split() + [" ", "\n", " or ", " and ", "\\"]
soup = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
anything = st.one_of(soup, st.text(max_size=40))

number = st.one_of(
    st.integers(-99, 99).map(str),
    st.tuples(st.integers(-9, 9), st.integers(1, 9)).map(
        lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"
    ),
    st.integers(2, 30).map(lambda radicand: rf"\sqrt{{{radicand}}}"),
)
expression = st.one_of(
    number,
    st.tuples(number, st.sampled_from("xyn")).map(lambda pair: f"({pair[0]})\\cdot {pair[1]}^2"),
    st.tuples(number, number).map("+".join).map(lambda text: text.replace("+-", "-")),
)
items = st.lists(expression, min_size=2, max_size=3)
structured = st.one_of(
    expression,
    items.map(lambda parts: "(" + ",".join(parts) + ")"),
    items.map(lambda parts: r"\{" + ",".join(parts) + r"\}"),
    items.map(lambda parts: ", ".join(parts)),
    st.tuples(st.sampled_from("(["), number, number, st.sampled_from(")]")).map(
        lambda p: f"{p[0]}{p[1]},{p[2]}{p[3]}"
    ),
)
relaxed = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@relaxed
@given(anything, anything)
def test_never_raises_nor_takes_long(gold: str, prediction: str) -> None:
    start = time.process_time()
    assert isinstance(equivalent(gold, prediction), bool)
    assert isinstance(equivalent_original(gold, prediction), bool)
    assert time.process_time() - start < LIMIT


@relaxed
@given(anything)
def test_reflexive(text: str) -> None:
    assert equivalent(text, text) is (normalize(text) != "")


@relaxed
@given(structured, structured)
def test_symmetric(left: str, right: str) -> None:
    assert equivalent(left, right) is equivalent(right, left)


@relaxed
@given(structured)
def test_spelling_changes_nothing(text: str) -> None:
    for variant in (
        f"${text}$",
        f"{text}.",
        rf"\boxed{{{text}}}",
        text.replace(r"\frac", r"\dfrac"),
    ):
        assert equivalent(text, variant)


@relaxed
@given(expression)
def test_another_number_is_not_equal(text: str) -> None:
    assert not equivalent(text, f"{text}+1")


@relaxed
@given(structured)
def test_styles_blanks_and_delimiters_change_nothing(text: str) -> None:
    plain = text.replace("{", " { ").replace("\\ {", "\\{").replace("\\ }", "\\}")
    variants = (rf"\({text}\)", rf"\boldsymbol{{{text}}}", rf"\textcolor{{blue}}{{{text}}}")
    for variant in (*variants, f" {plain} ", rf"\displaystyle {text}", f"**{text}**"):
        assert equivalent(text, variant), variant


@relaxed
@given(number, number, st.sampled_from("xyn"), st.sampled_from("abtwz"))
def test_another_variable_is_not_equal(slope: str, shift: str, name: str, other: str) -> None:
    assume(slope != "0" and not slope.startswith(r"\frac{0}"))
    text = rf"({slope})\cdot {name}+({shift})"
    assert equivalent(text, rf"({shift})+{name}\cdot ({slope})")
    assert not equivalent(text, rf"({slope})\cdot {other}+({shift})")


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^{9}}}",
        "10^{10^{10}}!",
        r"\sin(10^{10^{10}})",
        r"\binom{10^{9}}{5\cdot 10^{8}}",
        "(x+y+z)^{500}",
        "(1+2i)^{10^{8}}",
        "{" * 900 + "}" * 900,
        "(" * 1900,
        "(" * 11 + "3" + ")" * 11,
        r"\sqrt" * 300 + "{2}",
        "1" + "+1" * 900,
        "1" + "0" * 1000 + "." + "1" * 500,
        "0." + "3" * 1000 + "...",
        "1e999999999",
        r"1\pm" * 300 + "1",
        ",".join(["x_1+1"] * 200),
        "one hundred " * 150,
        "5am" * 300,
        "\\" * 500,
        "9" * 5000,
    ],
)
def test_bombs_are_defused(text: str) -> None:
    start = time.process_time()
    assert not equivalent("2", text)
    assert time.process_time() - start < LIMIT
