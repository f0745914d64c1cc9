"""Tiny random models of two families take two steps on real servers, with the recipes of their
folders and a verifier that calls every other response right.

`scripts/benchmark/two_steps.py` does the same through a launcher, also at real size on a GPU.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from rea_rl.grpo import build_engine, build_trainer, load_inputs, parse_recipe, train
from rea_rl.vllm_server import ServerConfig

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmark"))
import two_steps  # noqa: E402

# and what the prompts do to the thinking
FAMILIES = {"DeepSeek-R1-Distill-Llama-8B": "open", "Qwen3-1.7B": "unknown"}


@pytest.fixture(scope="module")
def policies(tmp_path_factory, free_port, serve_all):
    """Command line of the launcher and policy server of each family."""
    found, configs = {}, []
    for name in FAMILIES:
        folder = tmp_path_factory.mktemp(name)
        arguments = Namespace(recipe_set=name, tiny=True, completion_tokens=48)
        model = two_steps.prepare(arguments, folder)
        configs.append(ServerConfig(str(model), free_port(), "policy", log_dir=str(folder)))
        found[name] = folder, two_steps.command(arguments, folder, model)[2:]
    with serve_all(*configs) as servers:
        yield {name: (*found[name], server) for name, server in zip(found, servers, strict=True)}


@pytest.mark.parametrize(("name", "thinking"), FAMILIES.items())
def test_a_family_takes_two_steps_with_gradients(policies, reflection_server, name, thinking):
    folder, flags, server = policies[name]
    own = {
        "policy_server": server.base_url, "reflection_server": reflection_server.base_url,
        "reflection_model": reflection_server.config.model, "use_cpu": "true",
    }  # fmt: skip
    given = [word for key, value in own.items() for word in (f"--{key}", str(value))]
    recipe = str(ROOT / "recipes" / name / "config_ReflectRL.yaml")
    data, args, model_args = parse_recipe(["--config", recipe, *flags, *given])
    inputs = load_inputs(data, args, model_args)
    with build_engine(args, model_args.model_name_or_path, inputs) as engine:
        trainer = build_trainer(args, model_args, inputs, engine)
        assert trainer.padded_because is None
        train(trainer)
    assert len(two_steps.logged_steps(folder / "run")) == 2  # with gradients over 0
    lines = (folder / "run" / "rollouts" / "step-0.jsonl").read_text().splitlines()
    rollouts = [json.loads(line) for line in lines]
    assert {r["prompt_thinking"] for r in rollouts} == {thinking}
    assert {r["correct"] for r in rollouts} == {True, False}
    revisions = [r for r in rollouts if r["kind"] == "revision"]
    assert revisions and all("</think>" in r["text"] for r in revisions)
