"""A server of an OpenAI-style API that tests ask, and arguments of a generation that asks it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from generation.arguments import GenerateArguments

ROWS = [
    {"id": f"p{i}", "problem": f"{i}+{i}?", "answer": str(2 * i), "level": 1 + i % 2}
    for i in range(12)
]


class FakeServer(ThreadingHTTPServer):
    """Answers chat completions with a text that depends on prompt and seed, as a sampler does,
    or with `text(body)`."""

    def __init__(
        self,
        fail_after: int | None = None,
        seconds: float = 0.0,
        text: Callable[[dict], str] = lambda body: (
            f"{body['messages'][0]['content']} {body['seed']}</think>\\boxed{{1}}"
        ),
        refuse: Callable[[dict], str] = lambda body: "",
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fail_after = fail_after
        self.seconds = seconds
        self.text, self.refuse = text, refuse
        self.bodies: list[dict] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.seconds)
        self.server.bodies.append(body)
        if self.server.fail_after is not None and len(self.server.bodies) > self.server.fail_after:
            return self._send(400, {"error": {"message": "the engine is gone"}})
        if message := self.server.refuse(body):
            return self._send(400, {"error": {"message": message}})
        text = self.server.text(body)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 3, "completion_tokens": len(text), "total_tokens": 3 + len(text)}
        self._send(
            200,
            {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
            | {"choices": [choice], "usage": usage},
        )

    def _send(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""


def api_arguments(qaf: str, url: str, **changes) -> GenerateArguments:
    defaults = {
        "qaf": qaf,
        "model_dir": "model/Some-LRM",
        "prompt_template": "{problem}",
        "n_generate_sample": 2,
        "output_dir": str(Path(qaf).parent / "output"),
        "api": True,
        "api_base": url,
        "api_model": "policy-7",
        "max_concurrent_requests": 4,
        "request_retries": 0,
    }
    return GenerateArguments(**{**defaults, **changes})
