"""The key of a layout: of every field of its regions, but for those that change no picture."""

from dataclasses import dataclass, field, fields, replace

import pytest
import torch
from pack.attention_patches.core.regions import regions_digest
from pack.attention_patches.core.types import NOT_IN_KEY, Box, Region

PAINTED = torch.eye(4)
PLAIN = Region("circle", Box(0.0, 0.0, 0.5, 1.0))
COUNT = {
    "phrase": "star",
    "area": Box(0.5, 0.0, 0.5, 1.0),
    "strength": 0.5,
    "negative": "red",
    "start": 0.1,
    "end": 0.5,
    "feather": 0.1,
    "opacity": 0.5,
    "start_frame": 9,
    "end_frame": 17,
    "enabled": False,
    "lora": "ink.safetensors",
    "lora_strength": 0.5,
}
DO_NOT = {"extra": {"locked": True}, "color": "#ffffff"}


def digest(*regions):
    return regions_digest(regions)


@pytest.mark.parametrize("name", [each.name for each in fields(Region)])
def test_every_field_counts_unless_it_is_declared_not_to(name):
    """A new field needs a line above."""
    changed = replace(PLAIN, **{name: {**COUNT, **DO_NOT}[name]})
    assert (digest(changed) == digest(PLAIN)) == (name in DO_NOT)


def test_all_changes_differ_from_each_other():
    changed = [replace(PLAIN, **{name: value}) for name, value in COUNT.items()]
    painted = [replace(PLAIN, area=area) for area in (PAINTED, PAINTED.flip(0), PAINTED.view(2, 8))]
    sets = [[], [PLAIN], [PLAIN, PLAIN], *([region] for region in (*changed, *painted))]
    assert len({digest(*regions) for regions in sets}) == len(sets)
    assert digest(painted[0]) == digest(replace(PLAIN, area=PAINTED.clone()))


def test_a_field_of_tomorrow_counts_by_itself():
    @dataclass(frozen=True)
    class Later(Region):
        ink: str | None = field(default=None, kw_only=True)
        note: str = field(default="", kw_only=True, metadata=NOT_IN_KEY)

    plain = Later("circle", PLAIN.area)
    assert digest(replace(plain, ink="blue")) != digest(plain) == digest(replace(plain, note="mine"))
