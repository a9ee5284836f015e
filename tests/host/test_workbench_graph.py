"""The workbench's converter from saved workflows to the API format, against the frontend's own rules."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from wb_common import Failure
from wb_graph import declared_inputs, to_api

INFO = {
    "Load": {"input": {"required": {"name": [["a.safetensors", "b.safetensors"]]}}},
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0}],
                "steps": ["INT", {"default": 20}],
                "sampler": ["COMBO", {"options": ["euler", "heun"]}],
                "note": ["STRING", {"forceInput": True}],
            },
            "optional": {"mask": ["MASK"], "strength": ["FLOAT", {}]},
        }
    },
    "Pick": {"input": {"required": {"image": [["x.png"], {"image_upload": True}], "bright": ["BOOLEAN", {}]}}},
    "Choose": {
        "input": {
            "required": {
                "way": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "none", "inputs": {"required": {}}},
                            {
                                "key": "by",
                                "inputs": {
                                    "required": {
                                        "n": ["INT", {"control_after_generate": True}],
                                        "how": [
                                            "COMFY_DYNAMICCOMBO_V3",
                                            {
                                                "options": [
                                                    {"key": "much", "inputs": {"required": {"much": ["FLOAT", {}]}}},
                                                ]
                                            },
                                        ],
                                    },
                                    "optional": {"model": ["MODEL"]},
                                },
                            },
                        ]
                    },
                ],
                "last": ["INT", {}],
            }
        }
    },
    "TrainLoraNode": {
        "input": {
            "required": {
                "steps": ["INT", {"default": 16}],
                "seed": ["INT", {"default": 0}],
                "algorithm": ["COMBO", {"options": ["LoRA", "LoHa"]}],
                "bucket_mode": ["BOOLEAN", {"default": False}],
            }
        }
    },
    "Rename": {"input": {"required": {"model": ["MODEL"], "n": ["INT", {"control_after_generate": True}]}}},
}


def node(number, kind, inputs=(), outputs=(), values=(), **more):
    """A saved node; inputs are (name, type, link or None), outputs are types."""
    return {
        "id": number,
        "type": kind,
        "widgets_values": list(values),
        "inputs": [{"name": name, "type": type_, "link": link} for name, type_, link in inputs],
        "outputs": [{"name": type_, "type": type_} for type_ in outputs],
        **more,
    }


def convert(nodes, links=()):
    return to_api({"nodes": nodes, "links": list(links)}, INFO)


LOAD = node(1, "Load", outputs=["MODEL"], values=["a.safetensors"])


def sampler(link, values=(7, "randomize", 20, "euler", 0.5)):
    return node(9, "Sample", [("model", "MODEL", link)], ["LATENT"], values)


def test_widget_values_follow_declared_order_and_skip_the_seed_control():
    graph = convert([LOAD, sampler(5)], [[5, 1, 0, 9, 0, "MODEL"]])
    assert graph["1"] == {"class_type": "Load", "inputs": {"name": "a.safetensors"}, "_meta": {"title": "Load"}}
    assert graph["9"]["inputs"] == {"model": ["1", 0], "seed": 7, "steps": 20, "sampler": "euler", "strength": 0.5}


def test_upload_buttons_and_explicit_controls_are_skipped_too():
    graph = convert([node(1, "Pick", values=["x.png", "image", True]), node(2, "Rename", values=[3, "fixed"])])
    assert graph["1"]["inputs"] == {"image": "x.png", "bright": True}
    assert graph["2"]["inputs"] == {"n": 3}


def test_named_widget_values_and_links_as_objects():
    named = node(9, "Sample", [("model", "MODEL", 5)], values=[])
    named["widgets_values"] = {"steps": 3, "seed": 4, "videopreview": {}}
    link = {"id": 5, "origin_id": 1, "origin_slot": 0, "target_id": 9, "target_slot": 0, "type": "MODEL"}
    assert convert([LOAD, named], [link])["9"]["inputs"] == {"seed": 4, "steps": 3, "model": ["1", 0]}


CHOSEN = {"way": "by", "way.n": 7, "way.how": "much", "way.how.much": 0.5, "last": 3}


def test_a_dynamic_combo_is_followed_by_the_widgets_of_its_choice():
    """With a control_after_generate there, and a combo in a combo."""
    none = node(1, "Choose", values=["none", 3])
    by = node(2, "Choose", [("way.model", "MODEL", 5)], values=["by", 7, "fixed", "much", 0.5, 3])
    graph = convert([none, by, node(3, "Load", outputs=["MODEL"], values=["a"])], [[5, 3, 0, 2, 0, "MODEL"]])
    assert graph["1"]["inputs"] == {"way": "none", "last": 3}
    assert graph["2"]["inputs"] == CHOSEN | {"way.model": ["3", 0]}
    named = node(1, "Choose")
    named["widgets_values"] = CHOSEN | {"way.other": 1}
    assert convert([named])["1"]["inputs"] == CHOSEN
    with pytest.raises(Failure, match="3 saved .* takes 2"):
        convert([node(1, "Choose", values=["none", 7, 3])])


def test_inputs_that_a_node_shows_are_those_of_its_choices():
    assert list(declared_inputs(INFO["Choose"], {"way": "none"})) == ["way", "last"]
    assert set(declared_inputs(INFO["Choose"], CHOSEN)) == set(CHOSEN) | {"way.model"}


def test_a_linked_widget_takes_its_link_and_keeps_the_others_in_place():
    linked = node(9, "Sample", [("model", "MODEL", 5), ("steps", "INT", 6)], values=[7, "fixed", 20, "heun", 1.0])
    other = node(2, "Rename", values=[3, "fixed"], outputs=["INT"])
    graph = convert([LOAD, other, linked], [[5, 1, 0, 9, 0, "MODEL"], [6, 2, 0, 9, 1, "INT"]])
    assert graph["9"]["inputs"]["steps"] == ["2", 0]
    assert graph["9"]["inputs"]["sampler"] == "heun"


def test_notes_vanish_and_reroutes_are_followed():
    chain = [
        LOAD,
        node(2, "Reroute", [("", "*", 1)], ["MODEL"]),
        node(3, "Reroute", [("", "*", 2)], ["MODEL"]),
        sampler(3),
        node(4, "Note", values=["hello"]),
        node(5, "MarkdownNote", values=["hello"]),
    ]
    graph = convert(chain, [[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "*"], [3, 3, 0, 9, 0, "*"]])
    assert set(graph) == {"1", "9"}
    assert graph["9"]["inputs"]["model"] == ["1", 0]


def test_a_primitive_gives_its_value():
    primitive = node(2, "PrimitiveNode", outputs=["INT"], values=[33, "fixed"])
    linked = node(9, "Sample", [("steps", "INT", 6)], values=[7, "fixed", 20, "heun", 1.0])
    graph = convert([primitive, linked], [[6, 2, 0, 9, 0, "INT"]])
    assert set(graph) == {"9"} and graph["9"]["inputs"]["steps"] == 33


def test_a_bypassed_node_passes_the_input_of_its_outputs_type_through():
    bypassed = node(2, "Rename", [("clip", "CLIP", None), ("model", "MODEL", 1)], ["MODEL"], [3, "fixed"], mode=4)
    graph = convert([LOAD, bypassed, sampler(2)], [[1, 1, 0, 2, 1, "MODEL"], [2, 2, 0, 9, 0, "MODEL"]])
    assert set(graph) == {"1", "9"}
    assert graph["9"]["inputs"]["model"] == ["1", 0]


def test_a_muted_node_and_what_it_fed_are_left_out():
    muted = node(2, "Rename", [("model", "MODEL", 1)], ["MODEL"], [3, "fixed"], mode=2)
    graph = convert([LOAD, muted, sampler(2)], [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 9, 0, "MODEL"]])
    assert set(graph) == {"1", "9"}
    assert "model" not in graph["9"]["inputs"]


def test_titles_are_kept_for_messages():
    assert convert([{**LOAD, "title": "My loader"}])["1"]["_meta"] == {"title": "My loader"}


@pytest.mark.parametrize("values", [[7, "fixed", 20, "euler"], [7, "fixed", 20, "euler", 0.5, "more"]])
def test_values_that_do_not_fit_the_node_are_refused_not_shifted(values):
    with pytest.raises(Failure, match=f'node 9 .*"Sample".* {len(values)} saved .* takes 5'):
        convert([LOAD, sampler(5, values)], [[5, 1, 0, 9, 0, "MODEL"]])


def test_the_last_widgets_of_a_node_that_hosts_differ_in_keep_their_defaults():
    graph = convert([node(1, "TrainLoraNode", values=[3, 4, "fixed"]), node(2, "TrainLoraNode", values=[3])])
    assert graph["1"]["inputs"] == {"steps": 3, "seed": 4, "algorithm": "LoRA", "bucket_mode": False}
    assert graph["2"]["inputs"]["seed"] == 0
    with pytest.raises(Failure, match="has 6 saved .* takes 5"):
        convert([node(1, "TrainLoraNode", values=[3, 4, "fixed", "LoHa", True, "more"])])


def test_an_unknown_node_is_named():
    with pytest.raises(Failure, match='node 4 is a "Mystery".*not installed or failed to load'):
        convert([node(4, "Mystery")])
