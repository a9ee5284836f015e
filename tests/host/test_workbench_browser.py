"""What the workbench fetches for the browser tests: a Chromium, the newest frontend; and how it says that it cannot."""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import wb_browser
from wb_common import Failure


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """A cache of its own, no browser in the usual places, nothing installed."""
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BOXWRIGHT_CHROMIUM", raising=False)
    monkeypatch.setattr(wb_browser, "USUAL_PLACES", ())
    monkeypatch.setattr(shutil, "which", lambda name: None)


def fake_pip(monkeypatch, version="1.2.3", names=("index.html", "assets/a.js")):
    """A pip whose download leaves a frontend wheel; returns the list of its calls."""
    calls = []

    def pip(python, stage_name, *arguments):
        calls.append(arguments)
        folder = Path(arguments[arguments.index("--dest") + 1])
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / f"comfyui_frontend_package-{version}-py3-none-any.whl", "w") as wheel:
            for name in names:
                wheel.writestr(f"comfyui_frontend_package/static/{name}", name)
            wheel.writestr("comfyui_frontend_package/static/../../../escaped", "no")
            wheel.writestr("other/top.txt", "no")

    monkeypatch.setattr(wb_browser, "pip", pip)
    return calls


def test_a_named_browser_is_taken_and_must_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CHROMIUM", str(tmp_path))
    assert wb_browser.chromium(may_install=False) == tmp_path
    monkeypatch.setenv("BOXWRIGHT_CHROMIUM", str(tmp_path / "gone"))
    with pytest.raises(Failure, match="gone.*does not exist"):
        wb_browser.chromium(may_install=True)


def test_an_installed_browser_is_found_before_one_is_installed(monkeypatch):
    monkeypatch.setattr(wb_browser, "apt_install", lambda package: pytest.fail("nothing to install"))
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/chrome" if name == "google-chrome" else None)
    assert wb_browser.chromium(may_install=True) == Path("/bin/chrome")


def test_a_missing_browser_is_installed_only_where_that_is_asked_for(monkeypatch):
    installed = []
    monkeypatch.setattr(wb_browser, "apt_install", installed.append)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/chromium" if installed and name == "chromium" else None)
    with pytest.raises(Failure, match="no Chromium.*apt-get install chromium"):
        wb_browser.chromium(may_install=False)
    assert installed == []
    assert wb_browser.chromium(may_install=True) == Path("/bin/chromium")
    assert installed == ["chromium"]


@pytest.mark.parametrize("root, status", [(False, 0), (True, 0), (True, 100)])
def test_apt_get_is_called_as_root_and_its_last_word_is_passed_on(monkeypatch, root, status):
    calls = []

    def run(command, **options):
        calls.append(command[1])
        return subprocess.CompletedProcess(command, status, "", "W: first\nE: Unable to locate package\n")

    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "apt-get" else None)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000, raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    if status:
        with pytest.raises(Failure, match="could not install chromium: E: Unable to locate"):
            wb_browser.apt_install("chromium")
    else:
        wb_browser.apt_install("chromium")
    assert calls == (["update", "install"] if root else [])


def test_the_newest_frontend_is_unpacked_inside_its_folder(tmp_path, monkeypatch):
    fake_pip(monkeypatch)
    static = wb_browser.newest_frontend(Path("python"), refresh=False)
    assert static == tmp_path / "cache" / "frontends" / "1.2.3" / "static"
    assert (static / "assets" / "a.js").read_text() == "assets/a.js"
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in files if "escaped" in name or "top.txt" in name} == set()


def test_the_index_is_asked_again_only_where_that_is_wanted(tmp_path, monkeypatch):
    calls = fake_pip(monkeypatch, "1.2.3")
    wb_browser.newest_frontend(Path("python"), refresh=True)
    calls = fake_pip(monkeypatch, "1.2.10")
    assert wb_browser.newest_frontend(Path("python"), refresh=False).parent.name == "1.2.3" and not calls
    assert wb_browser.newest_frontend(Path("python"), refresh=True).parent.name == "1.2.10" and len(calls) == 1


def test_without_a_network_the_newest_one_of_before_serves(monkeypatch):
    fake_pip(monkeypatch)
    before = wb_browser.newest_frontend(Path("python"), refresh=True)

    def offline(*arguments):
        raise Failure("the package index cannot be reached")

    monkeypatch.setattr(wb_browser, "pip", offline)
    assert wb_browser.newest_frontend(Path("python"), refresh=True) == before


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_missing_is_said_aloud_or_a_failure(monkeypatch, capsys, strict):
    fake_pip(monkeypatch)
    if strict:
        with pytest.raises(Failure, match="no Chromium"):
            wb_browser.browser_environment(Path("python"), strict)
        return
    found = wb_browser.browser_environment(Path("python"), strict)
    assert set(found) == {"BOXWRIGHT_NEWEST_FRONTEND"}
    assert "NOT ALL TESTS CAN RUN: there is no Chromium" in capsys.readouterr().out


@pytest.mark.parametrize("strict, outcome", [("", "skipped"), ("1", "failed")])
def test_a_browser_test_without_a_browser_is_skipped_aloud_and_never_in_ci(monkeypatch, strict, outcome):
    import browser

    monkeypatch.setenv("BOXWRIGHT_STRICT", strict)
    expected = pytest.skip.Exception if outcome == "skipped" else pytest.fail.Exception
    with pytest.raises(expected, match="THE BROWSER TESTS DO NOT RUN"):
        browser.chromium_path()


def test_ci_is_strict():
    assert "export BOXWRIGHT_STRICT=1" in (ROOT / ".ci" / "run").read_text()
