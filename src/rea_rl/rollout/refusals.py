"""Problems whose responses a policy server refuses to make, such as one over its context: the group
gives no signal, and the run continues, unless they are many."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rea_rl.rollout.endpoint import words
from rea_rl.run.left_out import MOST_IN_A_ROW, named

if TYPE_CHECKING:
    from rea_rl.rollout.record import Rollout

logger = logging.getLogger(__name__)


class Refusals:
    """The problems of a run that have no response.

    Attributes:
        cause: the last refusal.
        has_answered: whether the server has answered anything.
    """

    def __init__(self) -> None:
        self.cause: Exception | None = None
        self.has_answered = False
        self._in_a_row = 0

    def note(self, step: int, originals: Sequence[Rollout]) -> None:
        """Count and name the problems of a batch that have no response.

        Raises ConnectionError if many problems in a row have none.
        """
        answered: dict[str, bool] = {}
        for original in originals:
            before = answered.get(original.problem_id, False)
            answered[original.problem_id] = before or not original.is_missing
        self.has_answered |= any(answered.values())
        missing = [str(r.problem_id) for r in originals if r.is_missing]
        if missing:
            assert self.cause is not None
            self._log(step, list(dict.fromkeys(missing)), len(missing))
        for is_answered in answered.values():
            self._in_a_row = 0 if is_answered else self._in_a_row + 1
            if self._in_a_row > MOST_IN_A_ROW:
                raise ConnectionError(
                    f"policy_server refuses {self._in_a_row} problems in a row; the last time "
                    f"({words(self.cause)}); correct that, and give the same command to continue"
                )

    def _log(self, step: int, ids: list[str], number: int) -> None:
        logger.warning(
            "step %d: the policy server refuses %d responses, whose groups give no signal, of "
            "problems %s; the last time: %.300s",
            *(step, number, named(ids), words(self.cause)),
        )
