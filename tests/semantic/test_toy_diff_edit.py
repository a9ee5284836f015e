"""Difference masks, inversion and DiffEdit on the toy model, against exact truth (table: test_full_diff_edit.py)."""

from statistics import mean

from picture_edits import edit, edit_picture, find_mask, round_trip, summary


def test_the_mask_finds_the_object_that_the_edit_names(toy):
    found = []
    for number in (18, 25):
        overlaps, report = find_mask(toy, edit(number))
        assert "20 model evaluations" in report
        found.append(overlaps)
    assert mean(own for own, _ in found) >= 0.6
    assert mean(other for _, other in found) <= 0.05


def test_the_named_object_changes_and_the_rest_stays(toy):
    scores = [edit_picture(toy, edit(number), number, steps=10, draws=4) for number in (17, 18)]
    pasted, edited, plain = ([score[name] for score in scores] for name in scores[0])
    for name in scores[0]:
        summary(name, [score[name] for score in scores])
    assert all(score.changed and score.kept and score.psnr >= 40 for score in edited)
    assert min(score.psnr for score in pasted) >= 60  # the very pixels
    assert max(score.psnr for score in plain) < 30


def test_a_picture_survives_the_round_trip_to_noise(toy):
    plain, refined = (round_trip(toy, edit(0), 10, refinements) for refinements in (0, 1))
    print(f"\nround trip: {plain:.1f} dB, with a refinement {refined:.1f} dB")
    assert refined >= 25 and refined > plain + 3
