"""Marks in prompts: what is an order to another program, what is emphasis, and what is neither."""

import pytest
from pack.attention_patches.core.marks import escaped, is_balanced, notes_on, without_emphasis, without_orders


@pytest.mark.parametrize(
    "text, left, orders",
    [
        ("a red circle <lora:toon:0.8>", "a red circle", ["<lora:toon:0.8>"]),
        ("<lora:toon:1>, a red circle", "a red circle", ["<lora:toon:1>"]),
        ("a, <lora:x:1>, b", "a, b", ["<lora:x:1>"]),
        ("a <lyco:x>star, <lora:x:1> b <lora:x:1>", "astar, b", ["<lyco:x>", "<lora:x:1>"]),
        ("a red circle BREAK a blue star", "a red circle, a blue star", ["BREAK"]),
        ("a red circle,\nBREAK,\na blue star\nBREAK", "a red circle, a blue star", ["BREAK"]),
        ("<lora:x:1>", "", ["<lora:x:1>"]),
        ("BREAK", "", ["BREAK"]),
        ('a sign that says "BREAK", a BREAKFAST, a break', 'a sign that says "BREAK", a BREAKFAST, a break', []),
        (" a <heart:red> < b > ,", " a <heart:red> < b > ,", []),  # untouched to the last space
    ],
)
def test_orders_are_left_out(text, left, orders):
    assert without_orders(text) == (left, orders)


@pytest.mark.parametrize(
    "text, found",
    [
        (
            "a {red|blue} __animal__ and a __sub/colour*__, {red|blue}",
            "{red|blue}, __animal__, __sub/colour*__ is read as",
        ),
        ("[cat:dog:0.5] [a [b:c:3]]", "[cat:dog:0.5], [b:c:3] is read as it stands"),
        ("a <lora:x:1> b <lyco:y>", "<lora:x:1>, <lyco:y> left out"),
        ("a BREAK b", "BREAK left out"),
    ],
)
def test_what_is_not_drawn_is_said(text, found):
    (note,) = notes_on("The prompt", text)
    assert note.startswith(f"The prompt: {found}")


def test_nothing_is_said_of_ordinary_texts():
    for text in ("snake_case, __init, {red}, [cat], a:b:0.5, my__file__name, 1|2", "a (red:1.2) circle", ""):
        assert notes_on("The prompt", text) == []


@pytest.mark.parametrize(
    "text, plain",
    [
        ("(red circle:1.3)", "red circle"),
        ("a (red:1.2) ((circle))", "a red circle"),
        ("((red:0.5) circle:-1)", "red circle"),
        ("saber \\(fate\\)", "saber (fate)"),
        ("(saber \\(fate\\):1.1)", "saber (fate)"),
        ("at 12:30 (noon)", "at 12:30 noon"),
        ("red circle", "red circle"),
    ],
)
def test_emphasis_is_taken_off_names(text, plain):
    assert without_emphasis(text) == plain


@pytest.mark.parametrize(
    "text, balanced",
    [
        ("(a) ((b:1.2))", True),
        (":\\) (a)", True),
        ("", True),
        (":)", False),
        ("(a", False),
        (")a(", False),
    ],
)
def test_balance(text, balanced):
    assert is_balanced(text) is balanced
    assert is_balanced(escaped(text.replace("\\", "")))


def test_hostile_texts_take_no_time():
    """Each of these would take a backtracking pattern minutes."""
    many = 30_000
    for text in (
        "<lora:x:1>" + " " * many,
        "{" + "|" * many,
        "-__a" * many,
        "[" + ":" * many,
        "[a:b:" + "1" * many,
        "<lora:" * many,
        "BREAK ," * many,
        "(:" + "1" * many,
    ):
        kept, notes, plain = without_orders(text)[0], notes_on("x", text), without_emphasis(text)
        assert len(kept) <= len(text) and len(plain) <= len(text) and len(notes) <= 10
