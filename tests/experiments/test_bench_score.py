"""The bench of scoring: counts worked out by hand, and implementations that agree."""

import jax
import numpy as np
import pytest

from experiments import bench_score as bench
from experiments import floor as floor_module
from experiments.arguments import Parser, UsageError
from experiments.floor import (
    PHASES,
    Cost,
    Work,
    decode_flops,
    floor,
    layer_weights,
    tower_flops,
    tower_weights,
)
from experiments.workload import make_clips, random_model, run, work_of
from surprise import Settings
from vlm.config import Qwen3Vision, Qwen25Vision, TextConfig, VLMConfig

# Windows of 2 x 2 cells of 2 x 2 patches; 2 values a patch.
CONFIG = VLMConfig(
    vision=Qwen25Vision(
        depth=2, hidden=4, heads=1, mlp=3, out=4, channels=1, patch=1, window=4, full_layers=(1,)
    ),
    text=TextConfig(
        vocab=10, hidden=4, mlp=6, layers=2, heads=2, kv_heads=1, head_dim=2,
        rope_sections=(1, 0, 0),
    ),
)  # fmt: skip
WORK = Work(
    grid=(4, 6), patches=1, prompts=((5,),), observed=3, predict=2, statement=2, caption=1,
    hypotheses=2, hypothesis_tokens=3, caption_tokens=2,
)  # fmt: skip
SETTINGS = Settings(
    schedule="fixed", steps=3, window=2, hypotheses=2, hypothesis_tokens=4, caption_tokens=3
)


def test_flops_of_the_decoder_by_hand():
    assert layer_weights(CONFIG) == 4 * (2 * 4 + 2 * 2) + 3 * 4 * 6 == 120
    # 2 layers of 2 x 3 x 120, and 16 for each of 3 x 5 pairs with the past, 1 + 2 + 3 of their own.
    assert decode_flops(CONFIG, 3, 5) == 2 * (720 + 16 * 21) == 2112


def test_flops_of_the_towers_by_hand():
    # Patches 2 x 24 x 2 x 4; two blocks of 2 x 24 x 100; 16 a pair: 24^2 in the full block,
    # 16^2 + 8^2 in the windowed one; six cells through 16 x 16 and 16 x 4.
    assert tower_flops(CONFIG.vision, (4, 6)) == 384 + 9600 + 16 * (576 + 320) + 3840
    assert tower_weights(CONFIG.vision) == 2 * 4 + 2 * 100 + 16 * 20
    # No gate (88 a block), no windows, and a merger more for the tap.
    tapped = Qwen3Vision(
        depth=2, hidden=4, heads=1, mlp=3, out=4, channels=1, patch=1, deepstack=(0,)
    )
    assert tower_flops(tapped, (4, 6)) == 384 + 2 * 48 * 88 + 16 * 2 * 576 + 2 * 3840


def test_floor_of_a_step_by_hand():
    costs = floor(CONFIG, WORK)
    assert tuple(costs) == PHASES
    weights, head, slot = 2 * 120 * 4, 4 * 10 * 4, 2 * 2 * 2 * 4
    assert costs["prefill"] == Cost(decode_flops(CONFIG, 5, 0), weights + 5 * slot)
    # The question behind the prompt; two tokens of two rows behind both; five draws need the head.
    flops = 2 * (480 + 16 * 13) + 2 * 2 * (480 + 16 * 17) + 5 * 80
    read = 7 * slot + (2 * 7 + 2 * (1 + 2)) * slot
    assert costs["sample"] == Cost(flops, 3 * weights + 3 * head + read) == Cost(4784, 4224)
    # The same FLOPs in two passes: the question's and that of all rows.
    assert costs["prior"] == Cost(flops, weights + head + 7 * slot + 2 * 2 * slot)
    assert costs["observe"].flops == decode_flops(CONFIG, 3, 5)
    assert costs["posterior"].flops > costs["prior"].flops
    assert costs["caption"].flops == (
        decode_flops(CONFIG, 1, 8) + decode_flops(CONFIG, 1, 9) + 2 * 80
    )
    assert costs["encode"].flops == tower_flops(CONFIG.vision, (4, 6))
    assert WORK.sampled == 2 * 3 + 2 and WORK.scored == 2 * 2 * 3


def test_a_batch_shares_the_weights_and_nothing_else():
    one = floor(CONFIG, WORK)
    two = floor(CONFIG, Work(**{**vars(WORK), "prompts": ((5, 5),)}))
    for name in PHASES:
        assert two[name].flops == 2 * one[name].flops
        assert one[name].bytes < two[name].bytes < 2 * one[name].bytes


def test_flops_are_those_that_xla_counts_in_a_prefill():
    import jax.numpy as jnp
    from flax import nnx

    from vlm.model import Tokens
    from vlm.model import run as decode
    from vlm.weights import abstract_model

    # One layer: the body of a scan is counted once.
    text = TextConfig(
        vocab=64, hidden=128, mlp=256, layers=1, heads=4, kv_heads=2, head_dim=32,
        rope_sections=(4, 6, 6),
    )  # fmt: skip
    config = VLMConfig(vision=CONFIG.vision, text=text)
    graph, state = nnx.split(abstract_model(config, dtype=jnp.float32))
    row = (1, 1, 32)

    def prefill(params, ids, positions, valid):
        return decode(nnx.merge(graph, params), Tokens(ids, positions, valid))[0]

    compiled = (
        jax.jit(prefill)
        .lower(
            state,
            jax.ShapeDtypeStruct(row, jnp.int32),
            jax.ShapeDtypeStruct((3, *row), jnp.int32),
            jax.ShapeDtypeStruct(row, bool),
        )
        .compile()
    )
    seen = compiled.cost_analysis()
    seen = seen[0] if isinstance(seen, list) else seen
    # XLA counts the masked half of the scores, norms and the softmax as well.
    assert decode_flops(config, 32, 0) < seen["flops"] < 1.1 * decode_flops(config, 32, 0)


@pytest.fixture(scope="module")
def tiny():
    return random_model("tiny", "float32")


@pytest.fixture(scope="module")
def clips(tiny):
    return make_clips(tiny.processor, SETTINGS, 2, 56)


def test_words_are_of_exactly_so_many_tokens(tiny, clips):
    plain = tiny.processor.plain
    assert {len(plain(text)) for clip in clips for row in clip.hypotheses for text in row} == {4}
    assert {len(plain(text)) for clip in clips for text in clip.captions} == {3}


def test_work_counts_what_the_viewer_is_asked(tiny, clips):
    from experiments.viewer import Viewer

    held = []
    run(
        Viewer(tiny, batch=2), SETTINGS, clips, draw=False,
        see=lambda state: held.append(np.asarray(state.cache.valid).sum((1, 2)).tolist()),
    )  # fmt: skip
    work = work_of(tiny, SETTINGS, clips)
    assert held == [[tokens + work.observed for tokens in row] for row in work.prompts]
    # (0, 0) for the first window, (0, 1) for the second, (1, 1) and (2, 2) observed.
    assert work.patches == 4


@pytest.mark.slow
def test_beliefs_of_all_implementations_agree(tiny, clips):
    pytest.importorskip("torch", reason="peers need the `parity` extra")
    from experiments import peers
    from experiments.viewer import Viewer

    model = peers.load(tiny)
    batched, released = peers.Shared(tiny, model), peers.Released(tiny, model)
    ours = run(Viewer(tiny, batch=2), SETTINGS, clips, draw=False).steps
    together = run(batched, SETTINGS, clips).steps
    alone = run(batched, SETTINGS, clips, in_flight=1, draw=False).steps
    plain = run(released, SETTINGS, clips[:1]).steps
    for theirs in (together, alone, plain):
        for expected, found in zip(ours, theirs, strict=False):
            for mine, other in zip(expected[1:], found[1:], strict=True):
                assert mine.tokens == other.tokens == (4, 4)
                for key in ("prior_nll", "posterior_nll", "prior", "posterior"):
                    np.testing.assert_allclose(vars(mine)[key], vars(other)[key], atol=1e-5)
    spread = [np.ptp(step.prior_nll) for steps in ours for step in steps[1:]]
    assert max(spread) > 0.01  # beliefs far enough from uniform for that to mean something


# The shapes of SETTINGS and `clips`, which have been compiled.
SMALL = {
    "model": "tiny", "videos": 2, "hypotheses": 2, "tokens": 4, "caption_tokens": 3, "steps": 3,
    "window": 2, "side": 56, "repeats": 1,
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(floor_module, "SHAPES", ((64, 64, 64),))
    monkeypatch.setattr(floor_module, "STREAM_BYTES", 2**16)


def test_the_bench_end_to_end(quick):
    result = bench.bench_score(**SMALL, only="cd", profile=True)
    figures = result["figures"]
    assert figures["compiles_when_warm"] == 0
    assert 0 < figures["padding_share"] < 1
    assert figures["times_floor"] > 0 and figures["scoring_times_floor"] > 0
    np.testing.assert_allclose(figures["videos_per_hour"], 7200 / figures["seconds"])
    phases = [row for row in result["table"] if "phase" in row]
    assert [row["phase"] for row in phases] == [*PHASES, "host"]
    np.testing.assert_allclose(sum(row["share"] for row in phases), 1.0)
    assert all(isinstance(value, float | int) for value in figures.values())


def test_compilations_are_counted():
    with bench.Compilations() as compiled:
        double = jax.jit(lambda x: 2 * x)
        for size in (3, 3, 4):
            double(np.ones(size, np.float32))
    double(np.ones(5, np.float32))
    assert compiled.count == 2 and compiled.seconds > 0


def test_disagreement_fails_loudly(tiny, clips):
    """The figures of a bench mean nothing where two of its programs answer differently."""
    from experiments.viewer import Viewer

    class Wrong(Viewer):
        def nll(self, state, question, answers):
            sums, counts = super().nll(state, question, answers)
            return sums * np.linspace(1, 1.1, sums.shape[1]), counts

    subjects = {
        name: bench.Subject(make(tiny, batch=2), SETTINGS, clips, 2, "")
        for name, make in {"saccade": Viewer, "batched_1": Wrong}.items()
    }
    with pytest.raises(RuntimeError, match="batched_1 disagrees with saccade"):
        bench._agree(subjects, SETTINGS, clips, 1e-3)


@pytest.mark.parametrize(
    "flags",
    [["--only=xy"], ["--steps=4", "--window=4"], ["--only=c", "--profile"], ["--repeats=0"]],
)
def test_wrong_calls_are_told_in_one_line(flags):
    with pytest.raises(UsageError):
        parser = Parser("bench score", "", "")
        bench.add_flags(parser)
        bench.Options(**vars(parser.parse(flags)))
