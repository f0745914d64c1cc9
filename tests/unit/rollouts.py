"""Rollout engines of tests, and scripted answers of their servers."""

from __future__ import annotations

from math import log

from scripted_server import ScriptedServer, completion
from tiny import make_tokenizer

from generation.math_verify import extract_answer
from rea_rl.configs import REARLConfig
from rea_rl.rollout.engine import RolloutEngine
from rea_rl.rollout.record import Batch

TOKENIZER = make_tokenizer()
VERSION = "policy-7-abcd"
THINKING = "Set up.\n\nThe result is 4.\n\nWait, check it.\n\nYes, 4 again."
SAMPLE = THINKING + "\n</think>\n\n\\boxed{4}"
CUT = "Set up.\n\nThe result is 4."  # after the second of four paragraphs
FORCED = "\n</think>\n\n**Final Answer:**\n\n"
SAMPLED = Batch(7, VERSION, False)


def encode(text):
    return TOKENIZER.encode(text)


def ended(text):
    return encode(text) + [TOKENIZER.eos_token_id]


def is_finish(body):
    """Whether a request to the policy is the second one of a path."""
    return body["max_tokens"] == 16


def policy(sample=SAMPLE, finish="\\boxed{4}", finish_reason="stop"):
    def answer(body):
        if is_finish(body):
            return completion(ended(finish), cached=40)
        return completion(ended(sample), finish_reason)

    return answer


def labels(*p_result):
    """Reply of a reflection model with these probabilities of a result."""
    steps = []
    for p in p_result:
        pair = {" Result": log(p), " Think": log(1 - p)}
        steps += [{"[": -0.1}, dict(sorted(pair.items(), key=lambda item: -item[1]))]
    return lambda body: completion([0] * len(steps), top_logprobs=steps)


class Verifier:
    """Compares boxed answers in this process."""

    def __init__(self):
        self.stats, self.closed = {"pairs": 0}, False

    async def averify(self, gold, text, thinking="unknown"):
        self.stats["pairs"] += 1
        return extract_answer(text, thinking=thinking) == gold

    def close(self):
        self.closed = True


def make_engine(
    tmp_path, policy_url, reflection_url="http://127.0.0.1:9/v1", tokenizer=TOKENIZER, **changes
):
    keys = {
        "use_cpu": True, "bf16": False, "report_to": "none", "num_generations": 2,
        "per_device_train_batch_size": 2,
        "max_completion_length": 200, "temperature": 0.7,
        "revision": reflection_url != "http://127.0.0.1:9/v1",
        "reflection_model": "refl", "tokens_per_reflection": 100.0, "finish_max_tokens": 16,
        "request_retries": 0,
        "paragraph_min_tokens": 1, "cut_second_half": 0.0, "cut_cap_share": 0.0,
    }  # fmt: skip
    args = REARLConfig(
        output_dir=str(tmp_path),
        policy_server=policy_url,
        reflection_server=reflection_url,
        **{**keys, **changes},
    )
    return RolloutEngine(args, tokenizer, TOKENIZER if args.revision else None, Verifier())


def make_row(i=0):
    return {
        "prompt": f"<U>2+2? {i}<A><think>\n",
        "problem": f"2+2? {i}",
        "problem_id": f"p{i}",
        "answer": "4",
    }


def run(tmp_path, sample_policy, reflection, rows=(make_row(),), context=1024, **changes):  # noqa: B008 - never changed
    """Paths of one revised batch, and the two servers for a look at what they were asked."""
    with (
        ScriptedServer(sample_policy, [VERSION]) as first,
        ScriptedServer(reflection, ["refl"], context) as second,
        make_engine(tmp_path, first.url, second.url, **changes) as engine,
    ):
        return engine.run(list(rows), Batch(7, VERSION, True)), first, second


def run_sampling(tmp_path, reply, num_rows=20, **changes):
    with (
        ScriptedServer(reply, [VERSION]) as server,
        make_engine(tmp_path, server.url, **changes) as engine,
    ):
        rollouts = engine.run([make_row(i) for i in range(num_rows)], SAMPLED)
        return rollouts, engine.counts, server
