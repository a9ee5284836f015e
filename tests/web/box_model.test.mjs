// Properties of the drawing: whatever is done to it, it stays inside the image, reads back the same, and comes back.

import assert from "node:assert/strict";
import test from "node:test";

import { HANDLES } from "../../web/editor/model/geometry.js";
import * as json from "../../web/editor/model/json.js";
import * as model from "../../web/editor/model/drawing.js";
import { begin, drag, end } from "../../web/editor/model/gestures.js";
import { dice, EDITS, randomEdit, randomText } from "./random_edits.mjs";

const SEQUENCES = 10_000;
const STEPS = 8;
/** What the host's undo and redo make of a history: the text before, the text after. */
const undone = (history) => ({ ...history, at: history.at - 1 });
const redone = (history) => ({ ...history, at: history.at + 1 });
const plain = (value) => JSON.parse(JSON.stringify(value));

/** What keeps a drawing legal, for us and for Python. */
function checkState(state, context) {
    assert.ok(state.boxes.length <= json.MAX_BOXES, context);
    assert.equal(new Set(state.boxes.map((box) => box.id)).size, state.boxes.length, context);
    assert.ok(state.selection.every((id) => state.boxes.some((box) => box.id === id)), context);
    for (const box of state.boxes) {
        for (const key of ["x", "y", "width", "height"]) assert.ok(Number.isFinite(box[key]), context);
        assert.ok(box.x >= 0 && box.y >= 0 && box.x + box.width <= 1 + 1e-9 && box.y + box.height <= 1 + 1e-9, context);
        assert.ok(box.width > 0 && box.height > 0, context);
    }
    assert.doesNotThrow(() => json.parseDrawing(model.textOf(state)), context);
}

test(`${SEQUENCES} random sequences of edits: inside the image, undo brings every state back, text reads back the same`, () => {
    const done = Object.fromEntries(Object.keys(EDITS).map((name) => [name, 0]));
    let steps = 0;
    for (let seed = 0; seed < SEQUENCES; seed += 1) {
        const random = dice(seed);
        const text = randomText(random);
        let history = model.newHistory(model.stateOf(text), text);
        const seen = [model.present(history)], texts = [text];
        for (let step = 0; step < STEPS; step += 1) {
            const name = Object.keys(EDITS)[Math.floor(random() * Object.keys(EDITS).length)];
            const next = EDITS[name](model.present(history), random);
            const before = history;
            history = model.remembered(history, next);
            if (history.at > before.at) {
                seen.push(next);
                texts.push(model.textOf(next));
                done[name] += 1;
                steps += 1;
            } else seen[seen.length - 1] = next;
            if (history.at > before.at) checkState(next, `seed ${seed}, step ${step}: ${name}`);
        }
        for (let at = seen.length - 1; at > 0; at -= 1) {
            assert.equal(model.present(history), seen[at]);
            history = undone(history);
        }
        assert.equal(model.present(history), seen[0], `seed ${seed}: undo of everything`);
        assert.ok(!model.canUndo(history));
        for (const state of seen.slice(1)) {
            history = redone(history);
            assert.equal(model.present(history), state, `seed ${seed}: redo`);
        }
        assert.ok(!model.canRedo(history));
        const last = model.present(history), back = model.stateOf(texts.at(-1));
        assert.deepEqual(plain(back.boxes.map(({ id, ...box }) => box)), plain(last.boxes.map(({ id, ...box }) => box)));
        if (seen.length > 1) assert.equal(model.textOf(back), texts.at(-1));
    }
    assert.ok(steps > SEQUENCES * 3, `${steps} steps changed something`);
    const lazy = Object.entries(done).filter(([name, count]) => !count && !["select", "click", "tab", "all"].includes(name));
    assert.deepEqual(lazy, [], "every edit must have changed something somewhere");
});

test("an edit leaves the state it started from as it was", () => {
    for (let seed = 0; seed < 500; seed += 1) {
        const random = dice(seed);
        let state = model.stateOf(randomText(random));
        for (let step = 0; step < 8; step += 1) {
            const before = structuredClone(state);
            const next = randomEdit(state, random);
            assert.deepEqual(state, before);
            state = next;
        }
    }
});

test("a text that nobody edited is kept to the letter, and unknown keys survive an edit", () => {
    const text = '{"type":"boxwright.regions","version":1,"by":{"a":[1]},"regions":[{"phrase":"a","x":0.1234567891,"y":0,'
        + '"width":0.5,"height":0.5,"mine":{"k":null},"__proto__":{"p":1}}]}';
    const state = model.stateOf(text);
    assert.deepEqual(JSON.parse(model.textOf(state)), JSON.parse(text));
    assert.equal(({}).p, undefined);
    const next = model.set(state, [0], { phrase: "b" });
    assert.deepEqual(JSON.parse(model.textOf(next)).by, { a: [1] });
    assert.match(model.textOf(next), /"mine":\{"k":null\},"__proto__":\{"p":1\}/);
    assert.match(model.textOf(next), /0\.1234567891/, "numbers that were not changed stay");
});

test("history follows the texts that the host puts in place", () => {
    let history = model.newHistory(model.stateOf(""), "");
    const texts = [""];
    for (let count = 1; count <= 5; count += 1) {
        const state = model.added(model.present(history), [{ x: 0, y: 0, width: 0.5, height: 0.1 * count }]);
        history = model.remembered(history, state);
        texts.push(model.textOf(state));
    }
    const end = history;
    for (const at of [4, 3, 1, 0, 2, 5]) {
        history = model.followed(history, texts[at]);
        assert.equal(history.at, at);
        assert.equal(model.present(history), end.entries[at].state, "with its selection and ids");
        assert.equal(history.entries.length, 6);
    }
    history = model.followed(model.followed(history, texts[2]), '{"type":"boxwright.regions","version":1,"regions":[]}');
    assert.equal(history.entries.length, 4, "a text from elsewhere is a step of its own");
    assert.throws(() => model.followed(history, "{"), json.Problem);
});

test("no box of a text from elsewhere takes the id of a box there was", () => {
    const text = '{"type":"boxwright.regions","version":1,"regions":[{"phrase":"a","x":0,"y":0,"width":1,"height":1}]}';
    let history = model.newHistory(model.stateOf(text), text);
    history = model.remembered(history, model.duplicated(model.selectAll(model.present(history))));
    const before = history.entries.flatMap((entry) => entry.state.boxes.map((box) => box.id));
    const after = model.present(model.followed(undone(history), text.replace("\"a\"", "\"b\"")));
    assert.equal(after.boxes[0].phrase, "b");
    assert.ok(!before.includes(after.boxes[0].id), `${after.boxes[0].id} is one of ${before}`);
    assert.ok(after.nextId > after.boxes[0].id);
});

test("of two steps with the same text the nearer one is followed", () => {
    const texts = ["a", "b", "a", "c"].map((name) => `{"type":"boxwright.regions","version":1,"by":"${name}","regions":[]}`);
    let history = model.newHistory(model.stateOf(texts[0]), texts[0]);
    for (const text of texts.slice(1)) history = model.remembered(history, model.stateOf(text), text);
    assert.equal(model.followed(history, texts[0]).at, 2);
    assert.equal(model.followed(model.followed(history, texts[1]), texts[0]).at, 0);
});

test("history is bounded and keeps the newest steps", () => {
    let history = model.newHistory(model.stateOf(""));
    for (let count = 0; count < 300; count += 1) {
        const state = model.stateOf(`{"type":"boxwright.regions","version":1,"n":${count},"regions":[]}`);
        history = model.remembered(history, state);
    }
    assert.equal(history.entries.length, 100);
    assert.equal(model.present(history).rest.n, 299);
    assert.equal(model.present(undone(history)).rest.n, 298);
});

test("a group keeps its inner proportions when resized, and locked boxes stay", () => {
    const state = model.selectAll(model.added(model.stateOf(""), [
        { x: 0.1, y: 0.1, width: 0.2, height: 0.2 }, { x: 0.4, y: 0.5, width: 0.2, height: 0.1 },
    ]));
    const [a, b] = model.resizedTo(state, "se", { x: 0.85, y: 0.35 }, {}).boxes;
    assert.deepEqual([a.x, a.y, a.width, a.height], [0.1, 0.1, 0.3, 0.1]);
    assert.deepEqual([b.x, b.y, b.width, b.height], [0.55, 0.3, 0.3, 0.05]);
    const held = model.select(model.set(state, [0], { locked: true }), [0, 1]);
    const moved = model.movedBy(held, 0.1, 0);
    assert.equal(moved.boxes[0].x, 0.1);
    assert.equal(moved.boxes[1].x, 0.5);
    assert.equal(model.removed(held).boxes.length, 1);
});

test("no more than 64 boxes, by any way", () => {
    let state = model.split(model.split(model.stateOf(""), 3, 3), 3, 3);
    for (let count = 0; count < 20; count += 1) state = model.duplicated(model.selectAll(state));
    state = model.added(state, Array.from({ length: 64 - state.boxes.length }, () => ({ x: 0, y: 0, width: 1, height: 1 })));
    assert.equal(state.boxes.length, 64);
    for (const act of [(each) => model.duplicated(model.selectAll(each)), model.withBackground,
        (each) => model.split(each, 2, 1), (each) => model.added(each, [{ x: 0, y: 0, width: 1, height: 1 }])]) {
        assert.equal(act(state).boxes.length, 64);
    }
    assert.equal(HANDLES.length, 8);
    const point = { x: 0.5, y: 0.5 }, keys = { shift: false, ctrl: false, alt: true };
    const gesture = begin(model.select(state, []), point, keys, false, { x: 0, y: 0 });
    const shown = drag(gesture, { x: 0.2, y: 0.2 }, keys, { on: false });
    const places = (each) => each.boxes.map((box) => [box.x, box.y]);
    assert.deepEqual(places(end(gesture, true, shown, keys)), places(state), "a copy that has no room moves nothing");
});

test("values are brought into their range and defaults are not written", () => {
    const start = model.added(model.stateOf(""), [{ x: 0.2, y: 0.2, width: 0.5, height: 0.5 }]);
    const one = (values) => model.set(start, [0], values).boxes[0];
    assert.equal("strength" in one({ strength: 7 }), false, "1 is the default");
    assert.equal(one({ strength: -1 }).strength, 0);
    assert.equal(one({ start: 2 }).start, 0.99);
    const late = model.stateOf(JSON.stringify({ type: "boxwright.regions", version: 1, regions: [
        { phrase: "", x: 0, y: 0, width: 1, height: 1, start: 0.995 },
    ] }));
    assert.equal(model.stateOf(model.textOf(model.set(late, [0], { end: 0.5 }))).boxes[0].start, 0.995, "a text that is read");
    assert.equal(one({ width: 5 }).width, 0.8);
    assert.equal(one({ x: -5 }).x, 0);
    assert.equal(one({ phrase: "x".repeat(2000) }).phrase.length, 1000);
    assert.equal(JSON.stringify(model.set(start, [0], { enabled: true, hidden: false, negative: "" })), JSON.stringify(start));
    assert.equal("feather" in one({ feather: undefined }), false);
});
