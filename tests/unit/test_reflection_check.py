"""The reflection model at the start of a run: whether its labels can be read, and whole paths
fit its server."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from recipe_files import read_recipe, write_recipe
from scripted_server import ScriptedServer
from tiny import make_tokenizer, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from generation.prompts import (
    REFLECTION_PREFILLS,
    REFLECTION_REPLIES,
    reflection_labels,
    reflection_messages,
)
from rea_core.models import load_tokenizer
from rea_rl.configs import REARLConfig
from rea_rl.rollout.reflection_check import check_context, check_labels, needed_tokens

ROOT = Path(__file__).parents[2]
MINIATURE = str(ROOT / "model" / "Miniature-Instruct")


def word_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """One token a word, and bytes for the rest."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(words))
    return tokenizer


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Words with the mark of a space before them, as Llama 2 and Mistral have them."""
    words = ["<unk>", "▁Think", "▁Result", "[", "]", ".", "1", "▁", "\n"]
    bpe = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(".", "isolated")]
    )
    bpe.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


@pytest.mark.parametrize(
    "tokenizer",
    [
        word_tokenizer("Think", "Result"),
        word_tokenizer(" Think", " Result"),
        sentencepiece_tokenizer(),
    ],
)
@pytest.mark.parametrize("form", REFLECTION_REPLIES)
def test_labels_that_are_tokens_pass(tokenizer, form):
    check_labels(tokenizer, "m", form)
    check_labels(load_tokenizer(MINIATURE), MINIATURE, form)


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ((), "Think"),
        (("Think",), "Result"),
        (("Result",), "Think"),
        (("Think", " Res", "ult"), "Result"),
    ],
)
def test_labels_in_pieces_are_refused(words, label):
    with pytest.raises(
        ValueError, match=rf"tokenizer of 'm' writes '\[1\]. {label}' as .* set revision: false"
    ):
        check_labels(word_tokenizer(*words), "m")


def make_args(**changes: object) -> REARLConfig:
    keys = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "reflection_model": "m",
        "tokens_per_reflection": 9.0,
    }
    keys |= {"vllm_importance_sampling_clip_max": 2.0}
    return REARLConfig(output_dir="out", **keys | changes)


@pytest.mark.parametrize("form", REFLECTION_REPLIES)
def test_needed_tokens_are_those_of_the_request_and_of_the_whole_reply(form):
    tokenizer = load_tokenizer(MINIATURE)
    messages = reflection_messages("Compute 3 + 4.", ["."] * 5, form)
    prompt = (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        + REFLECTION_PREFILLS[form]
    )
    expected = len(tokenizer.encode(prompt)) + max(
        len(tokenizer.encode(reflection_labels([label] * 5, form))) for label in (True, False)
    )
    assert needed_tokens(40, 5, tokenizer, "Compute 3 + 4.", form) == 40 + expected


@pytest.mark.parametrize(("length", "shortest"), [(8000, 32), (768, 1), (16000, 32), (300, 50)])
def test_a_context_that_is_too_short_for_usual_paths_is_refused_and_for_short_paragraphs_named(
    length, shortest, caplog
):
    tokenizer = load_tokenizer(MINIATURE)
    args = make_args(max_completion_length=length, paragraph_min_tokens=shortest)
    usual = needed_tokens(
        length, -(-length // ((max(shortest, 16) + 128) // 2)), tokenizer, "Compute."
    )
    most = needed_tokens(length, -(-length // max(shortest, 16)), tokenizer, "Compute.")
    assert length < usual < most
    check_context(args, tokenizer, "Compute.", most)
    assert not caplog.records
    check_context(args, tokenizer, "Compute.", most - 1)
    assert f"need up to {most} if paragraphs are short" in caplog.text
    with pytest.raises(
        ValueError,
        match=rf"its context has {usual - 1} tokens, but {usual} are needed .*max_model_len",
    ):
        check_context(args, tokenizer, "Compute.", usual - 1)


def test_the_miniatures_own_recipe_passes(caplog):
    problems = json.loads((ROOT / "dataset/miniature/train_rl.json").read_text())
    longest = max((row["problem"] for row in problems), key=len)
    caplog.set_level(logging.WARNING)
    args = make_args(max_completion_length=768, paragraph_min_tokens=1)
    check_context(args, load_tokenizer(MINIATURE), longest, 1024)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Function that connects a run to servers, with a reflection server of some context."""
    from rea_rl.grpo import build_engine

    monkeypatch.chdir(tmp_path)

    def run(reflection: str, context: int) -> None:
        model = str(save_model(tmp_path / "model"))
        flags = write_recipe(
            tmp_path, Path(model), f"{{reflection_model: {reflection}, finish_max_tokens: 8}}"
        )
        with (
            ScriptedServer(None, [model]) as first,
            ScriptedServer(None, [reflection], context) as second,
        ):
            addresses = ["--policy_server", first.url, "--reflection_server", second.url]
            _, args, model_args, inputs = read_recipe([*flags, *addresses])
            for server, tokenizer in (
                (first, inputs.tokenizer),
                (second, load_tokenizer(reflection)),
            ):
                server.encode = lambda text, t=tokenizer: t.encode(text, add_special_tokens=False)
            build_engine(args, model, inputs).__exit__()

    return run


def test_a_run_is_refused_before_it_samples_anything(start, tmp_path):
    start(MINIATURE, 1024)
    with pytest.raises(
        ValueError, match="reflection_server: its context has 100 tokens, but .* are needed"
    ):
        start(MINIATURE, 100)
    with pytest.raises(ValueError, match="in which no token holds the label"):
        start(str(save_model(tmp_path / "bytes")), 1024)
