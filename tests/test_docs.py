"""README, help and docs: every node is in the README, every link leads somewhere, every page has its picture."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import pictures

HELP = ROOT / "web" / "docs"
LANGUAGES = ("fr", "zh")
NODES = {page.stem: page.read_text("utf-8") for page in sorted(HELP.glob("*.md"))}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HELP_BYTES = 2_000_000  # of all help pages with their pictures
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
SCREENSHOTS = {"BoxwrightBoxEditor.png"}  # by tools/editor_picture.py


def outside_code(text):
    """The text without its fenced blocks, where brackets are no links."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", outside_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_lists_every_node_once_by_its_title():
    listed = re.findall(r"\[([^\]]+)\]\(web/docs/(\w+)\.md\)", part_of((ROOT / "README.md"), "## Nodes by task"))
    titles = {name: text.partition("\n")[0].removeprefix("# ") for name, text in NODES.items()}
    assert sorted(listed) == sorted((title, name) for name, title in titles.items())


def part_of(path, heading):
    """A page from a heading of the second level to the next."""
    return path.read_text("utf-8").split(f"{heading}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_are_there(path):
    broken = []
    for _, _, goal in LINK.findall(outside_code(path.read_text("utf-8"))):
        name, _, heading = goal.partition("#")
        if re.match(r"https?:", goal):
            continue
        target = (path.parent / name).resolve() if name else path
        if not target.is_file() or (heading and heading not in anchors(target.read_text("utf-8"))):
            broken.append(goal)
    assert broken == []


@pytest.mark.parametrize("path", sorted(HELP.rglob("*.md")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_help_page_links_to_the_web_only(path):
    """ComfyUI opens a link as it stands, in a new tab: the name of another page would be looked for on the server."""
    goals = [goal for mark, _, goal in LINK.findall(outside_code(path.read_text("utf-8"))) if not mark]
    assert [goal for goal in goals if not goal.startswith("https://")] == []


@pytest.mark.parametrize("path", [*PAGES, *HELP.rglob("*.md")], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_templates_are_called_by_their_titles(path):
    """In the list of templates the title is all that one sees."""
    text = " ".join(path.read_text("utf-8").split())
    titles = {template.stem for template in (ROOT / "example_workflows").glob("*.json")}
    assert set(re.findall(r"\*(\d\.\d [^*]+)\*", text)) <= titles


@pytest.mark.parametrize("name", NODES)
def test_a_help_page_has_a_picture_in_every_language_and_says_what_it_shows(name):
    """Each is served from the folder of the English page, whatever the language."""
    texts = [NODES[name], *((HELP / name / f"{language}.md").read_text("utf-8") for language in LANGUAGES)]
    shown = [[(alt, goal) for mark, alt, goal in LINK.findall(text) if mark] for text in texts]
    files = {tuple(goal for _, goal in each) for each in shown}
    assert len(files) == 1 and files != {()}, files
    for each in shown:
        assert all(alt and (HELP / goal).is_file() for alt, goal in each), each
    assert len({alt for each in shown for alt, _ in each}) == sum(map(len, shown)), "a picture is described anew"
    for text, each in zip(texts, shown):
        assert text.index(each[0][1]) < text.index("\n## "), "the picture stands before the first heading"


def test_every_picture_is_shown_and_none_is_large():
    there = {path.name for path in HELP.iterdir() if path.suffix in (".jpg", ".png")}
    shown = {goal for text in NODES.values() for mark, _, goal in LINK.findall(text) if mark}
    assert there == shown
    sizes = {name: (HELP / name).stat().st_size for name in there}
    assert {name for name, size in sizes.items() if size >= pictures.MAX_BYTES} - SCREENSHOTS == set()
    assert sum(path.stat().st_size for path in HELP.rglob("*") if path.is_file()) < HELP_BYTES
    assert pictures.OVERVIEW.stat().st_size < pictures.MAX_OVERVIEW


def test_the_script_makes_every_picture_but_screenshots():
    assert {f"{name}.jpg" for name in pictures.PAGES} | SCREENSHOTS == {
        goal for text in NODES.values() for mark, _, goal in LINK.findall(text) if mark
    }


# Messages


@pytest.fixture(scope="module")
def said():
    """Every text in the pack's code, with a blank where a value is put in."""
    texts = []
    for folder in ("attention_patches", "nodes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    texts.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return [*texts, *(path.read_text("utf-8") for path in (ROOT / "web").rglob("*.js"))]


def test_the_messages_that_troubleshooting_quotes_are_those_of_the_pack(said):
    """In the first column of a table "it says": code is a quotation; between two of them any value may stand."""
    tables = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8").split("| it says | do |\n|---|---|\n")[1:]
    rows = [row.split(" | ")[0] for table in tables for row in table.split("\n\n")[0].splitlines()]
    quoted = {row: re.findall(r"`([^`]+)`", row) for row in rows}
    assert sum(map(len, quoted.values())) > 25
    own = {row: parts for row, parts in quoted.items() if not any(word in row for word in ("host's own", "shapes"))}
    lost = [row for row, parts in own.items() if not any(all(part in text for part in parts) for text in said)]
    assert lost == []
