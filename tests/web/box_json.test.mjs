// Layouts of any origin, read alike by the editor and by Python: the golden cases, which tests/math reads too.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import * as model from "../../web/editor/model/drawing.js";
import * as json from "../../web/editor/model/json.js";
import { parsePasted } from "../../web/editor/model/layout_import.js";
import { ENGLISH } from "../../web/editor/model/words.js";

const GOLDEN = JSON.parse(readFileSync(new URL("../golden/layouts.json", import.meta.url), "utf8"));

/** The case's text; the two that would be long are written out here. */
function textOf(example) {
    if (example.json === "BOXES_65") return JSON.stringify(Array(65).fill({ x: 0, y: 0, width: 1, height: 1 }));
    return (example.text ?? JSON.stringify(example.json)).replace("PHRASE_1001", "x".repeat(1001));
}

/** What `act` throws as a Problem with words for it. */
function problemOf(act) {
    try {
        act();
    } catch (error) {
        assert.ok(error instanceof json.Problem, error?.stack);
        assert.ok(error.key in ENGLISH, error.key);
        const holes = [...ENGLISH[error.key].matchAll(/\{(\w+)\}/g)].map((found) => found[1]);
        for (const hole of holes) assert.ok(hole in error.values, `${error.key} says ${hole}`);
        return error.key;
    }
    return undefined;
}

test("the limits are the golden ones", () => {
    const { boxes, phrase, text } = GOLDEN.limits;
    assert.deepEqual([json.MAX_BOXES, json.MAX_PHRASE, json.MAX_TEXT], [boxes, phrase, text]);
});

for (const example of GOLDEN.import) {
    test(`read as Python reads it: ${example.name}`, () => {
        const [width, height] = example.size ?? [512, 384];
        const read = () => parsePasted(textOf(example), width, height);
        if (example.error) {
            assert.equal(problemOf(read), example.error);
            return;
        }
        const { boxes, source, order, unit } = read();
        assert.deepEqual([source, order, unit], [example.source, example.order, example.unit]);
        assert.deepEqual(boxes.map((box) => box.phrase), example.boxes.map((row) => row[0]));
        boxes.forEach((box, index) => [box.x, box.y, box.width, box.height].forEach((value, side) => {
            assert.ok(Math.abs(value - example.boxes[index][side + 1]) < 1e-9, `${value} ${example.boxes[index]}`);
        }));
    });
}

test("how the numbers were read is said in words there are", () => {
    for (const example of GOLDEN.import.filter((each) => !each.error)) {
        const { words, order } = parsePasted(textOf(example), ...(example.size ?? [512, 384]));
        assert.equal(words === null, example.source === "boxwright");
        if (words) assert.ok(words.order && words.unit in ENGLISH, `${order} of ${example.name}`);
    }
});

for (const example of GOLDEN.drawing) {
    test(`a region of our own as Python reads it: ${example.name}`, () => {
        const text = JSON.stringify({ type: json.FORMAT, version: json.VERSION, regions: [example.region] });
        assert.equal(problemOf(() => json.parseDrawing(text)), example.error);
    });
}

/** The one region of a text, and the state it makes. */
function onlyBox(region) {
    const state = model.stateOf(JSON.stringify({ type: json.FORMAT, version: json.VERSION, regions: [region] }));
    const written = (next) => JSON.parse(model.textOf(next)).regions[0];
    return { state, box: state.boxes[0], written };
}

test("a number out of its range is shown in it, marked, and kept as it is until it is changed", () => {
    for (const { name, region, shown } of GOLDEN.drawing.filter((each) => !each.error)) {
        const { state, box, written } = onlyBox(region);
        assert.equal("given" in box, shown !== undefined, name);
        if (!shown) continue;
        for (const [key, value] of Object.entries(shown)) assert.equal(box[key], value, `${name}: ${key}`);
        for (const key of Object.keys(region)) assert.deepEqual(written(model.movedBy(model.selectAll(state), 0, 0))[key], region[key], name);
        const [key] = Object.keys(box.given), other = Object.keys(box.given).length > 1;
        const set = model.set(state, [box.id], { [key]: shown[key] });
        assert.notEqual(written(set)[key], region[key], `${name}: ${key} was set to what it showed`);
        assert.equal("given" in set.boxes[0], other, name);
        const mended = written(model.mended(state));
        for (const each of Object.keys(shown)) assert.equal(mended[each], shown[each], `${name}: ${each} is mended`);
        assert.equal("given" in onlyBox(mended).box, false, name);
    }
});

test("a drawing without such a number needs no mending", () => {
    const { state } = onlyBox({ phrase: "a", x: 0, y: 0, width: 1, height: 1, strength: 0.5 });
    assert.equal(model.mended(state), state);
});

test("a text that is cut short ends with a whole character", () => {
    const { state, box } = onlyBox({ phrase: "a", x: 0, y: 0, width: 1, height: 1 });
    const long = `${"x".repeat(json.MAX_PHRASE - 1)}\u{1f600}`;
    assert.equal(model.set(state, [box.id], { phrase: long }).boxes[0].phrase, "x".repeat(json.MAX_PHRASE - 1));
});

test("hostile texts are refused in words", () => {
    const texts = ["[".repeat(500_000), "[{".repeat(300_000), '[{"a":'.repeat(100_000), `${"xyxy ".repeat(100_000)}[`,
        `caption ${"[{".repeat(5000)}]`, JSON.stringify(Array(50_000).fill([0, 0, 1, 1])),
        `{"layers": ${JSON.stringify(Array(70_000).fill({}))}}`, '[{"__proto__": [1, 2, 3, 4]}]',
        '{"compositional_deconstruction": {"elements": 5}}', '{"boxes": [null]}', '[{"bbox": {"bbox": {"bbox": 1}}}]'];
    for (const text of texts) assert.ok(problemOf(() => parsePasted(text, 512, 512)), text.slice(0, 40));
});
