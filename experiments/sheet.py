"""A sheet to draw on, in inches from its top left corner: text that fits, rounded pictures, ties.

Text is drawn as it is: no mathematics in it, and no character that the fonts at hand lack.
"""

from __future__ import annotations

import bisect
import itertools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

WIDTH, DPI = 10.0, 150
PAPER, CARD, RULE, MUTED, INK = "#fcfbf8", "#f1eee8", "#dcd7cd", "#6c717c", "#22262e"
ACCENT = "#d0512f"

# Asked after the bundled font, for the scripts that it lacks; those not installed are passed over.
FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)


class Sheet:
    """A sheet measured in inches from its top left corner, cut to length when it is saved."""

    def __init__(self) -> None:
        from matplotlib import font_manager
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.canvas = FigureCanvasAgg(Figure(figsize=(WIDTH, WIDTH), dpi=DPI, facecolor=PAPER))
        self.axes = self.canvas.figure.add_axes((0, 0, 1, 1), frameon=False)
        self.axes.set(xlim=(0, WIDTH), ylim=(WIDTH, 0), autoscale_on=False)
        self.axes.set_axis_off()
        installed = {font.name for font in font_manager.fontManager.ttflist}
        self.families = ["DejaVu Sans", *(f for f in FALLBACK_FONTS if f in installed)]
        self.fonts = [
            font_manager.get_font(
                font_manager.findfont(font_manager.FontProperties(family=[family], weight=weight))
            )
            for family, weight in itertools.product(self.families, ("normal", "bold"))
        ]

    def save(self, path: str | Path, height: float) -> None:
        self.canvas.figure.set_size_inches(WIDTH, height)
        self.axes.set_ylim(height, 0)
        self.canvas.print_png(path)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: str = INK,
        align: str = "left",
        valign: str = "baseline",
        bold: bool = False,
    ) -> None:
        self.axes.text(
            x,
            y,
            self.drawable(text),
            font=self.font(size, bold),
            color=colour,
            ha=align,
            va=valign,
            parse_math=False,
            zorder=6,
        )

    def font(self, size: float, bold: bool) -> Any:
        from matplotlib.font_manager import FontProperties

        return FontProperties(family=self.families, weight="bold" if bold else "normal", size=size)

    def drawable(self, text: str) -> str:
        """The text on one line, without control marks, and a box for what no font here can draw."""
        kept = "".join(c if unicodedata.category(c) != "Cf" else "" for c in " ".join(text.split()))
        return "".join(c if self.has(c) else "□" for c in kept)

    def has(self, character: str) -> bool:
        regular, bold, *others = (font.get_char_index(ord(character)) for font in self.fonts)
        return bool(regular and bold) or any(others)

    def width(self, text: str, size: float, bold: bool = False) -> float:
        renderer = self.canvas.get_renderer()
        font = self.font(size, bold)
        return renderer.get_text_width_height_descent(self.drawable(text), font, False)[0] / DPI

    def fit(self, text: str, room: float, size: float, bold: bool = False) -> str:
        """The text, or as much of its beginning as leaves room for an ellipsis."""
        if self.width(text, size, bold) <= room:
            return text
        lengths = range(len(text))
        kept = bisect.bisect_right(
            lengths, room, key=lambda n: self.width(text[:n] + "…", size, bold)
        )
        text = text[: max(kept - 1, 0)]
        return text.rstrip() + "…"

    def wrap(self, text: str, room: float, size: float, most: int) -> list[str]:
        """Lines no wider than room; words are split only where one alone is wider."""
        lines, rest = [], " ".join(text.split())
        while rest and len(lines) < most - 1:
            end = len(self.fit(rest, room, size).removesuffix("…"))
            if end < len(rest) and " " in rest[: end + 1]:
                end = rest.rindex(" ", 0, end + 1)
            end = max(end, 1)
            lines.append(rest[:end])
            rest = rest[end:].lstrip()
        return [*lines, self.fit(rest, room, size)] if rest else lines

    def line(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        colour: str,
        width: float,
        style: Any = "solid",
        zorder: float = 1,
    ) -> None:
        self.axes.plot(
            xs, ys, color=colour, lw=width, ls=style, zorder=zorder, solid_joinstyle="round"
        )

    def tie(self, x: float, y: float, to_x: float, to_y: float, colour: str) -> None:
        """A thin curve between a picture and its time."""
        turn = np.linspace(0, 1, 24)
        xs = x + (to_x - x) * (3 * turn**2 - 2 * turn**3)
        self.axes.plot(xs, y + (to_y - y) * turn, color=colour, lw=0.7, alpha=0.75, zorder=1.2)

    def area(self, xs: Sequence[float], ys: Sequence[float], base: float, colour: str) -> None:
        self.axes.fill_between(xs, ys, base, color=colour, alpha=0.1, lw=0, zorder=2)

    def dots(self, xs: Sequence[float], ys: Sequence[float], colour: str, size: float) -> None:
        self.axes.plot(xs, ys, "o", ms=size, mfc=PAPER, mec=colour, mew=1.1, zorder=4)

    def badge(self, x: float, y: float, number: int) -> None:
        self.axes.plot([x], [y], "o", ms=11.5, mfc=ACCENT, mec="none", zorder=5)
        self.text(x, y + 0.005, str(number), 8, "white", "center", "center_baseline", True)

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, radius: float = 0.0
    ) -> None:
        from matplotlib.patches import FancyBboxPatch

        style = f"round,pad=0,rounding_size={radius}"
        self.axes.add_patch(
            FancyBboxPatch((x, y), width, height, style, fc=colour, ec="none", zorder=2)
        )

    def image(
        self,
        pixels: UInt8[np.ndarray, "height width 3"] | None,
        x: float,
        y: float,
        width: float,
        height: float,
        edge: bool = False,
    ) -> None:
        """The picture with rounded corners, whole, centred in its place."""
        from matplotlib.patches import FancyBboxPatch

        self.box(x, y, width, height, CARD, 0.05)
        if pixels is not None:
            scale = min(width / pixels.shape[1], height / pixels.shape[0])
            w, h = pixels.shape[1] * scale, pixels.shape[0] * scale
            left, top = x + (width - w) / 2, y + (height - h) / 2
            image = self.axes.imshow(
                pixels, extent=(left, left + w, top + h, top), aspect="auto", zorder=3
            )
            image.set_clip_path(
                FancyBboxPatch(
                    (left, top),
                    w,
                    h,
                    "round,pad=0,rounding_size=0.05",
                    transform=self.axes.transData,
                )
            )
        if edge:
            self.axes.add_patch(
                FancyBboxPatch(
                    (x, y),
                    width,
                    height,
                    "round,pad=0,rounding_size=0.05",
                    fc="none",
                    ec=ACCENT,
                    lw=1.5,
                    zorder=4,
                )
            )
