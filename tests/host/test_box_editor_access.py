"""The box editor for who works by keyboard, by ear or by finger: names, the way of Tab, contrast, sizes, motion."""

import re

import pytest
from browser import ONE, TWO, box, editor_node

CONTROLS = {
    "button",
    "textbox",
    "checkbox",
    "combobox",
    "slider",
    "spinbutton",
    "menuitem",
    "menuitemradio",
    "application",
}
TEXT, ICON = 4.5, 3.0  # contrast that WCAG 2.2 asks for (1.4.3, 1.4.11)
TARGET = 24  # CSS pixels each way of what is clicked, or from one such to the next (WCAG 2.2, 2.5.8)

# Mark what Tab should reach, in the order of the page; -> how many.
MARK = """() => [...document.querySelectorAll(".bw-editor :is(button, input, select, canvas)")].filter((each) => (
    !each.disabled && each.tabIndex >= 0 && each.checkVisibility({ visibilityProperty: true }))).map((each, index) => {
        each.dataset.stop = index;
        return index;
    })"""
FOCUSED = """() => {
    const { activeElement: each } = document, inside = Boolean(each.closest(".bw-editor"));
    const { outlineStyle, outlineWidth } = getComputedStyle(each);
    return [inside ? Number(each.dataset.stop) : -1, each.className === "bw-canvas", `${outlineStyle} ${outlineWidth}`];
}"""
# Every text and icon that is seen, with the contrast that it has through all opacities above it: [ratio, what].
CONTRAST = r"""() => {
    const parse = (words) => {
        const [r, g, b, a = 1] = words.match(/[\d.]+/g).map(Number);
        return words.startsWith("color(srgb") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
    };
    const mix = (share, one, other) => share * one + (1 - share) * other;
    const over = (top, below) => below.map((value, index) => (index < 3 ? mix(top[3], top[index], value) : 1));
    const light = (color) => color.slice(0, 3).map((value) => value / 255)
        .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
        .reduce((sum, value, index) => sum + [0.2126, 0.7152, 0.0722][index] * value, 0);
    const ancestors = (each) => (each ? [...ancestors(each.parentElement), each] : []);
    const typed = "input:not([type=range]):not([type=checkbox]):not([type=color])";
    return [...document.querySelectorAll(".bw-editor *")].flatMap((each) => {
        const own = [...each.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
        const text = each.matches(typed) ? each.value : own, isIcon = each.matches("svg");
        const isIdle = each.closest(":disabled, style, option, .bw-empty, .bw-off, label:has(:disabled)");
        if ((!text && !isIcon) || isIdle || !each.checkVisibility({ visibilityProperty: true })) return [];
        let ground = [0, 0, 0, 1], opacity = 1;
        for (const styles of ancestors(each).map((one) => getComputedStyle(one))) {
            opacity *= Number(styles.opacity);
            ground = over(parse(styles.backgroundColor), ground);
        }
        const [r, g, b, a] = parse(getComputedStyle(each).color);
        const [low, high] = [light(over([r, g, b, a * opacity], ground)), light(ground)].sort((one, two) => one - two);
        return [[(high + 0.05) / (low + 0.05), isIcon, `${each.parentElement.className}: ${each.tagName} ${text}`]];
    });
}"""
pytestmark = pytest.mark.usefixtures("no_errors")


def nameless(bench):
    """The controls that are said without a name."""
    lines = bench.page.locator(".bw-editor").aria_snapshot().splitlines()
    said = [re.match(r"\s*- '?(\w+)( \"[^\"]+\")?", line) for line in lines]
    return [found.group(0) for found in said if found and found.group(1) in CONTROLS and not found.group(2)]


def test_every_control_has_a_name_and_no_two_of_a_list_share_theirs(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.click(0.3, 0.3)
    assert nameless(bench) == [] and "2 boxes" in bench.part("canvas").get_attribute("aria-label")
    names = bench.part(".bw-row button, .bw-row input").evaluate_all("(all) => all.map((each) => each.ariaLabel)")
    assert len(set(names)) == len(names) == 12
    for menu in ("tool", "arrange", "view"):
        bench.button(menu).click()
        assert nameless(bench) == [], menu
    bench.press("Escape")
    bench.button("tool").click()
    bench.part('[data-tool="brush"]').click()
    assert nameless(bench) == []
    bench.press("v")


def test_the_list_and_the_canvas_say_where_a_box_is(bench):
    bench.load(editor_node([ONE, box("", 0.6, 0.55, 0.3, 0.3)]))
    labels = bench.part(".bw-row").evaluate_all("(rows) => rows.map((row) => row.ariaLabel)")
    assert labels == [
        "red heart, 20 % from the left, 20 % from the top, 30 % wide, 30 % high",
        "no words yet, 60 % from the left, 55 % from the top, 30 % wide, 30 % high",
    ]
    bench.part(".bw-canvas").focus()
    bench.press("Tab", "Shift+ArrowRight", "Shift+ArrowRight")
    said = bench.part(".bw-speech").text_content()
    assert said == "Box 1 of 2: red heart, 24 % from the left, 20 % from the top, 30 % wide, 30 % high"


@pytest.mark.every_version
def test_tab_reaches_every_control_in_order_with_a_ring_and_leaves(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.click(0.3, 0.3)
    stops = bench.page.evaluate(MARK)
    bench.part(".bw-button >> nth=0").focus()
    seen = []
    for _ in range(len(stops) + 3):
        stop, is_canvas, ring = bench.page.evaluate(FOCUSED)
        if stop < 0:
            break
        seen.append(stop)
        assert not seen[1:] or ring == "solid 2px", (stop, ring)
        bench.press(*(["Escape"] if is_canvas else []), "Tab")  # there Tab goes from box to box until Escape
    assert seen == stops and len(stops) > 30
    bench.press("Shift+Tab")
    assert bench.page.evaluate(FOCUSED)[0] == stops[-1], "and back"


@pytest.mark.every_version
def test_a_menu_opened_by_key_is_walked_by_arrows_and_gives_the_focus_back(bench):
    bench.load(editor_node())
    at = "document.activeElement.dataset.name ?? document.activeElement.dataset.tool ?? document.activeElement.tagName"
    bench.button("arrange").focus()
    bench.press("Enter")
    assert bench.page.evaluate(at) == "columns2"
    bench.press("ArrowDown", "ArrowDown")
    assert bench.page.evaluate(at) == "rows2"
    bench.press("ArrowUp", "ArrowUp", "ArrowUp")
    assert bench.page.evaluate(at) == "background"
    bench.press("Escape")
    assert bench.page.evaluate(at) == "arrange" and bench.button("arrange").get_attribute("aria-expanded") == "false"
    bench.press("Enter", "Enter")
    assert bench.page.evaluate(at) == "arrange" and len(bench.boxes()) == 2
    bench.button("tool").focus()
    bench.press("Enter", "End", "Enter")
    assert bench.page.evaluate(at) == "CANVAS" and bench.page.evaluate("editorOf(1).stage.freehand.tool") == "eraser"
    bench.press("v")


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_words_and_signs_can_be_told_from_their_ground(bench, palette):
    bench.load(editor_node([ONE, TWO, box("moon", 0.1, 0.7, 0.1, 0.1, strength=2)]))
    bench.page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
    try:
        bench.page.wait_for_function(
            "(is) => document.querySelector('.bw-editor').matches('.bw-light') === is", arg=palette == "light"
        )
        bench.click(0.3, 0.3)
        for menu in (None, "tool", "view"):
            if menu:
                bench.button(menu).click()
            bench.frames()
            found = bench.page.evaluate(CONTRAST)
            poor = sorted(
                (round(ratio, 2), what) for ratio, is_icon, what in found if ratio < (ICON if is_icon else TEXT)
            )
            assert poor == [] and len(found) > 30
        bench.press("Escape")
        bench.shot(f"access_{palette}")
    finally:
        bench.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
        bench.rest(300)


@pytest.mark.one_renderer
def test_what_is_clicked_is_large_enough_and_nothing_moves_by_itself(bench):
    bench.load(editor_node([ONE, TWO]))
    bench.click(0.3, 0.3)
    bench.page.evaluate(MARK)
    small = bench.part("[data-stop]").evaluate_all(
        """(all, least) => all.map((each) => {
        const margin = each.matches(".bw-check") ? 8 : 0; // free ground around it, see the gaps of its row
        return [each.ariaLabel, each.offsetWidth + margin, each.offsetHeight + margin];
    }).filter(([, width, height]) => Math.min(width, height) < least)""",
        TARGET,
    )
    assert small == []
    moving = bench.page.evaluate("""() => [...document.querySelectorAll(".bw-editor *")].filter((each) => {
        const { animationName, transitionDuration } = getComputedStyle(each);
        return animationName !== "none" || parseFloat(transitionDuration) > 0;
    }).length""")
    assert moving == 0, "so there is nothing that prefers-reduced-motion would have to still"
