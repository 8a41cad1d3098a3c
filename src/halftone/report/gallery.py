"""Which pictures the page shows, and those as data URIs within a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from halftone.errors import InputError
from halftone.qdiffbench.results import Results
from halftone.report.images import ByteImage, contact_sheet, data_uri, difference, read_image, reduced
from halftone.report.page_input import Picture
from halftone.report.standing import Standing, set_names

SMALL_SIDE = 256  # pixels; up to here a picture is shown as it is, losslessly
SHOWN_SIDE = 512  # a larger picture is reduced to this
GAIN = 8  # amplification of the difference pictures
WORST = 6  # worst pairs of a candidate on a set, divided among the candidates and sets, but at least WORST_LEAST
WORST_LEAST = 3
SHEET_PICTURES, SHEET_COLUMNS = 12, 4
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
    """Pictures of one prompt set; ``worst`` are those of one candidate, worst first."""

    set_name: str
    standing: Standing | None
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
    """All pictures of the page; ``left_out`` pairs did not fit, ``is_reduced`` if they are shown smaller."""

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
    places = {s.name: s for s in ranked}
    known = [p for p in pictures if p.candidate in places]
    for set_name in [*dict.fromkeys([*set_names(results), *(p.set_name for p in known)])]:
        of_set = [p for p in known if p.set_name == set_name]
        for standing in ranked:
            own = sorted((p for p in of_set if p.candidate == standing.name), key=lambda p: p.index)
            if own:
                gallery.sheets.append(_sheet(own, standing, encoder))
    groups = len(gallery.sheets)
    count = max(WORST_LEAST, WORST // max(1, groups))
    for standing in ranked:
        for set_name in set_names(results):
            own = [p for p in known if (p.set_name, p.candidate) == (set_name, standing.name)]
            pairs = encoder.pairs(worst_of(own, results, standing)[:count], standing)
            if pairs:
                gallery.worst.append(Group(set_name, standing, pairs=pairs))
    _in_order(gallery, known, results, ranked, encoder)
    gallery.left_out = len({(p.set_name, p.candidate, p.index) for p in known} - encoder.shown)
    gallery.is_reduced, gallery.large = encoder.reduced, encoder.large
    return gallery


def worst_of(own: Sequence[Picture], results: Results, standing: Standing) -> list[Picture]:
    """The pictures of one candidate and set that the results name as worst; without such, those of lowest PSNR."""
    unique = list({p.index: p for p in own}.values())
    named = {}
    if own and own[0].set_name in standing.candidate.sets:
        named = {w.index for w in standing.candidate.sets[own[0].set_name].worst_pairs}
    chosen = [p for p in unique if p.index in named] or unique
    return sorted(chosen, key=lambda p: (p.psnr, p.index))


def _in_order(
    gallery: Gallery,
    pictures: Sequence[Picture],
    results: Results,
    ranked: Sequence[Standing],
    encoder: _Encoder,
) -> None:
    """The first pictures in order; with one candidate those that are not among the worst already."""
    for set_name in set_names(results):
        of_set = [p for p in pictures if p.set_name == set_name]
        if len(ranked) == 1:
            shown = {p.picture.index for g in gallery.worst if g.set_name == set_name for p in g.pairs}
            rest = sorted({p.index: p for p in of_set if p.index not in shown}.values(), key=lambda p: p.index)
            pairs = encoder.pairs(rest, ranked[0])
            if pairs:
                gallery.in_order.append(Group(set_name, None, pairs=pairs))
            continue
        strips = [strip for index in _first_indices(of_set) if (strip := encoder.strip(of_set, index, ranked))]
        if strips:
            gallery.in_order.append(Group(set_name, None, strips=tuple(strips)))


def _first_indices(pictures: Sequence[Picture]) -> list[int]:
    """Indices that at least two candidates have (or all, if there are none), in order."""
    counts: dict[int, int] = {}
    for index, _ in {(p.index, p.candidate) for p in pictures}:
        counts[index] = counts.get(index, 0) + 1
    most = max(counts.values(), default=0)
    return sorted(index for index, count in counts.items() if count == most)


def _sheet(own: Sequence[Picture], standing: Standing, encoder: _Encoder) -> Sheet:
    first = encoder.read(own[0])[0]
    count = SHEET_PICTURES if max(first.shape[:2]) <= SMALL_SIDE else 1
    shown = own[: min(count, len(own))]
    shown = shown[: len(shown) // SHEET_COLUMNS * SHEET_COLUMNS] or shown
    sides = [encoder.read(p) for p in shown]
    columns = min(SHEET_COLUMNS, len(shown))
    reference, image = (contact_sheet([pair[side] for pair in sides], columns) for side in (0, 1))
    encoder.shown.update((p.set_name, p.candidate, p.index) for p in shown)
    uris = [encoder.encode(sheet, limit=1024) for sheet in (reference, image)]
    height, width = reduced(reference, 1024).shape[:2]
    return Sheet(own[0].set_name, standing, uris[0], uris[1], width, height, len(shown))


class _Encoder:
    """Makes data URIs and counts their bytes."""

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.shown: set[tuple[str, str, int]] = set()
        self.reduced = self.large = False

    def pairs(self, pictures: Sequence[Picture], standing: Standing) -> tuple[PairView, ...]:
        """Views of as many pictures as the budget holds."""
        views = []
        for picture in pictures:
            if self.left <= 0:
                break
            reference, image = self.read(picture)
            uris = [self.encode(side) for side in (image, reference, difference(reference, image, GAIN))]
            views.append(PairView(picture, standing, *uris))
            self.shown.add((picture.set_name, picture.candidate, picture.index))
        return tuple(views)

    def strip(self, pictures: Sequence[Picture], index: int, ranked: Sequence[Standing]) -> Strip | None:
        """One prompt's pictures, or None when the budget is spent."""
        if self.left <= 0:
            return None
        own = {p.candidate: p for p in pictures if p.index == index}
        views = []
        for standing in ranked:
            if standing.name in own:
                picture = own[standing.name]
                views.append(PairView(picture, standing, self.encode(self.read(picture)[1])))
                self.shown.add((picture.set_name, picture.candidate, index))
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

    def encode(self, image: ByteImage, limit: int = SHOWN_SIDE) -> str:
        """A data URI, its bytes taken from the budget; large pictures are reduced and compressed."""
        small = max(image.shape[:2]) <= SMALL_SIDE * (SHEET_COLUMNS if limit > SHOWN_SIDE else 1)
        self.large |= not small
        self.reduced |= max(image.shape[:2]) > limit
        uri = data_uri(reduced(image, limit), lossless=small)
        self.left -= len(uri)
        return uri
