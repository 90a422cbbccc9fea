"""Several processes of one job (`jax.distributed`): how they meet, and what they tell each other.

Everything here but `join` must be called by all of them, in the same order; one process that is
alone has nobody to wait for.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Int, Shaped

from experiments.arguments import UsageError, check_process

T = TypeVar("T")
KEYS = ("coordinator", "process", "processes")
"""Of a configuration: what tells processes of one job apart, and no result depends on."""


def join(coordinator: str, process: int, processes: int, *, recoverable: bool = False) -> None:
    """Meets the other processes: before anything else that asks for devices.

    coordinator: host:port of process 0; "auto" where the cluster tells all (TPU pods, Slurm, ...);
    "" where there are no others.
    recoverable: one that is killed may be started again while the others go on; else they end.

    Raises UsageError.
    """
    check_process(process, processes)
    if not coordinator:
        if processes > 1:
            raise UsageError("--config.processes: to train together they need --config.coordinator")
        return
    jax.config.update("jax_enable_recoverability", recoverable)
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"--config.coordinator={coordinator}: {error}") from None


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def mine(count: int, rounds: int = 1) -> Int[np.ndarray, " share"]:
    """Places, in a batch of `count`, of what this process makes: its share of each of `rounds`.

    So that the first round of all processes together is the first of one that is alone.
    """
    shares = np.arange(count).reshape(rounds, jax.process_count(), -1)
    return shares[:, jax.process_index()].reshape(-1)


def gather(value: T) -> list[T]:
    """What each process has to tell, anything that can be pickled, in their order."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = process_allgather(np.array(len(data), np.int32))
    room = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)  # few shapes to compile
    room[: len(data)] = data
    rows = process_allgather(room)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def joined(share: Shaped[np.ndarray, "share *rest"]) -> Shaped[np.ndarray, "all *rest"]:
    """The shares of all processes behind one another."""
    return np.concatenate(gather(share))


def own(whole: Shaped[np.ndarray, "all *rest"]) -> Shaped[np.ndarray, "share *rest"]:
    """This process's part of what `joined` has made, or of something of its length."""
    return np.split(whole, jax.process_count())[jax.process_index()]


def all_or_none(work: Callable[[], T], error: type[Exception]) -> T:
    """What `work` gives, once it has been done by all; where one fails with `error`, all raise."""
    if jax.process_count() == 1:
        return work()
    result: Any = None
    reason = ""
    try:
        result = work()
    except error as failure:
        reason = str(failure)
    for number, told in enumerate(gather(reason)):
        if told:
            raise error(f"process {number}: {told}")
    return result


def wait(name: str) -> None:
    """Returns when all are here."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)
