"""`saccade bench WHAT`: our figures, measured in one run and written to results.json."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.arguments import Parser, UsageError

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        "bench",
        f"{'|'.join(BENCHES)} [--out=DIR] ...",
        "Measures, prints, and writes results.json to --out. "
        "`saccade bench WHAT --help` says what more it takes.",
    )
    parser.add_argument("what", choices=BENCHES, help="what to measure")
    parser.add_argument("--out", default="", help="folder of results.json; default runs/bench/WHAT")
    add_flags, run = BENCHES.get(argv[0] if argv else "", (None, None))
    if add_flags is not None:
        add_flags(parser)
    values = vars(parser.parse(argv))
    what = values.pop("what")
    out = Path(values.pop("out") or f"runs/bench/{what}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out={out}: {error.strerror}") from None
    result = run(**values)
    write_results(out, " ".join(["saccade bench", *argv]), **result)
    for name, value in result["figures"].items():
        log.info("%s: %.4g", name, value)
    return 0


def write_results(out: Path, command: str, *, settings: dict, figures: dict, table: list) -> None:
    """Writes results.json: what was run, on what, and what came out."""
    from experiments.score import versions

    record = {
        "command": command,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": hardware(),
        "settings": settings,
        "figures": figures,
        "table": table,
    }
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n")


def hardware() -> str:
    """The devices that jax uses, and the host's cores and what they are."""
    import jax

    devices, cpu = jax.devices(), platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):  # the name, where Linux tells it
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    return f"{len(devices)} x {devices[0].device_kind}, host with {os.cpu_count()} cores ({cpu})"


def _commit() -> str:
    """The commit of the code that runs; "" outside a repository, "+" where it was changed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if changed.stdout else "")


# Depth and compile time ----------------------------------------------------------------------


def bench_compile() -> dict[str, Any]:
    """Trace and compile time of a prefill of a 28-layer decoder against a 4-layer one.

    Layers are scanned, so the ratio should be near 1. Each depth is compiled three times, in turn,
    and the least time counts.
    """
    import jax

    from vlm.config import NAMED

    rows, best = [], {}
    for family in ("qwen2.5-vl-7b", "qwen3-vl-8b"):
        for _ in range(3):
            for layers in (4, 28):
                config = NAMED[family]
                config = replace(config, text=replace(config.text, layers=layers))
                jax.clear_caches()
                seconds = _compile_seconds(config)
                best[family, layers] = min(seconds, best.get((family, layers), seconds))
        short, deep = best[family, 4], best[family, 28]
        rows.append({"model": family, "layers_4_s": short, "layers_28_s": deep})
    figures = {f"ratio_{row['model']}": row["layers_28_s"] / row["layers_4_s"] for row in rows}
    return {"settings": {"tokens": 256, "dtype": "bfloat16"}, "figures": figures, "table": rows}


def _compile_seconds(config) -> float:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from vlm.model import Tokens, run
    from vlm.weights import abstract_model

    graph, state = nnx.split(abstract_model(config))
    row = (1, 1, 256)
    tokens = Tokens(
        jax.ShapeDtypeStruct(row, jnp.int32),
        jax.ShapeDtypeStruct((3, *row), jnp.int32),
        jax.ShapeDtypeStruct(row, bool),
    )

    def prefill(params, ids, positions, valid):
        return run(nnx.merge(graph, params), Tokens(ids, positions, valid))

    start = time.perf_counter()
    jax.jit(prefill).lower(state, tokens.ids, tokens.positions, tokens.valid).compile()
    return time.perf_counter() - start


# Memory of loading ---------------------------------------------------------------------------

_LOAD = """
import json, sys, time
from pathlib import Path
from experiments.bench import peak_mb
from vlm.config import VLMConfig
from vlm.weights import load_weights
config = VLMConfig.from_hf(json.loads(Path(sys.argv[1], "config.json").read_text()))
before, start = peak_mb(), time.perf_counter()
model = load_weights(sys.argv[1], config)
print(json.dumps({"before": before, "peak": peak_mb(), "seconds": time.perf_counter() - start}))
"""


def peak_mb() -> float:
    """Most resident memory that this process has had, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had before exec
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def bench_load() -> dict[str, Any]:
    """Peak resident memory of loading about 2 GB of random bfloat16 weights from 8 shards.

    The bound to hold is the model's size + one shard + 500 MB, the interpreter included.
    """
    from vlm.config import NAMED
    from vlm.weights import count, random_weights, save_weights

    config = NAMED["qwen2.5-vl-3b"]
    config = replace(config, text=replace(config.text, layers=2, vocab=32_000, mlp=32_768))
    config = replace(config, image_token=7, video_token=8, vision_start_token=4, vision_end_token=5)
    with tempfile.TemporaryDirectory() as folder:
        model = random_weights(config)
        size = 2 * count(model)
        save_weights(model, folder, shard_bytes=size // 8 + size // 100)
        del model
        (Path(folder) / "config.json").write_text(json.dumps(config.to_hf()))
        shards = [path.stat().st_size for path in Path(folder).glob("*.safetensors")]
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, folder], capture_output=True, text=True, check=True
        )
    seen = json.loads(done.stdout.splitlines()[-1])
    bound = size / 1e6 + max(shards) / 1e6 + 500
    figures = {
        "peak_mb": seen["peak"],
        "bound_mb": bound,
        "model_mb": size / 1e6,
        "shards": len(shards),
        "largest_shard_mb": max(shards) / 1e6,
        "before_loading_mb": seen["before"],
        "seconds": seen["seconds"],
    }
    return {"settings": {"dtype": "bfloat16"}, "figures": figures, "table": []}


def _score_flags(parser: Parser) -> None:
    from experiments.bench_score import add_flags

    add_flags(parser)


def _score(**values: Any) -> dict[str, Any]:
    from experiments.bench_score import bench_score

    return bench_score(**values)


def _data_flags(parser: Parser) -> None:
    parser.add_argument("--repetitions", type=int, default=5, help="of everything, interleaved")
    parser.add_argument("--memory", action="store_true", help="memory over 5,000 clips as well")


def _data(**values: Any) -> dict[str, Any]:
    from experiments.bench_data import bench_data

    return bench_data(**values)


def _train_flags(parser: Parser) -> None:
    from experiments.bench_score import add_flags
    from experiments.bench_train import Options

    add_flags(parser, Options)


def _train(**values: Any) -> dict[str, Any]:
    from experiments.bench_train import bench_train

    return bench_train(**values)


# What can be measured: the flags it takes, and the function that takes their values.
BENCHES: dict[str, tuple[Callable[[Parser], None] | None, Callable[..., dict[str, Any]]]] = {
    "score": (_score_flags, _score),
    "train": (_train_flags, _train),
    "data": (_data_flags, _data),
    "compile": (None, bench_compile),
    "load": (None, bench_load),
}
