"""All that is imported of `trl.experimental`, which moves between versions of TRL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class WeightTransfer(Protocol):
    """TRL's client of a server that takes all weights over NCCL."""

    def init_weight_transfer(self) -> None: ...
    def pause(self) -> None: ...
    def send_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None: ...
    def resume(self) -> None: ...


def weight_transfer(server: str, manifest: dict[str, list[Any]], timeout: int) -> WeightTransfer:
    """Client of a server.

    Args:
        server: `http://host:port`.
        manifest: `names`, `dtype_names` and `shapes` of the weights, in their order.
        timeout: seconds for joining the NCCL group, and for one transfer.
    """
    from trl.experimental.async_grpo.vllm_client import VLLMClient
    from trl.experimental.async_grpo.weight_transfer import WeightTransferClient

    return WeightTransferClient(VLLMClient(server), manifest, timeout)
