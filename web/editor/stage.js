// The canvas: turns pointers and keys into gestures, and shows the editor's state. It holds no drawing of its own. One
// file, since pointer, wheel and keys share the one gesture under way.

import { begin, drag, end } from "./model/gestures.js";
import { bounds, clamp, handleAt } from "./model/geometry.js";
import {
    boxesAt, cycled, editable, movedBy, option, removed, select, selectAll, selected, set,
} from "./model/drawing.js";
import { boxColor, inkOn } from "./model/colors.js";
import { drawScene, frameOf, HANDLE, imageArea, THEMES } from "./view/scene.js";
import { element } from "./dom.js";

const CLICK = 4; // screen pixels a click may wander
const SNAP = 6; // CSS pixels
const MAX_SIDE = 4096; // device pixels of the canvas
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const PLAIN = { zoom: 1, x: 0, y: 0 };
const MAX_ZOOM = 32;
const IN_SIGHT = 60; // CSS pixels of the image that stay on the canvas
const CURSORS = { n: "ns", s: "ns", e: "ew", w: "ew", nw: "nwse", se: "nwse", ne: "nesw", sw: "nesw" };

export class Stage {
    constructor(editor) {
        this.editor = editor;
        this.gesture = null;
        this.shown = null; // the last result of drag()
        this.hover = null;
        this.drawing = false; // the next drag draws, whatever lies under it
        this.frame = 0;
        this.canvas = element("canvas", { class: "bw-canvas", tabindex: 0, role: "application" });
        this.context = this.canvas.getContext("2d");
        this.input = null; // the inline editor of a phrase
        this.lens = PLAIN; // what part of the image is seen in full screen: zoom, and CSS pixels that it is moved by
        this.empty = element("div", { class: "bw-empty" }, [
            element("strong", { text: editor.t("emptyTitle") }), element("span", { text: editor.t("emptyHint") }),
        ]);
        this.root = element("div", { class: "bw-stage" }, [this.canvas, this.empty]);
        this.listen();
    }

    listen() {
        const on = (type, act, options) => this.canvas.addEventListener(type, act, options);
        on("pointerdown", (event) => this.pointerDown(event));
        on("pointermove", (event) => this.pointerMove(event));
        on("pointerup", (event) => this.pointerUp(event));
        on("pointercancel", () => this.cancel());
        on("lostpointercapture", () => {
            this.panned = null;
            if (this.gesture) this.cancel();
        });
        on("pointerleave", () => this.setHover(null));
        on("dblclick", (event) => this.doubleClick(event));
        on("keydown", (event) => this.keyDown(event));
        on("keyup", (event) => this.keyUp(event));
        on("blur", () => {
            this.focusedUntil = performance.now();
            this.space = false;
            this.finishNudge();
        });
        on("focus", () => {
            this.focusedUntil = Infinity;
        });
        // Copy and paste reach whatever is focused and bubble; the host would copy nodes.
        for (const type of ["copy", "cut", "paste"]) on(type, (event) => this.clipboard(event));
    }

    /** Whether the canvas has the focus, or had it until the host took it off the page just now. */
    hadFocus() {
        return performance.now() - (this.focusedUntil ?? -Infinity) < 500;
    }

    // --- geometry -----------------------------------------------------------------------------------------------------

    /** Screen pixels per CSS pixel of the canvas: the zoom of the graph. */
    get zoom() {
        const shown = this.canvas.getBoundingClientRect().width;
        return shown > 0 && this.canvas.offsetWidth > 0 ? shown / this.canvas.offsetWidth : 1;
    }

    /** Where the image lies on the canvas, in CSS pixels; in full screen it may reach beyond. */
    get area() {
        const { zoom, x, y } = this.lens;
        const fit = imageArea(this.canvas.offsetWidth, this.canvas.offsetHeight, this.editor.size);
        return { x: fit.x * zoom + x, y: fit.y * zoom + y, width: fit.width * zoom, height: fit.height * zoom };
    }

    /** Look at the image through a lens, or null for all of it. */
    setLens(lens) {
        const { zoom, x, y } = lens ?? PLAIN;
        this.lens = { zoom: clamp(zoom, 1, MAX_ZOOM), x, y };
        const area = this.area, { offsetWidth: width, offsetHeight: height } = this.canvas;
        this.lens.x += clamp(area.x, IN_SIGHT - area.width, Math.max(0, width - IN_SIGHT)) - area.x;
        this.lens.y += clamp(area.y, IN_SIGHT - area.height, Math.max(0, height - IN_SIGHT)) - area.y;
        if (this.lens.zoom === 1) this.lens = PLAIN;
        this.draw();
    }

    /** The wheel: closer to what is under the pointer, or away from it. */
    zoomBy(event) {
        const rect = this.canvas.getBoundingClientRect();
        this.zoomAt(2 ** (-clamp(event.deltaY, -200, 200) / 200), event.clientX - rect.left, event.clientY - rect.top);
    }

    /** Zoom by a factor; the point at x, y of the canvas stays. */
    zoomAt(factor, x, y) {
        const { lens } = this, zoom = clamp(lens.zoom * factor, 1, MAX_ZOOM), share = zoom / lens.zoom;
        this.setLens({ zoom, x: x - (x - lens.x) * share, y: y - (y - lens.y) * share });
    }

    /** A pointer's place as fractions of the image; outside 0 to 1 beside it. */
    point(event) {
        const rect = this.canvas.getBoundingClientRect(), area = this.area, zoom = this.zoom;
        return {
            x: ((event.clientX - rect.left) / zoom - area.x) / area.width,
            y: ((event.clientY - rect.top) / zoom - area.y) / area.height,
        };
    }

    /** So many CSS pixels as fractions of the image. */
    reach(pixels) {
        const area = this.area;
        return { x: pixels / area.width, y: pixels / area.height };
    }

    handleReach(event) {
        const finger = event.pointerType === "touch" ? 2.4 : 1;
        return this.reach(HANDLE * finger * Math.max(1, Math.min(2.5, 1 / this.zoom)));
    }

    // --- pointers -----------------------------------------------------------------------------------------------------

    pointerDown(event) {
        if (event.button === 1 || this.editor.host.isPanning()) return this.editor.host.forward(event);
        event.stopPropagation();
        if (event.button !== 0 || this.gesture || this.editor.problem) return undefined;
        this.finishNudge();
        this.closeInput();
        this.canvas.focus({ preventScroll: true });
        this.canvas.setPointerCapture(event.pointerId);
        const keys = keysOf(event), { state } = this.editor;
        this.gesture = begin(state, this.point(event), keys, this.drawing, this.handleReach(event));
        Object.assign(this.gesture, { pointer: event.pointerId, at: [event.clientX, event.clientY], far: false });
        if (this.gesture.kind === "move") this.editor.show(this.gesture.base);
        return undefined;
    }

    pointerMove(event) {
        if (event.buttons & 4) return this.editor.host.forward(event);
        const { gesture } = this;
        if (!gesture) return this.setHover(this.point(event), event);
        event.stopPropagation();
        if (gesture.pointer !== event.pointerId) return undefined;
        gesture.far ||= Math.hypot(event.clientX - gesture.at[0], event.clientY - gesture.at[1]) > CLICK;
        gesture.last = event;
        if (gesture.far) this.drag(keysOf(event));
        return undefined;
    }

    drag(keys) {
        this.shown = drag(this.gesture, this.point(this.gesture.last), keys, this.snapping());
        this.editor.show(this.shown.state);
    }

    snapping() {
        const { view, size } = this.editor;
        return { on: view.snap || view.grid > 0, grid: view.grid, size, reach: this.reach(SNAP) };
    }

    /** In full screen: drag the image about with the middle button or Space, from the press to the release. */
    pan(event) {
        const begins = event.type === "pointerdown" && event.target === this.canvas && (event.button === 1 || this.space);
        if (!begins && !this.panned) return;
        swallow(event);
        if (begins) {
            this.canvas.focus({ preventScroll: true });
            this.canvas.setPointerCapture(event.pointerId);
            this.panned = { lens: this.lens, at: [event.clientX, event.clientY] };
        } else if (event.type === "pointermove") {
            const { lens, at } = this.panned;
            this.setLens({ ...lens, x: lens.x + event.clientX - at[0], y: lens.y + event.clientY - at[1] });
        } else {
            this.panned = null;
        }
    }

    pointerUp(event) {
        if (event.button === 1) return this.editor.host.forward(event);
        const { gesture, shown } = this;
        if (!gesture || gesture.pointer !== event.pointerId) return undefined;
        event.stopPropagation();
        const drawn = gesture.kind === "draw" && gesture.far;
        const next = end(gesture, gesture.far, shown, keysOf(event));
        this.release();
        const isNew = drawn && next.boxes.length > gesture.from.boxes.length;
        if (gesture.far && (gesture.kind === "full" || (drawn && !isNew))) this.editor.sayFull();
        if (!isNew) return this.editor.commit(next);
        this.editor.show(next); // kept when its words are there: one step for the undo
        this.setDrawing(false);
        return this.editPhrase(next.selection[0], true);
    }

    /** Back to how it was before the drag. */
    cancel() {
        if (!this.gesture) return;
        const { from } = this.gesture;
        this.release();
        this.editor.show(from);
    }

    release() {
        const { gesture } = this;
        this.gesture = null;
        this.shown = null;
        if (gesture && this.canvas.hasPointerCapture(gesture.pointer)) this.canvas.releasePointerCapture(gesture.pointer);
    }

    setHover(point, event) {
        const { state } = this.editor;
        const chosen = editable(state).filter((box) => !option(box, "hidden"));
        const handle = point && chosen.length ? handleAt(bounds(chosen), point, this.handleReach(event)) : null;
        const top = point ? boxesAt(state, point)[0] : null;
        const draws = !top || this.drawing || event?.ctrlKey || event?.metaKey;
        this.canvas.style.cursor = handle && !this.drawing ? `${CURSORS[handle]}-resize` : draws ? "crosshair" : "move";
        const hover = top?.id ?? null;
        if (hover !== this.hover) {
            this.hover = hover;
            this.draw();
        }
    }

    setDrawing(on) {
        this.drawing = on;
        this.editor.toolbarChanged();
    }

    doubleClick(event) {
        event.stopPropagation();
        if (this.editor.problem) return;
        const under = boxesAt(this.editor.state, this.point(event));
        const box = under.find((each) => this.editor.state.selection.includes(each.id)) ?? under[0];
        if (!box) return;
        this.editor.commit(select(this.editor.state, [box.id]));
        this.editPhrase(box.id);
    }

    // --- keys ---------------------------------------------------------------------------------------------------------

    keyDown(event) {
        if (this.gesture) {
            if (event.key === "Escape") this.cancel();
            else if (this.gesture.far && ["Shift", "Alt"].includes(event.key)) this.drag(keysOf(event));
            if (!(event.ctrlKey || event.metaKey) || event.key === "Alt") swallow(event);
            return;
        }
        if (!this.editor.problem && this.act(event)) swallow(event);
    }

    /** Whether a key was for us. Undo and redo are not: the host listens for them before we do. */
    act(event) {
        const { editor } = this, { state } = editor;
        const command = event.ctrlKey || event.metaKey;
        const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
        if (command) {
            if (key === "d" && !event.shiftKey) return editor.duplicate();
            if (key === "a" && !event.shiftKey) return editor.commit(selectAll(state));
            return false;
        }
        if (key in ARROWS && editable(state).length && !event.altKey) return this.nudge(key, event.shiftKey ? 10 : 1);
        if ((key === "Delete" || key === "Backspace") && state.selection.length) return editor.remove();
        if (key === "Tab" && state.boxes.length) {
            if (!state.selection.length && this.left) return false;
            editor.commit(cycled(state, event.shiftKey ? -1 : 1));
            return editor.saySelection();
        }
        if (key === "Escape") return this.escape();
        if (key === "f" && !event.altKey) return editor.setFull(!editor.isFull) ?? true;
        if (editor.isFull && this.look(key)) return true;
        if ((key === "Enter" || key === "F2") && state.selection.length === 1) return this.editPhrase(state.selection[0]);
        return false;
    }

    /** Keys that only change what is seen. */
    look(key) {
        const middle = [this.canvas.offsetWidth / 2, this.canvas.offsetHeight / 2];
        if (key === "+" || key === "=") this.zoomAt(1.5, ...middle);
        else if (key === "-") this.zoomAt(1 / 1.5, ...middle);
        else if (key === "0") this.setLens(null);
        else if (key === " ") this.space = true;
        else return false;
        return true;
    }

    /** First the selection goes, then the full screen, then Tab leaves the canvas. */
    escape() {
        if (this.drawing) return this.setDrawing(false) ?? true;
        if (this.editor.isFull && !this.editor.state.selection.length) return this.editor.setFull(false) ?? true;
        this.left = !this.editor.state.selection.length;
        return this.editor.commit(select(this.editor.state, []));
    }

    /** Kept on screen only, until the key is let go: one step for the undo, however long it was held. */
    nudge(key, pixels) {
        const { size, state } = this.editor;
        this.nudging = true;
        this.editor.show(movedBy(state, ARROWS[key][0] * pixels / size.width, ARROWS[key][1] * pixels / size.height));
        return true;
    }

    keyUp(event) {
        if (event.key === " ") this.space = false;
        if (event.key in ARROWS) this.finishNudge();
        if (this.gesture?.far && ["Shift", "Alt"].includes(event.key)) this.drag(keysOf(event));
    }

    finishNudge() {
        this.left = false;
        if (!this.nudging) return;
        this.nudging = false;
        this.editor.commit(this.editor.state);
    }

    clipboard(event) {
        if (!event.clipboardData || this.editor.problem) return;
        event.preventDefault();
        event.stopPropagation();
        if (event.type === "paste" && [...event.clipboardData.files].some((file) => file.type.startsWith("image/"))) {
            this.editor.takeImage([...event.clipboardData.files]);
            return;
        }
        if (event.type === "paste") {
            this.editor.paste(event.clipboardData.getData("text/plain"));
            return;
        }
        const boxes = selected(this.editor.state);
        if (!boxes.length) return;
        event.clipboardData.setData("text/plain", this.editor.clipboardText(boxes));
        if (event.type === "cut") this.editor.commit(removed(this.editor.state));
        else this.editor.say("copied", { count: boxes.length });
    }

    // --- writing a phrase on the canvas ---------------------------------------------------------------------------------

    /** Write the words of a box in place. `isNew`: the box is on the screen only and is kept together with its words. */
    editPhrase(id, isNew = false) {
        this.closeInput();
        const { editor } = this;
        const index = editor.state.boxes.findIndex((box) => box.id === id);
        if (index < 0) return false;
        const before = editor.state.boxes[index].phrase;
        const label = editor.t("phraseOf", { number: index + 1 });
        const input = element("input", {
            class: "bw-inline", type: "text", value: before, maxlength: 1000, "aria-label": label,
            placeholder: editor.t("phrasePlaceholder"),
        });
        const color = boxColor(editor.state.boxes[index], index);
        input.style.borderColor = color;
        input.style.setProperty("--bw-ink", inkOn(color));
        this.input = { node: input, id, before, isNew };
        input.addEventListener("input", () => this.typed(input.value));
        input.addEventListener("blur", () => this.closeInput());
        input.addEventListener("keydown", (event) => this.inputKey(event, input, before));
        for (const type of ["pointerdown", "pointermove", "pointerup", "dblclick", "copy", "cut", "paste", "keyup"]) {
            input.addEventListener(type, (event) => event.stopPropagation());
        }
        this.root.append(input);
        this.placeInput();
        input.focus({ preventScroll: true });
        input.select();
        this.draw();
        return true;
    }

    typed(phrase) {
        const next = set(this.editor.state, [this.input.id], { phrase });
        if (this.input.isNew) this.editor.show(next);
        else this.editor.commit(next, false);
    }

    inputKey(event, input, before) {
        const undoes = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !event.shiftKey;
        if (undoes && input.value === before) { // nothing was typed: the last thing done is the box itself
            swallow(event);
            this.closeInput();
            this.canvas.focus({ preventScroll: true });
            this.editor.host.undo();
            return;
        }
        if (event.isComposing) return;
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return this.closeInput(); // the host's Run
        event.stopPropagation();
        if (event.key !== "Enter" && event.key !== "Escape" && event.key !== "Tab") return;
        event.preventDefault();
        if (event.key === "Escape" && input.value !== before) this.typed(before);
        this.closeInput();
        this.canvas.focus({ preventScroll: true });
        if (event.key === "Tab") {
            this.editor.commit(cycled(this.editor.state, event.shiftKey ? -1 : 1));
            this.editPhrase(this.editor.state.selection[0]);
        }
    }

    placeInput() {
        const box = this.input && this.editor.state.boxes.find((each) => each.id === this.input.id);
        if (!box) return;
        const frame = frameOf(box, this.area), width = this.canvas.offsetWidth, height = this.canvas.offsetHeight;
        const wide = Math.max(130, frame.width);
        Object.assign(this.input.node.style, {
            left: `${Math.max(0, Math.min(frame.x, width - wide))}px`,
            top: `${Math.max(0, Math.min(frame.y, height - 28))}px`,
            width: `${Math.min(wide, width)}px`,
        });
    }

    closeInput() {
        if (!this.input) return;
        const { id } = this.input;
        const box = this.editor.state.boxes.find((each) => each.id === id);
        const trimmed = box?.phrase.trim();
        this.dropInput();
        if (box && trimmed !== box.phrase) this.editor.commit(set(this.editor.state, [id], { phrase: trimmed }));
        else this.editor.commit(this.editor.state);
    }

    /** Take the field away; what was typed is in the drawing already. */
    dropInput() {
        const node = this.input?.node;
        this.input = null; // first: taking a field with the focus away closes it again
        node?.remove();
    }

    // --- drawing ------------------------------------------------------------------------------------------------------

    /** Draw before the next frame; many calls, one drawing. */
    draw() {
        this.frame ||= requestAnimationFrame(() => {
            this.frame = 0;
            this.paint();
        });
    }

    /** Match the canvas to its place on the screen; whether anything changed. */
    fit() {
        const width = this.canvas.offsetWidth, height = this.canvas.offsetHeight;
        if (!width || !height) return false;
        const wanted = (globalThis.devicePixelRatio || 1) * Math.max(1, Math.min(4, this.zoom));
        const ratio = Math.min(wanted, MAX_SIDE / Math.max(width, height));
        const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
        if (across === this.canvas.width && down === this.canvas.height) return false;
        Object.assign(this.canvas, { width: across, height: down });
        this.ratio = ratio;
        return true;
    }

    paint() {
        this.fit();
        if (!this.ratio) return;
        const { state, view, size, facts } = this.editor;
        drawScene(this.context, {
            boxes: state.boxes, selection: state.selection, size, ratio: this.ratio,
            canvas: { width: this.canvas.offsetWidth, height: this.canvas.offsetHeight },
            area: this.area, theme: THEMES[this.editor.theme], picture: this.editor.picture(), opacity: facts.opacity,
            grid: view.grid, pins: this.editor.host.pins(),
            gaps: view.gaps ? this.editor.coverage().gaps : null, flags: this.editor.flags(),
            draft: this.shown?.draft, marquee: this.shown?.marquee, guides: this.shown?.guides, hover: this.hover,
            editing: this.input?.id,
        });
        this.empty.hidden = state.boxes.length > 0 || Boolean(this.gesture) || Boolean(this.editor.problem);
        this.placeInput();
    }
}

function keysOf(event) {
    return { shift: event.shiftKey, ctrl: event.ctrlKey || event.metaKey, alt: event.altKey };
}

function swallow(event) {
    event.preventDefault();
    event.stopPropagation();
}
