"""Stages of a batch that wait for each other."""

from __future__ import annotations

import asyncio


class Waves:
    """Lets the responses of a batch continue `size` at a time, to labels and then to answers;
    the rest at the end.

    A token costs a server the reading of all its weights, for one response as for many. If both
    models share a GPU the other one waits meanwhile, so that one server at a time, with as many
    responses as there are, is faster than both by turns.
    """

    def __init__(self, size: int, num_paths: int):
        self._size = size
        self._to_come = {"label": num_paths, "finish": num_paths}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {
            stage: [] for stage in self._to_come
        }

    async def turn(self, stage: str) -> None:
        """Wait for the wave of a response that is ready for the stage."""
        self._waiting[stage].append(turn := asyncio.get_running_loop().create_future())
        self._arrive(stage)
        await turn

    def skip(self) -> None:
        """To be called for a response that goes through none of the stages."""
        for stage in self._to_come:
            self._arrive(stage)

    def _arrive(self, stage: str) -> None:
        self._to_come[stage] -= 1
        if len(self._waiting[stage]) >= self._size or not self._to_come[stage]:
            for turn in self._waiting[stage]:
                if not turn.done():  # or it was cancelled
                    turn.set_result(None)
            self._waiting[stage] = []
