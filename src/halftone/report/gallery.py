"""Which pictures the page shows, and those as data URIs within a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from halftone.errors import InputError
from halftone.qdiffbench.image_files import read_image
from halftone.qdiffbench.results import Results
from halftone.report.images import ByteImage, contact_sheet, data_uri, difference, reduced
from halftone.report.page_input import Picture
from halftone.report.standing import Standing, set_names

SMALL_SIDE = 256  # pixels; up to here a picture is shown as it is, losslessly
SHOWN_SIDE = 512  # a larger picture is reduced to this
GAIN = 8  # amplification of the difference pictures
WORST = 10  # worst pairs of a candidate on a set
OPEN_PAIRS, OPEN_WORST = 12, (6, 3)  # shown at once, in order and worst (of one candidate and set; of several)
WORST_SHARE = 0.6  # of the budget, at most
SHEET_PICTURES, SHEET_COLUMNS, SHEET_SIDE = 12, 4, 1024
BUDGET_BYTES = 12_000_000  # of data URIs; what no longer fits is counted and left in its files


@dataclass(frozen=True)
class PairView:
    """A pair with its images as data URIs; ``difference`` is absent where several candidates stand side by side."""

    picture: Picture
    standing: Standing
    image: str
    reference: str = ""
    difference: str = ""


@dataclass(frozen=True)
class Strip:
    """One prompt, painted by the reference and by every candidate of which there is a picture."""

    first: Picture
    reference: str
    pairs: tuple[PairView, ...]


@dataclass(frozen=True)
class Group:
    """Pictures of one prompt set: pairs of one candidate, or strips of all; the first ``open`` are shown at once."""

    set_name: str
    standing: Standing | None
    open: int
    pairs: tuple[PairView, ...] = ()
    strips: tuple[Strip, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """The first pictures of a set as one image, to wipe between the reference's and a candidate's."""

    set_name: str
    standing: Standing
    reference: str
    image: str
    width: int
    height: int
    count: int


@dataclass
class Gallery:
    """All pictures of the page; ``left_out`` pairs did not fit; ``is_reduced``: some are smaller or compressed."""

    sheets: list[Sheet] = field(default_factory=list)
    worst: list[Group] = field(default_factory=list)
    in_order: list[Group] = field(default_factory=list)
    left_out: int = 0
    is_reduced: bool = False
    large: bool = False
    gain: int = GAIN


def build_gallery(
    pictures: Sequence[Picture], results: Results, ranked: Sequence[Standing], budget: int = BUDGET_BYTES
) -> Gallery:
    """Reads the pictures and chooses; the sheets take their place in the budget first, then the worst pairs.

    Raises:
        InputError: a picture cannot be read, or the two of a pair differ in size.
    """
    encoder = _Encoder(budget)
    gallery = Gallery()
    places = {s.name for s in ranked}
    known = [p for p in pictures if p.candidate in places]
    for set_name in set_names(results):
        for standing in ranked:
            own = _of(known, set_name, standing)
            if own:
                gallery.sheets.append(_sheet(first_in_order(own), standing, encoder))
    gallery.worst = _worst(known, results, ranked, encoder, round((1 - WORST_SHARE) * encoder.left))
    gallery.in_order = _in_order(known, gallery.worst, results, ranked, encoder)
    gallery.left_out = len({_key(p) for p in known} - encoder.shown)
    gallery.is_reduced, gallery.large = encoder.reduced, encoder.large
    return gallery


def _of(pictures: Sequence[Picture], set_name: str, standing: Standing) -> list[Picture]:
    """One candidate's pictures of a set by index, each once."""
    own = {p.index: p for p in pictures if (p.set_name, p.candidate) == (set_name, standing.name)}
    return [own[index] for index in sorted(own)]


def _key(picture: Picture) -> tuple[str, str, int]:
    return picture.set_name, picture.candidate, picture.index


def first_in_order(own: Sequence[Picture]) -> list[Picture]:
    """The run of pictures without a gap from the first index on: what nobody selected."""
    return [p for place, p in enumerate(own) if p.index == own[0].index + place]


def worst_of(own: Sequence[Picture], results: Results, standing: Standing) -> list[Picture]:
    """The pictures of one candidate and set that the results name as worst; without such, those of lowest PSNR."""
    named: set[int] = set()
    if own and own[0].set_name in standing.candidate.sets:
        named = {w.index for w in standing.candidate.sets[own[0].set_name].worst_pairs}
    chosen = [p for p in own if p.index in named] or own
    return sorted(chosen, key=lambda p: (p.psnr, p.index))[:WORST]


def _worst(
    pictures: Sequence[Picture], results: Results, ranked: Sequence[Standing], encoder: _Encoder, keep: int
) -> list[Group]:
    """Worst pairs of every candidate and set; where the budget ends, all of them have as many."""
    queues = {
        (standing.place, set_name): worst_of(_of(pictures, set_name, standing), results, standing)
        for standing in ranked
        for set_name in set_names(results)
    }
    views: dict[tuple[int, str], list[PairView]] = {key: [] for key in queues}
    for place in range(WORST):
        for key, queue in queues.items():
            if place < len(queue) and encoder.left > keep:
                views[key].append(encoder.pair(queue[place], ranked[key[0]]))
    at_once = OPEN_WORST[0] if len(queues) == 1 else OPEN_WORST[1]
    return [
        Group(set_name, ranked[place], at_once, pairs=tuple(pairs))
        for (place, set_name), pairs in views.items()
        if pairs
    ]


def _in_order(
    pictures: Sequence[Picture],
    worst: Sequence[Group],
    results: Results,
    ranked: Sequence[Standing],
    encoder: _Encoder,
) -> list[Group]:
    """The first pictures in order: pairs of an only candidate, less the worst ones; strips of several."""
    groups = []
    for set_name in set_names(results):
        runs = [first_in_order(_of(pictures, set_name, standing)) for standing in ranked]
        if len(ranked) == 1:
            shown = {v.picture.index for g in worst if g.set_name == set_name for v in g.pairs}
            pairs = [encoder.pair(p, ranked[0]) for p in runs[0] if p.index not in shown and encoder.left > 0]
            groups.append(Group(set_name, None, OPEN_PAIRS, pairs=tuple(pairs)))
            continue
        indices = sorted({p.index for run in runs for p in run})
        of_all = [p for run in runs for p in run]
        strips = [encoder.strip(of_all, index, ranked) for index in indices if encoder.left > 0]
        groups.append(Group(set_name, None, OPEN_PAIRS, strips=tuple(strips)))
    return [group for group in groups if group.pairs or group.strips]


def _sheet(own: Sequence[Picture], standing: Standing, encoder: _Encoder) -> Sheet:
    first = encoder.read(own[0])[0]
    small = max(first.shape[:2]) <= SMALL_SIDE
    count = SHEET_PICTURES if small else 1
    shown = own[: min(count, len(own))]
    shown = shown[: len(shown) // SHEET_COLUMNS * SHEET_COLUMNS] or shown
    sides = [encoder.read(p) for p in shown]
    columns = min(SHEET_COLUMNS, len(shown))
    reference, image = (contact_sheet([pair[side] for pair in sides], columns) for side in (0, 1))
    encoder.shown.update(map(_key, shown))
    uris = [encoder.encode(sheet, small, SHEET_SIDE) for sheet in (reference, image)]
    height, width = reduced(reference, SHEET_SIDE).shape[:2]
    return Sheet(own[0].set_name, standing, uris[0], uris[1], width, height, len(shown))


class _Encoder:
    """Makes data URIs and counts their bytes."""

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.shown: set[tuple[str, str, int]] = set()
        self.reduced = self.large = False

    def pair(self, picture: Picture, standing: Standing) -> PairView:
        """A pair with its amplified difference."""
        reference, image = self.read(picture)
        uris = [self.encode(side) for side in (image, reference, difference(reference, image, GAIN))]
        self.shown.add(_key(picture))
        return PairView(picture, standing, *uris)

    def strip(self, pictures: Sequence[Picture], index: int, ranked: Sequence[Standing]) -> Strip:
        """One prompt's pictures, the candidates in rank order."""
        own = {p.candidate: p for p in pictures if p.index == index}
        views = []
        for standing in ranked:
            if standing.name in own:
                picture = own[standing.name]
                views.append(PairView(picture, standing, self.encode(self.read(picture)[1])))
                self.shown.add(_key(picture))
        return Strip(views[0].picture, self.encode(self.read(views[0].picture)[0]), tuple(views))

    def read(self, picture: Picture) -> tuple[ByteImage, ByteImage]:
        """Reference and candidate, of one size."""
        reference, image = read_image(picture.reference), read_image(picture.image)
        if reference.shape != image.shape:
            sizes = [f"{side.shape[1]}×{side.shape[0]}" for side in (reference, image)]
            raise InputError(
                f"Pair {picture.index} of {picture.set_name} has pictures of {sizes[0]} and {sizes[1]} pixels;"
                " generate them in one size."
            )
        return reference, image

    def encode(self, image: ByteImage, small: bool | None = None, limit: int = SHOWN_SIDE) -> str:
        """A data URI, its bytes taken from the budget; what is not small is reduced to a side and compressed."""
        if small is None:
            small = max(image.shape[:2]) <= SMALL_SIDE
        self.large |= not small
        self.reduced |= not small
        uri = data_uri(reduced(image, limit), lossless=small)
        self.left -= len(uri)
        return uri
