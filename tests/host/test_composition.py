"""What comes of our patches beside each other and beside the host's: a defined result, or a clear refusal.

docs/composition.md holds the table. BOXWRIGHT_WRITE_TABLES=1 pytest tests/host/test_composition.py writes it.
"""

import functools
import os
from pathlib import Path

import pytest
import tiny_models as tiny
import together
import torch
from pack.attention_patches.core.types import BoxwrightError
from robust import well_said
from together import HOSTS, OURS, P2P, PROMPT_ONLY, WATCHES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "composition.md"
BEGIN, END = "<!-- composition: written by tests/host/test_composition.py -->\n", "<!-- end -->\n"
COLUMNS = (*OURS, *HOSTS)
BOTH, WATCHED, ROUNDED, REFUSED, ALONE = "both", "same", "rounded", "refused", "-"


@functools.cache
def model():
    return tiny.build("sd15")


@functools.cache
def run(names, column=None, side_by_side=None, acts=True):
    """The latent, and the first prediction for the negative prompt; or the error of ours."""
    seen = []
    try:
        return together.draw(model(), names, column, seen, 1, side_by_side, acts), seen[0][1]
    except BoxwrightError as error:
        assert well_said(str(error)), error
        return error


def far(a, b):
    return not torch.allclose(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


def cell(name, column):
    """What comes of a patch of ours beside another or the host's; asserts what that promises."""
    if name == column:
        return ALONE, None
    ours = column in OURS
    side_by_side = P2P in (name, column)
    found = run((name, column), None, side_by_side) if ours else run((name,), column, side_by_side)
    if isinstance(found, BoxwrightError):
        return REFUSED, found
    latent, negative = found
    assert latent.isfinite().all()
    # The other alone, in the same company: with the prompts and rows of both.
    others = run((column,), None, side_by_side) if ours else run((), column, side_by_side)
    if name in WATCHES:
        return watched(latent, others[0]), None
    assert far(latent, others[0]), f"{name} does nothing beside {column}"
    if column not in (*WATCHES, *together.NO_TRACE):
        alone = run((name,), None if ours else column, side_by_side, acts=False)
        assert far(latent, alone[0]), f"{column} does nothing beside {name}"
    if name in PROMPT_ONLY and column not in (P2P, "Region LoRA", "Arranged Noise", "Box Constraint: boxdiff"):
        assert not far(negative, others[1]), f"{name} beside {column} changes the negative prompt's rows"
    if column in WATCHES:
        return watched(latent, run((name,), None, side_by_side)[0]), None
    return BOTH, None


def watched(latent, without):
    """How near a picture that is watched is to the same one unwatched."""
    assert not far(latent, without), "what only watches has changed the picture"
    return WATCHED if torch.equal(latent, without) else ROUNDED


@functools.cache
def row(name):
    return {column: cell(name, column) for column in COLUMNS}


def written():
    before, rest_of_page = PAGE.read_text(encoding="utf-8").split(BEGIN)
    text, after = rest_of_page.split(END, 1)
    return before, text, after


def line(name):
    return f"| {name} | {' | '.join(kind for kind, _ in row(name).values())} |\n"


def table():
    """The page's tables, and each refusal in its own words."""
    numbers = [f"{number}. {name}" for number, name in enumerate(OURS, 1)]
    ours, hosts = [], []
    for name in OURS:
        kinds = [kind for kind, _ in row(name).values()]
        ours.append(f"| {name} | {' | '.join(kinds[: len(OURS)])} |\n")
        hosts.append(f"| {name} | {' | '.join(kinds[len(OURS) :])} |\n")
    said = {}
    for name in OURS:
        for column, (kind, error) in row(name).items():
            if kind == REFUSED:
                said.setdefault(str(error), []).append(f"{name} with {column}")
    refusals = [f"- {'; '.join(pairs)}: {words}\n" for words, pairs in said.items()]
    head = lambda names: f"| | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}\n"  # noqa: E731
    return "".join(
        [
            "\n## Each other\n\nThe first stands before the second in the graph. ",
            ", ".join(numbers),
            ".\n\n",
            head([str(number) for number in range(1, len(OURS) + 1)]),
            *ours,
            "\n## The host's\n\n",
            head(list(HOSTS)),
            *hosts,
            "\n## What is refused, and in which words\n\n",
            *(refusals or ["Nothing.\n"]),
            "\n",
        ]
    )


@pytest.mark.parametrize("name", OURS)
def test_each_pair_is_defined_or_refused(name):
    """And is what the page says of it."""
    kinds = [kind for kind, _ in row(name).values()]
    if os.environ.get("BOXWRIGHT_WRITE_TABLES"):
        return
    _, text, _ = written()
    lines = [part for part in text.splitlines() if part.startswith(f"| {name} |")]
    said = [part.strip() for part in "|".join(part.strip("|").split("|", 1)[1] for part in lines).split("|")]
    assert said == kinds


def test_the_page_holds_every_refusal():
    before, text, after = written()
    if os.environ.get("BOXWRIGHT_WRITE_TABLES"):
        PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
        return
    assert text == table()
