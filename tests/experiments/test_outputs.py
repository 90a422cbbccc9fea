import pytest

from experiments.arguments import UsageError
from experiments.outputs import take


def test_a_folder_is_taken_up_by_equal_calls_alone(tmp_path):
    folder = tmp_path / "new" / "run"
    settings = {"seed": 0, "mesh": (1, 1, 1)}
    take(folder, settings, free=["mesh"])
    take(folder, settings | {"mesh": (2, 1, 1)}, free=["mesh"])
    assert '"mesh": [\n    2,' in (folder / "config.json").read_text()
    with pytest.raises(UsageError, match=r"other settings \(seed\)"):
        take(folder, settings | {"seed": 1}, free=["mesh"])
    with pytest.raises(UsageError, match=r"other settings \(mesh\)"):
        take(folder, settings)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_what_is_no_folder_of_ours_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        take(tmp_path, {})
    assert (tmp_path / "config.json").read_text() == "{"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out="):
        take(tmp_path / "file", {})
