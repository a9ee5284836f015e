// The canvas: turns pointers and keys into gestures, and shows the editor's state. It holds no drawing of its own. One
// file, since pointer, wheel and keys share the one gesture under way.

import { begin, cornerAt, drag, end } from "./model/gestures.js";
import { bounds, handleAt } from "./model/geometry.js";
import {
    boxesAt, cycled, editable, movedBy, option, select, selectAll,
} from "./model/drawing.js";
import { HANDLE } from "./view/outlines.js";
import { drawScene, THEMES } from "./view/scene.js";
import { clipboard } from "./clipboard.js";
import { element, swallow } from "./dom.js";
import { Freehand } from "./freehand.js";
import { Lens } from "./lens.js";
import { PhraseField } from "./phrase_field.js";

const CLICK = 4; // screen pixels a click may wander
const SNAP = 6; // CSS pixels
const MAX_SIDE = 4096; // device pixels of the canvas
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
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
        this.words = new PhraseField(this);
        this.freehand = new Freehand(this);
        this.lens = new Lens(this);
        this.empty = element("div", { class: "bw-empty" }, [
            element("strong", { text: editor.t("emptyTitle") }), element("span", { text: editor.t("emptyHint") }),
        ]);
        this.root = element("div", { class: "bw-stage" }, [this.canvas, this.empty, this.freehand.root]);
        this.listen();
    }

    listen() {
        const on = (type, act, options) => this.canvas.addEventListener(type, act, options);
        on("pointerdown", (event) => this.pointerDown(event));
        on("pointermove", (event) => this.pointerMove(event));
        on("pointerup", (event) => this.pointerUp(event));
        on("pointercancel", (event) => this.lost(event));
        on("lostpointercapture", (event) => {
            this.lens.panned = null;
            this.lost(event);
        });
        on("pointerleave", () => {
            this.freehand.leave();
            this.setHover(null);
        });
        on("dblclick", (event) => this.doubleClick(event));
        on("keydown", (event) => this.keyDown(event));
        on("keyup", (event) => this.keyUp(event));
        on("blur", () => {
            this.focusedUntil = performance.now();
            this.lens.space = false;
            this.finishNudge();
        });
        on("focus", () => {
            this.focusedUntil = Infinity;
        });
        // Copy and paste reach whatever is focused and bubble; the host would copy nodes.
        for (const type of ["copy", "cut", "paste"]) on(type, (event) => clipboard(event, this.editor));
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
        return this.lens.area;
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
        if (event.button !== 0 || this.gesture || this.freehand.pressed || this.editor.problem) return undefined;
        this.finishNudge();
        this.words.close();
        this.canvas.focus({ preventScroll: true });
        this.canvas.setPointerCapture(event.pointerId);
        if (this.freehand.isOn()) return this.freehand.down(event);
        const keys = keysOf(event), { state } = this.editor;
        const shape = this.freehand.tool === "ellipse" ? { kind: "ellipse" } : undefined;
        this.gesture = begin(state, this.point(event), keys, this.drawing || Boolean(shape), this.handleReach(event), shape);
        Object.assign(this.gesture, { pointer: event.pointerId, at: [event.clientX, event.clientY], far: false });
        if (this.gesture.kind === "move") this.editor.show(this.gesture.base);
        return undefined;
    }

    pointerMove(event) {
        if (event.buttons & 4) return this.editor.host.forward(event);
        const { gesture } = this;
        if (this.freehand.isOn()) {
            if (this.freehand.pressed) event.stopPropagation();
            return this.freehand.move(event);
        }
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

    pointerUp(event) {
        if (event.button === 1) return this.editor.host.forward(event);
        const { gesture, shown } = this;
        if (this.freehand.pressed) {
            event.stopPropagation();
            return this.freehand.up(event);
        }
        if (!gesture || gesture.pointer !== event.pointerId) return undefined;
        event.stopPropagation();
        const drawn = gesture.kind === "draw" && gesture.far;
        const next = end(gesture, gesture.far, shown, keysOf(event));
        this.release();
        const isNew = drawn && next.boxes.length > gesture.from.boxes.length;
        if (gesture.far && (gesture.kind === "full" || (drawn && !isNew))) this.editor.sayFull();
        if (!isNew) return this.editor.commit(next);
        return this.keepNew(next);
    }

    /** Ask for the words of the box that is new in a state, and keep both: one step for the undo. */
    keepNew(state) {
        this.editor.show(state);
        this.freehand.choose("box");
        this.setDrawing(false);
        return this.words.edit(state.selection[0], true);
    }

    /** Back to how it was before the drag. */
    cancel() {
        this.freehand.cancel();
        if (!this.gesture) return;
        const { from } = this.gesture;
        this.release();
        this.editor.show(from);
    }

    /** The pointer that does something is gone. Another finger may come and go meanwhile. */
    lost({ pointerId }) {
        if ([this.gesture?.pointer, this.freehand.pressed?.pointer].includes(pointerId)) this.cancel();
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
        const onCorner = point && cornerAt(chosen, point, this.handleReach(event)) >= 0;
        const handle = point && chosen.length ? handleAt(bounds(chosen), point, this.handleReach(event)) : null;
        const top = point ? boxesAt(state, point)[0] : null;
        const draws = !top || this.drawing || event?.ctrlKey || event?.metaKey;
        const isTool = this.drawing || this.freehand.tool !== "box";
        this.canvas.style.cursor = onCorner && !isTool ? "pointer" : handle && !isTool ? `${CURSORS[handle]}-resize`
            : draws || isTool ? "crosshair" : "move";
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
        if (this.freehand.isOn()) {
            this.freehand.doubleClick();
            return;
        }
        if (this.editor.problem) return;
        const under = boxesAt(this.editor.state, this.point(event));
        const box = under.find((each) => this.editor.state.selection.includes(each.id)) ?? under[0];
        if (!box) return;
        this.editor.commit(select(this.editor.state, [box.id]));
        this.words.edit(box.id);
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
        if (!command && !event.altKey && this.freehand.act(key)) return true;
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
        if (editor.isFull && this.lens.act(key)) return true;
        if ((key === "Enter" || key === "F2") && state.selection.length === 1) return this.words.edit(state.selection[0]);
        return false;
    }

    /** First the selection goes, then the full screen; and the next Tab leaves the canvas. */
    escape() {
        if (this.drawing) return this.setDrawing(false) ?? true;
        if (this.editor.isFull && !this.editor.state.selection.length) return this.editor.setFull(false) ?? true;
        this.left = true;
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
        if (event.key === " ") this.lens.space = false;
        if (event.key in ARROWS) this.finishNudge();
        if (this.gesture?.far && ["Shift", "Alt"].includes(event.key)) this.drag(keysOf(event));
    }

    finishNudge() {
        this.left = false;
        if (!this.nudging) return;
        this.nudging = false;
        this.editor.commit(this.editor.state);
        this.editor.saySelection();
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
            gaps: view.gaps ? this.editor.knowledge.coverage().gaps : null, flags: this.editor.knowledge.flags(),
            freehand: this.freehand.scene(), handles: !this.freehand.isOn(), draft: this.shown?.draft,
            marquee: this.shown?.marquee, guides: this.shown?.guides, hover: this.hover, editing: this.words.open?.id,
        });
        const isDrawing = Boolean(this.gesture) || this.freehand.isUnderWay();
        this.empty.hidden = state.boxes.length > 0 || isDrawing || Boolean(this.editor.problem);
        this.words.place();
    }
}

function keysOf(event) {
    return { shift: event.shiftKey, ctrl: event.ctrlKey || event.metaKey, alt: event.altKey };
}
