"""The programs of the README's commands at small size: what `fast_python` runs in place of what was
asked.

Paths come from the session's policy server, which also answers for adapters and merged models: what
is tested is that one command finds what another one wrote. Servers that a launcher starts are those
of the session.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

TRAIN_PROBLEMS, TEST_PROBLEMS = "6", "40"


def answer(argv: list[str]) -> list[str] | int:
    """Arguments to run, or the status of what is not."""
    if argv[:2] == ["-m", "rea_rl.vllm_server"]:
        if not {"--wait", "--dry_run"} & {*argv}:  # the session's is there, and its port is taken
            signal.pause()
        return 0
    return small_generation(argv) if argv[:2] == ["-m", "generation.generate"] else argv


def small_generation(argv: list[str]) -> list[str]:
    """A few problems, one path each, from the session's server."""
    if "--lora" in argv:
        place = argv.index("--lora")
        assert Path(argv[place + 1], "adapter_config.json").is_file()
        argv = argv[:place] + argv[place + 2 :]
    is_test = "test.json" in argv[argv.index("--qaf") + 1]
    sizes = [
        "--qaf_limit",
        TEST_PROBLEMS if is_test else TRAIN_PROBLEMS,
        "--n_generate_sample",
        "1",
    ]
    server = [
        "--api",
        "true",
        "--api_base",
        os.environ["POLICY_SERVER"],
        "--api_model",
        os.environ["POLICY_MODEL"],
    ]
    return [*argv, *sizes, *server]
