"""The example workflows, which ComfyUI offers as templates: brought into shape, and their pictures drawn.

    python tools/templates.py               every workflow made for the toy model gets a checkpoint that users have, its
                                            size, words of what users draw, a note that says so, and its title as
                                            the name of its file
    python tools/templates.py --pictures    draws the picture of each that lacks one (or of those that are named), on
                                            the toy model; needs the environment of the tests (COMFYUI_PATH)

The host shows a template's file name as its title and its words, and `<name>.jpg` beside it as its picture. The tests
and the demo run the variants for the toy model, `for_toy`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from wb_common import Failure, exit_status
from wb_demo import execute, load_workflow, save_pictures
from wb_environment import host_at
from wb_graph import to_api
from wb_server import running_server
from wb_templates import (
    BEFORE,
    FOLDER,
    PICTURE,
    TOY_BATCH,
    boxes_of,
    checkpoints,
    for_toy,
    for_users,
    seeded,
    stem_of,
    template,
    written,
)


def bring_into_shape() -> list[str]:
    """Convert and rename what was made for the toy model; what was done, in lines."""
    said = []
    for path in sorted(FOLDER.glob("*.json")):
        workflow = load_workflow(path)
        made, goal = for_users(workflow), template(path.stem)
        if made is not workflow:
            path.write_text(written(made), "utf-8", newline="\n")
            said.append(f"{path.name}: now for {checkpoints(made)[0]}")
        if goal != path:
            path.rename(goal)
            said.append(f"{path.name} -> {goal.name}")
        elif stem_of(path) == path.stem:
            said.append(f"{path.name}: has no title; give it one in TITLES")
    return said


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw_pictures(names: list[str], again: bool = False) -> None:
    """The picture of each template that lacks one: what the workflow draws on the toy, and in the corner without.

    Where it changes a picture, that one stands in the corner, and an arrow goes from it. Where there are boxes, of four
    pictures of one batch the one whose objects lie best in them.
    """
    paths = [path for path in sorted(FOLDER.glob("*.json")) if not names or {stem_of(path), path.stem} & {*names}]
    lacking = [path for path in paths if again or not path.with_suffix(".jpg").exists()]
    if not lacking:
        return
    with running_server(Path(sys.executable), host_at(Path(os.environ["COMFYUI_PATH"]), "COMFYUI_PATH")) as server:
        info = server.get_json("/object_info")
        for path in lacking:
            stem = stem_of(path)
            graph = seeded(to_api(for_toy(load_workflow(path)), info), stem)
            boxes = boxes_of(graph)
            for node in graph.values():
                if "batch_size" in node["inputs"]:
                    node["inputs"]["batch_size"] = TOY_BATCH if boxes else 1
            small = "unpatched"
            if stem in BEFORE:
                small, graph = "before", _with_the_picture_before(graph, BEFORE[stem])
            with tempfile.TemporaryDirectory() as folder:
                drawn = save_pictures(server, graph, execute(server, graph), Path(folder))
                best = _best(drawn, boxes)
                _compose(drawn["patched"][best], drawn[small][best], boxes, path.with_suffix(".jpg"), stem in BEFORE)
            print(f"{path.stem}.jpg", flush=True)


def _with_the_picture_before(graph: dict, latent: str) -> dict:
    """The graph that saves what it draws and the picture of a latent, and nothing else."""
    graph = {
        number: node
        for number, node in graph.items()
        if node["class_type"] not in ("PreviewImage", "MaskPreview")
        and not node["inputs"].get("filename_prefix", "").endswith("/unpatched")
    }
    (load,) = [number for number, node in graph.items() if node["class_type"] == "CheckpointLoaderSimple"]
    for number, kind, inputs in (
        ("before", "VAEDecode", {"samples": [latent, 0], "vae": [load, 2]}),
        ("saved", "SaveImage", {"images": ["before", 0], "filename_prefix": "boxwright/before"}),
    ):
        graph[number] = {"class_type": kind, "inputs": inputs, "_meta": {"title": "The picture before"}}
    return graph


def _best(drawn: dict[str, list[Path]], boxes: list[dict]) -> int:
    """Which picture of the batch has its objects in the boxes, all of them; the last one where there are none."""
    if not boxes or len(drawn["patched"]) != len(drawn["unpatched"]):
        return -1
    import contact_sheet  # here, since it needs the packages of the tests

    scores = contact_sheet.score(contact_sheet.import_scorer(), boxes, drawn)["patched"]
    lying = [
        sum(found.iou for found in score.objects) * min(found.inside_mass for found in score.objects)
        for score in scores
    ]
    return lying.index(max(lying))


def _compose(patched: Path, small_one: Path, boxes: list[dict], goal: Path, arrow: bool) -> None:
    from PIL import Image, ImageDraw

    colours = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66))
    picture = Image.open(patched).convert("RGB").resize((PICTURE, PICTURE), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    for index, box in enumerate(boxes):
        corners = [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]]
        edge = [round(value * PICTURE) for value in corners]
        draw.rectangle(edge, outline=(0, 0, 0), width=6)
        draw.rectangle([edge[0] + 1, edge[1] + 1, edge[2] - 1, edge[3] - 1], outline=colours[index % 4], width=4)
    inset, frame = PICTURE * 30 // 100, 3
    small = Image.open(small_one).convert("RGB").resize((inset, inset), Image.Resampling.LANCZOS)
    place = _corner(picture, inset)
    draw.rectangle(
        [place[0] - frame, place[1] - frame, place[0] + inset + frame - 1, place[1] + inset + frame - 1],
        fill=(40, 40, 40),
    )
    picture.paste(small, place)
    if arrow:  # before -> after
        way = 1 if place[0] < PICTURE // 2 else -1
        base, middle = place[0] + inset + frame if way > 0 else place[0] - frame, place[1] + inset // 2
        draw.polygon([(base, middle - 20), (base + 26 * way, middle), (base, middle + 20)], fill=(40, 40, 40))
    picture.save(goal, quality=88, optimize=True)


def _corner(picture, inset: int) -> tuple[int, int]:
    """Where a small picture hides least: the corner that is nearest to one colour."""
    from PIL import ImageStat

    near, far = PICTURE // 40, PICTURE - inset - PICTURE // 40
    corners = ((near, far), (far, far), (far, near), (near, near))
    return min(corners, key=lambda at: sum(ImageStat.Stat(picture.crop((*at, at[0] + inset, at[1] + inset))).var))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pictures", action="store_true", help="draw the pictures that are lacking")
    parser.add_argument("--again", action="store_true", help="draw them even where they are there")
    parser.add_argument("names", nargs="*", help="of workflows whose pictures are drawn; none = all")
    options = parser.parse_args()

    def work() -> None:
        print("\n".join(bring_into_shape()) or "every template is in shape")
        if options.pictures:
            draw_pictures(options.names, options.again)

    return exit_status(work, Failure, subprocess.SubprocessError)


if __name__ == "__main__":
    sys.exit(main())
