"""CPU time that a paragraph's label costs the trainer's process.

    python scripts/benchmark/labels.py
    # another checkout that has compact replies
    PYTHONPATH=../before/src python scripts/benchmark/labels.py

A second process answers as a vLLM server does: with events of scripted labels, by no model. So only
the trainer's part is measured: the prompt, the request, the events, P(Result) and the cut. Replies
are read to the end; the real ones mostly are not.

Rows are the forms of a reply, with each number of tokens that a server sends at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from serving import ROOT, report, spread

from generation.cuts import CutRule
from generation.prompts import COMPACT, REFLECTION_REPLIES
from rea_core.models import load_tokenizer
from rea_rl.rollout.labeller import STREAM_INTERVAL, Labeller
from rea_rl.rollout.servers import Servers

REFLECTION = ROOT / "model" / "Miniature-Reflection"
PARAGRAPH = "So the sum of both terms is 12 + 34 = 46, which is what we get. " * 3
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def reply_tokens(form: str, labels: int) -> list[str]:
    """A reply with so many labels: a token each, or seven."""
    if form == COMPACT:
        return [" Think"] * labels
    return [t for i in range(labels) for t in ("\n", "[", *f"{i % 90 + 10}", "]", ".", " Think")]


def events(tokens: list[str], interval: int) -> list[bytes]:
    """A reply as a server streams it, so many tokens at a time."""
    parts = [tokens[i : i + interval] for i in range(0, len(tokens), interval)]
    pieces = [json.dumps(event(part, last=part is parts[-1])) for part in parts]
    data = [f"data: {piece}\n\n".encode() for piece in [*pieces, "[DONE]"]]
    return [b"%x\r\n%b\r\n" % (len(each), each) for each in data]


def event(tokens: list[str], last: bool) -> dict[str, Any]:
    """Tokens with five alternatives each."""
    others = {" Result": -4.625, " So": -9.125, "(": -10.25, " Wait": -11.5}
    logprobs = {
        "text_offset": [*range(len(tokens))],
        "token_logprobs": [-0.0625] * len(tokens),
        "tokens": tokens,
        "top_logprobs": [{token: -0.0625, **others} for token in tokens],
    }
    choice = {"index": 0, "text": "".join(tokens), "logprobs": logprobs, "stop_reason": None}
    choice["finish_reason"] = "stop" if last else None
    return {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": "m",
            "choices": [choice], "usage": None}  # fmt: skip


async def answer(
    reply: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Send a reply to each request of a connection, event by event."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            _, _, rest = head.lower().partition(b"content-length:")
            await reader.readexactly(int(rest.split()[0]))
            for part in [HEAD, *reply, END]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve(reply: list[bytes], port: Any) -> None:
    """Answer until the process is ended; says its port once."""
    server = await asyncio.start_server(partial(answer, reply), "127.0.0.1", 0)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def run_server(reply: list[bytes], port: Any) -> None:
    """A process of its own."""
    asyncio.run(serve(reply, port))


def measure(form: str, interval: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    ours, theirs = multiprocessing.Pipe()
    reply = events(reply_tokens(form, args.labels), interval)
    context = multiprocessing.get_context("fork")
    server = context.Process(target=run_server, args=(reply, theirs), daemon=True)
    server.start()
    try:
        runs = asyncio.run(ask(form, ours.recv(), args))
    finally:
        server.terminate()
        server.join()
    tokens = len(reply_tokens(form, args.labels))
    return {"form": form, "interval": interval, "tokens": tokens, "us_per_paragraph": min(runs),
            "runs": runs, "spread": spread(runs)}  # fmt: skip


async def ask(form: str, port: int, args: argparse.Namespace) -> list[float]:
    """CPU microseconds a paragraph, of each repeat; one before them warms up."""
    settings = SimpleNamespace(
        cut_rule=CutRule(), reflection_model="m", label_until_decided=False,
        revision_strength="normal", max_concurrent_requests=64, request_timeout=600.0,
        request_retries=0, server_deadline=60.0, reply_form=form,
    )  # fmt: skip
    labeller = Labeller(load_tokenizer(str(REFLECTION)), 1 << 20, settings)
    servers = Servers("reflection_server", [f"http://127.0.0.1:{port}/v1"], settings)
    (seat,) = servers.deal(1, 0)
    paragraphs, found = [PARAGRAPH] * args.labels, []
    for _ in range(args.repeats + 1):
        start = time.process_time()
        replies = (labeller.label("12+34?", paragraphs, seat) for _ in range(args.replies))
        for labels in await asyncio.gather(*replies):
            assert len(labels.p_result) == args.labels, labels
        found.append(1e6 * (time.process_time() - start) / args.replies / args.labels)
    await servers.close()
    return found[1:]


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=int, default=25, help="paragraphs of a response")
    parser.add_argument("--replies", type=int, default=200, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=3, help="the best counts")
    parser.add_argument(
        "--intervals", type=int, nargs="+", default=[STREAM_INTERVAL], help="tokens of an event"
    )
    parser.add_argument("--json", default=None, help="place of the results")
    args = parser.parse_args()
    rows = [
        measure(form, interval, args) for form in REFLECTION_REPLIES for interval in args.intervals
    ]
    table = [["reply", "tokens", "tokens of an event", "us of CPU a paragraph", "spread"]]
    for row in rows:
        told = row["form"], str(row["tokens"]), str(row["interval"])
        table.append([*told, f"{row['us_per_paragraph']:.0f}", f"{row['spread']:.0%}"])
    sizes = {"labels": args.labels, "replies": args.replies, "repeats": args.repeats}
    report("labels", table, sizes | {"rows": rows}, args.json)


if __name__ == "__main__":
    main()
