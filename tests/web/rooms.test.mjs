// Who may import whom, and that loading a module does nothing: the host loads every .js file as an extension.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, relative, resolve } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";

const WEB = fileURLToPath(new URL("../../web/", import.meta.url));
const KNOW_THE_APP = ["host", ""];
const MAY = {
    "editor/model": ["editor/model"],
    "editor/view": ["editor/model", "editor/view"],
    editor: ["editor/model", "editor/view", "editor"],
    host: ["editor/model", "editor/view", "editor", "host"],
    "": ["editor/model", "editor/view", "editor", "host", ""],
};

/** [file, room, imported paths] of every module below web/. */
function modules() {
    const files = readdirSync(WEB, { recursive: true }).filter((name) => name.endsWith(".js"));
    return files.map((file) => {
        const source = readFileSync(resolve(WEB, file), "utf8");
        const paths = [...source.matchAll(/^(?:import|export)\b[\w\s{},*]*?(?:from )?"([^"]+)"/gm)].map((found) => found[1]);
        return [file, dirname(file) === "." ? "" : dirname(file), paths];
    });
}

test("imports point one way, and only the outermost files know the app", () => {
    const all = modules();
    assert.deepEqual([...new Set(all.map(([, room]) => room))].sort(), Object.keys(MAY).sort());
    for (const [file, room, paths] of all) {
        for (const path of paths) {
            const target = relative(WEB, resolve(WEB, room, path));
            if (target.startsWith("..")) assert.ok(KNOW_THE_APP.includes(room), `${file} imports ${path} of the host`);
            else assert.ok(MAY[room].includes(dirname(target) === "." ? "" : dirname(target)), `${file} imports ${path}`);
        }
    }
});

test("a module that is loaded alone does nothing, and needs no page", async () => {
    const before = Object.getOwnPropertyNames(globalThis).sort();
    for (const [file, room] of modules()) if (!KNOW_THE_APP.includes(room)) await import(new URL(`../../web/${file}`, import.meta.url));
    assert.deepEqual(Object.getOwnPropertyNames(globalThis).sort(), before);
});

test("a long file says why", () => {
    for (const [file] of modules()) {
        const lines = readFileSync(resolve(WEB, file), "utf8").split("\n");
        const why = lines.slice(0, 3).join(" ").replaceAll("// ", "");
        assert.ok(lines.length <= 351 || why.includes("One file, since"), `${file}: ${lines.length} lines`);
    }
});
