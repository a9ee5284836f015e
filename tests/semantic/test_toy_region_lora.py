"""LoRAs of regions on the toy model: each box in its own style, where both LoRAs everywhere mix.

Thresholds lie well inside what was measured (docs/results.md); the full table: test_full_region_lora.py.
"""

import pytest
from styles import CASES, HEAD, line, score


@pytest.fixture(scope="module")
def found(toy):
    print(f"\n{HEAD}")
    scores = {}
    for name in ("both LoRAs everywhere", "Region LoRA"):
        scores[name] = score(toy, name, CASES[:2], (0, 1))
        print(line(name, scores[name]), flush=True)
    return scores


def test_each_box_has_its_own_style(found):
    assert found["Region LoRA"]["filled"] >= 0.6
    assert found["Region LoRA"]["own"] >= 0.75
    assert found["Region LoRA"]["strange"] < 0.02


def test_both_loras_everywhere_do_not(found):
    assert found["both LoRAs everywhere"]["own"] <= 0.7
