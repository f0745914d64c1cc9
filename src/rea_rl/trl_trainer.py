"""TRL's GRPO trainer, imported without vLLM.

TRL imports all of vLLM with its trainer, for a generation that is not used here: 5 CPU seconds and
200 MB of each training process. Our servers run vLLM in processes of their own.
"""

from __future__ import annotations

from trl import import_utils


def _import_trainer() -> type:
    is_vllm_available = import_utils.is_vllm_available
    import_utils.is_vllm_available = lambda *_, **__: False
    try:
        from trl import GRPOTrainer
    finally:  # sending all weights to a server takes TRL's client, which needs vLLM
        import_utils.is_vllm_available = is_vllm_available
    return GRPOTrainer


GRPOTrainer = _import_trainer()
