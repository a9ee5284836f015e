"""Runs a ComfyUI's main.py, and ends it as soon as the workbench that started it is gone.

Usage: host_main.py MAIN_PY [arguments]. Standard input is a pipe whose other end the workbench holds. A workbench that
is killed outright cannot stop its server, but its end of the pipe closes with it.
"""

import os
import runpy
import sys
import threading


def follow_parent() -> None:
    """Wait for the pipe to close, then end this process without ceremony."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=follow_parent, daemon=True).start()
    main_py = os.path.abspath(sys.argv[1])
    sys.argv = [main_py, *sys.argv[2:]]
    sys.path[0] = os.path.dirname(main_py)
    runpy.run_path(main_py, run_name="__main__")
