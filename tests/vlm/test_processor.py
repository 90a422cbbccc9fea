"""Sizes, patches, token ids, padding and files, against hand-worked numbers and transformers.

`python tests/vlm/test_processor.py` writes the golden file of the installed transformers release.
"""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published import TINY, TOKENIZER, processor_of

import vlm
from experiments.tokenizer import train
from vlm.config import Qwen25Vision, VLMConfig
from vlm.patches import patchify, resize, smart_resize
from vlm.positions import HF_COMPAT, mrope_positions
from vlm.processor import Processor, ProcessorError, ProcessorSettings, Visual, escape

GOLDEN = Path(__file__).parent / "golden"
BUNDLED = Path(vlm.__file__).parent / "tiny"
QWEN = Path(__file__).resolve().parents[2].parent / "shared/assets/qwen"
PUBLISHED = QWEN / "Qwen2.5-VL-7B-Instruct"
PLAIN = dict(mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)  # patches hold the bytes themselves

# Conversations of the golden file. Visuals: kind, height, width, frames, frames per second.
CLIP = {"type": "video"}
PICTURE = {"type": "image"}


def says(text):
    return {"type": "text", "text": text}


PROMPTS = {
    "text": ([{"role": "user", "content": "What happens next?"}], []),
    "image": (
        [{"role": "user", "content": [PICTURE, says("the red circle moves left")]}],
        [("image", 100, 200, 1, 1.0)],
    ),
    "half fps": (
        [{"role": "user", "content": [says("Here: "), CLIP, says("Describe it.")]}],
        [("video", 64, 64, 6, 0.5)],
    ),
    "ntsc": (
        [{"role": "user", "content": [CLIP, says("Is this statement true?")]}],
        [("video", 90, 160, 9, 29.97)],
    ),
    "two videos": (
        [
            {"role": "system", "content": "Answer yes or no."},
            {"role": "user", "content": [CLIP, says(" or "), CLIP]},
            {"role": "assistant", "content": " yes"},
        ],
        [("video", 56, 56, 4, 3.0), ("video", 100, 70, 5, 0.7)],
    ),
    "mixed": (
        [{"role": "user", "content": [PICTURE, says("x"), CLIP, says("Ünïcode 日本"), PICTURE]}],
        [("image", 60, 80, 1, 1.0), ("video", 56, 84, 3, 1.25), ("image", 84, 56, 1, 1.0)],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def processor():
    return processor_of(TINY)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (5, 84, 56, 3), dtype=np.uint8)


def visual(processor, kind, height, width, frames, fps):
    picture = np.zeros((frames, height, width, 3), np.uint8)
    if kind == "image":
        return processor.image(picture[0])
    return processor.video(picture, np.arange(frames) / fps)


def write_golden():
    """Ids by the tokenizer and template of transformers, placeholders grown one by one."""
    import transformers

    version = ".".join(transformers.__version__.split(".")[:2])
    module = "image_processing_qwen2_vl" if version < "5" else "image_processing_pil_qwen2_vl"
    theirs = importlib.import_module(f"transformers.models.qwen2_vl.{module}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    settings = processor_of(TINY).settings
    cases = {}
    for name, (messages, visuals) in PROMPTS.items():
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        grids = []
        for kind, height, width, frames, _ in visuals:
            least, most = getattr(settings, f"{kind}_pixels")
            size = theirs.smart_resize(height, width, factor=28, min_pixels=least, max_pixels=most)
            grids.append([-(-frames // 2), size[0] // 14, size[1] // 14])
            grown = f"\0{kind}\0" * (np.prod(grids[-1]) // 4)
            text = text.replace(f"<|{kind}_pad|>", grown, 1)
        text = text.replace("\0image\0", "<|image_pad|>").replace("\0video\0", "<|video_pad|>")
        ids = tokenizer(text)["input_ids"]
        cases[name] = {
            "grids": grids,
            "second_per_grid": [2 / fps for kind, *_, fps in visuals if kind == "video"],
            "ids": ids,
        }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
    (GOLDEN / f"prompts_{version}.json").write_text(
        f'{{"transformers": "{transformers.__version__}",\n{lines}\n}}\n', encoding="utf-8"
    )


# Sizes


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        # 70/28 and 98/28 are halves: Python rounds 2.5 to 2 and 3.5 to 4.
        ((70, 98), (0, 10**9), (56, 112)),
        # Above the limit both sides are scaled by sqrt(1280 * 720 / 602112) and floored.
        ((720, 1280), (128 * 784, 768 * 784), (560, 1008)),
        ((240, 320), (128 * 784, 768 * 784), (280, 392)),
        ((360, 640), (128 * 784, 768 * 784), (364, 644)),
        ((480, 854), (128 * 784, 768 * 784), (476, 840)),
        # Below the limit sides are rounded up, which passes this narrow maximum.
        ((28, 28), (3000, 3100), (56, 56)),
        # A sliver never rounds to nothing above the limit.
        ((2000, 15), (784, 784 * 4), (644, 28)),
    ],
)
def test_smart_resize(size, limits, expected):
    assert smart_resize(*size, 28, *limits) == expected


def test_smart_resize_refuses_slivers():
    with pytest.raises(ValueError, match="above 200"):
        smart_resize(201 * 7, 7, 28, 1, 10**9)


def interpolated(frame, size, dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(frame).permute(2, 0, 1)[None].to(getattr(torch, dtype))
    result = torch.nn.functional.interpolate(tensor, size=size, mode="bicubic", antialias=True)
    return result.float().round().clamp(0, 255)[0].permute(1, 2, 0).numpy()


# The last three make Pillow 13 take rows first when it is asked for both axes at once.
SIZES = [((97, 61), (56, 28)), ((30, 40), (84, 112)), ((240, 320), (280, 392))]
SIZES += [((480, 640), (476, 644)), ((90, 160), (84, 168)), ((97, 61), (84, 56))]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resize_equals_torch(source, target):
    draw = np.random.default_rng(1)
    noise = draw.integers(0, 256, (*source, 3), dtype=np.uint8)
    off = np.abs(resize(noise, target) - interpolated(noise, target, "uint8"))
    # torch rounds its weights to 16 bits, which now and then costs a second step.
    assert off.max() <= 2 and (off > 1).mean() < 1e-4
    # In float there is no clamping between the axes: equal where nothing overshoots.
    calm = draw.integers(64, 192, (*source, 3), dtype=np.uint8)
    assert np.abs(resize(calm, target) - interpolated(calm, target, "float32")).max() <= 1


def test_resize_by_hand():
    """Halving an edge from 50 to 150: the cubic with a = -0.5, stretched by 2, cut at the border.

    Its taps .25, .75, 1.25, 1.75 weigh .8671875, .2265625, -.0703125, -.0234375. Column 0 sees
    -.0234375 / 1.8671875 = -.0126 of the step, column 1 .1328125 / 2.0234375 = .0656 of it.
    """
    frame = np.full((2, 8, 3), 50, np.uint8)
    frame[:, 4:] = 150
    assert resize(frame, (2, 4))[0, :, 0].tolist() == [49, 57, 143, 151]


# Patches


def test_patchify_equals_loops(noise):
    """Every value is looked up by hand: rows (t, h/2, w/2, 2, 2), features (C, temporal, y, x)."""
    patches, (t, h, w) = patchify(noise, Qwen25Vision(), **PLAIN)
    assert (t, h, w) == (3, 6, 4)
    row = 0
    for time in range(t):
        for block_y in range(h // 2):
            for block_x in range(w // 2):
                for y in (2 * block_y, 2 * block_y + 1):
                    for x in (2 * block_x, 2 * block_x + 1):
                        feature = 0
                        for channel in range(3):
                            for frame in (2 * time, min(2 * time + 1, len(noise) - 1)):
                                tile = noise[
                                    frame, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14, channel
                                ]
                                got = patches[row, feature : feature + 196]
                                np.testing.assert_allclose(got, tile.ravel(), atol=1e-4)
                                feature += 196
                        row += 1
    assert patches.shape == (row, feature)


def test_normalisation_is_the_fused_one(noise, processor):
    """float32 (x - 255 mean) / (255 std), to the last bit; (x/255 - mean)/std to rounding."""
    settings = processor.settings
    patches, _ = patchify(noise, TINY.vision, settings.mean, settings.std)
    bytes_, _ = patchify(noise, TINY.vision, **PLAIN)
    channels = np.round(bytes_).reshape(len(patches), 3, -1).astype(np.float32)
    mean = np.array(settings.mean, np.float32)[:, None] * np.float32(255)
    std = np.array(settings.std, np.float32)[:, None] * np.float32(255)
    np.testing.assert_array_equal(patches.reshape(channels.shape), (channels - mean) / std)
    slow = (channels / 255 - np.array(settings.mean)[:, None]) / np.array(settings.std)[:, None]
    np.testing.assert_allclose(patches.reshape(channels.shape), slow, atol=1e-6)


def test_image_equals_transformers(processor):
    pytest.importorskip("torch")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    least, most = processor.settings.image_pixels
    theirs = Qwen2VLImageProcessorPil(size={"shortest_edge": least, "longest_edge": most})
    draw = np.random.default_rng(2)
    for height, width in [(100, 200), (56, 56), (33, 47), (113, 201)]:
        frame = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = theirs(images=[Image.fromarray(frame)])
        ours = processor.image(frame)
        assert ours.grid == tuple(expected["image_grid_thw"][0])
        # Equal but for the order of two float32 operations.
        np.testing.assert_allclose(ours.patches, expected["pixel_values"], atol=2e-6)


def test_image_fills_its_temporal_patch_with_itself(processor, noise):
    patches = processor.image(noise[0]).patches.reshape(-1, 3, 2, 196)
    np.testing.assert_array_equal(patches[:, :, 0], patches[:, :, 1])


def test_odd_video_repeats_its_last_frame(processor, noise):
    odd = processor.video(noise[:3], [0.0, 0.5, 1.0])
    even = processor.video(noise[[0, 1, 2, 2]], [0.0, 0.5, 1.0, 1.5])
    np.testing.assert_array_equal(odd.patches, even.patches)
    assert (odd.grid, odd.seconds, odd.second_per_grid) == ((2, 6, 4), (0.0, 1.0), 1.0)


def test_a_frame_of_the_final_size_is_left_alone(processor):
    size = processor.frame_size(480, 854)
    assert processor.frame_size(*size) == size
    frame = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(frame, size), frame)


# Times


@pytest.mark.parametrize(
    ("seconds", "second_per_grid", "even"),
    [
        (np.arange(6) / 29.97, 2 / 29.97, True),
        (7.3 + np.arange(5) * 0.1, 0.2, True),  # noise of 7.3 + 0.1 i is no unevenness
        ([0.0, 0.033, 0.067, 0.1, 0.133, 0.167], 2 / 29.97, True),  # a time base of 1 ms
        ([0.0, 0.1, 1.0, 1.1, 2.0, 2.1], 1.0, True),  # even pairs of neighbours
        ([0.0, 0.5, 4.0, 4.5, 5.0, 5.5], 2.5, False),
        ([3.0], 1.0, True),
        ([1.0, 1.0, 1.0, 1.0], 0.0, True),
    ],
)
def test_spacing_of_grids(processor, noise, seconds, second_per_grid, even):
    frames = np.zeros((len(seconds), 56, 56, 3), np.uint8)
    video = processor.video(frames, seconds)
    assert video.second_per_grid == pytest.approx(second_per_grid, abs=3e-4)
    assert video.even is even
    assert video.seconds == pytest.approx(np.asarray(seconds)[::2])


def test_noise_of_times_does_not_reach_the_spacing(processor):
    # (2.3 - 0.3) / 2 is 0.9999999999999999, which "4.57" would cut to 0 seconds.
    video = processor.video(np.zeros((5, 56, 56, 3), np.uint8), [0.3, 0.8, 1.3, 1.8, 2.3])
    assert video.second_per_grid == 1.0


def test_choice_of_times(processor, noise):
    uneven, steady = [0.0, 0.5, 4.0, 4.5, 5.0], [0.0, 0.5, 1.0, 1.5, 2.0]
    text = "<|video_pad|>"
    expected = {"auto": (True, False), "scalar": (False, False), "true": (True, True)}
    for times, (first, second) in expected.items():
        settings = dataclasses.replace(processor.settings, times=times)
        chosen = Processor(processor._tokenizer, TINY, settings)
        inputs = chosen([text, text], [[chosen.video(noise, s)] for s in (uneven, steady)])
        assert inputs.second_per_grid_ts.tolist() == [2.5, 1.0]
        if not first and not second:
            assert inputs.grid_seconds is None
            continue
        assert inputs.grid_seconds[0].tolist() == [0.0, 4.0, 5.0]
        assert inputs.grid_seconds[1].tolist() == ([0.0, 1.0, 2.0] if second else [])
        positions, _ = mrope_positions(
            inputs.input_ids, inputs.attention_mask, None, inputs.video_grid_thw,
            inputs.second_per_grid_ts, inputs.grid_seconds, TINY,
        )  # fmt: skip
        assert positions[0, :, ::6].tolist() == [[0, 8, 10], [0, 2, 4]]


# Token ids


@pytest.mark.parametrize("hf_compat", HF_COMPAT)
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_equal_golden(processor, name, hf_compat):
    golden = json.loads((GOLDEN / f"prompts_{hf_compat}.json").read_text(encoding="utf-8"))
    assert golden["transformers"].startswith(hf_compat)
    golden = golden[name]
    messages, described = PROMPTS[name]
    visuals = [visual(processor, *one) for one in described]
    assert [list(one.grid) for one in visuals] == golden["grids"]
    seconds = [one.second_per_grid for one in visuals if one.kind == "video"]
    assert seconds == pytest.approx(golden["second_per_grid"], abs=1e-8)
    inputs = processor([messages], [visuals])
    assert inputs.input_ids[0].tolist() == golden["ids"]


def test_vision_tokens_in_text_stay_text(processor, noise):
    bad = "<|vision_start|><|image_pad|><|video_pad|><|vision_end|><|im_end|>"
    picture = processor.image(noise[0])
    conversation = [
        {"role": "user", "content": [says(f"caption: {bad}"), PICTURE]},
        {"role": "assistant", "content": bad},
    ]
    inputs = processor([conversation], [[picture]], add_generation_prompt=False)
    ids = inputs.input_ids[0]
    assert (ids == TINY.image_token).sum() == processor.cells(picture)
    assert (ids == TINY.video_token).sum() == 0
    assert processor.decode(ids).count(bad) == 2
    assert "\ufdd0" not in processor.decode(ids, skip_special_tokens=False)
    # By hand: an escaped caption in a prompt of one's own.
    own = processor.tokenize(f"<|im_start|>{escape(bad)}")
    assert own[0] == 1 and min(own[1:]) > 8
    assert processor.decode(own) == bad


def test_visuals_and_placeholders_must_agree(processor, noise):
    picture, clip = processor.image(noise[0]), processor.video(noise, np.arange(5))
    with pytest.raises(ValueError, match=r"shows 2 visuals \(image, video\); given were 1 visuals"):
        processor.tokenize("<|image_pad|> then <|video_pad|>", [picture])
    with pytest.raises(ValueError, match=r"shows 1 visuals \(image\); given were 1 .*\(video\)"):
        processor.tokenize("<|image_pad|>", [clip])
    with pytest.raises(ValueError, match="shows no visuals; given were 1"):
        processor.tokenize("nothing", [clip])
    with pytest.raises(ValueError, match="2 prompts, but visuals for 1"):
        processor(["a", "b"], [[]])


def test_padding(processor, noise):
    clip = processor.video(noise[:2], [0.0, 0.5])
    short, long = "yes", "<|vision_start|><|video_pad|><|vision_end|> no"
    right = processor([short, long], [[], [clip]])
    left = processor([short, long], [[], [clip]], "left", length=12)
    assert right.input_ids.shape == (2, 9) and left.input_ids.shape == (2, 12)
    assert right.attention_mask.sum(1).tolist() == left.attention_mask.sum(1).tolist() == [1, 9]
    assert right.attention_mask[0, 0] and left.attention_mask[0, -1]
    for row in (0, 1):
        np.testing.assert_array_equal(
            right.input_ids[row][right.attention_mask[row]],
            left.input_ids[row][left.attention_mask[row]],
        )
    assert (left.input_ids[~left.attention_mask] == processor.pad_token).all()
    assert right.pixel_values is None and right.pixel_values_videos.shape == (24, 1176)
    with pytest.raises(ValueError, match="9 tokens does not fit in 8"):
        processor([long], [[clip]], length=8)


def test_visuals_are_listed_row_after_row(processor, noise):
    images = [processor.image(frame) for frame in noise[:3]]
    clip = processor.video(noise, np.arange(5))
    both = "<|image_pad|><|video_pad|><|image_pad|>"
    inputs = processor(["<|image_pad|>", both], [[images[0]], [images[1], clip, images[2]]])
    expected = np.concatenate([image.patches for image in images])
    np.testing.assert_array_equal(inputs.pixel_values, expected)
    assert inputs.image_grid_thw.tolist() == [[1, 6, 4]] * 3
    assert inputs.video_grid_thw.tolist() == [[3, 6, 4]]
    assert inputs.second_per_grid_ts.tolist() == [2.0]


def test_placed_is_a_visual_without_patches(processor, noise):
    whole = processor.video(noise, [0.0, 0.5, 4.0, 4.5, 5.0])
    bare = processor.placed((6, 4), np.array([0.0, 0.5, 4.0, 4.5, 5.0]), "video")
    assert bare.patches.shape == (0, 1176)
    for field in ("grid", "seconds", "kind", "second_per_grid", "even"):
        assert getattr(bare, field) == getattr(whole, field)
    assert processor.tokenize("<|video_pad|>", [bare]) == [TINY.video_token] * 18
    assert processor.placed((6, 4), np.zeros(1), "image").grid == processor.image(noise[0]).grid


def test_what_a_model_may_say(processor):
    allowed = processor.speakable()
    assert allowed.shape == (TINY.text.vocab,)
    # Of the nine special tokens only the two that end a turn; nothing behind the vocabulary.
    assert np.flatnonzero(allowed[:9]).tolist() == sorted(processor.stop_tokens) == [0, 2]
    vocabulary = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    size = len(vocabulary["model"]["vocab"])
    assert allowed[9:size].all() and not allowed[size:].any()
    assert processor.single_tokens([" yes", "<|video_pad|>"]) == processor.tokenize(" yes")
    with pytest.raises(ValueError, match="none of 'xyzzy' is one token"):
        processor.single_tokens(["xyzzy"])
    assert min(processor.plain("<|video_pad|>")) > 8


def test_bad_frames(processor, noise):
    with pytest.raises(ValueError, match="RGB"):
        processor.video(noise[..., :1], np.arange(5))
    with pytest.raises(ValueError, match="at least one frame"):
        processor.video(noise[:0], [])
    with pytest.raises(ValueError, match="5 frames, but 4 times"):
        processor.video(noise, np.arange(4))
    with pytest.raises(ValueError, match="may not fall"):
        processor.video(noise, [0, 2, 1, 3, 4])


# Files


def test_bundled_tokenizer():
    processor = Processor.from_pretrained(BUNDLED, TINY)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]
    names += [f"<|vision_{which}|>" for which in ("start", "end", "pad")]
    assert [
        processor.tokenize(name) for name in names
    ] == [[index] for index in range(7)]  # fmt: skip
    for word in ("yes", "no", "Yes", "No", " yes", " no"):
        assert len(processor.tokenize(word)) == 1
    assert processor.stop_tokens == (2, 0) and processor.pad_token == 0
    anything = "e\u0301 <|im_end|>\n\t 日本 \U0001f680 don't 3.14"
    ids = processor.tokenize(escape(anything))
    assert max(ids) < TINY.text.vocab
    assert processor.decode(ids) == anything.replace("e\u0301", "\u00e9")  # NFC


@pytest.mark.slow
def test_bundled_files_are_what_the_code_makes(tmp_path):
    train().save(tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"tokenizer.json", "tokenizer_config.json"}
    for name in made:
        assert (tmp_path / name).read_bytes() == (BUNDLED / name).read_bytes(), name


def test_save_and_read_back(processor, tmp_path):
    transformers = pytest.importorskip("transformers")
    changed = Processor(
        processor._tokenizer, TINY, ProcessorSettings((784, 7840), (1568, 15680), **PLAIN)
    )
    changed.save(tmp_path / "new" / "model")
    again = Processor.from_pretrained(tmp_path / "new" / "model", TINY)
    assert again.settings == changed.settings
    # Beside a config.json, as in a saved model, the class of the tokenizer comes from there.
    (tmp_path / "new" / "model" / "config.json").write_text(json.dumps(TINY.to_hf()))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "model")
    messages = PROMPTS["two videos"][0]
    text = again.render(messages)
    assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text
    plain = "<|im_start|>user\nthe  red ring, it's\n\n12 Ü日 e\u0301 <|im_end|>"
    assert theirs(plain)["input_ids"] == again.tokenize(plain)
    assert (theirs.pad_token_id, theirs.eos_token_id) == (0, 2)


def test_directories_that_do_not_serve(tmp_path, processor):
    with pytest.raises(ProcessorError, match=r"no tokenizer: neither tokenizer\.json nor"):
        Processor.from_pretrained(tmp_path, TINY)
    processor.save(tmp_path)
    with pytest.raises(ProcessorError, match=r"<\|vision_start\|>|<\|image_pad\|> has id 7"):
        Processor.from_pretrained(tmp_path, VLMConfig())
    with pytest.raises(ValueError, match=r"hf_compat is '9'; choices: '5\.23', '4\.57'"):
        Processor.from_pretrained(tmp_path, TINY, hf_compat="9")
    (tmp_path / "preprocessor_config.json").write_text('{"patch_size": 16}')
    with pytest.raises(ProcessorError, match="patch_size 16, the tower 14"):
        Processor.from_pretrained(tmp_path, TINY)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ProcessorError, match="is not JSON"):
        Processor.from_pretrained(tmp_path, TINY)


def test_template_runs_in_a_sandbox(tmp_path, processor):
    processor.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    caught = Processor.from_pretrained(tmp_path, TINY)
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        caught.render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("place", ["config", "json", "jinja"])
def test_places_of_the_template(tmp_path, processor, place):
    processor.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content["chat_template"] = "mine" if place == "config" else None
    path.write_text(json.dumps(content))
    if place == "json":
        (tmp_path / "chat_template.json").write_text('{"chat_template": "mine"}')
    if place == "jinja":
        (tmp_path / "chat_template.jinja").write_text("mine")
    assert Processor.from_pretrained(tmp_path, TINY).render([]) == "mine"


# The published Qwen2.5-VL-7B-Instruct


@pytest.fixture(scope="module")
def published():
    if not PUBLISHED.exists():
        pytest.skip("no published tokenizer beside the repository")
    config = VLMConfig.from_hf(json.loads((PUBLISHED / "config.json").read_text()))
    return Processor.from_pretrained(PUBLISHED, config)


def test_published_limits(published):
    assert published.settings == ProcessorSettings()
    assert published.stop_tokens == (151645, 151643)
    assert published.frame_size(720, 1280) == (560, 1008)


def test_published_vocabulary(published):
    folder = QWEN / "tokenizer_golden"
    texts = (folder / "ggml-vocab-qwen2.gguf.inp").read_bytes().decode()
    *texts, _ = texts.split("\n__ggml_vocab_test__\n")  # the last one ends the file
    rows = (folder / "ggml-vocab-qwen2.gguf.out").read_text().splitlines()
    assert len(rows) == len(texts) > 40
    for text, row in zip(texts, rows, strict=True):
        assert published.tokenize(text) == [int(index) for index in row.split()], text


def test_published_prompt(published):
    def placed(kind, grid):
        return Visual(np.zeros((np.prod(grid), 1176), np.float32), grid, (0.0,) * grid[0], kind)

    visuals = [placed("video", (2, 4, 4)), placed("image", (1, 2, 6)), placed("video", (1, 2, 2))]
    content = [CLIP, says("Hello world"), PICTURE, CLIP]
    inputs = published([[{"role": "user", "content": content}]], [visuals])
    start, end, image, video = 151652, 151653, 151655, 151656
    newline, im_start, im_end = 198, 151644, 151645
    system = [2610, 525, 264, 10950, 17847, 13]  # You are a helpful assistant.
    assert inputs.input_ids[0].tolist() == [
        im_start, 8948, newline, *system, im_end, newline,
        im_start, 872, newline,
        start, *[video] * 8, end, 9707, 1879, start, *[image] * 3, end, start, video, end,
        im_end, newline, im_start, 77091, newline,
    ]  # fmt: skip


if __name__ == "__main__":
    write_golden()
