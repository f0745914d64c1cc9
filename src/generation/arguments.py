"""Recipe keys and flags of `generation.generate`, with their ranges."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from generation.prompts import MATH_COT, REFLECTION_REPLIES
from generation.reflection_reply import reply_form
from generation.rendering import PromptFormat
from generation.segments import check_paragraph_tokens
from generation.shards import Shard
from rea_core.formats import bare_name
from rea_core.models import DTYPES
from rea_core.options import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    Count,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    check_options,
    one_of,
    option,
    required,
)

LABELING_SPLITS = ("labeling", "labeling_distill", "labeling_distill_use_asw")
SPLIT_NAMES = ("math_cot", "json", *LABELING_SPLITS)  # the stages of `generation.stages`


@dataclass
class GenerateArguments:
    """Recipe keys and flags of `generation.generate`."""

    # Input and output
    qaf: str = required(
        "Rows of the stage: file, or for math_cot a Hub dataset; also `dataset_name`.",
        "dataset_name",
    )
    model_dir: str = required("Model: folder or Hub id; with --api only its name, for the output.")
    split: Annotated[str, one_of(*SPLIT_NAMES)] = option(
        "math_cot", f"Stage: which prompts are made of the rows; one of {', '.join(SPLIT_NAMES)}."
    )
    lora: str | None = option(None, "Folder of a LoRA adapter of the model.")
    save_suffix: str = option("", "Appended to the name of the output file.")
    output_dir: str = option("output", "Outputs go to <output_dir>/<model>/.")
    qaf_split: str = option(
        "train", "Split of a Hub dataset; also `dataset_train_split`.", "dataset_train_split"
    )
    dataset_config: str | None = option(None, "Configuration of a Hub dataset.")
    qaf_limit: PositiveInt | None = option(None, "Use the first N rows only.")
    shard: str | None = option(
        None,
        "Share of the rows, such as 1/4, for several hosts; without it, all shares are joined.",
    )
    problem_column: str | None = option(
        None, "Column with the problem; default: 'problem', else 'question'."
    )
    answer_column: str = option(
        "answer",
        "Column with the gold answer, or a worked solution; default: 'answer', 'final_answer' and "
        "the like, else the \\boxed{} of 'solution'.",
    )
    prompt_template: str = option(
        MATH_COT, "User message; {problem} is replaced, other braces are written twice."
    )

    system_prompt: str | None = option(None, "System message before the problem.")
    chat_template_kwargs: dict | str | None = option(
        None, "Keywords of the model's chat template, as JSON: '{\"enable_thinking\": false}'."
    )
    prefill: str = option(
        "", "Beginning of every reply, from which the model continues; part of the prompt."
    )

    think_start: str | None = option(
        None, "Text that opens the model's thinking; default: by its template and vocabulary."
    )
    think_end: str | None = option(None, "Text that ends it; give both or neither.")
    forced_answer: str | None = option(
        None, "Text that ends a thinking which is cut; default: think_end and a heading."
    )

    # Labelling
    paragraph_tokenizer: str | None = option(
        None, "Model that wrote the responses; its tokenizer counts the paragraphs' tokens."
    )
    paragraph_min_tokens: int = option(32, "Tokens that a paragraph has at least.")
    paragraph_max_tokens: int = option(128, "Tokens before which a paragraph is closed.")
    chunk_tokens: PositiveInt = option(
        1024, "Tokens of the paragraphs that the judge sees at once."
    )
    reflection_reply: Annotated[str | None, one_of(*REFLECTION_REPLIES)] = option(
        None, "Form of the reflection model's replies; default: what the model's folder says."
    )

    # Sampling
    n_generate_sample: Annotated[int, AT_LEAST_1] = option(1, "Responses per prompt.")
    temperature: Annotated[float, NOT_NEGATIVE] = option(0.6, "Of sampling; 0 is greedy.")
    top_p: PositiveShare = option(0.95, "Share of the probability that is sampled from.")
    max_tokens: PositiveInt = option(16384, "Most tokens of a response.")
    logprobs: PositiveInt | None = option(
        None, "Also write the N most likely tokens of every step; 'labeling' needs them."
    )
    seed: Count | None = option(
        0,
        "Seed from which every response has its own; empty: none, which makes engines twice as "
        "fast.",
    )

    num_workers: PositiveInt | None = option(
        None, "Processes that make prompts; default: one a core."
    )

    # Engine
    n_gpu: PositiveInt = option(1, "GPUs per engine; there are as many engines as GPUs allow.")
    max_model_len: PositiveInt | None = option(None, "Context in tokens; default: the model's.")
    max_num_seqs: PositiveInt = option(256, "Responses that an engine works on at once.")
    gpu_memory_utilization: PositiveShare = option(0.9, "Share of a GPU's memory for an engine.")
    compile: bool = option(
        True, "On GPUs: compile the model; false: start a minute sooner, for short jobs."
    )
    kv_cache_gib: PositiveInt = option(1, "On the CPU: GiB of an engine's key-value cache.")
    dtype: Annotated[str, one_of(*DTYPES)] = option(
        "auto", "Type of the weights; auto: as they are stored."
    )

    # Server
    api: bool = option(False, "Ask an OpenAI-style server, and start no engine.")
    api_base: str | None = option(None, "Its address, such as http://127.0.0.1:12345/v1.")
    api_model: str | None = option(None, "Name of the model or adapter it serves.")
    api_key_env: str = option(
        "VLLM_API_KEY", "Environment variable with the server's key; unset: no key."
    )
    max_concurrent_requests: PositiveInt = option(128, "Open requests.")
    request_timeout: PositiveFloat = option(1800.0, "Seconds before a request is given up.")
    request_retries: Count = option(2, "Retries of a failed request before the run stops.")

    max_unanswered: Count = option(
        16,
        "Rows next to each other that may get no answer, too long or refused, before the run ends.",
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_paragraph_tokens(self.paragraph_min_tokens, self.paragraph_max_tokens)
        if self.shard is not None:
            Shard.read(self.shard)
        if self.n_generate_sample > 1 and self.temperature == 0:
            raise ValueError(
                f"n_generate_sample is {self.n_generate_sample} at temperature 0, which gives the "
                "same response each time; raise the temperature or ask for one"
            )
        if self.api and not (self.api_base and self.api_model):
            raise ValueError(
                f"api needs api_base and api_model, which are {self.api_base!r} and "
                f"{self.api_model!r}"
            )
        if self.api and self.lora:
            raise ValueError(
                f"lora ({self.lora!r}) is for engines; with api give the name of a served one: "
                "api_model"
            )
        self._check_labeling()
        self._check_prompts()

    def _check_labeling(self) -> None:
        if self.split in LABELING_SPLITS and not self.paragraph_tokenizer:
            raise ValueError(
                f"split {self.split} needs paragraph_tokenizer: name the model that wrote the "
                "responses"
            )
        if self.split == "labeling":
            self.reply_form  # noqa: B018 - raises for a form that the model was not trained on
        if self.split == "labeling" and not self.logprobs:
            raise ValueError(
                "split labeling needs logprobs, from which P(Result) is read; give --logprobs 5"
            )
        if self.api and (self.logprobs or self.split == "labeling"):
            raise ValueError(
                "api gives neither log-probs nor a begun reply; leave out api for split labeling"
            )

    def _check_prompts(self) -> None:
        if isinstance(self.chat_template_kwargs, str):
            try:
                self.chat_template_kwargs = json.loads(self.chat_template_kwargs)
            except json.JSONDecodeError:
                raise ValueError(
                    f"chat_template_kwargs is {self.chat_template_kwargs!r}; write JSON, such as "
                    "'{\"enable_thinking\": false}'"
                ) from None
        for key in ("system_prompt", "prefill"):
            if (value := getattr(self, key)) and self.split != "math_cot":
                raise ValueError(
                    f"{key} is {value!r}, but split {self.split} has prompts of its own; leave it "
                    "out"
                )
        if self.api and self.prefill:
            raise ValueError(
                f"prefill is {self.prefill!r}, but api cannot begin a reply; leave one of them out"
            )
        self.prompt_format  # noqa: B018 - raises for what no prompt can have

    @property
    def prompt_format(self) -> PromptFormat:
        """How problems become prompts."""
        return PromptFormat.of(vars(self))

    @property
    def reply_form(self) -> str:
        """Form in which the reflection model is asked for labels."""
        return reply_form(self.reflection_reply, self.lora or self.model_dir)

    @property
    def output_path(self) -> Path:
        """Final file of all shares; `<model>` and `<name>` are the last parts of `model_dir` and
        `qaf`, without extension."""
        model, name = Path(self.model_dir).name, bare_name(self.qaf)
        return Path(self.output_dir) / model / f"{name}_{self.split}{self.save_suffix}.json"
