"""The ladder: our towers, decoder and logits against `transformers` on tiny random checkpoints.

Everything runs in float32 on input that is not constant. Every rung has a counterpart that switches
one feature off and must then miss the tolerance: a rung that can't fail proves nothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vlm
from vlm import frames as frames_module
from vlm import model as model_module
from vlm import positions as positions_module
from vlm import rope
from vlm.config import Qwen3Vision, Qwen25Vision, TextConfig, VLMConfig
from vlm.frames import Frames
from vlm.inputs import Inputs
from vlm.loading import BUNDLED, TOKENIZER
from vlm.model import Tokens, encode, forward, logits, prepare, run
from vlm.sampling import Sampling, generate
from vlm.vision_qwen3 import Qwen3Tower
from vlm.weights import load_weights, parameters, save_weights

torch = pytest.importorskip("torch", reason="parity needs the `parity` extra (torch==2.13.0)")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
HF = {
    "qwen2_5_vl": (
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
    ),
    "qwen3_vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration),
}
_IDS = {
    "image_token": 90,
    "video_token": 91,
    "vision_start_token": 92,
    "vision_end_token": 93,
}
_QWEN3_TEXT = {"rope_interleaved": True, "qkv_bias": False, "qk_norm": True}
CONFIGS = {
    "tied": VLMConfig(
        vision=Qwen25Vision(depth=4, hidden=64, heads=4, mlp=96, out=64, full_layers=(1, 3)),
        text=TextConfig(
            vocab=96, hidden=64, mlp=96, layers=3, heads=4, kv_heads=2, head_dim=16,
            rope_theta=10_000.0, rope_sections=(2, 3, 3), tied=True,
        ),
        **_IDS,
    ),
    "untied_other_sections": VLMConfig(
        vision=Qwen25Vision(
            depth=3, hidden=96, heads=2, mlp=64, out=96, window=84, full_layers=(0,)
        ),
        text=TextConfig(
            vocab=101, hidden=96, mlp=80, layers=2, heads=6, kv_heads=3, head_dim=16,
            rope_theta=1_000_000.0, rope_sections=(4, 2, 2), tied=False, norm_eps=1e-5,
        ),
        tokens_per_second=4,
        **_IDS,
    ),
    "one_kv_head": VLMConfig(
        vision=Qwen25Vision(
            depth=2, hidden=48, heads=2, mlp=56, out=80, window=112, full_layers=(1,)
        ),
        text=TextConfig(
            vocab=128, hidden=80, mlp=72, layers=4, heads=5, kv_heads=1, head_dim=16,
            rope_theta=500.0, rope_sections=(1, 4, 3), tied=False,
        ),
        **_IDS,
    ),
    "qwen3_tied": VLMConfig(
        vision=Qwen3Vision(
            depth=4, hidden=64, heads=4, mlp=96, out=64, positions=36, deepstack=(0, 2)
        ),
        text=TextConfig(
            vocab=96, hidden=64, mlp=96, layers=3, heads=4, kv_heads=2, head_dim=16,
            rope_theta=10_000.0, rope_sections=(4, 2, 2), tied=True, **_QWEN3_TEXT,
        ),
        family="qwen3_vl",
        **_IDS,
    ),
    "qwen3_untied_other_sections": VLMConfig(
        vision=Qwen3Vision(
            depth=3, hidden=96, heads=2, mlp=64, out=80, positions=100, deepstack=(1,)
        ),
        text=TextConfig(
            vocab=101, hidden=80, mlp=72, layers=2, heads=6, kv_heads=3, head_dim=32,
            rope_theta=5_000_000.0, rope_sections=(6, 5, 5), norm_eps=1e-5, **_QWEN3_TEXT,
        ),
        family="qwen3_vl",
        **_IDS,
    ),
    "qwen3_three_taps_one_kv_head": VLMConfig(
        vision=Qwen3Vision(
            depth=5, hidden=48, heads=2, mlp=56, out=64, positions=16, deepstack=(0, 1, 3)
        ),
        text=TextConfig(
            vocab=128, hidden=64, mlp=72, layers=4, heads=5, kv_heads=1, head_dim=24,
            rope_theta=500.0, rope_sections=(4, 4, 4), **_QWEN3_TEXT,
        ),
        family="qwen3_vl",
        **_IDS,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """The same random weights in both: made by `transformers`, saved by it, read by us."""
    config = CONFIGS[request.param]
    torch.manual_seed(7)
    hf_config, hf_model = HF[config.family]
    oracle = hf_model(hf_config(**config.to_hf())).eval().float()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            # Far from the symmetric start: biases and norms that matter, larger kernels.
            scale = 0.15 if parameter.ndim > 1 else 0.3
            parameter.add_(torch.randn_like(parameter) * scale)
            assert parameter.isfinite().all(), name
    directory = tmp_path_factory.mktemp(request.param)
    oracle.save_pretrained(directory)
    return oracle, load_weights(directory, config, dtype=jnp.float32), config


def _batch(config, rows, *, second_per_grid=None, padding="right", seed=0):
    """Inputs of rows such as ["t5", "i4x6", "t3", "v4x4x6"]: text runs, images, videos."""
    rng = np.random.default_rng(seed)
    images, videos, ids = [], [], []
    for row in rows:
        tokens = []
        for item in row:
            if item[0] == "t":
                tokens += rng.integers(0, 88, int(item[1:])).tolist()
                continue
            sizes = [int(n) for n in item[1:].split("x")]
            grid = [1, *sizes] if item[0] == "i" else sizes
            (images if item[0] == "i" else videos).append(grid)
            token = config.image_token if item[0] == "i" else config.video_token
            cells = int(np.prod(grid)) // config.vision.merge**2
            blocks = grid[0] if config.family == "qwen3_vl" else 1
            for _ in range(blocks):
                if blocks > 1:  # a time stamp before every temporal patch
                    tokens += rng.integers(0, 88, 3).tolist()
                block = [token] * (cells // blocks)
                tokens += [config.vision_start_token, *block, config.vision_end_token]
        ids.append(tokens)
    length = max(map(len, ids))
    input_ids = np.zeros((len(ids), length), np.int64)
    mask = np.zeros((len(ids), length), np.int64)
    for r, tokens in enumerate(ids):
        at = slice(length - len(tokens), None) if padding == "left" else slice(0, len(tokens))
        input_ids[r, at], mask[r, at] = tokens, 1

    def pixels(grids):
        count = sum(int(np.prod(grid)) for grid in grids)
        return rng.normal(size=(count, config.vision.patch_features)).astype(np.float32)

    out = {"input_ids": input_ids, "attention_mask": mask}
    if images:
        out |= {"pixel_values": pixels(images), "image_grid_thw": np.array(images)}
    if videos:
        out |= {"pixel_values_videos": pixels(videos), "video_grid_thw": np.array(videos)}
        if second_per_grid is not None:
            out["second_per_grid_ts"] = np.array(second_per_grid, np.float32)
    return out


CASES = {
    "text": ([["t9"]], {}),
    "image": ([["t3", "i6x10", "t4"]], {}),
    "images_of_different_sizes": ([["t2", "i4x4", "t2", "i10x6", "i8x8", "t3"]], {}),
    "video_of_5_patches": ([["t2", "v5x6x4", "t4"]], {"second_per_grid": [1.0]}),
    "two_videos": ([["t2", "v2x4x6", "t1", "v4x10x4", "t3"]], {"second_per_grid": [1.0, 2.0]}),
    "image_and_video": ([["i6x6", "t2", "v3x4x8", "t2", "i2x4", "t2"]], {"second_per_grid": [0.5]}),
    "fractional_fps": ([["t1", "v4x4x4", "t6"]], {"second_per_grid": [0.7]}),
    "long_gaps": ([["t1", "v3x4x4", "t6"]], {"second_per_grid": [17.3]}),
    "right_padded": (
        [["t3", "v2x4x4", "t2"], ["t4"], ["i8x6", "t9"]],
        {"second_per_grid": [1.0], "padding": "right"},
    ),
    "left_padded": (
        [["t3", "v2x4x4", "t2"], ["t4"], ["i8x6", "t9"]],
        {"second_per_grid": [1.0], "padding": "left"},
    ),
}


def _kinds(batch, config):
    """transformers 5.x tells images from videos by a token type of its own: 1 and 2."""
    ids = batch["input_ids"]
    return (ids == config.image_token) * 1 + (ids == config.video_token) * 2


def _oracle(oracle, batch, config, **kwargs):
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    tensors["mm_token_type_ids"] = torch.from_numpy(_kinds(batch, config))
    with torch.no_grad():
        return oracle(**tensors, **kwargs)


ROWS, LENGTH, FRAMES, CELLS = 3, 160, 8, 192
"""One padded shape for all cases: a program is compiled once, and padding is put to the test."""


def _padded(inputs, config):
    frames, tokens = prepare(inputs, config)
    side = config.vision.window_cells**2
    if frames is None:
        shape = (1, side * config.vision.merge**2)
        features = config.vision.patch_features
        frames = Frames(
            np.zeros((*shape, features), np.float32), np.zeros((*shape, 2), np.int32),
            np.zeros(shape, bool), np.ones((1, 2), np.int32),
        )  # fmt: skip
    visual = np.full_like(tokens.ids, -1) if tokens.visual is None else tokens.visual
    cells, slots = frames.valid.shape[1] // config.vision.merge**2, CELLS // side * side
    visual = np.where(visual >= 0, visual // cells * slots + visual % cells, -1)

    def pad(array, *sizes):
        first = array.ndim - len(sizes)
        widths = [(0, 0)] * first + [
            (0, n - m) for n, m in zip(sizes, array.shape[first:], strict=True)
        ]
        return np.pad(array, widths)

    rows = (ROWS, 1, LENGTH)
    patches = slots * config.vision.merge**2
    tokens = Tokens(
        pad(tokens.ids, *rows),
        pad(tokens.positions, *rows),
        pad(tokens.valid, *rows),
        pad(visual + 1, *rows) - 1,
    )
    frames = Frames(
        pad(frames.patches, FRAMES, patches, frames.patches.shape[2]),
        pad(frames.coordinates, FRAMES, patches, 2),
        pad(frames.valid, FRAMES, patches),
        pad(frames.sizes, FRAMES, 2),
    )
    return frames, tokens


def _device(graph, params, frames, tokens):
    model = nnx.merge(graph, params)
    return logits(model, run(model, tokens, model_module.encode(model, frames))[0])[:, 0]


_compiled = functools.partial(jax.jit, static_argnums=0)(_device)


def _forward(model, inputs, device=_compiled):
    """`vlm.forward` on padded arrays, its device part compiled."""
    batch, length = inputs.input_ids.shape
    return device(*nnx.split(model), *_padded(inputs, model.config))[:batch, :length]


def _difference(ours, theirs, mask):
    mask = np.asarray(mask, bool)
    return float(np.abs(np.asarray(ours)[mask] - theirs.numpy()[mask]).max())


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(pair, case):
    oracle, model, config = pair
    rows, options = CASES[case]
    batch = _batch(config, rows, **options)
    ours = _forward(model, Inputs.from_hf(batch))
    theirs = _oracle(oracle, batch, config).logits
    assert float(theirs.std()) > 0.5  # far above the tolerance
    assert _difference(ours, theirs, batch["attention_mask"]) <= TOLERANCE


@pytest.mark.parametrize("pair", ["tied", "qwen3_tied"], indirect=True)
def test_the_front_door_is_what_the_ladder_climbs(pair):
    """`vlm.forward`, without padding and without a driver's jit."""
    oracle, model, config = pair
    batch = _batch(config, *CASES["image_and_video"][:1], **CASES["image_and_video"][1])
    theirs = _oracle(oracle, batch, config).logits
    ours = forward(model, Inputs.from_hf(batch))
    assert _difference(ours, theirs, batch["attention_mask"]) <= TOLERANCE


def test_hidden_states_rung_by_rung(pair):
    """Patch embedding, tower, embeddings and every depth of the decoder."""
    oracle, model, config = pair
    batch = _batch(config, [["t2", "v4x6x10", "t3", "i4x6", "t4"]], second_per_grid=[0.5])
    frames, tokens = prepare(Inputs.from_hf(batch), config)
    with torch.no_grad():
        video = oracle.model.visual(
            torch.from_numpy(batch["pixel_values_videos"]),
            torch.from_numpy(batch["video_grid_thw"]),
        )
        theirs = [video.pooler_output, *getattr(video, "deepstack_features", [])]
    features = encode(model, frames)
    shown = np.asarray(tokens.visual[:, 0][batch["input_ids"] == config.video_token])
    theirs = torch.cat(theirs, dim=-1).numpy()
    assert np.abs(np.asarray(features)[shown] - theirs).max() <= TOLERANCE

    theirs = _oracle(oracle, batch, config, output_hidden_states=True).hidden_states
    hidden, _ = run(model, tokens, features)
    assert _difference(hidden[:, 0], theirs[-1], batch["attention_mask"]) <= TOLERANCE
    for depth in range(1, config.text.layers):
        shallow = _truncated(model, config, depth)
        hidden, _ = run(shallow, tokens, features)
        # theirs[depth] is not yet normed; apply the final norm to it in numpy.
        raw = theirs[depth].numpy()
        scale = np.asarray(model.decoder.norm.scale[...])
        normed = raw / np.sqrt((raw**2).mean(-1, keepdims=True) + config.text.norm_eps) * scale
        # They record a layer's output before deepstack adds to it at visual tokens, we after.
        compared = np.asarray(tokens.visual[:, 0] < 0) | (depth > len(config.vision.taps))
        assert np.abs(np.asarray(hidden[:, 0]) - normed)[compared].max() <= TOLERANCE, depth


def _truncated(model, config, depth):
    """The same model with its first `depth` decoder layers."""
    graph, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    cut = [
        (path, leaf.replace(leaf[...][:depth]) if path[:2] == ("decoder", "layers") else leaf)
        for path, leaf in flat
    ]
    shallow = nnx.merge(graph, nnx.from_flat_state(cut))
    shallow.decoder.config = dataclasses.replace(config.text, layers=depth)
    return shallow


# One feature off, everything else on: the rung that guards it must fail.
def _no_windows(monkeypatch):
    def full(model, frames):
        config = model.vision.config
        model.vision.config = dataclasses.replace(config, full_layers=tuple(range(config.depth)))
        try:
            return encode(model, frames)
        finally:
            model.vision.config = config

    monkeypatch.setattr(model_module, "encode", full)


def _no_frame_segments(monkeypatch):
    """All temporal patches of a video attend to each other, as if it were one frame."""
    original = frames_module.lay_out

    def joined(patches, grids, config, **kwargs):
        grids = np.array([[1, t * h, w] for t, h, w in grids])
        return original(patches, grids, config, **kwargs)

    monkeypatch.setattr(model_module, "lay_out", joined)


def _no_sections(monkeypatch):
    for name in ("section_axes", "interleaved_axes"):
        monkeypatch.setattr(f"vlm.text.{name}", lambda sections: np.zeros(sum(sections), int))


def _no_interleaving(monkeypatch):
    monkeypatch.setattr("vlm.text.interleaved_axes", rope.section_axes)


def _no_multimodal_positions(monkeypatch):
    def plain(ids, mask, *_):
        one = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
        return np.stack([one] * 3), one.max(1) + 1

    monkeypatch.setattr(model_module, "mrope_positions", plain)


def _no_vision_rotary(monkeypatch):
    for name in ("qwen25", "qwen3"):
        monkeypatch.setattr(
            f"vlm.vision_{name}.vision_angles", lambda c, d, t: rope.vision_angles(c * 0, d, t)
        )


def _no_learned_positions(monkeypatch):
    monkeypatch.setattr(Qwen3Tower, "_learned_positions", lambda *_: jnp.zeros(()))


def _no_time_scale(monkeypatch):
    original = positions_module.mrope_positions

    def unit(ids, mask, images, videos, seconds, times, config, compat):
        return original(ids, mask, images, videos, None, None, config, compat)

    monkeypatch.setattr(model_module, "mrope_positions", unit)


def _no_deepstack(monkeypatch):
    monkeypatch.setattr(
        model_module,
        "encode",
        lambda model, frames: encode(model, frames)[:, : model.config.text.hidden],
    )


def _no_time_stamps(monkeypatch):
    """Temporal patches in one block, as Qwen2.5-VL has them: a position of time and no text."""
    original = positions_module.mrope_positions

    def blocks(ids, mask, images, videos, *rest):
        positions, following = original(ids, mask, images, videos, *rest)
        video = ids == 91
        positions = positions.copy()
        positions[0][video] += np.arange(video.sum(), dtype=np.int32) * len(videos)
        return positions, following

    monkeypatch.setattr(model_module, "mrope_positions", blocks)


def _other_gelu(monkeypatch):
    original = jax.nn.gelu
    monkeypatch.setattr("jax.nn.gelu", lambda x, approximate: original(x, not approximate))


_BOTH = [_no_frame_segments, _no_sections, _no_multimodal_positions, _no_vision_rotary, _other_gelu]
_FEATURES = {
    "tied": [*_BOTH, _no_windows, _no_time_scale],
    "qwen3_tied": [*_BOTH, _no_deepstack, _no_interleaving, _no_learned_positions, _no_time_stamps],
}


# What both families share is switched off in one of them by default.
_SHARED_AGAIN = {("qwen3_tied", feature) for feature in _BOTH[1:]}


@pytest.mark.parametrize(
    ("pair", "switch_off"),
    [
        pytest.param(name, feature, marks=[pytest.mark.slow] * ((name, feature) in _SHARED_AGAIN))
        for name, features in _FEATURES.items()
        for feature in features
    ],
    indirect=["pair"],
)
def test_the_rung_fails_without_its_feature(pair, switch_off, monkeypatch):
    oracle, model, config = pair
    batch = _batch(config, [["t2", "v4x10x12", "t4"]], second_per_grid=[1.7])
    theirs = _oracle(oracle, batch, config).logits
    inputs = Inputs.from_hf(batch)
    assert _difference(_forward(model, inputs), theirs, batch["attention_mask"]) <= TOLERANCE
    switch_off(monkeypatch)
    retraced = jax.jit(lambda *args: _device(*args), static_argnums=0)
    broken = _difference(_forward(model, inputs, retraced), theirs, batch["attention_mask"])
    assert broken > 3 * TOLERANCE


def test_greedy_generation_equals_transformers_for_64_tokens(pair):
    oracle, model, config = pair
    batch = _batch(config, [["t2", "v2x4x6", "t5"]], second_per_grid=[1.0])
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    if config.family == "qwen3_vl":
        del tensors["second_per_grid_ts"]  # times are text there
    tensors["mm_token_type_ids"] = torch.from_numpy(_kinds(batch, config))
    theirs = oracle.generate(
        **tensors,
        do_sample=False,
        min_new_tokens=64,
        max_new_tokens=64,
        suppress_tokens=[config.image_token, config.video_token],
    )[:, batch["input_ids"].shape[1] :]

    inputs = Inputs.from_hf(batch)
    frames, tokens = prepare(inputs, config)
    hidden, cache = run(model, tokens, encode(model, frames))
    allowed = np.ones(config.text.vocab, bool)
    allowed[[config.image_token, config.video_token]] = False
    ours = generate(
        model,
        cache,
        hidden[:, 0, -1],
        jnp.asarray(tokens.positions.max((0, 2, 3)) + 1),
        jnp.zeros((1, 1), jnp.uint32),
        Sampling(temperature=0.0),
        max_tokens=64,
        stop_tokens=(),
        allowed=jnp.asarray(allowed),
    )
    assert len(set(theirs[0].tolist())) > 3  # not one token over and over
    np.testing.assert_array_equal(np.asarray(ours.tokens[0]), theirs.numpy())


def test_what_we_save_transformers_loads_with_the_same_logits(pair, tmp_path):
    _, model, config = pair
    save_weights(model, tmp_path, shard_bytes=60_000)
    import json

    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    reread, report = HF[config.family][1].from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    batch = _batch(config, [["t2", "v2x4x6", "t5"]], second_per_grid=[1.0])
    theirs = _oracle(reread.eval(), batch, config).logits
    ours = _forward(model, Inputs.from_hf(batch))
    assert _difference(ours, theirs, batch["attention_mask"]) <= TOLERANCE
    back = parameters(load_weights(tmp_path, config, dtype=jnp.float32))
    for name, value in parameters(model).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(back[name]), err_msg=name)


@pytest.mark.parametrize("name", BUNDLED)
def test_transformers_reads_the_bundled_models(name):
    ours = vlm.load(name, dtype="float32")
    theirs, report = HF[ours.config.family][1].from_pretrained(
        TOKENIZER / name, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    batch = _batch(ours.config, [["t2", "v3x8x8", "t5"]], second_per_grid=[0.5])
    expected = _oracle(theirs.eval(), batch, ours.config).logits
    found = _forward(ours.model, Inputs.from_hf(batch))
    assert _difference(found, expected, batch["attention_mask"]) <= TOLERANCE
