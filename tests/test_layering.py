"""The arrows between the rooms, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"vlm", "surprise", "objectives", "data", "experiments"}
MAY_IMPORT = {
    "vlm": set(),
    "objectives": set(),
    "data": set(),
    "surprise": {"vlm"},
    "experiments": ROOMS,
}
# One file a library: where it may be imported at all.
ONLY_IN = {
    "decord": {"data/_worker.py"},
    "av": {"data/_worker.py", "data/mp4.py"},
    "torch": {"experiments/peers.py"},  # the peers of `bench score`; else it is for tests alone
}
FILES = [path for room in sorted(ROOMS) for path in sorted((ROOT / room).rglob("*.py"))]


def _imports(path):
    """(top-level package, line) of every import, those inside functions and relative ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            room = path.relative_to(ROOT).parts[0]
            module = room if node.level else node.module.split(".")[0]
            yield module, node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path):
    name = path.relative_to(ROOT).as_posix()
    room = name.split("/")[0]
    for package, line in _imports(path):
        if package in ROOMS - {room}:
            assert package in MAY_IMPORT[room], f"{name}:{line} imports {package}"
        if package in ONLY_IN:
            assert name in ONLY_IN[package], f"{name}:{line} imports {package}"
        assert package != "tests", f"{name}:{line} imports tests"


def test_only_experiments_compiles():
    """jit, pmap and meshes belong to the drivers; the rooms are pure functions."""
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("experiments/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"jit", "pmap", "shard_map"}, f"{name}:{node.lineno}"


def test_the_check_can_fail(tmp_path, monkeypatch):
    (tmp_path / "vlm").mkdir()
    bad = tmp_path / "vlm" / "bad.py"
    bad.write_text("def f():\n    from data.video import Decoder\n    return Decoder\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    with pytest.raises(AssertionError, match=r"vlm/bad\.py:2 imports data"):
        test_arrows(bad)
