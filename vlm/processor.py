"""Text and frames to `Inputs`: resizing, patches, grids, chat template, token ids, padding.

The rules are those of the Qwen2.5-VL and Qwen3-VL processors in `transformers` (4.57 to 5.23);
torch and `transformers` are not needed.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Real, UInt8

from vlm.config import VLMConfig
from vlm.inputs import Inputs
from vlm.patches import patchify, resize, smart_resize, smart_resize_clip
from vlm.processor_settings import (
    ProcessorSettings,
    default_settings,
    read_settings,
    write_settings,
)
from vlm.tokenizer import ChatTokenizer, Message, ProcessorError, escape

__all__ = [
    "Message",
    "Processor",
    "ProcessorError",
    "ProcessorSettings",
    "Visual",
    "escape",
    "patchify",
    "resize",
    "smart_resize",
    "smart_resize_clip",
]

_START, _END = "<|vision_start|>", "<|vision_end|>"
_IMAGE, _VIDEO = "<|image_pad|>", "<|video_pad|>"
# A placeholder; that of a video with the vision tokens around it, where they are there.
_PLACEHOLDER = re.compile("|".join(map(re.escape, (_IMAGE, f"{_START}{_VIDEO}{_END}", _VIDEO))))

# Grids closer than this to an even spacing count as even: containers round times to 1 ms.
_EVEN_SECONDS = 1e-3


@dataclass(frozen=True)
class Visual:
    """One image or video, ready for the tower.

    `patches` are float32 [t*h*w, channels*temporal_patch*patch*patch], `grid` is (t, h, w) in
    patches, `seconds` the time of each temporal grid: of its first frame in Qwen2.5-VL, midway
    between its first and its last in Qwen3-VL. `second_per_grid` is their mean spacing in seconds,
    and `even` says whether that scalar alone places the grids in time; it is None in Qwen3-VL,
    whose prompts state `seconds`.
    """

    patches: Float32[np.ndarray, "P features"]
    grid: tuple[int, int, int]
    seconds: tuple[float, ...]
    kind: Literal["image", "video"]
    second_per_grid: float | None = 1.0
    even: bool = True


class Processor:
    """Text and frames of one model to token ids, patches and `Inputs`.

    Public attributes: `config`, `settings`, `pad_token` (id), `stop_tokens` (ids that end a turn).
    Raises ProcessorError where the tokenizer's vision tokens are not those of `config`.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        config: VLMConfig,
        settings: ProcessorSettings | None = None,
    ):
        self.config = config
        self.settings = settings or default_settings(config)
        self.pad_token = tokenizer.pad
        self.stop_tokens = tokenizer.stops
        self._tokenizer = tokenizer
        # Whether the prompt says when each temporal grid of a video was seen.
        self._stamped = config.family == "qwen3_vl"
        _check_ids(tokenizer.special, config)

    @classmethod
    def from_pretrained(cls, directory: str | Path, config: VLMConfig, **choices: Any) -> Processor:
        """Reads the tokenizer, chat template and pixel limits of a Hugging Face directory.

        For the files see `ChatTokenizer.from_pretrained`; absent preprocessor files mean
        `default_settings`. `choices` replace fields of the settings, such as `hf_compat`. Raises
        ProcessorError, one line that names what is missing or does not fit.
        """
        directory = Path(directory)
        settings = dataclasses.replace(read_settings(directory, config), **choices)
        return cls(ChatTokenizer.from_pretrained(directory), config, settings)

    def save(self, directory: str | Path) -> None:
        """Writes the files that `from_pretrained` and `transformers` read back."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(directory)
        write_settings(directory, self.settings, self.config)

    def limited(self, pixels: int) -> Processor:
        """The same, but for videos of at most `pixels` a frame (of a clip, in Qwen3-VL)."""
        other = copy.copy(self)
        fewest = min(self.settings.video_pixels[0], pixels)
        other.settings = dataclasses.replace(self.settings, video_pixels=(fewest, pixels))
        return other

    def frame_size(
        self,
        height: int,
        width: int,
        kind: Literal["image", "video"] = "video",
        *,
        frames: int | None = None,
    ) -> tuple[int, int]:
        """Returns the (height, width) in pixels that a frame is resized to.

        A decoder that delivers frames of this size saves memory and a second resizing. `frames` is
        the number that a prompt shows of a video: in Qwen3-VL they share one pixel budget, so it is
        required there (ValueError); elsewhere it has no effect.
        """
        limits = self.settings.image_pixels if kind == "image" else self.settings.video_pixels
        vision = self.config.vision
        if kind == "image" or not self._stamped:
            return smart_resize(height, width, vision.factor, *limits)
        if frames is None:
            raise ValueError("the frame size of a Qwen3-VL video depends on its number of frames")
        return smart_resize_clip(
            height,
            width,
            vision.factor,
            *limits,
            frames=frames,
            temporal_patch=vision.temporal_patch,
        )

    def image(self, frame: UInt8[np.ndarray, "height width channels"]) -> Visual:
        """Turns one RGB picture (uint8) into a Visual; it fills its temporal patch with itself."""
        patches, grid = self._patches(frame[None], "image")
        return Visual(patches, grid, (0.0,), "image")

    def video(
        self,
        frames: UInt8[np.ndarray, "frames height width channels"],
        seconds: Sequence[float | int] | Real[np.ndarray, " times"],
    ) -> Visual:
        """Turns RGB frames (uint8) and their true times in seconds into a Visual; see `placed`.

        Raises ValueError for no frames, for a number of times other than that of frames, and for
        times that fall.
        """
        times = np.asarray(seconds, np.float64)
        if len(frames) == 0:
            raise ValueError("a video needs at least one frame")
        if times.shape != (len(frames),):
            raise ValueError(f"{len(frames)} frames, but {times.size} times")
        patches, grid = self._patches(frames, "video")
        return dataclasses.replace(self.placed(grid[1:], times, "video"), patches=patches)

    def placed(
        self, grid: tuple[int, int], seconds: Float[np.ndarray, " times"], kind: str
    ) -> Visual:
        """A Visual without patches: frames of `grid` (h, w) in patches, at their true times.

        For prompts whose frames are encoded elsewhere. Frames are paired in order, `temporal_patch`
        to a temporal grid, the last one repeated where one is missing; for a grid's time see
        `Visual`. Frames at an even rate give second_per_grid = temporal_patch / rate. Raises
        ValueError for times that fall.
        """
        nothing = np.zeros((0, self.config.vision.patch_features), np.float32)
        if kind == "image":
            return Visual(nothing, (1, *grid), (0.0,), "image")
        if not np.isfinite(seconds).all() or (np.diff(seconds) < 0).any():
            raise ValueError("times of frames must be finite and may not fall")
        span = self.config.vision.temporal_patch
        grids = seconds[::span]
        if self._stamped:
            whole = np.concatenate([seconds, np.repeat(seconds[-1:], -len(seconds) % span)])
            grids = (grids + whole[span - 1 :: span]) / 2
            step, even = None, True
        else:
            step, even = self._spacing(grids, seconds)
        return Visual(nothing, (len(grids), *grid), tuple(grids.tolist()), "video", step, even)

    def _spacing(self, grids: np.ndarray, seconds: np.ndarray) -> tuple[float, bool]:
        """Mean seconds between temporal grids, and whether that scalar alone shall place them."""
        if len(grids) > 1:
            step = (grids[-1] - grids[0]) / (len(grids) - 1)
        elif len(seconds) > 1:
            span = self.config.vision.temporal_patch
            step = span * (seconds[-1] - seconds[0]) / (len(seconds) - 1)
        else:
            step = 1.0
        off = np.abs(grids - grids[0] - step * np.arange(len(grids)))
        even = bool(off.max() <= _EVEN_SECONDS)
        # 9 decimals: the noise of a difference of times must not turn 1.0 into 0.999...9.
        chosen = {"auto": even, "scalar": True, "true": False}[self.settings.times]
        return round(float(step), 9), chosen

    def cells(self, visual: Visual) -> int:
        """Returns the number of placeholder tokens that a visual takes: t*h*w / merge^2."""
        return math.prod(visual.grid) // self.config.vision.merge**2

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Writes a conversation as the prompt text of the chat template.

        All text in `messages` passes through `escape`: only the template and the entries of type
        "image" and "video" make special tokens. Raises ValueError where the model has no template.
        """
        return self._tokenizer.render(messages, add_generation_prompt)

    def tokenize(self, text: str, visuals: Sequence[Visual] = ()) -> list[int]:
        """Turns prompt text into token ids, one placeholder per visual grown to its merged cells.

        `visuals` are in the order of the placeholders in `text`; ValueError where number or kind
        disagree. Special tokens in `text` count as such: see `escape` for text from elsewhere.

        A video of Qwen3-VL grows into one block per temporal grid, `<1.5 seconds><|vision_start|>`,
        the cells, `<|vision_end|>`; `hf_compat` says whether the vision tokens of `text` stay
        around them. In both families a text may be cut behind any `<|vision_end|>`, and the ids
        of its parts make up those of the whole: each part then holds all that a placeholder grows
        into and the text in front, with which the first stamp may share a token.
        """
        found = _PLACEHOLDER.findall(text)
        shown = ["image" if placeholder == _IMAGE else "video" for placeholder in found]
        given = [visual.kind for visual in visuals]
        if shown != given:
            raise ValueError(f"the prompt shows {_listed(shown)}; given were {_listed(given)}")
        following = iter(visuals)
        grown = _PLACEHOLDER.sub(lambda match: self._grown(match[0], next(following)), text)
        return self._tokenizer.encode(grown)

    def plain(self, text: str) -> list[int]:
        """Turns text that nobody vouches for into token ids, none of them special."""
        return self.tokenize(escape(text))

    def single_tokens(self, texts: Sequence[str]) -> list[int]:
        """The ids of those `texts` that are one token each; ValueError where none is."""
        ids = [self.plain(text) for text in texts]
        single = list(dict.fromkeys(found[0] for found in ids if len(found) == 1))
        if not single:
            raise ValueError(f"none of {', '.join(map(repr, texts))} is one token here")
        return single

    def speakable(self) -> Bool[np.ndarray, " V"]:
        """Which tokens a model may say: those that have a text, and the ends of a turn."""
        allowed = np.arange(self.config.text.vocab) < self._tokenizer.size
        allowed[list(self._tokenizer.special.values())] = False
        allowed[list(self.stop_tokens)] = True
        return allowed

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Turns token ids into text; special tokens are left out unless asked for."""
        return self._tokenizer.decode(ids, skip_special_tokens)

    def __call__(
        self,
        prompts: Sequence[str | Sequence[Message]],
        visuals: Sequence[Sequence[Visual]] | None = None,
        padding_side: Literal["left", "right"] = "right",
        *,
        add_generation_prompt: bool = True,
        length: int | None = None,
    ) -> Inputs:
        """Tokenizes and pads B prompts (texts or conversations) with the visuals of each.

        Rows are padded to the longest, or to `length`. `second_per_grid_ts` holds every video's
        mean spacing; `grid_seconds` is None where all videos are even, else one array per video,
        empty for the even ones, for which the scalar stays in force. Both are None in Qwen3-VL.
        Raises ValueError.
        """
        visuals = [()] * len(prompts) if visuals is None else visuals
        if len(visuals) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but visuals for {len(visuals)}")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}; choices: 'left', 'right'")
        texts = [
            prompt if isinstance(prompt, str) else self.render(prompt, add_generation_prompt)
            for prompt in prompts
        ]
        rows = [self.tokenize(text, own) for text, own in zip(texts, visuals, strict=True)]
        longest = max((len(row) for row in rows), default=0)
        if length is not None and length < longest:
            raise ValueError(f"a prompt of {longest} tokens does not fit in {length}")
        ids = np.full((len(rows), longest if length is None else length), self.pad_token, np.int32)
        mask = np.zeros(ids.shape, bool)
        for index, row in enumerate(rows):
            start = ids.shape[1] - len(row) if padding_side == "left" else 0
            ids[index, start : start + len(row)] = row
            mask[index, start : start + len(row)] = True
        return Inputs(ids, mask, **visual_fields([v for own in visuals for v in own]))

    def _grown(self, placeholder: str, visual: Visual) -> str:
        """What the tokenizer sees in place of one visual's placeholder."""
        cells = self.cells(visual)
        if visual.kind == "image":
            return _IMAGE * cells
        if not self._stamped:
            return placeholder.replace(_VIDEO, _VIDEO * cells)
        block = f"{_START}{_VIDEO * (cells // visual.grid[0])}{_END}"
        blocks = "".join(f"<{seconds:.1f} seconds>{block}" for seconds in visual.seconds)
        return blocks if self.settings.hf_compat == "4.57" else placeholder.replace(_VIDEO, blocks)

    def _patches(self, frames: np.ndarray, kind: Literal["image", "video"]):
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be RGB in uint8, not {frames.dtype} {frames.shape}")
        size = self.frame_size(*frames.shape[1:3], kind, frames=len(frames))
        resized = np.stack([resize(frame, size) for frame in frames])
        return patchify(resized, self.config.vision, self.settings.mean, self.settings.std)


def visual_fields(visuals: Sequence[Visual]) -> dict[str, Any]:
    """The visual fields of `Inputs`; images and videos apart, each in order."""
    images = [visual for visual in visuals if visual.kind == "image"]
    videos = [visual for visual in visuals if visual.kind == "video"]
    arrays: dict[str, Any] = {}
    if images:
        arrays["pixel_values"] = np.concatenate([visual.patches for visual in images])
        arrays["image_grid_thw"] = np.array([visual.grid for visual in images], np.int32)
    if videos:
        arrays["pixel_values_videos"] = np.concatenate([visual.patches for visual in videos])
        arrays["video_grid_thw"] = np.array([visual.grid for visual in videos], np.int32)
        if videos[0].second_per_grid is not None:
            arrays["second_per_grid_ts"] = np.array([visual.second_per_grid for visual in videos])
        if not all(visual.even for visual in videos):
            arrays["grid_seconds"] = tuple(
                np.array(() if visual.even else visual.seconds, np.float64) for visual in videos
            )
    return arrays


def _listed(kinds: Sequence[str]) -> str:
    """How an error names visuals: "2 visuals (image, video)"."""
    return f"{len(kinds)} visuals ({', '.join(kinds)})" if kinds else "no visuals"


def _check_ids(special: Mapping[str, int], config: VLMConfig) -> None:
    wanted = {
        _IMAGE: config.image_token,
        _VIDEO: config.video_token,
        _START: config.vision_start_token,
        _END: config.vision_end_token,
    }
    for name, index in wanted.items():
        if special.get(name) != index:
            raise ProcessorError(
                f"{name} has id {special.get(name)} in the tokenizer, {index} in config.json"
            )
