"""The child process behind `data.video`: it opens video files, and knows nothing else of saccade.

Run by path (`python -P _worker.py FD`), never imported, so that no other module, and above all not
jax, comes with it. It answers one request at a time on the connection it is given:

    (kind, path, *arguments)  ->  ("ok", value)  or  ("failed", stage, reason)

The container's packets say which frames there are and when each is shown; that table is the truth
that a decoder has to fit. decord decodes where it fits, PyAV everywhere else (see `_decord`).
"""

import os
import queue
import sys
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import Image

# Containers that hold their own frames. What is left out names other files (hls, concat, dash) or
# draws text as video (tty). The audio ones are here so that they can be called audio.
_CONTAINERS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,obu,av1,flv,live_flv,asf,ogg,"
    "gif,mxf,rm,yuv4mpegpipe,dv,wtv,nut,mp3,wav,flac,aac,aiff,w64,caf"
)
_TRUSTED = ("mov", "matroska")
# Whose decoders can leave out single frames that no other refers to. HEVC's notion of those holds
# within a temporal layer only, and dav1d reads ahead.
_UNREFERRED = ("h264", "mpeg4")
_SWELLING = 64_000_000  # bytes of frames
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}


def _container(path: str) -> Any:
    return av.open(path, options=_OPTIONS, metadata_errors="replace")


class Failure(Exception):
    """Why a request can't be answered: a stage ("open" or "decode") and a reason in one line."""

    def __init__(self, stage: str, reason: str):
        super().__init__(reason)
        self.stage = stage


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    key: bool
    hidden: bool  # by an edit list


@dataclass(frozen=True)
class FrameTable:
    """Every frame that the packets hold, in the order shown."""

    stream: int
    times: np.ndarray  # float64 seconds, ascending from 0
    stamps: np.ndarray | None  # int64 presentation stamps; None if they can't name the frames
    keys: list[int]  # frames at which decoding can start, ascending from 0
    open_gop: bool  # some frame is decoded after a keyframe and shown before it
    fps: float

    def trusts_decord(self, container: str, codec: str, video: av.VideoFrame) -> bool:
        """False where decord 0.6 was seen to give other frames than a whole decode, or to swell.

        It seeks wrongly in open GOPs (HEVC, x264 open-gop, intra refresh), in MPEG-TS and without
        stamps (AVI), its old swscale differs on odd sizes and on more than 8 bits; it knows no AV1.
        On a busy machine, while its thread is late, it is fed the rest of the file, all of which
        it then decodes into memory.
        """
        return (
            container.startswith(_TRUSTED)
            and self.stamps is not None
            and not self.open_gop
            and codec != "av1"
            and len(self.times) * video.width * video.height * 3 < _SWELLING
            and video.width % 2 == video.height % 2 == 0
            and all(component.bits == 8 for component in video.format.components)
        )


class PyAVReader:
    """Frames by number: seek to a keyframe before, decode forward, know a frame by its stamp."""

    def __init__(self, path: str, table: FrameTable, container: Any):
        """Takes over an open container, whose packets may have been read."""
        self._path, self._table = path, table
        self._take(container)
        self._wanted: frozenset[int] | None = None
        self._converter = VideoReformatter()  # kept: to set one up costs more than a frame
        # In these a seek finds the start; elsewhere, and where it fails, the file is opened anew.
        rewinds = container.format.name.startswith(_TRUSTED) and table.stamps is not None
        self._seek(0, anew=not rewinds)
        first = next(self._frames, None)
        if first is None and rewinds:
            self._seek(0)
            first = next(self._frames, None)
        if first is None:
            raise Failure("decode", "not one frame can be decoded")
        self._place(first)
        self.first = first
        self.turns = round(first.rotation / 90) % 4  # quarter turns against the clock
        self.size = (first.height, first.width)

    def want(self, numbers: list[int]) -> None:
        """Says which frames will be read until the next call: the others may be left undecoded.

        Only those that no other frame is predicted from are, so the ones wanted don't change.
        """
        codec = self._stream.codec.canonical_name
        if self._table.stamps is not None and codec in _UNREFERRED:
            self._wanted = frozenset(self._table.stamps[numbers].tolist())

    def read(self, number: int) -> np.ndarray:
        """One frame, turned upright: uint8 [height, width, 3]."""
        keys = self._table.keys
        before = bisect_right(keys, number) - 1
        found = self._held if self._last == number else None
        if found is None and keys[before] <= self._last + 1 <= number:
            found = self._forward(number)
        # A keyframe may not be enough (a seek that lands late, an intra refresh): start from ever
        # earlier ones until the frame comes out, at worst from the beginning.
        back = 0
        while found is None:
            start = max(before - back, 0)
            self._seek(keys[start])
            found = self._forward(number)
            if found is None and start == 0:
                raise Failure("decode", f"frame {number} of {len(self._table.times)} is damaged")
            back = 2 * back + 1
        height, width = self.size
        pixels = self._converter.reformat(found, format="rgb24", width=width, height=height)
        return np.rot90(pixels.to_ndarray(), self.turns)

    def close(self) -> None:
        self._container.close()

    def _take(self, container: Any) -> None:
        self._container = container
        self._stream = container.streams[self._table.stream]
        self._stream.codec_context.thread_count = 1

    def _seek(self, number: int, anew: bool = True) -> None:
        """Goes to a keyframe; frame 0 by opening the file anew, which works for every container."""
        if number == 0 and anew:
            self.close()
            self._take(_container(self._path))
        else:
            self._container.seek(int(self._table.stamps[number]), stream=self._stream)
        self._frames = self._decode(started=number == 0)
        self._last, self._held = number - 1, None

    def _place(self, frame: av.VideoFrame) -> bool:
        """Notes which frame has come; False for one that the packets did not announce."""
        stamps = self._table.stamps
        place = self._last + 1
        if stamps is not None:
            place = len(stamps) if frame.pts is None else int(np.searchsorted(stamps, frame.pts))
            if place == len(stamps) or stamps[place] != frame.pts:
                return False
        self._last, self._held = place, frame
        return True

    def _forward(self, number: int) -> av.VideoFrame | None:
        for frame in self._frames:
            if self._place(frame) and self._last >= number:
                return frame if self._last == number else None
        return None

    def _decode(self, started: bool) -> Iterator[av.VideoFrame]:
        context = self._stream.codec_context
        for packet in self._container.demux(self._stream):
            started = started or packet.is_keyframe
            if not started:  # a seek by byte position (MPEG-TS) lands between keyframes
                continue
            if self._wanted is not None:
                context.skip_frame = "DEFAULT" if packet.pts in self._wanted else "NONREF"
            try:
                frames = packet.decode()
            except av.FFmpegError:  # a damaged packet costs its own frames, not the clip
                continue
            yield from frames


class Clip:
    """An open video file."""

    def __init__(self, path: str):
        self._path = path
        container = _container(path)
        try:
            self.table = _scan(container)
            kind = container.format.name, container.streams[self.table.stream].codec.canonical_name
            self._pyav = PyAVReader(path, self.table, container)
        except BaseException:
            container.close()
            raise
        self._trusted = self.table.trusts_decord(*kind, self._pyav.first)
        self._decord: Any = None  # opened when it is of use
        self._group, self._alone = -1, None
        height, width = self._pyav.size
        self.size = (width, height) if self._pyav.turns % 2 else (height, width)

    def info(self) -> dict[str, Any]:
        times, fps = self.table.times, self.table.fps
        return {
            "fps": fps,
            "frame_count": len(times),
            "seconds": round(float(times[-1]) + 1 / fps, 9),
            "width": self.size[1],
            "height": self.size[0],
            "backend": "decord" if self._trusted else "pyav",
        }

    def want(self, numbers: list[int]) -> None:
        """Says which frames will be read, so that the way to each can be chosen well."""
        self._pyav.want(numbers)
        groups = Counter(bisect_right(self.table.keys, number) for number in numbers)
        self._alone = {group for group, count in groups.items() if count == 1}

    def read(self, number: int) -> np.ndarray:
        """One frame, upright: uint8 [height, width, 3].

        decord jumps, PyAV walks on: left where it is, decord decodes ahead into a queue without
        bound, so it is sent back to the start after each frame; a further frame of the same group
        of pictures is then cheaper from PyAV, which stays where it is. So where it is known what
        is wanted, decord takes what is alone in its group.
        """
        group = bisect_right(self.table.keys, number)
        jump = group != self._group if self._alone is None else group in self._alone
        self._group = group
        if jump and self._jumper() is not None:
            try:
                frame = self._decord[number].asnumpy()
                self._decord.seek(0)
                if frame.shape == (*self.size, 3):  # narrow ones come with 4 channels
                    return frame
            except Exception:  # whatever stops decord, PyAV has the last word
                pass
            self._trusted, self._decord = False, None
        return self._pyav.read(number)

    def close(self) -> None:
        self._decord = None
        self._pyav.close()

    def _jumper(self) -> Any | None:
        if self._trusted and self._decord is None:
            self._decord = _decord(self._path, self.table.times)
            self._trusted = self._decord is not None
        return self._decord


def _scan(container: Any) -> FrameTable:
    """Reads every packet of a container and decodes none."""
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        raise Failure("open", "there is no video stream in it")
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    packets, begin, end = [], float("inf"), 0.0
    seconds = {s.index: float(s.time_base or 0) for s in container.streams}
    for packet in container.demux():
        if not packet.size:  # the marker that ends a stream
            continue
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None:
            tick = seconds[packet.stream_index]
            begin = min(begin, stamp * tick)
            end = max(end, (stamp + (packet.duration or 0)) * tick)
        if packet.stream_index == stream.index:
            if packet.is_corrupt:
                raise Failure("open", f"the file is cut short after {len(packets)} frames")
            packets.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard))
    promised = (container.duration or 0) / av.time_base
    if end - begin < 0.9 * promised:
        there = max(end - begin, 0.0)
        raise Failure("open", f"the file is cut short: {there:.1f} s of {promised:.1f} s")
    # AVI has no presentation stamps and MPEG-PS has few: those that FFmpeg makes up differ between
    # packet and frame, or from one seek to the next.
    stamped = container.format.name not in ("avi", "mpeg")
    return _tabulate(stream, packets, stamped)


def _tabulate(stream: Any, packets: list[_Packet], stamped: bool) -> FrameTable:
    shown = [p for p in packets if not p.hidden]
    if not shown:
        raise Failure("open", "there are no frames in it")
    stamps = np.unique([p.pts for p in shown if p.pts is not None]).astype(np.int64)
    stamped = stamped and len(stamps) == len(shown)
    ticks = stamps if stamped else np.sort([p.dts for p in shown if p.dts is not None])
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if len(ticks) == len(shown):
        times = (ticks - ticks[0]) * float(stream.time_base)
    else:
        times = np.arange(len(shown)) / (rate or 25.0)
    measured = (len(times) - 1) / times[-1] if times[-1] > 0 else rate
    # Headers round (Matroska) or guess; only a gross difference means that they are wrong.
    fps = rate if rate and abs(measured / rate - 1) < 0.1 else measured or 25.0
    keys, open_gop, latest = {0}, False, None
    for p in packets if stamped else ():
        open_gop = open_gop or (latest is not None and p.pts is not None and p.pts < latest)
        if p.key:
            latest = p.pts
            keys.add(max(int(np.searchsorted(stamps, latest, side="right")) - 1, 0))
    return FrameTable(
        stream=stream.index,
        times=times,
        stamps=stamps if stamped else None,
        keys=sorted(keys),
        open_gop=open_gop,
        fps=float(fps),
    )


def _decord(path: str, times: np.ndarray) -> Any | None:
    """A decord reader, if decord sees the frames that are there at the times they are shown."""
    try:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        seen = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
    except Exception:  # no wheel for this platform, no decoder for this codec, broken header
        return None
    agrees = len(seen) == len(times) and np.allclose(seen - seen[0], times, rtol=1e-6, atol=2e-3)
    return reader if agrees else None


class Worker:
    """Answers requests; keeps the last clip open, for calls on one file come in a row."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._key: Any = None
        self._clip: Clip | None = None

    def answer(self, kind: str, path: str, *arguments: Any) -> None:
        try:
            clip = self._open(path)
            if kind == "frames":
                self._send_frames(clip, *arguments)
            else:
                self._connection.send(("ok", clip.info() if kind == "info" else clip.table.times))
        except Failure as failure:
            self._connection.send(("failed", failure.stage, str(failure)))
        except Exception as error:
            self._close()  # in a state unknown
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._connection.send(("failed", "decode", reason))

    def _close(self) -> None:
        if self._clip is not None:
            self._clip.close()
        self._key = self._clip = None

    def _open(self, path: str) -> Clip:
        try:
            stat = os.stat(path)
            key = (path, stat.st_mtime_ns, stat.st_size)
            if self._clip is None or key != self._key:
                self._close()
                self._clip, self._key = Clip(path), key
        except av.InvalidDataError:
            raise Failure("open", "not a video file, or one cut short") from None
        except av.ArgumentError:
            raise Failure("open", "not a kind of file that holds video") from None
        except (OSError, av.FFmpegError) as error:
            raise Failure("open", (error.strerror or str(error)).lower()) from None
        return self._clip

    def _send_frames(self, clip: Clip, numbers: np.ndarray, size: tuple[int, int] | None) -> None:
        count = len(clip.table.times)
        outside = numbers[(numbers < 0) | (numbers >= count)]
        if outside.size:
            raise Failure("decode", f"there is no frame {outside[0]}: it has {count}, from 0")
        height, width = size or clip.size
        clip.want(numbers.tolist())
        self._connection.send(("ok", (height, width)))
        for number in numbers.tolist():
            frame = clip.read(number)
            if frame.shape[:2] != (height, width):
                image = Image.fromarray(np.ascontiguousarray(frame))
                # Columns, then rows, as `vlm.patches.resize`: Pillow alone may turn them round.
                for step in ((width, image.height), (width, height)):
                    image = image.resize(step, Image.Resampling.BICUBIC)
                frame = np.asarray(image)
            self._connection.send(("ok", None))
            # Past the connection, which would copy every frame three times on the other side.
            pixels = memoryview(np.ascontiguousarray(frame).reshape(-1))
            while pixels:
                pixels = pixels[os.write(self._connection.fileno(), pixels) :]


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    requests: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def listen() -> None:
        # The parent's end closes with the parent, however it dies: then nobody waits any more,
        # not even for a decoder that hangs.
        try:
            while True:
                requests.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    av.logging.set_level(None)
    threading.Thread(target=listen, daemon=True).start()
    worker = Worker(connection)
    connection.send(("ok", None))  # ready: the time limit of a call does not count the imports
    while True:
        worker.answer(*requests.get())


if __name__ == "__main__":
    main()
