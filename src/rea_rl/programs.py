"""The command `rea-rl`: lists the programs of the project, and runs one of them.

    rea-rl                        # the list
    rea-rl grpo --config recipes/miniature/config_ReflectRL.yaml

`rea-rl NAME ...` is `python -m MODULE ...`.
"""

from __future__ import annotations

import runpy
import sys

from rea_core.interruption import interruptible

# By name: the module, and what it is for.
PROGRAMS = {
    "grpo": ("rea_rl.grpo", "train a policy with REA-RL or GRPO"),
    "sft": ("rea_rl.sft", "supervised fine-tuning"),
    "dpo": ("rea_rl.dpo", "preference training (RPO)"),
    "vllm-server": ("rea_rl.vllm_server", "start or check a server"),
    "merge-lora": ("rea_rl.merge_lora", "merge an adapter into its base model"),
    "adapter-pack": ("rea_rl.adapter_pack", "pack an adapter to ship it"),
    "check-gpu": ("rea_rl.check_gpu", "check that training and servers compute right here"),
    "placement": ("rea_rl.run.placement", "the plan of a launcher: GPUs that train and serve"),
    "ranks": ("rea_rl.run.ranks", "a training on several GPUs, as `accelerate launch`"),
    "publish": ("rea_rl.publish", "weights or responses to the Hub, with a card"),
    "viewer": ("rea_rl.viewer", "a page of the rollouts of a run"),
    "study": ("rea_rl.study", "train and evaluate all experiments"),
    "real-report": ("rea_rl.study.real_report", "the report of scripts/real.sh"),
    "generate": ("generation.generate", "responses to the rows of a file"),
    "answer-judge": ("generation.answer_judge", "judge paragraphs by the gold answer"),
    "labels": ("generation.labeling_distill_utils", "confirmed results from a judge's replies"),
    "cut": ("generation.labeling_to_prefix", "cut responses by their labels"),
    "calibrate": ("generation.calibrate", "choose threshold and start of the cut"),
    "sft-data": ("generation.sft_data", "training data of the offline baselines"),
    "score": ("generation.math_verify_all", "accuracy, tokens and reflection of responses"),
    "clean-dataset": ("generation.clean_dataset", "drop problems that are never solved"),
    "bootstrap": ("generation.bootstrap", "reasoning traces of an instruct model"),
    "word-problems": ("generation.word_problems", "word problems for a small model"),
    "forced-budgets": ("generation.forced_budgets", "answers that are forced at budgets"),
    "benchmarks": ("generation.evaluation.benchmarks", "fetch and collect benchmarks"),
    "table": ("generation.evaluation.table", "table and picture of all scored models"),
    "strategies": ("generation.evaluation.strategies", "compare ways to cut"),
    "plots": ("generation.evaluation.plots", "the picture of a run"),
    "miniature-build": ("miniature.build", "build the miniature from a seed"),
    "miniature-judge": ("miniature.judge", "the miniature's oracle as a judge"),
    "miniature-label": ("miniature.label", "training data of its reflection model"),
    "miniature-report": ("miniature.report", "the quickstart's summary"),
}


@interruptible
def main(argv: list[str] | None = None) -> None:
    """Run a program; without one, or for an unknown one, the list. Exit code 1 for the latter."""
    name, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in PROGRAMS:
        module, _ = PROGRAMS[name]
        sys.argv[1:] = flags
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    lines = [f"  {known:<17} {words}" for known, (_, words) in PROGRAMS.items()]
    text = "\n".join(["usage: rea-rl PROGRAM ...", *lines, "rea-rl PROGRAM --help says more", ""])
    if name in ("-h", "--help"):
        sys.stdout.write(text)
    else:
        sys.exit(f"{text}error: there is no program {name!r}")


if __name__ == "__main__":
    main()
