"""Supervised training: packing that changes nothing, resuming bit by bit."""

import functools
import json
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pupil
import pytest
from flax import nnx

import vlm
from data.toyscene import cell_labels
from data.toytasks import KINDS
from experiments import sft, train
from experiments.arguments import UsageError, plain, read_config
from experiments.lessons import LABELS, Cells, Teacher, _Line
from experiments.prompts import Composer
from vlm.logprobs import token_logprobs
from vlm.model import Tokens, encode, prepare, run

SMALL = [
    *("--config.windows=4", "--config.clips=2", "--config.brief_clips=2", "--config.pairs=16"),
    *("--config.drills=1", "--config.warmup_steps=2", "--config.easy_steps=1"),
    "--config.steps=4",
    *("--config.log_every=1", "--config.save_every=2", "--config.ramp_steps=1"),
]


def config(*changes, mode="tiny"):
    return plain(read_config(f"sft.py:{mode}", [*SMALL, *changes]))


def only(kind):
    """The changes after which every lesson is of one kind."""
    return [f"--config.mix.{name}={float(name == kind)}" for name in config()["mix"]]


@pytest.fixture(scope="module", params=["tiny", "tiny-qwen3"])
def found(request):
    return vlm.load(request.param, dtype="float32", seed=1)


def teacher(found, *changes):
    return Teacher(found.processor, config(*changes, mode=found.name))


def test_a_batch_depends_on_seed_and_step_alone(found):
    make = teacher(found, *only("clip"))
    for step in (0, 3):
        one, again = make(step), teacher(found, *only("clip"))(step)
        for leaf, other in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(leaf, other)
    other = teacher(found, *only("clip"), "--config.seed=1")(3)
    for differs in (make(2), other):
        assert not np.array_equal(make(3).before[0].targets, differs.before[0].targets)


def test_the_tower_is_warmed_up_before_lessons_begin(found):
    make = teacher(found)
    assert [isinstance(make(step), Cells) for step in range(3)] == [True, True, False]


def test_blind_lessons_come_with_the_video_of_another_clip(found):
    seen, blind = (teacher(found, *only("clip"), *more)(3) for more in ([], ["--config.blind=1"]))
    for ours, theirs in zip(
        jax.tree.leaves(seen.before), jax.tree.leaves(blind.before), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    one, two = np.split(seen.cells.labels, 2)
    np.testing.assert_array_equal(blind.cells.labels, np.concatenate([two, one]))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("kind", ["step", "clip", "brief"])
def test_answers_weigh_the_same_by_kind_and_stand_where_they_should(found, kind):
    batch = teacher(found, *only(kind))(3)
    totals = np.zeros(len(KINDS))
    for asked in batch.before + batch.after:
        np.add.at(totals, asked.kinds, asked.weights.sum(-1))
        # The state at a place predicts the token behind it.
        following = np.take_along_axis(asked.tokens.ids, asked.places + 1, axis=2)
        there = asked.weights > 0
        assert (following[there] == asked.targets[there]).all()
        assert np.take_along_axis(asked.tokens.valid, asked.places + 1, axis=2)[there].all()
    expected = {
        "step": {"predict", "prior", "posterior", "caption", "claim"},
        "clip": {"clip_caption", "word", "letter"},
        "brief": {"word", "letter"},
    }[kind]
    asked = {name for name, total in zip(KINDS, totals, strict=True) if total > 0}
    assert asked <= expected
    np.testing.assert_allclose(totals[totals > 0], 1.0, rtol=1e-5)


def test_in_a_drill_letters_stand_before_what_is_listed_and_behind_what_is_asked(found):
    batch, plain = teacher(found, *only("step"))(3), found.processor.plain
    letters = [plain(letter)[0] for letter in "ABCDE"]
    for drills, (b, n) in ((d, at) for d in batch.drills for at in np.ndindex(d.kinds.shape)):
        ids, there = drills.tokens.ids[b, n], drills.weights[b, n] > 0
        places, targets = drills.places[b, n][there], drills.targets[b, n][there]
        listed = len(targets) - 5
        assert targets[:listed].tolist() == letters[:listed]
        for place, target in zip(places[:listed], targets, strict=False):
            assert ids[:place][np.isin(ids[:place], letters)][-1] == target
        np.testing.assert_array_equal(ids[places + 1][listed:], targets[listed:])
    np.testing.assert_allclose(sum(d.weights.sum() for d in batch.drills), 1.0, rtol=1e-5)


def test_once_drills_are_learned_there_are_fewer(found):
    make = teacher(found, *only("step"), "--config.drill_steps=1", "--config.drills_after=1")
    assert [len(make(step).drills[0].kinds) for step in (2, 3)] == [config()["drills"], 1]


def test_long_lines_go_into_long_rows_and_what_does_not_fit_is_left_out_or_an_error(found):
    make = teacher(found)

    def line(length, kind="word"):
        return _Line(kind, list(range(1, length + 1)), [length - 2], [length], [1.0])

    lines = [[line(3), line(9), line(5)], [line(9), line(4), line(8)]]
    long, short = make._rows(lines, [0, 7], ((2, 5), (1, 10)))
    assert (long.tokens.valid.sum(-1) == [[9], [9]]).all()
    assert (short.tokens.valid.sum(-1) == [[3, 5], [4, 1]]).all()  # 8 fits in no row that is left
    assert (short.weights.sum(-1) > 0).tolist() == [[True, True], [True, False]]
    total = long.weights.sum() + short.weights.sum()
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)
    assert (long.targets[:, 0, 0] == [9, 9]).all() and long.tokens.positions[0, 1, 0, 0] == 7
    with pytest.raises(ValueError, match="does not fit"):
        make._rows([[line(11)]], [0], ((2, 5), (1, 10)))


def test_cells_in_which_something_is_weigh_as_much_as_the_others():
    scores = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 0, 3, -1, 0], np.int32)
    nll = -np.asarray(jax.nn.log_softmax(scores))[range(5), labels]
    value, right = sft._classified(scores, labels)
    np.testing.assert_allclose(value, (nll[[0, 1, 4]].mean() + nll[2]) / 2, rtol=1e-5)
    assert float(right) == (scores[2].argmax() == 3)
    value, right = sft._classified(scores, np.full(5, -1, np.int32))
    assert value == 0 and np.isnan(right)


def test_how_large_features_are_makes_no_difference_to_the_classifier_of_cells(found):
    pupil, batch = sft.Pupil(found.model, rngs=nnx.Rngs(0)), teacher(found)(0)
    shape = (len(batch.labels), found.config.vision.out)
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    one, many = (sft.cells_loss(pupil.head, size * features, batch) for size in (1.0, 30.0))
    np.testing.assert_allclose(one[0], many[0], rtol=1e-4)
    assert one[1].keys() == {f"cells/{name}" for name in LABELS}


@functools.partial(jax.jit, static_argnums=0)
def uncached(graph, params, tokens, features, places, targets):
    """Log-probabilities of targets by one pass over a whole prompt."""
    model = nnx.merge(graph, params)
    hidden, _ = run(model, tokens, features)
    return token_logprobs(model, hidden[0, 0][places], targets)


def joined(pieces, length=320):
    """Pieces of one prompt, (tokens, b, n) each, as one padded row."""
    parts = [(part, b, n, part.valid[b, n]) for part, b, n in pieces]
    ids = np.concatenate([part.ids[b, n][there] for part, b, n, there in parts])
    visual = [
        np.full(there.sum(), -1) if part.visual is None else part.visual[b, n][there]
        for part, b, n, there in parts
    ]
    positions = [part.positions[:, b, n][:, there] for part, b, n, there in parts]
    tokens = Tokens(
        np.zeros((1, 1, length), np.int32), np.ones((3, 1, 1, length), np.int32),
        np.zeros((1, 1, length), bool), np.full((1, 1, length), -1, np.int32),
    )  # fmt: skip
    tokens.ids[0, 0, : len(ids)], tokens.valid[0, 0, : len(ids)] = ids, True
    tokens.visual[0, 0, : len(ids)] = np.concatenate(visual)
    tokens.positions[:, 0, 0, : len(ids)] = np.concatenate(positions, axis=1)
    return tokens, len(ids)


@pytest.mark.parametrize("kind", ["step", "clip"])
def test_the_packed_loss_is_that_of_whole_prompts(found, kind):
    batch = teacher(found, *only(kind), "--config.windows=2", "--config.clips=1")(3)
    shares = config()["shares"]
    graph, params = nnx.split(found.model)
    pupil = sft.Pupil(found.model, rngs=nnx.Rngs(0))

    def packed(params, batch):
        return sft.lessons_loss(nnx.merge(graph, params), pupil.head, batch, shares)

    value, parts = jax.jit(packed)(params, batch)
    features = jax.jit(lambda params, frames: encode(nnx.merge(graph, params), frames))(
        params, batch.cells.frames
    )
    sums = np.zeros(len(KINDS))
    groups = [
        (part, n) for n, a in enumerate((batch.drills, batch.before, batch.after)) for part in a
    ]
    for asked, pieces in groups:
        for b, n in np.argwhere(asked.weights.sum(-1) > 0):
            shown = [(part, b, 0) for part in (batch.window, batch.observation)[:pieces]]
            tokens, length = joined([*shown, (asked.tokens, b, n)])
            start = length - asked.tokens.valid[b, n].sum()
            places, targets = asked.places[b, n] + start, asked.targets[b, n]
            logp = uncached(graph, params, tokens, features, places, targets)
            sums[asked.kinds[b, n]] -= (asked.weights[b, n] * np.asarray(logp)).sum()
    for i, name in enumerate(KINDS):
        if sums[i]:
            np.testing.assert_allclose(parts[f"{name}/nll"], sums[i], rtol=1e-4)
        else:
            assert np.isnan(parts[f"{name}/nll"])
    total = sum(shares[name] * sums[i] for i, name in enumerate(KINDS))
    dense, _ = sft.cells_loss(pupil.head, features, batch.cells)
    total += shares["cells"] * dense
    np.testing.assert_allclose(value, total, rtol=1e-4)


@pytest.mark.parametrize("kind", ["step", "clip"])
def test_dense_labels_stand_at_the_tokens_of_an_objects_cell(found, kind):
    """By the tokens' height and width positions, which the processor gave them."""
    make = teacher(found, *only(kind))
    about = make._steps if kind == "step" else functools.partial(make._clips, kind)
    clips, lessons = about(np.random.default_rng(0), 7, ["full"])
    batch = make._batch(clips, lessons, (), make.config["lengths"][kind])
    composer = Composer(found.processor)
    pieces = [batch.window] if batch.observation is None else [batch.window, batch.observation]
    shown = np.concatenate([part.visual[:, 0] for part in pieces], 1)
    places = np.concatenate([part.positions[1:, :, 0] for part in pieces], 2)
    for b, clip in enumerate(clips):
        views = [lessons[b].window, lessons[b].observation]
        patches = [patch for view in views if view for patch in composer.patches(view)]
        rows, columns = places[:, b][:, shown[b] >= 0].reshape(2, -1, 16)
        seen = batch.cells.labels[shown[b][shown[b] >= 0]].reshape(-1, 16, len(LABELS))
        truth = cell_labels(clip.scene)
        for patch, (before, t) in enumerate(patches):
            at = rows[patch] - rows[patch].min(), columns[patch] - columns[patch].min()
            for i, name in enumerate(LABELS):
                wanted = truth[name][t][at] if t == before + 1 else -1
                np.testing.assert_array_equal(seen[patch, :, i], wanted)


def test_the_layout_is_that_of_the_processor(found):
    """Ids and positions of window and question equal those of one conversation."""
    batch = teacher(found, *only("clip"))(3)
    ids = batch.window.ids[0, 0][batch.window.valid[0, 0]]
    caption = KINDS.index("clip_caption")
    before = next(part for part in batch.before if caption in part.kinds[0])
    asked, row = before.tokens, before.kinds[0].tolist().index(caption)
    ids = np.concatenate([ids, asked.ids[0, row][asked.valid[0, row]]])
    answer = int(before.places[0, row, 0]) + 1
    prompt_ids = ids[: batch.window.valid[0].sum() + answer]
    # With its first frame left out a clip has as many temporal patches, but other times.
    count = 16 if found.processor.decode(prompt_ids, False).count("<0.1 seconds>") else 15
    count = 16 if found.config.family == "qwen2_5_vl" else count
    video = np.zeros((count, 64, 64, 3), np.uint8)
    visual = found.processor.video(video, np.arange(16 - count, 16) / 4)
    text = found.processor.render(
        [
            {"role": "system", "content": "You are a careful observer of videos."},
            {
                "role": "user",
                "content": [
                    {"type": "video"},
                    {"type": "text", "text": "Describe this video in one or two sentences."},
                ],
            },
        ]
    )
    inputs = found.processor([text], [[visual]])
    np.testing.assert_array_equal(inputs.input_ids[0], prompt_ids)
    _, tokens = prepare(inputs, found.config)
    places = np.concatenate(
        [
            batch.window.positions[:, 0, 0][:, batch.window.valid[0, 0]],
            asked.positions[:, 0, row, :answer],
        ],
        axis=1,
    )
    np.testing.assert_array_equal(tokens.positions[:, 0, 0], places)


def read(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line.pop("step"): line for line in lines}


def weights(out):
    return (out / "export" / "model.safetensors").read_bytes()


def trained(out, *changes):
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        return train.run(config(*changes), out)


def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    # Behind the two steps of warm-up; what is small compiles fast.
    few = [*only("brief"), "--config.brief_clips=1", "--config.unroll=False"]
    assert trained(tmp_path / "whole", *few) == 0
    stream = train._stream

    def killed(make, start, stop):
        for done, batch in stream(make, start, stop):
            yield done, batch
            if done == 3:
                raise KeyboardInterrupt  # one step after a checkpoint

    monkeypatch.setattr(train, "_stream", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", *few)
    assert sorted(read(tmp_path / "parts")) == [1, 2, 3]
    monkeypatch.setattr(train, "_stream", stream)
    assert trained(tmp_path / "parts", *few) == 0
    assert read(tmp_path / "whole") == read(tmp_path / "parts")
    assert sorted(read(tmp_path / "whole")) == [1, 2, 3, 4]
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    again = vlm.load(tmp_path / "whole" / "export", dtype="float32")
    assert again.trained and again.config == vlm.load("tiny", seed=0).config


def test_the_loop_runs_at_the_precision_that_is_set(tmp_path, monkeypatch):
    seen = []

    def stopped(*_):
        seen.append(jax.config.jax_default_matmul_precision)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_stream", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "--config.matmul_precision=BF16_BF16_F32")
    assert seen == ["BF16_BF16_F32"]
    assert jax.config.jax_default_matmul_precision is None


def test_a_trained_directory_is_gone_on_from(tmp_path):
    vlm.save(vlm.load("tiny", seed=3), tmp_path)
    drawn = vlm.load("tiny", dtype="float32", seed=3)
    found, _ = train._recipe(config(f"--config.model={tmp_path}"), None)
    for name in ("vision", "decoder"):
        pair = (jax.tree.leaves(nnx.state(vars(one.model)[name])) for one in (found, drawn))
        for leaf, other in zip(*pair, strict=True):
            np.testing.assert_allclose(leaf, other, atol=1e-3)  # kept in bfloat16


def test_what_makes_the_bundled_model_blind_goes_on_from_its_weights_and_leaves_its_tower():
    bundled = vlm.load("tiny", dtype="float32")
    found, _ = train._recipe(plain(read_config("sft.py:blind")), None)
    pair = (jax.tree.leaves(nnx.state(one.model)) for one in (found, bundled))
    for leaf, other in zip(*pair, strict=True):
        np.testing.assert_array_equal(leaf, other)
    settings = plain(read_config("sft.py:blind"))
    assert settings["freeze_tower"] and not settings["warmup_steps"]


def test_a_model_begins_with_what_its_decoder_has_in_common_with_another():
    found, recipe = train._recipe(config(mode="tiny-qwen3"), None)
    drawn = vlm.load("tiny-qwen3", dtype="float32", seed=0)
    other = vlm.load("tiny", dtype="float32")
    models = (found.model, drawn.model, other.model)
    own, new, old = (dict(nnx.to_flat_state(nnx.state(model))) for model in models)
    assert own.keys() == new.keys()
    for path, leaf in own.items():
        common = path[0] != "vision" and path in old
        np.testing.assert_array_equal(leaf[...], (old if common else new)[path][...])
    left = {path[-2] for path in own.keys() - old.keys() if path[0] != "vision"}
    assert left == {"q_norm", "k_norm"}
    # What was learned of text alone is known without the biases, mostly.
    drill = recipe.prompts._drills(np.random.default_rng(0), 0, ["full"], 4)[0]
    nll = [float(lookup(*nnx.split(model), drill)) for model in models]
    assert nll[2] < 0.1 and nll[0] < 0.25 * nll[1]


@functools.partial(jax.jit, static_argnums=0)
def lookup(graph, params, drill):
    """Mean NLL of the answers of a drill."""
    model = nnx.merge(graph, params)
    hidden, _ = run(model, drill.tokens)
    states = jnp.take_along_axis(hidden, drill.places[..., None], axis=2)
    logp = token_logprobs(model, states, jnp.asarray(drill.targets))
    return -jnp.sum(drill.weights * logp) / jnp.sum(drill.weights)


def test_a_decoder_of_another_size_is_refused(found):
    with pytest.raises(ValueError, match=r"k\.\w+ is \(1, 8.*of the model \(4, .*the same size"):
        sft.with_decoder(found.model, pupil.make().model)


def test_a_run_of_other_settings_is_not_taken_up(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config("--config.seed=3")))
    with pytest.raises(UsageError, match=r"other settings \(seed\)"):
        trained(tmp_path)


@pytest.mark.slow
def test_a_signal_loses_no_step(tmp_path):
    """SIGTERM in the midst of lessons; the same command then ends as if it had not come."""
    assert trained(tmp_path / "whole", "--config.steps=6") == 0
    changes = [*SMALL, "--config.steps=6", "--config.save_every=100"]
    command = [sys.executable, "-m", "experiments.cli", "train", *changes]
    command += [f"--out={tmp_path / 'parts'}", "--config=sft.py:tiny"]
    process = subprocess.Popen(command)
    lines = tmp_path / "parts" / "metrics.jsonl"
    while not (lines.exists() and lines.read_text().count("\n") >= 3):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 1
    done = max(read(tmp_path / "parts"))
    assert 3 <= done < 6
    assert subprocess.run(command, check=False).returncode == 0
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
