// Pictures to lie behind the boxes: loaded once each, the last few kept.

import { element } from "./dom.js";

const KEPT = 8;
const PINNED = 768; // pixels: the longer side of what is kept of a picture
const IN_USE = 2000; // ms: what was asked for since then is kept too, however many there are: it would be asked for again

export class Pictures {
    /** `tell` is called whenever a picture has come; `now` tells the time in ms. */
    constructor(tell, now = () => performance.now()) {
        this.tell = tell;
        this.now = now;
        this.images = new Map(); // address -> {image, asked: when}, the one asked for longest ago first
    }

    /** An image that can be drawn, or null while it is loading. */
    at(address) {
        const image = this.images.get(address)?.image ?? this.load(address);
        this.images.delete(address);
        this.images.set(address, { image, asked: this.now() });
        return isThere(image) ? image : null;
    }

    load(address) {
        for (const [other, { asked }] of this.images) {
            if (this.images.size < KEPT || this.now() - asked < IN_USE) break;
            this.images.delete(other);
        }
        const image = new Image();
        image.onload = this.tell;
        image.src = address;
        return image;
    }
}

/** Whether an image can be drawn. */
export function isThere(image) {
    return Boolean(image?.complete && image.naturalWidth > 0);
}

/** Fails where the page cannot show a file as an image, whatever its name says. */
export async function shown(file) {
    const image = new Image();
    image.src = URL.createObjectURL(file);
    try {
        await image.decode();
    } finally {
        URL.revokeObjectURL(image.src);
    }
}

/** What a picture shows in a box, as {image, x, y, width, height}: a copy that is no larger than it need be. */
export function cutOut(picture, { x, y, width, height }) {
    const across = picture.naturalWidth, down = picture.naturalHeight;
    const scale = Math.min(1, PINNED / Math.max(width * across, height * down));
    const image = element("canvas", {
        width: Math.max(1, Math.round(width * across * scale)), height: Math.max(1, Math.round(height * down * scale)),
    });
    const part = [x * across, y * down, width * across, height * down];
    image.getContext("2d").drawImage(picture, ...part, 0, 0, image.width, image.height);
    return { image, x, y, width, height };
}
