"""What the browser tests need besides Python: a Chromium, and the newest frontend on the index."""

import contextlib
import os
import platform
import shutil
import subprocess
import zipfile
from pathlib import Path

from wb_common import Failure, cache_directory, remove_tree, stage
from wb_environment import pip

PACKAGE = "comfyui-frontend-package"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
USUAL_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
)
NO_CHROMIUM = (
    "there is no Chromium, which the browser tests need; install it (on Debian and Ubuntu: apt-get install chromium), "
    "or name one with BOXWRIGHT_CHROMIUM"
)


def browser_environment(python: Path, strict: bool) -> dict[str, str]:
    """The variables that tell the tests which Chromium and which newest frontend to use.

    What cannot be had is said aloud, and its tests are skipped. Where `strict`, it is a Failure; and only there a
    missing Chromium is installed, and the index is asked for a newer frontend than the one that was fetched before.
    """
    wanted = {
        "BOXWRIGHT_CHROMIUM": lambda: chromium(may_install=strict),
        "BOXWRIGHT_NEWEST_FRONTEND": lambda: newest_frontend(python, refresh=strict),
    }
    found = {}
    for name, find in wanted.items():
        try:
            found[name] = str(find())
        except Failure as failure:
            if strict:
                raise
            print(f"workbench: NOT ALL TESTS CAN RUN: {failure}", flush=True)
    return found


def chromium(may_install: bool) -> Path:
    """An installed Chromium; on Debian and its kin one is installed if we may. Failure if there is none."""
    named = os.environ.get("BOXWRIGHT_CHROMIUM")
    if named and not Path(named).exists():
        raise Failure(f'BOXWRIGHT_CHROMIUM says "{named}", which does not exist')
    found = named or installed_chromium()
    if not found and may_install:
        apt_install("chromium")
        found = installed_chromium()
    if not found:
        raise Failure(NO_CHROMIUM)
    return Path(found)


def installed_chromium() -> str | None:
    """The first browser of Chromium's family on the PATH or in its usual place."""
    on_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    return on_path or next((place for place in USUAL_PLACES if Path(place).exists()), None)


def apt_install(package: str) -> None:
    """Install Debian's own package, where apt-get is there and we are root; else do nothing."""
    if platform.system() != "Linux" or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    with stage(f"installing {package} (apt-get)"):
        options = {
            "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            "stdin": subprocess.DEVNULL,
            "capture_output": True,
            "text": True,
            "errors": "replace",
        }
        # A list of packages that cannot be renewed may still be good enough: only the second command counts.
        for arguments in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", package]):
            done = subprocess.run(["apt-get", *arguments], check=False, **options)
        if done.returncode != 0:
            raise Failure(f"apt-get could not install {package}: {' '.join(done.stderr.strip().splitlines()[-1:])}")


def newest_frontend(python: Path, refresh: bool) -> Path:
    """The static files of the newest frontend on the index; of the newest fetched before, where that is enough (not
    `refresh`) or all there is (without a network)."""
    folder = cache_directory() / "frontends"
    earlier = sorted(folder.glob("*/static/index.html"), key=lambda file: file.stat().st_mtime)
    if earlier and not refresh:
        return earlier[-1].parent
    downloads = folder / "download"
    remove_tree(downloads)
    with stage("fetching the newest frontend"):
        try:
            pip(python, "frontend", "download", "--no-deps", "--dest", downloads, PACKAGE)
        except Failure:
            if not earlier:
                raise
            return earlier[-1].parent
    [wheel] = downloads.glob("*.whl")
    target = folder / wheel.name.split("-")[1]
    if not (target / "static" / "index.html").exists():
        unpack_static(wheel, target)
    os.utime(target / "static" / "index.html")
    with contextlib.suppress(OSError):
        remove_tree(downloads)
    return target / "static"


def unpack_static(wheel: Path, target: Path) -> None:
    """The wheel's static folder, complete or not at all. Names that could leave it are refused."""
    making = target.with_name(f"{target.name}.making")
    remove_tree(making)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            parts = Path(name).parts
            if len(parts) < 3 or parts[1] != "static" or name.endswith("/") or ".." in parts:
                continue
            file = making.joinpath(*parts[1:])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.read(name))
    remove_tree(target)
    making.rename(target)
