"""Judges: whatever answers a prompt of text with text, for rewards and routers.

`open_judge` gives a function of a list of prompts: a model that this project loads, or a server
that speaks OpenAI's chat completions. Answers are kept in a file, so that no text is judged twice.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import cache
from experiments.rewards import RewardError

log = logging.getLogger(__name__)

Judge = Callable[[list[str]], list[str]]
_KEY = "OPENAI_API_KEY"
_AGAIN = (408, 409, 429, 500, 502, 503, 504)
_LARGEST = 2**20  # bytes of an answer that are read


class JudgeError(RewardError):
    """A judge that does not answer; one line."""


def open_judge(config: dict[str, Any]) -> Judge | None:
    """The judge of a configuration; None where `model` is empty.

    `config`: model, a source that `vlm.load` takes, or with `url` a name that the server knows;
    url, such as http://localhost:8000/v1; max_tokens; timeout, in seconds; retries; workers,
    requests at a time; cache, a JSONL file, "" for none.
    """
    if not config["model"]:
        return None
    if config["url"]:
        ask = Endpoint(
            config["url"].rstrip("/"), config["model"], max_tokens=config["max_tokens"],
            timeout=config["timeout"], retries=config["retries"], workers=config["workers"],
        )  # fmt: skip
    else:
        ask = local(config["model"], max_tokens=config["max_tokens"])
    return Remembered(ask, config) if config["cache"] else ask


def local(source: str, *, max_tokens: int) -> Judge:
    """A model of ours, answering greedily; loaded when it is first asked."""
    viewers: list[Any] = []

    def ask(prompts: list[str]) -> list[str]:
        if not viewers:
            import vlm
            from experiments.viewer import Viewer

            viewers.append(Viewer(vlm.load(source), batch=8))
        viewer, replies = viewers[0], []
        for start in range(0, len(prompts), viewer.batch):
            part = prompts[start : start + viewer.batch]
            replies += viewer.summarize(part, system="", max_tokens=max_tokens)
        return replies

    return ask


@dataclass(frozen=True)
class Endpoint:
    """A server at `url`; the key is read from OPENAI_API_KEY, where that is set.

    What may pass (no answer in time, a busy server) is tried `retries` times more, each time after
    a longer wait. Raises JudgeError.
    """

    url: str
    model: str
    max_tokens: int = 16
    timeout: float = 60.0
    retries: int = 3
    workers: int = 8
    pause: float = 1.0
    """Seconds before the first retry; each next one waits twice as long."""

    def __call__(self, prompts: list[str]) -> list[str]:
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._ask, prompts))

    def _ask(self, prompt: str) -> str:
        for attempt in range(self.retries + 1):
            try:
                return self._once(prompt)
            except urllib.error.HTTPError as error:
                reason, passing = f"HTTP {error.code} {error.reason}", error.code in _AGAIN
            except OSError as error:  # refused, unreachable, timed out
                reason, passing = str(error) or type(error).__name__, True
            except (ValueError, KeyError, IndexError, TypeError):
                reason, passing = "an answer that is no chat completion", True
            if not passing or attempt == self.retries:
                break
            time.sleep(self.pause * 2**attempt)
        raise JudgeError(
            f"the judge {self.model} at {self.url} did not answer ({attempt + 1} tries): {reason}"
        )

    def _once(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(_KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            answer = json.loads(response.read(_LARGEST))
        text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError("content is no text")
        return text


class Remembered:
    """A judge whose answers are kept in a file, by judge and prompt."""

    def __init__(self, ask: Judge, config: dict[str, Any]):
        self._ask, self._path = ask, Path(config["cache"])
        self._judge = [config["url"], config["model"], config["max_tokens"]]
        self._known = {line["key"]: line["reply"] for line in cache.read(self._path)}

    def __call__(self, prompts: list[str]) -> list[str]:
        keys = [cache.digest(*self._judge, prompt) for prompt in prompts]
        todo = {
            key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known
        }
        if todo:
            replies = self._ask(list(todo.values()))
            if len(replies) != len(todo):
                raise JudgeError(f"the judge gave {len(replies)} replies to {len(todo)} prompts")
            self._known |= zip(todo, replies, strict=True)
            cache.append(self._path, [{"key": key, "reply": self._known[key]} for key in todo])
        return [self._known[key] for key in keys]
