"""Label the paragraphs of one response with the reflection model, and cut it where it had its
result. No server is needed.

    python examples/label_and_cut.py
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from generation.cuts import CutRule, cut_completion_ids, result_probabilities
from generation.prompts import REFLECTION_PREFILL, reflection_messages
from generation.segments import split_paragraphs

PROBLEM = "Start with 22. Add 5. Subtract 5. Add 7. What is the result?"
RESPONSE = """Okay, so I need to follow the steps. Start 22: +5, -5, +7.

22+5=27
27-5=22
22+7=29
So the result is 29.

Alternatively, do it once more.
22+5=27
27-5=22
22+7=29
Yes, the result is 29.

Alternatively, I can work backwards from 29.
29-7=22
22+5=27
27-5=22
This is the start, so the result is 29.

</think>

**Final Answer:**

The result is 29. \\boxed{29}"""
POLICY, REFLECTION_MODEL = "model/Miniature-LRM", "model/Miniature-Reflection"


def p_result(problem: str, paragraphs: list[str]) -> list[float]:
    """P(Result) of each paragraph, from the reflection model's greedy reply."""
    tokenizer = AutoTokenizer.from_pretrained(REFLECTION_MODEL)
    model = AutoModelForCausalLM.from_pretrained(REFLECTION_MODEL, dtype=torch.float32)
    messages = reflection_messages(problem, paragraphs)
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(chat + REFLECTION_PREFILL, add_special_tokens=False, return_tensors="pt")
    settings = {"do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    reply = model.generate(**ids, max_new_tokens=16 * len(paragraphs), **settings)
    best = [scores.log_softmax(dim=-1)[0].topk(5) for scores in reply.scores]
    steps = [
        list(zip(values.tolist(), map(tokenizer.decode, tokens), strict=True))
        for values, tokens in best  # of each token
    ]
    return result_probabilities(steps)


def cut(problem: str, response: str) -> str:
    """The response up to the end of its first certain result, and the forced end of its thinking,
    from which the policy would answer."""
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    ids = tokenizer.encode(response, add_special_tokens=False)
    paragraphs = split_paragraphs(response, lambda text: len(tokenizer.encode(text)), min_tokens=1)
    labels = p_result(problem, [paragraph.text for paragraph in paragraphs])
    rule = CutRule(second_half=0.0, cap_share=0.0)  # for short traces; the defaults are the paper's
    last_kept = rule.choose(labels, len(paragraphs)).normal
    for i, (paragraph, p) in enumerate(zip(paragraphs, labels, strict=False)):
        print(f"[{i}] P(Result) {p:.2f} {'kept' if i <= last_kept else '-'}: {paragraph.text!r}")
    prefix = cut_completion_ids(ids, tokenizer, paragraphs, last_kept)
    return response if prefix is None else tokenizer.decode(prefix.kept_ids) + prefix.forced_text


if __name__ == "__main__":
    print(cut(PROBLEM, RESPONSE))
