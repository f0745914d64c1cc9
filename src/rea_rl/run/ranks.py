"""`accelerate launch`, whose end is one line if a rank has failed, or a signal has come.

    python -m rea_rl.run.ranks --num_processes 2 -m rea_rl.grpo --config RECIPE

Arguments are those of `accelerate launch`. The ranks have said why before.
"""

from __future__ import annotations

import logging
import sys

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: list[str] | None = None) -> None:
    """Exit code of the first rank that failed; 128 and its number for a signal, as shells do."""
    logging.disable(logging.ERROR)  # of torch's launcher
    try:
        launch_command(launch_command_parser().parse_args(argv))
    except SignalException as ended:
        sys.exit(128 + ended.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        code = failure.exitcode
        by = f"signal {-code}" if code < 0 else f"exit code {code}"
        sys.stderr.write(f"error: rank {rank} ended with {by}; its last lines are above\n")
        sys.exit(128 - code if code < 0 else code)


if __name__ == "__main__":
    main()
