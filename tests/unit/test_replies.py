"""Replies of foreign servers: what becomes of each kind, over the command that users type, and
what is never written."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hybrid import save_hybrid
from tiny import save_model

from generation import generate, math_verify_all
from generation.generation_file import read_generations
from rea_core.row_files import write_json

USAGE = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}


class Server(ThreadingHTTPServer):
    """Answers chat completions with bodies from a list, the last one again and again."""

    def __init__(self, *bodies: object):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies, self.asked = list(bodies), 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = self.server.bodies[min(self.server.asked, len(self.server.bodies) - 1)]
        self.server.asked += 1
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(200)
        self.send_header(
            "Content-Type", "text/html" if isinstance(body, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""


def reply(
    content: object = "x</think>\\boxed{2}",
    end: object = "stop",
    usage: object = USAGE,
    **message: object,
) -> dict:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": end,
    }
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models by what their prompts do to the thinking; `name` is no folder."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "open": str(save_model(folder / "open")),
        "hybrid": str(save_hybrid(folder / "hybrid")),
        "name": "some/name",
    }


@pytest.fixture
def ask(tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Function that asks a server one problem over the command; returns its response."""
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "p.json", [{"id": "p", "problem": "1+1?", "answer": "2"}])
    servers = []

    def run(model: str, *bodies: object, flags: tuple[str, ...] = ()) -> dict:
        servers.append(server := Server(*bodies))
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        argv = [
            "--qaf",
            "p.json",
            "--model_dir",
            models[model],
            "--api",
            "--api_base",
            url,
            "--api_model",
            "m",
        ]
        argv += [
            "--request_retries",
            "1",
            "--save_suffix",
            str(len(servers)),
            "--output_dir",
            "out",
            *flags,
        ]
        run.file = Path("out", Path(models[model]).name, f"p_math_cot{len(servers)}.json")
        run.server = server
        generate.main(argv)
        (row,) = read_generations(run.file)
        return row["responses"][0]

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


def test_every_kind_of_reply_has_its_outcome(ask):
    long = "a" * 9
    closed = ("--chat_template_kwargs", '{"enable_thinking": false}')
    cases = [
        ("open", reply(), "x</think>\\boxed{2}", 7, "stop"),
        # A thinking that was returned apart is put back as the model wrote it.
        ("open", reply("\\boxed{2}", reasoning_content="1+1"), "1+1</think>\\boxed{2}", 7, "stop"),
        ("open", reply("\\boxed{2}", reasoning="1+1"), "1+1</think>\\boxed{2}", 7, "stop"),
        (
            "hybrid",
            reply("\\boxed{2}", reasoning_content="1+1"),
            "<think>1+1</think>\\boxed{2}",
            7,
            "stop",
        ),
        (
            "name",
            reply("\\boxed{2}", reasoning_content="1+1"),
            "<think>1+1</think>\\boxed{2}",
            7,
            "stop",
        ),
        (
            "open",
            reply(None, "length", reasoning_content="so \\boxed{2}"),
            "so \\boxed{2}",
            7,
            "length",
        ),
        (
            "hybrid",
            reply(None, "length", reasoning_content="so \\boxed{2}"),
            "<think>so \\boxed{2}",
            7,
            "length",
        ),
        # Also with its markers, or with its end in the content; and not twice.
        (
            "open",
            reply("\\boxed{2}", thinking="<think>1+1</think>"),
            "1+1</think>\\boxed{2}",
            7,
            "stop",
        ),
        (
            "open",
            reply("</think>\\boxed{2}", reasoning_content="1+1"),
            "1+1</think>\\boxed{2}",
            7,
            "stop",
        ),
        (
            "name",
            reply("<think>1+1</think>\\boxed{2}", reasoning="1+1"),
            "<think>1+1</think>\\boxed{2}",
            7,
            "stop",
        ),
        # One that is only counted has an end.
        (
            "open",
            reply(
                "\\boxed{2}", usage=USAGE | {"completion_tokens_details": {"reasoning_tokens": 5}}
            ),
            "</think>\\boxed{2}",
            7,
            "stop",
        ),
        # Without any text it is unanswered.
        ("open", reply(None), "", 7, "stop"),
        ("open", reply("", "length"), "", 7, "length"),
        ("open", reply(None, refusal="I cannot."), "I cannot.", 7, "stop"),
        ("open", reply("par", "content_filter"), "par", 7, "content_filter"),
        # Tokens that are not told are counted, end of sequence included.
        ("open", reply(long, usage=None), long, 10, "stop"),
        ("open", reply(long, "length", usage={"prompt_tokens": 3}), long, 9, "length"),
        ("open", reply(long, usage=USAGE | {"completion_tokens": None}), long, 10, "stop"),
        ("open", reply(long, usage=USAGE | {"completion_tokens": 0}), long, 10, "stop"),
        ("open", reply(long, usage=USAGE | {"completion_tokens": -1}), long, 10, "stop"),
        # Half a character would be in no file.
        ("open", reply("a\ud83d"), "a\ufffd", 7, "stop"),
    ]
    for model, body, text, num_tokens, finish_reason in cases:
        expected = {"text": text, "num_tokens": num_tokens, "finish_reason": finish_reason}
        found = ask(model, body)
        assert {key: found[key] for key in expected} == expected, body
    found = ask("hybrid", reply(None, reasoning_content="It is \\boxed{2}"), flags=closed)
    assert (found["text"], found["prompt_thinking"]) == ("It is \\boxed{2}", "closed")


UNUSABLE = [
    (reply(end=None), "finish_reason is None"),
    (reply(end="abort"), "finish_reason is 'abort'"),
    (reply(None, "tool_calls"), "finish_reason is 'tool_calls'"),
    (reply() | {"choices": []}, "no choice with a message"),
    (reply() | {"choices": None}, "no choice with a message"),
    (
        reply() | {"choices": [{"index": 0, "message": None, "finish_reason": "stop"}]},
        "no choice with a message",
    ),
    (reply([{"type": "image"}]), "its content is no text"),
    (
        reply() | {"choices": [{"index": 0, "message": "2", "finish_reason": "stop"}]},
        "no choice with a message",
    ),
    ({"error": {"message": "overloaded"}}, "no choice with a message"),
    (b"<html>Bad gateway</html>", "no choice with a message"),
]


def test_a_reply_that_is_no_response_is_asked_again_and_then_stops_the_run(ask):
    assert ask("open", UNUSABLE[0][0], reply())["finish_reason"] == "stop" and ask.server.asked == 2
    for body, message in UNUSABLE:
        with pytest.raises(
            SystemExit, match="error: api_base: .* sent 2 replies for row 'p' that cannot be used"
        ) as stop:
            ask("open", body)
        assert message in str(stop.value) and ask.server.asked == 2
        assert not ask.file.exists()


def test_tokens_that_nobody_can_count_are_refused(ask):
    with pytest.raises(
        SystemExit, match="error: api: .*do not say their tokens.*model_dir is no folder"
    ):
        ask("name", reply(usage=None))


def test_odd_replies_are_counted_in_the_log(ask, capfd):
    ask("open", reply("2", reasoning_content="1+1", usage=None))
    logged = capfd.readouterr().err
    assert "1 replies had their thinking apart, which was put back" in logged
    assert "1 replies do not say their tokens, which were counted" in logged


def test_a_file_of_odd_replies_is_scored(ask, models):
    ask("open", reply(None, "length", reasoning_content="so \\boxed{2}"))
    math_verify_all.main([str(ask.file), "--model_dir", models["open"]])
    figures = json.loads(ask.file.with_suffix(".scores.json").read_text())["groups"]["all"]
    assert [figures[key]["value"] for key in ("accuracy", "answered", "truncated")] == [
        0.0,
        0.0,
        1.0,
    ]
    assert figures["think_tokens"]["value"] == len("so \\boxed{2}")
