"""Where jobs run: on one device, as a replica on each of several, or spread over a mesh.

A job is a pure function `job(model, *args, **static)` of arrays with a batch axis B; the three
drivers run the same job and give the same numbers.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.arguments import UsageError
from vlm.model import Model

AXES = ("data", "fsdp", "tensor")
_BATCH = ("data", "fsdp")  # prompts are split over both
_BATCH_AXIS = {"positions": 1, "k": 1, "v": 1}
"""The axis of B in fields where it is not the first."""

# Parameters by name: the first pattern found decides how the last axes are split; stacked layers
# stay whole. Megatron's rule: what widens is split by columns, what narrows back by rows.
_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"\.(q|k|v|qkv|gate|up|fc1)(\.layer)?\.kernel$", ("fsdp", "tensor")),
    (r"\.(q|k|v|qkv|gate|up|fc1)\.bias$", ("tensor",)),
    (r"\.(o|proj|down|fc2)(\.layer)?\.kernel$", ("tensor", "fsdp")),
    (r"\.embed\.embedding$", ("tensor", "fsdp")),
    (r"\.head\.kernel$", ("fsdp", "tensor")),
    (r"\.(scale|bias)$|patch_embed\.kernel$|positions\.embedding$", ()),
    # Of an adapted layer a has the kernel's inputs and b its outputs (`experiments.assembly`).
    (r"\.(q|k|v|gate|up)\.a$", ("fsdp", None)),
    (r"\.(q|k|v|gate|up)\.b$", (None, "tensor")),
    (r"\.(o|down)\.a$", ("tensor", None)),
    (r"\.(o|down)\.b$", (None, "fsdp")),
    (r"\.ns_coeffs$", ()),  # constants that Muon keeps with its state
)


@dataclass(frozen=True)
class Driver:
    """A model in its place, and how jobs on it run.

    A job takes arrays of numpy, whose B is a multiple of `replicas`, and what jobs have returned.
    That stays on the devices, in a form of the driver's own, until `fetch` brings it back; `put`
    sends arrays there ahead of a job.
    """

    replicas: int
    put: Callable[[Any], Any]
    fetch: Callable[[Any], Any]
    _call: Callable[[Callable, tuple, tuple], Any]

    def __call__(self, job: Callable, *args: Any, **static: Any) -> Any:
        """The job's result on the devices; compiled once for every shape and `static`."""
        return self._call(job, args, tuple(sorted(static.items())))


def single(model: Model) -> Driver:
    """The device that the model is on."""
    graph, params = nnx.split(model)

    def call(job, args, static):
        return _jitted(graph, None, job, static)(params, *args)

    return Driver(1, jax.device_put, jax.device_get, call)


def pmapped(model: Model, devices: Sequence[jax.Device] | None = None) -> Driver:
    """A replica of the model on each of this process's devices, the prompts split among them."""
    devices = tuple(jax.local_devices() if devices is None else devices)
    graph, params = nnx.split(model)
    mesh = _mesh(np.array(devices), ("data",))
    params = jax.device_put(params, NamedSharding(mesh, P()))  # once, not at every call

    def split(path, leaf):
        """[.., B, ..] -> [devices, .., B / devices, ..]"""
        axis = _batch_axis(path)
        shape = (*leaf.shape[:axis], len(devices), -1, *leaf.shape[axis + 1 :])
        return np.moveaxis(leaf.reshape(shape), axis, 0)

    def put(tree) -> _Split:
        entries, structure = jax.tree_util.tree_flatten_with_path(tree)
        spread = NamedSharding(mesh, P("data"))
        leaves = tuple(jax.device_put(split(path, leaf), spread) for path, leaf in entries)
        return _Split(leaves, structure)

    def fetch(result: _Split):
        leaves = (jax.device_get(leaf) for leaf in result.leaves)
        return result.structure.unflatten(leaf.reshape(-1, *leaf.shape[2:]) for leaf in leaves)

    def call(job, args, static) -> _Split:
        entries, structure = jax.tree_util.tree_flatten_with_path(args)
        inner = tuple(
            entry.structure if isinstance(entry, _Split) else None for _, entry in entries
        )
        program, returned = _pmapped(graph, devices, job, static, structure, inner)
        parts = [
            entry.leaves if isinstance(entry, _Split) else split(path, entry)
            for path, entry in entries
        ]
        leaves = tuple(program(params, parts))
        return _Split(leaves, returned[0])

    return Driver(len(devices), put, fetch, call)


def sharded(model: Model, mesh: Mesh) -> Driver:
    """One model spread over a mesh with AXES: parameters by rule, prompts and caches by batch.

    Prompts are split over data and fsdp, keys and values over tensor as well. The model may be
    placed already (see `placement`), which one that exceeds a device must be. Where the mesh is one
    of several processes, each has a driver of its own, over its own devices.
    """
    graph, params = nnx.split(model)
    params, mesh = here(params, mesh), own_mesh(mesh)
    place = placement(mesh)
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: place(dotted(path), leaf), params)

    def call(job, args, static):
        return _jitted(graph, mesh, job, static)(params, *spread(args, mesh))

    return Driver(replicas(mesh), lambda tree: spread(tree, mesh), jax.device_get, call)


@dataclass(frozen=True)
class _Split:
    """A tree whose leaves carry a leading axis of devices; opaque to jax, as it fits no type."""

    leaves: tuple[jax.Array, ...]
    structure: Any


def make_mesh(shape: Sequence[int], *, everywhere: bool = False) -> Mesh:
    """A mesh of this process's first devices; shape: how many along data, fsdp and tensor.

    `everywhere`: of all processes', one after the other, as many of each; `tensor` within one.

    Raises ValueError where there are fewer devices, or no such shares.
    """
    needed = math.prod(shape)
    processes = jax.process_count() if everywhere else 1
    every = range(processes) if everywhere else [jax.process_index()]
    found = [jax.local_devices(process_index=process) for process in every]
    fewest = min(map(len, found))
    if len(shape) != len(AXES) or not 1 <= needed <= processes * fewest:
        raise ValueError(
            f"a mesh of {tuple(shape)} over {', '.join(AXES)} does not fit "
            f"{processes * fewest} devices"
        )
    each = needed // processes
    if needed % processes or each % shape[-1]:
        raise ValueError(
            f"a mesh of {tuple(shape)} over {', '.join(AXES)} can't be shared by {processes} "
            "processes: each gives as many devices, a multiple of tensor"
        )
    grid = np.array([device for devices in found for device in devices[:each]])
    return _mesh(grid.reshape(tuple(shape)))


def read_mesh(shape: Sequence[Any]) -> Mesh | None:
    """The mesh, over all processes, that `--config.mesh` asks for; None where it is one device.

    Raises UsageError.
    """
    try:
        sizes = tuple(int(size) for size in shape)
    except ValueError:
        raise UsageError(
            f"--config.mesh is {','.join(map(str, shape))}; write it as 4,2,1"
        ) from None
    try:
        alone = sizes == (1, 1, 1) and jax.process_count() == 1
        return None if alone else make_mesh(sizes, everywhere=True)
    except ValueError as error:
        raise UsageError(f"--config.mesh: {error}") from None


def placement(mesh: Mesh) -> Callable[[str, Any], jax.Array]:
    """(dotted path of a parameter, array) -> the array in its place, for `vlm.load`."""

    def place(path: str, array) -> jax.Array:
        return put(array, NamedSharding(mesh, partition(path, array.shape, mesh)))

    return place


def put(array: Any, place: NamedSharding) -> jax.Array:
    """An array in its place; one of the host, or of a device, each process has all of."""
    there = isinstance(array, jax.Array) and not array.is_fully_addressable
    if place.is_fully_addressable or there:
        return jax.device_put(array, place)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, place, lambda index: whole[index])


def shardings(state: Any, mesh: Mesh) -> Any:
    """Where each leaf of a training state belongs: by its path, whose end is a parameter's.

    So what an optimizer keeps of a parameter is split as the parameter is; scalars are everywhere.
    """

    def one(path, leaf) -> NamedSharding:
        rule = partition(dotted(path), leaf.shape, mesh) if leaf.ndim else P()
        return NamedSharding(mesh, rule)

    return jax.tree_util.tree_map_with_path(one, state)


def spread(batch: Any, mesh: Mesh) -> Any:
    """A batch of numpy arrays on the mesh: split over data and fsdp, along the axis of B.

    An array whose side there is no multiple of those devices is copied to all of them. What is on
    devices already stays as it is.
    """

    def one(path, leaf):
        there = isinstance(leaf, jax.Array)
        return leaf if there else put(leaf, _batch_sharding(mesh, path, leaf))

    return jax.tree_util.tree_map_with_path(one, batch)


def spread_shares(batch: Any, mesh: Mesh) -> Any:
    """As `spread`, of each process's share of a batch, arrays whose first axis all devices split.

    The batch is the shares behind one another.
    """

    def one(leaf: np.ndarray) -> jax.Array:
        shape = (len(leaf) * jax.process_count(), *leaf.shape[1:])
        place = NamedSharding(mesh, P(_BATCH))
        return jax.make_array_from_process_local_data(place, leaf, shape)

    return jax.tree.map(one, batch)


def spread_parts(parts: Any, mesh: Mesh) -> Any:
    """Arrays [parts, B, ...] inside of a jitted function, every part of them spread by B."""

    def one(leaf):
        spec = _fitting((None, _BATCH, *[None] * (leaf.ndim - 2)), leaf.shape, mesh)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(one, parts)


def replicas(mesh: Mesh | None) -> int:
    """Over how many devices a batch is split."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def own_mesh(mesh: Mesh | None) -> Mesh | None:
    """A mesh of this process's devices alone; the mesh itself where there are no others.

    It splits parameters as the other does, as far as this process's devices go.
    """
    if mesh is None or not mesh.is_multi_process:
        return mesh
    return _by_process(mesh)[jax.process_index()]


def here(tree: Any, mesh: Mesh | None) -> Any:
    """A whole copy of parameters on this process's devices, for `own_mesh`.

    Free where fsdp and tensor lie within a process; else they are gathered from the others.
    """
    if mesh is None or not mesh.is_multi_process:
        return tree
    meshes = _by_process(mesh)
    own = meshes[jax.process_index()]
    grid = np.stack([part.devices for part in meshes])
    wide = _mesh(grid, ("process", *AXES))

    def one(path, leaf) -> jax.Array:
        spec = partition(dotted(path), leaf.shape, own)
        leaf = put(leaf, NamedSharding(wide, spec))
        shards = {shard.device: shard.data for shard in leaf.addressable_shards}
        return jax.make_array_from_single_device_arrays(
            leaf.shape, NamedSharding(own, spec), [shards[device] for device in own.devices.flat]
        )

    return jax.tree_util.tree_map_with_path(one, tree)


def _by_process(mesh: Mesh) -> list[Mesh]:
    """What each process has of a mesh made by `make_mesh`."""
    rows = mesh.devices.reshape(jax.process_count(), -1)
    tensor = mesh.shape["tensor"]
    fsdp = math.gcd(mesh.shape["fsdp"], rows.shape[1] // tensor)
    return [_mesh(row.reshape(-1, fsdp, tensor)) for row in rows]


def _mesh(grid: np.ndarray, axes: tuple[str, ...] = AXES) -> Mesh:
    return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))


def dotted(path) -> str:
    """A parameter's path as `load_weights` spells it, without the `value` of its wrapper."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def partition(path: str, shape: Sequence[int], mesh: Mesh) -> P:
    """How a parameter is split: by the first rule that matches; an axis too short stays whole.

    Raises ValueError where no rule matches, so that a new layer can't stay whole unnoticed.
    """
    for pattern, axes in _RULES:
        if re.search(pattern, f".{path}"):
            return _fitting((None,) * (len(shape) - len(axes)) + axes, shape, mesh)
    raise ValueError(f"no rule says how to split the parameter {path}")


def _fitting(axes: Sequence, shape: Sequence[int], mesh: Mesh) -> P:
    """The axes whose devices divide the array's side, spelled as XLA spells them in results."""

    def devices(axis) -> int:
        names = axis if isinstance(axis, tuple) else (axis,)
        return math.prod(mesh.shape[name] for name in names)

    kept = [
        axis if axis and devices(axis) > 1 and size % devices(axis) == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ]
    while kept and kept[-1] is None:
        kept.pop()
    return P(*kept)


def _batch_sharding(mesh: Mesh, path, leaf) -> NamedSharding:
    shape = np.shape(leaf)  # () of a plain number
    axes: list = [None] * len(shape)
    if shape:
        axes[_batch_axis(path)] = _BATCH
    if _name(path) in ("k", "v"):
        axes[3] = "tensor"  # the heads
    return NamedSharding(mesh, _fitting(axes, shape, mesh))


# One program a job, a structure and a set of static arguments, whoever asks.


@functools.cache
def _jitted(graph, mesh: Mesh | None, job: Callable, static: tuple) -> Callable:
    def program(params, *args):
        out = job(nnx.merge(graph, params), *args, **dict(static))
        if mesh is None:
            return out
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.lax.with_sharding_constraint(
                leaf, _batch_sharding(mesh, path, leaf)
            ),
            out,
        )

    return jax.jit(program)


@functools.cache
def _pmapped(
    graph, devices: tuple, job: Callable, static: tuple, structure, inner: tuple
) -> tuple[Callable, list]:
    """The mapped job, and a list that holds the structure of its result once it is traced."""
    returned: list = []

    def program(params, parts):
        pairs = zip(inner, parts, strict=True)
        args = structure.unflatten(s.unflatten(p) if s is not None else p for s, p in pairs)
        out = job(nnx.merge(graph, params), *args, **dict(static))
        leaves, returned[:] = jax.tree.leaves(out), [jax.tree.structure(out)]
        return leaves

    return jax.pmap(program, axis_name="data", in_axes=(None, 0), devices=devices), returned


def _name(path) -> str:
    return path[-1].name if path and isinstance(path[-1], jax.tree_util.GetAttrKey) else ""


def _batch_axis(path) -> int:
    return _BATCH_AXIS.get(_name(path), 0)
