"""What the host tests share: one real server with the pack in it, started when the first test asks for it."""
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

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
