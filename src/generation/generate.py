r"""Generate responses for a file of problems: vLLM on all visible GPUs or the CPU, or an
OpenAI-style server.

    python -m generation.generate --config recipes/generation/miniature.yaml \
        --qaf dataset/miniature/test.json \
        --model_dir model/Miniature-LRM --split math_cot --n_generate_sample 4
    python -m generation.generate --config recipes/generation/miniature.yaml \
        --qaf dataset/miniature/test.json \
        --model_dir model/Miniature-LRM --save_suffix _step40 --api \
        --api_base http://127.0.0.1:12345/v1 \
        --api_model policy-40

The splits are the stages: which rows are read, and what is asked of them; `generation/stages.py`
has them all.

Writes `output/<model>/<name>_<split><suffix>.json`: the rows of the stage with `responses`, each of
them `text`, `num_tokens` (end of sequence included), `finish_reason`, `prompt_thinking` (whether
the prompt had opened or closed a thinking, see `generation/rendering.py`), and with `logprobs` the
most likely tokens of every step. A text that was given the model to continue from (a cut thinking,
`[1].`) is part of the response, but not the `prefill` of all replies.

Several hosts answer a share of the rows each, `--shard 1/4`; the same command without it joins
them.

Finished rows are kept as they come. A killed run continues from there, and the seed of every
response is its own, so the file does not depend on the interruption.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from generation.api_worker import ask_server
from generation.arguments import GenerateArguments
from generation.generation_file import NO_ROOM, REFUSED, GenerationFile, Settings
from generation.markers import Markers, special_marker_ids
from generation.parallel import map_rows
from generation.provenance import read_settings, weights_digest
from generation.shards import Shard, join, shards_of
from generation.stages import SPLITS
from generation.tasks import Keep, Making, Respond, Task
from generation.unanswered import Unanswered, without_answer
from generation.vllm_worker import EngineError
from rea_core import moved
from rea_core.checks import check_output
from rea_core.clients import split_url
from rea_core.command import command
from rea_core.models import load_tokenizer
from rea_core.problems import problem_digest
from rea_core.recipe import RecipeParser
from rea_core.row_files import AnyRows, Row, Rows, digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


__getattr__ = moved.names_of(__name__)  # names that have left this module
logger = logging.getLogger(__name__)


def _tokenizer(args: GenerateArguments) -> PreTrainedTokenizerBase | None:
    """Tokenizer of `model_dir`; None for a name that only a server knows. The Hub is not asked."""
    if not args.api:
        return load_tokenizer(args.model_dir, "model_dir")
    folder, cause = args.model_dir, f"{args.model_dir} is only a name"
    if not Path(folder).is_dir():
        folder = _cached_folder(folder)
    try:
        if folder is not None:
            tokenizer = load_tokenizer(folder, "model_dir")
            _warn_of_hidden_markers(args, tokenizer)
            return tokenizer
    except ValueError as error:
        cause = str(error)
    if args.split == "math_cot":  # the thinking of a judge does not matter
        logger.warning(
            "api: %s, so it is unknown whether a prompt opens the thinking: "
            "responses say it by <think> and </think>. Name the model's folder as model_dir to "
            "have it known",
            cause,
        )
    return None


def _warn_of_hidden_markers(args: GenerateArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    markers = Markers.of(vars(args), tokenizer)
    if args.split == "math_cot" and special_marker_ids(tokenizer, markers):
        logger.warning(
            "api: %r and %r are special tokens of %s, which servers leave out of a reply; let the "
            "server return the thinking apart (vLLM: a reasoning parser), or no end of it is found",
            *(markers.think_start, markers.think_end, args.model_dir),
        )


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
    """Raise ValueError for a model or adapter that no engine could load, or too large a context."""
    from rea_core.model_files import check_files
    from rea_core.models import LORA_RANKS, check_adapter, check_context, check_model

    check_model(args.model_dir)
    if (
        args.lora
        and (rank := check_adapter(args.model_dir, args.lora).get("r", 8)) > LORA_RANKS[-1]
    ):
        raise ValueError(
            f"lora: {args.lora} has rank {rank}, but vLLM takes ranks up to {LORA_RANKS[-1]}; "
            "merge it"
        )
    check_context(args.model_dir, args.max_model_len)
    if args.lora:
        check_files(args.lora)


def generate(args: GenerateArguments, respond: Respond | None = None) -> Path:
    """Run a stage to its end; returns the final file. Does nothing if that exists.

    `respond` answers in place of engines and server.
    """
    check_output(args.output_path, "output_dir", (args.qaf,))
    if args.api:
        split_url(args.api_base, "api_base")
    elif respond is None:
        check_model_folder(args)
    rows = SPLITS[args.split].open(args)
    making = Making.of(args, _tokenizer(args) if respond is None else None)
    path, settings = args.output_path, _settings(args, rows, making)
    if args.shard and not path.exists():
        shard = Shard.read(args.shard)
        path, rows = shard.path(path), shard.of(rows)
        settings["shard"] = str(shard)
    with GenerationFile(path, settings) as output:
        if output.complete or not rows:
            logger.info("%s is complete", output.path)
            return output.path
        if not args.shard and (shards := shards_of(path)[: len(rows)]):
            join(output, shards, rows, args.split, partial(_makes_any, replace(making, model=None)))
            return output.path
        _answer(args, rows, making, output, respond)
        output.close()
    logger.info(
        "wrote %s: %d rows, %d tokens in this run",
        output.path,
        len(output.finished),
        output.num_tokens,
    )
    return output.path


def _makes_any(making: Making, row: Row) -> bool:
    return any(True for _ in making().prompts(row))


def _answer(
    args: GenerateArguments,
    rows: AnyRows,
    making: Making,
    output: GenerationFile,
    respond: Respond | None,
) -> None:
    """Keep the responses to all rows that lack them."""
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
        run.close()
        assert run.is_done and next(tasks, None) is None, "a task was left unanswered"


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
        self._unanswered = Unanswered(args, self._keep, bool(output.finished))

    @property
    def is_done(self) -> bool:
        """Whether all tasks that were made are answered."""
        return not self._open

    def unanswered(self, rows: AnyRows, making: Making) -> Iterator[Task]:
        """Tasks to be asked, made while the first ones are answered; others are kept at once."""
        index = 0
        for read, tasks in enumerate(
            map_rows(Making.tasks, rows, making, self._args.num_workers), 1
        ):
            self._bar.total = round((index + len(tasks)) * len(rows) / read)
            for task in tasks:
                if index not in self._output.finished:
                    self._open[index] = task = replace(task, index=index)
                    if task.prompt.responses is not None:
                        self.keep(index, task.prompt.responses)
                    elif task.refusal:
                        self.keep(index, without_answer(self._args, REFUSED, task.refusal))
                    else:
                        yield task
                index += 1

    def keep(self, index: int, responses: list[Row]) -> None:
        """Keep the responses to a task, and what is known of its prompt.

        Raises ValueError, with a server ConnectionError, if too many rows in a row get no answer.
        """
        with self._lock:
            task = self._open[index]
            is_asked = task.prompt.responses is None
            if is_asked and "cause" in responses[0]:
                self._unanswered.leave(index, task.row["id"], responses)
                return
            self._keep(index, responses)
            if is_asked:
                self._unanswered.answered()

    def close(self) -> None:
        """Keep the rows that get no answer. Raises as `keep` if all are refused."""
        with self._lock:
            self._unanswered.close()

    def _keep(self, index: int, responses: list[Row]) -> None:
        task, args = self._open.pop(index), self._args
        is_asked = args.split == "math_cot" and task.prompt.responses is None
        markers = task.markers.column
        known = markers | ({"prompt_thinking": task.rendered.thinking} if task.rendered else {})
        asked = args.prompt_format.record | markers.get("markers", {})
        columns: Row = {}
        if is_asked:
            columns = {"prompt_format": asked, "answered_by": self._output.model}
            columns["problem_digest"] = problem_digest(task.row["problem"])
        self._output.append(
            index, {**task.row, **columns, "responses": [{**r, **known} for r in responses]}
        )
        self._output.num_tokens += sum(response["num_tokens"] for response in responses)
        # 0 if TQDM_DISABLE is set
        rate = self._output.num_tokens / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update()


def _settings(args: GenerateArguments, rows: AnyRows, making: Making) -> Settings:
    """Everything that the output depends on: arguments, rows, weights, and the form of a prompt."""
    speed_only = (  # and how requests are made
        "n_gpu compile max_num_seqs gpu_memory_utilization kv_cache_gib api_base api_key_env "
        "max_concurrent_requests request_timeout request_retries output_dir num_workers shard "
        "max_unanswered"
    ).split()
    settings = {key: value for key, value in asdict(args).items() if key not in speed_only}
    making = replace(making, model=None)()
    settings["input_digest"] = rows.digest if isinstance(rows, Rows) else digest(map(repr, rows))
    settings["first_prompt"] = digest(map(repr, making.prompts(rows[0])))
    # of an earlier version, which made all prompts before it asked any
    if "prompts" in read_settings(args.output_path):
        prompts = (prompt for row in rows for prompt in making.prompts(row))
        settings["prompts"] = digest(f"{prompt.row['id']} {prompt}" for prompt in prompts)
    settings["model_digest"] = None if args.api else weights_digest(args.model_dir)
    if args.lora:
        from rea_core.models import adapter_digest

        settings["lora_digest"] = adapter_digest(args.lora)
    return settings


def _run_engines(args: GenerateArguments, tasks: Iterator[Task], keep: Keep) -> None:
    """Run the tasks on engines of our own, one per `n_gpu` GPUs."""
    from generation.vllm_worker import EngineTask, run_engines
    from rea_core.checks import check_sockets
    from rea_core.models import context_of

    check_sockets()

    given: dict[int, tuple[str, int]] = {}  # of open tasks: begin of the reply, and its tokens
    context = args.max_model_len or context_of(args.model_dir)

    def with_room() -> Iterator[EngineTask]:
        for task in tasks:
            if context and len(task.prompt_ids) >= context:
                cause = f"{len(task.prompt_ids)} tokens leave no room in max_model_len ({context})"
                keep(task.index, without_answer(args, NO_ROOM, cause))
            else:
                given[task.index] = task.prompt.prefill, task.num_given
                yield EngineTask(task.index, task.prompt_ids, task.seeds(args))

    engine_tasks = with_room()
    if (first := next(engine_tasks, None)) is not None:
        for index, responses in run_engines(chain([first], engine_tasks), args):
            text, num_given = given.pop(index)
            if "cause" not in responses[0]:
                responses = [
                    {**r, "text": text + r["text"], "num_tokens": num_given + r["num_tokens"]}
                    for r in responses
                ]
            keep(index, responses)


@command(ConnectionError, EngineError)
def main(argv: list[str] | None = None) -> None:
    """Exit code 0 with the file complete, 1 with one line on stderr for a mistake."""
    (args,) = RecipeParser(GenerateArguments).parse_args_and_config(argv)
    generate(args)


if __name__ == "__main__":
    main()
