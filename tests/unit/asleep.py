"""A rank that sleeps; or the second of two fails, or is killed."""

import os
import signal
import sys
import time

from rea_core.interruption import interruptible


@interruptible
def main() -> None:
    sys.stdout.write("rank\n")
    sys.stdout.flush()
    if os.environ["RANK"] == "1" and "fails" in sys.argv:
        sys.exit("error: wrong")
    if os.environ["RANK"] == "1" and "killed" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


main()
