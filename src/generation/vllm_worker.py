"""vLLM engines for offline generation: one process per group of GPUs, or one on the CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from generation.generation_file import REFUSED
from generation.markers import Markers, marker_decoder
from generation.parallel import end_with_parent
from generation.unanswered import without_answer
from rea_core.interruption import out_of_reach
from rea_core.models import load_tokenizer, resolve_dtype
from rea_core.row_files import Row

if TYPE_CHECKING:
    from vllm import LLMEngine

    from generation.arguments import GenerateArguments

# times `max_num_seqs` requests are given to an engine, so that none of its places is ever empty
AHEAD = 2

# Graphs for decoding are captured, but nothing is compiled: an engine starts a minute sooner and is
# a little slower.
FAST_START = {
    "mode": 0,
    "cudagraph_mode": "FULL_DECODE_ONLY",
    "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 768, 1024],
}


class EngineError(RuntimeError):
    """An engine ended before its work did; its own error is on stderr."""


@dataclass(frozen=True)
class EngineTask:
    """One prompt of token ids and the seeds of its responses."""

    index: int
    prompt_ids: list[int]
    seeds: list[int | None]


def device_groups(visible: list[str], n_gpu: int) -> list[list[str]]:
    """Split the visible GPUs into groups of `n_gpu`, one per engine; without GPUs one empty group,
    the CPU.

    >>> device_groups(["0", "1", "2"], 1)
    [['0'], ['1'], ['2']]

    Raises ValueError if there are fewer than `n_gpu`; GPUs that fill no group stay unused.
    """
    if not visible:
        return [[]]
    if len(visible) < n_gpu:
        raise ValueError(
            f"n_gpu is {n_gpu}, but only {len(visible)} GPUs are visible: {', '.join(visible)}"
        )
    return [visible[i : i + n_gpu] for i in range(0, len(visible) - n_gpu + 1, n_gpu)]


def run_engines(
    tasks: Iterator[EngineTask], args: GenerateArguments
) -> Iterator[tuple[int, list[Row]]]:
    """Responses of all tasks as (index, responses), in the order in which they finish.

    Tasks are taken as engines need them, so that the first ones are answered while others are still
    made.

    Raises EngineError if an engine ends before its work does; its own error is on stderr.
    """
    context = multiprocessing.get_context("spawn")
    # what an engine that is killed leaves is cleaned up by the tracker, which would say so
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    workers = {}
    for devices in device_groups(_visible_gpus(), args.n_gpu):
        receiver, results = context.Pipe(duplex=False)
        orders, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(args, devices, orders, results))
        with out_of_reach():
            process.start()
        results.close()  # the worker's copy is then the only one: its end closes the pipe
        orders.close()
        workers[receiver] = Worker(process, devices, sender)
    try:
        yield from _collect(workers, tasks)
    except BaseException:
        for worker in workers.values():
            worker.process.kill()  # at once, and silently
        raise
    finally:
        for worker in workers.values():
            worker.process.join()


class Worker(NamedTuple):
    """An engine's process, its GPUs, and the pipe through which it gets tasks."""

    process: Any
    devices: list[str]
    sender: Connection


def _collect(
    workers: dict[Connection, Worker], tasks: Iterator[EngineTask]
) -> Iterator[tuple[int, list[Row]]]:
    """Messages of workers: responses; how many tasks they want, and are sent; None at their end."""
    running = dict(workers)
    while running:
        for receiver in wait(list(running)):
            worker = running[receiver]
            try:
                message = receiver.recv()
                if isinstance(message, int):
                    worker.sender.send(list(islice(tasks, message)))
            except (EOFError, BrokenPipeError):
                worker.process.join()
                where = f"GPU {', '.join(worker.devices)}" if worker.devices else "the CPU"
                raise EngineError(
                    f"engine on {where} ended with code {worker.process.exitcode}; its error is "
                    "above"
                ) from None
            if message is None:
                del running[receiver]
            elif not isinstance(message, int):
                yield message


def _visible_gpus() -> list[str]:
    import torch

    count = torch.cuda.device_count()  # does not touch the GPUs
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    # these hide all
    if named and not count and not named.startswith("-") and named != "NoDevFiles":
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES is {named!r}, but torch sees no such GPU; correct it, leave it "
            "out, or make it empty for the CPU"
        )
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def _work(
    args: GenerateArguments, devices: list[str], orders: Connection, results: Connection
) -> None:
    """A worker's life: ask for tasks, send (index, responses) for each of them, then None."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ |= _environment(args, devices)
    engine = _start_engine(args, num_gpus=len(devices))
    tokenizer = load_tokenizer(args.model_dir, "model_dir")
    decode = marker_decoder(tokenizer, Markers.of(vars(args), tokenizer))
    if args.logprobs is None and decode is None:  # the engine leaves it to us, see `_submit`
        decode = partial(
            tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    responses: dict[str, dict[int, Row]] = {}
    for tasks in _orders(engine, args, orders, results):
        responses |= {str(task.index): {} for task in tasks}
        for index, cause in _submit(engine, tasks, args):
            del responses[str(index)]
            results.send((index, without_answer(args, REFUSED, cause)))
        for output in engine.step() if engine.has_unfinished_requests() else ():
            if output.finished:
                index, _, sample = output.request_id.partition("/")
                responses[index][int(sample)] = _response(output.outputs[0], decode)
                if len(responses[index]) == args.n_generate_sample:
                    done = responses.pop(index)
                    results.send((int(index), [done[i] for i in range(len(done))]))
    engine.engine_core.shutdown()
    results.send(None)


def _orders(
    engine: LLMEngine, args: GenerateArguments, orders: Connection, results: Connection
) -> Iterator[list[EngineTask]]:
    """New tasks before each step of an engine, mostly none; it ends when all are answered.

    An engine has at most `AHEAD` times the requests that it works on, in the order of the rows:
    their first ones are finished, and kept, while the last ones wait.
    """
    arrived: queue.SimpleQueue[list[EngineTask]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(orders, arrived), daemon=True).start()
    # tasks that were asked for and are not here yet; whether there may be others
    asked, more = 0, True
    while more or engine.has_unfinished_requests():
        tasks: list[EngineTask] = []
        missing = AHEAD * args.max_num_seqs - engine.get_num_unfinished_requests()
        if more and not asked and missing > 0:
            asked = -(-missing // args.n_generate_sample)
            results.send(asked)
        if asked and not (arrived.empty() and engine.has_unfinished_requests()):
            tasks = arrived.get()
            more, asked = len(tasks) == asked, 0
        if tasks or engine.has_unfinished_requests():
            yield tasks


def _receive(orders: Connection, arrived: queue.SimpleQueue[list[EngineTask]]) -> None:
    """Take tasks at once, so that neither side waits for the other to read."""
    with suppress(EOFError):
        while True:
            arrived.put(orders.recv())


def _environment(args: GenerateArguments, devices: list[str]) -> dict[str, str]:
    """Variables that vLLM reads when it is imported."""
    variables = {
        # The engine works in this process: this one has nothing else to do, and ends as a whole
        # when it is killed.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_NO_USAGE_STATS": "1",
    }
    if devices:
        return variables | {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
    # Threads that spin while they wait lose most of their speed as soon as anything else runs on
    # the machine.
    return variables | {
        "VLLM_CPU_KVCACHE_SPACE": str(args.kv_cache_gib),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _start_engine(args: GenerateArguments, num_gpus: int) -> LLMEngine:
    from vllm import EngineArgs, LLMEngine

    return LLMEngine.from_engine_args(
        EngineArgs(
            model=args.model_dir,
            dtype=resolve_dtype(args.dtype, "cuda" if num_gpus else "cpu"),
            tensor_parallel_size=max(num_gpus, 1),
            max_model_len=args.max_model_len,
            max_num_seqs=args.max_num_seqs,
            gpu_memory_utilization=args.gpu_memory_utilization,
            enforce_eager=not num_gpus,  # compiling takes longer than it saves on a CPU
            **({"compilation_config": FAST_START} if num_gpus and not args.compile else {}),
            enable_prefix_caching=True,
            # vLLM cannot rewind a CPU generator, which it does when a prompt with a seed is split
            # over two steps.
            enable_chunked_prefill=bool(num_gpus),
            enable_lora=args.lora is not None,
            max_lora_rank=lora_rank(args.lora) if args.lora else 16,
        )
    )


def _submit(
    engine: LLMEngine, tasks: list[EngineTask], args: GenerateArguments
) -> list[tuple[int, str]]:
    """Give tasks to an engine; index and cause of those that it refuses."""
    from vllm import SamplingParams, exceptions
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    lora = LoRARequest("lora", 1, str(Path(args.lora).resolve())) if args.lora else None
    refused = []
    for task in tasks:
        for sample, seed in enumerate(task.seeds):
            params = SamplingParams(
                temperature=args.temperature,
                top_p=args.top_p,
                max_tokens=args.max_tokens,
                seed=seed,
                logprobs=args.logprobs,
                # else whole texts are decoded at the end, which is cheaper
                detokenize=args.logprobs is not None,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            prompt = TokensPrompt(prompt_token_ids=task.prompt_ids)
            try:
                engine.add_request(f"{task.index}/{sample}", prompt, params, lora_request=lora)
            # the first in earlier versions of vLLM; all samples have one prompt
            except (ValueError, getattr(exceptions, "VLLMClientError", ValueError)) as error:
                refused.append((task.index, f"the engine refuses the prompt: {error}"))
                break
    return refused


def _response(output: Any, decode: Callable[[list[int]], str] | None) -> Row:
    text = decode(list(output.token_ids)) if decode else output.text
    response = {
        "text": text,
        "num_tokens": len(output.token_ids),
        "finish_reason": output.finish_reason,
    }
    if output.logprobs is not None:
        response["logprobs"] = [_best_first(step.values()) for step in output.logprobs]
    return response


def _best_first(alternatives: Iterable[Any]) -> list[tuple[float, str]]:
    """(log-probability, text) of the most likely tokens of one step."""
    return [(a.logprob, a.decoded_token) for a in sorted(alternatives, key=lambda a: -a.logprob)]


def lora_rank(adapter: str) -> int:
    """Rank to start the engine with: vLLM knows powers of two from 8."""
    rank = json.loads((Path(adapter) / "adapter_config.json").read_text()).get("r", 8)
    return max(8, 1 << (rank - 1).bit_length())
