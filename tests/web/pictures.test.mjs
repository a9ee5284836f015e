// How often pictures are loaded where many editors show one each.

import assert from "node:assert/strict";
import test from "node:test";

import { Pictures } from "../../web/editor/pictures.js";

test("pictures that are all in use are loaded once each, and forgotten when they no longer are", (context) => {
    const loading = [];
    globalThis.Image = class {
        constructor() {
            loading.push(this);
        }
    };
    context.after(() => delete globalThis.Image);
    let time = 0, loads = 0;
    const addresses = Array.from({ length: 20 }, (_, index) => `picture ${index}`);
    const pictures = new Pictures(() => addresses.forEach((each) => pictures.at(each)), () => time);
    addresses.forEach((each) => pictures.at(each));
    while (loading.length && loads < 100) {
        const image = loading.shift();
        loads += 1;
        Object.assign(image, { complete: true, naturalWidth: 8 });
        image.onload(); // every editor asks for its picture
    }
    assert.equal(loads, addresses.length);
    assert.ok(addresses.every((each) => pictures.at(each)?.src === each));
    time += 5000;
    pictures.at("another");
    assert.equal(pictures.images.size, 8);
});
