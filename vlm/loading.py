"""`load` and `save`: a whole model with its processor, from and to a directory."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vlm.attention import unusable
from vlm.config import NAMED, TINY, TINY_QWEN3, VLMConfig
from vlm.model import Model
from vlm.processor import Processor
from vlm.weights import load_weights, random_weights, save_weights

TOKENIZER = Path(__file__).parent / "tiny"
"""The bundled tokenizer; below it, a folder for each bundled model."""
BUNDLED = ("tiny", "tiny-qwen3")
"""Models that come with trained weights."""
_RANDOM = {"tiny": TINY, "tiny-qwen3": TINY_QWEN3, **NAMED}
_UNTRAINED = "random_weights"
"""Key of ours in a `config.json`, so that a saved random model is not taken for a trained one."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Data only: no pickle and no code ever leaves the hub for this machine.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]


class SourceError(ValueError):
    """A model source that names nothing; the message says what would."""


@dataclass(frozen=True)
class VLM:
    """A model, what it was made from, and the processor that feeds it."""

    model: Model
    config: VLMConfig
    processor: Processor
    name: str
    trained: bool = True
    """False where the parameters are random, so that its words mean nothing."""


def load(
    source: str | Path,
    *,
    dtype: str = "bfloat16",
    attention: str = "auto",
    hf_compat: str | None = None,
    place: Callable[[str, np.ndarray], Array] | None = None,
    seed: int | None = None,
) -> VLM:
    """Loads a model and its processor.

    Args:
      source: a Hugging Face directory (safetensors), a hub id (`org/name`), `tiny` or `tiny-qwen3`
        (the bundled models, which know the toy world), or a named size such as `qwen2.5-vl-7b` or
        `qwen3-vl-8b` (random weights, and the bundled tokenizer).
      dtype: of the parameters: `bfloat16`, `float32` or `float16`.
      attention: back end of tower and decoder: `auto` picks by platform and shape; `xla`, `cudnn`
        (NVIDIA GPU, 16-bit) and `splash` (TPU) are that one wherever its constraints hold.
      hf_compat: the rule set of positions and prompts (`vlm.positions.HF_COMPAT`).
      place: (dotted path, host array) -> device array, to put a parameter straight where it is
        sharded to; the default is the default device.
      seed: of random weights for `tiny`, `tiny-qwen3` or a named size; for the first two it leaves
        the trained ones aside.

    Raises:
      SourceError, ConfigError, WeightsError, ProcessorError: one line that says what is wrong.
    """
    if dtype not in ("bfloat16", "float32", "float16"):
        raise SourceError(f"dtype is {dtype!r}; choices: 'bfloat16', 'float32', 'float16'")
    if reason := unusable(attention):
        raise SourceError(reason)
    choices = {} if hf_compat is None else {"hf_compat": hf_compat}
    name = str(source)
    has_weights = seed is None and name in BUNDLED
    if name in _RANDOM and not has_weights:
        config = with_tokens_of(_RANDOM[name], TINY)
        processor = Processor.from_pretrained(TOKENIZER, config, **choices)
        model = random_weights(
            config, seed=seed or 0, dtype=jnp.dtype(dtype), attention=attention, place=place
        )
        return VLM(model, config, processor, name, trained=False)
    if seed is not None:
        raise SourceError(f"{name} has weights of its own, so that a seed means nothing")
    directory = TOKENIZER / name if has_weights else _directory(source)
    config, processor, trained = described(directory, **choices)
    model = load_weights(
        directory, config, dtype=jnp.dtype(dtype), attention=attention, place=place
    )
    return VLM(model, config, processor, name, trained)


def save(vlm: VLM, directory: str | Path) -> None:
    """Writes config, processor files and safetensors that `load` and `transformers` read."""
    describe(vlm, directory)
    save_weights(vlm.model, directory)


def describe(vlm: VLM, directory: str | Path) -> None:
    """Writes what a model is without its weights: `config.json` and the processor's files."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(vlm.model.dtype).name
    config = vlm.config.to_hf() | {"dtype": dtype, "torch_dtype": dtype}
    if not vlm.trained:
        config[_UNTRAINED] = True
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    vlm.processor.save(directory)


def described(directory: Path, **choices: str) -> tuple[VLMConfig, Processor, bool]:
    """Reads what `describe` has written: configuration, processor, and whether it is trained."""
    values = _read_config(directory)
    config = VLMConfig.from_hf(values)
    processor = Processor.from_pretrained(directory, config, **choices)
    return config, processor, not values.get(_UNTRAINED)


def with_tokens_of(config: VLMConfig, other: VLMConfig) -> VLMConfig:
    """`config` with the special token ids of `other`, to serve it with the other's tokenizer."""
    return dataclasses.replace(
        config,
        image_token=other.image_token,
        video_token=other.video_token,
        vision_start_token=other.vision_start_token,
        vision_end_token=other.vision_end_token,
    )


def _directory(source: str | Path) -> Path:
    directory = Path(source)
    if directory.is_dir():
        return directory
    if not directory.exists() and _HUB_ID.fullmatch(str(source)):
        from huggingface_hub import snapshot_download

        logging.getLogger(__name__).info("looking for %s on the hub", source)
        try:
            return Path(snapshot_download(str(source), allow_patterns=_HUB_FILES))
        except Exception as error:  # the hub's errors and its HTTP client's share no other base
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise SourceError(f"{source}: not a directory, and not on the hub: {reason}") from None
    names = ", ".join(_RANDOM)
    raise SourceError(
        f"{source}: no such model; give a Hugging Face directory, a hub id or one of: {names}"
    )


def _read_config(directory: Path) -> dict:
    path = directory / "config.json"
    if not path.is_file():
        raise SourceError(f"{directory}: no config.json, so not a Hugging Face model directory")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise SourceError(f"{path}: not a JSON object")
    return config
