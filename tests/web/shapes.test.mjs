// Shapes that are not boxes: the golden cases, which tests/math reads too, and properties of what the editor makes.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

import { automaticColor } from "../../web/editor/model/colors.js";
import * as model from "../../web/editor/model/drawing.js";
import { coverage, holds, unfilledGrids } from "../../web/editor/model/geometry.js";
import * as json from "../../web/editor/model/json.js";
import { cutOut, newPainting, stroke } from "../../web/editor/model/paint.js";
import * as shapes from "../../web/editor/model/shapes.js";
import { stencilOf } from "../../web/editor/view/stencils.js";
import { dice } from "./random_edits.mjs";

const GOLDEN = JSON.parse(readFileSync(new URL("../golden/shapes.json", import.meta.url), "utf8"));
const boxed = ([x, y, width, height], shape) => ({ x, y, width, height, shape });
const text = (...regions) => JSON.stringify({ type: json.FORMAT, version: 1, regions });
const region = (more) => ({ phrase: "a", x: 0.1, y: 0.2, width: 0.5, height: 0.4, ...more });
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

test("the limits are the golden ones", () => {
    const { limits } = GOLDEN;
    assert.deepEqual([shapes.STEPS, [shapes.MIN_POINTS, shapes.MAX_POINTS], shapes.MAX_CELLS, shapes.MAX_RUNS, shapes.FULL + 1],
        [limits.steps, limits.points, limits.cells, limits.runs, limits.letters.length]);
    const all = Uint8Array.from(limits.letters, (_, level) => level);
    assert.equal(shapes.runsOf(all), limits.letters);
});

test("shapes cover what the golden cases say", () => {
    for (const { box, shape, cells, covered } of GOLDEN.shapes) {
        const [{ id, ...read }] = model.stateOf(text(region({ ...boxed(box, shape) }))).boxes;
        shapes.rasterized(read, 4, 5).forEach((share, at) => {
            assert.ok(Math.abs(share - cells[at]) < 2e-6, `${JSON.stringify(shape).slice(0, 80)} cell ${at}: ${share}, not ${cells[at]}`);
        });
        assert.ok(Math.abs(coverage([read]).covered - covered) < 2e-6);
    }
});

test("what is no shape is refused in words", () => {
    for (const shape of GOLDEN.refused) {
        assert.throws(() => json.parseDrawing(text(region({ shape }))), (error) => error instanceof json.Problem
            && ["boxShape", "boxPoints", "boxPaint"].includes(error.key), JSON.stringify(shape));
    }
});

test("further fields are read as the golden cases say", () => {
    for (const { given, read } of GOLDEN.fields) {
        const [box] = json.parseDrawing(text(region(given))).boxes;
        for (const [key, value] of Object.entries(read)) assert.equal(box[key], value, key);
    }
    for (const bad of [{ opacity: "1" }, { lora: 5 }, { lora: "a\nb" }, { lora: "x".repeat(301) }, { lora_strength: null, lora: {} }, { opacity: [1] }]) {
        assert.throws(() => json.parseDrawing(text(region(bad))), json.Problem, JSON.stringify(bad));
    }
});

test("fields are written under their names, and defaults are not", () => {
    const start = model.added(model.stateOf(""), [region({ id: undefined })]);
    const written = (values) => JSON.parse(model.textOf(model.set(start, [0], values))).regions[0];
    assert.equal(written({ opacity: 0.5 }).opacity, 0.5);
    assert.equal(written({ opacity: 3 }).opacity, undefined);
    assert.deepEqual([written({ lora: "a.safetensors", lora_strength: -99 })].map((each) => [each.lora, each.lora_strength]), [["a.safetensors", -10]]);
    for (const key of ["opacity", "lora", "lora_strength", "shape"]) assert.equal(key in written({}), false);
    const ellipse = model.set(start, [0], { shape: { kind: "ellipse" } });
    assert.deepEqual(JSON.parse(model.textOf(ellipse)).regions[0].shape, { kind: "ellipse" });
    assert.equal("shape" in JSON.parse(model.textOf(model.set(ellipse, [0], { shape: undefined }))).regions[0], false);
});

// The timeouts are for what never ends, or takes minutes: how fast it is is not tested.
test("huge polygons, a million strokes and NaN are refused", { timeout: 60_000 }, () => {
    for (const shape of [
        { kind: "polygon", points: Array(200_000).fill(1) },
        { kind: "paint", width: 512, height: 512, runs: "aZ".repeat(450_000) },
        { kind: "paint", width: 512, height: 512, runs: "a1".repeat(7_500) },
        { kind: "paint", width: 1e300, height: 1, runs: "Z" },
        { kind: "polygon", points: Array(6).fill(NaN) },
    ]) assert.throws(() => json.parseDrawing(text(region({ shape }))), json.Problem);
    const points = Array.from({ length: 512 }, (_, n) => (7 * n * n) % 10_001);
    const noise = { kind: "paint", width: 512, height: 14, runs: "aZ".repeat(3_584) };
    const large = text(...Array(32).fill(region({ shape: { kind: "polygon", points } })), ...Array(32).fill(region({ shape: noise })));
    const { boxes } = json.parseDrawing(large);
    assert.ok(coverage(boxes).covered <= 1);
});

// --- properties -------------------------------------------------------------------------------------------------------

test("a point is in a shape where the shape covers its cell", () => {
    for (const { box, shape } of GOLDEN.shapes.filter((each) => each.shape.kind !== "paint")) {
        const side = 64, area = boxed(box, shape), shares = shapes.rasterized(area, side, side);
        shares.forEach((share, at) => {
            if (share > 0.001 && share < 0.999) return; // the outline goes through
            const point = { x: (at % side + 0.5) / side, y: (Math.floor(at / side) + 0.5) / side };
            assert.equal(holds(area, point), share > 0.5, `${shape.kind} at ${point.x}, ${point.y}`);
        });
    }
});

const randomPoint = (random) => ({ x: random() * 1.2 - 0.1, y: random() * 1.2 - 0.1 });
const randomBrush = (random, erases) => ({ radius: 0.002 + 0.2 * random() ** 2, softness: random() < 0.3 ? 0 : random(), erases });

test("100 random paintings: legal, tight, read back, and painted on without loss", () => {
    let soft = 0;
    for (let seed = 0; seed < 100; seed += 1) {
        const random = dice(seed), size = { width: 64 + Math.floor(900 * random()), height: 64 + Math.floor(900 * random()) };
        const painting = newPainting(size);
        for (let count = 0; count < 3; count += 1) {
            stroke(painting, randomPoint(random), randomPoint(random), randomBrush(random, count === 2 && random() < 0.5));
        }
        const made = cutOut(painting);
        if (!made) continue;
        assert.equal(shapes.shapeProblem(made.shape), "", `seed ${seed}`);
        const [box] = json.parseDrawing(text(region(made))).boxes;
        const cells = shapes.cellsOf(box.shape), { width, height } = box.shape;
        soft += cells.some((level) => level > 0 && level < shapes.FULL);
        const edge = (test) => cells.some((level, at) => level && test(at % width, Math.floor(at / width)));
        if (width * height === Math.round(made.width * painting.columns) * Math.round(made.height * painting.rows)) {
            assert.ok(edge((x) => x === 0) && edge((x) => x === width - 1) && edge((_, y) => y === 0) && edge((_, y) => y === height - 1), `seed ${seed}`);
            const tidied = model.added(model.stateOf(""), [made]).boxes[0];
            assert.deepEqual(newPainting(size, tidied).cells, painting.cells, `seed ${seed}: taken up again`);
        }
        const share = painting.cells.reduce((sum, level) => sum + level, 0) / shapes.FULL / painting.cells.length;
        assert.ok(Math.abs(mean(shapes.rasterized(box, 50, 50)) - share) < 0.004, `seed ${seed}`);
    }
    assert.ok(soft > 40, `${soft} paintings were soft`);
});

test("an eraser takes away what a brush of its size has painted, and nothing is left", () => {
    const painting = newPainting({ width: 640, height: 480 });
    const a = { x: 0.2, y: 0.3 }, b = { x: 0.8, y: 0.7 };
    stroke(painting, a, b, { radius: 0.05, softness: 0.5, erases: false });
    assert.equal(painting.cells[Math.floor(0.5 * painting.rows) * painting.columns + Math.floor(0.5 * painting.columns)], shapes.FULL);
    stroke(painting, a, b, { radius: 0.15, softness: 0, erases: true });
    assert.equal(cutOut(painting), null);
});

test("a stroke that goes twice over one place paints it once", () => {
    const painting = newPainting({ width: 512, height: 512 }), brush = { radius: 0.1, softness: 1, erases: false };
    const a = { x: 0.3, y: 0.5 }, b = { x: 0.7, y: 0.5 };
    stroke(painting, a, b, brush);
    const once = painting.cells.slice();
    for (let count = 0; count < 5; count += 1) stroke(painting, a, b, brush);
    assert.deepEqual(painting.cells, once);
});

test("what is too intricate becomes coarser, and covers the same", () => {
    const random = dice(5);
    for (const size of [{ width: 700, height: 501 }, { width: 64, height: 2048 }]) {
        const painting = newPainting(size);
        painting.cells.forEach((_, at) => {
            painting.cells[at] = Math.floor(random() * 52);
        });
        const made = cutOut(painting);
        assert.equal(shapes.shapeProblem(made.shape), "");
        assert.ok(made.shape.runs.length <= shapes.MAX_RUNS);
        const share = mean(Float64Array.from(painting.cells)) / shapes.FULL;
        assert.ok(Math.abs(mean(shapes.rasterized(made, 40, 40)) - share) < 0.01);
    }
});

test("300 random outlines: at most so many points, within reach of what was drawn, a legal polygon", () => {
    for (let seed = 0; seed < 300; seed += 1) {
        const random = dice(seed), count = 3 + Math.floor(random() ** 3 * 800);
        const drawn = Array.from({ length: count }, () => randomPoint(random));
        const few = shapes.simplified(drawn, 0.002);
        assert.ok(few.length <= shapes.MAX_POINTS && few.every((point) => drawn.includes(point)), `seed ${seed}`);
        const made = shapes.polygonOf(few, json.MIN_SIZE);
        if (!made) continue;
        assert.equal(shapes.shapeProblem(made.shape), "", `seed ${seed}`);
        const { points } = made.shape, pick = (first) => points.filter((_, at) => at % 2 === first);
        for (const first of [0, 1]) assert.deepEqual([Math.min(...pick(first)), Math.max(...pick(first))], [0, shapes.STEPS]);
        few.forEach((point, at) => {
            const inside = Math.max(0, Math.min(1, point.x));
            assert.ok(Math.abs(made.x + made.width * points[2 * at] / shapes.STEPS - inside) < 1e-4);
        });
    }
    const circle = Array.from({ length: 400 }, (_, n) => ({ x: 0.5 + 0.3 * Math.cos(n / 63.66), y: 0.5 + 0.3 * Math.sin(n / 63.66) }));
    const few = shapes.simplified(circle, 0.002);
    assert.ok(few.length > 12 && few.length < 60, `${few.length} points of a circle`);
    assert.equal(shapes.polygonOf([{ x: 0, y: 0 }, { x: 1, y: 0 }, { x: 0.5, y: 0 }], json.MIN_SIZE), null, "no area");
});

test("shapes go along when boxes are moved, resized and copied, and not into the parts of a split", () => {
    const shape = { kind: "polygon", points: [0, 0, 10_000, 5000, 0, 10_000] };
    const state = model.added(model.stateOf(""), [{ x: 0.1, y: 0.1, width: 0.3, height: 0.2, shape }]);
    for (const next of [model.movedBy(state, 0.1, 0.2), model.resizedTo(state, "se", { x: 0.9, y: 0.8 }, {}), model.duplicated(state)]) {
        for (const box of next.boxes) assert.deepEqual(box.shape, shape);
        assert.equal(next.boxes[0].shape, state.boxes[0].shape);
    }
    assert.ok(model.split(state, 2, 2).boxes.every((box) => !("shape" in box)));
});

test("copies of paint are made into pictures once each, however often they are drawn", (context) => {
    let made = 0;
    const page = { createImageData: (width, height) => ({ data: new Uint8Array(4 * width * height) }), putImageData() {} };
    globalThis.document = { createElement() {
        made += 1;
        return { getContext: () => page };
    } };
    context.after(() => delete globalThis.document);
    const paint = { kind: "paint", width: 4, height: 4, runs: "a8Z8" };
    const state = model.duplicated(model.selectAll(model.duplicated(model.added(model.stateOf(""), [region({ shape: paint })]))));
    for (let frame = 0; frame < 10; frame += 1) state.boxes.forEach((box, index) => stencilOf(box.shape, automaticColor(index)));
    assert.equal(made, 2 * state.boxes.length);
    assert.deepEqual(state.boxes.map((box) => box.shape), Array(4).fill(paint));
});

test("an ellipse that fills no cell of a grid by half is too small there", () => {
    const size = { width: 512, height: 512 }, tiny = boxed([0.3, 0.3, 0.05, 0.05], { kind: "ellipse" });
    assert.equal(unfilledGrids(tiny, size).length, 2);
    const place = [0.1875, 0.1875, 0.0469, 0.0469]; // three quarters of a cell each way
    assert.deepEqual([undefined, { kind: "ellipse" }].map((shape) => unfilledGrids(boxed(place, shape), size).length), [1, 2]);
    assert.equal(unfilledGrids(boxed([0.1, 0.1, 0.6, 0.6], { kind: "ellipse" }), size).length, 0);
});

test("memory is flat over 500 edits of polygons and paint", () => {
    setFlagsFromString("--expose_gc");
    const collect = runInNewContext("gc"), size = { width: 512, height: 512 }, used = [];
    const points = Array.from({ length: 80 }, (_, n) => (7919 * n) % 10_001);
    const regions = Array.from({ length: 60 }, (_, n) => region({ phrase: `thing ${n}`, ...(n < 10 && { shape: { kind: "polygon", points } }) }));
    let history = model.newHistory(model.stateOf(text(...regions)));
    for (let edit = 0; edit < 500; edit += 1) {
        const state = model.present(history), box = state.boxes[edit % 20];
        const painting = newPainting(size, edit % 2 ? box : null);
        stroke(painting, { x: 0.3, y: 0.3 }, { x: 0.3 + (edit % 7) / 20, y: 0.5 }, { radius: 0.05, softness: 0.5, erases: false });
        const next = edit % 2 ? model.withArea(state, box.id, cutOut(painting)) : model.movedBy(model.select(state, [box.id]), 0.01, 0);
        coverage(next.boxes);
        history = model.remembered(history, next);
        if ([249, 374, 499].includes(edit)) {
            collect();
            const { heapUsed, arrayBuffers } = process.memoryUsage();
            used.push((heapUsed + arrayBuffers) / 2 ** 20);
        }
    }
    assert.equal(history.entries.length, 100);
    assert.ok(used[2] - used[0] < 8, `MB after 250, 375 and 500 edits: ${used.map((each) => each.toFixed(1))}`);
});
