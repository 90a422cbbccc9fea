"""How far a long job is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack

log = logging.getLogger(__name__)

_TELL_SECONDS = 10.0


class Progress(ExitStack):
    """Counts what is done of `total`, with rate and time left; a context manager.

    `each`: off a terminal, a line for everything that is done rather than one now and then.
    """

    def __init__(self, total: int, unit: str, *, about: str = "", each: bool = False):
        super().__init__()
        self._total, self._unit, self._about = total, unit, about
        self._pause = 0.0 if each else _TELL_SECONDS
        self._done, self._bar = 0, None
        self._start = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self.enter_context(logging_redirect_tqdm())  # lines of the log above the bar
            bar = tqdm(total=self._total, unit=self._unit, desc=self._about or None)
            self._bar = self.enter_context(bar)
        return self

    def add(self, count: int = 1, name: str = "") -> None:
        """So many more are done, the last of which is `name`."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._told >= self._pause:
            self._told, rate = now, self._done / max(now - self._start, 1e-9)
            words = [self._about, f"[{self._done}/{self._total}]", name]
            left = (self._total - self._done) / rate
            told = " ".join(word for word in words if word)
            log.info("%s, %.3g %ss/s, %.0f s left", told, rate, self._unit, left)
