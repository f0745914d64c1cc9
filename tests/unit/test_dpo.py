"""Preference optimization: encoded pairs, the loss at the start by hand, a run that learns, and
what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from supervised import PAIR, dpo_arguments, write_rows
from tiny import make_tokenizer
from transformers import AutoModelForCausalLM

from rea_rl.dpo import build_trainer, encode_pair, load_pairs, main, parse_recipe
from rea_rl.run.training import train


def test_pairs_are_ids_as_sampled():
    tokenizer = make_tokenizer()
    encoded = encode_pair({**PAIR, "prompt": [{"role": "user", "content": "1"}]}, tokenizer)
    assert tokenizer.decode(encoded["prompt_ids"]) == "<U>1<A><think>\n"
    assert tokenizer.decode(encoded["chosen_ids"]) == "one<eos>"
    assert tokenizer.decode(encoded["rejected_ids"]) == "one two<eos>"


def test_pair_counts_as_long_as_its_longer_path(tmp_path):
    file = write_rows(tmp_path / "pairs.json", [PAIR])
    # <U>1<A> and `one two<eos>`
    assert len(load_pairs(file, "train", make_tokenizer(), max_length=11)) == 1
    with pytest.raises(ValueError, match="none of its 1 rows has at most max_length"):
        load_pairs(file, "train", make_tokenizer(), max_length=10)


def test_first_loss_is_ln_2_plus_the_chosens_and_a_run_learns(tmp_path):
    trainer = build_trainer(*parse_recipe(dpo_arguments(tmp_path)))
    train(trainer)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    ids = encode_pair(PAIR, make_tokenizer())
    prompt, chosen = ids["prompt_ids"], ids["chosen_ids"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        logps = (
            model(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        )
    nll = -logps.gather(1, torch.tensor(chosen)[:, None]).mean().item()
    # policy and reference are the same at the start
    assert losses[0] == pytest.approx(math.log(2) + nll, abs=1e-3)
    assert losses[-1] < losses[0] - 0.05
    assert json.loads((tmp_path / "out/eval_results.json").read_text())["eval_loss"] < losses[0]
    assert (tmp_path / "out/adapter_model.safetensors").is_file() and (
        tmp_path / "out/train_results.json"
    ).is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_peft": "false"}, "use_peft must be true"),
        ({"dataset_name": "none.json"}, "none.json does not exist"),
        ({"loss_tipe": "sigmoid"}, "loss_tipe"),
    ],
)
def test_mistakes_are_one_line(tmp_path, changes, message):
    with pytest.raises(SystemExit, match=message):
        main(dpo_arguments(tmp_path, **changes))


def test_malformed_pair_is_named(tmp_path):
    file = write_rows(tmp_path / "pairs.json", [PAIR, {"prompt": "x", "chosen": "y"}])
    with pytest.raises(ValueError, match="row 1 needs a 'prompt' and a 'chosen' and a 'rejected'"):
        load_pairs(file, "train", make_tokenizer(), None)
