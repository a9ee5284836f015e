"""The release tool: version, changelog, archive, and what it finds missing."""

import datetime
import io
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import pack_pictures
import release
from wb_common import Failure

DAY = datetime.date(2026, 11, 30)
CHANGELOG = "# Changes\n\nNewest first.\n\n## Unreleased\n\n- Boxes.\n\n## 0.1.0 (2026-01-02)\n\n- All.\n"


def test_the_tree_is_ready_to_be_released():
    assert release.problems() == []


# Version and changelog


def test_the_version_is_set_where_it_stands():
    text = 'name = "x"\nversion = "0.1.9"\ntarget-version = "py310"\n'
    assert release.with_version(text, "0.1.10") == text.replace("0.1.9", "0.1.10")


@pytest.mark.parametrize("version, words", [
    ("0.1.9", "0.1.9 already"), ("0.1.8", "choose a higher version than 0.1.8"), ("0.2", "three numbers"),
    ("v0.2.0", "three numbers"), ("0.2.0rc1", "three numbers"), ("0.02.0", "three numbers"),
])  # fmt: skip
def test_a_version_that_is_none_or_no_higher_is_refused(version, words):
    with pytest.raises(Failure, match=words):
        release.with_version('version = "0.1.9"\n', version)


def test_what_is_unreleased_becomes_the_version_of_the_day():
    text = release.closed(CHANGELOG, "0.2.0", DAY)
    assert release.sections(text) == {
        "Unreleased": "",
        "0.2.0 (2026-11-30)": "- Boxes.",
        "0.1.0 (2026-01-02)": "- All.",
    }
    assert release.notes(text, "0.2.0") == "- Boxes."
    assert text.replace("## 0.2.0 (2026-11-30)\n\n", "") == CHANGELOG  # nothing else has changed


def test_a_version_without_changes_and_one_that_is_out_are_refused():
    with pytest.raises(Failure, match='nothing below "## Unreleased"'):
        release.closed(release.closed(CHANGELOG, "0.2.0", DAY), "0.3.0", DAY)
    with pytest.raises(Failure, match="section for 0.1.0 already"):
        release.closed(CHANGELOG, "0.1.0", DAY)
    with pytest.raises(Failure, match='no section "## 0.2.0'):
        release.notes(CHANGELOG, "0.2.0")


# The archive


@pytest.mark.parametrize("path, left_out", [
    ("tests/conftest.py", True), ("web/tests/a.js", True), ("attention_patches/a.py", False), ("tests", False),
    ("nodes/__pycache__/a.pyc", True), ("my_tests/a.py", False), ("drawn.log", True), ("a/b.log", True),
    ("docs/drafts/a.md", True), ("a/docs/drafts/a.md", False), ("top.txt", True), ("a/top.txt", False),
])  # fmt: skip
def test_ignore_files_are_read_as_git_reads_them(path, left_out, tmp_path):
    text = "# a comment\n\ntests/\n__pycache__/\n*.log\ndocs/drafts/\n/top.txt\n"
    assert release.ignored(PurePosixPath(path), release.patterns(text)) == left_out
    if git := shutil.which("git"):
        (tmp_path / ".gitignore").write_text(text)
        subprocess.run([git, "init", "-q", tmp_path], check=True)
        answer = subprocess.run([git, "-C", tmp_path, "check-ignore", "-q", path], check=False)
        assert (answer.returncode == 0) == left_out


def test_a_form_that_is_not_known_is_refused_rather_than_read_wrongly():
    with pytest.raises(Failure, match="!kept.txt"):
        release.patterns("tests/\n!kept.txt\n")


@pytest.fixture
def tree(tmp_path):
    """A small project without git: one file of each kind that the archive has, and others."""
    for name in ("__init__.py", "tests/test_a.py", "nodes/a.py", "nodes/__pycache__/a.pyc", "demo/a.png", "LICENSE"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".comfyignore").write_text("tests/\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n/demo/\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n[tool.comfy]\n')
    return tmp_path


KEPT = [".comfyignore", ".gitignore", "LICENSE", "__init__.py", "nodes/a.py", "pyproject.toml"]


def test_the_archive_holds_what_is_not_left_out(tree):
    assert [str(path) for path in release.published(tree)] == KEPT
    with zipfile.ZipFile(io.BytesIO(release.packed(tree))) as archive:
        assert archive.namelist() == KEPT and archive.read("nodes/a.py") == b"nodes/a.py"
    assert release.packed(tree) == release.packed(tree)
    (tree / "pyproject.toml").write_text('[project]\n[tool.comfy]\nincludes = ["tests/"]\n')
    assert PurePosixPath("tests/test_a.py") in release.published(tree)


def test_the_archive_holds_what_git_tracks_and_the_disk_has(tree):
    git = shutil.which("git")
    assert git, "this test needs git, which made the checkout"
    subprocess.run([git, "init", "-q", tree], check=True)
    subprocess.run([git, "-C", tree, "add", "."], check=True)
    (tree / "notes.txt").write_text("of nobody else's business")
    (tree / "LICENSE").unlink()
    assert [str(path) for path in release.published(tree)] == [name for name in KEPT if name != "LICENSE"]


# What is missing


@pytest.fixture
def copy(tmp_path):
    """What would be published of this project, in a folder where it may be spoilt."""
    for path in release.published(ROOT):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def edit(name, before, after):
    """A way to spoil a copy: one text for another."""

    def spoil(root):
        text = (root / name).read_text(encoding="utf-8")
        assert before in text
        (root / name).write_text(text.replace(before, after, 1), encoding="utf-8")

    return spoil


def without(name):
    return lambda root: (root / name).unlink()


def a_picture_of(name, *size):
    return lambda root: Image.new("RGB", size).save(root / name)


def wrong_order(root):
    text = "# Changes\n\n## 0.1.0 (2026-01-02)\n\n- a\n\n## 0.2.0 (2026-01-03)\n\n## Unreleased\n"
    (root / "CHANGELOG.md").write_text(text)


@pytest.mark.parametrize("spoil, words", [
    (without("LICENSE"), "no LICENSE"),
    (lambda root: shutil.rmtree(root / "locales"), "no locales"),
    (edit(".comfyignore", "tests/\n", ""), None),  # an archive of the archive has none to leave out
    (lambda root: (edit(".comfyignore", "tests/\n", "")(root), (root / "tests").mkdir(), (root / "tests/a.py").touch()),
     "has tests/"),
    (edit("README.md", "](docs/which_editor.md)", "](docs/gone.md)"), 'links to "docs/gone.md"'),
    (without("web/docs/BoxwrightBoxEditor.png"), "fr.md links to"),
    (edit("pyproject.toml", "NVIDIA CUDA", "CUDA"), 'no classifier "Environment :: GPU :: CUDA"'),
    (edit("pyproject.toml", "Issues = ", "Bugs = "), 'no "Issues"'),
    (edit("pyproject.toml", "main/docs/icon.png", "main/icon.png"), "the picture is at .*docs/icon.png"),
    (without("docs/banner.png"), "pack_pictures.py"),
    (a_picture_of("docs/icon.png", 500, 500), "500 x 500"),
    (a_picture_of("docs/icon.png", 400, 300), "400 x 300"),
    (a_picture_of("docs/banner.png", 1260, 400), "21 : 9"),
    (without("example_workflows/2.7 Fill a mask (RePaint, Blended Latents).jpg"), "2.7 Fill .* has no picture"),
    (edit("CHANGELOG.md", "## Unreleased", "## 0.9.0 (2026-01-02)"), "newest section 0.9.0"),
    (edit("CHANGELOG.md", "## Unreleased", "## Next"), '"## Next" is not'),
    (wrong_order, "not the first section"),
    (wrong_order, 'nothing below "## 0.2.0'),
], ids=lambda value: str(value)[:30] if isinstance(value, str) else "")  # fmt: skip
def test_what_is_missing_is_named(copy, monkeypatch, spoil, words):
    monkeypatch.setattr(release, "packed", lambda root: b"")  # half of the time of these tests
    spoil(copy)
    found = "\n".join(release.problems(copy))
    if words is None:
        assert found == ""
    else:
        assert re.search(words, found), found


def test_an_archive_that_has_grown_too_large_is_named(monkeypatch):
    monkeypatch.setattr(release, "LARGEST", 1000)
    assert any("more than 1,000" in problem for problem in release.problems())


# The registry's client


CLIENT = """#!{python}
import os, pathlib, sys
assert sys.argv[1:] == ["--skip-prompt", "--no-enable-telemetry", "node", "validate"], sys.argv
pathlib.Path.home().joinpath("config").write_text("what a client leaves in its home")
print({said!r})
sys.exit({status})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a script with its interpreter in its first line")
@pytest.mark.parametrize(
    "said, status, good", [("all checks passed", 0, True), ("Security Warnings found", 0, False), ("no", 1, False)]
)
def test_the_registrys_client_is_asked_in_a_home_of_its_own(tmp_path, monkeypatch, said, status, good):
    client, home = tmp_path / "comfy", tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    client.write_text(CLIENT.format(python=sys.executable, said=said, status=status))
    client.chmod(0o755)
    assert release.registry_validation(str(client)) == (good, said)
    assert not any(home.iterdir())


def test_without_the_registrys_client_it_is_said_aloud(tmp_path):
    with pytest.raises(Failure, match="NOT CHECKED.*comfy-cli"):
        release.registry_validation(str(tmp_path / "comfy"))


# The command


def test_the_check_writes_nothing_and_setting_the_version_two_files(copy, capsys):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert release.main(["--check", "--comfy", str(copy / "none")], copy) == 0
    said = capsys.readouterr().out
    assert "files, packed" in said and "NOT CHECKED" in said and said.endswith(": ready\n")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert release.main(["--set", "9.0.0"], copy) == 0 and release.problems(copy) == []
    changed = {path.name for path, was in before.items() if path.read_bytes() != was}
    assert changed == {"pyproject.toml", "CHANGELOG.md"}
    capsys.readouterr()
    assert release.main(["--notes"], copy) == 0 and capsys.readouterr().out.startswith("- ")
    assert release.main(["--set", "9.0.0"], copy) == 1 and "higher" in capsys.readouterr().err
    (copy / "LICENSE").unlink()
    assert release.main(["--check", "--comfy", str(copy / "none")], copy) == 1
    assert "no LICENSE" in capsys.readouterr().err


# Icon and banner


@pytest.mark.parametrize("draw, path", [
    (pack_pictures.icon, pack_pictures.ICON), (pack_pictures.banner, pack_pictures.BANNER),
])  # fmt: skip
def test_the_pictures_are_those_of_the_script(draw, path):
    drawn, kept = (np.asarray(picture.convert("RGB"), dtype=float) for picture in (draw(), Image.open(path)))
    assert drawn.shape == kept.shape
    assert abs(drawn - kept).mean() < 1  # of 255: another Pillow may round otherwise
