"""Rotary positions against hand-worked numbers, golden vectors and transformers itself.

`python tests/vlm/test_positions.py` writes the golden files of the installed transformers release.
"""

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vlm.config import FAMILIES, TINY, TINY_QWEN3
from vlm.positions import HF_COMPAT, mrope_positions

GOLDEN = Path(__file__).parent / "golden"
IMAGE, VIDEO, START, END, TEXT = 7, 8, 4, 5, 100

# Rows of a batch: a number is that many text tokens, a grid alone an image, a grid with a number a
# video and its seconds per grid; the last is read in Qwen2.5-VL only, like tokens_per_second.
# (name, tokens_per_second, rows, padding side)
CASES = [
    ("image", 2, [[2, (1, 4, 6), 3]], "right"),
    ("video 1.0", 2, [[2, ((3, 4, 4), 1.0), 2]], "right"),
    ("video 0.5", 2, [[2, ((3, 4, 4), 0.5), 2]], "right"),
    ("video 0.7", 2, [[2, ((3, 4, 4), 0.7), 2]], "right"),
    ("wide video", 2, [[2, ((2, 4, 6), 1.0), 2]], "right"),
    ("thirds", 2, [[1, ((12, 2, 2), 1 / 3), 1]], "right"),
    ("29.97 fps", 2, [[1, ((10, 2, 4), 2 / 29.97 * 15), 1]], "right"),
    ("1.9 s", 2, [[1, ((4, 2, 4), 1.9), 1]], "right"),
    ("25 tokens a second", 25, [[1, ((4, 2, 2), 0.08), 1]], "right"),
    ("two videos", 2, [[1, ((3, 4, 4), 1.5), 2, ((4, 2, 6), 0.25), 2]], "right"),
    ("mixed", 2, [[(1, 2, 4), 1, ((3, 4, 2), 2.0), (1, 6, 6), 4]], "right"),
    ("left", 2, [[1, ((3, 4, 4), 1.0), 2], [9], [2, (1, 4, 2), ((2, 2, 2), 0.9)]], "left"),
    ("right", 2, [[1, ((3, 4, 4), 1.0), 2], [9], [2, (1, 4, 2), ((2, 2, 2), 0.9)]], "right"),
]


def blocks(grid, hf_compat):
    """The ids of a Qwen3-VL video: every temporal grid behind its time, here of 3 to 5 tokens."""
    t, h, w = grid
    ids = []
    for index in range(t):
        ids += [TEXT] * (3 + index % 3) + [START, *[VIDEO] * (h * w // 4), END]
    return ids if hf_compat == "4.57" else [START, *ids, END]


def build(rows, side, family="qwen2_5_vl", hf_compat=HF_COMPAT[0]):
    """Token ids, mask, image grids, video grids and seconds of a batch described as in CASES."""
    ids, images, videos, seconds = [], [], [], []
    for row in rows:
        own = []
        for part in row:
            if isinstance(part, int):
                own += [TEXT] * part
                continue
            is_video = isinstance(part[0], tuple)
            grid = part[0] if is_video else part
            (videos if is_video else images).append(grid)
            if is_video:
                seconds.append(part[1])
            if is_video and family == "qwen3_vl":
                own += blocks(grid, hf_compat)
            else:
                own += [START, *[VIDEO if is_video else IMAGE] * (np.prod(grid) // 4), END]
        ids.append(own)
    width = max(map(len, ids))
    padded, mask = np.zeros((len(ids), width), np.int32), np.zeros((len(ids), width), bool)
    for index, own in enumerate(ids):
        place = slice(width - len(own), None) if side == "left" else slice(len(own))
        padded[index, place], mask[index, place] = own, True
    return (
        padded,
        mask,
        np.array(images, np.int32).reshape(-1, 3) if images else None,
        np.array(videos, np.int32).reshape(-1, 3) if videos else None,
        np.array(seconds) if videos else None,
    )


def oracle(ids, mask, images, videos, seconds, config):
    """Positions and next positions as the installed transformers computes them."""
    import torch
    import transformers
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    family = Qwen3VLModel if config.family == "qwen3_vl" else Qwen2_5_VLModel
    model = SimpleNamespace(
        config=SimpleNamespace(
            vision_config=SimpleNamespace(
                spatial_merge_size=2, tokens_per_second=config.tokens_per_second
            ),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
        )
    )
    tensors = {
        "image_grid_thw": None if images is None else torch.tensor(images.astype(np.int64)),
        "video_grid_thw": None if videos is None else torch.tensor(videos.astype(np.int64)),
        "attention_mask": torch.tensor(mask.astype(np.int64)),
    }
    if seconds is not None and family is Qwen2_5_VLModel:
        tensors["second_per_grid_ts"] = torch.tensor(seconds, dtype=torch.float32)
    if not transformers.__version__.startswith("4."):
        kinds = (ids == IMAGE) + 2 * (ids == VIDEO)
        tensors["mm_token_type_ids"] = torch.tensor(kinds)
        model.get_vision_position_ids = functools.partial(family.get_vision_position_ids, model)
    positions, delta = family.get_rope_index(model, torch.tensor(ids.astype(np.int64)), **tensors)
    lengths = mask.sum(1) if "mm_token_type_ids" in tensors else np.full(len(ids), ids.shape[1])
    return positions.numpy(), delta.numpy()[:, 0] + lengths


def golden_path(family, release):
    return GOLDEN / f"positions_{'qwen3_' * (family == 'qwen3_vl')}{release}.json"


def configured(family, rate):
    tiny = TINY_QWEN3 if family == "qwen3_vl" else TINY
    return dataclasses.replace(tiny, tokens_per_second=rate)


def write_golden(family):
    import transformers

    release = ".".join(transformers.__version__.split(".")[:2])
    entries = []
    for name, rate, rows, side in CASES:
        batch = build(rows, side, family, release)
        positions, following = oracle(*batch, configured(family, rate))
        positions = np.where(batch[1], positions, 1)
        entries.append({"name": name, "positions": positions.tolist(), "next": following.tolist()})
    text = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    head = json.dumps({"transformers": transformers.__version__})[:-1]
    golden_path(family, release).write_text(f'{head}, "cases": [\n{text}\n]}}\n', encoding="utf-8")


def time_axis(positions, row=0):
    return positions[0, row].tolist()


@pytest.mark.parametrize("hf_compat", HF_COMPAT)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("index", range(len(CASES)), ids=[case[0] for case in CASES])
def test_equals_golden(family, hf_compat, index):
    golden = json.loads(golden_path(family, hf_compat).read_text(encoding="utf-8"))
    assert golden["transformers"].startswith(hf_compat)
    name, rate, rows, side = CASES[index]
    ids, mask, images, videos, seconds = build(rows, side, family, hf_compat)
    positions, following = mrope_positions(
        ids, mask, images, videos, seconds, None, configured(family, rate), hf_compat
    )
    expected = golden["cases"][index]
    assert expected["name"] == name
    np.testing.assert_array_equal(positions, expected["positions"])
    np.testing.assert_array_equal(following, expected["next"])


# The table of the reference: ids = [text, text, start, video..., end, text, text].
@pytest.mark.parametrize(
    ("grid", "seconds", "hf_compat", "times", "after", "delta"),
    [
        ((3, 4, 4), 1.0, "5.23", [3, 5, 7], [5, 6, 7], -10),
        ((3, 4, 4), 1.0, "4.57", [3, 5, 7], [8, 9, 10], -7),
        ((3, 4, 4), 0.5, "5.23", [3, 4, 5], [5, 6, 7], -10),
        ((3, 4, 4), 0.5, "4.57", [3, 3, 3], [5, 6, 7], -10),
        ((3, 4, 4), 0.7, "5.23", [3, 4, 5], [5, 6, 7], -10),
        ((2, 4, 6), 1.0, "5.23", [3, 5], [6, 7, 8], -9),
        ((2, 4, 6), 1.0, "4.57", [3, 5], [6, 7, 8], -9),
    ],
)
def test_table_of_the_reference(grid, seconds, hf_compat, times, after, delta):
    ids, mask, _, videos, scalars = build([[2, (grid, seconds), 2]], "right")
    positions, following = mrope_positions(ids, mask, None, videos, scalars, None, TINY, hf_compat)
    cells = grid[1] * grid[2] // 4
    assert time_axis(positions)[3 : 3 + grid[0] * cells : cells] == times
    assert positions[:, 0, -3:].tolist() == [after] * 3
    assert following[0] - ids.shape[1] == delta


def test_image_rows_and_columns():
    ids, mask, images, _, _ = build([[1, (1, 4, 6), 1]], "right")
    positions, following = mrope_positions(ids, mask, images, None, None, None, TINY)
    assert positions[0, 0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert positions[1, 0].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert positions[2, 0].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert following.tolist() == [7]


def test_missing_seconds_mean_one():
    ids, mask, _, videos, _ = build([[1, ((3, 2, 2), 9.0), 1]], "right")
    positions, _ = mrope_positions(ids, mask, None, videos, None, None, TINY)
    assert time_axis(positions)[2:5] == [2, 4, 6]


def test_text_only_counts_valid_tokens():
    ids, mask, _, _, _ = build([[3], [5]], "left")
    positions, following = mrope_positions(ids, mask, None, None, None, None, TINY)
    assert time_axis(positions) == [1, 1, 0, 1, 2]
    assert following.tolist() == [3, 5]


def test_true_times_replace_the_scalar():
    ids, mask, _, videos, scalars = build([[1, ((4, 2, 2), 1.0), 1, ((3, 2, 2), 0.5), 1]], "right")
    # Frames at 10.0, 10.4, 16.0, 16.1 s, 2 positions a second; the second video keeps its scalar.
    times = (np.array([10.0, 10.4, 16.0, 16.1]), np.array([]))
    for hf_compat, second in (("5.23", [0, 1, 2]), ("4.57", [0, 0, 0])):
        positions, _ = mrope_positions(ids, mask, None, videos, scalars, times, TINY, hf_compat)
        axis = np.array(time_axis(positions))
        assert (axis[2:6] - axis[2]).tolist() == [0, 0, 12, 12]
        start = 2 + 4 + 1 + 1 + 1
        assert (axis[start : start + 3] - axis[start]).tolist() == second


def test_true_times_survive_rounding_noise():
    ids, mask, _, videos, scalars = build([[1, ((4, 2, 2), 1.0), 1]], "right")
    noisy = (np.array([0.1, 0.1 + 0.5 - 1e-12, 1.1 - 1e-9, 1.6]),)
    positions, _ = mrope_positions(ids, mask, None, videos, scalars, noisy, TINY)
    assert time_axis(positions)[2:6] == [2, 3, 4, 5]


def test_padding_side_changes_no_valid_position():
    rows = CASES[-1][2]
    sides = []
    for side in ("left", "right"):
        ids, mask, images, videos, seconds = build(rows, side)
        positions, following = mrope_positions(ids, mask, images, videos, seconds, None, TINY)
        assert (positions[:, ~mask] == 1).all()
        sides.append((positions[:, mask], following))
    np.testing.assert_array_equal(sides[0][0], sides[1][0])
    np.testing.assert_array_equal(sides[0][1], sides[1][1])


def test_errors_say_the_counts():
    ids, mask, images, videos, seconds = build([[1, (1, 4, 4), ((2, 2, 2), 1.0)]], "right")
    wide = np.array([[2, 2, 4]])
    with pytest.raises(ValueError, match=r"4 image placeholders, but 0 image grids make 0"):
        mrope_positions(ids, mask, None, videos, seconds, None, TINY)
    with pytest.raises(ValueError, match=r"2 video placeholders, but 1 video grids make 4"):
        mrope_positions(ids, mask, images, wide, None, None, TINY)
    with pytest.raises(ValueError, match="1 videos, but 2 second_per_grid_ts"):
        mrope_positions(ids, mask, images, videos, [1.0, 1.0], None, TINY)
    with pytest.raises(ValueError, match="2 temporal grids, but 3 grid_seconds"):
        mrope_positions(ids, mask, images, videos, None, (np.arange(3.0),), TINY)
    with pytest.raises(ValueError, match=r"'5\.23', '4\.57'"):
        mrope_positions(ids, mask, images, videos, seconds, None, TINY, "6.0")


def test_a_split_run_of_placeholders_is_an_error():
    ids = np.array([[IMAGE, TEXT, IMAGE, IMAGE, IMAGE]], np.int32)
    with pytest.raises(ValueError, match=r"needs 4 placeholders in one run.*holds 3"):
        mrope_positions(ids, np.ones((1, 5), bool), np.array([[1, 4, 4]]), None, None, None, TINY)


@pytest.mark.parametrize(
    ("hf_compat", "first", "last"),
    [("5.23", [0, 1, 2, 3, 4, 5], [18, 19, 20]), ("4.57", [0, 1, 2, 3, 4], [17, 18])],
)
def test_blocks_of_qwen3_by_hand(hf_compat, first, last):
    """A video of two grids of 2 x 3 cells, their times of 3 and 4 tokens.

    "5.23" has an outer pair around: one token more before, one more behind.
    """
    batch = build([[1, ((2, 4, 6), 9.0), 1]], "right", "qwen3_vl", hf_compat)
    ids, mask, _, videos, _ = batch
    positions, following = mrope_positions(
        ids, mask, None, videos, None, None, TINY_QWEN3, hf_compat
    )
    a = len(first)
    end_time_start = [a + 3, a + 4, a + 5, a + 6, a + 7, a + 8]
    b = a + 9
    assert positions[:, 0].tolist() == [
        [*first, *[a] * 6, *end_time_start, *[b] * 6, *last],
        [*first, *[a] * 3, *[a + 1] * 3, *end_time_start, *[b] * 3, *[b + 1] * 3, *last],
        [*first, *[a, a + 1, a + 2] * 2, *end_time_start, *[b, b + 1, b + 2] * 2, *last],
    ]
    assert following.tolist() == [last[-1] + 1]


def test_seconds_play_no_part_in_qwen3():
    ids, mask, _, videos, seconds = build([[2, ((3, 4, 4), 7.5), 2]], "right", "qwen3_vl")
    bare, _ = mrope_positions(ids, mask, None, videos, None, None, TINY_QWEN3)
    times = (np.array([0.0, 4.0, 90.0]),)
    timed, _ = mrope_positions(ids, mask, None, videos, seconds, times, TINY_QWEN3)
    np.testing.assert_array_equal(bare, timed)


def test_grids_of_qwen3_stand_apart():
    """The layout of Qwen2.5-VL is an error there, and so is a grid that is missing."""
    joined, mask, _, videos, _ = build([[1, ((2, 4, 4), 1.0), 1]], "right")
    with pytest.raises(ValueError, match=r"more than 4 video placeholders .* here 4 x 4 patches"):
        mrope_positions(joined, mask, None, videos, None, None, TINY_QWEN3)
    apart, mask, _, videos, _ = build([[1, ((2, 4, 4), 1.0), 1]], "right", "qwen3_vl")
    with pytest.raises(ValueError, match=r"8 video placeholders, but 1 video grids make 12"):
        mrope_positions(apart, mask, None, videos + np.array([1, 0, 0]), None, None, TINY_QWEN3)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_installed_transformers(family):
    pytest.importorskip("torch")
    draw = np.random.default_rng(0)

    def grid(t):
        return (t, int(2 * draw.integers(1, 4)), int(2 * draw.integers(1, 4)))

    def part():
        kind = draw.integers(3)
        if kind == 0:
            return int(draw.integers(1, 6))
        if kind == 1:
            return grid(1)
        # Frame rates as they occur, and steps of a time base.
        spacing = draw.choice([2 / draw.uniform(0.3, 30), 2 / 29.97, draw.integers(1, 90) / 30])
        return (grid(int(draw.integers(1, 30))), float(spacing))

    for trial in range(60):
        rows = [[1, *(part() for _ in range(draw.integers(1, 5)))] for _ in range(3)]
        batch = build(rows, ("left", "right")[trial % 2], family)
        config = configured(family, int(draw.choice([2, 4, 25])))
        expected, after = oracle(*batch, config)
        ids, mask, images, videos, seconds = batch
        positions, following = mrope_positions(ids, mask, images, videos, seconds, None, config)
        np.testing.assert_array_equal(positions[:, mask], expected[:, mask])
        np.testing.assert_array_equal(following, after)


if __name__ == "__main__":
    for family in FAMILIES:
        write_golden(family)
