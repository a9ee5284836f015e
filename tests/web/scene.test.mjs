// What a scene paints, on a context that only listens.

import assert from "node:assert/strict";
import test from "node:test";

import { drawScene, THEMES } from "../../web/editor/view/scene.js";

test("the pin of a box that is gone is not drawn", () => {
    const drawn = [];
    const listening = { drawImage: (image) => drawn.push(image), measureText: () => ({ width: 8 }) };
    const context = new Proxy(listening, { get: (target, name) => target[name] ?? (() => {}) });
    const rect = { x: 0.1, y: 0.1, width: 0.2, height: 0.2 };
    const scene = {
        boxes: [{ id: 1, phrase: "heart", ...rect }], selection: [], size: { width: 512, height: 512 },
        canvas: { width: 100, height: 100 }, area: { x: 0, y: 0, width: 100, height: 100 }, ratio: 1, theme: THEMES.dark,
        picture: null, opacity: 1, grid: 0, gaps: null, flags: new Map(), hover: null,
        pins: new Map([[2, { image: "of a deleted box", ...rect }], [1, { image: "of the heart", ...rect }]]),
    };
    drawScene(context, scene);
    assert.deepEqual(drawn, ["of the heart"]);
});
