"""What every room of the workbench shares: places, failures, progress lines, and child processes that always end."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Not resolved: a pack linked into custom_nodes must still find the ComfyUI around the link.
ROOT = Path(os.path.abspath(__file__)).parent.parent
WINDOWS = os.name == "nt"


class Failure(Exception):
    """Something the user can act on. The message is one line: the value, the rule and the remedy."""


class Stopped(BaseException):
    """The user or the system asked the workbench to end (Ctrl-C, SIGTERM, a closed terminal)."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def stop_on_signals() -> None:
    """Turn every polite request to end into Stopped, so that the blocks that own processes are left in order."""

    def raise_stopped(signum, _frame):
        raise Stopped(signum)

    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), raise_stopped)


def cache_directory() -> Path:
    """Where the environments, host sources and logs live: BOXWRIGHT_CACHE, else the user's cache directory."""
    if chosen := os.environ.get("BOXWRIGHT_CACHE"):
        return Path(chosen).absolute()
    if WINDOWS:
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "boxwright"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "boxwright"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "boxwright"


def log_file(stage: str) -> Path:
    """A new log file for one stage of this run. Only the newest forty logs are kept."""
    folder = cache_directory() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-39]:
        old.unlink(missing_ok=True)
    return folder / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def last_lines(path: Path, count: int = 12) -> str:
    """The end of a log, indented, for showing under a failure."""
    text = path.read_bytes().decode(errors="replace").replace("\r\n", "\n") if path.exists() else ""
    text = re.sub(r"\x1b\[[0-9;]*m|[^\n]*\r", "", text)  # colours, and what a progress bar overwrote
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-count:])


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would make another interpreter import the wrong packages.

    Threads of torch sleep while they wait: spinning, they cost several times the CPU where a server, a client and tests
    share two cores.
    """
    dropped = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return {"OMP_WAIT_POLICY": "PASSIVE", **kept, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", **extra}


@contextlib.contextmanager
def stage(title: str) -> Iterator[None]:
    """Print one line for a stage, and its time when it is done."""
    print(f"  {title} ...", end="", flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException:
        print(" failed", flush=True)
        raise
    print(f" {time.monotonic() - started:.0f} s", flush=True)


@contextlib.contextmanager
def child(command: list, patience: float = 8, **options) -> Iterator[subprocess.Popen]:
    """Run a command in a process group of its own; when the block ends, however it ends, the whole group is gone."""
    options.setdefault("stdin", subprocess.DEVNULL)
    if WINDOWS:
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        options["start_new_session"] = True
    process = subprocess.Popen([str(part) for part in command], **options)
    try:
        yield process
    finally:
        with _signals_ignored():
            _end(process, patience)


def _end(process: subprocess.Popen, patience: float) -> None:
    """Ask the process to stop, then insist, then sweep its group."""
    if WINDOWS:
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
        process.wait()
        return
    for signum, wait in ((signal.SIGINT, patience), (signal.SIGTERM, 3)):
        if process.poll() is not None:
            break
        _signal_group(process, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
    _signal_group(process, signal.SIGKILL)  # also whatever its leader left behind
    process.wait()


def _signal_group(process: subprocess.Popen, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signum)


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """A second Ctrl-C must not cut the cleaning up short."""
    try:
        previous = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
    except ValueError:  # only the main thread may change handlers, and only it receives signals
        previous = []
    try:
        yield
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


def run_logged(command: list, log: Path, **options) -> int:
    """Run a command to its end with all output in the log; returns its exit status."""
    with open(log, "ab") as sink, child(command, stdout=sink, stderr=subprocess.STDOUT, **options) as process:
        return process.wait()


def remove_tree(path: Path) -> None:
    """Delete a directory; a file that cannot be deleted (Windows, still open) is left for the system to clear."""
    shutil.rmtree(path, ignore_errors=True)


def exit_status(work: Callable[[], None], *problems: type[Exception]) -> int:
    """Do a tool's work: 0, or 1 and one line where one of these stopped it."""
    try:
        work()
    except problems as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0
