"""Three optimizer steps on recorded paths in as many processes as the launcher starts: same_step.py MODEL OUTPUT_DIR.

Run by test_trainer_units.py. A path depends on its problem and place in the group only, so the batch is the same however
it is dealt.
"""

import os
import sys
from pathlib import Path

from test_trainer_units import RecordedPaths, make_trainer


class PathsByProblem(RecordedPaths):
    def path(self, row, batch, i):
        return super().path(row, batch, 4 * int(row["problem_id"].removeprefix("p")) + i % 4)


if __name__ == "__main__":
    model, output_dir = map(Path, sys.argv[1:])
    engine = PathsByProblem(correct=(True, True, False, True, True), lengths=(40, 12, 30, 9, 25, 7, 33))
    paths = 8 // int(os.environ["WORLD_SIZE"])  # of this process
    trainer = make_trainer(
        model, output_dir, engine, per_device_train_batch_size=paths // 2, gradient_accumulation_steps=2,
        rows_per_forward=3, max_rollout_lag=1, max_steps=3,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
