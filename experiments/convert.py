"""`saccade convert`: a Hugging Face directory to an Orbax checkpoint, or back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from experiments.arguments import Parser, UsageError

log = logging.getLogger(__name__)

USAGE = "SRC DST [--dtype=bfloat16]"


def main(argv: Sequence[str]) -> int:
    parser = Parser("convert", USAGE, "Writes SRC, read from one of the two forms, in the other.")
    parser.add_argument("source", help="an Orbax checkpoint, or any model that score takes")
    parser.add_argument("target", help="a folder that does not exist yet")
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    values = parser.parse(argv)
    source, target = values.source, Path(values.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists; name a new folder")

    import vlm
    from experiments import checkpoint

    try:
        if checkpoint.is_checkpoint(Path(source)):
            vlm.save(checkpoint.load(Path(source), dtype=values.dtype), target)
            kind = "a Hugging Face directory"
        else:
            checkpoint.save(vlm.load(source, dtype=values.dtype), target)
            kind = "an Orbax checkpoint"
    except (ValueError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    log.info("wrote %s: %s in %s", target, kind, values.dtype)
    return 0
