"""Rows of dialogues for sft and dpo: what is prompt and what is trained, what is refused, and
one encoding of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rollouts import make_engine
from scripted_server import ScriptedServer
from supervised import dpo_arguments, sft_arguments
from tiny import make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from generation.labeling_distill_utils import reflection_example
from generation.rendering import PromptFormat, encode_continuation
from rea_rl import dpo, sft
from rea_rl.dpo import encode_pair, load_pairs
from rea_rl.rollout.labeller import Labeller
from rea_rl.sft import encode_example, load_examples

TOKENIZER = make_tokenizer()
ONE, TWO, THREE = "1+1?", "It is 2.", "It is 3."


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **keys) -> dict:
    return {"role": "assistant", "content": text, **keys}


PROMPT = "<U>1+1?<A><think>\n"
LONGER = "<U>Hi<A>Hello<eos><U>1+1?<A><think>\n"
HELLO = [user("Hi"), assistant("Hello"), user(ONE)]


def write(folder: Path, *rows: dict) -> str:
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder / "rows.json")


# --- What is prompt, and what is trained ----------------------------------------------------------


SFT_ROWS = [
    ({"prompt": [user(ONE)], "completion": [assistant(TWO)]}, PROMPT),
    ({"prompt": [user(ONE)], "completion": [user(ONE), assistant(TWO)]}, PROMPT),
    ({"prompt": ONE, "completion": [user(ONE), assistant(TWO)]}, PROMPT),
    ({"completion": [user(ONE), assistant(TWO)]}, PROMPT),
    ({"messages": [user(ONE), assistant(TWO)]}, PROMPT),
    ({"messages": [*HELLO, assistant(TWO)]}, LONGER),
    ({"prompt": "Hi", "messages": [*HELLO, assistant(TWO)]}, LONGER),
    ({"prompt": HELLO, "completion": [assistant(TWO)]}, LONGER),
    ({"prompt": [user(ONE)], "completion": TWO}, PROMPT),
    ({"prompt": "<U>1+1?<A>", "completion": TWO}, "<U>1+1?<A>"),
    ({"prompt": [user(ONE)], "completion": [assistant(TWO)], "prefill": "So "}, PROMPT + "So "),
]  # fmt: skip
DPO_ROWS = [
    ({"prompt": ONE, "chosen": [user(ONE), assistant(TWO)],
      "rejected": [user(ONE), assistant(THREE)]}, PROMPT),
    ({"chosen": [user(ONE), assistant(TWO)], "rejected": [user(ONE), assistant(THREE)]}, PROMPT),
    ({"chosen": [*HELLO, assistant(TWO)], "rejected": [*HELLO, assistant(THREE)]}, LONGER),
    ({"prompt": "Hi", "chosen": [*HELLO, assistant(TWO)], "rejected": [*HELLO, assistant(THREE)]},
     LONGER),
    ({"prompt": HELLO, "chosen": [assistant(TWO)], "rejected": [*HELLO, assistant(THREE)]}, LONGER),
    ({"prompt": [user(ONE)], "chosen": TWO, "rejected": [assistant(THREE)]}, PROMPT),
    ({"prompt": "<U>1+1?<A>", "chosen": TWO, "rejected": THREE}, "<U>1+1?<A>"),
]  # fmt: skip


def test_the_last_turn_of_a_dialogue_is_the_completion(tmp_path):
    for row, prompt in SFT_ROWS:
        (example,) = load_examples(write(tmp_path, row), "train", TOKENIZER, None)
        assert TOKENIZER.decode(example["input_ids"]) == f"{prompt}{TWO}<eos>", row
        assert TOKENIZER.decode([i for i in example["labels"] if i != -100]) == f"{TWO}<eos>"
        assert encode_example(row, TOKENIZER)["input_ids"] == example["input_ids"]


def test_what_chosen_and_rejected_begin_with_is_the_prompt(tmp_path):
    for row, prompt in DPO_ROWS:
        (pair,) = load_pairs(write(tmp_path, row), "train", TOKENIZER, None)
        texts = [TOKENIZER.decode(pair[f"{key}_ids"]) for key in ("prompt", "chosen", "rejected")]
        assert texts == [prompt, f"{TWO}<eos>", f"{THREE}<eos>"], row
        assert encode_pair(row, TOKENIZER) == {
            key: value for key, value in pair.items() if key != "row"
        }


WRONG_SFT = [
    ({"prompt": [user(ONE)], "completion": [assistant(TWO), user("Sure?"), assistant("Yes")]},
     "3 turns"),
    ({"prompt": [user(ONE)], "completion": [user(ONE)]}, "0 turns"),
    ({"prompt": [user(ONE)], "completion": [user("Sure?")]}, "turn of 'user'"),
    ({"messages": [user(ONE), assistant(TWO), user("Sure?")]}, "turn of 'user'"),
    ({"prompt": [user("2+2?")], "completion": [user(ONE), assistant(TWO)]}, "2 turns"),
    ({"prompt": "2+2?", "completion": [user(ONE), assistant(TWO)]},
     "not in what 'completion' begin"),
    ({"messages": [assistant(TWO)]}, "empty 'prompt'"),
    ({"messages": [user(ONE), assistant("Well."), assistant(TWO)]},
     "'prompt' ends with a turn of the assistant"),
    ({"prompt": [user(ONE), assistant("Well.")], "completion": TWO},
     "'prompt' ends with a turn of the assistant"),
    ({"prompt": [user(ONE)], "completion": TWO, "prefill": 7}, "prefill is 7; write a text"),
    ({"prompt": [user(ONE)], "completion": TWO, "chat_template_kwargs": [7]},
     "chat_template_kwargs is [7]"),
    ({"messages": [user(ONE), assistant("", tool_calls=[{}])]},
     "'tool_calls', which is not trained"),
    ({"messages": [user(ONE), assistant(TWO, reasoning_content="1+1")]},
     "'reasoning_content', which is not trained"),
    ({"messages": [user(ONE), {"role": "assistant", "content": None}]},
     "needs a 'prompt' and a 'completion'"),
    ({"text": TWO}, "needs a 'prompt' and a 'completion'"),
]  # fmt: skip
WRONG_DPO = [
    ({"prompt": [user(ONE)], "chosen": [assistant(TWO), user("?"), assistant("!")],
      "rejected": THREE}, "'chosen' has 3"),
    ({"chosen": [user(ONE), assistant(TWO), user("?"), assistant("!")],
      "rejected": [user(ONE), assistant(THREE)]}, "3 turn"),
    ({"chosen": [user(ONE), assistant(TWO)], "rejected": [user("2?"), assistant(THREE)]},
     "'chosen' has 2 turns"),
    ({"chosen": [user(ONE), assistant(TWO)], "rejected": [user(ONE), user(THREE)]},
     "'rejected' ends with a turn of 'user'"),
    ({"chosen": [assistant(TWO)], "rejected": [assistant(THREE)]}, "needs a 'prompt'"),
]  # fmt: skip


def test_dialogues_that_are_not_clear_are_refused_with_their_row(tmp_path):
    good = {"prompt": ONE, "completion": TWO}
    for row, message in WRONG_SFT:
        with pytest.raises(ValueError, match=r"rows\.json: row 1\b") as refused:
            load_examples(write(tmp_path, good, row), "train", TOKENIZER, None)
        assert message in str(refused.value), row
    good = {"prompt": ONE, "chosen": TWO, "rejected": THREE}
    for row, message in WRONG_DPO:
        with pytest.raises(ValueError, match=r"rows\.json: row 1\b") as refused:
            load_pairs(write(tmp_path, good, row), "train", TOKENIZER, None)
        assert message in str(refused.value), row


def test_a_message_that_the_template_leaves_out_is_refused():
    """R1's template, as others, knows some roles and passes over all others."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<U>{{ m['content'] | trim }}"
        "{% elif m['role'] == 'assistant' %}<A>{{ m['content'].split('</think>')[-1] }}"
        "{% endif %}{% endfor %}<A>"
    )
    thought = assistant("<think>Hm.</think>Hello")
    row = {"prompt": [user(" Hi\n"), thought, user(ONE)], "completion": TWO}
    assert TOKENIZER.decode(encode_example(row, tokenizer)["input_ids"]).startswith("<U>Hi<A>Hello")
    for role in ("human", "system", "developer", "User"):
        message = {"role": role, "content": "Be brief."}
        for prompt in ([message], [message, user(ONE)]):
            with pytest.raises(ValueError, match=f"leaves out a message of the role '{role}'"):
                encode_example({"prompt": prompt, "completion": TWO}, tokenizer)
    with pytest.raises(ValueError, match="leaves out a message of the role 'system', 'Be brief.'"):
        PromptFormat(system_prompt="Be brief.").ask(ONE, tokenizer)


def test_a_template_that_fails_in_its_own_code_is_one_line(caplog):
    tokenizer = make_tokenizer()
    for template in ("{{ messages[0]['content'] + 1 }}", "{{ nothing.at.all }}", "{% if %}"):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match="chat template refuses messages of the roles user"):
            PromptFormat().ask(ONE, tokenizer)
    for wrong in ({1: 2}, {"tokenize": True}, {"padding": True}, {"return_dict": True}):
        with pytest.raises(ValueError, match="chat_template_kwargs has .*; leave it out"):
            PromptFormat(chat_template_kwargs=wrong)
    for _ in range(2):  # the template reads no such keyword, and the log says so once
        PromptFormat(chat_template_kwargs={"enable_thinkin": False}).ask(ONE, TOKENIZER)
    assert caplog.text.count("has 'enable_thinkin', which the model's chat template never") == 1


@pytest.mark.parametrize("command", ["sft", "dpo"])
def test_a_role_that_the_template_refuses_is_one_line_with_its_row(tmp_path, command):
    flags = (sft_arguments if command == "sft" else dpo_arguments)(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') "
        "}}{% endif %}" + tokenizer.chat_template
    )
    tokenizer.save_pretrained(tmp_path / "model")
    prompt = [{"role": "system", "content": "Be brief."}, user(ONE)]
    row = {
        "prompt": prompt,
        "completion": [assistant(TWO)],
        "chosen": [assistant(TWO)],
        "rejected": [assistant(THREE)],
    }
    flags[flags.index("--dataset_name") + 1] = write(tmp_path, row)
    with pytest.raises(
        SystemExit,
        match=r"error: .*rows\.json: row 0: .* refuses .* system, user \(System role not supp",
    ):
        {"sft": sft.main, "dpo": dpo.main}[command](flags)


# --- One encoding ---------------------------------------------------------------------------------


def make_sentencepiece() -> PreTrainedTokenizerFast:
    """As Mistral's and Llama 2's: a space before all that is encoded, `▁` for spaces."""
    pieces = [
        "▁",
        "[",
        "]",
        "1",
        "2",
        ".",
        "T",
        "h",
        "R",
        "e",
        "s",
        "u",
        "l",
        "t",
        "i",
        "n",
        "k",
        "\n",
        "/",
        "<",
        ">",
        "*",
    ]
    pieces += [*"UAFaqwrP:PEoyQdfcpmvgbx", "▁[", "▁T", "].", "</s>"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "["), ("▁", "T"), ("]", ".")]))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="</s>")
    tokenizer.add_tokens(["<U>", "<A>"])
    tokenizer.chat_template = TOKENIZER.chat_template.replace("<think>\n", "")
    return tokenizer


def test_training_and_asking_encode_a_prompt_and_what_follows_it_alike(tmp_path):
    tokenizer = make_sentencepiece()
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("[1].")) == ["▁[", "1", "]."]
    parts = ["The result", "The rest"]
    trained = encode_example(reflection_example("1 1", parts, [False, True]), tokenizer)
    with (
        ScriptedServer(lambda body: (200, {}), ["m"]) as server,
        make_engine(tmp_path, server.url) as engine,
    ):
        engine.tokenizer = tokenizer
        labeller = Labeller(tokenizer, 100, engine.args)
        asked = labeller._encode("1 1", parts)
        forced = engine._encode_forced("\n</think>")
    assert trained["input_ids"][: len(asked)] == asked
    labels = [i for i in trained["labels"] if i != -100]
    assert tokenizer.convert_ids_to_tokens(labels[:4]) == ["[", "1", "].", "▁T"]
    assert tokenizer.decode([*tokenizer.encode("two."), *forced]) == "two.\n</think>"


def test_a_tokenizer_without_a_space_before_texts_encodes_as_before():
    for text in ("[1].", " The", "\n</think>", ""):
        assert encode_continuation(text, TOKENIZER) == TOKENIZER.encode(
            text, add_special_tokens=False
        )
