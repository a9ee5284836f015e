"""A stand-in for a ComfyUI checkout that starts in no time, for tests of how the workbench treats its processes."""

SERVING = """
import argparse, http.server
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
port = parser.parse_known_args()[0].port
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
DYING = "import sys\nprint('a line from the log')\nsys.exit('the fake host cannot start')\n"


def make(folder, main=SERVING, version="1.2.3"):
    """Write the files that make a folder look like a ComfyUI; `main` is the text of its main.py. Returns the folder."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "cli_args.py").write_text('parser.add_argument("--cpu")\n')
    (folder / "main.py").write_text(main)
    (folder / "nodes.py").write_text("")
    (folder / "requirements.txt").write_text("torch\nnumpy>=1.25.0\n")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder
