"""What the host tests share: one real server with the pack in it, started when the first test asks for it."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

from browser import FLAGS, chromium_path, open_bench, unavailable
from wb_environment import host_at
from wb_server import running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real server with the pack and the toy model in it, for all tests of the session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOXWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        with running_server(Path(sys.executable), host_at(Path(os.environ["COMFYUI_PATH"]), "COMFYUI_PATH")) as server:
            yield server


@pytest.fixture(scope="session")
def object_info(server):
    """The running server's own description of its nodes."""
    return server.get_json("/object_info")


@pytest.fixture(scope="session")
def newest_server(tmp_path_factory):
    """The same with the newest frontend on the index, which the workbench has fetched."""
    frontend = os.environ.get("BOXWRIGHT_NEWEST_FRONTEND")
    if not frontend:
        unavailable("THE NEWEST FRONTEND IS NOT TESTED: run the tests with `python tools/workbench.py test`")
    host = host_at(Path(os.environ["COMFYUI_PATH"]), "COMFYUI_PATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOXWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        with running_server(Path(sys.executable), host, extra=["--front-end-root", frontend]) as server:
            yield server


def pytest_collection_modifyitems(config, items):
    """The newest frontend runs what is marked, in Nodes 2.0; the pinned one all, and in Nodes 2.0 all but what is
    marked. BOXWRIGHT_EVERY_VERSION=1 lets each run all. Older hosts run what opens no page."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("in_a_browser")
    if os.environ.get("BOXWRIGHT_EVERY_VERSION"):
        return
    left_out = [
        item
        for item in items
        if "[newest-classic" in item.name
        or "[newest" in item.name
        and not item.get_closest_marker("every_version")
        or "[pinned-nodes2" in item.name
        and item.get_closest_marker("one_renderer")
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def models():
    """Family -> a tiny random model of it, built when it is first asked for."""
    import tiny_models  # here: it imports the host

    return tiny_models.Built()


@pytest.fixture
def layout():
    """The layout of two regions that tests of methods use where nothing else is said."""
    import tiny_models

    return tiny_models.layout()


@pytest.fixture(scope="module")
def one_thread():
    """For models so small that threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reader():
    """The name of a tokenizer -> a PromptReader of it; each is built once."""
    import tiny_encoders

    return tiny_encoders.readers()


# Not for the session: while Playwright runs, asyncio.run() of other tests is refused.
@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    path = chromium_path()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("THE BROWSER TESTS DO NOT RUN: Playwright is not installed; use `python tools/workbench.py test`")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["pinned-classic", "pinned-nodes2", "newest-classic", "newest-nodes2"])
def bench(request, chromium):
    """A page with the editor, for each frontend version and each renderer."""
    version, renderer = request.param.split("-")
    server = request.getfixturevalue("server" if version == "pinned" else "newest_server")
    with open_bench(chromium, server.url, renderer == "nodes2") as bench:
        yield bench


@pytest.fixture
def no_errors(bench):
    """No test may leave an error in the page."""
    yield
    assert bench.errors == []
