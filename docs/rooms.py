"""The picture of the package's rooms, drawn from the imports in its code.

    python -m docs.rooms

It writes `docs/images/rooms.svg`, and prints the rooms with their lines and imports. The same imports give the same
bytes on every machine, so a test can tell whether the picture is up to date. Lines of code are printed only: in the
picture they would change with each commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from tests.rooms import GROUPS, Room, read_rooms

PICTURE = Path(__file__).with_name("images") / "rooms.svg"

Arrow = tuple[str, ...]
"""From a room to one that it imports, by a waypoint in each row between them, whose name has spaces."""
Point = tuple[float, float]

_BOX, _HEIGHT, _ROW = 120, 34, 72  # width and height of a box, distance of two rows
_GAP, _LANE, _PORT = 30, 34, 18  # between two boxes, for an arrow that passes a row, between two arrows at a box
_MARGIN, _UPRIGHT = 16, 18  # around the picture; how far arrows leave and meet boxes upright
_SWEEPS = 200

_STYLE = """
  text { font: 15px sans-serif; text-anchor: middle; fill: #1b2a3a; }
  rect { fill: #ffffff; }
  .room { fill: #e6eef8; stroke: #4a6fa5; }
  path { fill: none; stroke: #66727f; stroke-width: 1.5; }
  marker path { fill: #66727f; stroke: none; }
"""
_HEAD = (
    '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 1L10 5L0 9z"/></marker>'
)


def without_implied(imports: Mapping[str, frozenset[str]]) -> dict[str, set[str]]:
    """What each room imports, but for rooms that another of its imports leads to."""

    def reached(room: str) -> frozenset[str]:
        return imports[room].union(*map(reached, imports[room]))

    return {room: set(others).difference(*map(reached, others)) for room, others in imports.items()}


def arrows_of(imports: Mapping[str, frozenset[str]], row_of: Mapping[str, int]) -> list[Arrow]:
    """The arrows to draw, in alphabetical order: sets have another order in each process."""
    drawn = sorted((room, other) for room, others in without_implied(imports).items() for other in others)
    between = {pair: range(row_of[pair[0]] - 1, row_of[pair[1]], -1) for pair in drawn}
    return [(room, *(f"{room} {other} {row}" for row in between[room, other]), other) for room, other in drawn]


def places_of(groups: Sequence[Sequence[str]], arrows: Iterable[Arrow]) -> dict[str, Point]:
    """Middles of rooms and waypoints: each near to what it is tied to, as far as its row has room."""
    rows = [list(group) for group in groups]
    tied: dict[str, list[str]] = {room: [] for row in rows for room in row}
    for arrow in arrows:
        (row,) = (number for number, names in enumerate(groups) if arrow[0] in names)
        for number, point in enumerate(arrow[1:-1], start=1):
            rows[row - number].append(point)
            tied[point] = []
        for one, other in pairwise(arrow):
            tied[one].append(other)
            tied[other].append(one)
    x = settled(rows, tied)
    left = min(x.values()) - _BOX / 2 - _MARGIN
    top = _MARGIN + _HEIGHT / 2
    return {node: (x[node] - left, top + _ROW * number) for number, row in enumerate(rows) for node in row}


def settled(rows: Sequence[list[str]], tied: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """How far to the right nodes are, once each has moved towards those that it is tied to; rows are sorted anew."""
    x = {node: float(_BOX * place) for row in rows for place, node in enumerate(row)}
    for _ in range(_SWEEPS):
        for row in rows:
            wanted = {node: fmean([x[other] for other in tied[node]] or [x[node]]) for node in row}
            row.sort(key=wanted.__getitem__)
            x |= zip(row, spread([wanted[node] for node in row], [width_of(node) for node in row]), strict=True)
    return x


def width_of(node: str) -> int:
    """How much of a row a room or a waypoint takes."""
    return _LANE if " " in node else _BOX + _GAP


def spread(wanted: Sequence[float], widths: Sequence[int]) -> list[float]:
    """Places in the order of those wanted, with room between them, and with the same mean."""
    places: list[float] = []
    for number, place in enumerate(wanted):
        least = places[-1] + (widths[number - 1] + widths[number]) / 2 if places else place
        places.append(max(place, least))
    excess = fmean(places) - fmean(wanted)
    return [place - excess for place in places]


def ports(arrows: Iterable[Arrow], x: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """Where an arrow touches a room, beside its middle: by the room and the next point of the arrow."""
    ends = [end for arrow in arrows for end in ((arrow[0], arrow[1], "above"), (arrow[-1], arrow[-2], "below"))]
    shifts: dict[tuple[str, str], float] = {}
    for room, _, side in ends:
        points = sorted((point for one, point, its_side in ends if (one, its_side) == (room, side)), key=x.__getitem__)
        shifts |= {(room, point): _PORT * (place - (len(points) - 1) / 2) for place, point in enumerate(points)}
    return shifts


def middle(one: Point, other: Point) -> Point:
    """The point half-way between two."""
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2


def curve(points: Sequence[Point]) -> str:
    """A smooth line from the top of a box to the bottom of another, upright at both and in each row between."""
    (x, y), *waypoints, (end_x, end_y) = points
    start, end = (x, y - _HEIGHT / 2), (end_x, end_y + _HEIGHT / 2)
    passages = [(x, y + side * _HEIGHT / 2) for x, y in waypoints for side in (1, -1)]
    corners = [(x, start[1] - _UPRIGHT), *passages, (end_x, end[1] + _UPRIGHT)]
    bends = [f"Q{shown(one)} {shown(middle(one, other))}" for one, other in pairwise(corners)]
    return f"M{shown(start)}{''.join(bends)}Q{shown(corners[-1])} {shown(end)}"


def shown(point: Point) -> str:
    """A point in whole pixels."""
    return f"{point[0]:.0f} {point[1]:.0f}"


def paths(arrows: Iterable[Arrow], places: Mapping[str, Point]) -> Iterator[str]:
    """All arrows."""
    shifts = ports(arrows, {node: x for node, (x, _) in places.items()})
    for arrow in arrows:
        points = [places[node] for node in arrow]
        for end, neighbour in ((0, 1), (-1, -2)):
            x, y = points[end]
            points[end] = (x + shifts[arrow[end], arrow[neighbour]], y)
        yield f'<path d="{curve(points)}" marker-end="url(#head)"/>'


def box(room: Room, place: Point) -> str:
    """A box with its name; all that a room imports is in its title, which a browser shows under the mouse."""
    x, y = place
    imports = ", ".join(sorted(room.imports)) or "no other room"
    return (
        f'<g><title>{room.name} imports {imports}</title><rect class="room" x="{x - _BOX / 2:.0f}" '
        f'y="{y - _HEIGHT / 2:.0f}" width="{_BOX}" height="{_HEIGHT}" rx="6"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}">{room.label}</text></g>'
    )


def picture(rooms: Mapping[str, Room], groups: Sequence[Sequence[str]] = GROUPS) -> str:
    """The SVG: a row for each group, and arrows upwards."""
    imports = {name: room.imports for name, room in rooms.items()}
    arrows = arrows_of(imports, {room: row for row, group in enumerate(groups) for room in group})
    places = places_of(groups, arrows)
    width, height = (max(place[axis] for place in places.values()) for axis in (0, 1))
    size = f'width="{width + _BOX / 2 + _MARGIN:.0f}" height="{height + _HEIGHT / 2 + _MARGIN:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<style>{_STYLE}</style>",
        _HEAD,
        f"<rect {size}/>",
        *paths(arrows, places),
        *(box(room, places[name]) for name, room in rooms.items()),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw the picture, and print a table."""
    rooms = read_rooms()
    PICTURE.write_text(picture(rooms), encoding="utf-8", newline="\n")
    for name in sum(GROUPS, ()):
        print(f"{name:12}{rooms[name].lines:6} lines, imports {', '.join(sorted(rooms[name].imports)) or 'none'}")
    arrows = sum(len(room.imports) for room in rooms.values())
    print(f"{len(rooms)} rooms, {arrows} arrows, {sum(room.lines for room in rooms.values())} lines")


if __name__ == "__main__":
    main()
