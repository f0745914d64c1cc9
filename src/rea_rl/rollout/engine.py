"""The asynchronous chain that makes a batch of responses: sample, label, cut, finish, verify.

Responses run concurrently and never wait for the slowest, unless `stage_batch_size` groups them.
Token ids are never encoded again; a revision is the original's ids up to the cut, the forced end of
the thinking, and the policy's answer.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import itertools
import logging
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import openai
from tqdm import tqdm

from generation.cuts import cut_completion_ids, decode_completion, think_end_finder
from generation.markers import R1, Markers
from generation.math_verify.extract import answer_part_of
from generation.reflection_words import count_reflections
from generation.rendering import encode_continuation, encode_text, prompt_thinking
from generation.segments import Paragraph, split_paragraphs, thinking_of
from rea_core.problems import problem_digest
from rea_rl.revision import serial_cuts
from rea_rl.rollout.endpoint import adapter_folder, is_about_one, server_counts, words
from rea_rl.rollout.labeller import Labeller
from rea_rl.rollout.record import Batch, Rollout, StageClock
from rea_rl.rollout.refusals import Refusals
from rea_rl.rollout.replies import Completion
from rea_rl.rollout.server_answers import served_contexts
from rea_rl.rollout.servers import Seat, Servers
from rea_rl.rollout.stage_batching import Waves
from rea_rl.run.counts import ALIVE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from generation.math_verify import VerifierPool
    from generation.math_verify.extract import Thinking
    from generation.verifiers.pool import FunctionPool
    from rea_core.row_files import Row
    from rea_rl.configs import REARLConfig


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Work:
    """A response to be made: its row, and where the requests of its prompt go."""

    row: Row
    batch: Batch
    policy: Seat
    reflection: Seat | None


class RolloutEngine:
    """Makes the responses of a batch on an event loop of its own; a context manager.

    Args:
        args: recipe.
        tokenizer: of the policy.
        reflection_tokenizer: of the reflection model; None without revision.
        verifier: pool that says which responses are right; closed with the engine.
    """

    def __init__(
        self,
        args: REARLConfig,
        tokenizer: PreTrainedTokenizerBase,
        reflection_tokenizer: PreTrainedTokenizerBase | None,
        verifier: VerifierPool | FunctionPool,
    ):
        self.args = args
        # A copy: fast tokenizers may not be used by two threads at once, and the trainer has one,
        # too.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.verifier = verifier
        self._sampling = {"temperature": args.temperature, "top_p": args.top_p, "logprobs": 0}
        # All of them, or the server takes what the model's generation_config.json says.
        self._sampling_extra = {
            "top_k": args.top_k,
            "min_p": args.min_p or 0.0,
            "repetition_penalty": args.repetition_penalty,
        }
        self._markers = Markers.of(vars(args), tokenizer)
        self._think_start = tokenizer.encode(self._markers.think_start, add_special_tokens=False)
        self._find_think_end = think_end_finder(self.tokenizer, self._markers)
        self._encode_forced = cache(lambda text: encode_continuation(text, self.tokenizer))
        self._is_cancelled = False
        self._refusals = Refusals()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()
        self._policy = Servers(
            "policy_server", args.policy_servers, args, adapter_folder(args.output_dir)
        )
        self._reflection: Servers | None = None
        if reflection_tokenizer is not None:
            self._reflection = Servers("reflection_server", args.reflection_servers, args)
            contexts = map(served_contexts, args.reflection_servers)
            context = min(served[args.reflection_model] for served in contexts)
            self.labeller = Labeller(reflection_tokenizer, context, args)

    def run(self, rows: list[Row], batch: Batch) -> list[Rollout]:
        """Responses for `rows`, in their order; one per row, or original and revision.

        Args:
            rows: `prompt` (rendered text), `prompt_thinking` (derived from the text if it is
                missing), `problem`, `problem_id`, `answer`, and `facts` for a verifier that is a
                function; one row per sampled response, also with serial cuts, where the first of
                a prompt's rows is sampled and the others are its exits.

        A response that the policy server refuses is missing, see `Rollout.missing`.

        Raises ConnectionError or openai.APIError when a request failed for good, or all were
        refused; the other responses are cancelled. Raises CancelledError if `cancel` ended the
        batch, ConnectionError if it came before, and for many problems in a row without a response.
        """
        return self._wait(self._run(rows, batch))

    def cancel(self) -> None:
        """End the batches under way, and refuse others. Returns at once."""
        self._is_cancelled = True
        asyncio.run_coroutine_threadsafe(self._cancel_batches(), self._loop)

    @property
    def counts(self) -> dict[str, Any]:
        """Metrics that count since the start: of the verifier, and of servers that failed. And
        `servers/alive`: servers of both roles that are not away now."""
        servers = server_counts([watch for role in self._roles for watch in role.watches])
        servers[ALIVE] = sum(role.num_alive for role in self._roles)
        return servers | {f"verifier/{key}": value for key, value in self.verifier.stats.items()}

    def __enter__(self) -> RolloutEngine:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what is under way, close connections and verifier, and stop the event loop."""
        self._wait(self._cancel_batches())
        for servers in self._roles:
            self._wait(servers.close())
        self.verifier.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def _roles(self) -> list[Servers]:
        return [servers for servers in (self._policy, self._reflection) if servers is not None]

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _cancel_batches(self) -> None:
        """End batches that other threads wait for: their `run` raises CancelledError."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, rows: list[Row], batch: Batch) -> list[Rollout]:
        if self._is_cancelled:
            raise ConnectionError("the run is being ended")
        if batch.revision:
            rows = rows[:: self.args.num_serial_cuts + 1]
        work = await self._deal(rows, batch)
        waves = Waves(self.args.stage_batch_size, len(rows))
        progress = tqdm(
            total=len(rows), desc=f"rollouts of {batch.policy_version}", leave=False, disable=None
        )
        try:
            with progress:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._path(each, waves, progress)) for each in work]
        except ExceptionGroup as failures:  # the first one stopped the batch
            raise failures.exceptions[0] from None
        paths = [task.result() for task in tasks]
        originals = [path[0] for path in paths]
        if not self._refusals.has_answered and all(each.is_missing for each in originals):
            await self._check_answers(work[0])
        self._refusals.note(batch.step, originals)
        return [rollout for path in paths for rollout in path]

    async def _check_answers(self, work: _Work) -> None:
        """Raise openai.APIStatusError if the policy server refuses a prompt of one token, too."""
        begin, settings = self._encode_prompt(work.row)[:1], self._sampling_extra
        version = work.batch.policy_version
        await work.policy.complete(version, begin, settings, max_tokens=1, **self._sampling)
        self._refusals.has_answered = True

    async def _deal(self, rows: list[Row], batch: Batch) -> list[_Work]:
        """Deal prompts to the servers that are alive; rows of a prompt follow each other."""
        prompts = [[*group] for _, group in itertools.groupby(rows, lambda r: r["problem_id"])]
        # the same share for each server over all ranks, and over the steps
        first = self.args.process_index * len(prompts) + batch.step
        await self._policy.muster(batch.policy_version)
        policy = self._policy.deal(len(prompts), first)
        reflection: list[Seat | None] = [None] * len(prompts)
        if batch.revision and self._reflection is not None:
            await self._reflection.muster(self.args.reflection_model)
            reflection = [*self._reflection.deal(len(prompts), first)]
        return [
            _Work(row, batch, *seats)
            for group, *seats in zip(prompts, policy, reflection, strict=True)
            for row in group
        ]

    async def _path(self, work: _Work, waves: Waves, progress: tqdm) -> list[Rollout]:
        row, original = work.row, await self._sample_or_miss(work)
        if original.is_missing:
            waves.skip()
            revisions = [None] * max(self.args.num_serial_cuts, 1) if work.batch.revision else []
        elif work.batch.revision:
            revising = self._revise(original, work, waves)
            _, revisions = await asyncio.gather(self._verify(original, row), revising)
        else:
            await self._verify(original, row)
            revisions = []
        progress.update()
        # An original that takes the place of a revision: its seconds count once.
        again = dataclasses.replace(original, seconds={})
        return [original, *(revision or dataclasses.replace(again) for revision in revisions)]

    async def _sample_or_miss(self, work: _Work) -> Rollout:
        """A sampled response, or its place if the server refuses this one."""
        try:
            return await self._sample(work)
        except openai.APIStatusError as error:
            if not is_about_one(error):
                raise
            self._refusals.cause = error
        prompt_ids, end = self._encode_prompt(work.row), self.tokenizer.eos_token_id
        return Rollout.missing(work.row, work.batch, prompt_ids, end)

    async def _sample(self, work: _Work) -> Rollout:
        row, batch, clock = work.row, work.batch, StageClock()
        prompt_ids = self._encode_prompt(row)
        clock.mark("text")
        response = await work.policy.complete(
            batch.policy_version,
            prompt_ids,
            self._sampling_extra,
            max_tokens=self.args.max_completion_length,
            **self._sampling,
        )
        clock.mark("sample")
        thinking = row.get("prompt_thinking") or prompt_thinking(
            row["prompt"], row.get("problem", ""), self._markers
        )
        original = Rollout(
            problem_id=row["problem_id"],
            step=batch.step,
            policy_version=batch.policy_version,
            kind="original",
            prompt_ids=prompt_ids,
            logprobs=response.logprobs,
            finish_reason=response.finish_reason,
            seconds=clock.seconds,
            prompt_thinking=thinking,
            problem_digest=problem_digest(row.get("problem", "")),
            **self._markers.column,
            **self._text_fields(response.token_ids, thinking),
        )
        clock.mark("text")
        return original

    async def _revise(self, original: Rollout, work: _Work, waves: Waves) -> list[Rollout | None]:
        """Cut the original after its result, or at several points; None if nothing can go."""
        clock = StageClock()
        paragraphs = self._paragraphs(original)
        clock.mark("text")
        num_cuts = self.args.num_serial_cuts
        if not paragraphs:
            waves.skip()
            return [None] * max(num_cuts, 1)
        if num_cuts:
            cuts = serial_cuts(len(paragraphs), num_cuts)
            return await asyncio.gather(
                *(
                    self._finish(original, work, paragraphs, cut, StageClock(clock.seconds))
                    for cut in cuts
                )
            )
        await waves.turn("label")
        clock.mark("turn")
        texts = [paragraph.text for paragraph in paragraphs]
        labels = await self.labeller.label(work.row["problem"], texts, work.reflection)
        clock.mark("label")
        cuts = self.args.cut_rule.choose(labels.p_result, len(paragraphs))
        await waves.turn("finish")
        clock.mark("turn")
        cut = getattr(cuts, self.args.revision_strength)
        revision = await self._finish(original, work, paragraphs, cut, clock)
        (revision or original).take_labels(labels, paragraphs)
        if revision is None:
            waited = {stage: clock.seconds[stage] for stage in ("turn", "label")}
            original.seconds |= waited
        return [revision]

    async def _finish(
        self,
        original: Rollout,
        work: _Work,
        paragraphs: list[Paragraph],
        cut: int,
        clock: StageClock,
    ) -> Rollout | None:
        """The original up to a cut, the forced end of its thinking, and the answer that the
        policy gives then; None if nothing can be cut off, or the server refuses to finish it."""
        prefix = cut_completion_ids(
            original.completion_ids,
            self.tokenizer,
            paragraphs,
            cut,
            always_cut=self.args.always_cut,
            markers=self._markers,
        )
        if prefix is None:
            return None
        kept_ids, forced_ids = prefix.kept_ids, self._encode_forced(prefix.forced_text)
        clock.mark("text")
        response = await self._answer(original, work, kept_ids + forced_ids)
        clock.mark("finish")
        if response is None:
            return None
        # The forced ids were not sampled, so the server has no log-probs of them.
        logprobs = original.logprobs[: len(kept_ids)] + [None] * len(forced_ids)
        revision = dataclasses.replace(
            original,
            kind="revision",
            logprobs=logprobs + response.logprobs,
            finish_reason=response.finish_reason,
            num_paragraphs=len(paragraphs),
            paragraph_ends=[paragraph.end for paragraph in paragraphs],
            cut=cut,
            num_kept_tokens=len(kept_ids),
            num_cached_tokens=response.num_cached,
            correct=None,
            seconds=clock.seconds,
            **self._text_fields(
                kept_ids + forced_ids + response.token_ids, original.prompt_thinking
            ),
        )
        clock.mark("text")
        await self._verify(revision, work.row)
        return revision

    async def _answer(self, original: Rollout, work: _Work, begun: list[int]) -> Completion | None:
        """The policy's reply to a begun completion; None if the server refuses this one."""
        try:
            return await work.policy.complete(
                work.batch.policy_version,
                original.prompt_ids + begun,
                self._sampling_extra,
                max_tokens=self.args.finish_max_tokens,
                **self._sampling,
            )
        except openai.APIStatusError as error:
            if not is_about_one(error):
                raise
            logger.warning("problem %r has no revision: %.300s", original.problem_id, words(error))
            return None

    async def _verify(self, rollout: Rollout, row: Row) -> None:
        start = time.perf_counter()
        if "facts" in row:  # a function reads the whole response
            rollout.correct = await self.verifier.averify(
                row["facts"], rollout.text, rollout.prompt_thinking, rollout.markers
            )
        else:
            rollout.correct = await self._verify_answer(rollout, row["answer"])
        rollout.seconds["verify"] = time.perf_counter() - start

    async def _verify_answer(self, rollout: Rollout, gold: str) -> bool:
        text = rollout.text
        # an answer can only follow the end of the thinking
        if rollout.prompt_thinking == "open":
            text = text.partition(self._markers.think_end)[2]
        elif rollout.prompt_thinking == "unknown":
            around = self._markers.think_start, self._markers.think_end
            text = answer_part_of(text, "unknown", around)
        # Markers in the rest mean nothing, but the verifier would take R1's for some.
        known = {"thinking": "closed"} if R1.are_in(text) else {}
        return await self.verifier.averify(gold, text, **known)

    def _text_fields(self, completion_ids: list[int], thinking: Thinking) -> dict[str, Any]:
        """Fields of a rollout that follow from its ids and its prompt's end."""
        text = decode_completion(self.tokenizer, completion_ids, self._markers)
        start = (
            len(self._think_start)
            if completion_ids[: len(self._think_start)] == self._think_start
            else 0
        )
        end = 0 if thinking == "closed" else self._find_think_end(completion_ids)
        return {
            "completion_ids": completion_ids,
            "text": text,
            "num_tokens": len(completion_ids),
            "num_think_tokens": max(end - start, 0),
            "num_reflections": count_reflections(
                thinking_of(text, thinking, self._markers.think_end),
                self.args.word_bounded_reflections,
            ),
        }

    def _paragraphs(self, path: Rollout) -> list[Paragraph]:
        return split_paragraphs(
            path.text,
            lambda part: len(self.tokenizer.encode(part, add_special_tokens=False)),
            min_tokens=self.args.paragraph_min_tokens,
            max_tokens=self.args.paragraph_max_tokens,
            prompt_thinking=path.prompt_thinking,
            think_end=self._markers.think_end,
        )

    def _encode_prompt(self, row: Row) -> list[int]:
        return encode_text(row["prompt"], self.tokenizer)
