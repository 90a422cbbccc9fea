"""Hugging Face checkpoints <-> parameters: one name table, read both ways, and a strict report."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vlm.config import VLMConfig
from vlm.model import Model

SHARD_BYTES = 5 * 1000**3
"""Largest safetensors file that `save_weights` writes, as the hub does."""
_INDEX = "model.safetensors.index.json"
_DTYPES = ("BF16", "F16", "F32", "F64")


class WeightsError(ValueError):
    """A checkpoint that does not fit its configuration; the message lists every name concerned."""


# (parameter path in `Model`, tensor name on the hub). `{}` is the layer number: the tensors of all
# layers are stacked on our first axis. Dense kernels are [out, in] there and [in, out] here.
_QWEN25_VISION = [
    ("vision.patch_embed.kernel", "visual.patch_embed.proj.weight"),
    ("vision.blocks.norm1.scale", "visual.blocks.{}.norm1.weight"),
    ("vision.blocks.qkv.kernel", "visual.blocks.{}.attn.qkv.weight"),
    ("vision.blocks.qkv.bias", "visual.blocks.{}.attn.qkv.bias"),
    ("vision.blocks.proj.kernel", "visual.blocks.{}.attn.proj.weight"),
    ("vision.blocks.proj.bias", "visual.blocks.{}.attn.proj.bias"),
    ("vision.blocks.norm2.scale", "visual.blocks.{}.norm2.weight"),
    ("vision.blocks.mlp.gate.kernel", "visual.blocks.{}.mlp.gate_proj.weight"),
    ("vision.blocks.mlp.gate.bias", "visual.blocks.{}.mlp.gate_proj.bias"),
    ("vision.blocks.mlp.up.kernel", "visual.blocks.{}.mlp.up_proj.weight"),
    ("vision.blocks.mlp.up.bias", "visual.blocks.{}.mlp.up_proj.bias"),
    ("vision.blocks.mlp.down.kernel", "visual.blocks.{}.mlp.down_proj.weight"),
    ("vision.blocks.mlp.down.bias", "visual.blocks.{}.mlp.down_proj.bias"),
    ("vision.merger.norm.scale", "visual.merger.ln_q.weight"),
    ("vision.merger.fc1.kernel", "visual.merger.mlp.0.weight"),
    ("vision.merger.fc1.bias", "visual.merger.mlp.0.bias"),
    ("vision.merger.fc2.kernel", "visual.merger.mlp.2.weight"),
    ("vision.merger.fc2.bias", "visual.merger.mlp.2.bias"),
]
_QWEN3_VISION = [
    ("vision.patch_embed.kernel", "visual.patch_embed.proj.weight"),
    ("vision.patch_embed.bias", "visual.patch_embed.proj.bias"),
    ("vision.positions.embedding", "visual.pos_embed.weight"),
    ("vision.blocks.norm1.scale", "visual.blocks.{}.norm1.weight"),
    ("vision.blocks.norm1.bias", "visual.blocks.{}.norm1.bias"),
    ("vision.blocks.qkv.kernel", "visual.blocks.{}.attn.qkv.weight"),
    ("vision.blocks.qkv.bias", "visual.blocks.{}.attn.qkv.bias"),
    ("vision.blocks.proj.kernel", "visual.blocks.{}.attn.proj.weight"),
    ("vision.blocks.proj.bias", "visual.blocks.{}.attn.proj.bias"),
    ("vision.blocks.norm2.scale", "visual.blocks.{}.norm2.weight"),
    ("vision.blocks.norm2.bias", "visual.blocks.{}.norm2.bias"),
    ("vision.blocks.fc1.kernel", "visual.blocks.{}.mlp.linear_fc1.weight"),
    ("vision.blocks.fc1.bias", "visual.blocks.{}.mlp.linear_fc1.bias"),
    ("vision.blocks.fc2.kernel", "visual.blocks.{}.mlp.linear_fc2.weight"),
    ("vision.blocks.fc2.bias", "visual.blocks.{}.mlp.linear_fc2.bias"),
    *(
        (f"vision.{ours}.{part}.{kind}", f"visual.{theirs}.{name}.{hub_kind}")
        for ours, theirs in (("merger", "merger"), ("deepstack", "deepstack_merger_list.{}"))
        for part, kinds, name in (
            ("norm", ("scale", "bias"), "norm"),
            ("fc1", ("kernel", "bias"), "linear_fc1"),
            ("fc2", ("kernel", "bias"), "linear_fc2"),
        )
        for kind, hub_kind in zip(kinds, ("weight", "bias"), strict=True)
    ),
]
_TEXT = [
    ("embed.embedding", "model.embed_tokens.weight"),
    ("decoder.layers.norm1.scale", "model.layers.{}.input_layernorm.weight"),
    ("decoder.layers.attention.q.kernel", "model.layers.{}.self_attn.q_proj.weight"),
    ("decoder.layers.attention.q.bias", "model.layers.{}.self_attn.q_proj.bias"),
    ("decoder.layers.attention.q_norm.scale", "model.layers.{}.self_attn.q_norm.weight"),
    ("decoder.layers.attention.k.kernel", "model.layers.{}.self_attn.k_proj.weight"),
    ("decoder.layers.attention.k.bias", "model.layers.{}.self_attn.k_proj.bias"),
    ("decoder.layers.attention.k_norm.scale", "model.layers.{}.self_attn.k_norm.weight"),
    ("decoder.layers.attention.v.kernel", "model.layers.{}.self_attn.v_proj.weight"),
    ("decoder.layers.attention.v.bias", "model.layers.{}.self_attn.v_proj.bias"),
    ("decoder.layers.attention.o.kernel", "model.layers.{}.self_attn.o_proj.weight"),
    ("decoder.layers.norm2.scale", "model.layers.{}.post_attention_layernorm.weight"),
    ("decoder.layers.mlp.gate.kernel", "model.layers.{}.mlp.gate_proj.weight"),
    ("decoder.layers.mlp.up.kernel", "model.layers.{}.mlp.up_proj.weight"),
    ("decoder.layers.mlp.down.kernel", "model.layers.{}.mlp.down_proj.weight"),
    ("decoder.norm.scale", "model.norm.weight"),
    ("head.kernel", "lm_head.weight"),
]
_TABLES = {"qwen2_5_vl": dict(_QWEN25_VISION + _TEXT), "qwen3_vl": dict(_QWEN3_VISION + _TEXT)}


@dataclass(frozen=True)
class _Entry:
    """One parameter: where it is in `Model`, its shape there, and its tensors on the hub."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool
    conv: tuple[int, ...] | None

    @property
    def kernel(self) -> bool:
        return self.path[-1] == "kernel"

    @property
    def hub_shape(self) -> tuple[int, ...]:
        """Shape of each of its tensors on the hub."""
        shape = self.shape[1:] if self.stacked else self.shape
        if self.kernel:
            shape = shape[::-1]
        return (shape[0], *self.conv) if self.conv else shape

    def from_hub(self, tensor: np.ndarray) -> np.ndarray:
        tensor = tensor.reshape(tensor.shape[0], -1) if self.conv else tensor
        return tensor.T if self.kernel else tensor

    def to_hub(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray((array.T if self.kernel else array).reshape(self.hub_shape))


def abstract_model(config: VLMConfig, *, dtype=jnp.bfloat16, attention: str = "auto") -> Model:
    """A `Model` of shapes and dtypes, without arrays."""
    return nnx.eval_shape(lambda: Model(config, dtype=dtype, attention=attention, rngs=nnx.Rngs(0)))


def _entries(
    config: VLMConfig, dtype=jnp.bfloat16, attention: str = "auto"
) -> tuple[nnx.GraphDef, dict, list[_Entry]]:
    """The model's graph, its flat abstract state by path, and one entry a parameter."""
    graph, state = nnx.split(abstract_model(config, dtype=dtype, attention=attention))
    flat = dict(nnx.to_flat_state(state))
    table = _TABLES[config.family]
    vision = config.vision
    conv = (vision.channels, vision.temporal_patch, vision.patch, vision.patch)
    entries = []
    for path, leaf in flat.items():
        ours, shape = ".".join(path), tuple(leaf.shape)
        name = table[ours]
        stacked = "{}" in name
        name = _published(name, config.family)
        names = tuple(name.format(i) for i in range(shape[0])) if stacked else (name,)
        is_conv = ours == "vision.patch_embed.kernel"
        entries.append(_Entry(path, shape, names, stacked, conv if is_conv else None))
    return graph, flat, entries


def hub_names(config: VLMConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this configuration holds."""
    return {name: e.hub_shape for e in _entries(config)[2] for name in e.names}


def _published(name: str, family: str) -> str:
    """A tensor name as the family's published files spell it.

    Files differ in `model.` before `visual.` and in `language_model.` behind `model.`: Qwen3-VL was
    published with them, Qwen2.5-VL without, and `transformers` has saved both either way.
    """
    name = re.sub(r"^model\.visual\.", "visual.", name)
    name = re.sub(r"^model\.language_model\.", "model.", name)
    if family == "qwen3_vl":
        name = re.sub(r"^model\.", "model.language_model.", name)
        name = re.sub(r"^visual\.", "model.visual.", name)
    return name


def _indexed(index: Path) -> list[Path]:
    """The files that an index names; it may name files beside itself only."""
    try:
        listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        outside = sorted(name for name in listed if Path(name).name != name)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{index}: not an index of safetensors files") from None
    if outside:
        raise WeightsError(f"{index} names files outside its directory: {outside}")
    return sorted(index.parent / name for name in listed)


class _Checkpoint:
    """The safetensors files of a directory, opened one after the other."""

    def __init__(self, directory: Path, family: str):
        self._files, self._family = _files(directory), family
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of every tensor, by published name; `dtypes` likewise."""
        self.dtypes: dict[str, str] = {}
        for path in self._files:
            try:
                with safe_open(path, framework="np") as file:
                    for name in file.keys():  # noqa: SIM118 (a safetensors handle, not a mapping)
                        published = _published(name, family)
                        if published in self.shapes:
                            raise WeightsError(f"{path}: {name} is stored twice in {directory}")
                        part = file.get_slice(name)
                        self.shapes[published] = tuple(part.get_shape())
                        self.dtypes[published] = part.get_dtype()
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path}: not a readable safetensors file ({error})") from None

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor with its published name; one file is mapped into memory at a time."""
        for path in self._files:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118
                    yield _published(name, self._family), file.get_tensor(name)


def _files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    files = _indexed(index) if index.exists() else sorted(directory.glob("*.safetensors"))
    if not files:
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt*") for p in directory.glob(pattern))
        raise WeightsError(
            f"{directory}: {pickled[0]} is a pickle, which can run code when read, and is "
            "refused; save the model as safetensors"
            if pickled
            else f"{directory}: no *.safetensors file"
        )
    if missing := [path.name for path in files if not path.is_file()]:
        raise WeightsError(f"{directory}: the index names files that are missing: {missing}")
    return files


def load_weights(
    directory: str | Path,
    config: VLMConfig,
    *,
    dtype=jnp.bfloat16,
    attention: str = "auto",
    place: Callable[[str, np.ndarray], Array] | None = None,
) -> Model:
    """Reads a Hugging Face directory (one or several safetensors files) into a `Model`.

    Tensors of any floating dtype are cast to `dtype`, file by file: the host holds the model once
    in that dtype and one file beside it. Nothing is unpickled and nothing is run.

    Args:
      directory: holds the safetensors files.
      config: says which tensors there must be.
      dtype: of the parameters.
      attention: back end, as `Model` takes it.
      place: (dotted path, host array) -> device array, to put a parameter straight where it is
        sharded to; the default is the default device.

    Raises:
      WeightsError: names that are missing, not used, of another shape or not of a floating dtype,
        all of them listed; or files that are missing, damaged, or pickles.
    """
    directory = Path(directory)
    checkpoint = _Checkpoint(directory, config.family)
    graph, flat, entries = _entries(config, dtype, attention)
    wanted = {name: (entry, i) for entry in entries for i, name in enumerate(entry.names)}
    _report(directory, {n: e.hub_shape for n, (e, _) in wanted.items()}, checkpoint, config)
    arrays = {entry.path: _aligned(entry.shape, np.dtype(dtype)) for entry in entries}
    for name, tensor in checkpoint.tensors():
        if name in wanted:
            entry, i = wanted[name]
            arrays[entry.path][i if entry.stacked else ...] = entry.from_hub(tensor)
    for path in list(arrays):
        # Where the device is the host itself, an aligned array becomes the parameter uncopied.
        flat[path] = flat[path].replace(_placed(path, arrays.pop(path), place))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _placed(path: tuple[str, ...], array: np.ndarray, place: Callable | None) -> Array:
    return jax.device_put(array) if place is None else place(".".join(path), array)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array whose data starts at a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def random_weights(
    config: VLMConfig,
    *,
    seed: int = 0,
    dtype=jnp.bfloat16,
    attention: str = "auto",
    place: Callable[[str, np.ndarray], Array] | None = None,
) -> Model:
    """A model of this configuration with parameters drawn by numpy, the same on every device.

    Kernels and embeddings from N(0, 0.02^2), biases 0, norms 1.
    `place` is as in `load_weights`.
    """
    graph, state = nnx.split(abstract_model(config, dtype=dtype, attention=attention))
    flat = dict(nnx.to_flat_state(state))
    generator = np.random.default_rng(seed)
    for path, leaf in flat.items():
        if path[-1] in ("kernel", "embedding"):
            array = 0.02 * generator.standard_normal(leaf.shape, np.float32)
        else:
            array = np.full(leaf.shape, path[-1] == "scale", np.float32)
        flat[path] = leaf.replace(_placed(path, array.astype(dtype), place))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _report(directory: Path, wanted: dict, checkpoint: _Checkpoint, config: VLMConfig) -> None:
    found = dict(checkpoint.shapes)
    if config.text.tied:
        found.pop("lm_head.weight", None)  # a tied head may be stored as well; it is the embedding
    lines = [f"missing: {name} {wanted[name]}" for name in wanted if name not in found]
    lines += [f"unused: {name} {found[name]}" for name in found if name not in wanted]
    lines += [
        f"shape of {name}: {found[name]} in the file, {wanted[name]} by config.json"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    lines += [
        f"dtype of {name}: {dtype}; supported: {', '.join(_DTYPES)}"
        for name, dtype in checkpoint.dtypes.items()
        if name in wanted and dtype not in _DTYPES
    ]
    if lines:
        raise WeightsError(f"{directory} does not fit its config.json: " + "; ".join(lines))


def _hub_tensors(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    _, state = nnx.split(model)
    flat = {path: leaf[...] for path, leaf in nnx.to_flat_state(state)}
    for entry in _entries(model.config)[2]:
        array = np.asarray(flat[entry.path])
        for i, name in enumerate(entry.names):
            yield name, entry.to_hub(array[i] if entry.stacked else array)


def save_weights(model: Model, directory: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes safetensors under the hub's names, with an index where one file is not enough.

    Safetensors of a model saved there before are removed: readers would mix them with the new.
    Raises OSError for what can't be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    size = total = 0
    for name, tensor in _hub_tensors(model):
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    names = (
        [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        if len(shards) > 1
        else ["model.safetensors"]
    )
    for name in ("model.safetensors", "model-*-of-*.safetensors", _INDEX):
        for old in directory.glob(name):
            old.unlink()
    mask = os.umask(0)
    os.umask(mask)
    for name, shard in zip(names, shards, strict=True):
        try:
            save_file(shard, directory / name, metadata={"format": "pt"})
        except SafetensorError as error:  # all that may go wrong here is the disk
            raise OSError(f"{directory / name}: {error}") from error
        (directory / name).chmod(0o666 & ~mask)  # as any new file; it is its owner's alone by now
    if len(shards) > 1:
        where = {
            tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (directory / _INDEX).write_text(json.dumps(index, indent=2))


def parameters(model: Model) -> dict[str, Array]:
    """Every parameter by its dotted path."""
    _, state = nnx.split(model)
    return {".".join(path): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def count(model: Model) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
