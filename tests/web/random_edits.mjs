// Random drawings and random edits, the same for the same seed.

import * as model from "../../web/editor/model/drawing.js";
import { begin, drag, end } from "../../web/editor/model/gestures.js";
import { HANDLES } from "../../web/editor/model/geometry.js";

/** Mulberry32: numbers from 0 to 1. */
export function dice(seed) {
    let state = seed >>> 0;
    return () => {
        state = (state + 0x6d2b79f5) >>> 0;
        let word = Math.imul(state ^ (state >>> 15), state | 1);
        word ^= word + Math.imul(word ^ (word >>> 7), word | 61);
        return ((word ^ (word >>> 14)) >>> 0) / 4294967296;
    };
}

const pick = (random, list) => list[Math.floor(random() * list.length)];
const point = (random) => ({ x: random() * 1.2 - 0.1, y: random() * 1.2 - 0.1 });
const keys = (random) => ({ shift: random() < 0.2, ctrl: random() < 0.2, alt: random() < 0.2 });
const WORDS = ["red heart", "", "a \"quoted\" word", "<b>bold</b>", "雪 and ❄️", "\\", "__proto__", "x".repeat(1000)];

export const EDITS = {
    add: (state, random) => model.added(state, [{ ...point(random), width: random(), height: random() }]),
    gesture: (state, random) => {
        const snapping = { on: random() < 0.7, grid: pick(random, [0, 16]), size: { width: 512, height: 384 }, reach: { x: 0.01, y: 0.01 } };
        const gesture = begin(state, point(random), keys(random), random() < 0.1, { x: 0.02, y: 0.02 });
        let shown = null;
        for (let step = 0; step < 3; step += 1) shown = drag(gesture, point(random), keys(random), snapping);
        return end(gesture, random() < 0.8, shown, keys(random));
    },
    handle: (state, random) => model.resizedTo(state, pick(random, HANDLES), point(random), {
        ratio: random() < 0.5 ? 0 : 0.1 + 4 * random(), centred: random() < 0.5,
    }),
    move: (state, random) => model.movedBy(state, random() * 3 - 1.5, random() * 3 - 1.5),
    select: (state, random) => model.select(state, state.boxes.filter(() => random() < 0.4).map((box) => box.id)),
    click: (state, random) => {
        const hit = model.clicked(state, point(random));
        return hit ? model.select(state, [hit.id]) : state;
    },
    tab: (state, random) => model.cycled(state, pick(random, [1, -1])),
    all: (state) => model.selectAll(state),
    remove: (state, random) => (random() < 0.3 ? model.removed(state) : state),
    duplicate: (state) => model.duplicated(state),
    paste: (state) => model.pasted(state, model.selected(state).map(({ id, ...box }) => box)),
    order: (state, random) => (state.boxes.length
        ? model.reordered(state, pick(random, state.boxes).id, Math.floor(random() * 9) - 1) : state),
    split: (state, random) => model.split(state, pick(random, [1, 2, 3]), pick(random, [1, 2, 3])),
    background: (state) => model.withBackground(state),
    set: (state, random) => {
        const number = () => pick(random, [random() * 3 - 1, 0, 1, undefined]);
        const values = pick(random, [
            { phrase: pick(random, WORDS) }, { negative: pick(random, WORDS) }, { strength: random() * 3 - 1 },
            { start: number() }, { end: number() }, { feather: number() }, { enabled: random() < 0.5 },
            { locked: random() < 0.3 }, { hidden: random() < 0.3 }, { color: pick(random, ["#123abc", undefined]) },
            { x: random() * 2 - 0.5 }, { width: random() * 2 }, { y: random() * 2 - 0.5, height: random() * 2 },
        ]);
        return model.set(state, state.selection, values);
    },
};

export function randomEdit(state, random) {
    return EDITS[pick(random, Object.keys(EDITS))](state, random);
}

/** A drawing of random boxes with keys that we do not know. */
export function randomText(random) {
    const regions = Array.from({ length: Math.floor(random() * 6) }, () => {
        const x = random() * 0.9, y = random() * 0.9;
        const region = { phrase: pick(random, WORDS), x, y, width: (1 - x) * (0.1 + 0.9 * random()), height: (1 - y) * 0.5 };
        if (random() < 0.3) region.strength = random();
        if (random() < 0.2) region.mine = { list: [1, null, { deep: "yes" }] };
        if (random() < 0.1) Object.defineProperty(region, "__proto__", { value: [1], enumerable: true });
        return region;
    });
    const text = JSON.stringify({ type: "boxwright.regions", version: 1, regions, upstream: "abc", other: [1] });
    return regions.length ? text : pick(random, [text, "", "  "]);
}
