"""Orbax checkpoints of a model: parameters, and beside them the files that describe it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from experiments.arguments import UsageError
from vlm import VLM
from vlm.loading import describe, described
from vlm.weights import abstract_model

PARAMS = "params"


def is_checkpoint(directory: Path) -> bool:
    """Whether `save` has written this directory."""
    return (directory / PARAMS).is_dir()


def save(model: VLM, directory: Path) -> None:
    """Writes `params/` (Orbax), `config.json` and the processor's files."""
    import orbax.checkpoint as ocp

    describe(model, directory)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.resolve() / PARAMS, _pure(nnx.state(model.model)))


def load(directory: Path, *, dtype: str) -> VLM:
    """Reads what `save` has written; parameters are cast to `dtype`."""
    import orbax.checkpoint as ocp

    config, processor, trained = described(directory)
    graph, state = nnx.split(abstract_model(config, dtype=jax.numpy.dtype(dtype)))
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(directory.resolve() / PARAMS, _pure(state))
    nnx.replace_by_pure_dict(state, params)
    return VLM(nnx.merge(graph, state), config, processor, str(directory), trained)


def _pure(state: nnx.State) -> dict:
    return nnx.to_pure_dict(state)


class Checkpoints:
    """The checkpoints of a training run, written while it goes on; the last `keep` stay.

    So does the one at which an evaluation has found the highest figure of the name `best`.

    One that can't be written is an OSError when the next is saved or at the end; others stay.
    """

    def __init__(self, directory: Path, *, keep: int, best: str = ""):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        self._best, self._directory = best, directory.resolve()
        kept: dict[str, Any] = {"max_to_keep": keep}
        if best:
            highest = BestN(get_metric_fn=self._figure, n=1, keep_checkpoints_without_metrics=False)
            kept = {
                "best_fn": self._figure,
                "preservation_policy": AnyPreservationPolicy([LatestN(keep), highest]),
            }
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=True, **kept)
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        with self._written():
            self._manager.close()  # after the one being written

    def save(self, step: int, state: Any, figures: Mapping[str, float] | None = None) -> None:
        """Keeps a pytree of arrays, once a step; returns when they have been copied.

        figures: of an evaluation, if there was one.
        """
        import orbax.checkpoint as ocp

        if step == self._manager.latest_step():
            return
        metrics = None
        if self._best:
            figure = (figures or {}).get(self._best, math.nan)
            metrics = {self._best: figure} if math.isfinite(figure) else {}
        args = ocp.args.StandardSave(_flat(state))
        with self._written():
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def latest(self, state: Any) -> Any:
        """The state kept last, placed as `state` is; `state` where none was kept.

        Raises UsageError where what was kept has other leaves or shapes.
        """
        return self._restored(self._manager.latest_step(), state)

    def best(self, state: Any) -> Any:
        """The state with the highest figure; `state` where nobody asks for one."""
        if not self._best:
            return state
        with self._written():
            self._manager.wait_until_finished()
        return self._restored(self._manager.best_step(), state)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Tells an OSError from the others that Orbax has for it."""
        try:
            yield
        except ValueError as error:
            reason = re.search(r"([^:]*) \[os_error_code=", str(error))
            if reason is None:
                raise
            told = f"{self._directory}: no checkpoint can be written:{reason[1]}"
            raise OSError(told) from error

    def _figure(self, metrics: Mapping[str, float]) -> float:
        return metrics.get(self._best, -math.inf)

    def _restored(self, step: int | None, state: Any) -> Any:
        import orbax.checkpoint as ocp

        if step is None:
            return state
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _flat(state))
        self._check(step, wanted)
        kept = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        return jax.tree.unflatten(jax.tree.structure(state), kept.values())

    def _check(self, step: int, wanted: Mapping[str, Any]) -> None:
        kept = self._manager.item_metadata(step)
        here, there = ({name: tuple(leaf.shape) for name, leaf in tree.items()}
                       for tree in (wanted, kept))  # fmt: skip
        if different := sorted(here.items() ^ there.items()):
            name, _ = different[0]
            raise UsageError(
                f"{self._directory / str(step)} is of another model: {name} is "
                f"{there.get(name, 'missing')} there and {here.get(name, 'missing')} here; "
                "choose another --out, or remove this one"
            )


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path, in order: one form for every optimizer."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {f"{i:04d}{jax.tree_util.keystr(path)}": leaf for i, (path, leaf) in enumerate(leaves)}
