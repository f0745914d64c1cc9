"""The pool of a verifier by its name, and what its scores say of it."""

from __future__ import annotations

from collections.abc import Sequence

from generation.math_verify import VerifierPool
from generation.math_verify.pool import Mode
from generation.provenance import verifier_version
from generation.verifiers.names import MATH, check_name, function_version, recorded_name
from generation.verifiers.pool import FunctionPool

AnyPool = VerifierPool | FunctionPool
# of commands that judge responses, see `rea_core.command.add_flags`
VERIFIER_FLAGS = {
    "num_workers": (int, "processes; default: one a core"),
    "timeout": (5.0, "seconds before an answer counts as wrong"),
    "verifier": (
        MATH,
        "which response is right, as in the training recipe: math, exact, choice, program, "
        "module:function or path.py:function",
    ),
}


def open_verifier(
    name: str = MATH,
    num_workers: int = 2,
    timeout: float = 5.0,
    mode: Mode = "strict",
    markers: Sequence[str] = (),
) -> AnyPool:
    """Worker processes of a verifier; `mode` is the mathematical check's."""
    if name == MATH:
        return VerifierPool(num_workers, timeout=timeout, mode=mode, markers=markers)
    return FunctionPool(name, num_workers, timeout=timeout, markers=markers)


def verifier_record(name: str) -> dict[str, str]:
    """Name and version of a verifier, which scores that are compared must share."""
    version = verifier_version() if name == MATH else function_version(name)
    return {"verifier": recorded_name(name), "verifier_version": version}


def check_verifier(name: str, facts: str, timeout: float = 5.0) -> None:
    """Let a verifier judge empty responses to the problem with these facts, before any is made.
    Raises ValueError for a name that is no verifier's, and for a function that cannot be loaded,
    raises, or gives no verdict."""
    check_name(name)
    if name != MATH:
        with FunctionPool(name, 1, timeout) as pool:
            pool.try_out(facts)
