"""Recipe keys: dataclasses that `recipe.RecipeParser` fills from a YAML recipe and the command
line.

Every mistake that can be seen without loading a model is a ValueError here; it names the keys,
their values and the way out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from trl import DPOConfig, GRPOConfig, ModelConfig, SFTConfig

from generation.cuts import CutRule
from generation.prompts import MATH_COT, REFLECTION_REPLIES
from generation.reflection_reply import reply_form
from generation.segments import check_paragraph_tokens
from generation.verifiers import MATH, check_name
from rea_core.checks import check_finite, check_numbers
from rea_core.clients import check_urls
from rea_core.options import (
    Count,
    PositiveFloat,
    PositiveInt,
    check_options,
    either,
    one_of,
    option,
    required,
)
from rea_rl.rewards import REWARDS, check_reward_names
from rea_rl.run.batch import BatchKeys, RowKeys, share_out
from rea_rl.run.monitors import MonitorKeys, check_monitors
from rea_rl.run.trl_keys import (
    PREFERENCE,
    REINFORCEMENT,
    SUPERVISED,
    check_best_metric,
    check_defaults,
    check_machine,
    check_sampling,
    check_values,
)

LOSS_TYPES = "grpo bnpo dr_grpo dapo luspo cispo sapo".split()  # of TRL

# Keys of TRL and transformers whose numbers have a range; ours have it in their types.
POSITIVE = """
    per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
    learning_rate num_train_epochs max_length max_completion_length num_generations
    num_generations_eval temperature top_p repetition_penalty vllm_importance_sampling_clip_max
    lora_r lora_alpha save_steps eval_steps logging_steps save_total_limit pad_to_multiple_of
    dataset_num_proc delta
""".split()
NOT_NEGATIVE = """
    beta epsilon epsilon_high weight_decay max_grad_norm seed dataloader_num_workers
    neftune_noise_alpha eval_delay
""".split()
SHARES = """
    top_p min_p lora_dropout top_entropy_quantile label_smoothing label_smoothing_factor
""".split()


def check_ranges(config: Any) -> None:
    """Raise ValueError for a value of a recipe's dataclass that is out of its range."""
    check_finite(vars(config))
    check_options(config)
    check_numbers(vars(config), positive=POSITIVE, not_negative=NOT_NEGATIVE, shares=SHARES)
    if (steps := getattr(config, "max_steps", -1)) < 1 and steps != -1:
        raise ValueError(
            f"max_steps is {steps}; give at least 1, or leave it out to train num_train_epochs"
        )


@dataclass
class DataArguments:
    """Problems to train and evaluate on: a Hub dataset, or a local file."""

    dataset_name: str = required(
        "Training problems: Hub id, or a file: JSON, JSON lines, CSV or Parquet, also in gzip."
    )
    dataset_config: str | None = option(None, "Configuration of a Hub dataset.")
    dataset_train_split: str = option("train", "Split of a Hub dataset to train on.")
    eval_dataset_name: str | None = option(
        None, "Evaluation problems, Hub id or file; needed unless eval_strategy is 'no'."
    )
    dataset_eval_split: str = option("test", "Split of a Hub dataset to evaluate on.")
    max_eval_problems: PositiveInt | None = option(None, "Evaluate on the first N problems only.")
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
    prefill: str = option(
        "", "Beginning of every reply, from which the policy continues; part of the prompt."
    )


@dataclass(kw_only=True)
class SharedKeys:
    """Keys of all training programs, on top of TRL's."""

    cudnn_attention: bool = option(
        False,
        "Let torch take cuDNN's attention on GPUs. Off: its backward pass gave NaN gradients.",
    )


@dataclass
class REARLConfig(MonitorKeys, SharedKeys, BatchKeys, GRPOConfig):
    """Training arguments of REA-RL on top of `trl.GRPOConfig`.

    `num_generations` and the batch keys count sampled responses. With `revision` every sampled
    response brings a second row, so that G = 4 and `prompts_per_step` = 16 are 64 sampled responses
    and 128 trained rows per optimizer step, on any number of ranks.
    """

    prompts_per_step: PositiveInt | None = option(
        None,
        "Prompts of an optimizer step over all ranks; a rank takes at most "
        "per_device_train_batch_size of its responses at a time. Default: what the batch keys "
        "make.",
    )

    # Keys with another default than TRL's.
    vllm_importance_sampling_mode: str = option(
        "token_truncate",
        "Correction for the server's log-probs; only 'token_truncate' is implemented.",
    )
    use_bias_correction_kl: bool = option(
        False, "Multiply the KL term by the importance ratio (DeepSeek-V3.2); paper: no."
    )

    # Thinking
    think_start: str | None = option(
        None, "Text that opens the policy's thinking; default: by its template and vocabulary."
    )
    think_end: str | None = option(None, "Text that ends it; give both or neither.")
    forced_answer: str | None = option(
        None, "Text that ends a thinking which is cut; default: think_end and a heading."
    )

    # Revision
    revision: bool = option(True, "Train on revisions next to the originals; false: plain GRPO.")
    construction: Annotated[str, one_of("pairs", "revisions_only", "serial")] = option(
        "pairs",
        "Rows of a group, with revision: 'pairs' of originals and revisions (the paper), "
        "'revisions_only', or 'serial' (S-GRPO): one response a prompt, and num_generations - 1 "
        "cuts of it.",
    )
    overthinking_loss: Annotated[str, one_of("none", "mean", "max")] = option(
        "none",
        "Extra advantage from a cut onward, against the original's rest and for the revision's "
        "end: 'none', or the 'mean' or 'max' of |advantage| in the group.",
    )
    dynamic_sampling: bool = option(
        False, "Leave groups with equal rewards out of the loss (DAPO, without refilling)."
    )
    revision_strength: Annotated[str, one_of("normal", "weak", "strong")] = option(
        "normal", "Which cut makes the revision: normal, weak (later) or strong (earlier)."
    )
    label_until_decided: bool = option(
        True, "Stop the reflection model's reply once no further label can change the cut."
    )
    stage_batch_size: PositiveInt = option(
        1,
        "Responses of a rank that are labelled together, and finished together; 1: each response "
        "by itself. Larger values are for servers that share a GPU.",
    )
    finish_max_tokens: PositiveInt = option(
        256, "Most tokens the policy may write after the forced end of a cut thinking."
    )
    paragraph_min_tokens: int = option(32, "Tokens that a paragraph has at least.")
    paragraph_max_tokens: int = option(128, "Tokens before which a paragraph is closed.")
    cut_second_half: float = option(
        0.5, "Share of the paragraphs before the first one that a normal cut may follow."
    )
    cut_threshold: float = option(0.5, "P(Result) from which a paragraph is a result.")
    cut_file: str | None = option(
        None,
        "JSON file of generation.calibrate, with cut_threshold and cut_second_half in place of "
        "these keys.",
    )
    cut_strong_threshold: float = option(
        0.25, "P(Result) from which a strong cut takes a paragraph."
    )
    cut_cap_share: float = option(
        0.05, "At least min(floor((n + cut_cap_offset) * this), cut_cap_max) of n paragraphs go."
    )
    cut_cap_offset: int = option(10, "See cut_cap_share.")
    cut_cap_max: int = option(5, "See cut_cap_share.")
    always_cut: bool = option(
        True,
        "Cut before the last block if the labels would keep everything; false: such a response has "
        "no revision.",
    )

    # Servers
    policy_server: list[str] = option(
        ["http://127.0.0.1:12345/v1"],
        "vLLM server of the policy; or a list: prompts are dealt evenly to those that are alive.",
    )
    reflection_server: list[str] = option(
        ["http://127.0.0.1:12346/v1"], "vLLM server with the reflection model; or a list."
    )
    reflection_model: str | None = option(
        None,
        "Reflection model as the server was started with: folder or Hub id; needed with revision.",
    )
    reflection_reply: Annotated[str | None, one_of(*REFLECTION_REPLIES)] = option(
        None,
        "Form of its replies: long, or compact with one token a label. Default: what its folder "
        "says, else long.",
    )
    max_concurrent_requests: PositiveInt = option(256, "Open requests per server and rank.")
    request_timeout: PositiveFloat = option(
        1800.0, "Seconds without an answer after which a request counts as failed."
    )
    request_retries: Count = option(
        5, "Times that a failed request is repeated before the run stops."
    )
    server_deadline: PositiveFloat = option(
        600.0, "Seconds to wait for a server that is away, before the run stops."
    )
    ddp_timeout: int = option(
        12_000, "Seconds that ranks wait for each other; a rank may wait for a server so long."
    )

    # Overlap
    max_rollout_lag: int = option(
        1,
        "Optimizer steps that the policy of a batch may be behind: so many batches are made while "
        "the trainer works. 0: strictly on-policy, trainer and servers take turns.",
    )

    # Rewards
    reward_funcs: list[str] = option(
        ["accuracy", "refine_length", "reflect"],
        "Reward functions, order without meaning; docs/method.md lists them.",
    )
    sigmoid_alpha: float = option(0.2, "sigmoid_length: share of the reward for length.")
    target_lengths: list[int] | None = option(
        None,
        "Tokens: one for laser, l1_max, truncated_accuracy; laser may have easy, medium, hard.",
    )
    laser_alpha: float = option(0.5, "laser: reward within the target.")
    l1_alpha: float = option(3e-4, "l1_max: reward per token below the target.")
    l1_delta: float = option(0.5, "l1_max: reward at the target.")
    overlong_buffer: int | None = option(
        None, "overlong: tokens before max_completion_length in which punishment grows."
    )
    tokens_per_reflection: float | None = option(
        None, "Threshold of the reflect reward, measured on the base model (paper: 225.09)."
    )
    tokens_per_reflection_file: str | None = option(
        None, "JSON file of a measurement with the key 'tokens_per_reflection'."
    )
    word_bounded_reflections: bool = option(
        False, "Count whole words only; the threshold must be measured the same way."
    )
    answer_markers: list[str] = option(
        [],
        "Phrases before an answer without \\boxed{}; for models that write none.",
    )
    verifier: str = option(
        MATH,
        "Which response is right: math, exact, choice, program, or a function of your own as "
        "module:function or path.py:function, see docs/verifiers.md.",
    )
    verifier_workers: PositiveInt = option(2, "Processes that judge responses.")
    verifier_timeout: PositiveFloat = option(5.0, "Seconds before an answer counts as wrong.")

    # Compute
    packing: Annotated[str, either("none", "shared_prefix")] = option(
        "none",
        "shared_prefix: forward shared prefixes of responses once, without padding; none: padded "
        "rows.",
    )
    tokens_per_forward: PositiveInt = option(
        12288, "With packing: unique tokens per forward pass at most; a longer response goes alone."
    )
    recompute: Annotated[str, either("auto", "all", "none")] = option(
        "auto",
        "With packing and gradient_checkpointing: layers whose activations are computed again in "
        "the backward pass: all, none, or auto: as few as the GPU's memory allows, measured once.",
    )
    rows_per_forward: PositiveInt | None = option(
        None, "Rows of similar length per forward pass; default: all of a micro-batch at once."
    )
    torch_threads: PositiveInt | None = option(None, "CPU threads of the trainer.")

    def __post_init__(self):
        check_ranges(self)
        check_defaults(self, REINFORCEMENT)
        check_values(self)
        check_monitors(self)
        check_sampling(self)
        check_best_metric(self, "rl")
        self._check_batch()
        self._check_algorithm()
        self._check_packing()
        self._check_revision()
        self._check_rewards()
        self._check_lag()
        self._check_servers()
        super().__post_init__()
        check_machine(self)
        if "length_batch" in self.reward_funcs and self.world_size > 1:
            raise ValueError(
                "the length_batch reward compares all responses of a step, but each of "
                f"{self.world_size} processes sees its own; train with one process, or take the "
                "length reward"
            )

    def _check_batch(self) -> None:
        """Rows of a group stay on one rank, and each optimizer step has one set of rollouts."""
        for key in ("num_generations", "max_completion_length"):  # None to TRL means something else
            if getattr(self, key) is None:
                raise ValueError(f"{key} is empty; give it a value, or leave it out")
        for key in ("steps_per_generation", "generation_batch_size"):
            if (value := getattr(self, key)) is not None:
                raise ValueError(
                    f"{key} is {value}; leave it out: every optimizer step makes its own rollouts"
                )
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations is {self.num_generations}; a group needs at least 2 responses to "
                "compare"
            )
        share_out(self, "prompts_per_step", self.num_generations)
        paths = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if paths % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size ({self.per_device_train_batch_size}) x "
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) = {paths} "
                "sampled responses per rank is not a multiple of num_generations "
                f"({self.num_generations}), but the responses of a prompt must stay on one rank; "
                "change one of the three"
            )

    def _check_algorithm(self) -> None:
        """TRL's settings that this trainer would otherwise ignore."""
        allowed = {
            "use_vllm": (False,),
            "num_iterations": (1,),
            "scale_rewards": (True, False, "group", "batch", "none"),
            "multi_objective_aggregation": ("sum_then_normalize",),
            "vllm_importance_sampling_mode": ("token_truncate",),
            "log_completions": (False,),
            "generation_kwargs": (None,),
        }
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(
                f"loss_type is {self.loss_type!r}; it must be one of {', '.join(LOSS_TYPES)}"
            )
        for key, values in allowed.items():
            if (value := getattr(self, key)) not in values:
                raise ValueError(
                    f"{key} is {value!r}, but REA-RL supports only "
                    f"{' or '.join(map(repr, values))}: it samples from policy_server, once per "
                    "optimizer step, and records every response under output_dir/rollouts"
                )

    def _check_packing(self) -> None:
        """A micro-batch may become several forward passes, whose losses must add up."""
        if self.packing == "none":
            return
        allowed = {
            "loss_type": ("dapo", "cispo"),
            "top_entropy_quantile": (1.0,),
            "entropy_coef": (0.0,),
            "use_adaptive_entropy": (False,),
            "router_aux_loss_coef": (None, 0.0),
            "cast_lm_head_to_fp32": (False,),
        }
        for key, values in allowed.items():
            if (value := getattr(self, key)) not in values:
                raise ValueError(
                    f"{key} is {value!r}; with packing: {self.packing} it must be "
                    f"{' or '.join(map(repr, values))}"
                )

    def _check_revision(self) -> None:
        CutRule.of(vars(self))
        check_paragraph_tokens(self.paragraph_min_tokens, self.paragraph_max_tokens)
        if self.needs_labels and not self.reflection_model:
            raise ValueError(
                "revision is true but reflection_model is missing; name the model that "
                "reflection_server serves, or set revision: false for plain GRPO"
            )

        if self.construction != "pairs" and not self.revision:
            raise ValueError(
                f"construction is {self.construction!r}, but revision is false, and only revisions "
                "are constructed; set revision: true, or leave construction out"
            )
        if self.overthinking_loss != "none" and not (
            self.revision and self.construction == "pairs"
        ):
            raise ValueError(
                f"overthinking_loss is {self.overthinking_loss!r}, but it compares an original "
                "with its revision; set revision: true and construction: pairs, or "
                "overthinking_loss: none"
            )

    def _check_rewards(self) -> None:
        check_name(self.verifier)
        check_reward_names(self.reward_funcs)
        if twice := [name for name, count in Counter(self.reward_funcs).items() if count > 1]:
            raise ValueError(
                f"reward_funcs has {twice} twice; name each reward once, and weigh them by "
                "reward_weights"
            )
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward_funcs):
            raise ValueError(
                f"reward_weights has {len(self.reward_weights)} values, but reward_funcs "
                f"{len(self.reward_funcs)} names; give one weight a reward, or leave "
                "reward_weights out"
            )
        if self.overlong_buffer is not None and self.overlong_buffer > self.max_completion_length:
            raise ValueError(
                f"overlong_buffer ({self.overlong_buffer}) is over max_completion_length "
                f"({self.max_completion_length}); make it smaller"
            )
        keys = ("tokens_per_reflection", "tokens_per_reflection_file")
        given = [key for key in keys if getattr(self, key) is not None]
        needs_threshold = any(keys[0] in REWARDS[name].settings for name in self.reward_funcs)
        if needs_threshold and len(given) != 1:
            raise ValueError(
                "the reflect reward needs either tokens_per_reflection or "
                f"tokens_per_reflection_file, but the recipe has {' and '.join(given) or 'neither'}"
            )
        if self.target_lengths and len(self.target_lengths) not in (1, 3):
            raise ValueError(
                f"target_lengths has {len(self.target_lengths)} values; give one, or three: easy, "
                "medium, hard"
            )
        if "serial_decay" in self.reward_funcs and not (
            self.revision and self.construction == "serial"
        ):
            raise ValueError(
                "the serial_decay reward orders the exits of one response; set construction: serial"
            )

    @property
    def reward_settings(self) -> dict[str, Any]:
        """Settings of `rewards.get_reward_funcs`, apart from the threshold of reflection."""
        keys = {key for name in self.reward_funcs for key in REWARDS[name].settings}
        return {key: getattr(self, key) for key in keys - {"tokens_per_reflection"}}

    def _check_lag(self) -> None:
        """Rollouts of an older policy are always corrected, and their batches are known ahead."""
        if self.max_rollout_lag < 0:
            raise ValueError(
                f"max_rollout_lag is {self.max_rollout_lag}; it must be 0 (strictly on-policy) or "
                "more"
            )
        if not self.max_rollout_lag:
            return
        needed = {
            "vllm_importance_sampling_correction": self.vllm_importance_sampling_correction,
            "vllm_importance_sampling_clip_max": self.vllm_importance_sampling_clip_max,
        }
        for key, value in needed.items():
            if not value:
                raise ValueError(
                    f"max_rollout_lag is {self.max_rollout_lag}, but {key} is {value}: samples of "
                    "an older policy need the truncated correction with an explicit bound; set "
                    "vllm_importance_sampling_correction: true and "
                    "vllm_importance_sampling_clip_max: 2.0, or max_rollout_lag: 0"
                )
        if self.ignore_data_skip:
            raise ValueError(
                f"max_rollout_lag is {self.max_rollout_lag}, but ignore_data_skip is true: a "
                "resumed run must continue the order of its batches; leave ignore_data_skip out, "
                "or set max_rollout_lag: 0"
            )

    def _check_servers(self) -> None:
        """Addresses as an OpenAI client takes them, and waits that end before the ranks' own."""
        for key in ("policy_server", "reflection_server"):
            setattr(self, key, _one_or_several(key, getattr(self, key)))
        tries = self.request_retries + 1
        if (longest := tries * self.request_timeout + self.server_deadline) >= self.ddp_timeout:
            raise ValueError(
                f"request_timeout ({self.request_timeout:.0f}) x {tries} tries (request_retries + "
                f"1) + server_deadline ({self.server_deadline:.0f}) is {longest:.0f} seconds, but "
                f"ranks wait only ddp_timeout ({self.ddp_timeout}) for one that waits for its "
                "server; raise ddp_timeout above that, or lower the others"
            )

    @property
    def cut_rule(self) -> CutRule:
        """Which paragraph of a response is the last kept one."""
        return CutRule.of(vars(self))

    @property
    def reply_form(self) -> str:
        """Form in which the reflection model is asked for labels. Raises ValueError for one that
        it was not trained on."""
        assert self.reflection_model is not None, "it is asked for labels"
        return reply_form(self.reflection_reply, self.reflection_model)

    @property
    def policy_servers(self) -> list[str]:
        """Addresses of the policy servers, one or more."""
        return _as_list(self.policy_server)

    @property
    def reflection_servers(self) -> list[str]:
        """Addresses of the servers with the reflection model."""
        return _as_list(self.reflection_server)

    @property
    def rows_per_path(self) -> int:
        """Trained rows for each sampled response: itself, and its revision."""
        return 2 if self.revision and self.construction == "pairs" else 1

    @property
    def needs_labels(self) -> bool:
        """Whether the reflection model says where to cut."""
        return self.revision and self.construction != "serial"

    @property
    def num_serial_cuts(self) -> int:
        """Cuts of each response, which then are the rows of its prompt; 0 if all are sampled."""
        return self.num_generations - 1 if self.revision and self.construction == "serial" else 0


def _as_list(servers: str | list[str]) -> list[str]:
    return [servers] if isinstance(servers, str) else servers


def _one_or_several(key: str, servers: str | list[str]) -> str | list[str]:
    """Addresses, one as a text, several as a list. Raises ValueError for wrong ones and twins."""
    urls = _as_list(servers)
    check_urls(urls, key)
    return urls if len(urls) > 1 else urls[0]


class SupervisedKeys(SharedKeys, RowKeys):
    """Keys of the programs without rollouts; goes before TRL's class, and checks all of them."""

    program: ClassVar[str]
    refused: ClassVar[dict[str, str]]  # keys that must keep their default, and why

    def __post_init__(self):
        check_defaults(self, self.refused)
        check_values(self)
        check_best_metric(self, self.program)
        check_ranges(self)
        self.share_rows()
        super().__post_init__()  # type: ignore[misc]
        check_machine(self)


@dataclass
class REARLSFTConfig(SupervisedKeys, SFTConfig):
    """Training arguments of `rea_rl.sft`."""

    program, refused = "sft", SUPERVISED


@dataclass
class REARLDPOConfig(SupervisedKeys, DPOConfig):
    """Training arguments of `rea_rl.dpo`."""

    program, refused = "dpo", PREFERENCE


@dataclass
class SFTScriptArguments:
    """Prompt-completion rows to train and evaluate on: Hub datasets, or local files."""

    dataset_name: str = required(
        "Training rows: Hub id, or a file: JSON, JSON lines, CSV or Parquet, also in gzip."
    )
    dataset_train_split: str = option("train", "Split of a Hub dataset to train on.")
    dataset_config: str | None = option(None, "Configuration of a Hub dataset.")
    eval_dataset_name: str | None = option(None, "Evaluation rows, Hub id or file.")
    dataset_eval_split: str = option("test", "Split of a Hub dataset to evaluate on.")
    max_eval_rows: PositiveInt | None = option(None, "Evaluate on the first N rows only.")
    torch_threads: PositiveInt | None = option(None, "CPU threads of the trainer.")


PARTS = {  # of a program's recipe
    "grpo": (DataArguments, REARLConfig, ModelConfig),
    "sft": (SFTScriptArguments, REARLSFTConfig, ModelConfig),
    "dpo": (SFTScriptArguments, REARLDPOConfig, ModelConfig),
}
