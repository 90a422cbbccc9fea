"""From lists of Examples to batches with frames: shard -> shuffle -> mix -> decode -> batch.

Grain keeps the order and the place in it: every position of the stream is a pure function of seed
and settings, so a state is a position. The workers are Decoder processes, each behind one of
Grain's reading threads, which keep the order for any number of them and only wait for pixels
(about 10 ms of the caller's CPU for 16 frames of 364 x 644). Grain's own worker processes
(`mp_prefetch`) would be another layer around those that must be killable: they import jax, as
Grain does through Orbax, and their states, and the order once something is skipped, hold for one
number of workers only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data.types import Example
from data.video import Decoder, VideoError, VideoInfo

log = logging.getLogger(__name__)

Size = Callable[[VideoInfo, int], tuple[int, int] | None]
"""(facts of a video, number of frames) -> (height, width) of each; None is the file's own size."""

_Key = tuple[int, int]  # which dataset, which of its examples
_Item = tuple[_Key, Example | Exception | None]  # None: known to be bad, not tried again


class Pipeline:
    """An iterator over batches, lists of Examples with frames; a context manager.

    datasets: sequences of Examples, mixed by `weights` (of any scale, true to 1 %; default equal).
    In a mixture an epoch ends when the first of them has been gone through; the others go on from
    where they stand, so within each every example comes once per pass.
    batch: Examples a batch. frames, size, transforms: see `decode`.
    seed, shuffle: each dataset is shuffled anew in every pass, by seed and number of the pass.
    epochs: None goes on for ever, and every batch is full; batches don't stop at an epoch's end.
    process_index, process_count: each process has its own share of every dataset, which differs by
    one example at most, and all have the same number of `steps`, for collectives hang otherwise.
    drop_remainder: by default each example comes once per epoch, so the last batches of a process
    may hold fewer Examples, or none: pad them. True: `steps` is what the smallest share fills, and
    every batch is full; where bad videos leave too few, the next epoch's examples follow.
    workers: Decoder processes; 0 is one too, with nothing read ahead. No number changes the order,
    and a state holds for any. prefetch: examples read ahead, a bound on memory.
    timeout, recycle: see Decoder.
    on_failure: told of each example that can't be had, once in the life of a state, when its turn
    comes; it is left out, also of later epochs, and nothing replaces it. Default: a log line.

    Errors of a transform are raised where their example's turn comes; RuntimeError when an endless
    stream has nothing left to give.
    """

    def __init__(
        self,
        datasets: Sequence[Sequence[Example]],
        *,
        batch: int,
        weights: Sequence[float] | None = None,
        frames: int | None = None,
        size: Size | None = None,
        transforms: Sequence[Callable[[Example], Example]] = (),
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = 1,
        drop_remainder: bool = False,
        process_index: int = 0,
        process_count: int = 1,
        workers: int = 2,
        prefetch: int = 8,
        timeout: float = 60.0,
        recycle: int = 100,
        on_failure: Callable[[Example, VideoError], None] | None = None,
    ):
        import grain

        sizes = [len(dataset) for dataset in datasets]
        weights = [1.0] * len(sizes) if weights is None else list(weights)
        _check(sizes, weights, process_index, process_count)
        counts = {"batch": batch, "frames": frames, "epochs": epochs, "prefetch": prefetch}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if workers < 0:
            raise ValueError(f"workers is {workers}; it must be at least 0")
        self._datasets, self._batch = datasets, batch
        self._load = partial(decode, frames=frames, size=size, transforms=tuple(transforms))
        self._on_failure = on_failure or _log
        # What a state is only good for, for all of it shapes the order.
        self._identity = {
            "sizes": sizes,
            "weights": weights,
            "seed": seed,
            "shuffle": shuffle,
            "batch": batch,
            "process": [process_index, process_count],
        }

        def epoch(process: int) -> Any:
            shares = [range(process, size, process_count) for size in sizes]
            return _order(shares, weights, seed, shuffle)

        mine = epoch(process_index)
        self._own = sum(len(range(process_index, size, process_count)) for size in sizes)
        # Shares are equal or one larger than the last process's: the first has the most.
        count = len(epoch(process_count - 1 if drop_remainder else 0)) * (epochs or 1)
        steps = count // batch if drop_remainder else -(-count // batch)
        self.steps: int | None = None if epochs is None else steps
        self._endless = epochs is None or drop_remainder
        stream = mine.repeat(None if self._endless else epochs).map(self._item)
        self._decoders: queue.LifoQueue[Decoder] = queue.LifoQueue()
        self._every = [Decoder(timeout=timeout, recycle=recycle) for _ in range(max(workers, 1))]
        for decoder in self._every:
            self._decoders.put(decoder)
        self._closed = False
        ahead = max(prefetch, workers) if workers else 0
        options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead)
        self._stream = iter(stream.to_iter_dataset(options))
        self._place, self._step = self._stream.get_state(), 0
        self._failed: set[_Key] = set()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Pipeline:
        return self

    def __next__(self) -> list[Example]:
        if self._step == self.steps:
            raise StopIteration
        try:
            batch = self._gather()
        except BaseException:  # Ctrl-C among them: the next call begins this batch again
            self._stream.set_state(self._place)
            raise
        self._place = self._stream.get_state()
        self._step += 1
        return batch

    @property
    def failures(self) -> int:
        """Examples left out so far, as the state counts them."""
        return len(self._failed)

    def get_state(self) -> bytes:
        """Where the next batch begins, and what has been reported: JSON, a few bytes a failure.

        The form in which `grain.checkpoint.CheckpointHandler` takes it to Orbax.
        """
        state = {"step": self._step, "stream": self._place, "failed": sorted(self._failed)}
        return json.dumps({**self._identity, **state}).encode()

    def set_state(self, state: bytes) -> None:
        """Goes to where `get_state` was called; the number of workers may be another.

        Raises ValueError for a state of other data or settings, and names what differs.
        """
        found = json.loads(state)
        for name, mine in self._identity.items():
            if found.get(name) != mine:
                raise ValueError(f"the state is of {name} {found.get(name)}; here it is {mine}")
        self._step, self._place = found["step"], found["stream"]
        self._failed = {(dataset, index) for dataset, index in found["failed"]}
        self._stream.set_state(self._place)

    def start_prefetch(self) -> None:
        """Begins to read ahead, before the first batch is asked for."""
        self._stream.start_prefetch()

    def close(self) -> None:
        """Ends the decoders, those too that are at work."""
        if self._closed:
            return
        self._closed = True
        self._stream.close()
        idle = []
        while len(idle) < len(self._every):
            for decoder in self._every:
                decoder.interrupt()
            with contextlib.suppress(queue.Empty):
                idle.append(self._decoders.get(timeout=0.1))
        for decoder in idle:
            decoder.close()
            self._decoders.put(decoder)  # a thread that comes late finds one, and that it is over

    def _gather(self) -> list[Example]:
        batch: list[Example] = []
        while len(batch) < self._batch:
            item: _Item | None = next(self._stream, None)
            if item is None:
                break
            key, example = item
            if isinstance(example, Example) and key not in self._failed:
                batch.append(example)
            elif isinstance(example, VideoError):
                self._fail(key, example)
            elif isinstance(example, Exception):
                raise example
            if self._endless and len(self._failed) == self._own:
                raise RuntimeError(f"not one of {self._own} examples can be read")
        return batch

    def _item(self, key: _Key) -> _Item:
        """Decodes the example of a place in the stream; runs in Grain's threads."""
        if key in self._failed:
            return key, None
        decoder = self._decoders.get()
        try:
            if self._closed:
                return key, None
            dataset, index = key
            return key, self._load(self._datasets[dataset][index], decoder)
        except VideoError as error:  # a new one, for this one's traceback holds frames
            return key, VideoError(error.path, error.stage, error.reason)
        except Exception as error:  # raised when its turn comes
            return key, error
        finally:
            self._decoders.put(decoder)

    def _fail(self, key: _Key, error: VideoError) -> None:
        if key not in self._failed:
            self._failed.add(key)
            dataset, index = key
            self._on_failure(self._datasets[dataset][index], error)


def decode(
    example: Example,
    decoder: Decoder,
    *,
    frames: int | None = None,
    size: Size | None = None,
    transforms: Iterable[Callable[[Example], Example]] = (),
) -> Example:
    """Reads the frames of an example, with their times, and applies transforms in order.

    The frames are those of `indices` where it has them; else `frames` of them, the middles of equal
    parts of its span, or all that the span has if those are fewer. Raises VideoError, its stage
    "span" or "size" where the video is readable and the request makes no sense.
    """
    info = decoder.info(example.video)
    times = decoder.times(example.video)
    indices = example.indices
    if indices is None:
        if frames is None:
            raise ValueError(f"{example.id} has no frame indices, and no number of frames is set")
        indices = uniform_indices(frames, *_span(example, times, info))
    try:
        shape = None if size is None else size(info, len(indices))
    except ValueError as error:  # no model takes a frame of 1 x 300 pixels
        raise VideoError(example.video, "size", str(error)) from None
    pixels = decoder.frames(example.video, indices, size=shape)
    example = example.replace(
        fps=info.fps,
        frame_count=info.frame_count,
        indices=indices,
        seconds=times[indices],
        frames=pixels,
    )
    for transform in transforms:
        example = transform(example)
    return example


def uniform_indices(count: int, start: int, stop: int) -> Int[np.ndarray, " F"]:
    """The middle frames of min(count, stop - start) equal parts of [start, stop), int64."""
    length = stop - start
    count = min(count, length)
    return start + (2 * np.arange(count, dtype=np.int64) + 1) * length // (2 * count)


def _span(
    example: Example, times: Float[np.ndarray, " frames"], info: VideoInfo
) -> tuple[int, int]:
    """The frames on screen during an example's span: first and one past the last."""
    if example.span is None:
        return 0, len(times)
    begin, end = example.span
    if not 0 <= begin < end or begin >= info.seconds:
        reason = f"there is nothing from {begin:g} to {end:g} s: it lasts {info.seconds:g} s"
        raise VideoError(example.video, "span", reason)
    # Half a microsecond, as in Decoder.indices_at: a time written as i / fps means frame i.
    first = max(int(np.searchsorted(times, begin + 5e-7, side="right")) - 1, 0)
    return first, max(int(np.searchsorted(times, end - 5e-7)), first + 1)


def _order(shares: Sequence[range], weights: Sequence[float], seed: int, shuffle: bool) -> Any:
    """One epoch of one process: a grain.MapDataset of keys; past its end, the next epoch's."""
    import grain

    parts = []
    for number, share in enumerate(shares):
        part = grain.MapDataset.source(share)
        if shuffle:
            # Its own seed for each dataset: two of one size must not run in step.
            part = part.shuffle(
                seed=int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            )
        parts.append(part.map(partial(_key, number)))
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


def _key(dataset: int, index: int) -> _Key:
    return dataset, int(index)


def _log(example: Example, error: VideoError) -> None:
    log.warning("%s is left out: %s", example.id, error)


def _check(
    sizes: Sequence[int], weights: Sequence[float], process_index: int, process_count: int
) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(f"there is no process {process_index} of {process_count}")
    if not sizes or min(sizes) < process_count:
        raise ValueError(f"{process_count} processes can't share datasets of {sizes} examples")
    if len(weights) != len(sizes) or min(weights) <= 0:
        raise ValueError(f"weights must be positive, one a dataset: {weights} for {len(sizes)}")
