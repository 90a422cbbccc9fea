"""The toy world's truth, told again from its pixels alone; its splits, balance and legality."""

import numpy as np
import pytest

from data.toyscene import COLOURS, EVENTS, HIGH, LOW, SHAPES, actions, cell_labels, expected
from data.toyworld import HELD_OUT, HELD_OUT_EVENTS, LEVELS, SPLITS, make, simulate, transformed

HUES = {"red": 0, "orange": 29, "yellow": 55, "green": 130, "blue": 228, "purple": 282}  # degrees
VERBS = {
    "vanish": "vanishes", "appear": "appears", "jump": "jumps", "reverse": "turns back",
    "recolor": "turns", "stop": "stops", "start": "starts to move", "split": "splits",
    "merge": "merge", "morph": "becomes",
}  # fmt: skip


def _sightings(frame):
    """{colour: (x, y, area, parts, shape)} of what is coloured in a frame, by hue alone."""
    frame = frame * (55 / np.median(frame.mean(-1)))  # the ground is the same in every picture
    strong, weak = frame.max(-1), frame.min(-1)
    coloured = strong - weak > 70
    red, green, blue = np.moveaxis(frame, -1, 0)
    hue = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue))
    found = {}
    for colour, angle in HUES.items():
        away = np.abs((hue - angle + 180) % 360 - 180)
        ys, xs = np.nonzero(coloured & (away < 12))
        if len(ys) < 12:
            continue
        mask = np.zeros(strong.shape, bool)
        mask[ys, xs] = True
        box = (strong - weak)[
            max(0, ys.min() - 2) : ys.max() + 3, max(0, xs.min() - 2) : xs.max() + 3
        ]
        area = (
            np.clip(box - 25, 0, None) / np.sort(box, None)[-12:].mean()
        ).sum()  # of edges, a part
        shape, y = _shape(mask), ys.mean() + 0.5
        if shape == "triangle":  # its pixels' mean lies below its middle
            y -= 0.085 * np.ptp(xs)
        found[colour] = (xs.mean() + 0.5, y, area, _parts(mask), shape)
    return found


def _parts(mask):
    """Two if an empty row or column runs between coloured ones."""
    return 1 + any((np.diff(np.nonzero(mask.any(axis))[0]) > 1).any() for axis in (0, 1))


def _shape(mask):
    mask = mask[mask.sum(1) > 1][:, mask.sum(0) > 1]  # without single pixels that noise lit
    ys, xs = np.nonzero(mask)
    box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    h, w = box.shape
    if not box[(h - 1) // 2 : h // 2 + 1, (w - 1) // 2 : w // 2 + 1].all():
        return "ring"
    above, below = (rows[:, : max(2, w // 4)].mean() for rows in (box[: h // 4], box[-(h // 4) :]))
    if above > 0.3:
        return "square"
    return "triangle" if below > above + 0.25 else "cross"


def _told_by_pixels(frames):
    """What each thing does at every step, from sightings: {(step, colour before): phrase}."""
    seen = [_sightings(frame) for frame in frames]
    told, way = {}, {}
    for t in range(1, len(seen)):
        before, now = seen[t - 1], seen[t]
        gone, new = before.keys() - now.keys(), now.keys() - before.keys()
        if gone and new:  # one thing changed its colour
            (old,), (fresh,) = gone, new
            told[t, old], way[fresh] = f"turns {fresh}", way.pop(old, None)
        else:
            told |= {(t, colour): "vanishes" for colour in gone}
            told |= {(t, colour): "appears" for colour in new}
            way |= dict.fromkeys(gone | new)
        for colour in before.keys() & now.keys():
            x0, y0, area0, parts0, shape0 = before[colour]
            x1, y1, area1, parts1, shape1 = now[colour]
            step = np.array([x1 - x0, y1 - y0])
            if np.abs(step).max() > 9:
                told[t, colour] = "jumps"
                continue
            told[t, colour], way[colour] = _motion(step, area1 / area0, way.get(colour), (x0, y0))
            if parts0 != parts1:
                told[t, colour] = "splits" if parts1 > parts0 else "merge"
            elif parts0 == 1 and shape0 != shape1:
                told[t, colour] = f"becomes a {shape1}"
    return told


def _motion(step, growth, before, place):
    if np.abs(step).max() < 0.9:
        if abs(growth - 1) > 0.035:
            return ("grows" if growth > 1 else "shrinks"), (0, 0)
        return ("stays still" if before in (None, (0, 0)) else "stops"), (0, 0)
    way = tuple(int(v) for v in np.sign(np.where(np.abs(step) < 0.9, 0, step)))
    if before == (0, 0):
        return "starts to move", way
    if before is not None and way == (-before[0], -before[1]):
        at = place[0] if way[0] else place[1]
        return ("bounces" if min(abs(at - LOW), abs(at - HIGH)) < 2 else "turns back"), way
    return f"moves {WAYS[way]}", way


WAYS = {(-1, 0): "left", (1, 0): "right", (0, -1): "up", (0, 1): "down"}


@pytest.mark.parametrize("transform", [None, "flip", "reversal"])
def test_truth_is_what_the_pixels_show(transform):
    compared = 0
    for index in range(22):
        clip = make(index, level="easy", split="test")
        clip = transformed(clip, transform) if transform else clip
        told, scene = _told_by_pixels(clip.frames), clip.scene
        did = actions(scene)
        for t in range(1, scene.steps):
            for i in range(scene.objects):
                when = t - 1 if scene.count[i, t - 1] else t
                colour = COLOURS[scene.colour[i, when]]
                assert told.get((t, colour), "") == did[i][t], (scene.id, t, colour)
                compared += did[i][t] != ""
    assert compared > 500


def test_a_clip_is_a_function_of_its_arguments():
    one, again = make(3, seed=5), make(3, seed=5)
    assert one.frames.shape == (16, 64, 64, 3) and one.frames.dtype == np.uint8
    assert np.array_equal(one.frames, again.frames) and one.scene.events == again.scene.events
    scenes = (
        simulate(index, seed=seed, split=split)
        for split in SPLITS for seed in (0, 1) for index in range(40)
    )  # fmt: skip
    seen = {
        b"".join(vars(scene)[name].tobytes() for name in ("centre", "colour", "shape", "gain"))
        for scene in scenes
    }
    assert len(seen) == len(SPLITS) * 2 * 40


def _combinations(scene):
    shown = {
        (COLOURS[c], SHAPES[s])
        for c, s in zip(scene.colour.ravel(), scene.shape.ravel(), strict=True)
    }
    events = {(e.kind, SHAPES[scene.shape[e.object, 0]]) for e in scene.events}
    return shown, events


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_combinations_are_in_novel_clips_alone(split):
    for level in ("full", "brief"):
        for index in range(40):
            shown, events = _combinations(simulate(index, split=split, level=level))
            assert bool(shown & HELD_OUT or events & HELD_OUT_EVENTS) == (split == "novel")


@pytest.mark.parametrize("level", LEVELS)
def test_every_state_is_legal(level):
    for index in range(24):
        clip = make(index, level=level, seed=2)
        scene, setting = clip.scene, LEVELS[level]
        assert scene.objects in setting.objects and scene.steps == setting.steps
        assert (scene.centre >= LOW).all() and (scene.centre <= HIGH).all()
        if not setting.distractors:
            assert not len(scene.lamps) and scene.spark is None and not scene.flashing.any()
        for t in range(scene.steps):
            for i in range(scene.objects):
                for k in range(i):
                    assert scene.shape[i, t] != scene.shape[k, t]
                    assert scene.colour[i, t] != scene.colour[k, t]
                    gap = np.abs(scene.centre[i, t] - scene.centre[k, t]).max()
                    assert gap > scene.radius[i, t] + scene.radius[k, t]
        if scene.events:
            assert 5 <= scene.events[0].step <= scene.steps - 2
            assert len(scene.events) == 1 + setting.brief
        for shown in (clip, transformed(clip, "flip"), transformed(clip, "reversal")):
            _check_events(shown.scene)


def _check_events(scene):
    """The annotated events, and nothing else, are what the tracks show to be odd."""
    odd = set()
    for i, row in enumerate(actions(scene)):
        for t, phrase in enumerate(row):
            for kind, verb in VERBS.items():
                if phrase == verb or (verb in ("turns", "becomes") and phrase != "turns back"
                                      and phrase.startswith(verb)):  # fmt: skip
                    odd.add((kind, i, t))
    assert odd == {(event.kind, event.object, event.step) for event in scene.events}


def test_without_an_event_things_go_as_expected():
    steps = wrong = 0
    for index in range(60):
        scene = simulate(index, split="validation")
        odd = {event.step for event in scene.events}
        for t in range(2, scene.steps):
            should, did = expected(scene, t), [row[t] for row in actions(scene)]
            for i in range(scene.objects):
                if t in odd and any(e.object == i for e in scene.events):
                    assert should[i] != did[i]
                elif not any(e.object == i and e.step < t for e in scene.events):
                    steps, wrong = steps + 1, wrong + (should[i] != did[i])
    assert steps > 1000 and wrong == 0


def test_kinds_motions_and_steps_are_balanced():
    scenes = [simulate(index, split="test") for index in range(300)]
    kinds = [scene.events[0].kind if scene.events else None for scene in scenes]
    assert 0.19 < kinds.count(None) / len(kinds) < 0.31
    for kind in EVENTS:
        assert 0.05 < kinds.count(kind) / len(kinds) < 0.16
    steps = [scene.events[0].step for scene in scenes if scene.events]
    assert set(steps) == set(range(5, 15)) and abs(np.mean(steps) - 9.5) < 0.5
    first = [row[1] for scene in scenes for row in actions(scene)]
    ways = [first.count(f"moves {way}") for way in ("left", "right", "up", "down")]
    assert min(ways) > 0.7 * max(ways) > 40
    flicker = np.mean([np.ptp(scene.gain) > 0 for scene in scenes])
    assert 0.42 < flicker < 0.58


def test_chosen_kinds_and_wrong_names():
    assert {make(i, kinds=("split",)).scene.events[0].kind for i in range(5)} == {"split"}
    assert make(0, kinds=(None,)).scene.events == ()
    for wrong in ({"split": "dev"}, {"level": "hard"}, {"kinds": ("explode",)}):
        with pytest.raises(ValueError, match="choose from"):
            make(0, **wrong)
    with pytest.raises(ValueError, match="choose from"):
        make(0, level="brief", kinds=("jump",))


def test_transforms_are_involutions():
    clip = make(1, level="full")
    for transform in ("flip", "reversal"):
        twice = transformed(transformed(clip, transform), transform)
        assert np.array_equal(twice.frames, clip.frames)
        assert actions(twice.scene) == actions(clip.scene)
        assert twice.scene.events == clip.scene.events


def test_brief_events_are_undone():
    for index in range(20):
        scene = simulate(index, level="brief", kinds=("recolor", "vanish"))
        start, end = scene.events
        assert end.step - start.step in (2, 3) and start.object == end.object
        for track in (scene.colour, scene.count):
            row = track[start.object]
            usual = np.delete(row, range(start.step, end.step))
            if not scene.flashing[start.object]:
                assert (usual == row[0]).all()
        assert (scene.count[start.object, end.step :] == 1).all()


def test_dense_labels():
    scene = simulate(0, kinds=("vanish",))
    event, labels = scene.events[0], cell_labels(scene)
    x, y = scene.centre[event.object, event.step] // 16
    assert labels["change"][event.step, y, x] == EVENTS.index("vanish") + 1
    assert (labels["change"] > 0).sum() == 1
    assert labels["colour"].shape == (16, 4, 4) and not labels["motion"][0].any()
    x, y = scene.centre[event.object, 0]
    assert (labels["x"][0, y // 16, x // 16], labels["y"][0, y // 16, x // 16]) == (
        x % 16 + 1, y % 16 + 1,
    )  # fmt: skip
    assert (labels["column"][0, y // 16, x // 16], labels["row"][0, y // 16, x // 16]) == (
        x // 16 + 1, y // 16 + 1,
    )  # fmt: skip
    shown = [(labels["colour"][t] > 0).sum() for t in range(16)]
    assert max(shown) <= scene.objects and shown[-1] <= scene.objects - 1


@pytest.mark.parametrize("kind", EVENTS)
def test_a_change_shows_in_two_frames_and_a_change_of_motion_does_not(kind):
    scene = simulate(0, kinds=(kind,))
    changes = cell_labels(scene)["change"]
    shows = kind not in ("reverse", "stop")
    assert (changes > 0).sum() == shows
    assert changes.max() == shows * (EVENTS.index(kind) + 1)
