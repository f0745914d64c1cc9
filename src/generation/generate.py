"""Generate responses for a file of problems: vLLM on all visible GPUs or the CPU, or an OpenAI-style server.

    python -m generation.generate --config recipes/generation/miniature.yaml --qaf dataset/miniature/test.json \
        --model_dir model/Miniature-LRM --split math_cot --n_generate_sample 4
    python -m generation.generate --config recipes/generation/miniature.yaml --qaf dataset/miniature/test.json \
        --model_dir model/Miniature-LRM --save_suffix _step40 --api --api_base http://127.0.0.1:12345/v1 \
        --api_model policy-40

The splits are the stages: which rows are read, and what is asked of them; `generation/splits.py` has them all.

Writes `output/<model>/<name>_<split><suffix>.json`: the rows of the stage with `responses`, each of them `text`,
`num_tokens` (end of sequence included), `finish_reason`, `prompt_thinking` (whether the prompt had opened or closed a
thinking, see `generation/rendering.py`), and with `logprobs` the most likely tokens of every step. A text that was given
the model to continue from (a cut thinking, `[1].`) is part of the response, but not the `prefill` of all replies.

Finished rows are kept as they come. A killed run goes on where it stopped, and the seed of every response is its own, so
the file does not depend on the interruption.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from generation.api_worker import ask_server
from generation.prompts import MATH_COT
from generation.provenance import weights_digest
from generation.rendering import PromptFormat, RenderedPrompt, encode_continuation, encode_text
from generation.segments import check_paragraph_tokens
from generation.splits import LABELING_SPLITS, SPLITS, Prompt
from generation.utils import NO_ROOM, GenerationFile, Row, check_numbers, check_output, digest, sample_seed
from generation.vllm_worker import EngineError
from rea_rl.clients import split_url
from rea_rl.recipe import RecipeParser
from rea_rl.utils import load_tokenizer, setup_logging
from rea_rl.vllm_server import DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Keep = Callable[[int, list[Row]], None]  # takes the index of a task and its responses

# Arguments whose numbers have a range.
POSITIVE = (
    *("qaf_limit", "chunk_tokens", "top_p", "max_tokens", "logprobs", "n_gpu", "max_model_len", "max_num_seqs"),
    *("gpu_memory_utilization", "kv_cache_gib", "max_concurrent_requests", "request_timeout"),
)
NOT_NEGATIVE = ("temperature", "seed", "request_retries")
SHARES = ("top_p", "gpu_memory_utilization")


@dataclass
class GenerateArguments:
    """Recipe keys and flags of `generation.generate`."""

    # Input and output
    qaf: str = field(metadata={"help": "Rows of the stage: .json or .jsonl file, or for math_cot a Hub dataset."})
    model_dir: str = field(metadata={"help": "Model: folder or Hub id; with --api only its name, for the output."})
    split: str = field(default="math_cot", metadata={"help": "Stage, that is, which prompts are made of the rows."})
    lora: str | None = field(default=None, metadata={"help": "Folder of a LoRA adapter of the model."})
    save_suffix: str = field(default="", metadata={"help": "Appended to the name of the output file."})
    output_dir: str = field(default="output", metadata={"help": "Outputs go to <output_dir>/<model>/."})
    qaf_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    qaf_limit: int | None = field(default=None, metadata={"help": "Use the first N rows only."})
    problem_column: str | None = field(
        default=None, metadata={"help": "Column with the problem; default: 'problem', else 'question'."}
    )
    answer_column: str = field(default="answer", metadata={"help": "Column with the gold answer."})
    prompt_template: str = field(
        default=MATH_COT, metadata={"help": "User message; {problem} is replaced, other braces are written twice."}
    )

    system_prompt: str | None = field(default=None, metadata={"help": "System message before the problem."})
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keywords of the model's chat template, as JSON: '{\"enable_thinking\": false}'."}
    )
    prefill: str = field(
        default="", metadata={"help": "Begin of every reply, from which the model continues; part of the prompt."}
    )

    # Labelling
    paragraph_tokenizer: str | None = field(
        default=None, metadata={"help": "Model that wrote the paths; its tokenizer counts the paragraphs' tokens."}
    )
    paragraph_min_tokens: int = field(default=32, metadata={"help": "Tokens that a paragraph has at least."})
    paragraph_max_tokens: int = field(default=128, metadata={"help": "Tokens before which a paragraph is closed."})
    chunk_tokens: int = field(default=1024, metadata={"help": "Tokens of the paragraphs that the judge sees at once."})

    # Sampling
    n_generate_sample: int = field(default=1, metadata={"help": "Responses per prompt."})
    temperature: float = field(default=0.6, metadata={"help": "0 is greedy."})
    top_p: float = field(default=0.95, metadata={"help": "Share of the probability that is sampled from."})
    max_tokens: int = field(default=16384, metadata={"help": "Most tokens of a response."})
    logprobs: int | None = field(
        default=None, metadata={"help": "Also write the N most likely tokens of every step; 'labeling' needs them."}
    )
    seed: int | None = field(
        default=0,
        metadata={"help": "Seed from which every response has its own; empty: none, which makes engines twice as fast."},
    )

    # Engine
    n_gpu: int = field(default=1, metadata={"help": "GPUs per engine; there are as many engines as GPUs allow."})
    max_model_len: int | None = field(default=None, metadata={"help": "Context in tokens; default: the model's."})
    max_num_seqs: int = field(default=256, metadata={"help": "Responses that an engine works on at once."})
    gpu_memory_utilization: float = field(default=0.9, metadata={"help": "Share of a GPU's memory for an engine."})
    compile: bool = field(
        default=True, metadata={"help": "On GPUs: compile the model; false: start a minute sooner, for short jobs."}
    )
    kv_cache_gib: int = field(default=1, metadata={"help": "On the CPU: GiB of an engine's key-value cache."})
    dtype: str = field(default="auto", metadata={"help": "Type of the weights; auto: as they are stored."})

    # Server
    api: bool = field(default=False, metadata={"help": "Ask an OpenAI-style server, and start no engine."})
    api_base: str | None = field(default=None, metadata={"help": "Its address, such as http://127.0.0.1:12345/v1."})
    api_model: str | None = field(default=None, metadata={"help": "Name of the model or adapter it serves."})
    api_key_env: str = field(
        default="VLLM_API_KEY", metadata={"help": "Environment variable with the server's key; unset: no key."}
    )
    max_concurrent_requests: int = field(default=128, metadata={"help": "Open requests."})
    request_timeout: float = field(default=1800.0, metadata={"help": "Seconds before a request is given up."})
    request_retries: int = field(default=2, metadata={"help": "Retries of a failed request before the run stops."})

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; it must be one of {', '.join(SPLITS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        check_numbers(vars(self), positive=POSITIVE, not_negative=NOT_NEGATIVE, shares=SHARES)
        check_paragraph_tokens(self.paragraph_min_tokens, self.paragraph_max_tokens)
        if self.n_generate_sample < 1:
            raise ValueError(f"n_generate_sample is {self.n_generate_sample}; it must be at least 1")
        if self.n_generate_sample > 1 and self.temperature == 0:
            raise ValueError(
                f"n_generate_sample is {self.n_generate_sample} at temperature 0, which gives the same response each "
                "time; raise the temperature or ask for one"
            )
        if self.api and not (self.api_base and self.api_model):
            raise ValueError(f"api needs api_base and api_model, which are {self.api_base!r} and {self.api_model!r}")
        if self.api and self.lora:
            raise ValueError(f"lora ({self.lora!r}) is for engines; with api give the name of a served one: api_model")
        self._check_labeling()
        self._check_prompts()

    def _check_labeling(self) -> None:
        if self.split in LABELING_SPLITS and not self.paragraph_tokenizer:
            raise ValueError(f"split {self.split} needs paragraph_tokenizer: name the model that wrote the paths")
        if self.split == "labeling" and not self.logprobs:
            raise ValueError("split labeling needs logprobs, from which P(Result) is read; give --logprobs 5")
        if self.api and (self.logprobs or self.split == "labeling"):
            raise ValueError("api gives neither log-probs nor a begun reply; leave out api for split labeling")

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
                raise ValueError(f"{key} is {value!r}, but split {self.split} has prompts of its own; leave it out")
        if self.api and self.prefill:
            raise ValueError(f"prefill is {self.prefill!r}, but api cannot begin a reply; leave one of them out")
        self.prompt_format  # noqa: B018 - raises for what no prompt can have

    @property
    def prompt_format(self) -> PromptFormat:
        """How problems become prompts."""
        return PromptFormat.of(vars(self))

    @property
    def output_path(self) -> Path:
        """Final file; `<model>` and `<name>` are the last parts of `model_dir` and `qaf`, without extension."""
        model, name = Path(self.model_dir).name, Path(self.qaf).name.removesuffix(".json").removesuffix(".jsonl")
        return Path(self.output_dir) / model / f"{name}_{self.split}{self.save_suffix}.json"


@dataclass(frozen=True)
class Task:
    """One prompt, and one row of the output."""

    index: int  # place in the output
    prompt: Prompt
    rendered: RenderedPrompt | None = None  # None before it is asked, and where no tokenizer is known

    @property
    def row(self) -> Row:
        """The output's columns beside `responses`."""
        return self.prompt.row

    def seeds(self, args: GenerateArguments) -> list[int | None]:
        """One sampling seed per response, or None for each."""
        if args.seed is None:
            return [None] * args.n_generate_sample
        return [sample_seed(args.seed, self.row["id"], sample) for sample in range(args.n_generate_sample)]


# Makes the responses of tasks and hands over each task's as soon as they are all there.
Respond = Callable[[GenerateArguments, list[Task], Keep], None]


def build_tasks(args: GenerateArguments) -> list[Task]:
    """Prompts of the stage for all rows of `qaf`. Raises ValueError naming file and row of a malformed one."""
    prompts = SPLITS[args.split](args)
    if args.api and any(prompt.prefill for prompt in prompts):
        raise ValueError(f"{args.qaf}: rows with a prefix go on from a begun reply, which api cannot; leave it out")
    return [Task(index, prompt) for index, prompt in enumerate(prompts)]


def render_tasks(
    args: GenerateArguments, tasks: list[Task], tokenizer: PreTrainedTokenizerBase | None
) -> list[Task]:
    """Tasks with their prompts as the model sees them, also those that a server renders by itself.

    Without a tokenizer they stay as they are. Raises ValueError naming file and row of messages that the model's template
    refuses.
    """
    if tokenizer is None:
        return tasks
    rendered = []
    for task in tasks:
        try:
            prompt = args.prompt_format.render(task.prompt.messages, tokenizer)
        except ValueError as error:
            raise ValueError(f"{args.qaf}: row {task.index} ({task.row['id']!r}): {error}") from error
        rendered.append(replace(task, rendered=prompt))
    return rendered


def _tokenizer(args: GenerateArguments) -> PreTrainedTokenizerBase | None:
    """Tokenizer of `model_dir`; None for a name that only a server knows. The Hub is not asked for such names."""
    if not args.api:
        return load_tokenizer(args.model_dir, "model_dir")
    folder, cause = args.model_dir, f"{args.model_dir} is only a name"
    if not Path(folder).is_dir():
        folder = _cached_folder(folder)
    try:
        if folder is not None:
            return load_tokenizer(folder, "model_dir")
    except ValueError as error:
        cause = str(error)
    if args.split == "math_cot":  # what the thinking of a judge is does not matter
        logger.warning(
            "api: %s, so what a prompt does to the thinking is not known and counts as unknown: responses say it by "
            "<think> and </think>. Name the model's folder as model_dir to have it known",
            cause,
        )
    return None


def _cached_folder(name: str) -> str | None:
    """Folder of a model that was loaded from the Hub before, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(name, "tokenizer_config.json")
    except HFValidationError:  # a path, or a name that the Hub does not allow
        return None
    return str(Path(file).parent) if isinstance(file, str) else None


def check_model_folder(args: GenerateArguments) -> None:
    """Raise ValueError for a model or adapter that no engine could load, or a context beyond the model's own."""
    from rea_rl.merge_lora import check_adapter
    from rea_rl.model_files import check_files
    from rea_rl.vllm_server import LORA_RANKS, check_context, check_model

    check_model(args.model_dir)
    if args.lora and (rank := check_adapter(args.model_dir, args.lora)["r"]) > LORA_RANKS[-1]:
        raise ValueError(f"lora: {args.lora} has rank {rank}, but vLLM takes ranks up to {LORA_RANKS[-1]}; merge it")
    check_context(args.model_dir, args.max_model_len)
    if args.lora:
        check_files(args.lora)


def generate(args: GenerateArguments, respond: Respond | None = None) -> Path:
    """Run a stage to its end; returns the final file. Does nothing if that is there already.

    `respond` answers in place of engines and server.
    """
    check_output(args.output_path, "output_dir", (args.qaf,))
    if args.api:
        split_url(args.api_base, "api_base")
    elif respond is None:
        check_model_folder(args)
    tasks = build_tasks(args)
    output = GenerationFile(args.output_path, _settings(args, tasks))
    if output.complete:
        logger.info("%s is complete", output.path)
        return output.path
    missing = [task for task in tasks if task.index not in output.finished]
    unanswered = [task for task in missing if task.prompt.responses is None]
    if respond is None and unanswered:
        tokenizer = _tokenizer(args)
        unanswered = render_tasks(args, unanswered, tokenizer)
        respond = partial(ask_server if args.api else _run_engines, tokenizer=tokenizer)
    with tqdm(total=len(tasks), initial=len(output.finished), desc=output.path.name, unit="row", mininterval=1.0) as bar:
        keep = partial(_keep, args, output, {task.index: task for task in [*missing, *unanswered]}, bar)
        for task in missing:
            if task.prompt.responses is not None:
                keep(task.index, task.prompt.responses)
        if unanswered:
            respond(args, unanswered, keep)
    output.close()
    logger.info("wrote %s: %d rows, %d tokens in this run", output.path, len(tasks), output.num_tokens)
    return output.path


def _keep(
    args: GenerateArguments, output: GenerationFile, tasks: dict[int, Task], bar: tqdm, index: int, responses: list[Row]
) -> None:
    """Keep the responses to a task, and what is known of its prompt."""
    task = tasks[index]
    is_asked = args.split == "math_cot" and task.prompt.responses is None
    columns = {"prompt_format": args.prompt_format.record} if is_asked else {}
    known = {"prompt_thinking": task.rendered.thinking} if task.rendered else {}
    output.append(index, {**task.row, **columns, "responses": [{**response, **known} for response in responses]})
    output.num_tokens += sum(response["num_tokens"] for response in responses)
    rate = output.num_tokens / max(bar.format_dict["elapsed"], 1e-9)  # 0 where TQDM_DISABLE is set
    bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
    bar.update()


def _settings(args: GenerateArguments, tasks: list[Task]) -> dict[str, Any]:
    """What the output depends on."""
    speed_only = ("n_gpu", "compile", "max_num_seqs", "gpu_memory_utilization", "kv_cache_gib", "api_base", "api_key_env")
    requests_only = ("max_concurrent_requests", "request_timeout", "request_retries", "output_dir")
    settings = {key: value for key, value in asdict(args).items() if key not in speed_only + requests_only}
    settings["prompts"] = digest(f"{task.row['id']} {task.prompt}" for task in tasks)
    settings["model_digest"] = None if args.api else weights_digest(args.model_dir)
    if args.lora:
        from rea_rl.merge_lora import adapter_digest

        settings["lora_digest"] = adapter_digest(args.lora)
    return settings


def _run_engines(
    args: GenerateArguments, tasks: list[Task], keep: Keep, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Run the tasks on engines of our own, one per `n_gpu` GPUs."""
    from generation.vllm_worker import EngineTask, run_engines

    prefill_ids = {task.index: encode_continuation(task.prompt.prefill, tokenizer) for task in tasks}
    texts = {task.index: task.prompt.prefill for task in tasks}
    engine_tasks = []
    for task in tasks:
        # What the model goes on from is encoded by itself, as in training, where it is sampled or a completion.
        prompt_ids = encode_text(task.rendered.text, tokenizer) + prefill_ids[task.index]
        if args.max_model_len and len(prompt_ids) >= args.max_model_len:
            unasked = {"text": "", "num_tokens": 0, "finish_reason": NO_ROOM, "logprobs": []}
            keep(task.index, [unasked] * args.n_generate_sample)
        else:
            engine_tasks.append(EngineTask(task.index, prompt_ids, task.seeds(args)))
    if len(engine_tasks) < len(tasks):
        logger.warning(
            "%s: %d prompts leave no room in max_model_len (%d tokens); they count as unanswered",
            args.qaf,
            len(tasks) - len(engine_tasks),
            args.max_model_len,
        )
    if engine_tasks:
        for index, responses in run_engines(engine_tasks, args):
            given, num_given = texts[index], len(prefill_ids[index])
            whole = [{**r, "text": given + r["text"], "num_tokens": num_given + r["num_tokens"]} for r in responses]
            keep(index, whole)


def main(argv: list[str] | None = None) -> None:
    """Exit code 0 with the file complete, 1 with one line on stderr for a mistake in the arguments, rows or server."""
    setup_logging()
    try:
        (args,) = RecipeParser(GenerateArguments).parse_args_and_config(argv)
        generate(args)
    except (ValueError, ConnectionError, EngineError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
