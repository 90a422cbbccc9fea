"""What a policy is asked about the user's own videos: batches of an annotation file."""

import json
import shutil

import numpy as np
import pupil
import pytest

from experiments import hosts, tasks, toy
from experiments.arguments import UsageError
from experiments.rollout import Answers
from experiments.trajectories import Trajectories


@pytest.fixture(scope="module")
def found():
    return pupil.make()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six toy clips as files, the first of which is broken, and questions about them."""
    out = tmp_path_factory.mktemp("clips")
    assert toy.run(out, 6, {"seed": 0, "level": "one", "split": "train", "pairs": False}) == 0
    broken = sorted(out.glob("*.mp4"))[0]
    broken.write_bytes(b"no video")
    return out


def config(folder, *changes, method="grpo"):
    file = f"--config.annotations={folder / 'manifest.jsonl'}"
    own = ["--config.dataset=manifest", file, "--config.tasks="]
    return pupil.config(method, *own, *changes)


def asked(source, numbers, **options):
    return [example for number in numbers for example in source(number, **options)]


@pytest.fixture
def opened(found):
    sources = []

    def make(config, frames=4):
        sources.append(tasks.source(config, found.processor, frames))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


def test_every_item_is_asked_once_a_pass(folder, opened):
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    broken = {line["id"] for line in lines if (folder / line["video"]).stat().st_size < 100}
    count = len(lines)
    source = opened(config(folder, f"--config.batch={count}"))
    first, second = source(0), source(1)
    for batch in (first, second):
        assert len(batch) == count and all(len(example.frames) == 4 for example in batch)
        assert {line["id"] for line in lines} - broken == {example.id for example in batch}
    assert [example.id for example in first] != [example.id for example in second]
    failures = source.failures()
    assert {failure["id"] for failure in failures} == broken
    assert {failure["stage"] for failure in failures} == {"open"}
    assert source.failures() == []


def test_a_batch_is_a_function_of_its_number_alone(folder, opened, monkeypatch):
    """Whatever was asked for before, and by how many processes."""
    whole = opened(config(folder))
    before = asked(whole, range(5))
    again = opened(config(folder, "--config.workers=1"))(4)
    for one, other in zip(before[-4:], again, strict=True):
        assert one.id == other.id
        np.testing.assert_array_equal(one.frames, other.frames)
    shares = []
    for process in range(2):
        own = np.arange(process, 4, 2)
        monkeypatch.setattr(hosts, "mine", lambda count, rounds, own=own: own)
        shares.append(opened(config(folder))(4))
    names = [example.id for pair in zip(*shares, strict=True) for example in pair]
    assert names == [example.id for example in again]


def test_prompts_are_made_of_files(folder, found):
    """Views that choose frames have more to choose from than they show."""
    for method in ("strive", "crpo"):
        collector = Answers(found, config(folder, "--config.pool=8", method=method))
        batch = collector.prompts(0)
        collector.source.close()
        assert {len(view.frames) for views in batch.views for view in views.all} == {4}
        assert batch.trained.ids.shape[:2] == (4, 2)
    changes = ("--config.surprise.steps=6", "--config.tasks=caption")
    collector = Trajectories(found, config(folder, *changes, method="spike_rl"))
    _, examples = collector.prompts(0)
    collector.source.close()
    for example in examples:
        assert (len(example.frames), example.answer) == (6, example.caption)


def test_routes_that_a_file_has_not_are_found_by_rules(folder, tmp_path, opened):
    for video in folder.glob("*.mp4"):
        shutil.copy(video, tmp_path)
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    bare = [{key: line[key] for key in line if key != "route"} for line in lines]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, bare)))
    source = opened(config(tmp_path, "--config.routed=true", "--config.batch=8"))
    assert all(example.route for example in source(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["dataset=manifests"], "dataset is 'manifests'; choose from toy, oops"),
        (["annotations=none.jsonl"], "annotations=none.jsonl: no such file"),
        (["tasks=colours"], "nothing to ask: no item of the tasks colours has a question"),
        (["eval_every=5"], "validation=: no such file"),
        (["frames=0"], "frames is 0"),
        (["workers=0"], "workers is 0"),
    ],
)
def test_what_can_not_be_asked_is_told(folder, found, changes, message):
    with pytest.raises(UsageError, match=message):
        Answers(found, config(folder, *(f"--config.{change}" for change in changes)))


def test_a_file_of_unreadable_videos_ends_the_run(folder, tmp_path, opened):
    (tmp_path / "manifest.jsonl").write_text(
        json.dumps({"video": "none.mp4", "question": "What is it?", "answer": "a cat"})
    )
    with pytest.raises(UsageError, match="of 20 videos not one can be read"):
        opened(config(tmp_path))(0)
