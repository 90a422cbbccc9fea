"""The bench of training: workloads of exact sizes, and trainers that must agree."""

import importlib.util
import logging

import jax
import numpy as np
import pupil
import pytest

from experiments import bench_train as bench
from experiments import rl
from experiments.arguments import Parser, UsageError
from experiments.bench_score import add_flags
from experiments.mesh import single
from vlm.inputs import Inputs
from vlm.model import forward

SMALL = {"model": "tiny", "batch": 2, "generations": 4, "completion": 3, "repeats": 1}


@pytest.fixture(scope="module")
def found():
    return pupil.make()


def test_texts_are_of_exactly_so_many_tokens(found):
    for tokens in (1, 7, 64):
        texts = bench.sentences(found, 3, tokens)
        assert [len(found.processor.plain(text)) for text in texts] == [tokens] * 3
    assert texts == bench.sentences(found, 3, 64) and len(set(texts)) == 3


def test_prompts_of_text_alone_are_scored_as_by_the_whole_model(found):
    """Without frames, and behind a shared prefix: the log-probabilities of a plain forward pass."""
    config = pupil.config("grpo")
    texts = bench.Texts(found, config, bench.sentences(found, 2, 9))
    _, prompts = texts.prompts(0)
    rng = np.random.default_rng(0)
    said = rng.integers(0, 400, (2, 1, 3, 4)).astype(np.int32)
    logp = single(found.model)(rl.logprobs, prompts, said, np.ones(said.shape, bool))
    rows = np.concatenate([np.repeat(texts.ids[:, 0], 3, 0), said.reshape(6, 4)], axis=1)
    z = jax.jit(lambda: forward(found.model, Inputs(rows, np.ones(rows.shape, bool))))()
    every = jax.nn.log_softmax(z[:, 8:-1])
    expected = np.take_along_axis(np.asarray(every), rows[:, 9:, None], axis=2)
    np.testing.assert_allclose(logp.reshape(6, 4), expected[..., 0], atol=2e-5)
    assert np.ptp(expected) > 0.1


def test_the_reward_tells_completions_apart():
    assert bench.even([[1, 2, 4, 7], [3, 5]], prompts=[]) == [0.5, 0.0]


def test_without_trl_recipes_alone_are_measured(monkeypatch, caplog):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        bench.importlib.util, "find_spec", lambda name: None if name == "trl" else real(name)
    )
    rates = {"grpo": [100.0, 300.0, 200.0], "strive": [50.0]}
    monkeypatch.setattr(bench, "videos_per_hour", lambda recipe, steps: rates[recipe])
    with caplog.at_level(logging.WARNING):
        result = bench.bench_train(recipes="grpo,strive")
    assert result["figures"] == {
        "videos_per_hour_grpo": 200.0, "videos_per_hour_strive": 50.0, "videos_per_hour": 200.0
    }  # fmt: skip
    assert "pip install 'saccade[peers,parity]'" in caplog.text


@pytest.mark.parametrize(
    "flags", [["--prompts=64,many"], ["--prompts=0"], ["--generations=1"], ["--steps=1"]]
)
def test_wrong_calls_are_told_in_one_line(flags):
    parser = Parser("bench train", "", "")
    add_flags(parser, bench.Options)
    with pytest.raises(UsageError, match=flags[0].split("=")[0]):
        bench.bench_train(**vars(parser.parse(flags)))


@pytest.mark.slow
def test_videos_an_hour_of_a_recipe(tmp_path):
    changes = [f"--config.model={pupil.saved(tmp_path)}", *pupil.SMALL]
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        rates = bench.videos_per_hour("grpo", 3, *changes)
    assert len(rates) == 2 and min(rates) > 0


@pytest.fixture
def permissive():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the extra `peers`")
def test_a_step_beside_that_of_trl(permissive, tmp_path, monkeypatch):
    found = bench.random_model("tiny", "float32")
    options, figures, table = bench.Options(**SMALL), {}, []
    bench.compare(found, options, 10, figures, table)
    assert figures["agreement_gradient_10"] < 1e-4 and figures["compiles_when_warm_10"] == 0
    assert [row["trainer"] for row in table] == ["saccade", "trl"]
    ours, theirs = (row["median_seconds"] for row in table)
    assert figures["speedup_over_trl_10"] == theirs / ours > 0
    # Another loss is found out, before anything is timed.
    monkeypatch.setattr(bench.Ours, "step", None)
    real = bench.Ours.learned

    def scaled(self, ids):
        advantages, loss, gradient = real(self, ids)
        return advantages, loss, {name: 1.001 * part for name, part in gradient.items()}

    monkeypatch.setattr(bench.Ours, "learned", scaled)
    with pytest.raises(RuntimeError, match=r"agreement_gradient 0\.001"):
        bench.compare(found, options, 10, {}, [])
