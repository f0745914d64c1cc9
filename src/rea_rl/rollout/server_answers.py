"""Answers of a vLLM server that is running, whoever started it: health, names, contexts,
vocabulary. `rollout.server_check` asks for more of a server that somebody else started.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx

from rea_core.clients import api_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# encoded by trainer and server alike
PROBE = "Wait, 12 + 34 = 46.\n</think>\n\n**Final Answer:** \\boxed{46}"
POLL_SECONDS = 0.2


def check_server(
    base_url: str,
    model: str,
    max_model_len: int | None = None,
    timeout: float = 10.0,
    *,
    key: str | None = None,
    why: str = "",
) -> None:
    """Check that a server is there and serves what is needed.

    Args:
        base_url: as an OpenAI client takes it, with `/v1`.
        model: name that requests will use.
        max_model_len: tokens that a request and its answer need together.
        timeout: seconds to wait for the server's first answer.
        key: API key; default: the variable VLLM_API_KEY.
        why: what makes up `max_model_len`, for the error.

    Raises ConnectionError if nothing answers, ValueError if the server wants another key, serves
    another model or has a shorter context.
    """
    _wait_healthy(base_url, key, timeout)
    served = served_contexts(base_url, key)
    if model not in served:
        raise ValueError(
            f"the server at {base_url} serves {', '.join(map(repr, served)) or 'no model'}, but "
            f"{model!r} is needed; start it with that model (scripts/vllm.sh, "
            "scripts/vllm_reflection.sh), or give another address"
        )
    if max_model_len is not None and served[model] is None:
        raise ValueError(
            f"the server at {base_url} does not tell the context of {model!r} (max_model_len), but "
            f"{max_model_len} tokens are needed; give the address of a vLLM server"
        )
    if max_model_len is not None and served[model] < max_model_len:
        raise ValueError(
            f"the server at {base_url} has a context of {served[model]} tokens, but "
            f"{max_model_len} are needed{why and f' ({why})'}; start it with a larger "
            "max_model_len, or ask for shorter completions"
        )


def _wait_healthy(base_url: str, key: str | None, timeout: float) -> None:
    """Return once the server answers. Raises ConnectionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            request(base_url, "/health", key)
            return
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def served_contexts(base_url: str, key: str | None = None) -> dict[str, int | None]:
    """Names that a server serves, each with the context that it tells, in tokens.

    Raises ValueError for another program than an OpenAI-style server.
    """
    told = told_by(base_url, "/v1/models", key)
    entries = told["data"] if isinstance(told.get("data"), list) else [None]
    names = [entry.get("id") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise _no_vllm(base_url, "/v1/models", "with no list of models")
    contexts = {entry["id"]: entry.get("max_model_len") for entry in entries}
    return {name: size if isinstance(size, int) else None for name, size in contexts.items()}


def check_vocabulary(base_url: str, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for another vocabulary than `tokenizer`'s: responses travel as ids."""
    body = {"model": model, "prompt": PROBE, "add_special_tokens": False}
    served = told_by(base_url, "/tokenize", None, body).get("tokens")
    if not isinstance(served, list):
        raise _no_vllm(base_url, "/tokenize", "with no tokens")
    if served != tokenizer.encode(PROBE, add_special_tokens=False):
        raise ValueError(
            f"the server at {base_url} has another vocabulary than the tokenizer of {model!r} "
            "here: start it with the same files of the model"
        )


def told_by(
    base_url: str, route: str, key: str | None, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """JSON object of a server. Raises as `request`, and ValueError for anything else."""
    try:
        told = request(base_url, route, key, body).json()
    except json.JSONDecodeError:
        told = None
    if not isinstance(told, dict):
        raise _no_vllm(base_url, route, "with no JSON object")
    return told


def _no_vllm(base_url: str, route: str, answers: str) -> ValueError:
    return ValueError(
        f"what listens at {base_url} is no vLLM server: {route} answers {answers}; give the "
        "address of one"
    )


def request(
    base_url: str, route: str, key: str | None, body: dict[str, Any] | None = None
) -> httpx.Response:
    """GET a route, or POST a body. Raises ConnectionError if nothing answers, or ValueError."""
    response = ask(base_url, route, key, body)
    if response.status_code == 401:
        raise ValueError(
            f"the server at {base_url} refuses the key; set VLLM_API_KEY to the one it was started "
            "with"
        )
    if response.status_code >= 500:
        raise ConnectionError(
            f"the server at {base_url} is not healthy: {route} answers {response.status_code}"
        )
    if response.status_code != 200:
        raise _no_vllm(base_url, route, str(response.status_code))
    return response


def ask(
    base_url: str,
    route: str,
    key: str | None,
    body: dict[str, Any] | None = None,
    timeout: float = 10.0,
) -> httpx.Response:
    """The same, with an answer of any status, after at most `timeout` seconds."""
    headers = {"Authorization": f"Bearer {key or api_key()}"}
    try:
        # trust_env: the servers are ours, no proxy of the environment is to be asked for them
        method, url = "POST" if body else "GET", base_url.removesuffix("/v1") + route
        return httpx.request(
            method, url, json=body, headers=headers, timeout=timeout, trust_env=False
        )
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise ConnectionError(
            f"no server answers at {base_url} ({error}); start it (scripts/vllm.sh, "
            "scripts/vllm_reflection.sh) and see its log under logs/, or give another address"
        ) from error
