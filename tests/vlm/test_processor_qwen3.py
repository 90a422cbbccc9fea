"""Qwen3-VL's prompts, sizes and files, against hand-worked numbers and transformers.

`python tests/vlm/test_processor_qwen3.py` writes the golden file of the installed transformers.
"""

import dataclasses
import functools
import importlib
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from published import TINY, TINY_QWEN3, TOKENIZER, processor_of, settings_of

from vlm.config import NAMED, VLMConfig
from vlm.patches import patchify, smart_resize_clip
from vlm.positions import HF_COMPAT, mrope_positions
from vlm.processor import Processor, ProcessorError, ProcessorSettings, escape
from vlm.processor_settings import default_settings

GOLDEN = Path(__file__).parent / "golden"
QWEN = Path(__file__).resolve().parents[2].parent / "shared/assets/qwen"
PUBLISHED = QWEN / "Qwen3-VL-8B-Instruct"
START, END, IMAGE, VIDEO = 4, 5, 7, 8
CLIP, PICTURE = {"type": "video"}, {"type": "image"}
TRIPLE = "<|vision_start|><|video_pad|><|vision_end|>"
UNEVEN = [10, 12, 14, 200, 202, 204, 206, 290]


def says(text):
    return {"type": "text", "text": text}


def spread(frames, count):
    """The indices that transformers samples of a Qwen3-VL video."""
    return np.linspace(0, frames - 1, count).round().astype(int).tolist()


# Content of the user's turn, then visuals: kind, height, width, frame indices, frames per second.
PROMPTS = {
    "text": ([says("What happens next?")], []),
    "image": ([PICTURE, says("the red circle moves left")], [("image", 100, 200, [0], 1.0)]),
    "uneven": ([CLIP, says("Describe it.")], [("video", 64, 64, UNEVEN, 30.0)]),
    "8 of 300": ([CLIP, says("Describe it.")], [("video", 90, 160, spread(300, 8), 30.0)]),
    "20 of 300": ([CLIP], [("video", 40, 48, spread(300, 20), 30.0)]),
    "odd, ntsc": ([CLIP, says("yes?")], [("video", 480, 270, [0, 15, 31, 40, 77], 29.97)]),
    "one pair, 0.7 fps": ([says("Here: "), CLIP], [("video", 33, 100, [3, 4], 0.7)]),
    # What stands in front of a clip and may share a token with its first stamp.
    "glued": ([says("the ring <"), CLIP, says(" <"), CLIP, says(">")],
              [("video", 64, 64, [0, 30], 25.0), ("video", 64, 96, [7, 9, 11], 12.5)]),
    "two videos": ([CLIP, says(" or\n\n"), CLIP, says("\n")],
                   [("video", 200, 100, [0, 1, 2, 3], 2.0), ("video", 70, 70, [5, 9], 1.5)]),
    "mixed": ([PICTURE, says("x"), CLIP, says("Ünïcode 日本"), PICTURE, CLIP],
              [("image", 60, 80, [0], 1.0), ("video", 56, 84, [0, 4, 9], 1.25),
               ("image", 84, 56, [0], 1.0), ("video", 64, 64, [11, 13], 3.0)]),
}  # fmt: skip


def conversation(content):
    return [{"role": "user", "content": content}]


def visual(processor, kind, height, width, indices, fps):
    frames = np.zeros((len(indices), height, width, 3), np.uint8)
    if kind == "image":
        return processor.image(frames[0])
    return processor.video(frames, np.array(indices) / fps)


def oracle_grid(kind, height, width, indices, _):
    """Grid of a visual by the resizing rules of the installed transformers."""
    import transformers

    four = transformers.__version__.startswith("4.")
    module = "image_processing_qwen2_vl" if four else "image_processing_pil_qwen2_vl"
    images = importlib.import_module(f"transformers.models.qwen2_vl.{module}")
    # The package itself hides this module where torchvision is missing.
    videos = importlib.import_module("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    least, most = getattr(settings_of(TINY_QWEN3), f"{kind}_pixels")
    limits = {"factor": 32, "min_pixels": least, "max_pixels": most}
    if kind == "image":
        size = images.smart_resize(height, width, **limits)
    else:
        size = videos.smart_resize(len(indices), height, width, **limits)
    return [-(-len(indices) // 2), size[0] // 16, size[1] // 16]


class _Fake:
    """An image or video processor that has its answer already."""

    merge_size = temporal_patch_size = 2

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, **_):
        return dict(self.answer)


def oracle_ids(tokenizer, text, visuals):
    """Ids of a prompt by the code of the installed transformers that runs without torchvision."""
    import transformers
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    grids = {"image": [], "video": []}
    for described in visuals:
        grids[described[0]].append(oracle_grid(*described))
    metadata = [
        SimpleNamespace(fps=fps, frames_indices=list(indices))
        for kind, _, _, indices, fps in visuals
        if kind == "video"
    ]
    images = {"image_grid_thw": np.array(grids["image"])}
    videos = {"video_grid_thw": np.array(grids["video"]), "video_metadata": metadata}
    theirs = SimpleNamespace(
        tokenizer=tokenizer,
        image_processor=_Fake(images),
        video_processor=_Fake(videos),
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        all_special_multimodal_tokens=["<|image_pad|>", "<|video_pad|>"],
    )
    theirs._calculate_timestamps = functools.partial(Qwen3VLProcessor._calculate_timestamps, theirs)
    if transformers.__version__.startswith("4."):
        theirs._merge_kwargs = lambda *_, **__: {
            f"{name}_kwargs": {} for name in ("images", "videos", "text")
        }
        theirs._check_special_mm_tokens = lambda *_, **__: None
        return Qwen3VLProcessor.__call__(
            theirs,
            text=text,
            images="given" if grids["image"] else None,
            videos="given" if grids["video"] else None,
        )["input_ids"][0]
    pictures = [
        Qwen3VLProcessor.replace_image_token(theirs, images, index)
        for index in range(len(grids["image"]))
    ]
    clips = [
        Qwen3VLProcessor.replace_video_token(theirs, videos, index)
        for index in range(len(grids["video"]))
    ]
    [text], _ = Qwen3VLProcessor.get_text_with_replacements(theirs, [text], pictures, clips)
    return tokenizer(text)["input_ids"]


def write_golden():
    import transformers

    release = ".".join(transformers.__version__.split(".")[:2])
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    cases = {}
    for name, (content, visuals) in PROMPTS.items():
        text = tokenizer.apply_chat_template(
            conversation(content), tokenize=False, add_generation_prompt=True
        )
        cases[name] = {
            "grids": [oracle_grid(*described) for described in visuals],
            "ids": oracle_ids(tokenizer, text, visuals),
        }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
    (GOLDEN / f"prompts_qwen3_{release}.json").write_text(
        f'{{"transformers": "{transformers.__version__}",\n{lines}\n}}\n', encoding="utf-8"
    )


@pytest.fixture(scope="module")
def processors():
    return {release: processor_of(TINY_QWEN3, hf_compat=release) for release in HF_COMPAT}


@pytest.fixture(scope="module")
def processor(processors):
    return processors[HF_COMPAT[0]]


# Sizes


# Sides and tokens of the reference's table, at the limits of the checkpoint.
@pytest.mark.parametrize(
    ("source", "frames", "size", "tokens"),
    [
        ((240, 320), 16, (256, 320), 640),
        ((360, 640), 32, (352, 640), 3520),
        ((480, 854), 16, (480, 864), 3240),
        ((720, 1280), 16, (704, 1280), 7040),
        ((720, 1280), 32, (640, 1152), 11520),
        ((1080, 1920), 16, (928, 1664), 12064),
        ((1080, 1920), 32, (640, 1152), 11520),
    ],
)
def test_frames_share_the_budget(source, frames, size, tokens):
    limits = default_settings(NAMED["qwen3-vl-8b"]).video_pixels
    assert limits == (4096, 25_165_824)
    assert smart_resize_clip(*source, 32, *limits, frames=frames, temporal_patch=2) == size
    assert frames // 2 * size[0] * size[1] // 1024 == tokens


@pytest.mark.parametrize(
    ("source", "frames", "limits", "size"),
    [
        # Tested are 4 frames (2.5 pairs round to 2) of 64 x 64, so 16384 pixels are enough.
        ((64, 64), 5, (0, 4 * 64 * 64), (64, 64)),
        # 3 count as 4 (1.5 pairs round to 2), too many; but the 3 scale: 100 / sqrt(30000/16384)
        # is 73.9.
        ((100, 100), 3, (0, 4 * 64 * 64), (64, 64)),
        ((110, 110), 3, (0, 3 * 96 * 96), (96, 96)),
        # Below the least: 40 sqrt(16384 / 6400) = 64 exactly.
        ((40, 40), 4, (4 * 64 * 64, 10**9), (64, 64)),
        # Sides below the factor: 8 x 20 becomes 32 x 80, and 80 / 32 = 2.5 rounds to 2.
        ((8, 20), 2, (0, 10**9), (32, 64)),
        # A single frame fills a temporal patch: it counts as two.
        ((128, 128), 1, (0, 2 * 64 * 64), (64, 64)),
    ],
)
def test_size_of_a_clip_by_hand(source, frames, limits, size):
    assert smart_resize_clip(*source, 32, *limits, frames=frames, temporal_patch=2) == size


def test_size_of_a_clip_refuses_slivers():
    for source, message in [((7, 201 * 7), "above 200"), ((0, 40), "no picture")]:
        with pytest.raises(ValueError, match=message):
            smart_resize_clip(*source, 32, 1, 10**9, frames=2, temporal_patch=2)


def test_size_of_a_clip_equals_transformers():
    pytest.importorskip("torch")
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as theirs

    def outcome(resized, *args, **kwargs):
        try:
            return resized(*args, **kwargs)
        except ValueError as error:
            return "refused" if "aspect ratio" in str(error) else str(error)

    draw = np.random.default_rng(0)
    seen = set()
    for _ in range(1000):
        frames = int(draw.integers(2, 800))
        height, width = (int(side) for side in np.exp(draw.uniform(2, 7.5, 2)))
        least = int(4 ** draw.uniform(5, 9))
        limits = {"min_pixels": least, "max_pixels": least * int(4 ** draw.uniform(0.5, 7))}
        count = {"frames": frames, "temporal_patch": 2}
        ours = outcome(smart_resize_clip, height, width, 32, **limits, **count)
        assert ours == outcome(theirs, frames, height, width, factor=32, **limits)
        seen.add(ours)
    assert "refused" in seen and len(seen) > 100


def test_frame_size_asks_for_the_number_of_frames(processor):
    few, many = (processor.frame_size(480, 640, frames=frames) for frames in (4, 16))
    assert few == (128, 160) and many == (64, 64)
    assert processor.frame_size(480, 640, "image") == (160, 192)
    with pytest.raises(ValueError, match="depends on its number of frames"):
        processor.frame_size(480, 640)
    # Elsewhere it changes nothing.
    qwen25 = processor_of(TINY)
    assert qwen25.frame_size(480, 640) == qwen25.frame_size(480, 640, frames=64) == (112, 140)


# Patches


def test_patches_equal_transformers(processor):
    """Clips by the layout of the video processor, pictures by the image processor."""
    torch = pytest.importorskip("torch")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    draw = np.random.default_rng(1)
    frames = draw.integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
    ours, grid = patchify(frames, TINY_QWEN3.vision, (0.5,) * 3, (0.5,) * 3)
    pixels = torch.tensor(frames).permute(0, 3, 1, 2)[None].float()
    rows, *shape = Qwen3VLVideoProcessor.patchify(None, (pixels - 127.5) / 127.5, 16, 2, 2)
    assert grid == tuple(shape) == (3, 4, 6)
    np.testing.assert_array_equal(ours, rows[0].numpy())

    least, most = processor.settings.image_pixels
    theirs = Qwen2VLImageProcessorPil(
        size={"shortest_edge": least, "longest_edge": most},
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    picture = draw.integers(0, 256, (96, 160, 3), dtype=np.uint8)  # no resizing
    expected = theirs(images=[Image.fromarray(picture)])
    ours = processor.image(picture)
    assert ours.grid == tuple(expected["image_grid_thw"][0])
    np.testing.assert_allclose(ours.patches, expected["pixel_values"], atol=2e-6)


# Prompts


@pytest.mark.parametrize("hf_compat", HF_COMPAT)
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_equal_golden(processors, name, hf_compat):
    golden = json.loads((GOLDEN / f"prompts_qwen3_{hf_compat}.json").read_text(encoding="utf-8"))
    assert golden["transformers"].startswith(hf_compat)
    content, described = PROMPTS[name]
    visuals = [visual(processors[hf_compat], *one) for one in described]
    assert [list(one.grid) for one in visuals] == golden[name]["grids"]
    inputs = processors[hf_compat]([conversation(content)], [visuals])
    assert inputs.input_ids[0].tolist() == golden[name]["ids"]


@pytest.mark.parametrize(
    ("indices", "fps", "stamps"),
    [
        (UNEVEN, 30, "0.4 3.6 6.8 8.3"),
        (spread(300, 8), 30, "0.7 3.5 6.4 9.2"),
        (spread(300, 20), 30, "0.3 1.3 2.4 3.4 4.5 5.5 6.6 7.6 8.7 9.7"),
        ([0, 1, 2], 0.4, "1.2 5.0"),  # the last frame is its pair's first and last
        ([90], 30, "3.0"),
        ([0, 3000], 25, "60.0"),
    ],
)
def test_stamps(processors, indices, fps, stamps):
    """Printed are means of the first and the last frame of a pair, in tenths of a second."""
    expected = [f"<{stamp} seconds>" for stamp in stamps.split()]
    seconds = np.array(indices) / fps
    for processor in processors.values():
        clip = processor.placed((4, 4), seconds, "video")
        text = processor.decode(processor.tokenize(f"So far:{TRIPLE}.", [clip]))
        assert text == f"So far:{''.join(expected)}."
        assert clip.seconds == pytest.approx([float(stamp) for stamp in stamps.split()], abs=0.0501)


def test_wrappers_by_hand(processors):
    block = [START, *[VIDEO] * 4, END]
    for hf_compat, processor in processors.items():
        clip = processor.placed((4, 4), np.array([0.0, 0.5, 1.0, 1.5]), "video")
        early, late = (processor.tokenize(f"<{time} seconds>") for time in ("0.2", "1.2"))
        blocks = [*early, *block, *late, *block]
        whole = blocks if hf_compat == "4.57" else [START, *blocks, END]
        assert processor.tokenize(TRIPLE, [clip]) == whole
        # A placeholder without vision tokens around it has none to keep or to lose.
        assert processor.tokenize("<|video_pad|>", [clip]) == blocks
        picture = processor.placed((4, 6), np.zeros(1), "image")
        shown = "<|vision_start|><|image_pad|><|vision_end|>"
        assert processor.tokenize(shown, [picture]) == [START, *[IMAGE] * 6, END]


def test_a_stamp_may_share_a_token_with_the_text_in_front(processor, tmp_path):
    """ " <" is one token of the published vocabulary, so here too; "5.23" has a border between."""
    processor.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    joint = content["model"]["vocab"]["Ġ<"] = len(content["model"]["vocab"])
    content["model"]["merges"].append(["Ġ", "<"])
    path.write_text(json.dumps(content), encoding="utf-8")
    for hf_compat, expected in (("4.57", 1), ("5.23", 0)):
        own = Processor.from_pretrained(tmp_path, TINY_QWEN3, hf_compat=hf_compat)
        clip = own.placed((2, 2), np.array([0.0, 1.0]), "video")
        ids = own.tokenize(f"Here: {TRIPLE}", [clip])
        assert ids.count(joint) == expected
        if expected:
            assert ids == [*own.tokenize("Here: <0.5 seconds>"), START, VIDEO, END]


@pytest.mark.parametrize("hf_compat", HF_COMPAT)
def test_parts_make_up_the_whole(processors, hf_compat):
    """A prompt cut behind its `<|vision_end|>`, as the viewer cuts it, before it is expanded."""
    processor = processors[hf_compat]
    content, described = PROMPTS["mixed"]
    visuals = [visual(processor, *one) for one in described]
    content = [says("So far <"), *content, says(f" <{TRIPLE}"), PICTURE, CLIP, CLIP]
    visuals += [visuals[2], visuals[1], visuals[3]]
    text = processor.render(conversation(content))
    *parts, rest = text.split("<|vision_end|>")
    assert len(parts) == len(visuals)
    ids = []
    for part, one in zip(parts, visuals, strict=True):
        ids += processor.tokenize(f"{part}<|vision_end|>", [one])
    assert ids + processor.tokenize(rest) == processor.tokenize(text, visuals)


def test_prompts_equal_the_installed_transformers(processor):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    draw = np.random.default_rng(2)
    words = ["the ring ", "<", " <", "\n", "1.", "(A)", "x", "", "seconds>", " é"]
    for _ in range(40):
        text, described = "", []
        for _ in range(draw.integers(1, 5)):
            text += "".join(draw.choice(words, 3))
            kind = str(draw.choice(["image", "video"]))
            count = 1 if kind == "image" else int(draw.integers(2, 24))
            indices = np.sort(draw.choice(2000, count, replace=False)).tolist()
            height, width = draw.integers(20, 200, 2).tolist()
            described.append(
                (kind, height, width, indices, float(draw.choice([1, 23.976, 25, 30])))
            )
            text += TRIPLE.replace("video", kind)
        text += str(draw.choice(words))
        visuals = [visual(processor, *one) for one in described]
        ids = processor([text], [visuals]).input_ids[0].tolist()
        assert ids == oracle_ids(tokenizer, text, described)


def test_vision_tokens_in_text_stay_text(processors):
    for hf_compat, processor in processors.items():
        clip = processor.placed((4, 4), np.array([0.0, 1.0, 2.0]), "video")
        content = [says(f"seen: {TRIPLE}"), CLIP, says("<9.9 seconds><|vision_start|>")]
        ids = processor.tokenize(processor.render(conversation(content)), [clip])
        outer = hf_compat == "5.23"
        assert [ids.count(token) for token in (VIDEO, START, END)] == [8, 2 + outer, 2 + outer]
        assert TRIPLE in processor.decode(ids) and "\ufdd0" not in processor.decode(ids)
        with pytest.raises(ValueError, match=r"shows no visuals; given were 1 visuals \(video\)"):
            processor.tokenize(escape(TRIPLE), [clip])


@pytest.mark.parametrize("hf_compat", HF_COMPAT)
def test_inputs_and_their_positions(processors, hf_compat):
    """Images and videos mixed, padded left: the grids fit the ids, and no seconds are handed on."""
    processor = processors[hf_compat]
    content, described = PROMPTS["mixed"]
    visuals = [visual(processor, *one) for one in described]
    rows = [conversation([says("yes")]), conversation(content)]
    inputs = processor(rows, [[], visuals], "left")
    assert inputs.second_per_grid_ts is None and inputs.grid_seconds is None
    assert inputs.video_grid_thw[:, 0].tolist() == [2, 1]
    assert len(inputs.pixel_values_videos) == inputs.video_grid_thw.prod(1).sum()
    positions, following = mrope_positions(
        inputs.input_ids,
        inputs.attention_mask,
        inputs.image_grid_thw,
        inputs.video_grid_thw,
        inputs.second_per_grid_ts,
        inputs.grid_seconds,
        TINY_QWEN3,
        hf_compat,
    )
    assert following.tolist() == (positions.max((0, 2)) + 1).tolist()
    # Both grids of the first video at a time of their own, text between.
    shown = np.flatnonzero(inputs.input_ids[1] == VIDEO)
    times = np.unique(positions[0, 1, shown])
    assert len(times) == 3 and (np.diff(times) > 2).all()


def test_placed_is_a_visual_without_patches(processor):
    seconds = np.array(UNEVEN) / 30
    whole = processor.video(np.zeros((8, 64, 64, 3), np.uint8), seconds)
    bare = processor.placed(whole.grid[1:], seconds, "video")
    assert bare.patches.shape == (0, 1536) and whole.patches.shape == (64, 1536)
    for field in ("grid", "seconds", "kind", "second_per_grid", "even"):
        assert getattr(bare, field) == getattr(whole, field)
    assert whole.second_per_grid is None
    assert bare.seconds == tuple(((seconds[::2] + seconds[1::2]) / 2).tolist())
    assert processor.cells(bare) == 16
    with pytest.raises(ValueError, match="may not fall"):
        processor.placed((4, 4), seconds[::-1], "video")


# Files


def test_defaults():
    assert default_settings(VLMConfig()) == ProcessorSettings()
    assert default_settings(NAMED["qwen3-vl-2b"]) == ProcessorSettings(
        (65_536, 16_777_216), (4096, 25_165_824), (0.5,) * 3, (0.5,) * 3
    )
    small, own = settings_of(TINY_QWEN3), default_settings(NAMED["qwen3-vl-2b"])
    assert (small.mean, small.std) == (own.mean, own.std)
    assert small.video_pixels[1] < own.video_pixels[1]


def test_save_and_read_back(processor, tmp_path):
    settings = ProcessorSettings((1024, 10_240), (4096, 40_960), (0.4,) * 3, (0.6,) * 3)
    Processor(processor._tokenizer, TINY_QWEN3, settings).save(tmp_path)
    assert Processor.from_pretrained(tmp_path, TINY_QWEN3).settings == settings
    classes = {}
    for name in ("preprocessor_config", "video_preprocessor_config"):
        stated = json.loads((tmp_path / f"{name}.json").read_text())
        assert stated["processor_class"] == "Qwen3VLProcessor" and stated["patch_size"] == 16
        classes |= {key: value for key, value in stated.items() if key.endswith("_type")}
    assert classes == {
        "image_processor_type": "Qwen2VLImageProcessor",
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    with pytest.raises(ProcessorError, match="patch_size 16, the tower 14"):
        Processor.from_pretrained(tmp_path, TINY)


def test_transformers_reads_what_is_saved(processor, tmp_path):
    pytest.importorskip("torch")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    processor.save(tmp_path)
    images = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert (images.patch_size, list(images.image_mean)) == (16, [0.5] * 3)
    frame = np.random.default_rng(3).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    assert processor.image(frame).grid == tuple(images(images=[frame])["image_grid_thw"][0])
    stated = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    videos = SimpleNamespace(**stated)
    for count, height, width in [(5, 64, 64), (16, 300, 400), (2, 90, 50)]:
        clip = processor.video(np.zeros((count, height, width, 3), np.uint8), np.arange(count))
        patches = Qwen3VLVideoProcessor.get_num_of_video_patches(videos, count, height, width)
        assert np.prod(clip.grid) == patches


def test_a_capped_checkpoint_is_told_of(processor, tmp_path, caplog):
    processor.save(tmp_path)
    path = tmp_path / "video_preprocessor_config.json"
    stated = json.loads(path.read_text())
    assert stated["cap_pixels_per_frame"] is False
    path.write_text(json.dumps(stated | {"cap_pixels_per_frame": True}))
    with caplog.at_level(logging.WARNING):
        Processor.from_pretrained(tmp_path, TINY_QWEN3)
    assert "cap_pixels_per_frame is not built" in caplog.text


# The published Qwen3-VL-8B-Instruct, with the vocabulary that it shares with Qwen2.5-VL


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    if not PUBLISHED.exists():
        pytest.skip("no published tokenizer beside the repository")
    folder = tmp_path_factory.mktemp("qwen3")
    files = [path for path in PUBLISHED.glob("*.json") if "index" not in path.name]
    for path in (*files, *(QWEN / "Qwen2.5-VL-7B-Instruct").glob("[vm][oe][cr][ag][be]*")):
        shutil.copy(path, folder)
    config = VLMConfig.from_hf(json.loads((folder / "config.json").read_text()))
    return Processor.from_pretrained(folder, config)


def test_published_settings(published):
    assert published.settings == default_settings(NAMED["qwen3-vl-8b"])
    assert published.stop_tokens == (151645, 151643)
    assert published.frame_size(720, 1280, frames=16) == (704, 1280)


@pytest.mark.parametrize("hf_compat", HF_COMPAT)
def test_published_prompt(published, hf_compat):
    settings = dataclasses.replace(published.settings, hf_compat=hf_compat)
    processor = Processor(published._tokenizer, published.config, settings)
    clip = processor.placed((4, 4), np.array([0.0, 0.5, 1.0, 1.5]), "video")
    picture = processor.placed((2, 6), np.zeros(1), "image")
    content = [says("Hello world "), CLIP, says("Hello"), PICTURE]
    inputs = processor([conversation(content)], [[clip, picture]])
    start, end, image, video = 151652, 151653, 151655, 151656
    newline, im_start, im_end = 198, 151644, 151645
    early = [15, 13, 17, 6486, 29]  # "0", ".", "2", " seconds", ">"
    late = [16, 13, 17, 6486, 29]
    block = [start, *[video] * 4, end]
    # " " and "<", or the one token " <".
    first, last = {"5.23": ([220, start, 27], [end]), "4.57": ([366], [])}[hf_compat]
    assert inputs.input_ids[0].tolist() == [
        im_start, 872, newline,
        9707, 1879, *first, *early, *block, 27, *late, *block, *last,
        9707, start, *[image] * 3, end,
        im_end, newline, im_start, 77091, newline,
    ]  # fmt: skip


if __name__ == "__main__":
    write_golden()
