// The editor as an element: toolbar, canvas, list, fields. One file, since all of them are drawn anew from one state; the
// parts that could stand alone (panel, stage, pictures) do. It knows its host only through the object it is given, which
// host/host_of.js makes:
// { t, name, read() -> text, write(text), settle(), undo(), redo(), canUndo(), canRedo(),
//   facts() -> {width, height, prompt: text or null, opacity, sources: [{key, title, how}], drawingFrom: title or null},
//   picture(source, file) -> image or null, setOpacity(number), upload(file) -> promise of {filename, subfolder, type} or
//   null, fileAt(address) -> the same or null, loras() -> names of the server's LoRAs or null, pins() -> Map,
//   keepPins(Map), view() -> anything, setView(object), recall() -> history or null, keep(history), forward(event),
//   isPanning(), notify(text) }. facts() is asked for at every sync, not at every frame.

import { drawingText, MAX_BOXES, Problem } from "./model/json.js";
import { parsePasted } from "./model/layout_import.js";
import {
    added, duplicated, followed, freePlace, hasRoom, mended, newHistory, pasted, present, presentText, remembered, removed,
    selected, split, stateOf, withBackground,
} from "./model/drawing.js";
import { element } from "./dom.js";
import { FullScreen } from "./full_screen.js";
import { Knowledge } from "./knowledge.js";
import { BoxList, Inspector } from "./panel.js";
import { cutOut, shown } from "./pictures.js";
import { Stage } from "./stage.js";
import { linkedProblem, Status } from "./status.js";
import { ARRANGEMENTS, Toolbar } from "./toolbar.js";
import { STYLE } from "./view/style.js";
import { DEFAULT_VIEW, keptView, viewOf } from "./model/view.js";

const NOTICE = 6000; // ms that a notice of our own stays

export class BoxEditor {
    constructor(host) {
        this.host = host;
        this.t = host.t;
        this.theme = "dark";
        this.state = stateOf("");
        this.history = newHistory(this.state);
        this.text = null; // the text that the state was read from or written to; null = not read yet
        this.problem = null;
        this.view = DEFAULT_VIEW;
        this.facts = { width: 512, height: 512, prompt: null, opacity: 0.5, sources: [], drawingFrom: null };
        this.knowledge = new Knowledge(this);
        this.fullScreen = new FullScreen(this);
        this.stage = new Stage(this);
        this.list = new BoxList(this);
        this.inspector = new Inspector(this);
        this.status = new Status(this);
        this.toolbar = new Toolbar(this);
        this.speech = element("div", { class: "bw-speech", "aria-live": "polite" });
        this.notice = element("div", { class: "bw-notice", role: "alert", hidden: true });
        this.side = element("div", { class: "bw-side" }, [this.list.root, this.inspector.root]);
        this.element = element("div", { class: "bw-editor", role: "group", "aria-label": this.t("editor") }, [
            element("style", { text: STYLE }), // here, not in the document's head: it goes when the editor goes
            this.toolbar.root,
            this.status.sources,
            element("div", { class: "bw-main" }, [this.stage.root, this.side, this.status.trouble]),
            this.status.line,
            this.speech,
            this.notice,
        ]);
        this.listen();
    }

    listen() {
        // Keys typed into a field or pressed on a button are ours; the host must not delete nodes for them.
        this.element.addEventListener("keydown", (event) => {
            const command = event.ctrlKey || event.metaKey;
            if (event.key === "Escape" && !this.toolbar.closeMenus()) this.setFull(false);
            if (!command || ["c", "v", "x", "a"].includes(event.key.toLowerCase())) event.stopPropagation();
        });
        for (const type of ["copy", "cut", "paste"]) this.element.addEventListener(type, (event) => event.stopPropagation());
        for (const type of ["dragover", "drop"]) this.element.addEventListener(type, (event) => this.dropped(event));
        for (const type of ["pointerenter", "focusin"]) this.element.addEventListener(type, () => this.sync());
        this.element.addEventListener("focusout", (event) => {
            if (!this.element.contains(event.relatedTarget)) this.toolbar.closeMenus();
        });
    }

    // --- the drawing --------------------------------------------------------------------------------------------------

    /** Take over the host's text where somebody else has changed it. */
    sync() {
        this.view = viewOf(this.host.view());
        this.facts = this.host.facts();
        const { drawingFrom } = this.facts, text = this.host.read();
        if (text !== this.text || (drawingFrom === null && this.problem?.key === "drawingFrom")) this.load(text);
        if (drawingFrom !== null) this.problem = linkedProblem(this.problem, drawingFrom);
        this.element.dataset.panel = this.view.panel;
        this.status.showSources();
        this.render();
    }

    load(text) {
        const first = this.text === null;
        this.text = text;
        this.stage.cancel();
        this.stage.words.drop();
        try {
            const kept = first ? this.host.recall() : this.history;
            const isKnown = kept?.entries.some((entry) => entry.text === text);
            this.history = first && !isKnown ? newHistory(stateOf(text), text) : followed(kept, text);
            this.state = present(this.history);
            this.problem = null;
        } catch (error) {
            this.problem = error instanceof Problem ? error : new Problem("notOurs");
            this.history = newHistory(stateOf(""));
            this.state = present(this.history);
        }
    }

    /** Show a state that is not decided yet. */
    show(state) {
        this.state = state;
        this.render();
    }

    /** Keep a state: write its text, and unless more is to come (`settled` false) let the host take its snapshot. */
    commit(state, settled = true) {
        const before = presentText(this.history);
        this.state = state;
        this.history = remembered(this.history, state);
        this.host.keep(this.history);
        const text = presentText(this.history);
        if (text !== before || this.problem) {
            this.problem = null;
            this.text = text;
            this.host.write(text);
        }
        if (settled) this.host.settle();
        this.render();
        return true;
    }

    box(id) {
        return this.state.boxes.find((box) => box.id === id);
    }

    get isFull() {
        return this.fullScreen.isOn;
    }

    setFull(on, lens) {
        this.fullScreen.set(on, lens);
    }

    toolbarChanged() {
        this.toolbar.update();
    }

    get size() {
        const { width, height } = this.facts;
        if (this.lastSize?.width !== width || this.lastSize?.height !== height) this.lastSize = { width, height };
        return this.lastSize;
    }

    // --- actions ------------------------------------------------------------------------------------------------------

    add() {
        if (this.problem) return false;
        if (!hasRoom(this.state)) return this.sayFull();
        this.show(added(this.state, [freePlace(this.state)]));
        this.say("saidAdded", { number: this.state.boxes.length });
        return this.stage.words.edit(this.state.selection[0], true);
    }

    duplicate() {
        if (!hasRoom(this.state, this.state.selection.length)) return this.sayFull();
        return this.commit(duplicated(this.state));
    }

    remove() {
        const count = this.state.boxes.length;
        this.commit(removed(this.state));
        return this.say("saidRemoved", { count: count - this.state.boxes.length });
    }

    /** Numbers that the text has out of their range become those that are shown. */
    mend() {
        return this.commit(mended(this.state));
    }

    arrange(name) {
        if (this.problem) return;
        const next = name === "background" ? withBackground(this.state) : split(this.state, ...ARRANGEMENTS[name]);
        if (next === this.state) this.sayFull();
        else this.commit(next);
    }

    clipboardText(boxes = this.state.boxes) {
        return drawingText({ boxes, rest: {} });
    }

    /** Boxes from a text of any origin; what is wrong with it is said, and nothing changes. */
    paste(text) {
        if (this.problem) return false;
        try {
            const { boxes, words } = parsePasted(text, this.size.width, this.size.height);
            if (!hasRoom(this.state, boxes.length)) return this.sayFull();
            this.commit(pasted(this.state, boxes));
            if (words) {
                const { order, unit } = words;
                this.notify(this.t("pastedAs", { count: boxes.length, order, unit: this.t(unit) }));
            }
            return this.say("pastedCount", { count: boxes.length });
        } catch (error) {
            if (!(error instanceof Problem)) throw error;
            this.notify(this.t(error.key, error.values));
            return false;
        }
    }

    /** Boxes that came through the boxes input, with the mark that says which they are. */
    takeOver(text, mark) {
        try {
            const next = stateOf(text, this.state.nextId);
            this.stage.cancel(); // what is drawn right now began on the boxes that go
            this.stage.words.drop();
            this.commit({ ...next, rest: { ...this.state.rest, upstream: mark } });
            this.say("fromUpstream");
        } catch (error) {
            if (!(error instanceof Problem)) throw error;
            this.notify(this.t(error.key, error.values));
        }
    }

    /** An image dropped here lies behind the boxes; the host would make a node of it. */
    dropped(event) {
        const { dataTransfer } = event;
        if (!["Files", "text/uri-list"].some((type) => dataTransfer?.types.includes(type))) return;
        event.preventDefault();
        event.stopPropagation();
        if (event.type === "drop") this.takeImage([...dataTransfer.files], dataTransfer.getData("text/uri-list"));
    }

    /** Put the first image among files, or the one at an address of the server, behind the boxes. */
    async takeImage(files, address = "") {
        const image = files.find((each) => each.type.startsWith("image/"));
        try {
            if (image) await shown(image);
            const file = image ? await this.host.upload(image) : this.host.fileAt(address);
            if (!file) throw new Problem("noImage");
            this.setView({ behind: "file", file });
        } catch (error) {
            console.warn("Boxwright:", error);
            this.notify(this.t("noImage"));
        }
    }

    /** Keep what the picture shows in a box, to be compared with the next one; or let it go. */
    pin(id) {
        const pins = this.host.pins(), picture = this.picture(), box = this.box(id);
        for (const each of pins.keys()) if (!this.box(each)) pins.delete(each);
        if (pins.delete(id)) this.say("unpinned");
        else if (!picture) this.notify(this.t("nothingToPin"));
        else pins.set(id, cutOut(picture, box));
        this.host.keepPins(pins);
        this.render();
    }

    setView(change) {
        this.host.setView(keptView({ ...this.view, ...change }));
        this.sync();
        this.host.settle();
    }

    say(key, values) {
        this.speech.textContent = this.t(key, values);
        return true;
    }

    /** Tell the user something to be seen: in full screen by ourselves, since the host's messages lie beneath. */
    notify(words) {
        if (!this.isFull) {
            this.host.notify(words);
            return;
        }
        this.notice.textContent = words;
        this.notice.hidden = false;
        clearTimeout(this.noticeEnd);
        this.noticeEnd = setTimeout(() => {
            this.notice.hidden = true;
        }, NOTICE);
    }

    saySelection() {
        const box = selected(this.state)[0], index = this.state.boxes.indexOf(box);
        if (!box) return true;
        return this.say("saidSelected", { number: index + 1, count: this.state.boxes.length, phrase: this.described(box) });
    }

    /** A box in words, for who does not see the canvas. */
    described(box) {
        const percent = (key) => Math.round(box[key] * 100);
        const place = { x: percent("x"), y: percent("y"), width: percent("width"), height: percent("height") };
        return `${box.phrase || this.t("noWords")}, ${this.t("saidPlace", place)}`;
    }

    sayFull() {
        this.notify(this.t("noRoom", { limit: MAX_BOXES }));
        return true;
    }

    // --- what is known about the boxes ----------------------------------------------------------------------------------

    picture() {
        const { behind, file } = this.view;
        return behind === "nothing" ? null : this.host.picture(behind, file);
    }

    /** Whether a gesture is under way that nothing may disturb. */
    isBusy() {
        return Boolean(this.stage.gesture || this.stage.nudging || this.stage.freehand.isUnderWay());
    }

    // --- showing --------------------------------------------------------------------------------------------------------

    render() {
        this.stage.draw();
        this.renderFrame ||= requestAnimationFrame(() => {
            this.renderFrame = 0;
            this.renderPanels();
        });
    }

    renderPanels() {
        this.list.update();
        this.inspector.update();
        this.toolbar.update();
        this.status.update();
        const label = this.t("canvas", { count: this.state.boxes.length });
        if (this.stage.canvas.getAttribute("aria-label") !== label) this.stage.canvas.setAttribute("aria-label", label);
    }

    async copyOut(text) {
        try {
            await navigator.clipboard.writeText(text);
            this.say("copied", { count: this.state.boxes.length });
        } catch { // no permission, or no secure page
            this.notify(this.t("noClipboard"));
        }
    }

    async pasteIn() {
        let text;
        try {
            text = await navigator.clipboard.readText();
        } catch { // the same
            this.notify(this.t("noClipboard"));
            return;
        }
        this.paste(text);
    }
}
