// What part of the image is seen in full screen: zoom, and where it is moved.

import { swallow } from "./dom.js";
import { clamp } from "./model/geometry.js";
import { imageArea } from "./view/scene.js";

const PLAIN = { zoom: 1, x: 0, y: 0 };
const MAX_ZOOM = 32;
const IN_SIGHT = 60; // CSS pixels of the image that stay on the canvas

export class Lens {
    constructor(stage) {
        this.stage = stage;
        this.value = PLAIN; // zoom, and CSS pixels that the image is moved by
        this.panned = null; // while the image is dragged: {lens, at}
        this.space = false; // whether the space bar is down
    }

    /** Where the image lies on the canvas, in CSS pixels; in full screen it may reach beyond. */
    get area() {
        const { canvas, editor } = this.stage, { zoom, x, y } = this.value;
        const fit = imageArea(canvas.offsetWidth, canvas.offsetHeight, editor.size);
        return { x: fit.x * zoom + x, y: fit.y * zoom + y, width: fit.width * zoom, height: fit.height * zoom };
    }

    /** Look at the image through a lens, or null for all of it. */
    set(lens) {
        const { zoom, x, y } = lens ?? PLAIN;
        this.value = { zoom: clamp(zoom, 1, MAX_ZOOM), x, y };
        const area = this.area, { offsetWidth: width, offsetHeight: height } = this.stage.canvas;
        this.value.x += clamp(area.x, IN_SIGHT - area.width, Math.max(0, width - IN_SIGHT)) - area.x;
        this.value.y += clamp(area.y, IN_SIGHT - area.height, Math.max(0, height - IN_SIGHT)) - area.y;
        if (this.value.zoom === 1) this.value = PLAIN;
        this.stage.draw();
    }

    /** The wheel: closer to what is under the pointer, or away from it. */
    zoomBy(event) {
        const rect = this.stage.canvas.getBoundingClientRect();
        this.zoomAt(2 ** (-clamp(event.deltaY, -200, 200) / 200), event.clientX - rect.left, event.clientY - rect.top);
    }

    /** Zoom by a factor; the point at x, y of the canvas stays. */
    zoomAt(factor, x, y) {
        const { value: lens } = this, zoom = clamp(lens.zoom * factor, 1, MAX_ZOOM), share = zoom / lens.zoom;
        this.set({ zoom, x: x - (x - lens.x) * share, y: y - (y - lens.y) * share });
    }

    /** In full screen: drag the image about with the middle button or Space, from the press to the release. */
    pan(event) {
        const { canvas } = this.stage;
        const begins = event.type === "pointerdown" && event.target === canvas && (event.button === 1 || this.space);
        if (!begins && !this.panned) return;
        swallow(event);
        if (begins) {
            canvas.focus({ preventScroll: true });
            canvas.setPointerCapture(event.pointerId);
            this.panned = { lens: this.value, at: [event.clientX, event.clientY] };
        } else if (event.type === "pointermove") {
            const { lens, at } = this.panned;
            this.set({ ...lens, x: lens.x + event.clientX - at[0], y: lens.y + event.clientY - at[1] });
        } else {
            this.panned = null;
        }
    }

    /** Whether a key was to change what is seen. */
    act(key) {
        const { canvas } = this.stage, middle = [canvas.offsetWidth / 2, canvas.offsetHeight / 2];
        if (key === "+" || key === "=") this.zoomAt(1.5, ...middle);
        else if (key === "-") this.zoomAt(1 / 1.5, ...middle);
        else if (key === "0") this.set(null);
        else if (key === " ") this.space = true;
        else return false;
        return true;
    }
}
