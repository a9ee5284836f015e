// Pictures to lie behind the boxes: loaded once each, the last few kept.

const KEPT = 8;

export class Pictures {
    /** `tell` is called whenever a picture has come. */
    constructor(tell) {
        this.tell = tell;
        this.images = new Map(); // address -> image
    }

    /** An image that can be drawn, or null while it is loading. */
    at(address) {
        let image = this.images.get(address);
        if (!image) {
            image = new Image();
            image.onload = this.tell;
            image.src = address;
            this.images.set(address, image);
            if (this.images.size > KEPT) this.images.delete(this.images.keys().next().value);
        }
        return isThere(image) ? image : null;
    }
}

/** Whether an image can be drawn. */
export function isThere(image) {
    return Boolean(image?.complete && image.naturalWidth > 0);
}
