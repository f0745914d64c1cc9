"""Rows that belong together are known by what they are about, not by their place in a file.

    problem_digest   of the text of a problem: in rows of generation files, verdicts and scores
    path_digest      of a response: in the rows that are made of it (labels, cuts)
    model            that answered: in rows of generation files

Rows of earlier versions have none of them. If a row has its problem, the digest is made of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rea_core.problems import problem_digest
from rea_core.row_files import Row, digest

# of a problem and of a response; None for one that is not known
Identity = tuple[str | None, str | None]


def path_digest(response: Row) -> str:
    """Fingerprint of a response."""
    return digest([response["text"]])


def identity(row: Row, response: Row | None = None) -> Identity:
    """Problem of a row, and the response that it is or was made of."""
    problem = row.get("problem")
    return (
        problem_digest(problem) if isinstance(problem, str) else row.get("problem_digest"),
        path_digest(response) if response is not None else row.get("path_digest"),
    )


def check_edited(row: Row, place: str) -> None:
    """Raise ValueError for a row whose problem is another one than the one that was asked."""
    known = row.get("problem_digest")
    if known is not None and known != problem_digest(row["problem"]):
        raise ValueError(
            f"{place} has another problem than its responses were made for; generate it again, or "
            "undo the change"
        )


def check_same(place: str, one: Identity, other_place: str, other: Identity) -> None:
    """Raise ValueError for two rows of one id that are about different things.

    Args:
        place, other_place: files, and the row if it is known, for the error.
        one, other: what the rows are about.
    """
    for what, first, second in zip(("problem", "response"), one, other, strict=True):
        if first is not None and second is not None and first != second:
            raise ValueError(
                f"{place} is about another {what} than {other_place}; give two files that belong "
                "together, or make the second one again"
            )


class Identities:
    """Problems and responses of the rows of a file, by id."""

    def __init__(self, file: str | Path):
        self.file = file
        self._known: dict[str, Identity] = {}

    def add(self, key: str, about: Identity) -> None:
        """Of a row."""
        self._known[key] = about

    def check(self, place: str, key: str, about: Identity) -> None:
        """Raise ValueError unless there is a row with this id, about the same.

        `place` is the file, and the row if it is known, of the row that is compared.
        """
        if key not in self._known:
            raise ValueError(f"{place} is not in {self.file}; give the file that it was made of")
        check_same(place, about, f"{key!r} of {self.file}", self._known[key])


def match_problems(
    wanted: Mapping[str, str | None],
    scored: Sequence[Mapping[str, Any]],
    file: str | Path,
    remedy: str,
) -> dict[str, Any]:
    """Scored problem by the id of each wanted one, whatever the order and the ids of the file are.

    Args:
        wanted: digests by id; None for one that is not known.
        scored: problems of a `.scores.json` file.
        file: name of that file, for the error.
        remedy: end of the error.

    Raises ValueError naming the file and the first row that is missing, or is another problem
    there; and for a file of an earlier version that only knows places.
    """
    by_id = {problem["id"]: problem for problem in scored}
    has_digests = any(problem.get("problem_digest") is not None for problem in scored)
    found = {
        key: by_id[key]
        for key, known in wanted.items()
        if key in by_id
        and (known is None or not has_digests or by_id[key].get("problem_digest") == known)
    }
    taken = {problem["id"] for problem in found.values()}
    others: dict[str | None, list[Any]] = {}
    for problem in scored:
        if problem["id"] not in taken and problem.get("problem_digest") is not None:
            others.setdefault(problem["problem_digest"], []).append(problem)
    for key in [key for key in wanted if key not in found]:
        if same := others.get(wanted[key]):
            found[key] = same.pop(0)
    lost = [key for key in wanted if key not in found]
    if lost:
        is_other = lost[0] in by_id
        raise ValueError(
            f"{file}: {len(lost)} of {len(wanted)} problems are not in it, the first is row "
            f"{lost[0]}{', which is another problem there' if is_other else ''}; {remedy}"
        )
    if not has_digests and wanted.keys() == {str(i) for i in range(len(wanted))}:
        raise ValueError(
            f"{file}: an earlier version wrote it, which knew its {len(scored)} problems by their "
            "numbers alone; score its generation file again"
        )
    return {key: found[key] for key in wanted}
