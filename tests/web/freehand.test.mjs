// Drawing by hand as the pointer's events tell it: on a stand-in for the page, since a browser sends no two fingers.

import assert from "node:assert/strict";
import test from "node:test";

import * as model from "../../web/editor/model/drawing.js";
import { Stage } from "../../web/editor/stage.js";
import { BoxEditor } from "../../web/editor/widget.js";

const SIDE = 416; // CSS pixels of the canvas: 400 of the image, and its margin

/** An element as far as a stage needs it. */
function fakeElement() {
    return {
        classList: { add() {}, remove() {}, toggle() {} }, style: {}, dataset: {}, listeners: {}, children: [],
        offsetWidth: SIDE, offsetHeight: SIDE, setAttribute() {}, append() {}, replaceChildren() {}, replaceChild() {},
        querySelector: fakeElement,
        addEventListener(type, act) {
            this.listeners[type] = act;
        },
        getContext: () => null, getBoundingClientRect: () => ({ left: -8, top: -8, width: SIDE, height: SIDE }),
        focus() {}, setPointerCapture() {}, releasePointerCapture() {}, hasPointerCapture: () => true,
    };
}

/** A stage with a tool on a picture of 400 x 400 CSS pixels; `state` is what its editor holds. */
function staged(context, tool, state) {
    fakePage(context);
    const editor = {
        state, size: { width: 512, height: 512 }, commits: 0, problem: null, view: { snap: false, grid: 0 },
        host: { isPanning: () => false }, t: (key) => key, toolbarChanged() {}, notify() {}, sayFull() {},
        show(next) {
            this.state = next;
        },
        commit(next) {
            this.commits += 1;
            this.state = next;
        },
    };
    return { editor, ...pointersOn(new Stage(editor), tool) };
}

function fakePage(context) {
    Object.assign(globalThis, { document: { createElement: fakeElement, createElementNS: fakeElement }, requestAnimationFrame() {} });
    context.after(() => ["document", "requestAnimationFrame"].forEach((name) => delete globalThis[name]));
}

/** Pointers {down, move, up} on a stage, with a tool. */
function pointersOn(stage, tool) {
    stage.words = { close() {}, edit() {}, drop() {} };
    stage.freehand.tool = tool;
    const send = (type) => (x, y, pointerId = 1) => stage.canvas.listeners[type]({
        type, clientX: x, clientY: y, pointerId, button: 0, buttons: 1, pointerType: "touch", altKey: false,
        stopPropagation() {}, preventDefault() {},
    });
    const [down, move, release, lose] = ["pointerdown", "pointermove", "pointerup", "lostpointercapture"].map(send);
    const up = (...at) => [release, lose].forEach((act) => act(...at));
    return { stage, down, move, up };
}

const box = (more) => ({ phrase: "a", x: 0.25, y: 0.25, width: 0.5, height: 0.5, extra: {}, ...more });

test("another finger changes nothing of what the first one does", (context) => {
    for (const tool of ["brush", "eraser", "polygon", "box", "ellipse"]) {
        const results = [false, true].map((another) => {
            const { editor, down, move, up } = staged(context, tool, model.added(model.stateOf(""), [box()]));
            down(120, 120);
            move(60, 140);
            move(200, 240);
            if (another) {
                down(390, 390, 2);
                move(350, 350, 2);
                up(350, 350, 2);
            }
            move(240, 260);
            up(240, 260);
            return model.textOf(editor.state);
        });
        assert.equal(results[1], results[0], tool);
        assert.notEqual(results[0], model.textOf(model.added(model.stateOf(""), [box()])), tool);
    }
});

test("a stroke that changes nothing leaves a box a box, and the history alone", (context) => {
    for (const [tool, x, y] of [["brush", 200, 200], ["eraser", 20, 20]]) {
        for (const shape of [undefined, { kind: "ellipse" }, { kind: "polygon", points: [0, 0, 10000, 0, 5000, 10000] }]) {
            const state = model.added(model.stateOf(""), [box(shape && { shape })]);
            const { editor, stage, down, move, up } = staged(context, tool, state);
            stage.freehand.brush = { radius: 0.02, softness: 0 };
            down(x, y);
            move(x + 4, y);
            up(x + 4, y);
            assert.equal(editor.commits, 0, `${tool} ${shape?.kind}`);
            assert.equal(editor.state, state);
            down(20, 200); // and one that does is kept
            move(380, 200);
            up(380, 200);
            assert.equal(editor.commits, 1);
        }
    }
});

test("a hidden region is not painted on", (context) => {
    const state = model.added(model.stateOf(""), [box({ hidden: true })]);
    const { editor, down, up } = staged(context, "brush", state);
    down(20, 20);
    up(20, 20);
    assert.equal(editor.state.boxes[0], state.boxes[0]);
    assert.equal(editor.state.boxes.length, 2);
});

test("an outline that begins with corners and goes on for long is kept", (context) => {
    const { editor, down, move, up } = staged(context, "polygon", model.stateOf(""));
    for (let corner = 0; corner < 250; corner += 1) {
        const [x, y] = corner ? [40 + (corner % 2) * 30, 30 + corner] : [390, 10]; // the first is not met again
        down(x, y);
        up(x, y);
    }
    down(60, 320);
    for (let step = 1; step < 60; step += 1) move(60 + step * 5, 320 + (step % 2) * 40);
    up(360, 320);
    assert.equal(editor.state.boxes.length, 1);
    const { points } = editor.state.boxes[0].shape;
    assert.ok(points.length / 2 > 3 && points.length / 2 <= 256, String(points.length / 2));
});

test("boxes that come by wire while something is drawn are what there is afterwards", (context) => {
    const kept = (...boxes) => model.textOf(model.added(model.stateOf(""), boxes));
    const came = kept(box({ phrase: "came" }));
    for (const tool of ["box", "ellipse", "polygon", "brush"]) {
        fakePage(context);
        let text = kept(box());
        const facts = { width: 512, height: 512, prompt: null, opacity: 1, sources: [], drawingFrom: null };
        const editor = new BoxEditor({
            t: (key) => key, isPanning: () => false, facts: () => facts, view() {}, read: () => text, recall: () => null,
            keep() {}, settle() {}, setView() {}, write: (words) => {
                text = words;
            },
        });
        editor.sync();
        const { down, move, up } = pointersOn(editor.stage, tool);
        down(120, 120);
        move(60, 140);
        editor.takeOver(came, "mark");
        move(200, 240);
        up(200, 240);
        assert.equal(text, model.textOf({ ...model.stateOf(came), rest: { upstream: "mark" } }), tool);
    }
});
