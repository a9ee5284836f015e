"""What the tests of prompts of models that read boxes share: two regions, the rows of tables, and refusals."""

import json
from dataclasses import replace

import pytest
from pack.attention_patches.core.regions import OPTIONS
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.nodes.parts import layout_formats as formats
from pack.nodes.parts.layout_document import Document, on_the_grid

HEART = Region("a red heart", Box(0.1, 0.2, 0.3, 0.4))
STAR = Region("a blue star", Box(0.6, 0.5, 0.3, 0.25))
SIZE = (1024, 768)


def write(name, *regions, source=None, leave_out=False, size=SIZE, **words):
    document = Document(regions, None if source is None else tuple(source), **words)
    return formats.written(document, name, size, leave_out)[0]


def refused(*words):
    def check(error):
        text = str(error)
        return all(word in text for word in words) and len(text) < 500 and "\n" not in text

    return pytest.raises(BoxwrightError, check=check)


def keyed(region, **keys):
    """The region with further keys of its JSON: fields, or kept."""
    options = {key: keys.pop(key) for key in {option.name for option in OPTIONS} & keys.keys()}
    return replace(region, extra={**region.extra, **keys}, **options)


def row(**changes):
    return {"id": "obj_1", "bbox": [200, 100, 600, 400], "desc": "a red heart"} | changes


def edit_row(**changes):
    keep = {"src_bbox": [200, 100, 600, 400], "tgt_bbox": [200, 100, 600, 400]}
    return {"id": "obj_1", "from": "ref_image_0", **keep, "desc": "a red heart"} | changes


def table(*rows, caption="a picture"):
    return f"{caption} {json.dumps(rows)}"


def ideogram(*elements, **more):
    return json.dumps({"compositional_deconstruction": {"background": "", "elements": list(elements)}} | more)


def random_box(rng):
    left, top = rng.randrange(1000), rng.randrange(1000)
    return on_the_grid(left, top, rng.randrange(left + 1, 1001), rng.randrange(top + 1, 1001))


def random_regions(rng, *keys):
    letters = "ab é\"\\ \u4e2d\U0001f98a'{}[]<>,:"
    regions = []
    for _ in range(rng.randint(1, 6)):
        extra = {}
        if "text" in keys and rng.random() < 0.3:
            extra["text"] = "T" + "".join(rng.choices(letters, k=5)) + "t"
        if "palette" in keys and rng.random() < 0.3:
            extra["palette"] = [f"#{rng.randrange(2**24):06X}"]
        if "relation" in keys and rng.random() < 0.3:
            extra["relation"] = "left of it"
        if "id" in keys and rng.random() < 0.3:
            extra["id"] = f"thing_{len(regions) + 1}"
        phrase = "p" + "".join(rng.choices(letters, k=rng.randint(0, 12))) + "q"
        regions.append(Region(phrase, random_box(rng), extra=extra))
    return tuple(regions)
