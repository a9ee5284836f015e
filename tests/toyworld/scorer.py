"""Finds the coloured objects of a toy-world picture and scores them against boxes; numpy and scipy only.

Boxes are (x, y, width, height) in fractions of the image, origin top-left, x right, y down. Pictures are float
[height, width, 3] in 0..1, torch or numpy. Colours are those of `scenes.COLORS`.

How an object is found. A textured object mixes its colour with up to 80 % white, so its pixels lie near a segment in
RGB from the colour to its light tone. A pixel whose nearest segment (or background colour) is that of colour c, in the
darker half, is a body pixel of c; this also makes the blurred rim of a red object on white a pale red, not a pink.
Pixels of the lighter half count only in areas, not as rims, and only joined to a body. Objects are the connected
components of both, at least MIN_AREA of the image.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .scenes import BACKGROUNDS, COLORS, LIGHT

MIN_AREA = 0.005  # smallest object, share of the image; the smallest icon the model knows covers 0.008
BODY_DISTANCE = 0.2  # RGB distance beyond which a pixel is no palette colour but a mixture (dark rims, noise)
LIGHT_DISTANCE = 0.1  # the same for light parts, where the colours lie closer together
MIN_BODY_SHARE = 0.25  # light parts alone are no object; in stripes the body is about one half
TIP = 10  # pixels; the thin tips of a moon or star are shorter
NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class FoundObject:
    """One object in a picture."""

    color: str
    box: tuple  # tight around the object, fractions
    area: float  # its own pixels (not a ring's hole), share of the image
    light: float  # mean whiteness, 0 = its palette colour, 1 = its light tone: plain ~0, dotted ~0.2, striped ~0.5
    mask: np.ndarray  # bool [height, width], its own pixels


@dataclass(frozen=True)
class ExpectedObject:
    """What should be in the picture: a phrase, its colour word and its box (fractions)."""

    phrase: str
    color: str
    box: tuple


@dataclass(frozen=True)
class ObjectScore:
    """How one expected object fared. `found` is the object of its colour matched to it, or None."""

    expected: ExpectedObject
    found: FoundObject | None
    iou: float  # of found.box with the expected box, 0..1; 0 when absent
    inside_mass: float  # pixels of all objects of its colour: share inside the expected box; 0 when absent
    leakage: float  # the same: share outside; 0 when absent
    bound: bool  # the colour with the most object pixels inside the expected box is its colour

    @property
    def present(self):
        return self.found is not None


@dataclass(frozen=True)
class ImageScore:
    """One picture. `detections` are all objects of expected colours as (confidence, hits a box with IoU >= 0.5).

    Confidence is the object's share of the pixels of its colour: 1 for a single one, less for duplicates.
    """

    objects: tuple
    detections: tuple
    unexpected: int  # objects of colours nobody asked for


def expected_object(phrase, box):
    """ExpectedObject whose colour is the (only) colour word of the phrase."""
    (color,) = (word for word in phrase.split() if word in COLORS)
    return ExpectedObject(phrase, color, tuple(box))


def box_of(mask):
    """Tight box around the true pixels of a bool [height, width] array, fractions."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    x, y = columns[0] / width, rows[0] / height
    return float(x), float(y), float((columns[-1] + 1) / width - x), float((rows[-1] + 1) / height - y)


def iou(a, b):
    """Intersection over union of two boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def box_mask(box, shape):
    """Pixels of a (height, width) picture whose centre is in the box, bool."""
    y, x = ((np.arange(n) + 0.5) / n for n in shape)
    inside_x = (x >= box[0]) & (x < box[0] + box[2])
    inside_y = (y >= box[1]) & (y < box[1] + box[3])
    return inside_y[:, None] & inside_x


def _rgb(color):
    """A colour as float32 [3, 1, 1], to stand beside pixels [3, height, width]."""
    return np.asarray(color, dtype=np.float32).reshape(3, 1, 1)


def _distance(pixels, color):
    """Euclidean RGB distance of each pixel from a colour, or from a picture of colours; [height, width]."""
    difference = pixels - color
    return np.sqrt(np.einsum("chw,chw->hw", difference, difference))


def _whiteness(pixels, color):
    """Mixture of white in each pixel, as if it were `color` and white: 0 = color, 1 = white; unbounded."""
    to_white = (1 - color).ravel()
    return np.tensordot(to_white / (to_white @ to_white), pixels - color, 1)


def _tint_distance(pixels, color, most):
    """Distance of each pixel from the segment of `color` with 0..most white."""
    return _distance(pixels, color + _whiteness(pixels, color).clip(0, most) * (1 - color))


def _background(pixels, distances):
    """The picture's own background: median of the pixels of its commonest background colour.

    `distances` is [colours + backgrounds, height, width], backgrounds last. White if no pixel is background.
    """
    nearest = distances.argmin(0) - len(COLORS)
    counts = [(nearest == index).sum() for index in range(len(BACKGROUNDS))]
    if not any(counts):
        return _rgb(BACKGROUNDS["white"])
    return _rgb(np.median(pixels[:, nearest == np.argmax(counts)], axis=1))


def _body(candidates):
    """Candidate pixels within TIP of a spot that is five pixels thick: keeps thin tips, drops specks and rims.

    A rim may have a thick spot (where a red and a yellow object touch, there is orange): it must not all be kept.
    """
    thick = ndimage.binary_erosion(candidates, NEIGHBOURS, iterations=2, border_value=1)
    return ndimage.binary_dilation(thick, NEIGHBOURS, iterations=TIP, mask=candidates)


def _light_parts(color, background, pixels):
    """Pixels of one colour in its lighter half that are not background; rims of one or two pixels are left out."""
    distance = _tint_distance(pixels, color, LIGHT)
    light = (distance < LIGHT_DISTANCE) & (distance < _distance(pixels, background))
    light &= _whiteness(pixels, color) >= LIGHT / 2
    return ndimage.binary_opening(light, NEIGHBOURS)


def find_objects(image):
    """All coloured objects of a picture, largest first, as FoundObject."""
    pixels = np.moveaxis(np.asarray(image, dtype=np.float32), -1, 0).copy()
    colors = {name: _rgb(color) for name, color in COLORS.items()}
    distances = np.stack(
        [
            *(_tint_distance(pixels, color, LIGHT / 2) for color in colors.values()),
            *(_distance(pixels, _rgb(color)) for color in BACKGROUNDS.values()),
        ]
    )
    background = _background(pixels, distances)
    nearest = distances.argmin(0)
    nearest[distances.min(0) > BODY_DISTANCE] = -1
    found = []
    for index, (name, color) in enumerate(colors.items()):
        body = (nearest == index) & (_whiteness(pixels, color) < LIGHT / 2)
        if body.mean() < MIN_AREA * MIN_BODY_SHARE:
            continue  # to save time
        body = _body(body)
        if not body.any():
            continue
        own = body | _light_parts(color, background, pixels)
        labels, count = ndimage.label(own, NEIGHBOURS)
        whiteness = (_whiteness(pixels, color) / LIGHT).clip(0, 1)
        for label in range(1, count + 1):
            mask = own & (labels == label)
            if mask.mean() >= MIN_AREA and body[mask].mean() >= MIN_BODY_SHARE:
                found.append(FoundObject(name, box_of(mask), float(mask.mean()), float(whiteness[mask].mean()), mask))
    return sorted(found, key=lambda item: -item.area)


def _match(expected, found):
    """For each expected object the found one of its colour, or None; best IoU first, then the largest, none twice."""
    pairs = [
        (iou(e.box, f.box), f.area, i, j)
        for i, e in enumerate(expected)
        for j, f in enumerate(found)
        if e.color == f.color
    ]
    matches, used = [None] * len(expected), set()
    for _, _, i, j in sorted(pairs, reverse=True):
        if matches[i] is None and j not in used:
            matches[i] = found[j]
            used.add(j)
    return matches


def _score_object(expected, match, found):
    """ObjectScore of one expected object, given its match and everything found in the picture."""
    pixels, inside = {}, {}  # per colour
    for item in found:
        box = box_mask(expected.box, item.mask.shape)
        pixels[item.color] = pixels.get(item.color, 0) + item.mask.sum()
        inside[item.color] = inside.get(item.color, 0) + (item.mask & box).sum()
    if match is None:
        return ObjectScore(expected, None, 0.0, 0.0, 0.0, False)
    share = float(inside[expected.color] / pixels[expected.color])
    bound = inside[expected.color] > 0 and inside[expected.color] == max(inside.values())
    return ObjectScore(expected, match, iou(expected.box, match.box), share, 1 - share, bool(bound))


def score_image(image, expected):
    """ImageScore of one picture against a list of ExpectedObject."""
    found = find_objects(image)
    matches = _match(expected, found)
    scores = tuple(_score_object(e, m, found) for e, m in zip(expected, matches))
    colors = {e.color for e in expected}
    hits = [s.found for s in scores if s.iou >= 0.5]
    detections = tuple(
        (item.area / sum(f.area for f in found if f.color == item.color), any(item is hit for hit in hits))
        for item in found
        if item.color in colors
    )
    return ImageScore(scores, detections, sum(item.color not in colors for item in found))


def ap50(scores):
    """Average precision at IoU 0.5 over a list of ImageScore: area under the interpolated precision-recall curve.

    All expected objects and all detections are pooled; detections of equal confidence enter together.
    """
    expected = sum(len(score.objects) for score in scores)
    detections = [detection for score in scores for detection in score.detections]
    curve = []  # (recall, precision), recall rising
    for level in sorted({confidence for confidence, _ in detections}, reverse=True):
        kept = [hit for confidence, hit in detections if confidence >= level]
        curve.append((sum(kept) / expected, sum(kept) / len(kept)))
    area, reached = 0.0, 0.0
    for place, (recall, _) in enumerate(curve):
        area += (recall - reached) * max(precision for _, precision in curve[place:])
        reached = recall
    return area


def _spread(values):
    """(mean, standard deviation) of a list; NaN when empty."""
    return (float(np.mean(values)), float(np.std(values))) if values else (float("nan"), float("nan"))


def summarise(scores):
    """Means and spreads of a list of ImageScore, as {measure: (mean, standard deviation)}.

    presence, iou, inside_mass, leakage, bound: mean per picture over its expected objects, then over pictures.
    unexpected: objects per picture. area, light: over the expected objects that were found (NaN if none).
    ap50: the mean is pooled over all pictures (see ap50), the deviation is that of the single pictures' own ap50.
    """
    per_object = {
        "presence": "present",
        "iou": "iou",
        "inside_mass": "inside_mass",
        "leakage": "leakage",
        "bound": "bound",
    }
    result = {
        name: _spread([float(np.mean([getattr(o, field) for o in score.objects])) for score in scores])
        for name, field in per_object.items()
    }
    result["unexpected"] = _spread([score.unexpected for score in scores])
    present = [o.found for score in scores for o in score.objects if o.present]
    result["area"] = _spread([item.area for item in present])
    result["light"] = _spread([item.light for item in present])
    result["ap50"] = (ap50(scores), _spread([ap50([score]) for score in scores])[1])
    return result


def off_palette(image, limit=0.25):
    """Share of pixels farther than `limit` in RGB from every colour of the world, its light tones and backgrounds.

    Blurred edges count a little in every picture; blotches of a spoilt latent count in full.
    """
    pixels = np.moveaxis(np.asarray(image, dtype=np.float32), -1, 0)
    nearest = [_tint_distance(pixels, _rgb(color), LIGHT) for color in COLORS.values()]
    nearest += [_distance(pixels, _rgb(color)) for color in BACKGROUNDS.values()]
    return float((np.min(nearest, axis=0) > limit).mean())


def background_share(image, name):
    """Share of pixels with the colour of the background that was asked for, 0 to 1.

    A picture flooded with an object's colour, or with another background, has little of it; `off_palette` sees neither.
    """
    pixels = np.moveaxis(np.asarray(image, dtype=np.float32), -1, 0)
    return float((_distance(pixels, _rgb(BACKGROUNDS[name])) < BODY_DISTANCE).mean())
