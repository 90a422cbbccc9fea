"""Command lines: argparse for flags, ml_collections for configurations, errors in one line."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

_CONFIGS = Path(__file__).parent / "configs"
_KEY = "--config."
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


class UsageError(ValueError):
    """The call itself is wrong; one line that says what, and how to mend it."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError, and knows `--config` where it is asked to."""

    def __init__(self, command: str, usage: str, about: str):
        super().__init__(
            prog=f"saccade {command}",
            usage=f"%(prog)s {usage}",
            description=about,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def add_config(self, default: str) -> None:
        """Adds `--config=FILE[:ARG]` and `--config.KEY=VALUE`; `default` is a packaged file."""
        self.add_argument(
            "--config",
            default=default,
            metavar="FILE[:ARG]",
            help="configuration, and a mode of it; --config.KEY=VALUE changes one of its keys",
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments, `config` among them as a locked ConfigDict; raises UsageError."""
        found, rest = self.parse_known_intermixed_args(argv)
        with_config = "config" in found
        changes = [text for text in rest if with_config and text.startswith(_KEY)]
        if unknown := [text for text in rest if text not in changes]:
            self.error(f"no such flag: {unknown[0]}")
        if with_config:
            found.config = read_config(found.config, changes)
        return found


def read_config(spec: str, changes: Sequence[str] = ()) -> ConfigDict:
    """The result of `get_config(ARG)` in FILE, with `--config.KEY=VALUE` changes applied.

    FILE is a path, or the name of a packaged configuration. Raises UsageError.
    """
    file, _, arg = spec.partition(":")
    path = Path(file) if Path(file).exists() else _CONFIGS / file
    if not path.is_file():
        raise UsageError(f"--config: no file {file}")
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(arg)
    except Exception as error:  # a configuration is the user's own program
        raise UsageError(f"--config: {file}: {type(error).__name__}: {error}") from None
    config.lock()
    for change in changes:
        _apply(config, change)
    return config


def plain(config: ConfigDict) -> dict[str, Any]:
    """A configuration as JSON has it."""

    def value(entry: Any) -> Any:
        if isinstance(entry, ConfigDict):
            return plain(entry)
        return list(entry) if isinstance(entry, tuple) else entry

    return {key: value(entry) for key, entry in config.items()}


def _apply(config: ConfigDict, change: str) -> None:
    """Sets one key to a value of the kind that it has; a list is written with commas."""
    name, equals, text = change.removeprefix(_KEY).partition("=")
    *parents, key = name.split(".")
    for parent in parents:
        config = config.get(parent) if isinstance(config.get(parent), ConfigDict) else ConfigDict()
    if key not in config or isinstance(config[key], ConfigDict):
        near = difflib.get_close_matches(key, list(config.keys()), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{_KEY}{name}: no such key{hint}")
    if not equals:
        raise UsageError(f"{_KEY}{name}: write {_KEY}{name}=VALUE")
    before = config[key]
    try:
        if isinstance(before, bool):
            config[key] = _TRUTH[text.lower()]
        elif isinstance(before, tuple | list):
            config[key] = type(before)(text.split(",") if text else ())
        else:
            config[key] = type(before)(text)
    except (ValueError, KeyError):
        kind = "true or false" if isinstance(before, bool) else type(before).__name__
        raise UsageError(f"{_KEY}{name} is {text!r}; it must be {kind}") from None


def check_process(process: int, processes: int) -> None:
    """Raises UsageError where there is no such process."""
    if processes < 1:
        raise UsageError(f"--config.processes is {processes}; it must be positive")
    if not 0 <= process < processes:
        raise UsageError(
            f"--config.process is {process}; the processes count from 0 to {processes - 1}"
        )
