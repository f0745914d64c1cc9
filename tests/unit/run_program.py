"""A training program in as many processes as the launcher starts: run_program.py PROGRAM
[OPTIONS]."""

import importlib
import os
import sys

if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        from deepspeed import ops

        # gloo will do, and needs no minute of compiling
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
    importlib.import_module(f"rea_rl.{sys.argv[1]}").main(sys.argv[2:])
