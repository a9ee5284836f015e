// What a workflow keeps of the view is as untrusted as its drawing.

import assert from "node:assert/strict";
import test from "node:test";

import { DEFAULT_VIEW, GRIDS, keptView, sideOf, viewOf } from "../../web/editor/model/view.js";
import { snapLines } from "../../web/editor/model/geometry.js";

const ODD = [1e-9, -1, NaN, Infinity, 1e308, "8", "x", null, [], {}, true, { valueOf: () => 8 }, [8]];

test("whatever a workflow holds, the view has values of the editor's own", () => {
    for (const odd of ODD) {
        const kept = Object.fromEntries(Object.keys(DEFAULT_VIEW).map((key) => [key, odd]));
        const view = viewOf(kept);
        assert.ok(GRIDS.includes(view.grid), `${odd}`);
        for (const key of ["snap", "gaps", "percent"]) assert.equal(typeof view[key], "boolean", key);
        assert.ok(["input", "last", "file", "nothing"].includes(view.behind));
        assert.equal(view.file, null);
        const lines = snapLines([], view.grid, { width: sideOf(odd), height: sideOf(odd) });
        assert.ok(lines.x.length < 2000);
    }
    for (const kept of [undefined, null, 5, "x", []]) assert.deepEqual(viewOf(kept), DEFAULT_VIEW);
});

test("a view reads back what it keeps, and keeps no defaults", () => {
    assert.deepEqual(keptView(DEFAULT_VIEW), {});
    const file = { filename: "a b.png", subfolder: "boxwright", type: "input" };
    const view = { ...DEFAULT_VIEW, snap: false, grid: 16, behind: "file", file };
    assert.deepEqual(viewOf(JSON.parse(JSON.stringify(keptView(view)))), view);
    assert.equal(viewOf({ file: { filename: "x".repeat(301) } }).file, null);
    assert.deepEqual(viewOf({ file: { ...file, type: "../etc", subfolder: 5 } }).file, { filename: "a b.png", subfolder: "", type: "input" });
});

test("a side is a whole number of pixels that a picture can have", () => {
    assert.deepEqual([64, "96", 0, -5, 1e12, 2.6].map((value) => sideOf(value)), [64, 96, 1, 1, 8192, 3]);
    for (const value of [NaN, undefined, null, "", "x", {}, true]) assert.equal(sideOf(value, 7), 7);
});
