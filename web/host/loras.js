// The names of the LoRAs on the server: asked for once, and again after a refresh of its lists.

import { api } from "../../../scripts/api.js";
import { editors } from "./memory.js";

let loras = null; // names of files; null = not asked for yet

/** The LoRAs on the server, or null until it has told of them. */
export function knownLoras() {
    if (!loras) {
        loras = []; // asked for once
        askForLoras();
    }
    return loras.isKnown ? loras : null;
}

async function askForLoras() {
    const mine = loras;
    try {
        const names = await (await api.fetchApi("/models/loras")).json();
        mine.push(...(Array.isArray(names) ? names : []).filter((name) => typeof name === "string"));
        mine.isKnown = true;
        editors.forEach((each) => each.beat());
    } catch (error) {
        console.warn("Boxwright: no list of LoRAs", error);
    }
}

/** Ask anew when the names are needed next. */
export function forgetLoras() {
    loras = null;
}
