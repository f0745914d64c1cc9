"""Shares of a stage that several hosts answer, and a server behind a router."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path

import httpx
import pytest
from fake_api import ROWS, api_arguments

from generation.arguments import GenerateArguments
from generation.generate import generate
from generation.shards import Shard, shards_of
from miniature import judge


@pytest.fixture
def stage(problems, serve):
    """Function that runs a stage with changed arguments."""
    url = serve().url

    def run(**changes) -> Path:
        return generate(api_arguments(problems, url, **changes))

    return run


def test_joined_shares_are_the_file_of_one_run(stage):
    whole = stage(save_suffix="_whole").read_bytes()
    parts = [stage(shard=f"{i}/5") for i in (4, 1, 5, 3, 2)]
    assert len({*parts}) == 5
    ids = [row["id"] for row in json.loads(parts[1].read_text())]
    assert ids == ["p0", "p5", "p10"]
    joined = stage()
    assert joined.read_bytes() == whole
    assert sorted(path.name for path in joined.parent.glob("test_math_cot.*")) == [
        "test_math_cot.json",
        "test_math_cot.settings.json",
    ]
    written = joined.stat().st_mtime_ns
    assert stage(shard="2/5") == stage() == joined  # complete, whoever asks
    assert joined.stat().st_mtime_ns == written


def test_shares_are_found_whatever_the_name_of_their_output(stage):
    parts = [stage(shard=f"{i}/2", save_suffix="_[1]*") for i in (1, 2)]
    joined = stage(save_suffix="_[1]*")
    assert not any(part.exists() for part in parts) and len(json.loads(joined.read_text())) == 12


def test_missing_rows_are_named(stage):
    stage(shard="2/4")
    stage(shard="3/4")
    message = (
        "shares 1/4, 4/4 are not complete, and 6 of 12 rows are missing: p0, p3, p4, p7, p8, ...; "
        "run them with --shard, or delete"
    )
    with pytest.raises(ValueError, match=message):
        stage()
    begun = stage(shard="1/4")  # as if it had been killed after its second row
    rows = json.loads(begun.read_text())
    lines = "".join(json.dumps([i, row]) + "\n" for i, row in enumerate(rows[:2]))
    begun.with_suffix(".part.jsonl").write_text(lines + '[2, {"id"')
    begun.unlink()
    with pytest.raises(ValueError, match="shares 1/4, 4/4 are not complete, and 4 .*: p3, p7, p8"):
        stage()
    stage(shard="1/4")
    last = stage(shard="4/4")
    rows = json.loads(last.read_text())
    last.write_text(json.dumps(rows[1:]))
    with pytest.raises(ValueError, match="a share has lost rows .* 1 of 12 rows are missing: p3;"):
        stage()


def test_shares_that_do_not_belong_together(stage):
    stage(shard="1/2")
    with pytest.raises(ValueError, match="made with other settings: temperature"):
        stage(shard="1/2", temperature=0.9)
    stage(shard="2/2")
    with pytest.raises(ValueError, match="made with other settings: temperature"):
        stage(temperature=0.9)
    stage(shard="1/3")
    with pytest.raises(ValueError, match="has shares of 2 and of 3; delete those"):
        stage()


def test_more_shares_than_rows(stage):
    for i in range(1, 16):
        stage(shard=f"{i}/15")
    assert [row["id"] for row in json.loads(stage().read_text())] == [row["id"] for row in ROWS]
    assert shards_of(Path("nowhere/none.json")) == []


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "1/4/2", "-1/4", ""])
def test_a_share_that_is_none_is_one_line(text):
    with pytest.raises(ValueError, match=f"shard is '{text}'; write the number"):
        Shard.read(text)


def test_labels_of_shares_are_joined_by_their_problem(tmp_path):
    """Responses without a thinking have no labels, and others have several chunks."""
    thinking = "Let us see.\n\n" + "\n\n".join(f"So {i}+{i}={2 * i}." for i in range(40))
    rows = [
        {
            "id": f"q{i}", "problem": "1+1?", "answer": "2",
            "responses": [
                {"text": f"{thinking}</think>2" if i % 3 else "</think>2", "num_tokens": 9,
                 "finish_reason": "stop"}
            ] * 2,
        }
        for i in range(7)
    ]  # fmt: skip
    path = tmp_path / "paths.json"
    path.write_text(json.dumps(rows))

    def label(shard=None, suffix=""):
        args = GenerateArguments(
            qaf=str(path), model_dir="oracle", split="labeling_distill_use_asw", shard=shard,
            paragraph_tokenizer="model/Miniature-LRM", paragraph_min_tokens=1, chunk_tokens=60,
            output_dir=str(tmp_path / "out"), save_suffix=suffix,
        )  # fmt: skip
        return generate(args, judge.respond)

    for i in (1, 2, 3):
        label(f"{i}/3")
    joined = label()
    assert joined.read_bytes() == label(suffix="_whole").read_bytes()
    assert {row["problem_id"] for row in json.loads(joined.read_text())} == {"q1", "q2", "q4", "q5"}


class Router(ThreadingHTTPServer):
    """Sends each request to the next of several servers, as a router in front of replicas does."""

    daemon_threads = True

    def __init__(self, urls: list[str]):
        super().__init__(("127.0.0.1", 0), _Forward)
        self.next_url = cycle(urls).__next__
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = self.server.next_url().removesuffix("/v1") + self.path
        headers = {"Content-Type": "application/json"}
        reply = httpx.post(url, content=body, headers=headers, trust_env=False)
        self.send_response(reply.status_code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply.content)))
        self.end_headers()
        self.wfile.write(reply.content)

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""


def test_two_servers_behind_a_router_answer_as_one(problems, serve):
    servers = [serve(), serve()]
    with Router([server.url for server in servers]) as router:
        threading.Thread(target=router.serve_forever, daemon=True).start()
        routed = generate(api_arguments(problems, router.url, save_suffix="_routed"))
        router.shutdown()
    assert [len(server.bodies) for server in servers] == [12, 12]
    alone = generate(api_arguments(problems, serve().url))
    assert routed.read_bytes() == alone.read_bytes()
