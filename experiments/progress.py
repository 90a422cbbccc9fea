"""How far a long job is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time

log = logging.getLogger(__name__)

_TELL_SECONDS = 10.0


class Progress:
    """Counts what is done of `total`, with rate and time left; a context manager."""

    def __init__(self, total: int, unit: str, *, about: str = ""):
        self._total, self._unit, self._about = total, unit, about
        self._done, self._bar = 0, None
        self._start = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit=self._unit, desc=self._about or None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._told > _TELL_SECONDS:
            rate = self._done / (now - self._start)
            left = (self._total - self._done) / rate
            log.info(
                "%s[%d/%d] %.1f %ss/s, %.0f s left",
                f"{self._about} " * bool(self._about), self._done, self._total, rate, self._unit,
                left,
            )  # fmt: skip
            self._told = now
