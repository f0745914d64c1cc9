"""Which response is right: the mathematical check, those shipped next to it, or a user's function.

    math       a number or formula equals the gold answer (`generation.math_verify`)
    exact      the answer is the gold text
    choice     the answer is the right letter of a multiple choice
    program    a program in the response passes the tests of its row, in a bounded process
    module:function, path.py:function    a function of one's own

The page docs/verifiers.md says how to write one. Importing this package is cheap.
"""

from generation.verifiers.answers import answer_part, final_answer
from generation.verifiers.names import MATH, check_name, is_function, needs_gold

__all__ = ["MATH", "answer_part", "check_name", "final_answer", "is_function", "needs_gold"]
