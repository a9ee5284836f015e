"""A real ComfyUI server on loopback: its private base directory, its port, its start and its certain end."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from wb_common import ROOT, WINDOWS, Failure, child, clean_environment, last_lines, log_file, remove_tree
from wb_demo import load_workflow
from wb_environment import Host
from wb_http import Server
from wb_templates import for_toy, written

LOOPBACK = "127.0.0.1"
START_LIMIT = 240  # seconds; a cold start on a slow disk imports some gigabytes
TOYWORLD = ROOT / "tests" / "toyworld"


@contextlib.contextmanager
def base_directory(root: Path = ROOT) -> Iterator[Path]:
    """A fresh directory for the host's models, custom nodes and user files, with the pack and the toy model in it."""
    base = Path(tempfile.mkdtemp(prefix="boxwright-"))
    try:
        nodes, checkpoints = base / "custom_nodes", base / "models" / "checkpoints"
        loras = base / "models" / "loras"
        workflows = base / "user" / "default" / "workflows"
        for folder in (nodes, checkpoints, loras, workflows, base / "input", base / "output"):
            folder.mkdir(parents=True)
        link_folder(root, nodes / "boxwright")
        link_folder(root / "tests" / "toyworld" / "companion", nodes / "boxwright_toyworld")
        link_file(root / "tests" / "toyworld" / "toyworld.safetensors", checkpoints / "toyworld.safetensors")
        for lora in sorted((root / "tests" / "toyworld").glob("lora_*.safetensors")):
            link_file(lora, loras / lora.name.replace("lora_", "toyworld_"))
        for path in sorted((root / "example_workflows").glob("*.json")):
            (workflows / path.name).write_text(written(for_toy(load_workflow(path))), "utf-8")
        yield base
    finally:
        remove_tree(base)


def link_folder(source: Path, link: Path) -> None:
    """Make a folder visible under another path: a symbolic link, else a junction (Windows), else a copy."""
    if not source.is_dir():
        raise Failure(f'the folder "{source}" is missing; it belongs to the repository: check your clone')
    try:
        link.symlink_to(source, target_is_directory=True)
        return
    except (OSError, NotImplementedError):  # Windows without the privilege, or a file system without links
        pass
    if WINDOWS:
        made = subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(source)], capture_output=True, check=False)
        if made.returncode == 0:
            return
    shutil.copytree(source, link, ignore=shutil.ignore_patterns(".git", "__pycache__", "demo"))


def link_file(source: Path, link: Path) -> None:
    """Make a file visible under another path: a symbolic link, else a hard link, else a copy."""
    if not source.is_file():
        raise Failure(f'the file "{source}" is missing; it belongs to the repository: check your clone')
    for attempt in (link.symlink_to, link.hardlink_to):
        with contextlib.suppress(OSError, NotImplementedError):
            attempt(source)
            return
    shutil.copy(source, link)


def free_port(wanted: int | None = None) -> int:
    """The wanted port if it is free, else Failure; without a wish, any free port."""
    with socket.socket() as probe:
        if not WINDOWS:  # there, the option would let us bind a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted or 0))
        except (OSError, OverflowError) as error:
            raise Failure(
                f"port {wanted} on {LOOPBACK} cannot be used ({error}); give another one with --port, "
                "or none for any free port"
            ) from error
        return probe.getsockname()[1]


def host_arguments(host: Host, base: Path, port: int, gpu: bool) -> list[str]:
    """The host's command line, without the flags this version does not know yet."""
    known = (host.path / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    flags = [["--disable-auto-launch"], ["--disable-api-nodes"], ["--dont-print-server"]]
    flags += [["--database-url", "sqlite:///:memory:"]]
    if not gpu:  # torch's own attention, which GPUs get by default, takes half the time of the host's choice for CPUs
        flags += [["--cpu"], ["--use-pytorch-cross-attention"]]
    arguments = ["--listen", LOOPBACK, "--port", str(port), "--base-directory", str(base)]
    return arguments + [part for flag in flags if f'"{flag[0]}"' in known for part in flag]


@contextlib.contextmanager
def running_server(
    python: Path,
    host: Host,
    port: int | None = None,
    extra: Sequence[str] = (),
    gpu: bool = False,
    directory: Callable[[], contextlib.AbstractContextManager[Path]] = base_directory,
) -> Iterator[Server]:
    """A started and answering server on a base directory; it and its files are gone when the block ends."""
    port, log = free_port(port), log_file("server")
    with directory() as base:
        command = [python, ROOT / "tools" / "host_main.py", host.path / "main.py"]
        command += [*host_arguments(host, base, port, gpu), *extra]
        with (
            open(log, "wb") as sink,
            child(
                command,
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=host.path,
                env=clean_environment(),
            ) as process,
        ):
            server = Server(LOOPBACK, port, process, log)
            wait_until_ready(server)
            yield server


def wait_until_ready(server: Server) -> None:
    """Return when the server answers; Failure with the end of its log when it dies or stays silent."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        server.check_alive()
        with contextlib.suppress(OSError, ValueError):
            server.get_json("/system_stats")
            return
        time.sleep(0.2)
    raise Failure(f"the server did not answer within {START_LIMIT} s; full log: {server.log}\n{last_lines(server.log)}")
