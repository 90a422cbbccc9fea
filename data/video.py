"""Frames, times and facts of video files, decoded in a process of its own.

Decoders hang, crash and leak, and a hang inside C code can't be interrupted from Python. So they
run in a child (`_worker.py`) that can be killed without harm. The child is started by path: it
imports neither jax nor the caller's main module.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

_WORKER = Path(__file__).with_name("_worker.py")
_START_SECONDS = 120.0  # imports on a cold network disk


@dataclass(frozen=True)
class VideoInfo:
    """Facts of one video, measured from its packets and its first frame.

    `fps` is the average rate; `seconds` runs from the first frame's start to the last one's end.
    `width` and `height` are those of a frame turned upright by the rotation metadata, in stored
    pixels: the sample aspect ratio is not applied, for the published models never saw it applied.
    `backend` is "decord" where that is trusted to jump to a frame, else "pyav".
    """

    path: str
    fps: float
    frame_count: int
    seconds: float
    width: int
    height: int
    backend: str


class VideoError(Exception):
    """A video that can't be used, and why, in one line; `stage` is open, decode or timeout."""

    def __init__(self, path: str, stage: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.stage, self.reason = path, stage, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoError, (self.path, self.stage, self.reason)


class Decoder:
    """Reads video files in a worker process; a context manager, for one thread at a time.

    timeout: seconds for which the worker may be silent, while it opens a file or between two
    frames; then it is killed, `VideoError` (stage "timeout") is raised and the next call starts
    another one. recycle: clips after which the worker is replaced, for decord leaks.
    """

    def __init__(self, timeout: float = 60.0, recycle: int = 100):
        if timeout <= 0 or recycle < 1:
            raise ValueError(f"timeout and recycle must be positive: {timeout}, {recycle}")
        self.timeout, self.recycle = timeout, recycle
        self._process: subprocess.Popen | None = None
        self._clips, self._path = 0, ""

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def info(self, path: str | os.PathLike[str]) -> VideoInfo:
        """Facts of a video; raises VideoError, as every call here does."""
        with self._asking("info", path) as reply:
            return VideoInfo(path=os.fspath(path), **reply())

    def frames(
        self,
        path: str | os.PathLike[str],
        indices: Sequence[int] | Int[np.ndarray, " frames"],
        *,
        size: tuple[int, int] | None = None,
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """Frames by index, in the order asked for, repeats included; each is decoded once.

        size: (height, width), reached by PIL's bicubic filter inside the worker, so that only
        small frames are ever held; None keeps the size in VideoInfo.
        """
        if size is not None and min(size) < 1:
            raise ValueError(f"size must be (height, width), both positive: {size}")
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        numbers, places = np.unique(wanted, return_inverse=True)
        with self._asking("frames", path, numbers, size) as reply:
            height, width = reply()
            frames = np.empty((len(numbers), height, width, 3), np.uint8)
            for frame in frames:
                reply(into=frame)
        return frames if np.array_equal(wanted, numbers) else frames[places]

    def times(
        self,
        path: str | os.PathLike[str],
        indices: Sequence[int] | Int[np.ndarray, " frames"] | None = None,
    ) -> Float[np.ndarray, " frames"]:
        """Seconds, from the first frame, at which frames (default: all) are shown; true of VFR."""
        with self._asking("times", path) as reply:
            times = reply()
        if indices is None:
            return times
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        outside = wanted[(wanted < 0) | (wanted >= len(times))]
        if outside.size:
            reason = f"there is no frame {outside[0]}: it has {len(times)}, from 0"
            raise VideoError(os.fspath(path), "decode", reason)
        return times[wanted]

    def indices_at(
        self, path: str | os.PathLike[str], seconds: Sequence[float] | Float[np.ndarray, " frames"]
    ) -> Int[np.ndarray, " frames"]:
        """Indices of the frames on screen at given seconds; before the start the first one."""
        # Half a microsecond: a time written as i / fps must find frame i.
        moments = np.asarray(seconds, dtype=np.float64).reshape(-1) + 5e-7
        return np.maximum(np.searchsorted(self.times(path), moments, side="right") - 1, 0)

    def interrupt(self) -> None:
        """Kills the worker, from any thread: a call that waits for it raises VideoError."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the worker; the next call starts a fresh one."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._stderr.close()
        self._process = None

    @contextmanager
    def _asking(
        self, kind: str, path: str | os.PathLike[str], *arguments: Any
    ) -> Iterator[Callable[..., Any]]:
        """Sends a request and hands out a function that gives the next value of the answer."""
        name = os.fspath(path)

        def reply(into: np.ndarray | None = None) -> Any:
            if not self._connection.poll(self.timeout):
                raise VideoError(
                    name, "timeout", f"no answer from the decoder in {self.timeout:g} s"
                )
            status, *rest = pickle.loads(self._connection.recv_bytes())
            if status == "failed":
                raise VideoError(name, *rest)
            if into is not None:
                self._receive(memoryview(into.reshape(-1)))
            return rest[0]

        self._ready(name)
        try:
            # Not Connection.send: CPython 3.12 may crash where an error keeps its buffer alive.
            self._connection.send_bytes(pickle.dumps((kind, os.path.abspath(name), *arguments)))
            yield reply
        except (EOFError, ConnectionError):
            raise VideoError(name, "decode", f"the decoder died: {self._obituary()}") from None
        except VideoError as error:
            if error.stage == "timeout":
                self.close()
            raise
        except BaseException:  # Ctrl-C among them: an answer half read can't be taken up again
            self.close()
            raise

    def _receive(self, pixels: memoryview) -> None:
        """Reads the bytes of a frame, which follow its message, straight to where they belong."""
        while pixels:
            count = os.readv(self._connection.fileno(), [pixels])
            if count == 0:
                raise EOFError
            pixels = pixels[count:]

    def _ready(self, name: str) -> None:
        """Sees to it that a worker runs and has not had its share of clips."""
        self._clips += name != self._path
        self._path = name
        if self._process is not None and self._clips <= self.recycle:
            return
        self.close()
        self._clips = 1
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._connection, theirs = Pipe()
        with theirs:
            # -P keeps this directory, with its own idea of `types`, off the child's sys.path.
            # A session of its own: Ctrl-C at the terminal is for the parent alone.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,
            )
        try:
            if not self._connection.poll(_START_SECONDS):
                raise EOFError
            self._connection.recv()
        except EOFError:
            raise RuntimeError(f"the video decoder did not start: {self._obituary()}") from None
        except BaseException:
            self.close()
            raise

    def _obituary(self) -> str:
        """Ends the worker; its last words, or the signal that ended it."""
        if self._process is None:
            return "closed"
        try:
            status = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            status = "no sign of life"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        self.close()
        return lines[-1] if lines else f"exit status {status}"
