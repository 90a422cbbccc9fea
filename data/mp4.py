"""Frames to an mp4 file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8


def write_mp4(
    path: str | Path, frames: UInt8[np.ndarray, "frames height width 3"], fps: int
) -> None:
    """Encodes frames as H.264 in an mp4 file; both sides must be even. Raises OSError."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
