"""How a run may end before its last step."""

from __future__ import annotations


class RunEnded(Exception):
    """A run ends before its last step, behind a checkpoint of the last finished one."""


class NonFiniteError(RunEnded):
    """Several steps in a row had a NaN or infinite loss or gradient."""


class Interrupted(RunEnded):
    """SIGTERM or Ctrl-C ended a training; the second argument is the signal's number."""

    def __str__(self) -> str:
        return str(self.args[0])


class NotPublished(RunEnded):
    """A run is complete, but the Hub does not take it."""


class MonitorError(RunEnded):
    """A monitor that the recipe's `monitor_stop` names was crossed."""
