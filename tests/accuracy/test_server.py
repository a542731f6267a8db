"""An OpenAI-compatible server of our own on loopback, and the client that asks any."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accuracy import tasks
from accuracy.answering import Answering, Prompt, Tokenizer, settings_for
from accuracy.client import Server, ServerError
from accuracy.server import prompts_of, serving
from harness.cli import build
from tests.accuracy import models

PROMPTS = [Prompt(f"Question: {n}?", ("a", "\n"), 6) for n in range(7)]


def answering(folder: Path, **replaced: Any) -> Answering:
    one = models.model(**replaced)
    return Answering(one, Tokenizer(folder / "tokenizer.json"), settings_for(one, 256, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(answering(folder), "toy") as url:
        yield url


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_answers_are_the_engines(folder: Path, address: str) -> None:
    direct = dict(answering(folder)(PROMPTS))
    server = Server(address, concurrency=4)
    assert server.model == "toy"
    assert dict(server(PROMPTS)) == direct
    # Somebody who stops listening is in nobody's way.
    next(server(PROMPTS))
    assert dict(server(PROMPTS)) == direct


def test_tokens_and_lists_are_prompts_too(folder: Path, address: str) -> None:
    text = Tokenizer(folder / "tokenizer.json")
    body = {"prompt": "What?", "max_tokens": 4, "temperature": 0}
    status, one = post(address, body)
    assert status == 200
    assert one["usage"]["completion_tokens"] == 4
    assert one["choices"][0]["finish_reason"] == "length"
    _, same = post(address, body | {"prompt": text.encode("What?")})
    _, two = post(address, body | {"prompt": ["What?", "Who?"]})
    assert same["choices"] == one["choices"] == two["choices"][:1]
    assert [choice["index"] for choice in two["choices"]] == [0, 1]
    ending = one["choices"][0]["text"][1]
    _, cut = post(address, body | {"stop": ending})
    assert cut["choices"][0]["text"] == one["choices"][0]["text"].partition(ending)[0]
    assert cut["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "status", "complaint"),
    [
        ({}, 400, "prompt: got 'None'"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens: got 0"),
        ({"prompt": "a", "beams": 3}, 400, "got beams, which this server does not have"),
        ({"prompt": "a", "stream": True}, 400, "stream: got True"),
        ({"prompt": "a", "logprobs": 5}, 400, "logprobs: got 5"),
        ({"prompt": "a", "model": "other"}, 404, "model: got 'other', expected 'toy'"),
        ({"prompt": "a" * 400}, 400, "prompt"),
        ([], 400, "expected an object"),
    ],
)
def test_what_is_not_understood_is_refused(address: str, body: Any, status: int, complaint: str) -> None:
    got, said = post(address, body)
    assert got == status
    assert complaint in said["error"]["message"]
    assert post(address, {"prompt": "a", "max_tokens": 1})[0] == 200


def test_defaults_are_the_apis() -> None:
    (one,) = prompts_of({"prompt": "a"})
    assert (one.max_new_tokens, one.sampling.temperature, one.until) == (16, 1.0, ())


def test_many_ask_at_once(folder: Path, address: str) -> None:
    direct = dict(answering(folder)(PROMPTS))
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda n: Server(address).complete(PROMPTS[n % 7]), range(24)))
    assert found == [direct[n % 7] for n in range(24)]


def test_an_engine_that_breaks_tells_everybody_and_goes_on(folder: Path) -> None:
    broken = answering(folder)
    right, calls = broken.engine.step, iter(range(1000))

    def step() -> Any:
        if next(calls) == 1:
            raise RuntimeError("out of paper")
        return right()

    broken.engine.step = step  # type: ignore[method-assign]
    with serving(broken, "toy") as url:
        server = Server(url)
        with pytest.raises(ServerError, match=r"status 500.*out of paper"):
            server.complete(PROMPTS[0])
        assert server.complete(PROMPTS[1]) == dict(answering(folder)(PROMPTS))[1]


class _Speaking(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class _Said(BaseHTTPRequestHandler):
    said: bytes = b""
    status = 200
    asked = 0

    def do_GET(self) -> None:
        self._say(200, b'{"data": [{"id": "m"}]}')

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say(self.status, self.said)

    def _say(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("status", "said", "complaint"),
    [
        (500, b"melted", "status 500, melted"),
        (200, b"<html>", "expected JSON"),
        (200, b'{"choices": []}', "expected a completion"),
    ],
)
def test_an_error_is_named_and_nothing_is_asked_twice(status: int, said: bytes, complaint: str) -> None:
    with speaking(said, status) as (url, counted):
        with pytest.raises(ServerError, match=complaint):
            list(Server(url)(PROMPTS[:1]))
        assert counted.asked == 1
        with pytest.raises(ServerError, match="it serves m, not 'n'"):
            Server(url, "n")


def test_nobody_there_is_said_after_some_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("accuracy.client.time.sleep", waited.append)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match=r"cannot connect .*3 attempts"):
        Server(f"http://127.0.0.1:{port}/v1", attempts=3)
    assert waited == [1.0, 1.0]


def test_the_gate_against_a_server(folder: Path, tmp_path: Path) -> None:
    """A server with the same model is as before; one that always answers something else has lost what the first had right."""
    path = tmp_path / "task.jsonl"
    asked = tuple(tasks.Asked(f"Question {n}?", "#### 4", ("\n",), 4) for n in range(20))
    tasks.save(tasks.Task("toy", "1", asked), path)

    def gate(url: str, out: str, *words: object) -> Any:
        arguments = ["accuracy", "--base-url", url, "--task", path, "--out", tmp_path / out, "--margin", 0.4, *words]
        return CliRunner().invoke(build(), list(map(str, arguments)))

    base = tmp_path / "base.jsonl"
    with speaking(b'{"choices": [{"text": " #### 4", "finish_reason": "stop"}]}') as (url, _):
        assert gate(url, "base", "--save-baseline", base).exit_code == 0
        again = gate(url, "same", "--baseline", base)
        assert again.exit_code == 0, again.output
        assert "as before: 0 lost, 0 won of 20" in again.output
    with serving(answering(folder), "toy") as url:
        result = gate(url, "other", "--baseline", base)
        assert result.exit_code == 1, result.output
        assert "regression: 20 lost, 0 won of 20" in result.output
        mine = tmp_path / "mine.jsonl"
        assert gate(url, "mine", "--save-baseline", mine).exit_code == 0
        found = gate(url, "mine again", "--baseline", mine)
        assert "20 answers the same to the letter" in found.output


@contextmanager
def speaking(said: bytes, status: int = 200) -> Iterator[tuple[str, Any]]:
    """A server that says one thing: its address, and what counts how often it was asked."""
    handler: Any = type("Handler", (_Said,), {"said": said, "status": status, "asked": 0})
    server = _Speaking(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", handler
    finally:
        server.shutdown()
        server.server_close()
