"""Adapters of tests, and replies of a server to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from scripted_server import ScriptedServer, completion
from transformers import AutoModelForCausalLM
from trl import ModelConfig

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "code": status}}


def make_adapter(base: Path, size: float, seed: int = 1) -> PeftModel:
    """A policy whose adapter changes it by so much; 0: not at all, as before the first step."""
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"]),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=size) if size else torch.nn.init.zeros_(weight)
    return model


def bad_request() -> openai.BadRequestError:
    import httpx2

    reply = httpx2.Response(400, request=httpx2.Request("POST", "http://a/v1"))
    return openai.BadRequestError("prompt too long", response=reply, body=None)


class Serving:
    """Answers about prompts with the log-probs of base or adapter, as `applies` has it: its
    weight, 0 for no effect."""

    def __init__(self, base: Path, applies: float = 1.0, noise: float = 0.0):
        self._base, self._applies, self._noise = base, applies, noise
        self.server: ScriptedServer | None = None

    def __call__(self, body: dict[str, Any]) -> tuple[int, Any]:
        model = AutoModelForCausalLM.from_pretrained(self._base)
        plain = self._logps(model, body["prompt"])
        logps = plain
        if body["model"] != "base":
            path = next(
                b["lora_path"]
                for b in self.server.bodies("load_lora_adapter")
                if b["lora_name"] == body["model"]
            )
            changes = self._logps(PeftModel.from_pretrained(model, path), body["prompt"]) - plain
            logps = plain + self._applies * changes
        logps = logps + self._noise * torch.randn(
            len(logps), generator=torch.Generator().manual_seed(len(body["model"]))
        )
        status, reply = completion([1])
        told = [
            None,
            *(
                {str(i): {"logprob": p}}
                for i, p in zip(body["prompt"][1:], logps.tolist(), strict=True)
            ),
        ]
        reply["choices"][0]["prompt_logprobs"] = told
        return status, reply

    @staticmethod
    def _logps(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return logps.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def save_adapter(base: Path, folder: Path, modules: list[str] | None = None) -> Path:
    """An adapter whose second factor is not zero, as after training."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=modules or ["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def lora_keys(targets, **changes):
    return ModelConfig(
        use_peft=True, lora_r=4, lora_dropout=0.0, lora_target_modules=list(targets), **changes
    )
