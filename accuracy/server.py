"""``python -m accuracy.server --model FOLDER``: a checkpoint behind an OpenAI-compatible address, through Sluicegate's own engine.

Enough of the API to be asked by the accuracy gate and by lm-eval's local-completions: ``/v1/models`` and ``/v1/completions``. What it
does not have it refuses by name, because an option that is silently ignored is another question.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, SimpleQueue
from typing import Annotated, Any

import typer

from accuracy.answering import Answer, Answering, Prompt
from serving.request import Sampling

#: Options with the one value that changes nothing here.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "stream": (False, None),
    "echo": (False, None),
    "logprobs": (None, False, 0),
    "suffix": (None, ""),
    "presence_penalty": (0, 0.0, None),
    "frequency_penalty": (0, 0.0, None),
    "logit_bias": (None, {}),
}
_KNOWN = {"model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "user", *_HARMLESS}


class Loop:
    """One thread steps the engine; others hand it prompts and wait."""

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self._new: SimpleQueue[tuple[Prompt, Future[Answer]] | None] = SimpleQueue()
        self._waiting: dict[str, Future[Answer]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def ask(self, prompt: Prompt) -> Future[Answer]:
        """Raises nothing itself: ValueError and whatever ends the engine come out of the future."""
        future: Future[Answer] = Future()
        self._new.put((prompt, future))
        return future

    def close(self) -> None:
        self._new.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            if not self._take():
                return
            try:
                for name, answer in self.answering.step():
                    self._waiting.pop(name).set_result(answer)
            except Exception as error:  # noqa: BLE001  # whatever it was, everybody who waits must learn of it
                for name, future in self._waiting.items():
                    self.answering.drop(name)
                    future.set_exception(error)
                self._waiting.clear()

    def _take(self) -> bool:
        """Submit what has come; waits only where nothing is to be stepped. False at the end."""
        wait = not self._waiting
        while True:
            try:
                found = self._new.get(block=wait)
            except Empty:
                return True
            if found is None:
                return False
            prompt, future = found
            try:
                self._waiting[self.answering.submit(prompt)] = future
                wait = False
            except ValueError as error:
                future.set_exception(error)
                wait = not self._waiting


def prompts_of(body: dict[str, Any]) -> list[Prompt]:
    """What a request asks for. Raises ValueError that names what is not understood."""
    if unknown := sorted(set(body) - _KNOWN):
        raise ValueError(f"got {', '.join(unknown)}, which this server does not have; leave it out")
    for name, values in _HARMLESS.items():
        if name in body and body[name] not in values:
            raise ValueError(f"{name}: got {body[name]!r}, which this server does not have; leave it out")
    asked = body.get("prompt")
    if isinstance(asked, str) or (isinstance(asked, list) and asked and isinstance(asked[0], int)):
        asked = [asked]
    if not isinstance(asked, list) or not asked or not all(_text_or_tokens(one) for one in asked):
        raise ValueError(f"prompt: got {str(asked)[:80]!r}, expected a text, tokens, or a list of one of them")
    stop = body.get("stop") or ()
    until = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(text, str) for text in until):
        raise ValueError(f"stop: got {stop!r}, expected a text or a list of texts")
    most = body.get("max_tokens")
    most = 16 if most is None else most
    if not isinstance(most, int) or most < 1:
        raise ValueError(f"max_tokens: got {most!r}, expected a whole number from 1")
    sampling = Sampling(
        temperature=_number(body, "temperature", 1.0),
        top_k=max(0, int(_number(body, "top_k", 0))),
        top_p=_number(body, "top_p", 1.0),
        seed=int(_number(body, "seed", 0)),
    )
    return [Prompt(one if isinstance(one, str) else tuple(one), until, most, sampling) for one in asked]


def _number(body: dict[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: got {value!r}, expected a number")
    return float(value)


def _text_or_tokens(one: Any) -> bool:
    return isinstance(one, str) or (
        isinstance(one, list) and bool(one) and all(isinstance(token, int) for token in one)
    )


class _Handler(BaseHTTPRequestHandler):
    """protocol_version 1.0: a connection a request, so that no idle one holds a thread."""

    loop: Loop
    model: str

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v1/models":
            self._say(
                200, {"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "sluicegate"}]}
            )
        else:
            self._refuse(404, f"{self.path}: expected /v1/models or /v1/completions")

    def do_POST(self) -> None:
        if self.path.rstrip("/") != "/v1/completions":
            return self._refuse(404, f"{self.path}: expected /v1/completions")
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            if not isinstance(body, dict):
                raise ValueError(f"body: got {type(body).__name__}, expected an object")
            if body.get("model") not in (None, self.model):
                return self._refuse(404, f"model: got {body['model']!r}, expected {self.model!r}")
            answers = [future.result() for future in [self.loop.ask(prompt) for prompt in prompts_of(body)]]
        except ValueError as error:
            return self._refuse(400, str(error))
        except Exception as error:  # noqa: BLE001  # it is told to whoever asked
            return self._refuse(500, f"the engine: {error!r}")
        tokens = sum(answer.tokens for answer in answers)
        return self._say(
            200,
            {
                "id": f"cmpl-{time.monotonic_ns()}",
                "object": "text_completion",
                "created": int(time.time()),
                "model": self.model,
                "choices": [_choice(index, answer) for index, answer in enumerate(answers)],
                "usage": {"completion_tokens": tokens},
            },
        )

    def _refuse(self, status: int, why: str) -> None:
        self._say(
            status, {"error": {"message": why, "type": "invalid_request_error" if status < 500 else "server_error"}}
        )

    def _say(self, status: int, record: dict[str, Any]) -> None:
        content = json.dumps(record).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an answer is no news."""


def _choice(index: int, answer: Answer) -> dict[str, Any]:
    reason = "length" if answer.truncated else "stop"
    return {"index": index, "text": answer.text, "logprobs": None, "finish_reason": reason}


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


@contextmanager
def serving(answering: Answering, model: str, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve until the context ends; yields the address for clients. port 0: any that is free."""
    loop = Loop(answering)
    handler = type("Handler", (_Handler,), {"loop": loop, "model": model})
    server = _Listening((host, port), handler)
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        loop.close()


def main(
    model: Annotated[str, typer.Option(help="Folder of the checkpoint.")],
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="Only this machine by default.")] = "127.0.0.1",
    kernels: Annotated[str, typer.Option(help="As for sluicegate accuracy.")] = "optimized",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU.")] = "auto",
    concurrency: Annotated[int, typer.Option(help="Most requests at once.", min=1)] = 32,
    max_length: Annotated[int, typer.Option(help="Most tokens of a prompt and its answer.", min=2)] = 4096,
) -> None:
    """Serve a checkpoint until interrupted."""
    from accuracy.answerers import Engine, engine

    try:
        answering = engine(Engine(model, kernels, device, dtype, concurrency, max_length=max_length))
        with serving(answering, model, host, port) as address:
            typer.echo(f"{address}: {model} with {kernels}; sluicegate accuracy --base-url {address}")
            threading.Event().wait()
    except ValueError as error:
        typer.echo(f"accuracy.server: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("stopped")


if __name__ == "__main__":
    typer.run(main)
