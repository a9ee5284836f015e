// Drawing with the pointer what no two corners span: polygons, corner by corner or as an outline, and paint. Knows the
// stage it works on; what it makes is an edit of the drawing like any other.

import { element, show } from "./dom.js";
import { added, editable, hasRoom, option, withArea } from "./model/drawing.js";
import { clamp } from "./model/geometry.js";
import { MIN_SIZE } from "./model/json.js";
import { cutOut, newPainting, stroke } from "./model/paint.js";
import { polygonOf, simplified } from "./model/shapes.js";

const CLICK = 4; // screen pixels a click may wander
const CLOSE = 10; // CSS pixels around the first corner where a click closes the polygon
const STEP = 2; // CSS pixels between the points of an outline drawn by hand
export const TOOLS = ["box", "ellipse", "polygon", "brush", "eraser"];
export const TOOL_KEYS = { v: "box", o: "ellipse", p: "polygon", b: "brush", e: "eraser" };
const SIZES = [0.004, 0.25]; // of the image's longer side: the brush's radius

const HINTS = { polygon: "polygonHint", brush: "brushHint", eraser: "eraserHint" };
const BRUSH_WORDS = { radius: "brushSize", softness: "brushSoftness" };

export class Freehand {
    constructor(stage) {
        this.stage = stage;
        this.editor = stage.editor;
        this.tool = "box";
        this.brush = { radius: 0.04, softness: 0.25 };
        this.outline = null; // of a polygon under way: {points, at: where the pointer is, trace: points of a drag or null}
        this.paint = null; // of a stroke under way: {painting, before: its cells, last, target: id or null, erases}
        this.pointer = null; // where the brush is over the image
        this.pressed = null; // the pointer that is down: {pointer, at}
        this.hint = element("span", { class: "bw-hint" });
        this.sliders = ["radius", "softness"].map((key) => this.slider(key));
        this.root = element("div", { class: "bw-tool", hidden: true }, [this.hint, ...this.sliders.map(({ node }) => node)]);
    }

    slider(key) {
        const text = this.editor.t(BRUSH_WORDS[key]), [low, high] = key === "radius" ? SIZES : [0, 1];
        const input = element("input", { type: "range", min: low, max: high, step: 0.002, "aria-label": text, on: {
            input: () => this.setBrush({ [key]: Number(input.value) }),
        } });
        return { key, input, node: element("label", { class: "bw-field", title: text }, [element("span", { text }), input]) };
    }

    /** Show what the tool has to say and to set. */
    update() {
        const { t } = this.editor;
        this.root.hidden = !this.isOn();
        this.hint.textContent = this.isOn() ? t(HINTS[this.tool]) : "";
        for (const { key, input, node } of this.sliders) {
            node.hidden = !this.isPainting();
            show(input, String(this.brush[key]));
        }
    }

    /** Whether the tool draws by itself what the pointer does. */
    isOn() {
        return ["polygon", "brush", "eraser"].includes(this.tool);
    }

    isPainting() {
        return this.tool === "brush" || this.tool === "eraser";
    }

    isUnderWay() {
        return Boolean(this.outline || this.paint);
    }

    choose(tool) {
        this.cancel();
        this.tool = tool;
        this.pointer = null;
        this.changed();
    }

    changed() {
        this.update();
        this.editor.toolbarChanged();
        this.stage.draw();
    }

    /** The tool and its brush as they were in another editor. */
    takeUp({ tool, brush }) {
        this.brush = brush;
        this.choose(tool);
    }

    cancel() {
        this.outline = null;
        this.paint = null;
        this.letGo();
        this.stage.draw();
    }

    // --- the pointer ----------------------------------------------------------------------------------------------------

    down(event) {
        const point = this.stage.point(event);
        this.pressed = { pointer: event.pointerId, at: [event.clientX, event.clientY] };
        this.root.classList.add("bw-away"); // what lies beneath is drawn on
        if (this.isPainting()) this.beginPaint(point, event.altKey);
        else this.addCorner(point);
        this.stage.draw();
    }

    move(event) {
        if (this.pressed && this.pressed.pointer !== event.pointerId) return;
        const point = this.stage.point(event);
        this.pointer = point;
        if (this.paint) {
            for (const each of [...event.getCoalescedEvents?.() ?? [], event]) this.paintTo(this.stage.point(each));
        } else if (this.outline) this.trace(event, point);
        this.stage.draw();
    }

    up(event) {
        if (this.pressed?.pointer !== event.pointerId) return;
        this.letGo();
        if (this.paint) this.endPaint();
        else if (this.outline?.trace || this.outline?.isWhole) this.close();
    }

    letGo() {
        this.pressed = null;
        this.root.classList.remove("bw-away");
    }

    leave() {
        this.pointer = null;
        this.stage.draw();
    }

    // --- polygons -------------------------------------------------------------------------------------------------------

    addCorner(point) {
        if (!hasRoom(this.editor.state)) {
            this.editor.sayFull();
            return;
        }
        const reach = this.stage.reach(CLOSE), [first] = this.outline?.points ?? [];
        const isNear = first && Math.hypot((first.x - point.x) / reach.x, (first.y - point.y) / reach.y) <= 1;
        if (isNear && this.outline.points.length > 2) {
            this.outline.isWhole = true; // closed when the pointer goes up: until then the page moves the focus
            return;
        }
        this.outline ??= { points: [], at: point, trace: null };
        this.outline.points.push(point);
    }

    /** The pointer goes on: with the button down the outline follows it. */
    trace(event, point) {
        this.outline.at = point;
        if (!this.pressed) return;
        const [x, y] = this.pressed.at;
        if (!this.outline.trace && Math.hypot(event.clientX - x, event.clientY - y) <= CLICK) return;
        this.outline.trace ??= [this.outline.points.at(-1)];
        const last = this.outline.trace.at(-1), step = this.stage.reach(STEP);
        if (Math.hypot((last.x - point.x) / step.x, (last.y - point.y) / step.y) >= 1) this.outline.trace.push(point);
    }

    /** Both clicks have set a corner, in the same place. */
    doubleClick() {
        if (!this.outline) return;
        this.outline.points.pop();
        this.close();
    }

    takeBack() {
        this.outline.points.pop();
        if (!this.outline.points.length) this.outline = null;
        this.stage.draw();
    }

    /** The polygon is whole: a new region, which asks for its words. Too few corners or no area: nothing. */
    close() {
        const { points, trace } = this.outline, step = this.stage.reach(1);
        this.outline = null;
        const drawn = trace ? simplified([...points.slice(0, -1), ...trace], Math.max(step.x, step.y)) : points;
        const made = polygonOf(drawn, MIN_SIZE);
        if (!made) this.stage.draw();
        else this.stage.keepNew(added(this.editor.state, [made]));
    }

    // --- paint ----------------------------------------------------------------------------------------------------------

    beginPaint(point, alt) {
        const { editor } = this, erases = (this.tool === "eraser") !== alt;
        const chosen = editable(editor.state).filter((box) => !option(box, "hidden"));
        const target = chosen.length === 1 ? chosen[0] : null;
        if (erases && !target) {
            editor.notify(editor.t("nothingToErase"));
            return;
        }
        if (!target && !hasRoom(editor.state)) {
            editor.sayFull();
            return;
        }
        const painting = newPainting(editor.size, target);
        this.paint = { painting, before: painting.cells.slice(), last: point, target: target?.id ?? null, erases };
        this.paintTo(point);
    }

    paintTo(point) {
        stroke(this.paint.painting, this.paint.last, point, { ...this.brush, erases: this.paint.erases });
        this.paint.last = point;
    }

    endPaint() {
        const { editor } = this, { painting, before, target } = this.paint;
        this.paint = null;
        this.stage.draw();
        if (painting.cells.every((level, at) => level === before[at])) return; // what was no paint shall not become it
        const made = cutOut(painting);
        if (target !== null) editor.commit(withArea(editor.state, target, made));
        else if (made) editor.commit(added(editor.state, [made]));
    }

    setBrush(change) {
        this.brush = { ...this.brush, ...change };
        this.brush.radius = clamp(this.brush.radius, ...SIZES);
        this.changed();
    }

    // --- keys -----------------------------------------------------------------------------------------------------------

    /** Whether a key was for a tool. */
    act(key) {
        if (this.outline) {
            if (key === "Enter") this.close();
            else if (key === "Backspace" || key === "Delete") this.takeBack();
            else if (key === "Escape") this.cancel();
            else return false;
            return true;
        }
        if (key === "Escape" && this.tool !== "box") this.choose("box");
        else if (key in TOOL_KEYS) this.choose(TOOL_KEYS[key]);
        else if (this.isPainting() && "[]".includes(key)) {
            this.setBrush({ radius: this.brush.radius * (key === "]" ? 1.25 : 0.8) });
        } else return false;
        return true;
    }

    /** What there is to see of a drawing under way. */
    scene() {
        const color = this.editor.state.boxes.length;
        return {
            outline: this.outline && { points: [...this.outline.points, ...(this.outline.trace ?? [this.outline.at])], color },
            painting: this.paint && { ...this.paint.painting, target: this.paint.target, color },
            brush: this.isPainting() && this.pointer ? { ...this.pointer, radius: this.brush.radius } : null,
        };
    }
}
