"""A judge that is a function, behind an OpenAI-compatible server: in this process, or on a port of its own."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

Body = dict[str, Any]
Say = Callable[[Body], str | tuple[int, Any, dict[str, str]]]


def texts_of(body: Body) -> dict[str, str]:
    """What lies between the marks of the first message, by name: QUESTION, REFERENCE, ANSWER; FIRST ANSWER, SECOND ANSWER."""
    prompt = body["messages"][0]["content"]
    return {name: text for name, _, text in re.findall(r"<<<([A-Z ]+) (\w+)\n(.*?)\nEND OF \1 \2>>>", prompt, re.DOTALL)}


def verdict(word: str) -> str:
    return json.dumps({"reason": "so it is", "verdict": word})


def exact(body: Body) -> str:
    """An honest judge of answers that must be the reference; without a reference, of such as are `yes`."""
    texts = texts_of(body)
    return verdict("right" if texts["ANSWER"].strip() == texts.get("REFERENCE", "yes") else "wrong")


class JudgeServer:
    """say: of a request, the judge's answer; or a status, a body (JSON, or bytes as they are) and headers."""

    def __init__(self, say: Say = exact) -> None:
        self.say = say
        self.asked: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    def respond(self, body: Body, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        with self.lock:
            self.asked.append(body)
            self.headers.append(headers)
        said = self.say(body)
        if isinstance(said, str):
            choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            said = (200, {"choices": [choice]}, {})
        status, answer, more = said
        return status, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), more

    def transport(self) -> httpx.MockTransport:
        def handle(request: httpx.Request) -> httpx.Response:
            status, content, headers = self.respond(json.loads(request.content), dict(request.headers))
            return httpx.Response(status, content=content, headers=headers)

        return httpx.MockTransport(handle)


@contextmanager
def listening(server: JudgeServer) -> Iterator[str]:
    """Its base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, content, headers = server.respond(body, {key.lower(): value for key, value in self.headers.items()})
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # five is the default; what comes beyond it at once is refused by the kernel

    http = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()
