r"""Bring the many spellings of one answer to one. `normalize` is applied to golds and predictions alike.

Only notation changes here, never a value; what the notation means is decided in `reading`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from generation.math_verify.extract import extract_answer

# Characters that are typed in place of LaTeX. Replaced before NFKC, which would turn 2² into 22.
_CHARACTERS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "∞": r"\infty ", "π": r"\pi ",
    "θ": r"\theta ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "±": r"\pm ", "°": r"^\circ ", "¢": r"\text{cents}", "€": r"\text{euros}", "£": r"\text{GBP}",
    "¥": r"\text{yuan}", "²": "^2", "³": "^3",
    "½": r"\frac12", "¼": r"\frac14", "¾": r"\frac34", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "⌊": r"\lfloor ",
    "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∅": r"\emptyset ", "、": ",", "⟨": "(", "⟩": ")",
    "∖": r"\setminus ", "\u200b": "", "\u2060": "", "\ufeff": "",
}  # fmt: skip

# Commands for one sign, and commands that only set distances or sizes.
_SYNONYMS = {
    "leqslant leq": r"\le ", "geqslant geq": r"\ge ", "neq": r"\ne ", "lt": "<", "gt": ">", "lbrace": r"\{",
    "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lvert rvert vert mid": "|", "langle": "(", "rangle": ")",
    "backslash": r"\setminus ", "ast": r"\cdot ", "div": "/", "overrightarrow": r"\vec", "varnothing": r"\emptyset ",
    "lg": r"\log_{10}", "lor": " or ", "land": " and ", "imath": "i", "dfrac tfrac cfrac": r"\frac",
    "dbinom tbinom": r"\binom", "degree deg": r"^\circ ", "quad qquad displaystyle textstyle limits nolimits": " ",
}  # fmt: skip
_SYNONYM = {name: sign for names, sign in _SYNONYMS.items() for name in names.split()}

# Further commands, so that a longer name can be told from one of them with letters glued to it.
_COMMANDS = _SYNONYM.keys() | set(
    "alpha angle approx arccos arcsin arctan array bar begin beta big Big bigg Bigg bigl bigr Bigl Bigr binom "
    "bmatrix bmod boxed cap cases cdot cdots ceil chi choose circ cos cosh cot coth csc cup Delta delta det dot "
    "dots ell emptyset end epsilon equiv eta exists exp fbox forall frac Gamma gamma gcd ge hat hbox hspace implies "
    "in infty int iota kappa Lambda lambda lceil lcm ldots le left lfloor lim ln log mathbb mathbf mathcal mathit "
    "mathrm mathsf mathtt max mbox mho min mod mp mu nabla ne neg not notin nu odot omega Omega operatorname oplus "
    "overline parallel partial perp Phi phi Pi pi pm pmatrix pmod prime prod Psi psi rceil rfloor rho right "
    "rightarrow sec setminus Sigma sigma sim sin sinh sqrt square subset sum tan tanh tau text textbf textit "
    "textnormal textrm textsf texttt Theta theta tilde times to top triangle underline varphi vec vee vmatrix wedge "
    "Xi xi zeta".split()
)

# One LaTeX argument: a group with at most two levels inside, a command, or one character.
_ARGUMENT = r"\s*(\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}|\\[a-zA-Z]+|[a-zA-Z0-9])"
_UPPER, _LOWER = _ARGUMENT.replace("(", "(?P<n>", 1), _ARGUMENT.replace("(", "(?P<k>", 1)
_C = r"(?:(?<![a-zA-Z\\])C|\\text\{C\})\s*"
_END = r"(?![a-zA-Z])"
_LEAD_IN = (
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?"
    r"(?:answer|result|solution|value|option|choice)s?(?:\s+(?:is|are|equals)\s*:?|\s*:|\s+(?=\(?[A-K]\b))"
)


def _command(match: re.Match) -> str:
    """One command in its usual name, cut off from letters that were glued to it: `\\leqx` is `\\le x`."""
    name = match[1]
    if name in _COMMANDS:
        return _SYNONYM.get(name, match[0])
    cut = next((cut for cut in range(len(name) - 1, 1, -1) if name[:cut] in _COMMANDS), None)
    return match[0] if cut is None else _SYNONYM.get(name[:cut], rf"\{name[:cut]} ") + name[cut:]


def _group(argument: str) -> str:
    return argument if argument.startswith("{") else f"{{{argument}}}"


def _fraction(match: re.Match) -> str:
    return rf"\frac{_group(match[1])}{_group(match[2])}"


def _root(match: re.Match) -> str:
    return rf"\sqrt{match[1] or ''}{_group(match[2])}"


def _binomial(match: re.Match) -> str:
    return rf"\binom{_group(match['n'].strip())}{_group(match['k'].strip())}"


def _repeating(match: re.Match) -> str:
    """A repeating decimal as a fraction: the digits of one period over as many nines."""
    whole, fixed, period = match.groups()
    numerator = int(whole + fixed + period) - int(whole + fixed)
    return rf"\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"


def _mixed(match: re.Match) -> str:
    """A mixed number if its fraction is proper, else a product."""
    whole, numerator, denominator = (int(group) for group in match.groups())
    if numerator < denominator:
        return rf"\frac{{{whole * denominator + numerator}}}{{{denominator}}}"
    return rf"{whole}\cdot \frac{{{numerator}}}{{{denominator}}}"


# Applied in this order. The comment over each group says why it changes no value.
_RULES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    # Some golds lost the blank after a command: `\cdotC`, `\leqx`. The longest known name is the command.
    (r"(?<!\\)\\([a-zA-Z]+)", _command),
    # Delimiters, emphasis, sizes and blanks draw nothing (`\\[2pt]` is a row break with a distance, not a delimiter).
    (r"\\\\\[[\d.]*[a-z]{2}\]", r"\\\\"),
    (r"(?<!\\)\\[\[\]()]|(?<!\\)\$|\*\*", " "),
    (r"\\(?:left|right)\s*\.|\\m?(?:left|right|[bB]igg?[lr]?)" + _END, ""),
    # `10,\!080`, `20{,}000`, `10\,080`, `10 080` and, inside a command's braces, `10,080` print one number.
    (r"(?<=\d)(?:,\\!\s*|\{,\}|\\[,; ]|~| )(?=\d{3}(?!\d))", ""),
    (r"(?<!\\)\{\d{1,3}(?:,\d{3})+\}", lambda match: match[0].replace(",", "")),
    (r"(?<!\\)\\[,;:!> ]|~|\\hspace\{[^{}]*\}", " "),
    # Words in any font are text; text without letters is none, and "and" and "or" join as without it.
    (r"\\(?:text(?:bf|it|rm|sf|tt|normal)|math(?:rm|bf|it|sf|tt)|mbox|hbox)\s*\{", r"\\text{"),
    (r"\{\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}"),
    (r"\\text\s*\{\s*([^{}]*?)\s*\}", r"\\text{\1}"),
    (r"\\text\{([^a-zA-Z]*|[ei])\}", r"\1"),
    (r"(?i)\\text\{\W*(and|or)\W*\}", r" \1 "),
    # What only introduces the answer, or says that it holds throughout; a unit in brackets.
    (rf"(?i)^\s*\\text\{{{_LEAD_IN}\s*\}}|^\s*{_LEAD_IN}", ""),
    (rf"(?i)^\s*\\text\{{{_LEAD_IN}", r"\\text{"),
    (r",?\s*(?:\\text\{)?for (?:all|any|every)" + _END + ".*$", ""),
    (r"(?<=[\d}])\s*\(\s*(?:\\text\{)?([a-zA-Z]{4,})\}?\s*\)\s*$", r"\\text{\1}"),
    # Signs as they are typed.
    ("<=", r"\\le "),
    (">=", r"\\ge "),
    ("!=", r"\\ne "),
    (r"(?<=\d)\s*x\s*(?=10\s*\^)|(?<!\^)\*", r"\\cdot "),
    (r"(?<![a-zA-Z\\])(?:infinity|inf)" + _END, r"\\infty "),
    (r"\+\s*\\infty", r"\\infty "),
    (r"(?<![a-zA-Z\\])pi" + _END, r"\\pi "),
    (r"\\%|(?<![a-zA-Z])(?:\\text\{)?per ?cent\}?" + _END, "%"),
    (r"\^\s*\{?\s*(?:\^?\s*\\circ|o|\\text\{o\})" + _END + r"\s*\}?", r"\\text{degrees}"),
    (r"\\(begin|end)\{(?:[bB]?matrix|smallmatrix|array)\}(?:\{[lcr|]*\})?", r"\\\1{pmatrix}"),
    # Braces that one may leave out: `\frac12`, `\frac{270}7`, `\sqrt3`, `\sqrt(3)`.
    (r"√\s*(\d+)|\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
    ("√", r"\\sqrt "),
    (r"\\sqrt\s*(\[[^\[\]]*\])?" + _ARGUMENT, _root),
    (r"\\frac" + _ARGUMENT + _ARGUMENT, _fraction),
    # Binomials: `C_n^k`, `C^k_n`, `{}_nC_k`, `^nC_k`, `C(n,k)`, `{n \choose k}`. The parser wants a sign before.
    (_C + "_" + _UPPER + r"\s*\^" + _LOWER, _binomial),
    (_C + r"\^" + _LOWER + r"\s*_" + _UPPER, _binomial),
    (r"(?<![\w)}])(?:\{\})?[_^]" + _UPPER + r"\s*C_" + _LOWER, _binomial),
    (r"(?<![a-zA-Z\\])C\((?P<n>[^(),]+),(?P<k>[^(),]+)\)", _binomial),
    (r"\{(?P<n>[^{}]+)\\choose" + _END + r"(?P<k>[^{}]+)\}", _binomial),
    (r"(?<=[\d}])\s*(?=\\binom)", r"\\cdot "),
    # Numbers: `0.1\overline{6}`, `0.1666...`; `10^-5`; `n!^2`; `6e-5` (as a whole answer: within one it is 6·e - 5);
    # `.5`; `3\frac15`, typed also `3 1/5`. Before other fractions a number is a factor, which the parser misses.
    (r"(?<!\d)(\d+)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?", _repeating),
    (r"(?<!\d)(\d+)\.(\d{0,12}?)(\d{1,12}?)\3+\s*(?:\.\.\.|\\[lc]?dots)", _repeating),
    (r"\^\s*(-\s*\d+)", r"^{\1}"),
    (r"(\w|\([^()]*\))!(?=\s*\^)", r"(\1!)"),
    (r"^\s*([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)\s*$", r"\1\\cdot 10^{\2}"),
    (r"(?<![\d}.])\.(?=\d)", "0."),
    (r"(?<![\d.^_}a-zA-Z])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", _mixed),
    (r"(?<![\d.^_}/])(\d+) (\d+)/(\d+)(?=\D*$)", _mixed),
    (r"(?<=\d)\s*(?=\\frac)", r"\\cdot "),
    (r"\s+", " "),
]
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]


@lru_cache(maxsize=8192)
def normalize(text: str) -> str:
    """Return the answer in one notation; the empty string where there is none, as in an unclosed box."""
    for character, replacement in _CHARACTERS.items():
        text = text.replace(character, replacement)
    text = unicodedata.normalize("NFKC", text)
    if r"\boxed" in text:
        text = extract_answer(text) or ""
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return text.strip(" ").rstrip(" .,;:\\")
