"""Layers of a frozen decoder with LoRA that compute the same in less time and memory.

PEFT's layer and transformers' norm and MLP keep their inputs several times over, in float32 too,
for gradients of weights that are frozen. Here a linear layer keeps its input once, a norm its
input, and the MLP the outputs of its two first projections; LoRA is computed in the activations'
dtype and added in place.
"""

from __future__ import annotations

import types
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers.activations import SiLUActivation

# Their code is the plain formula; other models' classes differ in details that matter.
NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}
MLPS = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"}


class _Weights(NamedTuple):
    """A linear layer with LoRA: y = x W^T + bias + scaling * (x A^T) B^T."""

    weight: Tensor  # (out, in), frozen
    bias: Tensor | None  # (out,), frozen
    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scaling: float


def _forward(x: Tensor, w: _Weights) -> tuple[Tensor, Tensor]:
    """y (N, out) and x A^T (N, r) for x (N, in)."""
    low = x @ w.a.to(x.dtype).T
    y = F.linear(x, w.weight, w.bias)
    return y.addmm_(low, w.b.to(x.dtype).T, alpha=w.scaling), low


def _backward(grad: Tensor, x: Tensor, low: Tensor, w: _Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input (N, in), of A and of B."""
    grad_low = grad @ w.b.to(grad.dtype)  # (N, r)
    # Added in place: one tensor of the input's size instead of two.
    grad_x = grad @ w.weight
    grad_x.addmm_(grad_low, w.a.to(grad.dtype), alpha=w.scaling)
    grad_a, grad_b = grad_low.T @ x, grad.T @ low
    dtype = w.a.dtype
    return grad_x, grad_a.to(dtype) * w.scaling, grad_b.to(dtype) * w.scaling


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight, bias, a, b, scaling: float) -> Tensor:
        y, low = _forward(x.flatten(0, -2), _Weights(weight, bias, a, b, scaling))
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        weights = _Weights(weight, None, a, b, ctx.scaling)
        grad_x, grad_a, grad_b = _backward(grad.flatten(0, -2), x.flatten(0, -2), low, weights)
        return grad_x.view_as(x), None, None, grad_a, grad_b, None


class _SwiGLULoraLinear(torch.autograd.Function):
    """Last projection of silu(gate) * up, which the backward pass computes again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight, bias, a, b, scaling: float) -> Tensor:
        x = F.silu(gate).mul_(up)
        y, low = _forward(x.flatten(0, -2), _Weights(weight, bias, a, b, scaling))
        ctx.save_for_backward(gate, up, low, weight, a, b)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, low, weight, a, b = ctx.saved_tensors
        weights = _Weights(weight, None, a, b, ctx.scaling)
        activated = F.silu(gate)
        x = (activated * up).flatten(0, -2)
        grad_x, grad_a, grad_b = _backward(grad.flatten(0, -2), x, low, weights)
        grad_x = grad_x.view_as(gate)
        grad_gate = torch.ops.aten.silu_backward(grad_x * up, gate)
        # In place: nothing needs it afterwards.
        return grad_gate, activated.mul_(grad_x), None, None, grad_a, grad_b, None


def _weights(layer: nn.Module) -> _Weights | None:
    """Weights of a plain linear layer with one active, plain, unmerged LoRA; else None."""
    if (
        not isinstance(layer, LoraLinear)
        or layer.disable_adapters
        or layer.merged
        or len(layer.active_adapters) != 1
    ):
        return None
    name, base = layer.active_adapters[0], layer.base_layer
    dropout = layer.lora_dropout[name] if name in layer.lora_A else None
    is_plain = isinstance(dropout, nn.Identity) and name not in layer.lora_variant
    if type(base) is not nn.Linear or not is_plain:
        return None
    # Gradients of these two are not computed here.
    if base.weight.requires_grad or layer.lora_bias[name]:
        return None
    return _Weights(
        base.weight,
        base.bias,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
    )


def _same_dtype(x: Tensor, weights: _Weights) -> bool:
    """Whether nothing has to be cast, by autocast neither."""
    device = x.device.type
    computes = weights.weight.dtype
    if torch.is_autocast_enabled(device):
        computes = torch.get_autocast_dtype(device)
    return x.dtype == weights.weight.dtype == computes


def _lora_forward(self: LoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    weights = _weights(self)
    if args or kwargs or weights is None or not _same_dtype(x, weights):
        return type(self).forward(self, x, *args, **kwargs)
    return _LoraLinear.apply(x, *weights)


def _mlp_forward(self: nn.Module, x: Tensor) -> Tensor:
    weights = _weights(self.down_proj)
    gate, up = self.gate_proj(x), self.up_proj(x)
    if weights is None or not _same_dtype(gate, weights):
        return self.down_proj(self.act_fn(gate) * up)
    return _SwiGLULoraLinear.apply(gate, up, *weights)


def _norm_forward(self: nn.Module, x: Tensor) -> Tensor:
    if x.dtype != self.weight.dtype:
        return type(self).forward(self, x)
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


def fuse_layers(model: nn.Module) -> int:
    """Exchange the forward functions of the layers of `model` that are known; returns how many
    were.

    Parameters, their names and the checkpoints stay. Layers with an adapter that is disabled,
    merged or not plain are computed by PEFT's own code.
    """
    fused = 0
    for module in model.modules():
        forward = None
        if type(module) is LoraLinear:
            forward = _lora_forward
        elif type(module).__name__ in NORMS and not module.weight.requires_grad:
            forward = _norm_forward
        elif type(module).__name__ in MLPS and isinstance(module.act_fn, (nn.SiLU, SiLUActivation)):
            forward = _mlp_forward
        if forward is not None:
            module.forward = types.MethodType(forward, module)
            fused += 1
    return fused
