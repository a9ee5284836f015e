// The words of every language: one for each key, and none for a key that is not there.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { ENGLISH, translator } from "../../web/editor/model/words.js";

const read = (path) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");

/** The keys of a file as they are written, one to a line. */
const keysIn = (path) => [...read(path).matchAll(/^ {4}"?(\w+)"?: "/gm)].map(([, key]) => key);

for (const path of ["web/editor/model/words.js", "locales/fr/main.json", "locales/zh/main.json"]) {
    test(`no key of ${path} stands twice, and all are there`, () => {
        const keys = keysIn(path);
        assert.deepEqual(keys.filter((key, index) => keys.indexOf(key) !== index), []);
        assert.deepEqual([...keys].sort(), Object.keys(ENGLISH).sort());
    });
}

test("the button of the full screen is not named as what is said where no box fits", () => {
    assert.equal(translator()("full"), "Full screen");
    assert.equal(translator()("noRoom", { limit: 9 }), "At most 9 boxes fit.");
});

for (const language of ["fr", "zh"]) {
    test(`the words in ${language} are said in it, with what the English fills in`, () => {
        const words = JSON.parse(read(`locales/${language}/main.json`)).boxwright;
        const filled = (text) => (text.match(/\{\w+\}/g) ?? []).sort();
        for (const [key, english] of Object.entries(ENGLISH)) {
            assert.deepEqual(filled(words[key]), filled(english), key);
            assert.ok(words[key].trim(), key);
            assert.ok(!/<[/!a-z]/i.test(words[key]), key);
        }
        // Short words may be the same in both: lora, px, X.
        const same = Object.keys(ENGLISH).filter((key) => ENGLISH[key].length > 12 && words[key] === ENGLISH[key]);
        assert.deepEqual(same, []);
    });
}
