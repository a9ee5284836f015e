"""The toy-world scorer against pictures whose objects are known exactly, and against ones made to mislead it."""

import math

import numpy as np
import pytest
import torch
from toyworld.scenes import BACKGROUNDS, COLORS, SHAPES, SceneObject, random_scene, render_scene, visible_masks
from toyworld.scorer import (
    ExpectedObject,
    ap50,
    background_share,
    box_of,
    expected_object,
    find_objects,
    iou,
    off_palette,
    score_image,
    summarise,
)

RED_LEFT = SceneObject("red", "square", 0.25, 0.5, 0.15)
BLUE_RIGHT = SceneObject("blue", "circle", 0.75, 0.5, 0.15)


def expect(*objects):
    """Each scene object with the box it would have alone."""
    masks = [visible_masks([obj])[0].numpy() for obj in objects]
    return [ExpectedObject(f"a {o.color} {o.shape}", o.color, box_of(m)) for o, m in zip(objects, masks)]


def test_random_scenes_are_found_exactly():
    """240 scenes of 1-3 objects: all shapes, colours, sizes, textures and backgrounds, tinted as in training."""
    torch.manual_seed(0)
    overlaps, scores = [], []
    for seed in range(240):
        objects, background = random_scene(seed, count=1 + seed % 3)
        score = score_image(render_scene(objects, background, jitter=0.02), expect(*objects))
        scores.append(score)
        for obj, true_mask, result in zip(objects, visible_masks(objects).numpy(), score.objects):
            assert result.present, (seed, obj)
            overlaps.append((result.found.mask & true_mask).sum() / (result.found.mask | true_mask).sum())
    assert sum(len(score.detections) for score in scores) == len(overlaps)  # nothing in pieces, nothing invented
    assert not any(score.unexpected for score in scores)
    result = summarise(scores)
    assert result["presence"] == (1, 0)
    assert result["iou"][0] > 0.95
    assert min(o.iou for score in scores for o in score.objects) > 0.65
    assert np.mean(overlaps) > 0.93
    assert result["bound"] == (1, 0)
    assert result["inside_mass"][0] > 0.99
    assert result["ap50"][0] == 1


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("color", COLORS)
def test_every_colour_on_every_background(color, background):
    shapes = [SceneObject(color, shape, 0.5, 0.5, 0.2) for shape in SHAPES]
    for obj in shapes:
        score = score_image(render_scene([obj], background), expect(obj))
        assert score.objects[0].iou > 0.85, obj
        assert score.unexpected == 0, obj


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("color", COLORS)
def test_light_orders_textures(color, background):
    def light(texture):
        (found,) = find_objects(render_scene([SceneObject(color, "square", 0.5, 0.5, 0.2, texture)], background))
        return found.light

    assert light("plain") < 0.06
    assert 0.15 < light("dotted") < 0.33
    assert 0.4 < light("striped") < 0.6


def test_area_follows_size():
    for radius in (0.1, 0.15, 0.2):
        (found,) = find_objects(render_scene([SceneObject("green", "square", 0.5, 0.5, radius)]))
        assert found.area == pytest.approx((1.7 * radius) ** 2, rel=0.05)


def blurred(image):
    """The picture averaged over 7 x 7 pixels, more than the model blurs."""
    padded = torch.nn.functional.pad(image.permute(2, 0, 1), (3, 3, 3, 3), "replicate")
    return torch.nn.functional.avg_pool2d(padded, 7, 1).permute(1, 2, 0)


def test_blur_of_an_edge_is_no_object():
    """A red object on white has a pink rim when blurred, orange on black a brown one."""
    for color, background in [("red", "white"), ("orange", "black"), ("yellow", "gray"), ("blue", "cream")]:
        obj = SceneObject(color, "square", 0.5, 0.5, 0.25)
        score = score_image(blurred(render_scene([obj], background)), expect(obj))
        assert score.objects[0].iou > 0.85
        assert len(score.detections) == 1 and score.unexpected == 0


def test_blur_between_touching_objects_is_no_object():
    """Yellow and red mix to orange, red and blue to purple."""
    for left, right in [("yellow", "red"), ("red", "blue")]:
        objects = [SceneObject(left, "square", 0.3, 0.5, 0.2), SceneObject(right, "square", 0.64, 0.5, 0.2)]
        score = score_image(blurred(render_scene(objects)), expect(*objects))
        assert min(o.iou for o in score.objects) > 0.85
        assert score.unexpected == 0


def test_rim_with_a_thick_spot_is_no_object():
    """Seen in the model's pictures: a yellow disc, orange along its rim, more so where it touched something red."""
    image = torch.tensor(BACKGROUNDS["gray"]).repeat(256, 256, 1)
    image[60:200, 60:200] = image[120:130, 55:65] = torch.tensor(COLORS["orange"])
    image[63:197, 63:197] = torch.tensor(COLORS["yellow"])
    assert [item.color for item in find_objects(image)] == ["yellow"]


def test_noise_does_not_hide_objects_or_make_them():
    image = render_scene([RED_LEFT, BLUE_RIGHT], "gray") + 0.05 * torch.randn(
        256, 256, 3, generator=torch.Generator().manual_seed(0)
    )
    score = score_image(image, expect(RED_LEFT, BLUE_RIGHT))
    assert min(o.iou for o in score.objects) > 0.9
    assert score.unexpected == 0


def test_absent_object():
    score = score_image(render_scene([BLUE_RIGHT]), expect(RED_LEFT, BLUE_RIGHT))
    red, blue = score.objects
    assert (red.present, red.iou, red.inside_mass, red.leakage, red.bound) == (False, 0, 0, 0, False)
    assert blue.present and blue.bound


def test_wrong_colour_in_the_box():
    """A green square where the red one belongs: not bound, and counted as unexpected."""
    green = SceneObject("green", "square", 0.25, 0.5, 0.15)
    score = score_image(render_scene([green]), expect(RED_LEFT))
    assert not score.objects[0].present and not score.objects[0].bound
    assert score.unexpected == 1


def test_swapped_colours_are_present_but_not_bound():
    swapped = [SceneObject("blue", "square", 0.25, 0.5, 0.15), SceneObject("red", "circle", 0.75, 0.5, 0.15)]
    for result in score_image(render_scene(swapped), expect(RED_LEFT, BLUE_RIGHT)).objects:
        assert result.present and not result.bound
        assert (result.iou, result.inside_mass, result.leakage) == (0, 0, 1)


def test_two_objects_of_one_colour():
    """The one in the box is matched; the other is leakage and a false detection of lower confidence."""
    twin = SceneObject("red", "circle", 0.75, 0.5, 0.10)
    score = score_image(render_scene([RED_LEFT, twin]), expect(RED_LEFT))
    (result,) = score.objects
    square, circle = 0.255**2, math.pi * 0.095**2
    assert result.iou > 0.95
    assert result.inside_mass == pytest.approx(square / (square + circle), abs=0.02)
    assert result.leakage == pytest.approx(1 - result.inside_mass)
    assert sorted(hit for _, hit in score.detections) == [False, True]
    assert ap50([score]) == 1  # the hit has the higher confidence
    assert [o.present for o in score_image(render_scene([RED_LEFT]), expect(RED_LEFT, twin)).objects] == [True, False]


def test_two_expected_of_one_colour_match_their_own():
    boxes = expect(RED_LEFT, SceneObject("red", "circle", 0.75, 0.5, 0.15))
    image = render_scene([SceneObject("red", "circle", 0.75, 0.5, 0.15), RED_LEFT])
    for expected in (boxes, boxes[::-1]):
        assert min(o.iou for o in score_image(image, expected).objects) > 0.95


def test_half_outside_its_box():
    x, y, width, height = expect(RED_LEFT)[0].box
    shifted = ExpectedObject("a red square", "red", (x + width / 2, y, width, height))
    (result,) = score_image(render_scene([RED_LEFT]), [shifted]).objects
    assert result.iou == pytest.approx(1 / 3, abs=0.03)
    assert result.inside_mass == pytest.approx(0.5, abs=0.03)
    assert result.leakage == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(256, 256, 3, generator=torch.Generator().manual_seed(0)),
        torch.zeros(256, 256, 3),
        torch.ones(256, 256, 3),
        *(torch.tensor(color).expand(256, 256, 3) for color in BACKGROUNDS.values()),
    ],
    ids=["noise", "zeros", "ones", *BACKGROUNDS],
)
def test_nothing_in_noise_and_blank_pictures(image):
    assert find_objects(image) == []
    assert summarise([score_image(image, expect(RED_LEFT))])["ap50"] == (0, 0)


def test_a_colour_outside_the_palette_is_no_object():
    image = torch.tensor(BACKGROUNDS["white"]).repeat(256, 256, 1)
    image[60:200, 60:200] = torch.tensor((0.5, 0.5, 0.1))  # olive, nearest to green
    assert find_objects(image) == []


@pytest.mark.filterwarnings("error")
def test_a_picture_full_of_one_colour_is_one_object():
    (found,) = find_objects(torch.tensor(COLORS["cyan"]).expand(64, 96, 3))
    assert (found.color, found.box, found.area) == ("cyan", (0, 0, 1, 1), 1)


def test_boxes_are_fractions_of_each_side():
    image = torch.tensor(BACKGROUNDS["white"]).repeat(100, 200, 1)
    image[20:50, 40:120] = torch.tensor(COLORS["purple"])
    (found,) = find_objects(image)
    assert found.box == pytest.approx((0.2, 0.2, 0.4, 0.3))
    assert found.area == pytest.approx(0.12)


def test_iou_of_boxes():
    assert iou((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert iou((0, 0, 0.5, 1), (0.25, 0, 0.5, 1)) == pytest.approx(1 / 3)
    assert iou((0, 0, 0.2, 0.2), (0.5, 0, 0.2, 0.2)) == 0


def test_ap50_by_hand():
    """Three pictures, one expected object each: a hit, a miss with duplicate, an absence."""
    shifted = SceneObject("red", "square", 0.75, 0.5, 0.15)
    hit = score_image(render_scene([RED_LEFT]), expect(RED_LEFT))
    missed = score_image(render_scene([shifted]), expect(RED_LEFT))
    absent = score_image(render_scene([]), expect(RED_LEFT))
    assert ap50([hit]) == 1
    assert ap50([missed]) == ap50([absent]) == 0
    # One confidence level: 1 of 3 recalled at precision 1/2.
    assert ap50([hit, missed, absent]) == pytest.approx(1 / 6)


def test_summary_means_and_spreads():
    scores = [
        score_image(render_scene(objects), expect(RED_LEFT, BLUE_RIGHT))
        for objects in ([RED_LEFT, BLUE_RIGHT], [RED_LEFT])
    ]
    result = summarise(scores)
    assert result["presence"] == (0.75, 0.25)
    assert result["area"][0] == pytest.approx((2 * 0.255**2 + math.pi * 0.1425**2) / 3, rel=0.03)
    assert math.isnan(summarise([score_image(render_scene([]), expect(RED_LEFT))])["light"][0])


def test_expected_object_reads_the_colour():
    assert expected_object("a large striped blue square", [0, 0, 0.5, 0.5]).color == "blue"
    with pytest.raises(ValueError):
        expected_object("a square", (0, 0, 0.5, 0.5))


def test_a_flood_in_a_colour_of_the_world_shows_in_the_background_alone():
    """`off_palette` finds nothing strange in it."""
    plain = render_scene([RED_LEFT, BLUE_RIGHT], "white")
    flooded = plain.clone()
    flooded[:, 128:] = torch.tensor(COLORS["blue"])
    masks = sum(m.float() for m in visible_masks([RED_LEFT, BLUE_RIGHT]))
    assert background_share(plain, "white") == pytest.approx(1 - float(masks.mean()), abs=0.02)
    assert background_share(flooded, "white") < 0.5 and background_share(plain, "gray") == 0
    assert off_palette(flooded) == pytest.approx(off_palette(plain), abs=0.01)
