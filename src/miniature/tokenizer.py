"""The miniature's tokenizer: a byte-level BPE of a few hundred tokens with Qwen's pre-tokenization,
so that `.\\n\\n` is one token and every digit is a token of its own, and R1-style chat markers.

Rebuilding it after a change of the world shifts the ids: it is frozen together with the weights.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from generation.prompts import reflection_labels, reflection_messages
from miniature.instruct import make_dialogue
from miniature.world import LEVELS, completion_text, make_problem, make_trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 768
EOS, BOS, PAD = "<|end_of_sentence|>", "<|begin_of_sentence|>", "<|pad|>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
PRE_TOKENIZATION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ "
    "'<|Assistant|>' + message['content'].split('</think>')[-1] + eos_token }}{% else %}{{ "
    "'<|User|>' + message['content'] }}{% endif %}{% endfor %}"
)
THINKING_TEMPLATE = (
    _TURNS + "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
INSTRUCT_TEMPLATE = _TURNS + "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"


def _corpus(seed: int, num_problems: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(num_problems):
        problem = make_problem(rng.choice(LEVELS), rng)
        yield problem.question
        trace = make_trace(problem, rng)
        yield completion_text(trace, rng)
        yield reflection_messages(problem.question, trace.thinking.split("\n\n"))[0]["content"]
        yield reflection_labels([rng.random() < 0.5 for _ in range(6)])
        yield from make_dialogue(rng)


def build_tokenizer(seed: int = 1, num_problems: int = 6000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on problems, traces and instruction dialogues drawn from `seed`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZATION), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=20,
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(seed, num_problems), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=EOS,
        bos_token=BOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    # Not special: like R1's, these survive `skip_special_tokens`, so the thinking can be told from
    # the answer in text.
    tokenizer.add_tokens([USER, ASSISTANT, "<think>", "</think>"], special_tokens=False)
    tokenizer.chat_template = THINKING_TEMPLATE
    return tokenizer
