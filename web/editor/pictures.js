// Pictures to lie behind the boxes: loaded once each, the last few kept.

const KEPT = 8;
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
