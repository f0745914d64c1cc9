"""All weights on their way to the policy server: what is sent, in which order, and what a
failure says."""

import pytest
import small_runs
import torch
from scripted_server import ScriptedServer

from rea_rl.rollout import weight_sync
from rea_rl.rollout.weight_sync import FullSync

URL = "http://127.0.0.1:1/v1"


class Client:
    """Stands for TRL's `WeightTransferClient`, which needs two GPUs."""

    def __init__(self, http, manifest, timeout):
        self.url, self.manifest, self.calls, self.sent = http.server_url, manifest, [], {}

    def __getattr__(self, name):
        return lambda: self.calls.append(name)

    def send_weights(self, weights):
        self.calls.append("send_weights")
        self.sent = {name: weight.clone() for name, weight in weights}


@pytest.fixture
def client(monkeypatch):
    import trl.experimental.async_grpo.weight_transfer as module

    made = []
    monkeypatch.setattr(weight_sync, "request", lambda *_, **__: None)
    monkeypatch.setattr(
        module, "WeightTransferClient", lambda *args: made.append(Client(*args)) or made[-1]
    )
    return made


def test_all_weights_are_sent_while_the_server_is_paused(client):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3, dtype=torch.bfloat16), torch.nn.Linear(3, 1))
    sync = FullSync(URL, "model/base")
    assert sync.publish(model, 0) == "model/base"
    with torch.no_grad():
        model[1].bias.fill_(7.0)
    assert sync.publish(model, 1) == "model/base"
    (one,) = client  # the NCCL group is formed once
    assert one.url == URL.removesuffix("/v1")
    assert one.calls == ["init_weight_transfer"] + 2 * ["pause", "send_weights", "resume"]
    assert one.manifest == {
        "names": ["0.weight", "0.bias", "1.weight", "1.bias"],
        "dtype_names": ["bfloat16", "bfloat16", "float32", "float32"],
        "shapes": [[3, 2], [3], [1, 3], [1]],
    }
    assert list(one.sent) == one.manifest["names"]
    assert one.sent["1.bias"].item() == 7.0
    assert not one.sent["0.weight"].requires_grad


def test_a_server_with_adapters_is_refused_at_once():
    with (
        ScriptedServer(None, ["model/base"]) as server,
        pytest.raises(ValueError, match="takes no weights; start it with --fu"),
    ):
        FullSync(server.url, "model/base")


def test_weights_in_pieces_are_refused(monkeypatch):
    monkeypatch.setattr(weight_sync, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(
        ValueError, match="ZeRO-3 has the weights in pieces; launch with zero2 or ddp"
    ):
        FullSync(URL, "model/base")


def test_a_transfer_that_fails_is_named_with_the_remedy(client):
    sync = FullSync(URL, "model/base")
    sync.publish(model := torch.nn.Linear(1, 1), 0)

    def refuse(_):
        raise RuntimeError("NCCL error: invalid usage.")

    client[0].send_weights = refuse
    with pytest.raises(
        ConnectionError,
        match=r"\(http://127.0.0.1:1/v1\) does not take .* invalid usage.* --full_weights true",
    ):
        sync.publish(model, 1)


def test_all_weights_with_a_list_of_servers_are_one_line(tmp_path):
    workplace = small_runs.make_workplace(tmp_path)
    line = small_runs.refusal(
        "grpo",
        workplace,
        use_peft="false",
        policy_server="http://127.0.0.1:1/v1 http://127.0.0.1:2/v1",
    )
    assert "use_peft is false, but policy_server names 2 servers" in line
    assert "name one, with more GPUs if need be" in line
