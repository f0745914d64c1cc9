"""Recipe keys and flags of `generation.generate`, with their ranges."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from generation.prompts import MATH_COT
from generation.rendering import PromptFormat
from generation.segments import check_paragraph_tokens
from rea_core.checks import check_numbers
from rea_core.models import DTYPES

LABELING_SPLITS = ("labeling", "labeling_distill", "labeling_distill_use_asw")
SPLIT_NAMES = ("math_cot", "json", *LABELING_SPLITS)  # the stages of `generation.stages`
# Arguments whose numbers have a range.
POSITIVE = (
    *(
        "qaf_limit",
        "chunk_tokens",
        "top_p",
        "max_tokens",
        "logprobs",
        "n_gpu",
        "num_workers",
        "max_model_len",
        "max_num_seqs",
    ),
    *("gpu_memory_utilization", "kv_cache_gib", "max_concurrent_requests", "request_timeout"),
)
NOT_NEGATIVE = ("temperature", "seed", "request_retries")
SHARES = ("top_p", "gpu_memory_utilization")


@dataclass
class GenerateArguments:
    """Recipe keys and flags of `generation.generate`."""

    # Input and output
    qaf: str = field(
        metadata={"help": "Rows of the stage: .json or .jsonl file, or for math_cot a Hub dataset."}
    )
    model_dir: str = field(
        metadata={"help": "Model: folder or Hub id; with --api only its name, for the output."}
    )
    split: str = field(
        default="math_cot", metadata={"help": "Stage, that is, which prompts are made of the rows."}
    )
    lora: str | None = field(
        default=None, metadata={"help": "Folder of a LoRA adapter of the model."}
    )
    save_suffix: str = field(
        default="", metadata={"help": "Appended to the name of the output file."}
    )
    output_dir: str = field(
        default="output", metadata={"help": "Outputs go to <output_dir>/<model>/."}
    )
    qaf_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    qaf_limit: int | None = field(default=None, metadata={"help": "Use the first N rows only."})
    problem_column: str | None = field(
        default=None,
        metadata={"help": "Column with the problem; default: 'problem', else 'question'."},
    )
    answer_column: str = field(default="answer", metadata={"help": "Column with the gold answer."})
    prompt_template: str = field(
        default=MATH_COT,
        metadata={"help": "User message; {problem} is replaced, other braces are written twice."},
    )

    system_prompt: str | None = field(
        default=None, metadata={"help": "System message before the problem."}
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Keywords of the model's chat template, as JSON: '{\"enable_thinking\": "
            "false}'."
        },
    )
    prefill: str = field(
        default="",
        metadata={
            "help": "Begin of every reply, from which the model continues; part of the prompt."
        },
    )

    # Labelling
    paragraph_tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Model that wrote the paths; its tokenizer counts the paragraphs' tokens."
        },
    )
    paragraph_min_tokens: int = field(
        default=32, metadata={"help": "Tokens that a paragraph has at least."}
    )
    paragraph_max_tokens: int = field(
        default=128, metadata={"help": "Tokens before which a paragraph is closed."}
    )
    chunk_tokens: int = field(
        default=1024, metadata={"help": "Tokens of the paragraphs that the judge sees at once."}
    )

    # Sampling
    n_generate_sample: int = field(default=1, metadata={"help": "Responses per prompt."})
    temperature: float = field(default=0.6, metadata={"help": "0 is greedy."})
    top_p: float = field(
        default=0.95, metadata={"help": "Share of the probability that is sampled from."}
    )
    max_tokens: int = field(default=16384, metadata={"help": "Most tokens of a response."})
    logprobs: int | None = field(
        default=None,
        metadata={
            "help": "Also write the N most likely tokens of every step; 'labeling' needs them."
        },
    )
    seed: int | None = field(
        default=0,
        metadata={
            "help": "Seed from which every response has its own; empty: none, which makes engines "
            "twice as fast."
        },
    )

    num_workers: int | None = field(
        default=None, metadata={"help": "Processes that make prompts; default: one a core."}
    )

    # Engine
    n_gpu: int = field(
        default=1, metadata={"help": "GPUs per engine; there are as many engines as GPUs allow."}
    )
    max_model_len: int | None = field(
        default=None, metadata={"help": "Context in tokens; default: the model's."}
    )
    max_num_seqs: int = field(
        default=256, metadata={"help": "Responses that an engine works on at once."}
    )
    gpu_memory_utilization: float = field(
        default=0.9, metadata={"help": "Share of a GPU's memory for an engine."}
    )
    compile: bool = field(
        default=True,
        metadata={
            "help": "On GPUs: compile the model; false: start a minute sooner, for short jobs."
        },
    )
    kv_cache_gib: int = field(
        default=1, metadata={"help": "On the CPU: GiB of an engine's key-value cache."}
    )
    dtype: str = field(
        default="auto", metadata={"help": "Type of the weights; auto: as they are stored."}
    )

    # Server
    api: bool = field(
        default=False, metadata={"help": "Ask an OpenAI-style server, and start no engine."}
    )
    api_base: str | None = field(
        default=None, metadata={"help": "Its address, such as http://127.0.0.1:12345/v1."}
    )
    api_model: str | None = field(
        default=None, metadata={"help": "Name of the model or adapter it serves."}
    )
    api_key_env: str = field(
        default="VLLM_API_KEY",
        metadata={"help": "Environment variable with the server's key; unset: no key."},
    )
    max_concurrent_requests: int = field(default=128, metadata={"help": "Open requests."})
    request_timeout: float = field(
        default=1800.0, metadata={"help": "Seconds before a request is given up."}
    )
    request_retries: int = field(
        default=2, metadata={"help": "Retries of a failed request before the run stops."}
    )

    def __post_init__(self) -> None:
        if self.split not in SPLIT_NAMES:
            raise ValueError(f"split is {self.split!r}; it must be one of {', '.join(SPLIT_NAMES)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        check_numbers(vars(self), positive=POSITIVE, not_negative=NOT_NEGATIVE, shares=SHARES)
        check_paragraph_tokens(self.paragraph_min_tokens, self.paragraph_max_tokens)
        if self.n_generate_sample < 1:
            raise ValueError(
                f"n_generate_sample is {self.n_generate_sample}; it must be at least 1"
            )
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
                f"split {self.split} needs paragraph_tokenizer: name the model that wrote the paths"
            )
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
    def output_path(self) -> Path:
        """Final file; `<model>` and `<name>` are the last parts of `model_dir` and `qaf`,
        without extension."""
        model, name = (
            Path(self.model_dir).name,
            Path(self.qaf).name.removesuffix(".json").removesuffix(".jsonl"),
        )
        return Path(self.output_dir) / model / f"{name}_{self.split}{self.save_suffix}.json"
