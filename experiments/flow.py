"""Many videos through one model: clips decoded ahead, and a batch kept full from a queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from data.video import Decoder, VideoInfo
from experiments.sources import Source
from experiments.viewer import Viewer
from surprise import (
    Episode,
    Settings,
    Step,
    Viewing,
    advance,
    episode_frames,
    stretches,
)
from surprise.schedule import observation, window


class InputError(ValueError):
    """A line of a manifest that names no video."""


@dataclass(frozen=True)
class Clip:
    """A video read for scoring: its facts, the K frames to score, and the time of every frame."""

    source: Source
    info: VideoInfo
    numbers: np.ndarray
    frames: np.ndarray
    times: np.ndarray
    """Seconds of each of the video's frames, [frame_count]."""

    @property
    def episode(self) -> Episode:
        seconds = self.times[self.numbers]
        return Episode(self.source.id, tuple(self.numbers.tolist()), tuple(seconds.tolist()))


def read(source: Source, decoder: Decoder, settings: Settings, frame_size: Callable) -> Clip:
    """Decodes a video's K frames. Raises VideoError, TooShortError, InputError."""
    if source.error:
        raise InputError(source.error)
    info = decoder.info(source.path)
    numbers = episode_frames(settings, seconds=info.seconds, frame_count=info.frame_count)
    size = frame_size(info.height, info.width, frames=settings.window)
    frames = decoder.frames(source.path, numbers, size=size)
    times = decoder.times(source.path, np.arange(info.frame_count))
    return Clip(source, info, np.asarray(numbers), frames, times)


class Ahead:
    """Calls `read` on each item in a thread of its own, a few items ahead of whoever takes them.

    A context manager; leaving it ends the thread after the item that it is at.
    """

    def __init__(self, items: Sequence, read: Callable, ahead: int = 4):
        self.ended = False
        self._results: queue.Queue = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items, read), daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            self.take(wait=False)  # it may be waiting for room
            self._thread.join(0.05)

    def take(self, *, wait: bool):
        """(item, result or exception); None where the next is not ready, or all have `ended`."""
        try:
            taken = None if self.ended else self._results.get(wait)
        except queue.Empty:
            return None
        self.ended = taken is None
        return taken

    def _work(self, items: Sequence, read: Callable) -> None:
        for item in items:
            if self._stop.is_set():
                return
            try:
                result = read(item)
            except Exception as error:  # whatever it is, it belongs to this item alone
                result = error
            self._results.put((item, result))
        self._results.put(None)


@dataclass
class _Slot:
    clip: Clip
    parts: list[Viewing]

    @property
    def open(self) -> list[int]:
        return [i for i, part in enumerate(self.parts) if not part.done]

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for part in self.parts for step in part.steps)


@dataclass
class Flow:
    """Scores a queue of videos, `viewer.batch` steps at a time.

    A batch takes a step of each video in flight or, without a history, several of one; a video
    that is done leaves and the next one that is decoded enters. What is in flight never depends
    on how long the queue is.
    """

    viewer: Viewer
    settings: Settings
    steps_done: int = 0
    _slots: list[_Slot] = field(default_factory=list)

    def run(
        self, clips: Ahead
    ) -> Iterator[tuple[Source, Clip | None, tuple[Step, ...] | Exception]]:
        """Each video as it is done: its source, its clip, and its steps or what went wrong."""
        while self._slots or not clips.ended:
            if sum(len(slot.open) for slot in self._slots) < self.viewer.batch:
                taken = clips.take(wait=not self._slots)
                if taken is not None:
                    source, clip = taken
                    try:
                        if isinstance(clip, Exception):
                            raise clip
                        self._enter(clip)
                    except Exception as error:
                        yield source, None, error
                    continue
            if self._slots:
                yield from self._step()

    def _enter(self, clip: Clip) -> None:
        steps = range(1, len(clip.numbers))
        views = [window(k, self.settings.window) for k in steps]
        views += [observation(k, self.settings.observation) for k in steps]
        self.viewer.add(clip.source.id, clip.frames, clip.times[clip.numbers], views)
        clip = replace(clip, frames=clip.frames[:0])  # their features are what is needed now
        self._slots.append(_Slot(clip, stretches(self.settings, clip.episode)))

    def _step(self) -> Iterator[tuple[Source, Clip, tuple[Step, ...] | Exception]]:
        turn = [(slot, i) for slot in self._slots for i in slot.open][: self.viewer.batch]
        moved = self._advanced([slot.parts[i] for slot, i in turn])
        failed: dict[str, Exception] = {}
        for (slot, i), part in zip(turn, moved, strict=True):
            if isinstance(part, Exception):
                failed[slot.clip.source.id] = part
            else:
                slot.parts[i] = part
                self.steps_done += 1
        for slot in list(self._slots):
            error = failed.get(slot.clip.source.id)
            if error is not None or not slot.open:
                self._slots.remove(slot)
                self.viewer.drop(slot.clip.source.id)
                yield slot.clip.source, slot.clip, slot.steps if error is None else error

    def _advanced(self, parts: Sequence[Viewing]) -> list[Viewing | Exception]:
        """A step of each; where the batch fails, each alone, so that one can't harm the others."""
        try:
            return advance(self.viewer, self.settings, parts) if parts else []
        except (ValueError, RuntimeError, MemoryError) as error:
            if len(parts) == 1:
                return [error]
        return [moved for part in parts for moved in self._advanced([part])]
