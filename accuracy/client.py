"""Any OpenAI-compatible server as what answers: ``POST {base}/completions``, several at a time.

A request that was sent is never sent again: what a server answers to a question is its answer, and an error is an error. Only a
connection that cannot be made is tried again, for a server that is just starting.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

from accuracy.answering import Answer, Prompt, cut_at

#: Where a key is taken from, if the server wants one.
KEY = "OPENAI_API_KEY"
#: Servers of this API take no more.
MOST_STOPS = 4


class ServerError(RuntimeError):
    """What the server said, or that it said nothing."""


class Server:
    """A server that completes text.

    Args:
        base_url: as clients of this API take it, usually ending in ``/v1``.
        model: the name of the model there; empty: the only one, or the first.
        concurrency: most requests at once. timeout: seconds for one answer. attempts: to connect, a second apart.

    Raises:
        ValueError: an address that cannot be one.
        ServerError: nobody answers there, or there is no such model.
    """

    def __init__(
        self, base_url: str, model: str = "", concurrency: int = 32, timeout: float = 600.0, attempts: int = 5
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--base-url: got {base_url!r}, expected http://host:port/v1")
        self.base_url, self.concurrency, self.timeout, self.attempts = base_url, concurrency, timeout, attempts
        self._parts, self._path = parts, parts.path.rstrip("/")
        known = self.models()
        if model and model not in known:
            raise ServerError(
                f"{base_url}: it serves {', '.join(known)}, not {model!r}; name one of them with --served"
            )
        self.model = model or known[0]

    def models(self) -> list[str]:
        """Names of what is served, at least one."""
        found = self._ask("GET", "/models", None)
        try:
            names = [str(entry["id"]) for entry in found["data"]]
        except (KeyError, TypeError) as error:
            raise ServerError(f"{self.base_url}/models: got {str(found)[:200]}, expected a list of models") from error
        if not names:
            raise ServerError(f"{self.base_url}/models: it serves no model")
        return names

    def __call__(self, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Answers, each with its prompt's place, as they are done. Raises ServerError."""
        asked = enumerate(prompts)
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="completion")
        places: dict[Future[Answer], int] = {}
        try:
            while True:
                while len(places) < self.concurrency and (one := next(asked, None)) is not None:
                    places[pool.submit(self.complete, one[1])] = one[0]
                if not places:
                    return
                done, _ = wait(places, return_when=FIRST_COMPLETED)
                for future in done:
                    yield places.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def complete(self, prompt: Prompt) -> Answer:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(prompt.text) if isinstance(prompt.text, tuple) else prompt.text,
            "max_tokens": prompt.max_new_tokens,
            "temperature": prompt.sampling.temperature,
            "stop": list(prompt.until[:MOST_STOPS]),
        }
        if not prompt.sampling.greedy:
            body |= {"top_p": prompt.sampling.top_p, "seed": prompt.sampling.seed}
        found = self._ask("POST", "/completions", body)
        try:
            choice = found["choices"][0]
            text, cut = cut_at(str(choice["text"]), prompt.until)
            tokens = int((found.get("usage") or {}).get("completion_tokens", -1))
            return Answer(text, tokens, choice.get("finish_reason") == "length" and not cut)
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(f"{self.base_url}/completions: got {str(found)[:200]}, expected a completion") from error

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        connection = self._connected()
        where = f"{method} {self.base_url}{path}"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.request(method, self._path + path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            content = response.read()
        except TimeoutError as error:
            raise ServerError(f"{where}: no answer within {self.timeout:g} s; give it longer with --timeout") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{where}: the connection broke ({error!r})") from error
        finally:
            connection.close()
        said = content.decode("utf-8", errors="replace")
        if response.status != 200:
            raise ServerError(f"{where}: status {response.status}, {said[:500]}")
        try:
            return json.loads(said)
        except json.JSONDecodeError as error:
            raise ServerError(f"{where}: got {said[:200]!r}, expected JSON") from error

    def _connected(self) -> http.client.HTTPConnection:
        """An open connection; the only thing that is tried more than once, because nothing was asked yet."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        for attempt in range(1, self.attempts + 1):
            connection = kind(str(self._parts.hostname), self._parts.port, timeout=self.timeout)
            try:
                connection.connect()
                return connection
            except OSError as error:
                connection.close()
                if attempt == self.attempts:
                    raise ServerError(f"{self.base_url}: cannot connect ({error}), {attempt} attempts") from error
                time.sleep(1.0)
        raise AssertionError("attempts is at least 1")
