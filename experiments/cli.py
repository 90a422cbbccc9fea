"""`saccade COMMAND`: finds the command, runs its `main(argv)`, turns errors into one line."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from experiments.arguments import UsageError

COMMANDS = {
    "demo": "render a few clips, score them, and show the report",
    "score": "videos in, one surprise trace per video out",
    "evaluate": "when scores tell that something happened, beside every baseline",
    "train": "train a model by a recipe, from scratch or from a checkpoint",
    "ablate": "train configurations side by side, by several seeds, and compare them",
    "frames": "choose frames from traces for a budget",
    "bench": "measure beside peers, in one run: score, train, data, compile, load",
    "convert": "Hugging Face directory <-> Orbax checkpoint",
    "validate": "what is missing or broken in a dataset, before a long run",
    "toy": "render the toy world as mp4 files, with questions and times of events",
}
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 all done, 1 some inputs failed, 2 the call is wrong."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        sys.stderr.write(f"saccade: no command {name!r}; choose from {', '.join(COMMANDS)}\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("jax", "orbax", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's errors, which it raises as well
    try:
        return importlib.import_module(f"experiments.{name}").main(rest)
    except UsageError as error:
        sys.stderr.write(f"saccade {name}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"saccade {name}: interrupted; the same command continues from here\n")
        return _INTERRUPTED


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return (
        "saccade: Bayesian surprise for video-LLMs\n\n"
        "usage: saccade COMMAND ...    (saccade COMMAND --help says more)\n\n"
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
