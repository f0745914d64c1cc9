"""Seconds of a training step by its parts, on the main thread of a rank."""

from __future__ import annotations

import time


class StepClock:
    """Parts follow each other: each `mark` ends one. `train` is what is left up to the next step:
    rewards, passes, optimizer, records and checkpoints."""

    def __init__(self) -> None:
        self._parts: dict[str, float] = {}
        self._last: float | None = None

    def mark(self, part: str) -> None:
        """A part ends now; nothing before the first step."""
        if self._last is not None:
            now = time.perf_counter()
            self._parts[part] = self._parts.get(part, 0.0) + now - self._last
            self._last = now

    def begin(self) -> dict[str, float]:
        """Begin a step. Metrics of the step before: `timing/step`, and the share of each part in
        it; none for the first step."""
        self.mark("train")
        parts, self._parts, self._last = self._parts, {}, time.perf_counter()
        total = sum(parts.values())
        shares = {f"share/{part}": seconds / total for part, seconds in parts.items()}
        return shares | ({"timing/step": total} if parts else {})
