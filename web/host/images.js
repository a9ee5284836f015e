// Pictures of the server: those behind the boxes, and those that are dropped there.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { isThere, Pictures } from "../editor/pictures.js";
import { locatorOf } from "../editor/wires.js";
import { editors, rootGraph, runOf } from "./memory.js";

const UPLOADS = "boxwright"; // folder of images dropped on an editor

const pictures = new Pictures(() => editors.forEach((each) => each.beat()));
let lastPicture = null; // of whatever was sampled or shown last, in any node

function addressOf({ filename, subfolder = "", type = "output" }) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** What an editor shows behind its boxes: an image file, the last picture made, or what comes in at `image`; or null. */
export function pictureOf(source, file, node) {
    if (source === "file") return file && pictures.at(addressOf(file));
    return source === "last" ? lastPicture : inputPicture(node);
}

/** What comes in at `image`: as of the last run, else what the connected node shows. */
function inputPicture(node) {
    const index = node?.inputs?.findIndex((input) => input.name === "image" && input.link != null) ?? -1;
    if (index < 0) return null;
    const ran = runOf(node).image;
    if (ran) return pictures.at(addressOf(ran));
    const origin = node.getInputNode?.(index);
    const shown = origin?.imgs?.[0];
    if (isThere(shown)) return shown;
    const output = origin && app.nodeOutputs?.[locatorOf(rootGraph(), origin)]?.images?.[0];
    return output ? pictures.at(addressOf(output)) : null;
}

/** Put an image file on the server, in a folder of its own among the inputs: {filename, subfolder, type}, or null. */
export async function upload(file) {
    const body = new FormData();
    body.append("image", file);
    body.append("subfolder", UPLOADS);
    const answer = await api.fetchApi("/upload/image", { method: "POST", body });
    if (answer.status !== 200) return null;
    const { name, subfolder, type } = await answer.json();
    return { filename: name, subfolder, type };
}

/** The file that an address of this server shows, or null. */
export function fileAt(address) {
    const url = URL.canParse?.(address) ? new URL(address) : null;
    if (url?.origin !== location.origin || !url.pathname.endsWith("/view")) return null;
    const { filename, subfolder = "", type = "output" } = Object.fromEntries(url.searchParams);
    return filename ? { filename, subfolder, type } : null;
}

export function watchPictures() {
    let address = null;
    api.addEventListener("b_preview", ({ detail }) => {
        if (!(detail instanceof Blob)) return;
        if (address) URL.revokeObjectURL(address);
        address = URL.createObjectURL(detail);
        showLast(address);
    });
    api.addEventListener("executed", ({ detail }) => {
        const image = detail?.output?.images?.at?.(-1);
        if (image?.filename) showLast(addressOf(image));
    });
}

function showLast(address) {
    const image = new Image();
    image.onload = () => {
        lastPicture = image;
        editors.forEach((each) => each.beat());
    };
    image.src = address;
}
