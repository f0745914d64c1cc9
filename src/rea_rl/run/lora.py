"""LoRA of a recipe: which layers get an adapter, checked against the model before anything is
trained.

PEFT is content if one of the names matches. Here each name has to match a linear layer of the
language model; towers for images or sound, which have layers of the same names, get no adapter.
"""

from __future__ import annotations

import copy
import logging
import re
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import ModelConfig


logger = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"


def check_lora_keys(model_args: ModelConfig, served: bool) -> None:
    """Raise ValueError for LoRA keys of a recipe that cannot be trained, or, if `served`,
    that vLLM does not take."""
    for key in ("load_in_4bit", "load_in_8bit"):
        if not served and getattr(model_args, key):
            raise ValueError(
                f"{key} is true, but models are trained in the type of dtype: leave it out, and "
                "set dtype: bfloat16 to save memory"
            )
    if not model_args.use_peft:
        return
    if model_args.lora_task_type != "CAUSAL_LM":
        raise ValueError(
            f"lora_task_type is {model_args.lora_task_type!r}; leave it out: language models are "
            "trained"
        )
    if not served:
        return
    refused = {
        "lora_modules_to_save": model_args.lora_modules_to_save,
        "lora_target_parameters": model_args.lora_target_parameters,
        "use_dora": model_args.use_dora,
    }
    if given := [key for key, value in refused.items() if value]:
        raise ValueError(
            f"{' and '.join(f'{key} is {refused[key]}' for key in given)}, but policy_server takes "
            "plain adapters of linear layers only, as vLLM does: leave it out, and name layers in "
            "lora_target_modules"
        )


def lora_config(model: PreTrainedModel, model_args: ModelConfig, served: bool) -> LoraConfig | None:
    """PEFT's settings of a recipe for a model without adapters; None without `use_peft`.

    With `served`, vLLM has to take the adapter while it is trained.

    Raises ValueError, with the names that the model has, for a name in `lora_target_modules` that
    matches no linear layer of the language model, or one that cannot be trained or served.
    """
    from trl import get_peft_config

    check_lora_keys(model_args, served)
    config = get_peft_config(model_args)
    if config is None:
        return None
    _check_others(model, model_args)
    layers = _Layers(model)
    if config.target_modules is not None:  # else PEFT has a list by model type, or asks for the key
        config.target_modules = layers.targets(config.target_modules)
    experts = _experts(model, config)
    if served and experts and str(model_args.lora_target_modules).lower() == ALL_LINEAR:
        config.target_modules -= experts
    elif served and experts:
        raise ValueError(
            f"lora_target_modules: {_listed(experts)} would train the experts of "
            f"{type(model).__name__}, whose adapters policy_server does not take; name only "
            f"{_listed(set(layers.names) - experts)}, or {ALL_LINEAR}"
        )
    if missing := {
        name
        for name in _names(config) - experts
        if not layers.matching(config, name, layers.inside)
    }:
        raise ValueError(
            f"lora_target_modules: {type(model).__name__} has no linear layer {_listed(missing)} "
            f"in its language model; it has {_listed(set(layers.names) | experts)}: name of these, "
            f"or {ALL_LINEAR}"
        )
    if any(layers.matching(config, name, layers.outside) for name in _names(config)):
        config.exclude_modules = rf"(?!{re.escape(layers.prefix)}).*"
        logger.info("LoRA: layers outside %s are left alone", layers.prefix.rstrip("."))
    return config


def _check_others(model: PreTrainedModel, model_args: ModelConfig) -> None:
    """Raise ValueError for modules and parameters that the model has not; layers come later."""
    has = {
        "lora_modules_to_save": [name for name, _ in model.named_modules()],
        "lora_target_parameters": [name for name, _ in model.named_parameters()],
    }
    for key, paths in has.items():
        for target in getattr(model_args, key) or ():
            if not any(f".{path}".endswith(f".{target}") for path in paths):
                ends = {".".join(path.split(".")[-2:]) for path in paths}
                known = _listed({end for end in ends if end and not end[-1].isdecimal()})
                raise ValueError(
                    f"{key}: {type(model).__name__} has no {target}; it has {known}: name of these"
                )


class _Layers:
    """Linear layers of a model: those of the language model, and those of other towers."""

    def __init__(self, model: PreTrainedModel):
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        prefix = next(name for name, module in model.named_modules() if module is decoder)
        self.prefix = f"{prefix}." if prefix else ""
        linear = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
        }
        names = [name for name, module in linear.items() if module is not head]
        self.inside = [name for name in names if name.startswith(self.prefix)]
        self.outside = [name for name in names if not name.startswith(self.prefix)]
        self.names = sorted({name.rpartition(".")[2] for name in self.inside})

    @staticmethod
    def matching(config: LoraConfig, target: str, paths: list[str]) -> list[str]:
        """Layers of a target, as in PEFT: an expression for whole paths, a name for their ends."""
        if isinstance(config.target_modules, str):
            return [path for path in paths if re.fullmatch(target, path)]
        return [path for path in paths if f".{path}".endswith(f".{target}")]

    def targets(self, targets: set[str] | str) -> set[str] | str:
        """Names, also a single one, which TRL hands on as a text, and `all-linear`; a regular
        expression as it is."""
        if not isinstance(targets, str):
            return set(targets)
        if targets.lower() == ALL_LINEAR:
            return set(self.names)
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(
                f"lora_target_modules: {targets!r} is no regular expression ({error}); give names"
            ) from None
        return {targets} if re.fullmatch(r"[\w.]+", targets) else targets


def _names(config: LoraConfig) -> set[str]:
    targets = config.target_modules
    return {targets} if isinstance(targets, str) else set(targets or ())


def _experts(model: PreTrainedModel, config: LoraConfig) -> set[str]:
    """Names that PEFT takes for experts: in transformers one parameter a layer, not linear."""
    from peft.utils.transformers_weight_conversion import (
        convert_peft_config_for_transformers,
        get_model_conversion_mapping,
    )

    converted = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(converted, model, get_model_conversion_mapping(model))
    except ValueError as error:
        raise ValueError(f"lora_target_modules: {error}") from None
    if not converted.target_parameters or converted.target_parameters == config.target_parameters:
        return set()
    return _names(config) - _names(converted)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
