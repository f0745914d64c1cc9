"""Prompts of a stage, rendered and encoded: the tasks of engines and servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from generation.arguments import LABELING_SPLITS, GenerateArguments
from generation.generation_file import sample_seed
from generation.markers import R1, Markers
from generation.parallel import Shared
from generation.rendering import RenderedPrompt, TemplateRefusal, encode_continuation, encode_text
from generation.stages import SPLITS, Prompt
from rea_core.models import load_tokenizer
from rea_core.row_files import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Keep = Callable[[int, list[Row]], None]  # takes the index of a task and its responses


@dataclass(frozen=True)
class Task:
    """One prompt, and one row of the output."""

    index: int  # place in the output
    prompt: Prompt
    # None if nothing is asked, or no tokenizer is known
    rendered: RenderedPrompt | None = None
    markers: Markers = R1  # of the model's thinking
    # Ids of the prompt with the begin of the reply, and the number of the latter; for engines only.
    prompt_ids: list[int] | None = None
    num_given: int = 0
    refusal: str = ""  # why no prompt can be made of the row

    @property
    def row(self) -> Row:
        """The output's columns, without `responses`."""
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
    """Settings of a process that makes tasks; it is called there, for its tokenizers.

    Args:
        args: of the command.
        paragraphs: tokenizer that counts the tokens of paragraphs; None if there are none.
        model: tokenizer of the prompts; None if they are not rendered.
    """

    args: GenerateArguments
    paragraphs: Shared | PreTrainedTokenizerBase | None
    model: Shared | PreTrainedTokenizerBase | None = None

    @classmethod
    def of(cls, args: GenerateArguments, tokenizer: PreTrainedTokenizerBase | None) -> Making:
        """For the split of a command; its tokenizers are loaded here: a mistake shows at once."""
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
        """Tasks of each row, as the model sees them if its tokenizer is known. Their indices
        are still 0, and one whose messages the model's template refuses says so."""
        return [[self._render(Task(0, prompt)) for prompt in self.prompts(row)] for row in rows]

    def _render(self, task: Task) -> Task:
        if task.prompt.responses is not None:
            return task
        markers = Markers.of(vars(self.args), self.model)
        if self.model is None:
            return replace(task, markers=markers)
        try:
            rendered = self.args.prompt_format.render(task.prompt.messages, self.model)
        except TemplateRefusal as error:
            return replace(task, refusal=f"{self.args.qaf}: row {task.row['id']!r}: {error}")
        task = replace(task, rendered=rendered, markers=markers)
        if self.args.api:
            return task
        # What the model continues from is encoded by itself, as in training, where it is sampled or
        # a completion.
        given = encode_continuation(task.prompt.prefill, self.model)
        return replace(
            task,
            prompt_ids=encode_text(rendered.text, self.model) + given,
            num_given=len(given),
        )
