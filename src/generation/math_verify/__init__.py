"""Answer extraction and equivalence: does a completion end in the gold answer?

`extract_answer` finds the answer, `is_equivalent` compares one pair, `VerifierPool` many.
Importing this package is cheap: lark and mpmath are loaded by the worker processes only.
"""

from generation.math_verify.extract import extract_answer
from generation.math_verify.pool import VerifierPool, is_equivalent

__all__ = ["VerifierPool", "extract_answer", "is_equivalent"]
