"""Command lines: flags by absl, configurations by ml_collections, errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

_CONFIGS = Path(__file__).parent / "configs"


class UsageError(ValueError):
    """The call itself is wrong; one line that says what, and how to mend it."""


def parse(command: str, synopsis: str, argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Fills `values` from `argv` and returns what is not a flag.

    Raises UsageError for a flag or configuration key that does not exist or does not fit, and
    SystemExit after printing help.
    """
    if {"--help", "-h"} & set(argv):
        sys.stdout.write(f"usage: saccade {command} {synopsis}\n\n{values.main_module_help()}\n")
        raise SystemExit(0)
    try:
        return values([command, *argv])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(_one_line(error)) from None


def define_config(values: flags.FlagValues, name: str, argv: Sequence[str]) -> None:
    """Adds `--config=FILE[:ARG]` (default: the packaged `name`) and `--config.KEY=VALUE`."""
    config_flags.DEFINE_config_file(
        "config",
        str(_CONFIGS / name),
        "configuration file, an argument for it after a colon; --config.KEY=VALUE sets a key",
        flag_values=values,
        sys_argv=["saccade", *argv],
    )


def plain(config: ConfigDict) -> dict:
    """A configuration as JSON has it."""
    return {
        key: plain(value) if isinstance(value, ConfigDict)
        else list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
    }  # fmt: skip


def _one_line(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(text.split())
