"""Failures on one of two ranks only: dead_rank.py MODEL OUTPUT_DIR, run by test_ranks.py.

Each ends a run of its own, in a folder of its name. What a rank says of it goes to stderr.
"""

import os
import signal
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

from adapters import LOAD, bad_request, error
from same_step import PathsByProblem
from scripted_server import ScriptedServer
from trainers import make_trainer

from rea_rl.rollout.weight_sync import AdapterSync
from rea_rl.run import training as entry

FAILURES = {
    "away": ConnectionError("policy_server does not answer"),
    "refused_request": bad_request(),
    "mistake": KeyError("no such thing"),
    "signal": CancelledError(),
    # the paths come all the same, and the step before, which is under way, is finished
    "late_signal": TimeoutError(),
    "refused_adapter": None,  # on the first rank, which is the one that speaks to the server
}
RANK = os.environ["RANK"]


class FailingForOne(PathsByProblem):
    def __init__(self, failure):
        super().__init__()
        self.failure = failure

    def run(self, rows, batch):
        if batch.step == 2 and self.failure and RANK == "1":
            if isinstance(self.failure, (CancelledError, TimeoutError)):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)
            if not isinstance(self.failure, TimeoutError):
                raise self.failure
        return super().run(rows, batch)


class RefusedOnce(AdapterSync):
    """Publishes to a server that refuses the version of step 2."""

    def __init__(self, server, folder):
        super().__init__(server.url, folder)
        self.server = server

    def publish(self, model, step, in_use):
        if step == 2:
            self.server.first[LOAD] = [error(400, "no room for another adapter")]
        return super().publish(model, step, in_use)


if __name__ == "__main__":
    model, output_dir = map(Path, sys.argv[1:])
    for name, failure in FAILURES.items():
        with ScriptedServer(None, ["base"]) as server:
            folder = output_dir / name
            trainer = make_trainer(
                model, folder, FailingForOne(failure), max_steps=4, max_rollout_lag=1
            )
            if failure is None:
                trainer.weight_sync = RefusedOnce(server, folder / "adapters")
            try:
                entry.train(trainer)
            except entry.Interrupted as caught:
                print(f"{name}, rank {RANK}: {caught}", file=sys.stderr)  # noqa: T201
            except ConnectionError as caught:
                entry.save_last_step(trainer)
                print(f"{name}, rank {RANK}: {caught}", file=sys.stderr)  # noqa: T201
