"""What surprise is compared with: scores and choices of frames that pixels alone give.

Frames go in as uint8 [K, height, width, 3]. A score per frame comes out, float64 [K]: the change
from the frame before to this one, 0 where there is none to compare with. Nothing is handicapped: a
score has its strong forms (without flicker, local, of second order, of compensated motion), so that
the best can be chosen on a validation split. The selectors give frame numbers for a budget; the
uniform one is `surprise.frames.uniform_frames`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Frames = UInt8[np.ndarray, "K height width 3"]
Scores = Float[np.ndarray, " K"]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


# Scores


def frame_difference(
    frames: Frames,
    *,
    order: int = 1,
    deflicker: bool = False,
    pool: str = "mean",
    cells: int = 8,
) -> Scores:
    """Absolute difference of frames: |f_t - f_t-1|, or |f_t - 2 f_t-1 + f_t-2| for `order` 2.

    Order 2 is blind to steady change. `deflicker` evens out the brightness of whole frames first.
    `pool`: mean over the frame, or the max over a grid of `cells` x `cells`, for what is small.
    """
    values = _deflickered(frames) if deflicker else frames.astype(np.float32)
    scores = np.zeros(len(frames))
    if len(frames) > order:
        change = np.abs(np.diff(values, n=order, axis=0)).mean(-1)
        scores[order:] = _pooled(change, pool, cells)
    return scores


def change_of_difference(
    frames: Frames, *, order: int = 1, deflicker: bool = False, pool: str = "mean"
) -> Scores:
    """How much the frame difference of `order` itself changes: |d_t - d_t-1|, 0 up to `order`."""
    difference = frame_difference(frames, order=order, deflicker=deflicker, pool=pool)
    return _change(difference, order)


def rgb_histogram(
    frames: Frames, *, bins: int = 8, deflicker: bool = False, smooth: int = 1
) -> Scores:
    """L1 distance of the channels' histograms (Swain & Ballard 1991), as fractions of pixels.

    SPIKE's shot-boundary baseline (arXiv 2509.23433, code) takes 8 bins and a mean over 3 frames.
    """
    if deflicker:
        frames = _deflickered(frames).round().clip(0, 255).astype(np.uint8)
    counts = _histograms(frames, bins)
    scores = np.zeros(len(frames))
    scores[1:] = np.abs(np.diff(counts, axis=0)).sum(-1)
    return smoothed(scores, smooth)


def edge_change_ratio(
    frames: Frames,
    *,
    low: float | int = 100,
    high: float | int = 200,
    radius: int = 2,
    smooth: int = 1,
) -> Scores:
    """The larger share of edges that enter or leave (Zabih, Miller & Mai 1995), within [0, 1].

    An edge pixel is new if no edge of the other frame lies within `radius` pixels. Edges are
    Canny's (1986) with thresholds `low` and `high` on |Gx| + |Gy|, as in SPIKE's baseline.
    """
    edges = _canny(frames.astype(np.float32) @ _LUMA, low, high)
    far = ~_dilated(edges, radius)
    count = edges.sum((1, 2)).clip(1)
    entering = (edges[1:] & far[:-1]).sum((1, 2)) / count[1:]
    leaving = (edges[:-1] & far[1:]).sum((1, 2)) / count[:-1]
    scores = np.zeros(len(frames))
    scores[1:] = np.maximum(entering, leaving)
    return smoothed(scores, smooth)


def optical_flow(
    frames: Frames, *, kind: str = "magnitude", deflicker: bool = True, smooth: int = 1
) -> Scores:
    """Dense optical flow from each frame to the next, by pyramidal Lucas-Kanade (Bouguet 2001).

    kind: `magnitude`, the mean length in pixels (SPIKE's baseline, there with Farneback's flow);
    `change`, |m_t - m_t-1| of it; `residual`, the mean absolute luma that the flow can't explain.
    """
    if kind not in ("magnitude", "change", "residual"):
        raise ValueError(f"kind is {kind!r}; choose from magnitude, change, residual")
    values = _deflickered(frames) if deflicker else frames.astype(np.float32)
    luma = values @ _LUMA
    flow = lucas_kanade(luma[:-1], luma[1:])
    scores = np.zeros(len(frames))
    if kind == "residual":
        scores[1:] = np.abs(_warped(luma[1:], flow) - luma[:-1]).mean((1, 2))
    else:
        scores[1:] = np.hypot(*flow).mean((1, 2))
    return smoothed(_change(scores, 1) if kind == "change" else scores, smooth)


def random_scores(count: int, *, seed: int = 0) -> Scores:
    """Scores that know nothing: uniform in [0, 1), the first 0 as everywhere."""
    scores = np.random.default_rng(seed).random(count)
    scores[:1] = 0
    return scores


def centre_scores(count: int) -> Scores:
    """Scores that know only that things tend to happen in the middle: highest there."""
    at = np.arange(count, dtype=np.float64)
    return (count - 1) / 2 - np.abs(at - (count - 1) / 2)


def smoothed(scores: Float[np.ndarray, "*rows K"], width: int) -> Float[np.ndarray, "*rows K"]:
    """The mean of the scores within an odd window, shorter at the ends; 1 leaves them alone."""
    if width < 1 or width % 2 == 0:
        raise ValueError(f"smooth is {width}; it must be odd and positive")
    total, count = _windows(scores, width // 2)
    return total / count


FORMS = ("plain", "change", "excess")


def refined(
    scores: Float[np.ndarray, "*rows K"], *, form: str = "plain", smooth: int = 1, first: int = 0
) -> Float[np.ndarray, "*rows K"]:
    """A score in another form, then smoothed; what is tuned of a baseline beside its own settings.

    form: `plain`; `change`, |s_t - s_t-1|; `excess`, s_t less the mean of its four neighbours, to
    find peaks on uneven ground. `first` is the first score that means anything; those before it
    come out as the lowest.
    """
    tail = scores[..., first:]
    if form == "change":
        tail = np.abs(np.diff(tail, axis=-1, prepend=tail[..., :1]))
    elif form == "excess":
        total, count = _windows(tail, 2)
        tail = tail - (total - tail) / np.maximum(count - 1, 1)
    elif form != "plain":
        raise ValueError(f"form is {form!r}; choose from {', '.join(FORMS)}")
    tail = smoothed(tail, smooth)
    return np.concatenate([tail.min(-1, keepdims=True)] * first + [tail], axis=-1)


def _windows(scores: Float[np.ndarray, "*rows K"], reach: int):
    """Sums over what lies within `reach` of each score, and how many there are."""
    total = np.cumsum(np.concatenate([np.zeros_like(scores[..., :1]), scores], -1), -1)
    at = np.arange(scores.shape[-1])
    first, last = (at - reach).clip(0), (at + reach + 1).clip(max=len(at))
    return total[..., last] - total[..., first], last - first


def _named(function: Callable[..., Scores], **settings) -> Callable[[Frames], Scores]:
    return lambda frames: function(frames, **settings)


SCORES: dict[str, Callable[[Frames], Scores]] = {
    f"{name}{suffix}{'' if pool == 'mean' else ' local'}": _named(
        function, order=order, deflicker=bool(suffix), pool=pool
    )
    for name, function, order in (
        ("difference", frame_difference, 1),
        ("second difference", frame_difference, 2),
        ("change of difference", change_of_difference, 1),
        ("change of second difference", change_of_difference, 2),
    )
    for suffix in ("", " deflickered")
    for pool in ("mean", "max")
} | {
    "rgb histogram": rgb_histogram,
    "rgb histogram smoothed": _named(rgb_histogram, smooth=3),
    "edge change ratio": edge_change_ratio,
    "edge change ratio smoothed": _named(edge_change_ratio, smooth=3),
    "optical flow": optical_flow,
    "optical flow smoothed": _named(optical_flow, smooth=5),
    "optical flow change": _named(optical_flow, kind="change"),
    "optical flow residual": _named(optical_flow, kind="residual"),
}
"""Every pixel baseline under the name that tables give it."""

TUNABLE: dict[str, dict[str, Callable[[Frames], Scores]]] = {
    name: {
        f"{'deflickered' if deflicker else 'raw'}, {f'cells of 1/{cells}' if cells else 'mean'}": (
            _named(
                frame_difference,
                order=order,
                deflicker=deflicker,
                pool="max" if cells else "mean",
                cells=cells or 8,
            )
        )
        for deflicker in (False, True)
        for cells in (0, 4, 8, 16)
    }
    for order, name in enumerate(("difference", "second difference"), 1)
} | {
    "rgb histogram": {
        f"{'deflickered' if deflicker else 'raw'}, {bins} bins": _named(
            rgb_histogram, bins=bins, deflicker=deflicker
        )
        for deflicker in (False, True)
        for bins in (8, 16, 32)
    },
    "edge change ratio": {
        f"edges above {high}, radius {radius}": _named(
            edge_change_ratio, low=high // 2, high=high, radius=radius
        )
        for high in (100, 200)
        for radius in (1, 2)
    },
    "optical flow": {
        f"{'deflickered' if deflicker else 'raw'}, {kind}": _named(
            optical_flow, kind=kind, deflicker=deflicker
        )
        for deflicker in (False, True)
        for kind in ("magnitude", "residual")
    },
}
"""Pixel baselines by family, each at all the settings among which a validation split may choose;
`refined` takes their forms further. `second difference` has its first score at frame 2."""


# Selectors


def random_frames(budget: int, frame_count: int, *, seed: int = 0) -> Int[np.ndarray, " chosen"]:
    """min(budget, frame_count) distinct frames drawn at random, in order."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(frame_count, min(budget, frame_count), replace=False))


def kmeans_frames(
    frames: Frames, budget: int, *, bins: int = 16, rounds: int = 50, seed: int = 0
) -> Int[np.ndarray, " chosen"]:
    """The frame nearest to each centre of k-means over RGB histograms, k = budget (Katna).

    Lloyd's algorithm from k-means++ seeds (Arthur & Vassilvitskii 2007), at most `rounds` rounds.
    In order; where clusters share their nearest frame or stay empty, the frames farthest from those
    chosen fill up, so min(budget, K) come back.
    """
    points = _histograms(frames, bins)
    budget = min(budget, len(points))
    rng = np.random.default_rng(seed)
    centres = points[[rng.integers(len(points))]]
    while len(centres) < budget:
        distance = _squared(points, centres).min(-1)
        total = distance.sum()
        weights = distance / total if total > 0 else None
        centres = np.concatenate([centres, points[[rng.choice(len(points), p=weights)]]])
    for _ in range(rounds):
        nearest = _squared(points, centres).argmin(-1)
        moved = np.stack(
            [
                points[nearest == j].mean(0) if (nearest == j).any() else centre
                for j, centre in enumerate(centres)
            ]
        )
        if np.array_equal(moved, centres):
            break
        centres = moved
    chosen = list(dict.fromkeys(_squared(points, centres).argmin(0).tolist()))
    while len(chosen) < budget:
        distance = _squared(points, points[chosen]).min(-1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return np.sort(np.array(chosen, np.int64))


def peak_frames(
    scores: Scores, budget: int, *, peaks: int = 16, radius: int = 6, spread: int = 3
) -> Int[np.ndarray, " chosen"]:
    """Frames around the peaks of a score, as SPIKE's shot-boundary baselines spend a budget.

    The best `peaks` frames that are more than `radius` apart share the budget by height (largest
    remainders); each takes its frames from itself outwards, at most `spread` to each side. Unlike
    the released code, whatever is left over goes to the best frames not yet chosen, none occurs
    twice, and numbers are those of the scored frames.
    """
    order = np.argsort(-scores, kind="stable")
    found: list[int] = []
    for frame in order.tolist():
        if len(found) < min(peaks, budget) and all(abs(frame - peak) > radius for peak in found):
            found.append(frame)
    heights = np.clip(scores[found], 0, None)
    total = heights.sum()
    exact = budget * (heights / total if total > 0 else np.full(len(found), 1 / len(found)))
    share = np.floor(exact).astype(int)
    share[np.argsort(share - exact, kind="stable")[: budget - share.sum()]] += 1
    chosen: dict[int, None] = {}
    for peak, count in zip(found, share.tolist(), strict=True):
        around = sorted(range(peak - spread, peak + spread + 1), key=lambda f: abs(f - peak))
        inside = [frame for frame in around if 0 <= frame < len(scores)]
        chosen |= dict.fromkeys(inside[:count])
    for frame in order.tolist():
        if len(chosen) >= budget:
            break
        chosen.setdefault(frame)
    return np.sort(np.array(list(chosen)[:budget], np.int64))


# Parts


def _deflickered(frames: Frames) -> Float[np.ndarray, "K height width 3"]:
    """Frames of equal brightness: each is divided by the mean of its middle half of pixels.

    The middle half is the ground as long as things cover less than a quarter of it at either end.
    """
    values = frames.astype(np.float32)
    brightness = np.sort(values.mean(-1).reshape(len(values), -1), axis=-1)
    quarter = brightness.shape[1] // 4
    middle = brightness[:, quarter : brightness.shape[1] - quarter].mean(-1).clip(1)
    return values * (middle.mean() / middle)[:, None, None, None]


def _pooled(
    change: Float[np.ndarray, "k height width"], pool: str, grid: int = 8
) -> Float[np.ndarray, " k"]:
    if pool == "mean":
        return change.mean((1, 2), dtype=np.float64)
    if pool != "max":
        raise ValueError(f"pool is {pool!r}; choose from mean, max")
    rows, columns = (
        np.linspace(0, size, min(grid, size), endpoint=False).astype(int)
        for size in change.shape[1:]
    )
    cells = np.add.reduceat(np.add.reduceat(change, rows, 1), columns, 2)
    areas = np.outer(np.diff([*rows, change.shape[1]]), np.diff([*columns, change.shape[2]]))
    return (cells / areas).max((1, 2)).astype(np.float64)


def _change(scores: Scores, first: int) -> Scores:
    """|s_t - s_t-1| from the second score on that exists, `first` being the number of the first."""
    changes = np.zeros(len(scores))
    changes[first + 1 :] = np.abs(np.diff(scores[first:]))
    return changes


def _histograms(frames: Frames, bins: int) -> Float[np.ndarray, "K channels_bins"]:
    """Shares of pixels per bin and channel: [K, 3 * bins]."""
    places = frames.reshape(len(frames), -1, 3).astype(np.int64) * bins // 256
    places += bins * np.arange(3)
    counts = [np.bincount(frame.ravel(), minlength=3 * bins) for frame in places]
    return np.stack(counts) / places.shape[1]


def _squared(
    points: Float[np.ndarray, "n width"], centres: Float[np.ndarray, "k width"]
) -> Float[np.ndarray, "n k"]:
    return ((points[:, None] - centres) ** 2).sum(-1)


_Pictures = Float[np.ndarray, "*frames height width"]


def _canny(
    luma: _Pictures, low: float | int, high: float | int
) -> Bool[np.ndarray, "*frames height width"]:
    """Canny's edges: Sobel gradients, thinned across the edge, hysteresis of two thresholds."""
    gx, gy = _sobel(luma)
    size = np.abs(gx) + np.abs(gy)
    height, width = size.shape[-2:]
    padded = _padded(size, 1, 1, mode="constant")
    # The neighbours across the edge, by the gradient's angle in steps of 45 degrees.
    angle = np.round(np.arctan2(gy, gx) / (np.pi / 4)).astype(int) % 4
    keep = np.zeros(size.shape, bool)
    for step, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead, behind = (
            padded[..., 1 + s * down :, 1 + s * right :][..., :height, :width] for s in (1, -1)
        )
        keep |= (angle == step) & (size > behind) & (size >= ahead)
    weak, edges = keep & (size > low), keep & (size > high)
    while True:
        grown = _dilated(edges, 1) & weak
        if np.array_equal(grown, edges):
            return edges
        edges = grown


def _sobel(luma: _Pictures):
    wide = _padded(luma, 1, 1)
    rows = wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]
    columns = wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]
    return rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]


def _padded(image, down: int, right: int, *, mode: str = "edge"):
    """Continued by so many pixels at either end of the last two axes."""
    alone = [(0, 0)] * (image.ndim - 2)
    return np.pad(image, [*alone, (down, down), (right, right)], mode=mode)


def _dilated(
    mask: Bool[np.ndarray, "*frames height width"], radius: int
) -> Bool[np.ndarray, "*frames height width"]:
    """True within `radius` pixels, along both axes, of where the mask is."""
    height, width = mask.shape[-2:]
    wide = _padded(mask, radius, radius, mode="constant")
    reach = range(2 * radius + 1)
    rows = np.logical_or.reduce([wide[..., k : k + height, :] for k in reach])
    return np.logical_or.reduce([rows[..., k : k + width] for k in reach])


def lucas_kanade(
    before: _Pictures, after: _Pictures, *, levels: int = 3, rounds: int = 3, window: int = 7
) -> Float[np.ndarray, "2 *frames height width"]:
    """Dense flow (x, y) in pixels with after(p + flow(p)) = before(p), from coarse to fine.

    Each level solves the 2 x 2 normal equations over a square window and warps, `rounds` times.
    Where there is no texture the ridge keeps the flow of the level above.
    """
    pyramid = [(before, after)]
    while len(pyramid) < levels and min(pyramid[-1][0].shape[-2:]) >= 4 * window:
        pyramid.append(tuple(_halved(image) for image in pyramid[-1]))
    flow = np.zeros((2, *pyramid[-1][0].shape), np.float32)
    for first, second in reversed(pyramid):
        if flow.shape[1:] != first.shape:
            flow = 2 * _doubled(flow, first.shape[-2:])
        gx, gy = (part / 8 for part in _sobel(first))
        xx, xy, yy = (_box(part, window) for part in (gx * gx, gx * gy, gy * gy))
        xx, yy = xx + _RIDGE, yy + _RIDGE
        determinant = xx * yy - xy * xy
        for _ in range(rounds):
            error = first - _warped(second, flow)
            bx, by = _box(gx * error, window), _box(gy * error, window)
            step = np.stack([yy * bx - xy * by, xx * by - xy * bx]) / determinant
            flow = flow + np.clip(step, -2, 2)
    return flow


_RIDGE = 4.0  # grey levels squared: sensor noise alone moves nothing


def _warped(image: _Pictures, flow: Float[np.ndarray, "2 *frames height width"]) -> _Pictures:
    """image(p + flow(p)), bilinear, the border continued."""
    height, width = image.shape[-2:]
    x = (np.arange(width, dtype=np.float32) + flow[0]).clip(0, width - 1)
    y = (np.arange(height, dtype=np.float32)[:, None] + flow[1]).clip(0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    right, down = x - left, y - top
    flat = image.reshape(*image.shape[:-2], height * width)
    corner = (top * width + left).reshape(flat.shape)
    one, two, three, four = (
        np.take_along_axis(flat, corner + step, -1).reshape(image.shape)
        for step in (0, 1, width, width + 1)
    )
    above = one * (1 - right) + two * right
    below = three * (1 - right) + four * right
    return above * (1 - down) + below * down


def _box(image: _Pictures, size: int) -> _Pictures:
    """Mean over a square window, the border continued."""
    reach = size // 2
    total = np.cumsum(_padded(image, reach + 1, 0), -2, dtype=np.float64)
    rows = (total[..., size:-1, :] - total[..., : -size - 1, :]) / size
    total = np.cumsum(_padded(rows, 0, reach + 1), -1)
    return ((total[..., size:-1] - total[..., : -size - 1]) / size).astype(np.float32)


def _halved(image: _Pictures) -> Float[np.ndarray, "*frames half half_width"]:
    even = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
    rows = even[..., ::2, :] + even[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def _doubled(part: Float[np.ndarray, "*frames half half_width"], shape: tuple[int, int]):
    """A field of the coarser level at the size of the finer one."""
    big = part.repeat(2, -2).repeat(2, -1)
    down, right = (size - have for size, have in zip(shape, big.shape[-2:], strict=True))
    alone = [(0, 0)] * (big.ndim - 2)
    return np.pad(big, [*alone, (0, down), (0, right)], mode="edge")
