#!/usr/bin/env python3
"""A release of the pack: is everything there, what would be published, and the two files that name the version.

    python tools/release.py --check             all that can be checked here; writes nothing, asks no network
    python tools/release.py --list              what the registry would publish, with sizes
    python tools/release.py --archive FILE.zip  the same, packed
    python tools/release.py --set 0.2.0         the version in pyproject.toml, and CHANGELOG's section for it
    python tools/release.py --notes             the changelog of pyproject's version, as the registry shows it

The registry's own validation is part of --check where its client is at hand (`pip install comfy-cli` in an environment
of its own; --comfy names its `comfy` if it is not on the PATH). tools/pack_pictures.py draws icon and banner.
"""

import sys

if sys.version_info < (3, 11):  # tomllib
    sys.exit(f"release: this is Python {sys.version.split()[0]}, and 3.11 or newer is needed")

import argparse
import datetime
import fnmatch
import io
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

import tomllib
from wb_common import ROOT, Failure, clean_environment

UNRELEASED = "Unreleased"
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")  # three numbers, as the registry wants them
# The registry's words for what a pack runs on; it drops the whole list where one is another.
SYSTEMS = {
    f"Operating System :: {name}" for name in ("OS Independent", "Microsoft :: Windows", "MacOS", "POSIX :: Linux")
}
ACCELERATORS = {
    "Environment :: GPU :: NVIDIA CUDA",
    "Environment :: GPU :: AMD ROCm",
    "Environment :: GPU :: Intel Arc",
    "Environment :: GPU :: Apple Metal",
    "Environment :: NPU :: Huawei Ascend",
}
# What an installed pack cannot do without, and what nobody wants of it.
NEEDED = ("__init__.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "nodes", "attention_patches", "web")
NEEDED += ("web/docs", "locales", "example_workflows", "subgraphs")
UNWANTED = ("tests", "tools", "benchmarks", "demo", ".ci", ".github")
HELP = PurePosixPath("web/docs")
LARGEST = 10 * 2**20  # bytes of the archive: users on slow lines fetch all of it at every update
ICON_SIDE, BANNER_SHAPE = 400, (21, 9)  # the registry's limit each way, and its width to height
# Pictures of the registry's page, which it fetches by their addresses.
PICTURES = {"Icon": "docs/icon.png", "Banner": "docs/banner.png"}
RAW = "https://raw.githubusercontent.com/{owner}/{name}/main/{path}"


# --- the version ------------------------------------------------------------------------------------------------------


def project(root: Path = ROOT) -> dict:
    """pyproject.toml, parsed."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers to compare; Failure if it is not three of them."""
    if not VERSION.fullmatch(version):
        raise Failure(f'"{version}" is no version; the registry takes three numbers, such as 0.2.0')
    return tuple(map(int, version.split(".")))


def with_version(pyproject: str, version: str) -> str:
    """The text of pyproject.toml with another version, which must be higher."""
    found = re.search(r'^version = "(.*)"$', pyproject, re.MULTILINE)
    if not found:
        raise Failure('pyproject.toml has no line `version = "..."`; write one below [project]')
    if numbers(version) <= numbers(found[1]):
        raise Failure(f"pyproject.toml says {found[1]} already; choose a higher version than {version}")
    return pyproject[: found.start(1)] + version + pyproject[found.end(1) :]


def sections(changelog: str) -> dict[str, str]:
    """Heading -> what stands below it, in the order of the file."""
    parts = HEADING.split(changelog)
    titles = parts[1::2]
    if twice := [title for title, count in Counter(title.split(" ")[0] for title in titles).items() if count > 1]:
        raise Failure(f'CHANGELOG.md has "{twice[0]}" twice; make one section of the two')
    return {title: text.strip() for title, text in zip(titles, parts[2::2], strict=True)}


def closed(changelog: str, version: str, date: datetime.date) -> str:
    """The text of CHANGELOG.md with what is unreleased under a version and its day, and an empty section before it."""
    found = sections(changelog)
    if not found.get(UNRELEASED):
        raise Failure(f'CHANGELOG.md has nothing below "## {UNRELEASED}"; write what users will see of {version}')
    numbers(version)
    if any(title.split(" ")[0] == version for title in found):
        raise Failure(f"CHANGELOG.md has a section for {version} already; choose the next version")
    heading = f"## {UNRELEASED}"
    return changelog.replace(heading, f"{heading}\n\n## {version} ({date.isoformat()})", 1)


def notes(changelog: str, version: str) -> str:
    """What CHANGELOG.md says of a version."""
    for title, text in sections(changelog).items():
        if title.split(" ")[0] == version:
            return text
    raise Failure(f'CHANGELOG.md has no section "## {version} (DATE)"; `python tools/release.py --set` writes it')


# --- the archive ------------------------------------------------------------------------------------------------------


def patterns(text: str) -> list[tuple[tuple[str, ...], bool, bool]]:
    """The lines of an ignore file: (its parts, only at the top, only folders). The forms we use, no others."""
    found = []
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if line.startswith("!") or "**" in line or "\\" in line:
            raise Failure(f'the ignore file has "{line}"; name files and folders, with * at most, or teach release.py')
        parts = tuple(line.strip("/").split("/"))
        found.append((parts, line.startswith("/") or len(parts) > 1, line.endswith("/")))
    return found


def ignored(path: PurePosixPath, rules: list[tuple[tuple[str, ...], bool, bool]]) -> bool:
    """Whether an ignore file leaves out a file, given relative to the file's folder."""
    for parts, at_top, only_folders in rules:
        starts = (0,) if at_top else range(len(path.parts))
        for start in starts:
            piece = path.parts[start : start + len(parts)]
            is_folder = start + len(parts) < len(path.parts)
            if len(piece) == len(parts) and all(map(fnmatch.fnmatchcase, piece, parts)):
                if is_folder or not only_folders:
                    return True
    return False


def published(root: Path = ROOT) -> list[PurePosixPath]:
    """The files that the registry's client would pack: those that git tracks (without git: all), less .comfyignore."""
    ours = patterns((root / ".comfyignore").read_text(encoding="utf-8"))
    included = tuple(project(root)["tool"]["comfy"].get("includes", ()))  # published though it is ignored
    kept = (path for path in _tracked(root) if not ignored(path, ours) or str(path).startswith(included))
    return sorted(kept)


def _tracked(root: Path) -> list[PurePosixPath]:
    """The files of the project that are there; in a tree without git, those that .gitignore does not name."""
    git = shutil.which("git")
    if git and (root / ".git").exists():
        command = [git, "-C", str(root), "ls-files", "-z"]
        listed = subprocess.run(command, capture_output=True, check=False, env=clean_environment())
        if listed.returncode == 0:
            names = listed.stdout.decode().split("\0")
            return [PurePosixPath(name) for name in names if name and (root / name).is_file()]
    rules = patterns((root / ".gitignore").read_text(encoding="utf-8"))
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    paths = (PurePosixPath(path.as_posix()) for path in files if path.parts[0] != ".git")
    return [path for path in paths if not ignored(path, rules)]


def packed(root: Path = ROOT) -> bytes:
    """The archive as the registry's client makes it, with fixed dates: the same files give the same bytes."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in published(root):
            info = zipfile.ZipInfo(str(path))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, (root / path).read_bytes())
    return sink.getvalue()


def listing(root: Path = ROOT) -> str:
    """The archive in words: each folder at the top with its files and bytes, then all."""
    counts, sizes = Counter(), Counter()
    for path in published(root):
        counts[path.parts[0]] += 1
        sizes[path.parts[0]] += (root / path).stat().st_size
    lines = [f"{sizes[name]:>10,} bytes  {counts[name]:>4} {name}" for name in sorted(counts)]
    total = f"{sum(sizes.values()):>10,} bytes  {sum(counts.values()):>4} files, packed {len(packed(root)):,} bytes"
    return "\n".join([*lines, total])


# --- what may be missing ----------------------------------------------------------------------------------------------


def problems(root: Path = ROOT) -> list[str]:
    """What stands between the tree and a release, each in one line with its remedy."""
    found = []
    for check in (_version_problems, _archive_problems, _link_problems, _registry_problems, _template_problems):
        try:
            found += check(root)
        except Failure as failure:
            found.append(str(failure))
    return found


def _version_problems(root: Path) -> list[str]:
    version = project(root)["project"]["version"]
    found = sections((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    problems, titles = [], list(found)
    if UNRELEASED in titles[1:]:
        problems.append(f'CHANGELOG.md: "## {UNRELEASED}" is not the first section; move it to the top')
    released = [title for title in titles if title != UNRELEASED]
    for title in released:
        if not re.fullmatch(rf"{VERSION.pattern} \(\d{{4}}-\d\d-\d\d\)", title):
            problems.append(f'CHANGELOG.md: "## {title}" is not "## X.Y.Z (YEAR-MONTH-DAY)"')
    if not problems and released:
        order = [numbers(title.split(" ")[0]) for title in released]
        if order != sorted(order, reverse=True):
            problems.append("CHANGELOG.md: the versions do not fall from top to bottom; put the newest first")
        if numbers(version) != order[0]:
            problems.append(
                f"pyproject.toml says {version} and CHANGELOG.md's newest section {released[0].split(' ')[0]}; "
                "`python tools/release.py --set` writes both"
            )
    numbers(version)
    return problems + [f'CHANGELOG.md: nothing below "## {title}"' for title in released if not found[title]]


def _archive_problems(root: Path) -> list[str]:
    files = published(root)
    places = {str(place) for path in files for place in (path, *path.parents)}
    problems = [
        f"the archive has no {name}; it is not tracked, or .comfyignore names it"
        for name in NEEDED
        if name not in places
    ]
    problems += [f"the archive has {name}/; name it in .comfyignore" for name in UNWANTED if name in places]
    if (size := len(packed(root))) > LARGEST:
        problems.append(f"the archive has {size:,} bytes, more than {LARGEST:,}; see `--list` for what is large")
    return problems


def _link_problems(root: Path) -> list[str]:
    """Pages whose pictures, or pages, are not in the archive. Code in them names files of the tests, and may.

    The frontend looks for what a help page names beside the English pages, in every language.
    """
    files = published(root)
    places = {str(place) for path in files for place in (path, *path.parents)}
    problems = []
    for page in (path for path in files if path.suffix == ".md"):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", (root / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", text) + re.findall(r'src="([^"]+)"', text):
            if re.match(r"[a-z]+:|/", target):
                continue
            base = HELP if HELP in page.parents else page.parent
            goal = os.path.normpath(base / target).replace(os.sep, "/")
            if goal not in places:
                problems.append(f'{page} links to "{target}", which is not in the archive; mend the link')
    return problems


def _registry_problems(root: Path) -> list[str]:
    settings, comfy = project(root)["project"], project(root)["tool"]["comfy"]
    problems = []
    known = SYSTEMS | ACCELERATORS
    for name in settings["classifiers"]:
        if name.startswith(("Operating System", "Environment")) and name not in known:
            problems.append(f'pyproject.toml: the registry knows no classifier "{name}", and drops them all')
    for table, keys in (
        (settings, ("name", "description", "readme", "requires-python", "license")),
        (settings["urls"], ("Repository", "Documentation", "Issues")),
        (comfy, ("PublisherId", "DisplayName", "requires-comfyui", "Icon", "Banner")),
    ):
        problems += [f'pyproject.toml has no "{key}"; the registry shows it' for key in keys if not table.get(key)]
    _, _, _, owner, name = settings["urls"]["Repository"].split("/")
    for key, path in PICTURES.items():
        address = RAW.format(owner=owner, name=name, path=path)
        if comfy.get(key, address) != address:
            problems.append(f'pyproject.toml: {key} is "{comfy[key]}"; the picture is at {address}')
        if not (root / path).is_file():
            problems.append(f"there is no {path}; `python tools/pack_pictures.py` draws it")
            continue
        width, height = png_size(root / path)
        if key == "Icon" and not width == height <= ICON_SIDE:
            problems.append(f"{path} has {width} x {height} pixels; the registry takes squares up to {ICON_SIDE}")
        if key == "Banner" and width * BANNER_SHAPE[1] != height * BANNER_SHAPE[0]:
            problems.append(f"{path} has {width} x {height} pixels; the registry shows 21 : 9")
    return problems


def png_size(path: Path) -> tuple[int, int]:
    """(width, height) of a PNG, from its first chunk: a release needs no picture library."""
    head = path.read_bytes()[:24]
    if head[:8] != b"\x89PNG\r\n\x1a\n":
        raise Failure(f"{path.name} is no PNG; `python tools/pack_pictures.py` draws it")
    return struct.unpack(">II", head[16:24])


def _template_problems(root: Path) -> list[str]:
    files = set(published(root))
    templates = [path for path in files if path.parts[0] == "example_workflows" and path.suffix == ".json"]
    return [
        f"{path} has no picture; `python tools/templates.py --pictures` draws it"
        for path in sorted(templates)
        if path.with_suffix(".jpg") not in files
    ]


def registry_validation(comfy: str | None, root: Path = ROOT) -> tuple[bool, str]:
    """(whether all is well, what the registry's client says). Failure where there is no client.

    It runs in a home of its own, and with no telemetry and no cache: it would leave files in both places.
    """
    program = shutil.which(comfy or "comfy")
    if not program:
        raise Failure(
            "NOT CHECKED: the registry's validation. Install comfy-cli in an environment of its own, "
            "and name its `comfy` with --comfy"
        )
    with tempfile.TemporaryDirectory() as home:
        places = dict.fromkeys(("HOME", "USERPROFILE", "XDG_CONFIG_HOME", "APPDATA", "LOCALAPPDATA"), home)
        done = subprocess.run(
            [program, "--skip-prompt", "--no-enable-telemetry", "node", "validate"],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
            env=clean_environment(**places, DO_NOT_TRACK="1", RUFF_NO_CACHE="true", NO_COLOR="1"),
        )
    text = done.stdout.strip()
    return done.returncode == 0 and not re.search(r"warning|error", text, re.IGNORECASE), text


def check(comfy: str | None, root: Path = ROOT) -> int:
    """Print what is there and what is missing; the exit status."""
    print(listing(root))
    found = problems(root)
    try:
        good, said = registry_validation(comfy, root)
        print("registry validation:\n" + "\n".join(f"  {line}" for line in said.splitlines()))
        if not good:
            found.append("the registry's validation has findings; see above")
    except Failure as missing:
        print(missing)
    for problem in found:
        print(f"release: {problem}", file=sys.stderr)
    print(f"{project(root)['project']['version']}: " + (f"{len(found)} problems" if found else "ready"))
    return bool(found)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="whether all is ready; writes nothing")
    what.add_argument("--list", action="store_true", help="what would be published")
    what.add_argument("--archive", metavar="FILE", type=Path, help="write the archive")
    what.add_argument("--set", metavar="VERSION", help="write the version, and the changelog's section of it")
    what.add_argument("--notes", action="store_true", help="the changelog of the version")
    parser.add_argument("--comfy", metavar="PATH", help="the registry's client, for --check")
    options = parser.parse_args(arguments)
    pyproject, changelog = root / "pyproject.toml", root / "CHANGELOG.md"
    try:
        if options.check:
            return check(options.comfy, root)
        if options.list:
            print(listing(root))
        elif options.archive:
            options.archive.write_bytes(packed(root))
        elif options.set:
            texts = {
                pyproject: with_version(pyproject.read_text(encoding="utf-8"), options.set),
                changelog: closed(changelog.read_text(encoding="utf-8"), options.set, datetime.date.today()),
            }
            for path, text in texts.items():  # both, or on a failure above none
                path.write_text(text, encoding="utf-8", newline="\n")
        else:
            print(notes(changelog.read_text(encoding="utf-8"), project(root)["project"]["version"]))
    except Failure as failure:
        print(f"release: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
