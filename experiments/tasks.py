"""What a policy is asked in training: batch after batch of examples with frames.

A batch is a function of the configuration, the split and the number of the batch. Of several
processes each makes its share of it (`hosts.mine`), and reads no other videos.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from data.pipeline import decode
from data.router import routed
from data.toyquestions import TASKS, questions
from data.toytasks import CAPTION_REQUEST
from data.toyworld import LEVELS, make
from data.types import Example
from data.video import Decoder, VideoError
from experiments import hosts
from experiments.arguments import UsageError
from experiments.sources import items
from vlm.processor import Processor

log = logging.getLogger(__name__)

CAPTION = "caption"
_FRESH = 10_000_000  # clips from here on are none that supervised training has seen
_ATTEMPTS = 20


def source(config: dict[str, Any], processor: Processor, frames: int) -> Toy | Files:
    """What `config["dataset"]` names: the toy world, or annotated videos. Raises UsageError.

    frames: how many are read of a video, evenly spaced; a toy clip has all of its own.
    """
    if config["dataset"] == "toy":
        return Toy(config)
    return Files(config, processor, frames)


class Toy:
    """Clips made on the spot, one question about each.

    `config`: level of the clips; tasks, the kinds of questions, all where none is named, or
    "caption"; routed, only questions whose route is known; batch, seed; clips, how many there are
    to train on, in whole batches, before the first comes again, 0 for ever new ones.
    """

    def __init__(self, config: dict[str, Any]):
        self.config = config
        if config["level"] not in LEVELS:
            raise UsageError(
                f"--config.level is {config['level']!r}; choose from {', '.join(LEVELS)}"
            )
        if unknown := sorted(set(config["tasks"]) - {*TASKS, CAPTION}):
            raise UsageError(
                f"--config.tasks: no task {unknown[0]!r}; choose from caption, {', '.join(TASKS)}"
            )

    def __call__(self, number: int, *, split: str = "train") -> list[Example]:
        """This process's share of batch `number`."""
        config = self.config
        if split == "train" and config["clips"]:
            number %= -(-config["clips"] // config["batch"])
        rng = np.random.default_rng([config["seed"], 3, number])
        tasks = config["tasks"] or TASKS
        examples: list[Example] = []
        index = _FRESH + 1000 * number
        while len(examples) < config["batch"]:
            clip = make(index, seed=config["seed"], split=split, level=config["level"])
            index += 1
            able = questions(clip, seed=config["seed"])
            if CAPTION in tasks:
                able = [_captioned(able[0])] if able else []
            able = [one for one in able if one.task in tasks]
            able = [one for one in able if one.route or not config["routed"]]
            if able:  # every task that the clip allows is as likely as any other
                task = str(rng.choice(sorted({one.task for one in able})))
                same = [one for one in able if one.task == task]
                examples.append(same[rng.integers(len(same))])
        return [examples[place] for place in _mine(config)]

    def failures(self) -> list[dict[str, str]]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing is open."""


class Files:
    """Items of an annotation file, with frames of their videos; a pass over all, then the next.

    `config`: dataset, a reader's name (`data.readers`); annotations and validation, its files;
    roots, the folders of the videos; tasks and routed as for `Toy`, where routes that the file has
    not are found by rules; workers, that read videos, and timeout, seconds; batch, seed.

    An item that can't be read is listed (`failures`), and another takes its place, the same one
    whenever this batch is made.
    """

    def __init__(self, config: dict[str, Any], processor: Processor, frames: int):
        if frames < 1:
            raise UsageError("--config.frames is 0; say how many are read of a video")
        if config["workers"] < 1:
            raise UsageError(f"--config.workers is {config['workers']}; it must be at least 1")
        self.config = config
        self._failures: list[dict[str, str]] = []
        self._bad: set[str] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._sets = {"train": self._examples("annotations")}
        if config["eval_every"]:
            self._sets["validation"] = self._examples("validation")
        self._orders = {split: self._order(len(found)) for split, found in self._sets.items()}

        def size(info, count: int) -> tuple[int, int]:
            return processor.frame_size(info.height, info.width, frames=count)

        self._decode: Callable = partial(decode, frames=frames, size=size)
        self._every = [Decoder(timeout=config["timeout"]) for _ in range(config["workers"])]
        self._idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for decoder in self._every:
            self._idle.put(decoder)
        self._threads = ThreadPoolExecutor(len(self._every))

    def __call__(self, number: int, *, split: str = "train") -> list[Example]:
        """This process's share of batch `number`."""
        return list(self._threads.map(partial(self._one, split, number), _mine(self.config)))

    def failures(self) -> list[dict[str, str]]:
        """What could not be read since the last call: video, id, stage and error of each."""
        with self._lock:
            found, self._failures = self._failures, []
        return found

    def close(self) -> None:
        """Ends the processes that read videos, those too that are at work."""
        self._closed = True
        for decoder in self._every:
            decoder.interrupt()
        self._threads.shutdown(cancel_futures=True)
        for decoder in self._every:
            decoder.close()

    def _examples(self, key: str) -> list[Example]:
        """What can be asked of the items of a file."""
        config, file = self.config, self.config[key]
        found, errors = items(config, key)
        for error in errors:
            self._fail(error.place, error.place, "annotation", str(error))
        if CAPTION in config["tasks"]:
            able = [_captioned(example) for example in found if example.caption]
        else:
            able = [example for example in found if self._asks(example)]
        if config["routed"]:
            missing = [example for example in able if not example.route]
            labels = {example.id: example.route for example in routed(missing)}
            able = [one.replace(route=one.route or labels[one.id]) for one in able]
        if not able:
            reason = str(errors[0]) if errors else self._needed()
            raise UsageError(f"--config.{key}={file}: there is nothing to ask: {reason}")
        log.info("%s: %d of %d items are asked", file, len(able), len(found) + len(errors))
        return able

    def _asks(self, example: Example) -> bool:
        config = self.config
        if config["tasks"] and example.task not in config["tasks"]:
            return False
        choice = config["answer_by"] == "letter" or config["views"] == "reworded"
        return bool(example.question and example.answer and (example.options or not choice))

    def _needed(self) -> str:
        if CAPTION in self.config["tasks"]:
            return "no item has a caption"
        tasks = f" of the tasks {', '.join(self.config['tasks'])}" if self.config["tasks"] else ""
        return f"no item{tasks} has a question with an answer (and options, where letters answer)"

    def _order(self, count: int) -> Any:
        """Numbers of items, each once a pass."""
        import grain

        return grain.MapDataset.range(count).shuffle(seed=self.config["seed"]).repeat()

    def _one(self, split: str, number: int, place: int) -> Example:
        """The example at a place of a batch; others, by chance, while it can't be read."""
        examples = self._sets[split]
        index = int(self._orders[split][number * self.config["batch"] + place])
        rng = np.random.default_rng([self.config["seed"], 5, number, place])
        for _ in range(_ATTEMPTS):
            example = examples[index]
            if example.id not in self._bad:
                decoder = self._idle.get()
                try:
                    return self._decode(example, decoder)
                except VideoError as error:
                    if self._closed:  # nobody waits for it any more
                        raise
                    self._bad.add(example.id)
                    self._fail(example.video, example.id, error.stage, str(error))
                finally:
                    self._idle.put(decoder)
            index = int(rng.integers(len(examples)))
        raise UsageError(f"of {_ATTEMPTS} videos not one can be read, the last: {example.video}")

    def _fail(self, video: str, id: str, stage: str, error: str) -> None:
        log.warning("%s is left out: %s", id, error)
        with self._lock:
            self._failures.append({"video": video, "id": id, "stage": stage, "error": error})


def _mine(config: dict[str, Any]) -> list[int]:
    return hosts.mine(config["batch"], config["num_minibatches"]).tolist()


def _captioned(example: Example) -> Example:
    """The request to caption the video of an example."""
    return example.replace(
        id=f"{example.id}-caption",
        question=CAPTION_REQUEST,
        options=(),
        answer=example.caption,
        task=CAPTION,
        kind=CAPTION,
        route="",
    )
