"""SPIKE's questions answered with `transformers`: as the released code does, and as well as it can.

Both keep the promises of `surprise.VideoModel` that `surprise.watch` with posterior `nll` and
history `captions` asks for, show the same prompts as `Viewer`, and never end a turn before the
token limit. Patches are made once per video and view, before the model is asked, by our processor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from transformers import DynamicCache
from transformers.generation.logits_process import TopPLogitsWarper

from experiments.workload import pieces
from surprise.trace import Context, Generation, Sampling
from vlm import VLM
from vlm.processor import Visual

_MODELS = {
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
}

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(vlm: VLM) -> torch.nn.Module:
    """The same weights in `transformers`, with SDPA; on the GPU where torch sees one."""
    import vlm as ours

    with TemporaryDirectory() as folder:
        ours.save(vlm, folder)
        model = _MODELS[vlm.config.family].from_pretrained(
            folder, dtype=_DTYPES[np.dtype(vlm.model.dtype).name], attn_implementation="sdpa"
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class _Shown:
    """B contexts; what `observe` has added to each of them."""

    contexts: tuple[Context, ...]
    observations: tuple[tuple[int, ...], ...] = ()


class _Peer:
    """What both have in common: the visuals of the videos, and prompts as arrays of torch."""

    def __init__(self, vlm: VLM, model: torch.nn.Module):
        self._processor, self._config, self._model = vlm.processor, vlm.config, model
        self._visuals: dict[tuple[str, tuple[int, ...]], Visual] = {}
        forbidden = np.flatnonzero(~vlm.processor.speakable())
        self._forbidden = torch.from_numpy(forbidden).to(model.device)

    def add(
        self, video: str, frames: np.ndarray, seconds: np.ndarray, views: Iterable[tuple[int, ...]]
    ) -> None:
        views = list(views)
        half = len(views) // 2  # windows, then observations of one frame each
        for view in views[:half]:
            chosen = list(view)
            self._visuals[video, view] = self._processor.video(frames[chosen], seconds[chosen])
        for view in views[half:]:
            self._visuals[video, ("seen", *view)] = self._processor.image(frames[view[0]])

    def drop(self, video: str) -> None:
        for key in [key for key in self._visuals if key[0] == video]:
            del self._visuals[key]

    def _window(self, context: Context) -> Visual:
        return self._visuals[context.video, context.window]

    def _seen(self, context: Context, places: tuple[int, ...]) -> Visual:
        return self._visuals[context.video, ("seen", *places)]

    def _pieces(self, context: Context, question: str = "") -> list[str]:
        return pieces(self._processor, context.system, context.history, question)

    def _prompt(self, state: _Shown, b: int, question: str) -> tuple[list[int], list[Visual]]:
        context = state.contexts[b]
        first, second, last = self._pieces(context, question)
        visuals = [self._window(context)]
        if state.observations:
            visuals.append(self._seen(context, state.observations[b]))
            first += second
        return self._processor.tokenize(first + last, visuals), visuals

    def _tensors(self, rows: Sequence[list[int]], visuals: Sequence[Visual]) -> dict[str, Any]:
        """Left-padded ids and masks of B rows, and the patches of all their visuals."""
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self._processor.pad_token, np.int64)
        mask = np.zeros(ids.shape, np.int64)
        for at, row in enumerate(rows):
            ids[at, longest - len(row) :], mask[at, longest - len(row) :] = row, 1
        kinds = (ids == self._config.image_token) * 1 + (ids == self._config.video_token) * 2
        arrays = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}
        images = [each for each in visuals if each.kind == "image"]
        videos = [each for each in visuals if each.kind == "video"]
        if images:
            arrays["pixel_values"] = np.concatenate([each.patches for each in images])
            arrays["image_grid_thw"] = np.array([each.grid for each in images])
        if videos:
            arrays["pixel_values_videos"] = np.concatenate([each.patches for each in videos])
            arrays["video_grid_thw"] = np.array([each.grid for each in videos])
            if videos[0].second_per_grid is not None:
                arrays["second_per_grid_ts"] = np.array([v.second_per_grid for v in videos])
        return {
            name: torch.from_numpy(array).to(self._model.device) for name, array in arrays.items()
        }


class Released(_Peer):
    """The pattern of the released code: every call is a prompt of its own, one row at a time.

    A hypothesis is sampled by a `generate` of its own without a cache, which runs the tower and the
    decoder over the whole prompt for each token; prior and posterior of a hypothesis are one
    forward over prompt and hypothesis with the logits of every position; the caption is generated
    with a cache. (Its posterior is the yes/no probe, a forward of the same size.)
    """

    def look(self, contexts: Sequence[Context]) -> _Shown:
        return _Shown(tuple(contexts))

    def observe(self, state: _Shown, observations: Sequence[tuple[int, ...]]) -> _Shown:
        return _Shown(state.contexts, tuple(observations))

    @torch.inference_mode()
    def generate(self, state: _Shown, question: str, sampling: Sampling) -> list[list[Generation]]:
        rows = []
        for b in range(len(state.contexts)):
            ids, visuals = self._prompt(state, b, question)
            answers = []
            for n in range(sampling.seeds.shape[1]):
                torch.manual_seed(int(sampling.seeds[b, n]))
                temperature = float(sampling.temperature[b, n])
                drawn = {
                    "do_sample": True,
                    "temperature": temperature,
                    "top_p": float(sampling.top_p[b, n]),
                    "top_k": 0,
                }
                out = self._model.generate(
                    **self._tensors([ids], visuals),
                    **(drawn if temperature else {"do_sample": False}),
                    max_new_tokens=sampling.max_tokens,
                    min_new_tokens=sampling.max_tokens,
                    eos_token_id=None,
                    pad_token_id=self._processor.pad_token,
                    suppress_tokens=self._forbidden.tolist(),
                    use_cache=bool(state.observations),
                )
                new = out[0, len(ids) :].tolist()
                assert len(new) == sampling.max_tokens
                answers.append(Generation(self._processor.decode(new), False))
            rows.append(answers)
        return rows

    @torch.inference_mode()
    def nll(
        self, state: _Shown, question: str, answers: Sequence[Sequence[str]]
    ) -> tuple[np.ndarray, np.ndarray]:
        sums = np.zeros((len(answers), len(answers[0])))
        counts = np.zeros(sums.shape, np.int64)
        for b, row in enumerate(answers):
            ids, visuals = self._prompt(state, b, question)
            for n, text in enumerate(row):
                answer = self._processor.plain(text)
                out = self._model(**self._tensors([ids + answer], visuals), use_cache=False)
                logprobs = out.logits[0, :-1].float().log_softmax(-1)
                targets = torch.tensor(answer, device=logprobs.device)
                sums[b, n] = -logprobs[len(ids) - 1 :].gather(1, targets[:, None]).sum().item()
                counts[b, n] = len(answer)
        return sums, counts


@dataclass(frozen=True)
class _Cached:
    """B prompts with their keys and values; the cache is copied before it is extended."""

    contexts: tuple[Context, ...]
    cache: DynamicCache
    mask: torch.Tensor
    """Which slots hold a token, [B, S]."""
    following: torch.Tensor
    """Position of the next text token, [B]."""
    last: torch.Tensor
    """Logits of the last token, float32 [B, V]."""


class Shared(_Peer):
    """The best that we could make of `transformers`, eager PyTorch and SDPA: prefixes are kept.

    The prefix of a step is prefilled once, window encoded once, and its cache serves all that is
    asked: each question extends a copy by a chunk of B rows, which is then expanded to N rows a
    prompt. Hypotheses are drawn N at a time, one token a pass; prior and posterior are one forward
    over all answers with the head at their tokens only; the observation extends the prefix by the
    frame. B videos of any lengths are left-padded into one batch.
    """

    @torch.inference_mode()
    def look(self, contexts: Sequence[Context]) -> _Cached:
        visuals = [self._window(context) for context in contexts]
        rows = [
            self._processor.tokenize(self._pieces(context)[0], [visual])
            for context, visual in zip(contexts, visuals, strict=True)
        ]
        return self._extended(None, tuple(contexts), rows, visuals)

    @torch.inference_mode()
    def observe(self, state: _Cached, observations: Sequence[tuple[int, ...]]) -> _Cached:
        visuals = [
            self._seen(context, places)
            for context, places in zip(state.contexts, observations, strict=True)
        ]
        rows = [
            self._processor.tokenize(self._pieces(context)[1], [visual])
            for context, visual in zip(state.contexts, visuals, strict=True)
        ]
        return self._extended(state, state.contexts, rows, visuals)

    @torch.inference_mode()
    def generate(self, state: _Cached, question: str, sampling: Sampling) -> list[list[Generation]]:
        batch, rows = sampling.seeds.shape
        torch.manual_seed(int(sampling.seeds[0, 0]))
        asked = self._expanded(self._asked(state, question), rows)
        # One temperature and one top_p for the batch, which lets one warper serve it.
        temperature, top_p = float(sampling.temperature[0, 0]), float(sampling.top_p[0, 0])
        warp = TopPLogitsWarper(top_p)
        logits, mask, drawn = asked.last, asked.mask, []
        one = mask.new_ones(len(mask), 1)
        for step in range(sampling.max_tokens):
            logits[:, self._forbidden] = -torch.inf
            if temperature:
                weights = warp(None, logits / temperature).softmax(-1)
                token = torch.multinomial(weights, 1)
            else:
                token = logits.argmax(-1, keepdim=True)
            drawn.append(token)
            if step + 1 == sampling.max_tokens:
                break
            mask = torch.cat([mask, one], 1)
            out = self._model(
                input_ids=token,
                attention_mask=mask,
                position_ids=(asked.following + step)[None, :, None].expand(3, -1, 1),
                past_key_values=asked.cache,
                use_cache=True,
            )
            logits = out.logits[:, -1].float()
        tokens = torch.cat(drawn, 1).reshape(batch, rows, -1).tolist()
        return [[Generation(self._processor.decode(ids), False) for ids in row] for row in tokens]

    @torch.inference_mode()
    def nll(
        self, state: _Cached, question: str, answers: Sequence[Sequence[str]]
    ) -> tuple[np.ndarray, np.ndarray]:
        ids = [[self._processor.plain(text) for text in row] for row in answers]
        counts = np.array([[len(answer) for answer in row] for row in ids])
        shape = (len(ids), len(ids[0]), counts.max())
        targets, valid = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for b, row in enumerate(ids):
            for n, answer in enumerate(row):
                targets[b, n, : len(answer)], valid[b, n, : len(answer)] = answer, 1
        targets, valid = (
            torch.from_numpy(array).reshape(-1, shape[2]).to(self._model.device)
            for array in (targets, valid)
        )
        asked = self._expanded(self._asked(state, question), shape[1])
        steps = torch.arange(shape[2] - 1, device=targets.device)
        out = self._model(
            input_ids=targets[:, :-1],
            attention_mask=torch.cat([asked.mask, valid[:, :-1]], 1),
            position_ids=(asked.following[:, None] + steps)[None].expand(3, -1, -1),
            past_key_values=asked.cache,
            use_cache=True,
        )
        logits = torch.cat([asked.last[:, None], out.logits.float()], 1)
        chosen = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(-1)
        sums = -(chosen * valid).sum(1).double().reshape(shape[:2])
        return sums.cpu().numpy(), counts

    def _asked(self, state: _Cached, question: str) -> _Cached:
        """The prompts with a question and the header of its answer, in a cache of their own."""
        rows = [
            self._processor.tokenize(self._pieces(context, question)[2])
            for context in state.contexts
        ]
        return self._extended(state, state.contexts, rows, [])

    def _extended(
        self,
        state: _Cached | None,
        contexts: tuple[Context, ...],
        rows: Sequence[list[int]],
        visuals: Sequence[Visual],
    ) -> _Cached:
        tensors = self._tensors(rows, visuals)
        own = tensors.pop("attention_mask")
        kinds = tensors.pop("mm_token_type_ids")
        grids = {name: tensors.get(name) for name in ("image_grid_thw", "video_grid_thw")}
        if (seconds := tensors.pop("second_per_grid_ts", None)) is not None:
            grids["second_per_grid_ts"] = seconds
        if visuals:
            positions, _ = self._model.model.get_rope_index(
                tensors["input_ids"], mm_token_type_ids=kinds, attention_mask=own, **grids
            )
        else:
            positions = (own.cumsum(-1) - 1).clamp(min=0)[None].expand(3, -1, -1)
        if state is not None:
            positions = positions + state.following[None, :, None]
        mask = own if state is None else torch.cat([state.mask, own], 1)
        out = self._model(
            **tensors,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=DynamicCache(config=self._model.config.get_text_config())
            if state is None
            else copy.deepcopy(state.cache),
            use_cache=True,
            logits_to_keep=1,
        )
        following, last = positions[0, :, -1] + 1, out.logits[:, -1].float()
        return _Cached(contexts, out.past_key_values, mask, following, last)

    @staticmethod
    def _expanded(state: _Cached, rows: int) -> _Cached:
        """N rows a prompt, side by side; takes the cache of `state` over."""
        state.cache.batch_repeat_interleave(rows)
        mask, following, last = (
            value.repeat_interleave(rows, 0) for value in (state.mask, state.following, state.last)
        )
        return _Cached(state.contexts, state.cache, mask, following, last)


class Batched(Shared):
    """`transformers` as one uses it well: SDPA, a cache, all N hypotheses of a prompt in one batch.

    Every call is a prompt of its own, prefilled once with its visuals and expanded to N rows: a
    step encodes the video four times. All else is as in `Shared`.
    """

    def look(self, contexts: Sequence[Context]) -> _Shown:
        return _Shown(tuple(contexts))

    def observe(self, state: _Shown, observations: Sequence[tuple[int, ...]]) -> _Shown:
        return _Shown(state.contexts, tuple(observations))

    def _asked(self, state: _Shown, question: str) -> _Cached:
        prompts = [self._prompt(state, b, question) for b in range(len(state.contexts))]
        visuals = [visual for _, shown in prompts for visual in shown]
        return self._extended(None, state.contexts, [ids for ids, _ in prompts], visuals)
