"""Charts as inline SVG: drawn for a phone's width, with the finding in words and the numbers behind them.

A chart names no colour: it has classes, which the page's style sheet colours for light, dark and paper. Series differ
in form and dash as well, so nothing is told by colour alone. All text is escaped here, whatever a column is called.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

WIDTH = 320
"""Of every chart, in its own units. A phone shows it a little smaller than that, in CSS pixels."""

TEXT = 12
LEFT, RIGHT = 2, 318
MOST_MARKS = 12
MOST_BARS = 24
MOST_LINES = 6
MOST_STEPS = 25
"""Points of a line that its table lists."""

FORMS = ("circle", "square", "diamond", "triangle", "plus", "cross")


@dataclass(frozen=True)
class Chart:
    """A picture, what it shows (``caption``), what it says (``finding``, its alt text), and its numbers."""

    svg: Markup
    caption: str
    finding: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Mark:
    """A measured value with its interval; chance : what guessing achieves. All None where unknown, but the value."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Line:
    """y : (n,) over x : (n,), in rising order; NaN where there is none. twin : another side of the line before it
    ring : no line, but a mark around each of its points, above all lines"""

    label: str
    x: NDArray[Any]
    y: NDArray[Any]
    twin: bool = False
    ring: bool = False


@dataclass(frozen=True)
class Point:
    """A place in the plane; own : the one that the page is about, of which the intervals are drawn."""

    label: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    own: bool = False


def percent(value: float) -> str:
    """A share in words: as many digits as tell it from 0 and from 1."""
    share = 100 * value
    if 0 < share < 0.1 or 99.95 <= share < 100:
        return f"{share:.3g}\u00a0%"
    return f"{share:.0f}\u00a0%" if share in (0, 100) else f"{share:.1f}\u00a0%"


def exact(value: float) -> str:
    """A share that somebody chose, such as a false-accept rate."""
    return f"{100 * value:g}\u00a0%"


def plain(value: float) -> str:
    """A number with at most four significant digits."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def intervals(
    key: str, caption: str, finding: str, marks: Sequence[Mark], rates: bool = True, reference: str = "chance"
) -> Chart:
    """Dots with their 95 % intervals, and chance as a bar across. At most ``MOST_MARKS`` are drawn, the first ones.

    key : unique in the page; rates : shares of 1, written as percentages; reference : what the bar is, where not chance
    """
    drawn, word = marks[:MOST_MARKS], percent if rates else plain
    top = _upper([v for m in drawn for v in (m.value, m.high, m.chance) if v is not None], rates)
    guessed = any(m.chance is not None for m in drawn)
    head, row = 26, 36
    bottom = head + row * len(drawn) - 2
    scale = _Scale(0, top, LEFT + 4, RIGHT - 8)
    parts = [_grid_x(scale, head, bottom, exact if rates else plain)]
    legend = [_form("circle", LEFT + 6, 9, "s1"), _text(LEFT + 16, 13, "measured, 95 % interval", "soft")]
    if guessed:
        legend += [_tag("line", x1=LEFT + 172, x2=LEFT + 172, y1=3, y2=16, class_="chance")]
        legend += [_text(LEFT + 180, 13, _fit(reference, RIGHT - LEFT - 186), "soft")]
    parts.append(Markup("").join(legend))
    for i, mark in enumerate(drawn):
        y = head + row * i
        told = word(mark.value)
        room = RIGHT - LEFT - 10 - _width(told)
        inside = [
            Markup("<title>{}</title>").format(f"{mark.label}: {told}"),
            _text(LEFT, y + 12, _fit(mark.label, room), "label"),
            _text(RIGHT, y + 12, told, "value end"),
            _tag("line", x1=scale.low_at, x2=scale.high_at, y1=y + 23, y2=y + 23, class_="track"),
        ]
        if mark.low is not None and mark.high is not None:
            a, b = scale(mark.low), scale(mark.high)
            inside.append(_tag("line", x1=a, x2=b, y1=y + 23, y2=y + 23, class_="whisker s1"))
            inside += [_tag("line", x1=x, x2=x, y1=y + 19, y2=y + 27, class_="whisker s1") for x in (a, b)]
        if mark.chance is not None:
            x = scale(mark.chance)
            inside.append(_tag("line", x1=x, x2=x, y1=y + 16, y2=y + 30, class_="chance"))
        inside.append(_form("circle", scale(mark.value), y + 23, "s1"))
        parts.append(_group(inside, "mark"))
    rows = [
        (m.label, word(m.value), "–" if m.low is None or m.high is None else f"{word(m.low)} to {word(m.high)}")
        + ("–" if m.chance is None else word(m.chance),) * guessed
        for m in marks
    ]
    columns = ("", "measured", "95 % interval", *([reference] if guessed else []))
    more = f"; {len(marks) - len(drawn)} more in the table" if len(marks) > len(drawn) else ""
    return Chart(_svg(key, caption, finding, bottom + 22, parts), caption + more, finding, columns, tuple(rows))


def histogram(key: str, caption: str, finding: str, values: NDArray[Any], limit: float | None, unit: str) -> Chart:
    """How many of ``values`` : (n,) int > 0 there are of each size; limit : the size asked for, drawn as a line."""
    edges, tailed = _bins(values)
    counts = np.histogram(np.minimum(values, edges[-1] - 1), bins=edges - 0.5)[0]
    labels = [_span(int(a), int(b) - 1) for a, b in pairwise(edges)]
    if tailed:
        labels[-1] = f"{int(edges[-2])} or more"
    head, foot = 26, 178
    most = _upper([float(counts.max())], False)
    left, up = LEFT + 8 + _width(plain(most)), _Scale(0, most, foot, head)
    step = (RIGHT - left) / len(counts)
    parts = [_grid_y(up, left, RIGHT, plain, whole=True), _text(LEFT, 12, unit, "soft")]
    parts.append(_text((left + RIGHT) / 2, foot + 32, "distinct people in the class", "soft mid"))
    shown = -1e9
    for i, count in enumerate(counts):
        x = left + i * step
        short = limit is not None and edges[i] < limit
        bar = [Markup("<title>{}</title>").format(f"{labels[i]}: {count}")]
        gap = min(3.0, step / 5)
        at = up(float(count))
        height = max(foot - at, 1.5 if count else 0)
        bar.append(
            _tag(
                "rect",
                x=x + gap / 2,
                y=foot - height,
                width=step - gap,
                height=height,
                class_="bar s2" if short else "bar s1",
            )
        )
        parts.append(_group(bar, "mark"))
        word = f"{int(edges[i])}{'+' if tailed and i == len(counts) - 1 else ''}"
        middle = x + step / 2
        if middle - shown > _width(word) + 8 and middle + _width(word) / 2 <= WIDTH:
            parts.append(_text(middle, foot + 16, word, "soft mid"))
            shown = middle
    if limit is not None and (place := int(np.searchsorted(edges[:-1], limit))) < len(counts):
        x = left + place * step
        word = f"asked: {plain(limit)}"
        near = x + _width(word) + 6 < RIGHT
        parts.append(_tag("line", x1=x, x2=x, y1=head - 12, y2=foot, class_="limit"))
        parts.append(_text(x + 5 if near else x - 5, head - 4, word, "limit-text" if near else "limit-text end"))
    rows = [(label, plain(int(count))) for label, count in zip(labels, counts, strict=True) if count]
    return Chart(
        _svg(key, caption, finding, foot + 40, parts), caption, finding, ("people in the class", unit), tuple(rows)
    )


def lines(
    key: str,
    caption: str,
    finding: str,
    drawn: Sequence[Line],
    axes: tuple[str, str],
    limit: tuple[str, float] | None = None,
    rates: bool = True,
    twins: str = "",
    most: int = MOST_LINES,
) -> Chart:
    """Lines over one axis, of which at most ``most`` are drawn with their twins, the first.

    limit : a level with its name; twins : what twins are, which are drawn lightly in the form of the line before them
    """
    word = percent if rates else plain
    rings = [line for line in drawn if line.ring]
    drawn = [line for line in drawn if not line.ring]
    series = np.cumsum([not line.twin for line in drawn]) - 1
    some = [(line, int(at)) for line, at in zip(drawn, series, strict=True) if at < most]
    shown = [*(line for line, _ in some), *rings]
    across = np.concatenate([line.x for line in shown]).astype(float)
    up = np.concatenate([line.y for line in shown]).astype(float)
    levels = [float(v) for v in up[np.isfinite(up)]] + ([limit[1]] if limit else [])
    top = _upper(levels, rates)
    told = [(line.label, _form_of(at), f"{_colour(at)} {_dash(at)}", _colour(at)) for line, at in some if not line.twin]
    told += [(line.label, "ring", "", "") for line in rings]
    told += [(f"light: {twins}", "", "s6 light", "")] if twins and any(line.twin for line, _ in some) else []
    told += [(f"{limit[0]}: {word(limit[1])}", "", "limit", "")] if limit else []
    head = 16 * len(told) + 28
    foot = head + 162
    left = LEFT + 6 + max(_width(exact(v) if rates else plain(v)) for v in _ticks(0, top))
    sx = _Scale(float(across.min()), float(across.max()), left + 4, RIGHT - 8)
    sy = _Scale(0, top, foot, head)
    parts = [_grid_y(sy, left, RIGHT, exact if rates else plain), _text(LEFT, head - 14, axes[1], "soft")]
    for i, (label, form, stroke, dot) in enumerate(told):
        y = 16 * i + 8
        kind = stroke if stroke == "limit" else f"line {stroke}"
        parts += [_tag("line", x1=LEFT, x2=LEFT + 26, y1=y, y2=y, class_=kind)] if stroke else []
        parts += [_form(form, LEFT + 13, y, dot)] if form else []
        parts.append(_text(LEFT + 34, y + 4, _fit(label, RIGHT - LEFT - 34), "label"))
    ends = [float(across.min()), float(across.max())]
    parts.append(_text(sx(ends[0]), foot + 16, plain(ends[0]), "soft"))
    parts += [_text(sx(ends[1]), foot + 16, plain(ends[1]), "soft end")] if ends[1] > ends[0] else []
    parts.append(_text((left + RIGHT) / 2, foot + 32, axes[0], "soft mid"))
    if limit:
        parts.append(_tag("line", x1=left, x2=RIGHT, y1=sy(limit[1]), y2=sy(limit[1]), class_="limit"))
    for line, number in some:
        seen = np.isfinite(line.y.astype(float))
        at = [(sx(float(a)), sy(float(b))) for a, b in zip(line.x[seen], line.y[seen], strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
        stroke = f"line {_colour(number)} {'light' if line.twin else _dash(number)}"
        inside = [Markup("<title>{}</title>").format(line.label), _tag("polyline", points=path, class_=stroke)]
        marked = sorted({round(j) for j in np.linspace(0, len(at) - 1, min(6, len(at)))})
        inside += [_form(_form_of(number), at[j][0], at[j][1], _colour(number)) for j in marked if not line.twin]
        parts.append(_group(inside, "mark"))
    for line in rings:
        around = [_form("ring", sx(float(a)), sy(float(b)), "") for a, b in zip(line.x, line.y, strict=True)]
        parts.append(_group([Markup("<title>{}</title>").format(line.label), *around], "mark"))
    steps = np.unique(across)
    steps = steps[np.unique(np.round(np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps)))).astype(int))]
    rows = []
    for x in steps:
        cells = [plain(float(x))]
        for line in drawn:
            found = np.flatnonzero(line.x == x)
            known = len(found) and np.isfinite(float(line.y[found[-1]]))
            cells.append(word(float(line.y[found[-1]])) if known else "–")
        rows.append(tuple(cells))
    more = f"; {len(drawn) - len(some)} more in the table" if len(drawn) > len(some) else ""
    columns = (axes[0], *(line.label for line in drawn))
    return Chart(_svg(key, caption, finding, foot + 40, parts), caption + more, finding, columns, tuple(rows))


def plane(key: str, caption: str, finding: str, points: Sequence[Point], axes: tuple[str, str]) -> Chart:
    """Points in the unit square; lower on the second axis is better, farther along the first too."""
    head, foot, left = 26, 250, LEFT + 44
    sx, sy = _Scale(0, 1, left + 6, RIGHT - 10), _Scale(0, 1, foot - 6, head + 6)
    parts = [_grid_y(sy, left, RIGHT, exact), _grid_x(sx, head, foot, plain), _text(LEFT, 13, axes[1], "soft")]
    parts.append(_text((left + RIGHT) / 2, foot + 36, axes[0], "soft mid"))
    parts.append(_text(RIGHT - 4, foot - 8, "private and useful ↘", "soft end"))
    taken = [(RIGHT - 4 - _width("private and useful ↘"), foot - 20.0, float(RIGHT), float(foot))]
    at = [(sx(p.x), sy(p.y)) for p in points]
    taken += [(x - 6, y - 6, x + 6, y + 6) for x, y in at]
    for point, (x, y) in zip(points, at, strict=True):
        if point.x_interval:
            taken.append((sx(point.x_interval[0]), y - 3, sx(point.x_interval[1]), y + 3))
        if point.y_interval:
            taken.append((x - 3, sy(point.y_interval[1]), x + 3, sy(point.y_interval[0])))
    for point, (x, y) in sorted(zip(points, at, strict=True), key=lambda pair: not pair[0].own):
        series = "s1" if point.own else "s2"
        inside = [Markup("<title>{}</title>").format(f"{point.label}: {plain(point.x)}, {percent(point.y)}")]
        if point.x_interval:
            a, b = map(sx, point.x_interval)
            inside.append(_tag("line", x1=a, x2=b, y1=y, y2=y, class_=f"whisker {series}"))
        if point.y_interval:
            a, b = map(sy, point.y_interval)
            inside.append(_tag("line", x1=x, x2=x, y1=a, y2=b, class_=f"whisker {series}"))
        inside.append(_form("circle" if point.own else "diamond", x, y, series))
        for word in dict.fromkeys(_fit(point.label, most) for most in (150, 90, 50)):
            place = _room(x, y, _width(word), taken, (left, head, RIGHT, foot))
            if place is not None:
                taken.append((place[0], place[1] - TEXT + 1, place[0] + _width(word), place[1] + 3))
                inside.append(_text(place[0], place[1], word, "label strong" if point.own else "label"))
                break
        parts.append(_group(inside, "mark"))
    rows = [
        (p.label, plain(p.x), _pair(p.x_interval, plain), percent(p.y), _pair(p.y_interval, percent)) for p in points
    ]
    columns = ("", axes[0], "95 % interval", axes[1], "95 % interval")
    return Chart(_svg(key, caption, finding, foot + 46, parts), caption, finding, columns, tuple(rows))


@dataclass(frozen=True)
class _Scale:
    """From ``low`` … ``high`` to pixels; a range of nothing lies in the middle."""

    low: float
    high: float
    low_at: float
    high_at: float

    def __call__(self, value: float) -> float:
        if self.high <= self.low:
            return (self.low_at + self.high_at) / 2
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return self.low_at + share * (self.high_at - self.low_at)


def _upper(values: Sequence[float], rates: bool) -> float:
    """The end of an axis from 0 that holds all values: 1, 2 or 5 times a power of ten, and at most 1 for shares."""
    most = max([v for v in values if math.isfinite(v)], default=0.0)
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    end = next(step * power for step in (1, 2, 5, 10) if step * power >= most * (1 - 1e-9))
    return min(end, 1.0) if rates and most <= 1 else end


def _ticks(low: float, high: float) -> list[float]:
    """Even steps of an axis that ends at 1, 2 or 5 times a power of ten."""
    many = 4 if round(high / 10.0 ** math.floor(math.log10(high))) in (1, 2) else 5
    return [low + (high - low) * i / many for i in range(many + 1)]


def _bins(values: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """Edges of bins of whole numbers, and whether the last stands for all larger ones."""
    low, high = int(values.min()), int(values.max())
    if high - low < MOST_BARS:
        return np.arange(low, high + 2), False
    most = max(int(np.quantile(values, 0.98)), low + MOST_BARS - 2)
    step = math.ceil((most - low + 1) / (MOST_BARS - 1))
    edges = low + step * np.arange(MOST_BARS)
    tailed = high >= edges[-1]
    return (np.append(edges, edges[-1] + step), True) if tailed else (edges, False)


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _pair(interval: tuple[float, float] | None, word: Any) -> str:
    return "–" if interval is None else f"{word(interval[0])} to {word(interval[1])}"


def _width(text: str) -> float:
    """About how wide a text is, in units of the chart."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return TEXT * (0.57 * (len(text) - wide) + 1.05 * wide)


def _fit(text: str, room: float) -> str:
    """The text, cut to that width. Line breaks become spaces."""
    text = " ".join(text.split())
    if _width(text) <= room:
        return text
    while text and _width(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


def _room(
    x: float, y: float, width: float, taken: Sequence[tuple[float, ...]], frame: tuple[float, ...]
) -> tuple[float, float] | None:
    """Where a label of a point is free of everything: right, left, above, below; None where nowhere."""
    near = [(9.0, 4.0), (-9 - width, 4.0)]
    near += [(-width / 2, -9.0), (-width / 2, 18.0), (7.0, -7.0), (7.0, 16.0), (-7 - width, -7.0), (-7 - width, 16.0)]
    for dx, dy in near:
        box = (x + dx, y + dy - TEXT + 1, x + dx + width, y + dy + 3)
        inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
        if inside and all(box[2] <= t[0] or box[0] >= t[2] or box[3] <= t[1] or box[1] >= t[3] for t in taken):
            return x + dx, y + dy
    return None


def _grid_x(scale: _Scale, top: float, bottom: float, word: Any) -> Markup:
    ticks = _ticks(scale.low, scale.high)
    out = []
    for i, tick in enumerate(ticks):
        x = scale(tick)
        out.append(_tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        place = ("soft", LEFT if x < 20 else x - 4) if i == 0 else ("soft mid", x)
        if i == len(ticks) - 1:
            place = ("soft end", RIGHT)
        out.append(_text(place[1], bottom + 16, word(tick), place[0]))
    return Markup("").join(out)


def _grid_y(scale: _Scale, left: float, right: float, word: Any, whole: bool = False) -> Markup:
    out = []
    for tick in _ticks(scale.low, scale.high):
        if whole and not float(tick).is_integer():
            continue
        y = scale(tick)
        out.append(_tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        out.append(_text(left - 5, y + 4, word(tick), "soft end"))
    return Markup("").join(out)


def _colour(series: int) -> str:
    return f"s{series % len(FORMS) + 1}"


def _dash(series: int) -> str:
    return f"d{(series + series // len(FORMS)) % len(FORMS) + 1}"


def _form_of(series: int) -> str:
    """Where colours come around again, forms and dashes are others."""
    return FORMS[(series + series // len(FORMS)) % len(FORMS)]


def _form(form: str, x: float, y: float, series: str) -> Markup:
    """A mark around (x, y), about 10 units wide."""
    if form == "ring":
        return _tag("circle", cx=x, cy=y, r=8, class_="ring")
    if form == "circle":
        return _tag("circle", cx=x, cy=y, r=4.5, class_=f"dot {series}")
    if form == "square":
        return _tag("rect", x=x - 4, y=y - 4, width=8, height=8, class_=f"dot {series}")
    ways = {
        "diamond": "M{0} {1}l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
        "triangle": "M{0} {1}l5 9l-10 0z",
        "plus": "M{0} {1}l0 11m-5.5 -5.5l11 0",
        "cross": "M{0} {1}m-4.5 1l9 9m0 -9l-9 9",
    }
    path = ways[form].format(_number(x), _number(y - 5.5))
    return _tag("path", d=path, class_=f"{'stroke' if form in ('plus', 'cross') else 'dot'} {series}")


def _svg(key: str, title: str, finding: str, height: float, parts: Sequence[Markup]) -> Markup:
    head = Markup(
        '<svg class="chart" role="img" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
        'aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{title}</title>'
        '<desc id="{key}-desc">{finding}</desc>'
    ).format(w=WIDTH, h=_number(height), key=key, title=title, finding=finding)
    return Markup("").join([head, *parts, Markup("</svg>")])


def _group(parts: Sequence[Markup], name: str) -> Markup:
    return Markup('<g class="{}">{}</g>').format(name, Markup("").join(parts))


def _text(x: float, y: float, text: str, name: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(_number(x), _number(y), name, text)


def _tag(name: str, **attributes: float | str) -> Markup:
    written = Markup(" ").join(
        Markup('{}="{}"').format(key.rstrip("_"), _number(v) if isinstance(v, int | float | np.number) else v)
        for key, v in attributes.items()
    )
    return Markup("<{} {}/>").format(Markup(name), written)


def _number(value: float) -> str:
    return f"{float(value):.1f}".rstrip("0").rstrip(".")
