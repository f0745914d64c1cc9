"""The check after an install, on the CPU: what it finds where all is well, and where something is
wrong."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from adapters import Serving
from rollouts import labels
from scripted_server import ScriptedServer

from rea_rl import check_gpu
from rea_rl.packing import fused_lora

ROOT = Path(__file__).parents[2]
PLACE = check_gpu.Place(torch.device("cpu"), torch.float32)
STEP = ["step: packed against padded", "step: fused_lora against plain layers",
        "step: recomputation against none"]  # fmt: skip
SERVED = ["servers: log-probs", "servers: adapter 1", "servers: adapter 2", "servers: labels"]


@pytest.fixture
def servers():
    """Function that makes a policy server, whose adapters have a share of their effect, and a
    reflection server."""
    with ExitStack() as stack:

        def make(applies=1.0):
            serving = Serving(check_gpu.POLICY, applies)

            def complete(body):
                name = "base" if body["model"] == check_gpu.POLICY else body["model"]
                return serving({**body, "model": name})

            policy = stack.enter_context(ScriptedServer(complete, [check_gpu.POLICY]))
            serving.server = policy
            reflection = ScriptedServer(labels(0.1, 0.9, 0.8), [check_gpu.REFLECTION])
            return [policy.url, stack.enter_context(reflection).url]

        yield make


def verdicts(found):
    return {each.what: each.ok for each in found}


@pytest.mark.slow
def test_all_is_well_here(servers, capsys):
    check_gpu.main(["--cpu", "--servers", *servers()])
    out = capsys.readouterr().out
    assert out.endswith("all is well\n") and "WRONG" not in out
    titles = [line.split("  ")[0] for line in out.splitlines()]
    nan = [f"NaN: {name}, cuDNN's attention off" for name in ("attention", "SFT", "DPO")]
    assert [t for t in titles if ":" in t] == [*nan, *STEP, *SERVED]
    assert "torch 2" in out and "3 of 3 paragraphs, P(Result) 0.10, 0.90, 0.80" in out
    assert out.count("gradients finite in 6 of 6 cases") == 3


def test_a_server_without_the_adapters_effect_is_found(servers, capsys, monkeypatch):
    for part in ("nan_gradients", "training_step"):
        monkeypatch.setattr(check_gpu, part, lambda place: iter(()))
    with pytest.raises(SystemExit) as end:
        check_gpu.main(["--cpu", "--servers", *servers(applies=0.0)])
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert out.endswith("wrong: servers: adapter 1; servers: adapter 2\n")


def test_nan_gradients_are_found(monkeypatch):
    plain = torch.nn.functional.scaled_dot_product_attention

    def spoiled(query, *args, **kwargs):
        out = plain(query, *args, **kwargs)
        if query.size(2) == 192 and out.requires_grad:
            out.register_hook(lambda grad: grad * float("nan"))
        return out

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spoiled)
    found = [*check_gpu.nan_gradients(PLACE)]
    assert not any(each.ok for each in found) and len(found) == 3
    assert "in 4 of 6 cases, not at 192 left, 192 right" in found[0].found


def test_the_random_model_has_low_scores():
    """As real models have them; others do not make the known NaN."""
    query, key = [], []

    def spy(module, inputs, output):
        (query if output.size(-1) == 128 else key).append(output)

    model = check_gpu._random_model(PLACE)
    attention = model.get_base_model().model.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.register_forward_hook(spy)
    model(input_ids=torch.zeros(1, 8, dtype=torch.long))
    product = (query[0][0, -1, :64] @ key[0][0, -1]) / 8
    assert -150 < float(product.detach()) < -100


def test_a_wrong_part_of_the_step_is_found(monkeypatch):
    def forgets(self, x, *args, **kwargs):
        return self.base_layer(x)

    monkeypatch.setattr(fused_lora, "_lora_forward", forgets)
    found = verdicts(check_gpu.training_step(PLACE))
    assert found[STEP[0]] is True and found[STEP[1]] is False


def test_a_part_that_fails_does_not_end_the_check(monkeypatch):
    def fails(place):
        raise RuntimeError("no kernel image\nis available")
        yield

    monkeypatch.setattr(check_gpu, "nan_gradients", fails)
    monkeypatch.setattr(check_gpu, "training_step", lambda place: iter(()))
    dead = ["http://127.0.0.1:9/v1"] * 2
    found = {each.what: each for each in check_gpu.findings(PLACE, dead)}
    assert found["NaN"].found == "RuntimeError: no kernel image is available"
    assert found["NaN"].ok is False and found["servers"].ok is False
    assert check_gpu.table([*found.values()]).endswith("wrong: NaN; servers\n")


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU is visible to torch; check the CPU with --cpu"):
        check_gpu.main([])


def test_the_script_hides_gpus_from_a_check_of_the_cpu(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/bash\necho "[${CUDA_VISIBLE_DEVICES-all}] $*"\n')
    python.chmod(0o755)
    for options, seen in (([], "[all] "), (["--cpu"], "[] ")):
        done = subprocess.run(
            ["bash", ROOT / "scripts" / "check_gpu.sh", *options],
            env={"PATH": "/usr/bin:/bin", "VENV": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == f"{seen}-m rea_rl.check_gpu {' '.join(options)}".strip()
