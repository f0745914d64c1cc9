"""All that is imported of `trl.experimental`, which moves between versions of TRL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl.experimental.async_grpo.weight_transfer import WeightTransferClient


def weight_transfer(
    server: str, manifest: dict[str, list[Any]], timeout: int
) -> WeightTransferClient:
    """TRL's client of a server that takes all weights over NCCL.

    Args:
        server: `http://host:port`.
        manifest: `names`, `dtype_names` and `shapes` of the weights, in their order.
        timeout: seconds for joining the NCCL group, and for one transfer.
    """
    from trl.experimental.async_grpo.vllm_client import VLLMClient
    from trl.experimental.async_grpo.weight_transfer import WeightTransferClient

    return WeightTransferClient(VLLMClient(server), manifest, timeout)
