"""Several processes: they train together as one does, and each knows what it must of the others."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pupil
import pytest

from experiments.cli import main

CHANGES = [
    "--config.batch=4", "--config.frames=4", "--config.num_generations=2",
    "--config.max_completion_length=4", "--config.ramp_steps=1", "--config.learning_rate=0.01",
    "--config.beta=0.1", "--config.ema_decay=0.5", "--config.eval_every=2",
    "--config.eval_batches=1", "--config.save_every=1", "--config.keep=3", "--config.steps=3",
]  # fmt: skip


REWARD = """
def varied(prompts, completions, *, completion_ids, place, **columns):
    rows = zip(completions, completion_ids, place)
    return [(sum(map(ord, text)) + sum(ids) + 3 * at[2]) % 7 / 7 for text, ids, at in rows]
"""


def together(command, devices, tmp_path):
    """Two processes that train, `devices` each; what they write is theirs to tell."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    flags = [f"--config.coordinator=localhost:{port}", "--config.processes=2"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.cli", *command, *flags, f"--config.process={n}"],
            env=environment,
        )
        for n in range(2)
    ]
    return [process.wait(timeout=500) for process in started]


def read(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "shape", "parts"), [("crpo", "2,1,2", 2), ("spike_rl", "1,4,1", 1)]
)
def test_two_processes_train_as_one_and_one_resumes_what_they_wrote(method, shape, parts, tmp_path):
    """Also where parameters are split over both, and are gathered to sample."""
    (tmp_path / "mine.py").write_text(REWARD)
    model = pupil.saved(tmp_path / "pupil")
    changes = [*CHANGES, f"--config.model={model}", "--config.reward_weights="]
    changes += [f"--config.num_minibatches={parts}"]
    changes += [f"--config.rewards={tmp_path / 'mine.py'}:varied"]
    command = ["train", f"--config={method}.py:tiny", *changes]
    out = tmp_path / "two"
    ended = together([*command, f"--out={out}", f"--config.mesh={shape}"], 2, tmp_path)
    assert ended == [0, 0]
    lines = read(out)
    assert lines[1]["grad_norm"] > 1e-3 and "eval/reward" in lines[1]
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        assert main([*command, f"--out={tmp_path / 'one'}"]) == 0
        alike(read(tmp_path / "one"), lines)
        shutil.rmtree(out / "checkpoints" / "3")
        assert main([*command, f"--out={out}"]) == 0
    alike(read(out), lines)


def alike(lines, others):
    assert len(lines) == len(others) == 3
    for line, theirs in zip(lines, others, strict=True):
        assert line.keys() == theirs.keys()
        for name in line.keys() - {"step_time", "videos_per_hour"}:
            np.testing.assert_allclose(theirs[name], line[name], atol=1e-5, err_msg=name)
