"""Compare all pairs of different golds of real benchmarks, and print those that are accepted.

    python scripts/benchmark/gold_pairs.py FOLDER... --workers 2 > accepted.json

The golds are the `answer` of each row of the `.json` files in the folders; integers are left out.
Nearly all pairs are different values, so each accepted one is either one value in two notations or
a false accept. A thousand golds are half a million pairs, which take half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from generation.math_verify import VerifierPool

OPEN_PAIRS = 1000  # that wait for a worker at once


def read_golds(folders: list[str]) -> list[str]:
    """Different golds that are no integers, sorted."""
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.json"))]
    if not files:
        raise ValueError(f"No .json file in {', '.join(folders)}.")
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    answers = [
        row["answer"][0] if isinstance(row["answer"], list) else row["answer"] for row in rows
    ]
    return sorted(
        {
            str(answer)
            for answer in answers
            if not re.fullmatch(r"-?\d+", re.sub("[,$]", "", str(answer)))
        }
    )


def accepted_pairs(golds: list[str], pool: VerifierPool) -> Iterator[tuple[str, str]]:
    """Pairs of golds that the verifier takes for the same value; one order of each."""
    waiting = deque()
    for pair in [*combinations(golds, 2), *[None] * OPEN_PAIRS]:
        if pair is not None:
            waiting.append((pair, pool.submit(*pair)))
        if waiting and (pair is None or len(waiting) >= OPEN_PAIRS):
            done, verdict = waiting.popleft()
            if verdict.result():
                yield done


def main() -> None:
    """Print the accepted pairs as JSON, and a summary to standard error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="folders with files of rows that have an answer")
    parser.add_argument("--workers", type=int, default=2, help="processes that compare")
    arguments = parser.parse_args()
    try:
        golds = read_golds(arguments.folders)
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"error: {error}")
    start = time.monotonic()
    with VerifierPool(arguments.workers) as pool:
        accepted = list(accepted_pairs(golds, pool))
        counts = {name: pool.stats[name] for name in ("pairs", "timeouts", "crashes")}
    json.dump(
        [{"gold": gold, "prediction": prediction} for gold, prediction in accepted],
        sys.stdout,
        indent=1,
    )
    minutes = (time.monotonic() - start) / 60
    sys.stderr.write(
        f"{len(golds)} golds, {counts}, {len(accepted)} accepted, {minutes:.0f} minutes\n"
    )


if __name__ == "__main__":
    main()
