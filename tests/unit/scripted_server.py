"""A web server that answers as a vLLM server would, from a script: real HTTP, no model."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], tuple[int, Any]]  # request body -> status and body of the answer


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that arrive together


class _Listener6(_Listener):
    address_family = socket.AF_INET6


class ScriptedServer:
    """Context manager. `requests` lists (route, body) in the order of arrival; `models` are the
    names it serves.

    `encode` makes the ids of a text.
    """

    def __init__(
        self,
        complete: Reply,
        models: list[str],
        context: int = 1024,
        port: int = 0,
        host: str = "127.0.0.1",
    ):
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.models, self.context, self.complete = models, context, complete
        self.version = "0.0.1"
        self.encode: Callable[[str], list[int]] = lambda text: []
        self.open_requests, self.most_open = 0, 0
        self.pause = 0.0  # seconds before each token of a stream
        self.tokens_an_event = 1  # of a stream
        self.stream_limit: int | None = None  # tokens after which the connection breaks
        self.streamed: list[int] = []  # tokens that were sent of each stream
        self._lock = threading.Lock()
        # by route: what it answers before anything else
        self.first: dict[str, list[tuple[int, Any]]] = {}
        self.only_known_models = False  # refuse completions of models that are not in `models`
        self.broken = False  # break each connection instead of answering
        self._server = (_Listener6 if ":" in host else _Listener)((host, port), self._handler())
        self.port = self._server.server_port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    def bodies(self, route: str) -> list[dict[str, Any]]:
        return [body for path, body in self.requests if path == f"/v1/{route}"]

    def __enter__(self) -> ScriptedServer:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, route: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.first.get(route):
            return self.first[route].pop(0)
        if route == "/v1/completions":
            if self.only_known_models and body["model"] not in self.models:
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            return self.complete(body)
        if route == "/v1/chat/completions":
            return self.complete(body)
        if route == "/tokenize":
            return 200, {"tokens": self.encode(body["prompt"])}
        if body["lora_path"].endswith("refused") if route == "/v1/load_lora_adapter" else False:
            return 400, {"error": {"message": "rank 32 is greater than max_lora_rank 16"}}
        if route == "/v1/load_lora_adapter":
            self.models.append(body["lora_name"])
        else:
            self.models.remove(body["lora_name"])
        return 200, "Success"

    def _handler(script) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                if script.broken:
                    return self.hang_up()
                if self.path == "/version":
                    return self.send(200, {"version": script.version})
                if script.first.get(self.path):
                    return self.send(*script.first[self.path].pop(0))
                if self.path not in ("/health", "/v1/models"):
                    return self.send(404, {"detail": "Not Found"})
                cards = [
                    {"id": name, "object": "model", "max_model_len": script.context}
                    for name in script.models
                ]
                self.send(200, {"object": "list", "data": cards})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with script._lock:
                    script.requests.append((self.path, body))
                    script.open_requests += 1
                    script.most_open = max(script.most_open, script.open_requests)
                answer = script._answer(self.path, body)
                with script._lock:
                    script.open_requests -= 1
                if script.broken:
                    return self.hang_up()
                if body.get("stream") and answer[0] == 200:
                    self.stream(answer[1])
                else:
                    self.send(*answer)

            def stream(self, answer: Any):
                """Events of a token or more, until the client goes."""
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                choice = answer["choices"][0]
                sent = 0
                try:
                    steps = choice["logprobs"]["top_logprobs"]
                    for sent in range(0, len(steps), script.tokens_an_event):
                        if sent == script.stream_limit:
                            self.connection.shutdown(socket.SHUT_RDWR)
                        time.sleep(script.pause)
                        part = steps[sent : sent + script.tokens_an_event]
                        self.event(
                            json.dumps(
                                answer
                                | {"choices": [choice | {"logprobs": {"top_logprobs": part}}]}
                            )
                        )
                    sent += 1
                    self.event("[DONE]")
                    self.wfile.write(b"0\r\n\r\n")
                except ConnectionError:
                    self.close_connection = True
                script.streamed.append(sent)

            def hang_up(self):
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

            def event(self, data: str):
                data = f"data: {data}\n\n"
                self.wfile.write(f"{len(data):x}\r\n{data}\r\n".encode())
                self.wfile.flush()

            def send(self, status: int, answer: Any):
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                with contextlib.suppress(ConnectionError):  # the client did not wait for it
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args):
                pass

        return Handler


def completion(
    ids: list[int], finish_reason: str = "stop", cached: int | None = None, **logprobs: Any
) -> tuple[int, dict[str, Any]]:
    """One choice as vLLM sends it; the i-th id has log-prob -i / 8 unless `logprobs` says
    otherwise."""
    usage = {"prompt_tokens": 0, "completion_tokens": len(ids), "total_tokens": len(ids)}
    usage["prompt_tokens_details"] = None if cached is None else {"cached_tokens": cached}
    logprobs = {"token_logprobs": [-i / 8 for i in range(len(ids))], **logprobs}
    choice = {
        "index": 0,
        "text": "",
        "finish_reason": finish_reason,
        "token_ids": ids,
        "logprobs": logprobs,
    }
    shared = {"id": "x", "object": "text_completion", "created": 0, "model": "m"}
    return 200, {**shared, "choices": [choice], "usage": usage}
