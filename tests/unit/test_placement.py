"""Who does what on machines with any number of GPUs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from gpus import pretend_gpus

from rea_rl.run.placement import given, make_plan, model_sizes, with_flags

ROOT = Path(__file__).parents[2]
BOTH, POLICY = ["policy", "reflection"], ["policy"]
SETS = ["DeepSeek-R1-Distill-Qwen-7B", "miniature"]
# for one small GPU, or two large ones
MODELS = {
    "DeepSeek-R1-Distill-Qwen-1.5B": 1, "Qwen3-1.7B": 1,
    "DeepSeek-R1-Distill-Llama-8B": 2, "Qwen3-8B": 2,
}  # fmt: skip
# GPUs -> GPUs that train, GPUs of each policy server, GPUs of each reflection server
WITH_REFLECTION = {
    0: ([], [], []), 1: ([0], [0], [0]), 2: ([0], [1], [1]), 3: ([0, 1], [2], [2]),
    4: ([0, 1], [2], [3]), 6: ([0, 1], [2, 3, 4], [5]), 8: ([0, 1, 2, 3], [4, 5, 6], [7]),
}  # fmt: skip
WITHOUT = {
    0: ([], []), 1: ([0], [0]), 2: ([0], [1]), 3: ([0, 1], [2]), 4: ([0, 1], [2, 3]),
    6: ([0, 1], [2, 3, 4, 5]), 8: ([0, 1, 2, 3], [4, 5, 6, 7]),
}  # fmt: skip


def read(recipe_set, variant="ReflectRL"):
    path = ROOT / "recipes" / recipe_set / f"config_{variant}.yaml"
    return yaml.safe_load(path.read_text())


def plan_of(number, roles=BOTH, recipe=None, **wishes):
    gpus = [str(i) for i in range(number)]
    return make_plan(gpus, recipe or read(SETS[0]), roles, wishes)


@pytest.fixture(scope="module", params=[*SETS, "new"])
def recipe_set(request):
    """Both families, and a folder of a new name."""
    if request.param != "new":
        yield request.param
        return
    with tempfile.TemporaryDirectory(dir=ROOT / "recipes", prefix="New-8B-") as folder:
        for path in (ROOT / "recipes" / SETS[0]).iterdir():
            shutil.copy(path, folder)
        yield Path(folder).name


@pytest.mark.parametrize("number", WITH_REFLECTION)
def test_the_plan_that_launchers_print(recipe_set, number, tmp_path):
    if recipe_set in SETS and number not in (0, 3, 8):
        return check(plan_of(number, recipe=read(recipe_set)).as_json(), number, recipe_set)
    check(printed_plan(recipe_set, number, tmp_path), number, recipe_set)


@pytest.mark.parametrize(("recipe_set", "number"), MODELS.items())
def test_each_models_plan_is_printed(recipe_set, number, tmp_path):
    check(printed_plan(recipe_set, number, tmp_path), number, recipe_set)
    for path in (ROOT / "recipes" / recipe_set).glob("config_*.yaml"):
        recipe = read(recipe_set, path.stem.removeprefix("config_"))
        if "prompts_per_step" in recipe:
            roles = BOTH if recipe["revision"] else POLICY
            assert plan_of(number, roles, recipe).rows == 16, path


def printed_plan(recipe_set, number, tmp_path):
    """Plan of the launcher's `--dry_run` on so many pretended GPUs."""
    pretend_gpus(tmp_path, number)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VENV": sys.prefix}
    environment |= {"RECIPE_SET": recipe_set, "PYTHONPATH": str(ROOT / "src")}
    missing = ["--dataset_name", "none.json"]  # so that nothing further is checked
    command = ["bash", ROOT / "scripts" / "reflect_rl.sh", "--dry_run", *missing]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("plan: ")]
    return json.loads(line.removeprefix("plan: "))


def check(plan, number, recipe_set):
    """The plan is the table's, and a step has the recipe's prompts."""
    train, policy, reflection = WITH_REFLECTION[number]
    if recipe_set == "miniature" and number == 6:  # three share its 12 prompts
        train, policy = [0, 1, 2], [3, 4]
    found = [plan[f"{key}_gpus"] for key in ("train", "policy", "reflection", "idle")]
    assert found == [train, policy, reflection, []] and plan["processes"] == max(len(train), 1)
    recipe = read(recipe_set)
    assert plan["prompts_per_step"] == recipe["prompts_per_step"]
    rows = plan["per_device_train_batch_size"] * plan["gradient_accumulation_steps"]
    assert rows * plan["processes"] == recipe["prompts_per_step"] * recipe["num_generations"]


@pytest.mark.parametrize("number", WITHOUT)
def test_without_a_reflection_model_the_policy_has_its_gpus(number):
    plan = plan_of(number, POLICY, read(SETS[0], "GRPO")).as_json()
    assert (plan["train_gpus"], plan["policy_gpus"]) == WITHOUT[number]
    assert plan["reflection_gpus"] == plan["idle_gpus"] == []


@pytest.mark.parametrize("recipe_set", SETS)
@pytest.mark.parametrize("roles", [BOTH, POLICY])
def test_any_number_of_gpus_has_a_plan_that_leaves_none_idle(recipe_set, roles):
    recipe = read(recipe_set, "ReflectRL" if roles == BOTH else "GRPO")
    for number in range(1, 65):
        plan = plan_of(number, roles, recipe)
        assert plan.idle == [] and recipe["prompts_per_step"] % plan.processes == 0, number
        assert {server.role for server in plan.servers} == {*roles}
        ports = [server.port for server in plan.servers]
        assert len(ports) == len({*ports})
        for server in plan.servers:  # what shares a GPU starts by turns, and fits
            mates = [other for other in plan.servers if {*other.gpus} & {*server.gpus}]
            assert sorted(mate.turn for mate in mates) == [*range(len(mates))]
            assert sum(mate.memory for mate in mates) <= 0.9


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6, 7, 8, 12, 16])
def test_whole_weights_have_one_policy_server_and_at_most_one_idle_gpu(number):
    plan = plan_of(number, BOTH, read(SETS[0]) | {"use_peft": False})
    (policy,) = plan.of_role("policy")
    assert len(policy.gpus) in (1, 2, 4, 8) and not {*policy.gpus} & {*plan.train}
    assert len(plan.idle) <= 1


@pytest.mark.parametrize(
    ("wishes", "train", "policy", "reflection", "idle"),
    [
        ({"TRAIN_GPUS": "0,1,2,3", "POLICY_GPUS": "4,5,6", "REFLECTION_GPUS": "7"},
         [0, 1, 2, 3], [4, 5, 6], [7], []),
        ({"TRAIN_GPUS": "0,1", "POLICY_GPUS": "2,3,4,5", "POLICY_TP": "2",
          "REFLECTION_GPUS": "6"}, [0, 1], [[2, 3], [4, 5]], [6], [7]),
        ({"POLICY_GPUS": "0"}, [1, 2, 3, 4], [0], [5, 6, 7], []),
        ({"TRAIN_GPUS": "0,1"}, [0, 1], [2, 3, 4, 5, 6], [7], []),
        ({"TRAIN_GPUS": "0,1,2,3", "POLICY_GPUS": "4,5,6"}, [0, 1, 2, 3], [4, 5, 6], [7], []),
        ({"TRAIN_GPUS": "0", "POLICY_TP": "2", "REFLECTION_TP": "2"},
         [0], [[1, 2], [3, 4]], [[6, 7]], [5]),
        ({"REFLECTION_GPUS": "7", "TRAIN_GPUS": "5"}, [5], [0, 1, 2, 3, 4, 6], [7], []),
        ({"NUM_GPUS": "3"}, [0, 1], [2], [2], [3, 4, 5, 6, 7]),
        ({"NUM_PROCESSES": "2"}, [0, 1], [4, 5, 6], [7], [2, 3]),
        ({"TRAIN_GPUS": "0", "POLICY_GPUS": "0", "REFLECTION_GPUS": "0"}, [0], [0], [0],
         [1, 2, 3, 4, 5, 6, 7]),
        ({"SERVERS_PER_ROLE": "1"}, [0, 1, 2, 3], [4], [7], [5, 6]),
        ({"POLICY_TP": "3"}, [0, 1, 2, 3], [[4, 5, 6]], [7], []),
        ({"POLICY_TP": "2"}, [0, 1, 2, 3], [[4, 5]], [7], [6]),
        ({"REFLECTION_TP": "2"}, [0, 1, 2, 3], [4, 5], [[6, 7]], []),
        ({"TRAIN_GPUS": " ", "POLICY_GPUS": ""}, [0, 1, 2, 3], [4, 5, 6], [7], []),
        ({"TRAIN_GPUS": "0, 1", "POLICY_GPUS": "1 ,2", "REFLECTION_GPUS": "2"},
         [0, 1], [1, 2], [2], [3, 4, 5, 6, 7]),
    ],
)  # fmt: skip
def test_variables_say_who_does_what(wishes, train, policy, reflection, idle):
    plan = plan_of(8, **wishes).as_json()
    found = [plan[f"{key}_gpus"] for key in ("train", "policy", "reflection", "idle")]
    assert found == [train, policy, reflection, idle]


@pytest.mark.parametrize(
    ("number", "wishes", "roles", "groups"),
    [
        (8, {"TRAIN_GPUS": "0,1"}, BOTH, [[0, 1], [[2, 3, 4, 5]], [6, 7], []]),
        (8, {"TRAIN_GPUS": "0,1,2,3"}, BOTH, [[0, 1, 2, 3], [[4, 5]], [6, 7], []]),
        (8, {"TRAIN_GPUS": "0", "POLICY_TP": "2"}, POLICY, [[0], [[1, 2]], [], [3, 4, 5, 6, 7]]),
        (8, {"POLICY_GPUS": "4,5", "POLICY_TP": "2"}, BOTH, [[0, 1, 2, 3], [[4, 5]], [6, 7], []]),
        (10, {}, POLICY, [[0, 1], [[2, 3, 4, 5, 6, 7, 8, 9]], [], []]),
        (15, {}, POLICY, [[0, 1, 2, 3], [[4, 5, 6, 7, 8, 9, 10, 11]], [], [12, 13, 14]]),
        (12, {}, ["reflection"], [[0, 1, 2, 3], [], [4, 5, 6, 7, 8, 9, 10, 11], []]),
    ],
)
def test_whole_weights_have_one_server_on_gpus_of_its_own(number, wishes, roles, groups):
    plan = plan_of(number, roles, read(SETS[0]) | {"use_peft": False}, **wishes).as_json()
    found = [plan[f"{key}_gpus"] for key in ("train", "policy", "reflection", "idle")]
    assert found == groups


@pytest.mark.parametrize(
    ("number", "wishes", "words"),
    [
        (8, {"POLICY_GPUS": "4,5"}, "names 2 GPUs for 2 servers, but use_peft .* POLICY_TP=2, or"),
        (8, {"POLICY_GPUS": "0", "TRAIN_GPUS": "0"}, "over NCCL .* name POLICY_GPUS apart from"),
        (1, {}, "over NCCL .* use 2 GPUs or more"),
        (8, {"NUM_MACHINES": "2"}, "each of 2 hosts would start one; start one by hand, and give"),
    ],
)
def test_whole_weights_on_several_servers_are_one_line(number, wishes, words):
    with pytest.raises(ValueError, match=words):
        plan_of(number, BOTH, read(SETS[0]) | {"use_peft": False}, **wishes)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"NUM_GPUS": "\N{SUPERSCRIPT TWO}"}, "NUM_GPUS is ., but 8 are visible"),
        ({"NUM_PROCESSES": "\N{SUPERSCRIPT TWO}"}, "NUM_PROCESSES is ., but the GPUs that train"),
        ({"SERVER_CONTEXT": "8k"}, "SERVER_CONTEXT is 8k; give a number from 1"),
        ({"SERVER_RESTARTS": "-1"}, "SERVER_RESTARTS is -1; give a number from 0"),
        ({"SERVER_CACHE_GIB": "x"}, "SERVER_CACHE_GIB is x; give a number"),
        ({"SERVER_COMPILE": "maybe"}, "SERVER_COMPILE is maybe; it must be true or false"),
        ({"MACHINE_RANK": "1"}, "MACHINE_RANK is 1, but NUM_MACHINES is 1; give NUM_MACHINES"),
        ({"NUM_MACHINES": "2", "MAIN_ADDRESS": "http://h"}, "is http://h; give a host's name or"),
        ({"NUM_MACHINES": "2", "MAIN_ADDRESS": "h:29500"}, "h:29500; .* the port is MAIN_PORT"),
        ({"NUM_MACHINES": "2", "SERVER_HOST": "0.0.0.0"}, "SERVER_HOST is 0.0.0.0, at which no"),
        ({"NUM_GPUS": "9"}, "NUM_GPUS is 9, but 8 are visible"),
        ({"NUM_GPUS": "two"}, "NUM_GPUS is two"),
        ({"TRAIN_GPUS": "0,9"}, "TRAIN_GPUS names 9, but the GPUs to use are 0, 1, 2"),
        ({"POLICY_GPUS": "1,1"}, "POLICY_GPUS names 1 twice"),
        ({"POLICY_GPUS": "1,2,3", "POLICY_TP": "2"}, "POLICY_TP is 2, which does not divide the 3"),
        ({"POLICY_GPUS": "1", "POLICY_TP": "x"}, "POLICY_TP is x"),
        ({"TRAIN_GPUS": "0,1,2"}, "3 processes .* does not divide prompts_per_step of .*, 16"),
        ({"NUM_PROCESSES": "5"}, "NUM_PROCESSES is 5, but the GPUs that train are 0, 1, 2, 3"),
        ({"NUM_MACHINES": "0"}, "NUM_MACHINES is 0; give a number from 1"),
        ({"SERVER_MEMORY": "half"}, "SERVER_MEMORY is half"),
        ({"SERVER_MEMORY": "nan"}, "SERVER_MEMORY is nan; give a share over 0 and up to 1"),
        ({"SERVER_MEMORY": "0"}, "SERVER_MEMORY is 0; give a share over 0"),
        ({"SERVER_MEMORY": "0.6", "NUM_GPUS": "3"}, "up to 0.5, since two servers share a GPU"),
        ({"TRAIN_GPUS": "0,,1"}, "TRAIN_GPUS names an empty one, but the GPUs to use are 0, 1"),
        ({"TRAIN_GPUS": "0-3"}, "TRAIN_GPUS names 0-3, but the GPUs to use are 0, 1, .* commas"),
        ({"NUM_GPUS": "0", "TRAIN_GPUS": "0"}, "TRAIN_GPUS names 0, but the GPUs to use are none"),
        ({"POLICY_TP": "4"}, "POLICY_TP is 4, but of 8 GPUs the plan leaves 3 to that role; name"),
        ({"POLICY_TP": "2", "NUM_GPUS": "3"}, "POLICY_TP is 2, but of 3 GPUs the plan leaves 1"),
        ({"REFLECTION_TP": "9"}, "REFLECTION_TP is 9, but of 8 GPUs"),
        ({"REFLECTION_TP": "0"}, "REFLECTION_TP is 0; give a number from 1"),
        ({"NUM_MACHINES": "2", "MACHINE_RANK": "2"}, "MACHINE_RANK is 2; give .* from 0 to 1"),
        ({"NUM_MACHINES": "2", "MACHINE_RANK": "x"}, "MACHINE_RANK is x; give .* from 0 to 1"),
        ({"NUM_MACHINES": "2", "MAIN_PORT": "x"}, "MAIN_PORT is x; give a number from 1 to 65535"),
        ({"NUM_MACHINES": "3"}, "3 processes .* does not divide prompts_per_step of .*, 16"),
        ({"SERVER_PORT": "65535"}, "SERVER_PORT is 65535; give a number from 1 to 65534"),
        ({"SERVER_PORT": "65534"}, "2 more servers have no ports behind 65535; set SERVER_PORT"),
    ],
)
def test_wishes_that_cannot_be_fulfilled_are_one_line(wishes, words):
    with pytest.raises(ValueError, match=words) as caught:
        plan_of(8, **wishes)
    assert "\n" not in str(caught.value)


def test_a_plan_of_several_hosts_says_that_the_key_is_missing():
    assert "VLLM_API_KEY is not set" in plan_of(8, NUM_MACHINES="2").notes[0]
    assert plan_of(8, NUM_MACHINES="2", VLLM_API_KEY="k").notes == plan_of(8).notes == []


def test_machines_share_the_prompts():
    plan = plan_of(8, NUM_MACHINES="2")
    assert (plan.processes, plan.train, plan.batch) == (8, ["0", "1", "2", "3"], (2, 4))
    plan = plan_of(8, NUM_MACHINES="8")  # 16 prompts on 8 machines: two processes each
    assert (plan.processes, len(plan.train), plan.idle) == (16, 2, [])


def test_supervised_training_takes_all_gpus_that_share_its_rows():
    recipe = read(SETS[0], "SFT")
    plan = plan_of(8, [], recipe)
    assert (plan.processes, plan.servers, plan.batch) == (8, [], (2, 8))
    assert len(plan_of(7, [], recipe).train) == 4  # 128 rows


def test_sizes_of_a_model():
    weights, cache = model_sizes(ROOT / "model" / "Miniature-LRM")
    assert weights == (ROOT / "model" / "Miniature-LRM" / "model.safetensors").stat().st_size
    config = json.loads((ROOT / "model" / "Miniature-LRM" / "config.json").read_text())
    width = config["hidden_size"] // config["num_attention_heads"]
    assert cache == 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * width


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("prompts_per_step: [", [], "not YAML"),
        ("just words", [], "one `key: value` a line"),
        ("prompts_per_step: many", [], "prompts_per_step is many; it must be a whole number"),
        ("prompts_per_step: 0", [], "prompts_per_step is 0; it must be a whole number"),
        ("prompts_per_step: 8", ["--num_generations=-1"], "num_generations is -1"),
        ("prompts_per_step: 8", ["--prompts-per-step", "\N{SUPERSCRIPT TWO}"], "a whole number"),
        ("use_peft: maybe", [], "use_peft is maybe; it must be true or false"),
        ("revision: [true]", [], "revision is .*; it must be true or false"),
    ],
)
def test_recipes_without_a_plan_are_one_line(tmp_path, text, flags, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        with_flags(str(path), flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("servers", "words"),
    [
        (5, "policy_server is .5.; give one address, or a list of them"),
        ({"a": "b"}, "policy_server is .* give one address, or a list"),
        (["http://a:1/v1", "http://a:1/v1"], "policy_server has 'http://a:1/v1' twice"),
        ("http://a:1", "write it as http://HOST:PORT/v1"),
    ],
)
def test_addresses_of_a_recipe_that_are_none_are_one_line(servers, words):
    with pytest.raises(ValueError, match=words):
        plan_of(8, BOTH, read(SETS[0]) | {"policy_server": servers})


def test_servers_of_a_recipe_with_several_hosts_have_ports_of_their_own_here():
    urls = {
        "policy_server": ["http://a:12345/v1", "http://b:12345/v1"],
        "reflection_server": "http://c:12345/v1",
    }
    plan = plan_of(8, BOTH, read(SETS[0]) | urls)
    assert [server.port for server in plan.servers] == [12345, 12346, 12347, 12348]


@pytest.mark.parametrize(
    "flags",
    [
        ["--policy-server", "http://a/v1", "--prompts-per-step=6", "--use-peft"],
        ["--policy_server=http://a/v1", "--prompts_per_step", "6", "--use_peft", "yes"],
    ],
)
def test_flags_have_both_spellings_of_the_training_programs(tmp_path, flags):
    path = tmp_path / "recipe.yaml"
    path.write_text("prompts_per_step: 8\n")
    assert given("policy_server", flags) and not given("http://a/v1", flags)
    recipe = {"policy_server": "http://a/v1", "prompts_per_step": 6, "use_peft": True}
    assert with_flags(str(path), flags) == recipe


@pytest.mark.parametrize(
    ("flags", "found"),
    [(["--use_peft"], (True, True)), (["--no-revision"], (False, False)), ([], (False, True))],
)
def test_a_flag_without_a_value_overrides_a_recipe_too(tmp_path, flags, found):
    path = tmp_path / "recipe.yaml"
    path.write_text("use_peft: false\nrevision: true\n")
    recipe = with_flags(str(path), flags)
    assert (recipe["use_peft"], recipe["revision"]) == found


@pytest.mark.parametrize(
    ("wishes", "servers"),
    [
        ({"TRAIN_GPUS": "0,1", "REFLECTION_TP": "2"}, [[2, 3], [4, 5], [6, 7]]),
        ({"TRAIN_GPUS": "0,1,2,3,4,5,6,7"}, [[7]]),
    ],
)
def test_reflection_servers_have_the_gpus_of_a_policy_that_is_served_elsewhere(wishes, servers):
    plan = plan_of(8, ["reflection"], **wishes).as_json()
    found = [each if isinstance(each, list) else [each] for each in plan["reflection_gpus"]]
    assert found == servers and plan["policy_gpus"] == []


def test_flags_override_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("prompts_per_step: 8\nuse_peft: true\nprompt_template: x\n")
    flags = ["--prompts_per_step", "6", "--use_peft=false", "--prompt_template", "a: {b: c"]
    recipe = with_flags(str(path), [*flags, "--policy_server", "http://a/v1", "http://b/v1"])
    assert recipe == {
        "prompts_per_step": 6, "use_peft": False, "prompt_template": "a: {b: c",
        "policy_server": ["http://a/v1", "http://b/v1"],
    }  # fmt: skip
