"""Pictures for a page, as SVG in text: a histogram, and a grid of cells that see each other or do not.

Colours that must suit a light and a dark page are classes, which the page's style sheet says; those of cells
suit both.
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 230, 90  # of a histogram's bars
_LEFT, _TOP = 40, 16  # room for numbers
_LONGEST = 300  # side of a grid
_MOST_BARS = 26


def bins(values: Sequence[int] | np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """How many of `values`, whole numbers from 0 to `most`, are in each bin, and the width of one.

    Widths are 1, 2, 5, 10, 20, ...; bin i holds i * width to (i + 1) * width - 1.

    >>> counts, width = bins([0, 7, 19, 20], most=100)
    >>> counts.tolist()[:5], width
    ([1, 1, 0, 1, 1], 5)
    """
    widths = (base * 10**power for power in range(12) for base in (1, 2, 5))
    width = next(width for width in widths if most // width < _MOST_BARS)
    return np.bincount(np.asarray(values) // width, minlength=most // width + 1), width


def histogram(values: Sequence[int] | np.ndarray, most: int, of: str, unit: str = "") -> str:
    """Bars of how often whole numbers from 0 to `most` come; pointing at a bar shows its number.

    of: what is counted, such as "examples".
    """
    counts, width = bins(values, most)
    step, top = _WIDTH / len(counts), max(counts.max(), 1)
    foot = _TOP + _HEIGHT
    parts = [
        f'<line class="axis" x1="{_LEFT}" y1="{foot}" x2="{_LEFT + _WIDTH}" y2="{foot}"/>',
        f'<line class="grid" x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT + _WIDTH}" y2="{_TOP}"/>',
        _text(_LEFT - 5, _TOP + 4, f"{top:,}", "end"),
        _text(_LEFT - 5, foot + 1, "0", "end"),
    ]
    for number, count in enumerate(counts.tolist()):
        if count:
            first, last = number * width, min(number * width + width - 1, most)
            height = max(count / top * _HEIGHT, 1)
            said = f"{first:,}{unit}" if first == last else f"{first:,} to {last:,}{unit}"
            parts.append(
                f'<rect class="bar" x="{_LEFT + number * step + 0.5:.1f}" y="{foot - height:.1f}" '
                f'width="{step - 1:.1f}" height="{height:.1f}">'
                f"<title>{said}: {count:,} {escape(of)}</title></rect>"
            )
    labelled = range(0, len(counts), max(-(-len(counts) // 5), 1))
    parts += [
        _text(_LEFT + (number + 0.5) * step, foot + 14, f"{number * width:,}{unit}", "middle")
        for number in labelled
    ]
    return _svg(_LEFT + _WIDTH + 12, foot + 20, parts)


# Of cells by number: see nothing, see padding only, and three for segments that follow each other.
_PALETTE = ((0, 0, 0, 0), (148, 155, 166, 90), (62, 116, 200, 255), (214, 122, 40, 255), (52, 150, 98, 255))


def grid(seen: np.ndarray, query_segments: np.ndarray, key_segments: np.ndarray, most: int = 512) -> str:
    """A picture of who sees whom: queries down, keys across; a colour a segment, lines between segments.

    Args:
        seen: bool [Q, K].
        query_segments, key_segments: int [Q] and [K], from 1; 0 on padding.
        most: cells drawn along a side; of more positions every second is drawn, or every third, ...
    """
    stride = every(seen.shape, most)
    colours = np.where(query_segments > 0, 2 + (query_segments - 1) % 3, 1)
    cells = np.where(seen, colours[:, None], 0)[::stride, ::stride].astype(np.uint8)
    scale = _LONGEST / max(seen.shape)
    height, width = (side * scale for side in seen.shape)
    parts = [
        f'<rect class="sheet" x="{_LEFT}" y="{_TOP}" width="{width:.1f}" height="{height:.1f}"/>',
        f'<image x="{_LEFT}" y="{_TOP}" width="{width:.1f}" height="{height:.1f}" '
        f'preserveAspectRatio="none" href="{png(cells, _PALETTE)}"/>',
    ]
    last = -np.inf
    for place in _starts(key_segments):
        x = _LEFT + place * scale
        parts.append(f'<line class="cut" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + height:.1f}"/>')
        if x > last + 26:
            parts.append(_text(x, _TOP - 4, f"{place:,}", "middle"))
            last = x
    last = -np.inf
    for place in _starts(query_segments):
        y = _TOP + place * scale
        parts.append(f'<line class="cut" x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + width:.1f}" y2="{y:.1f}"/>')
        if y > last + 11:
            parts.append(_text(_LEFT - 5, y + 4, f"{place:,}", "end"))
            last = y
    return _svg(_LEFT + width + 16, _TOP + height + 6, parts)


def every(shape: tuple[int, ...], most: int = 512) -> int:
    """Which positions a grid of this shape draws: each, or each second, ..."""
    return -(-max(shape) // most)


def _starts(segments: np.ndarray) -> list[int]:
    """Where segments and padding begin, and where the last ends."""
    return [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(segments)]


def png(cells: np.ndarray, palette: Sequence[tuple[int, int, int, int]]) -> str:
    """An image as a data URI: a pixel for each of `cells`, uint8 [height, width], of that colour (RGBA)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = cells.shape
    lines = np.pad(cells, ((0, 0), (1, 0))).tobytes()  # a line begins with the number of its filter, none
    image = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes(part for colour in palette for part in colour[:3]))
        + chunk(b"tRNS", bytes(colour[3] for colour in palette))
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">{"".join(parts)}</svg>'
    )
