"""What stands between the network and the page: who may ask, what for, how much and how often."""

import asyncio
import base64
import errno
import hashlib
import hmac
import ipaddress
import logging
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from grlo_lite.app.comparison.values import Refused
from grlo_lite.errors import BadInput

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BODY_BYTES = 4 * 2**20
# All that the page and gradio_client ask for; what else Gradio serves (uploads, proxies, its editor) is not reachable
ROUTES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/votes\.jsonl|/(assets|static|svelte)/.+|"
    r"/gradio_api/(info/?|startup-events|queue/(join|data)|run/predict|call/[a-z_]+(/[0-9a-f]+)?|cancel|reset/?)"
)
INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
POLICY = (
    "default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'none'; "
    "frame-src 'none'; frame-ancestors {frames}"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening(host: str, port: int | None) -> socket.socket:
    """A socket that listens on `port`, or on the first free one from 7860. Raises BadInput where none is to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for tried in [port] if port is not None else range(7860, 7960):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, tried))
        except OSError as error:
            listener.close()
            if port is not None or error.errno not in (errno.EACCES, errno.EADDRINUSE):
                raise BadInput(f"--host {host} --port {tried}: {error.strerror}; choose another") from None
            continue
        listener.listen(128)
        return listener
    raise BadInput("no port from 7860 to 7959 is free; name one by --port")


def mounted(blocks: Any, look: dict[str, Any], votes: Path) -> Any:
    """The page as an ASGI application, and beside it the votes' file to take away."""
    import gradio as gr
    from fastapi import FastAPI, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/votes.jsonl")
    def all_votes() -> Response:
        content = votes.read_bytes() if votes.exists() else b""
        return Response(content, media_type="application/jsonl", headers={"content-disposition": "attachment"})

    quiet = {"ssr_mode": False, "pwa": False, "mcp_server": False, "enable_monitoring": False, "run_history": False}
    return gr.mount_gradio_app(app, blocks, "/", show_error=False, **quiet, **look)


def uvicorn_server(app: Any) -> Any:
    """A server of the app. Open pages do not hold its end up, and it says nothing of the connections that it then
    breaks off.
    """
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", ws="none", server_header=False, proxy_headers=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    return server


class RateLimit:
    """So many questions a minute from one address, in any rhythm."""

    def __init__(self, a_minute: int):
        self.a_minute = a_minute
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, address: str) -> None:
        """Counts a question. Raises Refused where the address has asked too much."""
        with self._lock:
            now = time.monotonic()
            if len(self._left) > 10_000:  # who has been quiet for a minute has all of it again
                self._left = {who: kept for who, kept in self._left.items() if now - kept[1] < 60}
            left, since = self._left.get(address, (float(self.a_minute), now))
            left = min(self.a_minute, left + (now - since) * self.a_minute / 60)
            if left < 1:
                wait = (1 - left) * 60 / self.a_minute
                raise Refused(f"{self.a_minute} questions a minute are answered; ask again in {wait:.0f} s")
            self._left[address] = (left - 1, now)


class Gate:
    """ASGI middleware round the whole app: password, routes, origin and size of requests, headers of answers.

    `password` is `user:password`, asked for by HTTP Basic on every route. `hosts` are the names that a browser may
    know the server by, which keeps a page of another site from reaching a loopback server through a name of its own
    (DNS rebinding); None takes any. In `colab`, the browser comes through Google's proxy, and in a frame.
    """

    def __init__(self, app: Any, password: str | None, hosts: tuple[str, ...] | None, colab: bool = False):
        self.app, self.hosts, self.colab = app, None if colab else hosts, colab
        self.frames = "https://*.google.com https://*.googleusercontent.com" if colab else "'none'"
        self.password = hashlib.sha256(password.encode()).digest() if password else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over WebSockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self.password and not self._known(headers.get("authorization", "")):
            if "authorization" in headers:
                await asyncio.sleep(0.5)  # for those who guess
            return await _answered(send, 401, "a password is needed", (b"www-authenticate", b'Basic realm="grlo_lite"'))
        if refusal := self._refusal(scope, headers):
            return await _answered(send, *refusal)
        page = _Page(send, self.frames) if scope["path"] == "/" else _with_headers(send)
        await self.app(scope, _limited(receive), page)

    def _known(self, authorization: str) -> bool:
        kind, _, given = authorization.partition(" ")
        try:
            decoded = base64.b64decode(given, validate=True)
        except ValueError:
            return False
        return kind.lower() == "basic" and hmac.compare_digest(hashlib.sha256(decoded).digest(), self.password or b"")

    def _refusal(self, scope: Any, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return 403, "this server answers under its own address only"
        if not self.colab and headers.get("origin", f"http://{host}") not in (f"http://{host}", f"https://{host}"):
            return 403, "requests from other sites are refused"
        if not ROUTES.fullmatch(scope["path"]):
            return 404, "not found"
        # An image or a frame in an answer must not hold on to the connections that the page answers over
        if scope["path"].startswith("/gradio_api/") and headers.get("sec-fetch-dest", "empty") != "empty":
            return 403, "this is for the page's own scripts"
        if int(headers.get("content-length", "0")) > MOST_BODY_BYTES:
            return 413, "the request is too long"
        return None


def _with_headers(send: Any) -> Any:
    """`send`, which adds the headers that every answer has."""

    async def sent(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message["headers"], *HEADERS]}
        await send(message)

    return sent


class _Page:
    """Holds the page back until it is whole, to name its own inline scripts in the policy by their hashes."""

    def __init__(self, send: Any, frames: str):
        self.send, self.frames = send, frames
        self.start: dict[str, Any] = {}
        self.body = b""

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.start = message
            return
        self.body += message.get("body", b"")
        if message.get("more_body"):
            return
        # a manifest would be asked for without the password, and is of no use here
        body = re.sub(rb'<link rel="manifest"[^>]*>', b"", self.body)
        digests = (hashlib.sha256(script).digest() for script in INLINE_SCRIPT.findall(body))
        scripts = " ".join(sorted({f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests}))
        policy = POLICY.format(scripts=scripts, frames=self.frames).encode()
        kept = [(name, value) for name, value in self.start["headers"] if name.lower() != b"content-length"]
        added = [(b"content-security-policy", policy), (b"content-length", str(len(body)).encode()), *HEADERS]
        await self.send(self.start | {"headers": [*kept, *added]})
        await self.send({"type": "http.response.body", "body": body})


def _name(host: str) -> str | None:
    """The name or address of a Host header; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _limited(receive: Any) -> Any:
    """`receive`, which breaks off a request whose body grows too long."""
    taken = 0

    async def limited() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > MOST_BODY_BYTES else message

    return limited


async def _answered(send: Any, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode() + b"\n"
    plain = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*plain, *HEADERS, *headers]})
    await send({"type": "http.response.body", "body": body})
