"""Compare the verifier with plain math-verify: pairs per second and accuracy, in one run.

    python scripts/benchmark/verifier.py
    python scripts/benchmark/verifier.py --pairs tests/data/verifier/own_pairs.json --workers 4

The labelled pairs are compared one after the other in one process, twice: cold, and with warm
caches and parser tables. Adversarial pairs are left out, since plain math-verify evaluates some of
them, and so are pairs that need the question. Then a synthetic reward batch of 16 problems with 8
completions each is compared, by math-verify in this process and by a pool.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable

from math_verify import parse, verify

from generation.math_verify import VerifierPool
from generation.math_verify.compare import equivalent

LEFT_OUT = ("adversarial", "order_context")
GOLDS = (
    "18", "2,125", "-7", "3.21", r"\frac{14}{3}", r"-\frac{35}{9}", r"3\sqrt{13}",
    r"\frac{3\sqrt{3}}{4}",
    r"288\pi", "6-5i", "(-2,1)", "[2,3)", "3, 5, 7", "x^3+3x-6", r"90^\circ", r"\text{Evelyn}",
)  # fmt: skip
HEADER = ["pairs", "checker", "cold /s", "warm /s", "accuracy", "false positives"]
Pair = tuple[str, str]


def plain(gold: str, prediction: str) -> bool:
    """Math-verify as its README uses it."""
    return verify(parse(f"${gold}$"), parse(f"${prediction}$"))


def reward_batch() -> list[Pair]:
    """128 pairs as in a training step: per gold 4 right answers in different spelling, 4 wrong
    ones."""
    batch = []
    for gold in GOLDS:
        right = [gold, gold.replace(r"\frac", r"\dfrac"), f" {gold} ", f"{gold}."]
        wrong = [f"-{gold}", f"{gold}+1", GOLDS[(GOLDS.index(gold) + 1) % len(GOLDS)], "0"]
        batch += [(gold, answer) for answer in right + wrong]
    return batch


def timed(check: Callable[[str, str], bool], pairs: list[Pair]) -> tuple[list[bool], float]:
    """Verdicts and pairs per second."""
    start = time.perf_counter()
    verdicts = [check(*pair) for pair in pairs]
    return verdicts, len(pairs) / (time.perf_counter() - start)


def measure(name: str, check: Callable[[str, str], bool], rows: list[dict]) -> list[str]:
    """Row of the table for one checker on labelled pairs."""
    pairs = [(row["gold"], row["pred"]) for row in rows]
    verdicts, cold = timed(check, pairs)
    _, warm = timed(check, pairs)
    right = sum(verdict == row["label"] for verdict, row in zip(verdicts, rows, strict=True))
    wrong = sum(verdict and not row["label"] for verdict, row in zip(verdicts, rows, strict=True))
    return [
        f"{len(pairs)} labelled",
        name,
        f"{cold:.0f}",
        f"{warm:.0f}",
        f"{right / len(pairs):.1%}",
        str(wrong),
    ]


def measure_pool(workers: int) -> list[str]:
    """Row of the table for a pool on the reward batch; verdicts are not taken from its own cache
    the second time."""
    golds, answers = zip(*reward_batch(), strict=True)
    texts = [rf"</think>\boxed{{{answer}}}" for answer in answers]
    with VerifierPool(num_workers=workers) as pool:
        pool.verify(["1"], [r"\boxed{2}"])  # waits until a worker is up
        rates = []
        for turn in range(2):
            start = time.perf_counter()
            pool.verify([gold + turn * " " for gold in golds], texts)
            rates.append(f"{len(texts) / (time.perf_counter() - start):.0f}")
    return ["batch of 128", f"pool of {workers}", *rates, "", ""]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", default="tests/data/verifier/pairs.json", help="labelled pairs (JSON)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of the pool")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with open(arguments.pairs, encoding="utf-8") as file:
        rows = [row for row in json.load(file) if row["category"] not in LEFT_OUT]
    table = [HEADER, measure("math-verify", plain, rows)]
    rates = [f"{timed(plain, reward_batch())[1]:.0f}" for _ in range(2)]
    table.append(["batch of 128", "math-verify", *rates, "", ""])
    table[2:2] = [measure("this verifier", equivalent, rows)]
    table.append(measure_pool(arguments.workers))
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    for row in table:
        sys.stdout.write(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            + "\n"
        )


if __name__ == "__main__":
    main()
