"""A run directory with paths from the miniature's own generator, for the tests of the viewer."""

from __future__ import annotations

import json
import random
from pathlib import Path

from generation.prompts import forced_answer
from generation.reflection_words import count_reflections
from generation.stated_results import stated_result
from miniature.world import make_problem, make_trace
from rea_rl.rollout.record import Rollout

HOSTILE = "Wait, </script><script>document.title = 'hacked'</script> & <b>bold</b>"


def record(kind: str, problem_id: str, text: str, step: int, seed: int, **fields) -> dict:
    """A line of a rollout file; its token counts are characters."""
    thinking = text.partition("</think>")[0]
    return vars(
        Rollout(
            problem_id, step, f"policy-{step}-abc", kind, [1, 2], [seed], [-0.1 * seed], text,
            "stop",
            len(text), len(thinking), count_reflections(thinking, True), **fields,
        )
    )  # fmt: skip


def pair(problem_id: str, step: int, seed: int, prefix: str = "") -> list[dict]:
    """An original and its revision, cut after its first right result."""
    rng = random.Random(seed)
    problem = make_problem(1 + seed % 5, rng)
    trace = make_trace(problem, rng)
    thinking = prefix + trace.thinking
    parts = thinking.split("\n\n")
    right = [stated_result(part) == problem.answer for part in parts]
    ends = [len("\n\n".join(parts[: i + 1])) for i in range(len(parts))]
    cut = min(next((i for i, r in enumerate(right) if r), len(parts)), len(parts) - 2)
    answer = f"\\boxed{{{problem.answer}}}"
    revised = thinking[: ends[cut]] + "\n" + forced_answer(after_newline=False) + answer
    common = {"rewards": {"accuracy": 1.0, "refine_length": 0.25}, "advantage": 0.5}
    return [
        record("original", problem_id, f"{thinking}\n</think>\n\n{answer}", step, seed,
               correct=seed % 4 > 0, **common),
        record(
            "revision", problem_id, revised, step, seed, correct=seed % 3 > 0, kept=seed % 3 > 0,
            cut=cut,
            num_paragraphs=len(parts), paragraph_ends=ends,
            p_result=[0.9 if r else 0.1 for r in right], **common,
        ),
    ]  # fmt: skip


def write_run(folder: Path, pairs_a_step: int = 6, steps: int = 2) -> Path:
    """Run directory with training batches, an evaluation, and a log. The first path of step 0
    tries to break the page."""
    (folder / "rollouts").mkdir(parents=True)
    for step in range(steps):
        rows = []
        for i in range(pairs_a_step):
            prefix = f"{HOSTILE}\n\n" if i == step == 0 else ""
            rows += pair(f"train-{i // 4}", step, step * pairs_a_step + i, prefix)
        _write(folder, f"step-{step}", rows)
    _write(
        folder,
        f"eval-{steps}",
        pair("validation-0", steps, 3)[:1] + pair("validation-1", steps, 4)[:1],
    )
    log = [
        {"step": s, "rollout/accuracy": 0.9, "rollout/num_tokens": 200.0 - s, "kl": 0.01}
        for s in range(1, steps)
    ]
    log.append({"step": steps, "eval_rollout/accuracy": 0.95})
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return folder


def _write(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / "rollouts" / f"{name}.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
