"""Clients of OpenAI-style servers: what an address means, and how it is asked.

No proxy of the environment is asked for an address of this machine, nor for the servers of a
training, which are ours wherever they run. A judge on the internet may be behind one.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import httpx
import psutil

if TYPE_CHECKING:
    import openai

# An idle connection is used again within this time. Servers close one after a while (vLLM: 5 s); a
# request that is sent at that moment is lost, and a response that is drawn again keeps the whole
# batch waiting.
IDLE_SECONDS = 2.0
# of hosts files, in addition to those that end in .localhost
LOOPBACK_NAMES = (
    *("localhost", "localhost.localdomain", "localhost4", "localhost6"),
    *("ip6-localhost", "ip6-loopback"),
)


def split_url(url: str, key: str) -> SplitResult:
    """Parts of a server's address. Raises ValueError naming the `key` that has it for one that no
    client could take.

    A port may be missing; an IPv6 address is in brackets, as in `http://[::1]:12345/v1`.
    """
    cause = ""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # a port that is no number, or an open bracket
        is_right, cause = False, f" ({error})"
    if not is_right:
        raise ValueError(
            f"{key} is {url!r}{cause}; write it as http://HOST:PORT/v1, an IPv6 address in brackets"
        )
    return parts


def check_urls(urls: Sequence[str], key: str) -> None:
    """Raise ValueError for addresses of vLLM servers, none at all, or one server twice, in whatever
    spelling."""
    seen: dict[tuple[str, int], str] = {}
    for url in urls:
        parts = split_url(url, key)
        if parts.path != "/v1":
            raise ValueError(f"{key} is {url!r}; write it as http://HOST:PORT/v1")
        place = (
            _one_name(str(parts.hostname)),
            parts.port or (443 if parts.scheme == "https" else 80),
        )
        if place in seen:
            twice = (
                f"{url!r} twice"
                if seen[place] == url
                else f"{seen[place]!r} and {url!r}, one server"
            )
            raise ValueError(f"{key} has {twice}; name each server once")
        seen[place] = url
    if not urls:
        raise ValueError(f"{key} is an empty list; give one address or more")


def _one_name(host: str) -> str:
    """One spelling of a host, as far as it is known without asking the network."""
    if address := _numeric(host):
        return str(address)
    return "127.0.0.1" if is_loopback(host) else host.lower().removesuffix(".")


def server_url(host: str, port: int) -> str:
    """Base URL of a server that listens on `host`, as an OpenAI client takes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def is_loopback(host: str) -> bool:
    """Whether a host name or address reaches this machine only from itself."""
    address = _numeric(host)
    if address is None:
        name = host.lower().removesuffix(".")
        return name in LOOPBACK_NAMES or name.endswith(".localhost")
    return address.is_loopback


def is_own(host: str) -> bool:
    """Whether a host name or address is one of this machine's, or stands for all of them."""
    address = _numeric(host)
    if address is None:
        names = [name.lower().removesuffix(".") for name in (host, socket.gethostname())]
        if "." not in names[0] or "." not in names[1]:  # the other one may have its domain
            names = [name.partition(".")[0] for name in names]
        return is_loopback(host) or names[0] == names[1]
    own = {
        entry.address.partition("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
    }
    return address.is_loopback or address.is_unspecified or str(address) in own


def bypass_proxies(url: str) -> None:
    """Let every library of this process ask a server of this machine without a proxy."""
    if is_own(host := urlsplit(url).hostname or ""):
        for name in ("no_proxy", "NO_PROXY"):
            known = os.environ.get(name)
            os.environ[name] = f"{known},{host}" if known else host


def http_errors() -> tuple[type[Exception], ...]:
    """Errors of the Hub's client, whose HTTP library depends on its version, and of the system."""
    libraries = [import_module(name) for name in ("httpx", "httpx2") if find_spec(name)]
    return OSError, ValueError, *(library.HTTPError for library in libraries)


def openai_client(
    url: str, *, key: str | None = None, proxies: bool = False, **settings: Any
) -> openai.OpenAI:
    """Client of a server.

    Args:
        url: base URL.
        key: API key; default: that of our servers.
        proxies: let the environment's proxies be asked, unless the address is this machine's.
        settings: further arguments of the client, such as `timeout` and `max_retries`.
    """
    import openai

    http = _made(openai.DefaultHttpxClient, url, proxies)
    return openai.OpenAI(base_url=url, api_key=key or api_key(), http_client=http, **settings)


def async_openai_client(
    url: str, *, key: str | None = None, proxies: bool = False, **settings: Any
) -> openai.AsyncOpenAI:
    """The same, asynchronous; who opens many requests at once bounds them by itself."""
    import openai

    http = _made(openai.DefaultAsyncHttpxClient, url, proxies)
    return openai.AsyncOpenAI(base_url=url, api_key=key or api_key(), http_client=http, **settings)


def _made(make: Callable[..., Any], url: str, proxies: bool) -> Any:
    limits = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_SECONDS)
    trusts = proxies and not is_own(urlsplit(url).hostname or "")
    try:
        return make(limits=limits, trust_env=trusts)
    except (ImportError, ValueError, OSError) as error:
        raise ValueError(
            f"{url} cannot be asked as the environment says ({error}); correct ALL_PROXY, "
            "HTTP_PROXY, HTTPS_PROXY and SSL_CERT_FILE, or unset them"
        ) from error


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Address that a host is written as, in any spelling that the system reads; None for a name."""
    try:
        (*_, place), *_ = socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError):
        return None
    address = ipaddress.ip_address(str(place[0]).partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def api_key() -> str:
    """Key of the vLLM servers, as vLLM itself reads it; servers on 127.0.0.1 take any."""
    return os.environ.get("VLLM_API_KEY", "EMPTY")
