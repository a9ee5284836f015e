"""The README's first command, run for real: pictures, contact sheet and table from a server that is gone afterwards."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The finished demo: (its output, its temporary directory)."""
    scratch = tmp_path_factory.mktemp("scratch")
    environment = {**os.environ, "TMPDIR": str(scratch), "BOXWRIGHT_CACHE": str(tmp_path_factory.mktemp("cache"))}
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "workbench.py", "demo", "--python", sys.executable],
        env=environment,
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, scratch


def test_pictures_are_drawn_with_and_without_the_patch(demo):
    names = {path.name for path in DEMO.glob("*.png")}
    expected = {f"{kind}_{number}.png" for kind in ("unpatched", "patched") for number in range(1, 5)}
    assert names == expected | {"contact_sheet.png"}
    for name in expected:
        pixels = np.asarray(Image.open(DEMO / name).convert("RGB"), dtype=float)
        assert pixels.shape == (256, 256, 3)
        assert pixels.std() > 10, f"{name} is blank"
        assert pixels.mean() < 64, f"{name} does not lie on the black background that was asked for"
    changes = []
    for number in range(1, 5):
        pair = [np.asarray(Image.open(DEMO / f"{kind}_{number}.png"), dtype=float) for kind in ("unpatched", "patched")]
        changes.append(np.abs(pair[0] - pair[1]).mean())
    assert min(changes) > 0.5 and sorted(changes)[1] > 5, changes


def test_contact_sheet_holds_every_picture_with_its_boxes(demo):
    sheet = np.asarray(Image.open(DEMO / "contact_sheet.png").convert("RGB"))
    assert sheet.shape[0] > 4 * 256 and sheet.shape[1] > 2 * 256
    # In the first box, below its label and within its lines, most pictures show something.
    shown = [np.asarray(Image.open(DEMO / f"patched_{i}.png").convert("RGB"))[70:90, 45:65] for i in range(1, 5)]
    part = max(shown, key=lambda pixels: pixels.std())
    assert part.std() > 20
    windows = np.lib.stride_tricks.sliding_window_view(sheet, part.shape)[:, :, 0]
    rows = [row for row in range(windows.shape[0]) if (windows[row] == part).all(axis=(1, 2, 3)).any()]
    assert rows, "a patched picture is not on the sheet"
    box_ink = (sheet == (230, 0, 120)).all(axis=2)
    left, right = box_ink[:, : sheet.shape[1] // 2], box_ink[:, sheet.shape[1] // 2 :]
    assert left.sum() > 1000 and right.sum() > 1000, "boxes must be drawn on both columns"


def test_table_shows_that_the_patched_pictures_obey_better(demo):
    rows = re.findall(r"^(\w[\w ]*?)" + r" +(\d\.\d\d)" * 6 + "$", demo[0], re.M)
    assert [row[0] for row in rows][-1] == "mean" and len(rows) == 4
    for row in rows:
        assert all(0 <= float(value) <= 1 for value in row[1:])
    _, iou, inside = map(float, rows[-1][1:4])
    _, patched_iou, patched_inside = map(float, rows[-1][4:])
    assert patched_iou > iou
    assert patched_inside > inside


def test_nothing_is_left_behind(demo):
    scratch = str(demo[1])
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if any(scratch in part for part in process.info["cmdline"] or [])
    ]
    assert left == []
    assert list(demo[1].glob("boxwright-*")) == []


def test_output_is_lines_not_a_progress_bar_when_nobody_watches(demo):
    assert not re.search(r"\[[#.]+\]", demo[0])
    assert "KSampler (patched)" in demo[0]
