"""Generate responses for a file of problems: vLLM on all visible GPUs or the CPU, or an
OpenAI-style server.

    python -m generation.generate --config recipes/generation/miniature.yaml \
        --qaf dataset/miniature/test.json \
        --model_dir model/Miniature-LRM --split math_cot --n_generate_sample 4
    python -m generation.generate --config recipes/generation/miniature.yaml \
        --qaf dataset/miniature/test.json \
        --model_dir model/Miniature-LRM --save_suffix _step40 --api \
        --api_base http://127.0.0.1:12345/v1 \
        --api_model policy-40

The splits are the stages: which rows are read, and what is asked of them; `generation/splits.py`
has them all.

Writes `output/<model>/<name>_<split><suffix>.json`: the rows of the stage with `responses`, each of
them `text`, `num_tokens` (end of sequence included), `finish_reason`, `prompt_thinking` (whether
the prompt had opened or closed a thinking, see `generation/rendering.py`), and with `logprobs` the
most likely tokens of every step. A text that was given the model to continue from (a cut thinking,
`[1].`) is part of the response, but not the `prefill` of all replies.

Finished rows are kept as they come. A killed run goes on where it stopped, and the seed of every
response is its own, so the file does not depend on the interruption.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from generation.api_worker import ask_server
from generation.parallel import Shared, map_rows
from generation.prompts import MATH_COT
from generation.provenance import read_settings, weights_digest
from generation.rendering import PromptFormat, RenderedPrompt, encode_continuation, encode_text
from generation.segments import check_paragraph_tokens
from generation.splits import LABELING_SPLITS, SPLITS, Prompt
from generation.utils import (
    NO_ROOM,
    GenerationFile,
    Row,
    Rows,
    check_numbers,
    check_output,
    digest,
    sample_seed,
)
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
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; it must be one of {', '.join(SPLITS)}")
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


@dataclass(frozen=True)
class Task:
    """One prompt, and one row of the output."""

    index: int  # place in the output
    prompt: Prompt
    # None where nothing is asked, and where no tokenizer is known
    rendered: RenderedPrompt | None = None
    # Ids of the prompt with the begin of the reply, and the number of the latter; for engines only.
    prompt_ids: list[int] | None = None
    num_given: int = 0

    @property
    def row(self) -> Row:
        """The output's columns beside `responses`."""
        return self.prompt.row

    def seeds(self, args: GenerateArguments) -> list[int | None]:
        """One sampling seed per response, or None for each."""
        if args.seed is None:
            return [None] * args.n_generate_sample
        return [
            sample_seed(args.seed, self.row["id"], sample)
            for sample in range(args.n_generate_sample)
        ]


# Makes the responses of tasks, which come as they are made, and hands over each task's as soon as
# they are all there.
Respond = Callable[[GenerateArguments, Iterator[Task], Keep], None]


@dataclass(frozen=True)
class Making:
    """What a process needs to make tasks; it is called there, for its tokenizers.

    Args:
        args: of the command.
        paragraphs: tokenizer that counts the tokens of paragraphs; None where there are none.
        model: tokenizer of the prompts; None where they are not rendered.
    """

    args: GenerateArguments
    paragraphs: Shared | PreTrainedTokenizerBase | None
    model: Shared | PreTrainedTokenizerBase | None = None

    @classmethod
    def of(cls, args: GenerateArguments, tokenizer: PreTrainedTokenizerBase | None) -> Making:
        """For the split of a command, whose tokenizers are loaded here so that a mistake shows
        at once."""
        paragraphs = None
        if args.split in LABELING_SPLITS:
            paragraphs = Shared(load_tokenizer(args.paragraph_tokenizer, "paragraph_tokenizer"))
        return cls(args, paragraphs, Shared(tokenizer) if tokenizer else None)

    def __call__(self) -> Making:
        return replace(
            self,
            paragraphs=self.paragraphs and self.paragraphs(),
            model=self.model and self.model(),
        )

    def prompts(self, row: Row) -> Iterable[Prompt]:
        """Prompts of a row."""
        return SPLITS[self.args.split].prompts(self.args, row, self.paragraphs)

    def tasks(self, rows: Iterable[Row]) -> list[list[Task]]:
        """Tasks of each row, as the model sees them where its tokenizer is known. Their indices
        are still 0."""
        return [[self._render(Task(0, prompt)) for prompt in self.prompts(row)] for row in rows]

    def _render(self, task: Task) -> Task:
        if self.model is None or task.prompt.responses is not None:
            return task
        (task,) = render_tasks(self.args, [task], self.model)
        if self.args.api:
            return task
        # What the model goes on from is encoded by itself, as in training, where it is sampled or a
        # completion.
        given = encode_continuation(task.prompt.prefill, self.model)
        return replace(
            task,
            prompt_ids=encode_text(task.rendered.text, self.model) + given,
            num_given=len(given),
        )


def build_tasks(args: GenerateArguments) -> list[Task]:
    """Tasks of the stage for all rows of `qaf`, not yet rendered and all in memory.

    Raises ValueError naming file and row of a malformed one.
    """
    rows, making = SPLITS[args.split].open(args), Making.of(args, None)()
    return [
        Task(index, prompt)
        for index, prompt in enumerate(prompt for row in rows for prompt in making.prompts(row))
    ]


def render_tasks(
    args: GenerateArguments, tasks: list[Task], tokenizer: PreTrainedTokenizerBase | None
) -> list[Task]:
    """Tasks with their prompts as the model sees them, also those that a server renders by itself.

    Without a tokenizer they stay as they are. Raises ValueError naming file and row of messages
    that the model's template refuses.
    """
    if tokenizer is None:
        return tasks
    rendered = []
    for task in tasks:
        try:
            prompt = args.prompt_format.render(task.prompt.messages, tokenizer)
        except ValueError as error:
            raise ValueError(f"{args.qaf}: row {task.row['id']!r}: {error}") from error
        rendered.append(replace(task, rendered=prompt))
    return rendered


def _tokenizer(args: GenerateArguments) -> PreTrainedTokenizerBase | None:
    """Tokenizer of `model_dir`; None for a name that only a server knows. The Hub is not asked
    for such names."""
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
            "api: %s, so what a prompt does to the thinking is not known and counts as unknown: "
            "responses say it by <think> and </think>. Name the model's folder as model_dir to "
            "have it known",
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
    """Raise ValueError for a model or adapter that no engine could load, or a context beyond the
    model's own."""
    from rea_rl.merge_lora import check_adapter
    from rea_rl.model_files import check_files
    from rea_rl.vllm_server import LORA_RANKS, check_context, check_model

    check_model(args.model_dir)
    if args.lora and (rank := check_adapter(args.model_dir, args.lora)["r"]) > LORA_RANKS[-1]:
        raise ValueError(
            f"lora: {args.lora} has rank {rank}, but vLLM takes ranks up to {LORA_RANKS[-1]}; "
            "merge it"
        )
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
    rows = SPLITS[args.split].open(args)
    making = Making.of(args, _tokenizer(args) if respond is None else None)
    output = GenerationFile(args.output_path, _settings(args, rows, making))
    if output.complete:
        logger.info("%s is complete", output.path)
        return output.path
    with tqdm(
        initial=len(output.finished), desc=output.path.name, unit="row", mininterval=1.0
    ) as bar:
        run = _Run(args, output, bar)
        tasks = run.unanswered(rows, making)
        if (first := next(tasks, None)) is not None:
            if respond is None:
                respond = (
                    partial(ask_server, tokenizer=making().model) if args.api else _run_engines
                )
            respond(args, chain([first], tasks), run.keep)
        assert run.is_done and next(tasks, None) is None, "a task was left unanswered"
    output.close()
    logger.info(
        "wrote %s: %d rows, %d tokens in this run",
        output.path,
        len(output.finished),
        output.num_tokens,
    )
    return output.path


class _Run:
    """The tasks that are made and not yet answered, and what becomes of them.

    Args:
        args: of the command.
        output: keeps rows as they come.
        bar: shows them; how many there will be is told from the share of the input that was read.
    """

    def __init__(self, args: GenerateArguments, output: GenerationFile, bar: tqdm):
        self._args, self._output, self._bar = args, output, bar
        self._open: dict[int, Task] = {}
        self._lock = threading.Lock()  # tasks may be made in another thread than they are kept

    @property
    def is_done(self) -> bool:
        """Whether all tasks that were made are answered."""
        return not self._open

    def unanswered(self, rows: Rows | list[Row], making: Making) -> Iterator[Task]:
        """Tasks that are to be asked, made while the first ones are answered. What needs no
        answer is kept at once."""
        index = 0
        for read, tasks in enumerate(
            map_rows(Making.tasks, rows, making, self._args.num_workers), 1
        ):
            self._bar.total = round((index + len(tasks)) * len(rows) / read)
            for task in tasks:
                if index not in self._output.finished:
                    self._open[index] = task = replace(task, index=index)
                    if task.prompt.responses is None:
                        yield task
                    else:
                        self.keep(index, task.prompt.responses)
                index += 1

    def keep(self, index: int, responses: list[Row]) -> None:
        """Keep the responses to a task, and what is known of its prompt."""
        with self._lock:
            self._keep(self._open.pop(index), index, responses)

    def _keep(self, task: Task, index: int, responses: list[Row]) -> None:
        args = self._args
        is_asked = args.split == "math_cot" and task.prompt.responses is None
        columns = {"prompt_format": args.prompt_format.record} if is_asked else {}
        known = {"prompt_thinking": task.rendered.thinking} if task.rendered else {}
        self._output.append(
            index, {**task.row, **columns, "responses": [{**r, **known} for r in responses]}
        )
        self._output.num_tokens += sum(response["num_tokens"] for response in responses)
        # 0 where TQDM_DISABLE is set
        rate = self._output.num_tokens / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update()


def _settings(args: GenerateArguments, rows: Rows | list[Row], making: Making) -> dict[str, Any]:
    """What the output depends on: arguments, the rows that are read, the weights, and how a
    prompt is made of a row."""
    speed_only = (
        "n_gpu",
        "compile",
        "max_num_seqs",
        "gpu_memory_utilization",
        "kv_cache_gib",
        "api_base",
        "api_key_env",
    )
    requests_only = (
        "max_concurrent_requests",
        "request_timeout",
        "request_retries",
        "output_dir",
        "num_workers",
    )
    settings = {
        key: value for key, value in asdict(args).items() if key not in speed_only + requests_only
    }
    making = replace(making, model=None)()
    settings["input_digest"] = rows.digest if isinstance(rows, Rows) else digest(map(repr, rows))
    settings["first_prompt"] = digest(map(repr, making.prompts(rows[0])))
    # of an earlier version, which made all prompts before it asked any
    if "prompts" in read_settings(args.output_path):
        prompts = (prompt for row in rows for prompt in making.prompts(row))
        settings["prompts"] = digest(f"{prompt.row['id']} {prompt}" for prompt in prompts)
    settings["model_digest"] = None if args.api else weights_digest(args.model_dir)
    if args.lora:
        from rea_rl.merge_lora import adapter_digest

        settings["lora_digest"] = adapter_digest(args.lora)
    return settings


def _run_engines(args: GenerateArguments, tasks: Iterator[Task], keep: Keep) -> None:
    """Run the tasks on engines of our own, one per `n_gpu` GPUs."""
    from generation.vllm_worker import EngineTask, run_engines

    given: dict[int, tuple[str, int]] = {}  # of open tasks: begin of the reply, and its tokens
    num_without_room = 0

    def with_room() -> Iterator[EngineTask]:
        nonlocal num_without_room
        for task in tasks:
            if args.max_model_len and len(task.prompt_ids) >= args.max_model_len:
                num_without_room += 1
                unasked = {"text": "", "num_tokens": 0, "finish_reason": NO_ROOM, "logprobs": []}
                keep(task.index, [unasked] * args.n_generate_sample)
            else:
                given[task.index] = task.prompt.prefill, task.num_given
                yield EngineTask(task.index, task.prompt_ids, task.seeds(args))

    engine_tasks = with_room()
    if (first := next(engine_tasks, None)) is not None:
        for index, responses in run_engines(chain([first], engine_tasks), args):
            text, num_given = given.pop(index)
            keep(
                index,
                [
                    {**r, "text": text + r["text"], "num_tokens": num_given + r["num_tokens"]}
                    for r in responses
                ],
            )
    if num_without_room:
        logger.warning(
            "%s: %d prompts leave no room in max_model_len (%d tokens); they count as unanswered",
            *(args.qaf, num_without_room, args.max_model_len),
        )


def main(argv: list[str] | None = None) -> None:
    """Exit code 0 with the file complete, 1 with one line on stderr for a mistake in the
    arguments, rows or server."""
    setup_logging()
    try:
        (args,) = RecipeParser(GenerateArguments).parse_args_and_config(argv)
        generate(args)
    except (ValueError, ConnectionError, EngineError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
