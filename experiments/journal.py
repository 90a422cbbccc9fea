"""What a training run leaves to look at.

metrics.jsonl             means over the steps since the last line, a line every `log_every` steps
tensorboard/              the same numbers, as TensorBoard reads them
completions/STEP.parquet  what was said at the last of these steps, and what it earned
failures.jsonl            what could not be read
report.html               curves, and a few of the last rollouts (`curves.py`)
"""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import hosts
from experiments.outputs import write

if TYPE_CHECKING:
    from jaxtyping import Float

    from experiments.rewards import Rewards
    from experiments.rollout import Rollouts

log = logging.getLogger(__name__)

_SHOWN = ("reward", "frac_reward_zero_std", "completions/mean_length", "kl", "p_acc", "eval/reward")


class Metrics:
    """The record of a run in `out`, of which `step` steps are done; nan is what was not there.

    What is there of later steps goes: they are done again. Of several processes the first writes:
    figures of all of them, and of what was said its own share.
    """

    def __init__(self, out: Path, step: int, config: dict[str, Any]):
        import jax

        self._out, self._config, self._steps = out, config, config["steps"]
        self._step, self._time = step, time.monotonic()
        self._values: list[dict[str, Any]] = []
        self._videos = 0
        self._rollouts: tuple[Rollouts, Rewards, np.ndarray] | None = None
        self._writes = jax.process_index() == 0
        if step:
            log.info("goes on from step %d", step)
        if self._writes:
            self._lines = _taken_up(out, step)
            self._events = _Events(out / "tensorboard", step)

    def add(self, values: dict[str, Any]) -> None:
        """Notes what a step gave, as arrays on the device: nothing waits for them."""
        self._values.append(values)

    def record(
        self, rollouts: Rollouts, rewards: Rewards, advantages: Float[np.ndarray, "B M G"]
    ) -> None:
        """Notes what was said at a step."""
        self._videos += len(rollouts.views)
        self._rollouts = rollouts, rewards, advantages

    def write(self, step: int) -> None:
        """Writes what has been noted and says how far the run is; waits for the device."""
        import jax

        rows = jax.device_get(self._values)
        means = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            found = [float(row[name]) for row in rows if name in row and row[name] == row[name]]
            if found:
                means[name] = sum(found) / len(found)
        now = time.monotonic()
        rate = (step - self._step) / (now - self._time)
        if self._videos:
            videos = self._videos * jax.process_count()
            means["videos_per_hour"] = 3600 * videos / (now - self._time)
        self._step, self._time, self._values, self._videos = step, now, [], 0
        if self._writes:
            self._keep(step, means)
            self._tell(means, rate)

    def list_failures(self, failures: list[dict[str, str]]) -> None:
        """Adds what could not be read to failures.jsonl, each video once."""
        every = [failure for share in hosts.gather(failures) for failure in share]
        if not (self._writes and every):
            return
        file = self._out / "failures.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        lines += [json.dumps(failure) for failure in every]
        write(file, "".join(f"{line}\n" for line in dict.fromkeys(lines)))

    def report(self, step: int) -> None:
        """Writes report.html, after `step` steps."""
        if not self._writes:
            return
        from experiments import curves

        rows: list[dict[str, Any]] = []
        pictures = {}
        if self._rollouts is not None:
            rows = completions(step, *self._rollouts).to_pylist()
            views = self._rollouts[0].views
            pictures = {(b, m): view.frames for b, own in enumerate(views)
                        for m, view in enumerate(own)}  # fmt: skip
        try:
            curves.html(self._lines, rows, pictures, self._config, self._out / "report.html")
        except OSError as error:
            log.warning("report.html is not written: %s", error.strerror or error)

    def close(self) -> None:
        """Ends the file of events."""
        if self._writes:
            self._events.close()

    def _keep(self, step: int, means: dict[str, float]) -> None:
        """Writes a line, and what belongs to it."""
        self._lines.append({"step": step, **means})
        with (self._out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(self._lines[-1]) + "\n")
        try:
            self._events.add(step, means)
            if self._rollouts is not None:
                import pyarrow.parquet

                folder = self._out / "completions"
                folder.mkdir(exist_ok=True)
                table = completions(step, *self._rollouts)
                pyarrow.parquet.write_table(table, folder / f"{step:05d}.parquet")
        except OSError as error:  # a run is worth more than a look at it
            log.warning("of step %d only metrics.jsonl is kept: %s", step, error.strerror or error)

    def _tell(self, means: dict[str, float], rate: float) -> None:
        if means.get("skipped"):
            share = 100 * means["skipped"]
            log.warning("%.0f %% of the updates had no finite gradient and changed nothing", share)
        told = "; ".join(
            f"{name.removeprefix('cells/').removesuffix('/sure')} {value:.2f}"
            for name, value in means.items()
            if name in _SHOWN or name.startswith("cells/") or name.endswith("/sure")
        )
        pace = f"{rate:.2f} steps/s"
        if "videos_per_hour" in means:
            pace += f", {means['videos_per_hour']:.0f} videos/h"
        log.info(
            "[%d/%d] loss %.3f; %s; %s, %s left",
            self._step, self._steps, means.get("loss", float("nan")), told, pace,
            _duration((self._steps - self._step) / rate),
        )  # fmt: skip


def _taken_up(out: Path, step: int) -> list[dict[str, Any]]:
    """The lines up to `step`; files of later steps are removed."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    write(path, "".join(f"{line}\n" for line in kept))
    for file in (out / "completions").glob("*.parquet"):
        if file.stem.isdigit() and int(file.stem) > step:
            file.unlink()
    return [json.loads(line) for line in kept]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def completions(
    step: int, rollouts: Rollouts, rewards: Rewards, advantages: Float[np.ndarray, "B M G"]
) -> Any:
    """What was said, a row each, as a table of pyarrow.

    step; group, view, sample   the place (b, m, g)
    id, video, transform        of the example; transform is "", flip or reversal
    frames                      numbers, in the file, of the frames that were shown
    prompt, completion, answer  the answer as it was to be said
    hypotheses                  of a trajectory of the SPIKE pipeline, by step
    rewards/NAME, reward        each reward, and their weighted sum; null where none applies
    advantage                   null for views that are not trained
    """
    import pyarrow

    columns = rollouts.columns
    places = columns["place"]
    views = [rollouts.views[b][m] for b, m, _ in places]

    def listed(grid: np.ndarray) -> list[float | None]:
        found = [float(grid[at]) if at[1] < grid.shape[1] else math.nan for at in places]
        return [None if math.isnan(value) else value for value in found]

    whole, real, text = pyarrow.int64(), pyarrow.float64(), pyarrow.string()
    fields = {"step": (whole, [step] * len(places))}
    for i, name in enumerate(("group", "view", "sample")):
        fields[name] = (whole, [at[i] for at in places])
    fields |= {
        "id": (text, _plain(columns["id"])),
        "video": (text, _plain(columns["video"])),
        "transform": (text, [view.transform or "" for view in views]),
        "frames": (pyarrow.list_(whole), columns["frames"]),
        "prompt": (text, _plain(columns["prompts"])),
        "completion": (text, _plain(columns["completions"])),
        "answer": (text, _plain(columns["answer"])),
    }
    if "hypotheses" in columns:
        lists = pyarrow.list_(pyarrow.list_(text))
        fields["hypotheses"] = lists, columns["hypotheses"]
    fields |= {
        **{f"rewards/{name}": (real, row) for name, row in rewards.every.items()},
        "reward": (real, listed(rewards.total)),
        "advantage": (real, listed(advantages)),
    }
    return pyarrow.table(
        {name: pyarrow.array(values, kind) for name, (kind, values) in fields.items()}
    )


def _plain(texts: list[str]) -> list[str]:
    """Names of files may hold bytes that are no UTF-8; they come as lone surrogates."""
    return [text.encode("utf-8", "replace").decode() for text in texts]


class _Events:
    """A file of TensorBoard's events; a reader drops what older files have of later steps."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # The writer's own name has seconds alone, and a file of that name would be overwritten.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        if step:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def add(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Any) -> None:
        self._writer.write_event(event)
        self._writer.flush()
