"""Text and frames to `Inputs`: resizing, patches, grids, chat template, token ids, padding.

The rules are those of the Qwen2.5-VL processors in `transformers` (4.57 to 5.23); torch and
`transformers` are not needed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Real, UInt8

from vlm.config import VisionConfig, VLMConfig
from vlm.inputs import Inputs
from vlm.patches import patchify, resize, smart_resize
from vlm.positions import HF_COMPAT, check_hf_compat
from vlm.tokenizer import ChatTokenizer, Message, ProcessorError, escape, read_json, write_json

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
]

# Grids closer than this to an even spacing count as even: containers round times to 1 ms.
_EVEN_SECONDS = 1e-3


@dataclass(frozen=True)
class ProcessorSettings:
    """What `preprocessor_config.json` fixes, and two choices of ours.

    Pixel limits are (least, most) of one resized image or video frame. `times` says how the frames'
    times reach the positions: "auto" gives one scalar per video where its temporal grids are evenly
    spaced (to 1 ms) and the true time of every grid elsewhere; "scalar" always gives the scalar, as
    `transformers` does; "true" always gives the times. `hf_compat`: see `vlm.positions`.
    """

    image_pixels: tuple[int, int] = (56 * 56, 16_384 * 28 * 28)
    video_pixels: tuple[int, int] = (128 * 28 * 28, 768 * 28 * 28)
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    hf_compat: str = HF_COMPAT[0]
    times: Literal["auto", "scalar", "true"] = "auto"

    def __post_init__(self):
        check_hf_compat(self.hf_compat)
        if self.times not in ("auto", "scalar", "true"):
            raise ValueError(f"times is {self.times!r}; choices: 'auto', 'scalar', 'true'")


@dataclass(frozen=True)
class Visual:
    """One image or video, ready for the tower.

    `patches` are float32 [t*h*w, channels*temporal_patch*patch*patch], `grid` is (t, h, w) in
    patches, `seconds` the time of the first frame of each temporal grid, `second_per_grid` their
    mean spacing in seconds. `even` says whether that scalar alone places the grids in time.
    """

    patches: Float32[np.ndarray, "P features"]
    grid: tuple[int, int, int]
    seconds: tuple[float, ...]
    kind: Literal["image", "video"]
    second_per_grid: float = 1.0
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
        self.settings = settings or ProcessorSettings()
        self.pad_token = tokenizer.pad
        self.stop_tokens = tokenizer.stops
        self._tokenizer = tokenizer
        _check_ids(tokenizer.special, config)

    @classmethod
    def from_pretrained(cls, directory: str | Path, config: VLMConfig, **choices: Any) -> Processor:
        """Reads the tokenizer, chat template and pixel limits of a Hugging Face directory.

        For the files see `ChatTokenizer.from_pretrained`; absent preprocessor files mean the
        family's defaults. `choices` replace fields of the settings, such as `hf_compat`. Raises
        ProcessorError, one line that names what is missing or does not fit.
        """
        directory = Path(directory)
        settings = dataclasses.replace(_read_settings(directory, config.vision), **choices)
        return cls(ChatTokenizer.from_pretrained(directory), config, settings)

    def save(self, directory: str | Path) -> None:
        """Writes the files that `from_pretrained` and `transformers` read back."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(directory)
        _write_settings(directory, self.settings, self.config.vision)

    def frame_size(
        self, height: int, width: int, kind: Literal["image", "video"] = "video"
    ) -> tuple[int, int]:
        """Returns the (height, width) in pixels that a frame is resized to.

        A decoder that delivers frames of this size saves memory and a second resizing.
        """
        limits = self.settings.image_pixels if kind == "image" else self.settings.video_pixels
        return smart_resize(height, width, self.config.vision.factor, *limits)

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
        to a temporal grid, the last one repeated where one is missing; a grid's time is that of its
        first frame. Frames at an even rate give second_per_grid = temporal_patch / rate. Raises
        ValueError for times that fall.
        """
        nothing = np.zeros((0, self.config.vision.patch_features), np.float32)
        if kind == "image":
            return Visual(nothing, (1, *grid), (0.0,), "image")
        if not np.isfinite(seconds).all() or (np.diff(seconds) < 0).any():
            raise ValueError("times of frames must be finite and may not fall")
        span = self.config.vision.temporal_patch
        grids = seconds[::span]
        if len(grids) > 1:
            step = (grids[-1] - grids[0]) / (len(grids) - 1)
        elif len(seconds) > 1:
            step = span * (seconds[-1] - seconds[0]) / (len(seconds) - 1)
        else:
            step = 1.0
        off = np.abs(grids - grids[0] - step * np.arange(len(grids)))
        even = bool(off.max() <= _EVEN_SECONDS)
        return Visual(
            nothing,
            (len(grids), *grid),
            tuple(grids.tolist()),
            "video",
            # 9 decimals: the noise of a difference of times must not turn 1.0 into 0.999...9.
            second_per_grid=round(float(step), 9),
            even={"auto": even, "scalar": True, "true": False}[self.settings.times],
        )

    def cells(self, visual: Visual) -> int:
        """Returns the number of token positions that a visual takes: t*h*w / merge^2."""
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
        """
        kinds = {self.config.image_token: "image", self.config.video_token: "video"}
        ids: list[int] = []
        shown: list[str] = []
        for piece in self._tokenizer.pieces(text):
            if piece[0] in kinds:
                cells = self.cells(visuals[len(shown)]) if len(shown) < len(visuals) else 1
                shown.append(kinds[piece[0]])
                piece = piece * cells
            ids += piece
        given = [visual.kind for visual in visuals]
        if shown != given:
            raise ValueError(f"the prompt shows {_listed(shown)}; given were {_listed(given)}")
        return ids

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
        empty for the even ones, for which the scalar stays in force. Raises ValueError.
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

    def _patches(self, frames: np.ndarray, kind: Literal["image", "video"]):
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be RGB in uint8, not {frames.dtype} {frames.shape}")
        size = self.frame_size(*frames.shape[1:3], kind=kind)
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
        "<|image_pad|>": config.image_token,
        "<|video_pad|>": config.video_token,
        "<|vision_start|>": config.vision_start_token,
        "<|vision_end|>": config.vision_end_token,
    }
    for name, index in wanted.items():
        if special.get(name) != index:
            raise ProcessorError(
                f"{name} has id {special.get(name)} in the tokenizer, {index} in config.json"
            )


def _read_settings(directory: Path, vision: VisionConfig) -> ProcessorSettings:
    # One file per kind, or (newer releases) both in processor_config.json.
    both = read_json(directory / "processor_config.json")
    image = read_json(directory / "preprocessor_config.json") or both.get("image_processor", {})
    video = read_json(directory / "video_preprocessor_config.json") or both.get(
        "video_processor", {}
    )
    for name, own in (("image", image), ("video", video)):
        for key, value in _tower_keys(vision).items():
            if own.get(key, value) != value:
                raise ProcessorError(
                    f"{directory}: {name} processor has {key} {own[key]}, the tower {value}"
                )
    defaults = ProcessorSettings()
    return ProcessorSettings(
        image_pixels=_limits(image, defaults.image_pixels),
        # Without a file of its own a video keeps the family's limits, not those of images.
        video_pixels=_limits(video, defaults.video_pixels),
        mean=tuple(image.get("image_mean", defaults.mean)),
        std=tuple(image.get("image_std", defaults.std)),
    )


def _write_settings(directory: Path, settings: ProcessorSettings, vision: VisionConfig) -> None:
    for kind, file, (least, most) in (
        ("image", "preprocessor_config.json", settings.image_pixels),
        ("video", "video_preprocessor_config.json", settings.video_pixels),
    ):
        content = {
            f"{kind}_processor_type": f"Qwen2VL{kind.title()}Processor",
            "processor_class": "Qwen2_5_VLProcessor",
            "size": {"shortest_edge": least, "longest_edge": most},
            **_tower_keys(vision),
            "image_mean": list(settings.mean),
            "image_std": list(settings.std),
        }
        write_json(directory / file, content)


def _tower_keys(vision: VisionConfig) -> dict[str, int]:
    return {
        "patch_size": vision.patch,
        "temporal_patch_size": vision.temporal_patch,
        "merge_size": vision.merge,
    }


def _limits(own: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    size = own.get("size") or {}
    least = own.get("min_pixels") or size.get("shortest_edge") or default[0]
    most = own.get("max_pixels") or size.get("longest_edge") or default[1]
    return int(least), int(most)
