// Geometry against plain oracles: pixels counted one by one, brute force.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import test from "node:test";

import { automaticColor, contrast, inkOn, lineOn } from "../../web/editor/model/colors.js";
import * as geometry from "../../web/editor/model/geometry.js";
import { Problem } from "../../web/editor/model/json.js";
import { parsePasted } from "../../web/editor/model/layout_import.js";
import { isInPrompt } from "../../web/editor/model/phrases.js";
import { ENGLISH, translator } from "../../web/editor/model/words.js";
import { dice } from "./random_edits.mjs";

const box = (x, y, width, height) => ({ x, y, width, height });

test("coverage equals counting cells", () => {
    const side = 24;
    for (let seed = 0; seed < 300; seed += 1) {
        const random = dice(seed), whole = () => Math.floor(random() * (side + 1));
        const boxes = Array.from({ length: Math.floor(random() * 9) }, () => {
            const [left, right] = [whole(), whole()].sort((a, b) => a - b), [top, low] = [whole(), whole()].sort((a, b) => a - b);
            return box(left / side, top / side, (right - left) / side, (low - top) / side);
        });
        let covered = 0, overlapped = 0;
        for (let y = 0; y < side; y += 1) {
            for (let x = 0; x < side; x += 1) {
                const count = boxes.filter((each) => geometry.touches(each, box(x / side + 1e-6, y / side + 1e-6, 1e-3, 1e-3))).length;
                covered += count > 0;
                overlapped += count > 1;
            }
        }
        const found = geometry.coverage(boxes);
        assert.ok(Math.abs(found.covered - covered / side ** 2) < 1e-9, `seed ${seed}`);
        assert.ok(Math.abs(found.overlapped - overlapped / side ** 2) < 1e-9, `seed ${seed}`);
        const gaps = found.gaps.reduce((sum, gap) => sum + gap.width * gap.height, 0);
        assert.ok(Math.abs(gaps + found.covered - 1) < 1e-9);
        assert.ok(found.gaps.every((gap) => !boxes.some((each) => each.width * each.height > 0 && geometry.touches(gap, {
            x: each.x + 1e-9, y: each.y + 1e-9, width: each.width - 2e-9, height: each.height - 2e-9,
        }))));
    }
});

test("a box is too small where it fills no cell by half, as the report in Python says", () => {
    const size = { width: 512, height: 384 };
    assert.deepEqual(geometry.unfilledGrids(box(0, 0, 0.125, 64 / 384), size), []);
    assert.deepEqual(geometry.unfilledGrids(box(0.07, 0, 0.11, 1), size), [[8, 6]]);
    assert.deepEqual(geometry.unfilledGrids(box(0.5, 0.5, 0.01, 0.01), size), [[8, 6], [16, 12]]);
    assert.deepEqual(geometry.unfilledGrids(box(0, 0, 0.125, 0.5 * 64 / 384), size), []);
    assert.deepEqual(geometry.unfilledGrids(box(0.9, 0.9, 0.1, 0.1), { width: 100, height: 100 }), [[2, 2], [4, 4]]);
});

test("a resized box keeps its ratio and its anchor", () => {
    for (let seed = 0; seed < 3000; seed += 1) {
        const random = dice(seed), x = random() * 0.8, y = random() * 0.8;
        const rect = box(x, y, 0.02 + (1 - x - 0.02) * random(), 0.02 + (1 - y - 0.02) * random());
        const handle = geometry.HANDLES[Math.floor(random() * 8)], point = { x: random(), y: random() };
        const centred = random() < 0.5, ratio = rect.width / rect.height;
        const found = geometry.resized(rect, handle, point, { ratio, centred });
        assert.ok(Math.abs(found.width / found.height / ratio - 1) < 1e-6, `seed ${seed}`);
        for (const [start, length] of [[found.x, found.width], [found.y, found.height]]) {
            assert.ok(start > -1e-9 && start + length < 1 + 1e-9 && length > 0, `seed ${seed} ${JSON.stringify(found)}`);
        }
        if (centred) {
            assert.ok(Math.abs(found.x + found.width / 2 - rect.x - rect.width / 2) < 1e-9);
            assert.ok(Math.abs(found.y + found.height / 2 - rect.y - rect.height / 2) < 1e-9);
        } else if (handle === "se" && point.x > rect.x && point.y > rect.y) {
            assert.ok(Math.abs(found.x - rect.x) + Math.abs(found.y - rect.y) < 1e-9);
            const tight = Math.abs(found.width - (point.x - rect.x)) < 1e-6 || Math.abs(found.height - (point.y - rect.y)) < 1e-6;
            assert.ok(tight || found.x + found.width > 1 - 1e-6 || found.y + found.height > 1 - 1e-6, `seed ${seed}`);
        }
    }
});

test("snapping takes the nearest line within reach", () => {
    const lines = geometry.snapLines([box(0.4, 0.4, 0.1, 0.1)], 0, { width: 512, height: 512 });
    assert.deepEqual(geometry.snap([0.41], lines.x, 0.02), { by: 0.4 - 0.41, line: 0.4 });
    assert.equal(geometry.snap([0.43], lines.x, 0.01), null);
    for (const near of [[0.4, 0.412, 0.42], [0.42, 0.412, 0.4]]) assert.equal(geometry.snap([0.411], near, 0.02).line, 0.412);
    const { rect, guides } = geometry.snappedMove(box(0.505, 0.1, 0.2, 0.2), lines, { x: 0.01, y: 0.01 });
    assert.ok(Math.abs(rect.x - 0.5) < 1e-9);
    assert.deepEqual(guides, { x: [0.5], y: [] });
    assert.equal(geometry.snapLines([], 128, { width: 512, height: 256 }).y.length, 6);
});

test("ink can be read on every automatic colour, and outlines stand out from both papers", () => {
    const seen = new Set();
    for (let index = 0; index < 64; index += 1) {
        const color = automaticColor(index);
        seen.add(color);
        assert.ok(contrast(color, inkOn(color)) >= 4.5, color);
        for (const paper of ["#ffffff", "#26272b"]) assert.ok(contrast(lineOn(color, paper), paper) >= 3, `${color} on ${paper}`);
    }
    assert.equal(seen.size, 64);
    assert.equal(automaticColor(0), "#e69f00");
});

test("a phrase counts as whole words, whatever their case, width and emphasis", () => {
    assert.ok(isInPrompt("red heart", "A (Red  heart:1.2), and"));
    assert.ok(isInPrompt("red heart", "((red heart))"));
    assert.ok(isInPrompt("(red heart:1.3)", "a red heart"));
    assert.ok(isInPrompt("saber (fate)", "saber \\(fate\\)") && isInPrompt("saber \\(fate\\)", "saber \\(fate\\)"));
    assert.ok(!isInPrompt("(red heart:1.3)", "a red hearth"));
    assert.ok(isInPrompt("snow", "ｓｎｏｗ"));
    assert.ok(isInPrompt("雪", "白い雪が"));
    assert.ok(!isInPrompt("red", "a bored man"));
    assert.ok(!isInPrompt("cafe", "a café"));
    assert.ok(isInPrompt("", "anything"));
    assert.ok(isInPrompt("don't", "I don't know"));
});

test("pasted boxes are read, cut to the image, or refused in words", () => {
    const { boxes: [cut] } = parsePasted('[[{"x": -32, "y": 0, "width": 96, "height": 540, "metadata": {"desc": "cat"}}]]', 512, 512);
    assert.deepEqual(cut, { phrase: "cat", x: 0, y: 0, width: 0.125, height: 1, extra: {} });
    for (const text of ["", "1", "null", "[]", "{}", '[{"x":1}]', '{"bbox":[1,2,3]}', '{"x":900,"y":0,"width":9,"height":9}']) {
        assert.throws(() => parsePasted(text, 512, 512), Problem, text);
    }
});

test("every message has its words, and values are put in as they are", () => {
    const t = translator({ copied: "{count} kopiert", undo: 5 });
    assert.equal(t("copied", { count: "{limit}$&" }), "{limit}$& kopiert");
    assert.equal(t("undo"), ENGLISH.undo);
    assert.equal(t("boxSize", { number: 3 }), "Box 3 has no size.");
    assert.equal(t("boxSize", Object.create({ number: 3 })), "Box {number} has no size.");
});

test("every translation has the same messages with the same holes", () => {
    const holes = (text) => [...text.matchAll(/\{(\w+)\}/g)].map((found) => found[1]).sort().join();
    const folder = new URL("../../locales/", import.meta.url);
    const languages = readdirSync(folder);
    assert.ok(languages.length >= 2);
    for (const language of languages) {
        const own = JSON.parse(readFileSync(new URL(`${language}/main.json`, folder), "utf8")).boxwright;
        assert.deepEqual(Object.keys(own).sort(), Object.keys(ENGLISH).sort(), language);
        for (const [key, text] of Object.entries(own)) assert.equal(holes(text), holes(ENGLISH[key]), `${language}: ${key}`);
    }
});

test("every message that the code asks for exists, and none is left over", () => {
    const folder = new URL("../../web/", import.meta.url);
    const files = readdirSync(folder, { recursive: true }).filter((name) => name.endsWith(".js") && !name.endsWith("words.js"));
    const code = files.map((name) => readFileSync(new URL(name, folder), "utf8")).join("\n");
    for (const key of Object.keys(ENGLISH)) {
        const stem = key.replace(/(Hint|Of)$/, "");
        assert.ok(new RegExp(`\\b(${key}|${stem})\\b`).test(code), `${key} is used nowhere`);
    }
    for (const [, key] of code.matchAll(/(?:\bt|\.t|say|Problem)\("(\w+)"/g)) assert.ok(ENGLISH[key], `${key} has no words`);
});
