// What the editor computes as Python does: colours, ink, phrases in a prompt, coverage. tests/host and tests/math read
// the same cases.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { automaticColor, inkOn } from "../../web/editor/model/colors.js";
import { coverage } from "../../web/editor/model/geometry.js";
import { isInPrompt } from "../../web/editor/model/phrases.js";

const GOLDEN = JSON.parse(readFileSync(new URL("../golden/drawing.json", import.meta.url), "utf8"));

test("automatic colours are the golden ones", () => {
    assert.deepEqual(GOLDEN.palette.map((_, index) => automaticColor(index)), GOLDEN.palette);
});

test("ink is the golden one", () => {
    for (const [color, ink] of GOLDEN.inks) assert.equal(inkOn(color), ink, color);
});

test("phrases are found as the golden cases say", () => {
    for (const [phrase, prompt, found] of GOLDEN.phrases) assert.equal(isInPrompt(phrase, prompt), found, `${phrase} in ${prompt}`);
});

test("coverage is the golden one", () => {
    for (const { boxes, covered, overlapped } of GOLDEN.coverage) {
        const found = coverage(boxes.map(([x, y, width, height]) => ({ x, y, width, height })));
        assert.ok(Math.abs(found.covered - covered) < 1e-6 && Math.abs(found.overlapped - overlapped) < 1e-6, JSON.stringify(boxes));
    }
});
