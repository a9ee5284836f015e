// The editor as an element: toolbar, canvas, list, fields. One file, since all of them are drawn anew from one state; the
// parts that could stand alone (panel, stage, pictures) do. It knows its host only through the object it is given:
// { t, name, read() -> text, write(text), settle(), undo(), redo(), facts() -> {width, height, prompt: text or null,
//   opacity, sources: [{key, title, how}], drawingFrom: title or null}, picture(source, file) -> image or null,
//   setOpacity(number), upload(file) -> promise of {filename, subfolder, type} or null, fileAt(address) -> the same or null,
//   pins() -> Map, keepPins(Map), view() -> anything, setView(object), recall() -> history or null, keep(history), forward(event), isPanning(),
//   notify(text) }. facts(): see box_editor.js; asked for at every sync, not at every frame.

import { drawingText, MAX_BOXES, parsePasted, Problem } from "./model/json.js";
import { ATTENTION_CELLS, coverage, unfilledGrids } from "./model/geometry.js";
import {
    added, canRedo, canUndo, duplicated, followed, freePlace, hasRoom, newHistory, option, pasted, present, presentText,
    remembered, removed, selected, split, stateOf, withBackground,
} from "./model/drawing.js";
import { element } from "./dom.js";
import { icon } from "./view/icons.js";
import { BoxList, Inspector } from "./panel.js";
import { isInPrompt } from "./model/phrases.js";
import { Stage } from "./stage.js";
import { STYLE } from "./view/style.js";
import { DEFAULT_VIEW, GRIDS, keptView, viewOf } from "./model/view.js";

const NOTICE = 6000; // ms that a notice of our own stays
const PINNED = 768; // pixels: the longer side of what is kept of a picture
const SOURCES = { width: "sourceWidth", height: "sourceHeight", prompt: "sourcePrompt", boxes: "sourceBoxes", opacity: "opacity" };
const ARRANGEMENTS = {
    columns2: [2, 1], columns3: [3, 1], rows2: [1, 2], rows3: [1, 3], grid22: [2, 2], grid33: [3, 3],
};

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
        this.isFull = false;
        this.known = { flags: null, coverage: null };
        this.stage = new Stage(this);
        this.list = new BoxList(this);
        this.inspector = new Inspector(this);
        this.trouble = element("div", { class: "bw-trouble", role: "alert", hidden: true });
        this.status = element("div", { class: "bw-status" });
        this.speech = element("div", { class: "bw-speech", "aria-live": "polite" });
        this.sources = element("div", { class: "bw-sources", hidden: true });
        this.notice = element("div", { class: "bw-notice", role: "alert", hidden: true });
        this.side = element("div", { class: "bw-side" }, [this.list.root, this.inspector.root]);
        this.element = element("div", { class: "bw-editor", role: "group", "aria-label": this.t("editor") }, [
            element("style", { text: STYLE }), // here, not in the document's head: it goes when the editor goes
            this.makeToolbar(),
            this.sources,
            element("div", { class: "bw-main" }, [this.stage.root, this.side, this.trouble]),
            this.status,
            this.speech,
            this.notice,
        ]);
        this.listen();
    }

    listen() {
        // Keys typed into a field or pressed on a button are ours; the host must not delete nodes for them.
        this.element.addEventListener("keydown", (event) => {
            const command = event.ctrlKey || event.metaKey;
            if (event.key === "Escape" && !this.closeMenus()) this.setFull(false);
            if (!command || ["c", "v", "x", "a"].includes(event.key.toLowerCase())) event.stopPropagation();
        });
        for (const type of ["copy", "cut", "paste"]) this.element.addEventListener(type, (event) => event.stopPropagation());
        for (const type of ["dragover", "drop"]) this.element.addEventListener(type, (event) => this.dropped(event));
        for (const type of ["pointerenter", "focusin"]) this.element.addEventListener(type, () => this.sync());
        this.element.addEventListener("focusout", (event) => {
            if (!this.element.contains(event.relatedTarget)) this.closeMenus();
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
        this.showSources();
        this.render();
    }

    load(text) {
        const first = this.text === null;
        this.text = text;
        this.stage.cancel();
        this.stage.dropInput();
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
        return this.stage.editPhrase(this.state.selection[0], true);
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
            this.stage.dropInput();
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
        return this.say("saidSelected", { number: index + 1, count: this.state.boxes.length, phrase: box.phrase });
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
        return Boolean(this.stage.gesture || this.stage.nudging);
    }

    /** See geometry.coverage, of the boxes that take part. Worked out once per state. */
    coverage() {
        if (this.known.coverage?.boxes !== this.state.boxes) {
            const value = coverage(this.state.boxes.filter((box) => option(box, "enabled")));
            this.known.coverage = { boxes: this.state.boxes, value };
        }
        return this.known.coverage.value;
    }

    /** Warnings, box id -> words. Worked out once per state, prompt and size. */
    flags() {
        const { state, size, facts: { prompt } } = this, { flags } = this.known;
        if (flags?.boxes === state.boxes && flags.prompt === prompt && flags.size === size) return flags.value;
        const value = new Map();
        state.boxes.forEach((box, index) => {
            const words = option(box, "enabled") ? this.warning(box, index, prompt, size) : "";
            if (words) value.set(box.id, words);
        });
        this.known.flags = { boxes: state.boxes, prompt, size, value };
        return value;
    }

    warning(box, index, prompt, size) {
        if (!box.phrase.trim()) return this.t("flagEmpty", { number: index + 1 });
        if (prompt?.trim() && !this.isInPrompt(box.phrase, prompt)) return this.t("flagMissing", { phrase: box.phrase });
        const grids = unfilledGrids(box, size);
        if (grids.length < ATTENTION_CELLS.length) return ""; // one of the grids sees it
        return this.t("flagSmall", { phrase: box.phrase, grids: grids.map((grid) => grid.join(" × ")).join(", ") });
    }

    /** Remembered per phrase: sixty boxes are asked for at every move of the pointer. */
    isInPrompt(phrase, prompt) {
        if (this.asked?.prompt !== prompt || this.asked.answers.size > 500) this.asked = { prompt, answers: new Map() };
        const { answers } = this.asked;
        if (!answers.has(phrase)) answers.set(phrase, isInPrompt(phrase, prompt));
        return answers.get(phrase);
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
        this.toolbarChanged();
        this.showStatus();
        this.showProblem();
        const label = this.t("canvas", { count: this.state.boxes.length });
        if (this.stage.canvas.getAttribute("aria-label") !== label) this.stage.canvas.setAttribute("aria-label", label);
    }

    showStatus() {
        const { boxes } = this.state, { covered, overlapped } = this.coverage(), { t } = this;
        const percent = (share) => String(Math.round(share * 100));
        const parts = [boxes.length === 1 ? t("statusBox") : t("statusBoxes", { count: boxes.length })];
        parts.push(t("statusCovered", { percent: percent(covered) }));
        if (overlapped > 0.005) parts.push(t("statusOverlap", { percent: percent(overlapped) }));
        const [id] = this.state.selection, flags = this.flags();
        const warning = flags.get(id) ?? flags.values().next().value ?? "";
        const text = boxes.length && !this.problem ? parts.join(" · ") : "";
        const key = `${text}\n${warning}`;
        if (this.status.dataset.key === key) return;
        this.status.dataset.key = key;
        this.status.replaceChildren(
            element("span", { text }), element("span", { class: "bw-warning", text: warning, title: warning || undefined }),
        );
    }

    /** Where the values of wired inputs come from. */
    showSources() {
        const words = this.facts.sources.map(({ key, title, how }) => (
            this.t({ wire: "fromWire", run: "fromRun", unknown: "fromUnknown", input: "fromInput" }[how], {
                name: this.t(SOURCES[key]), title, value: this.facts[key],
            })
        )).join(" · ");
        if (this.sources.textContent === words) return;
        this.sources.textContent = this.sources.title = words;
        this.sources.hidden = !words;
    }

    showProblem() {
        if (this.trouble.hidden !== !this.problem || this.trouble.problem !== this.problem) {
            this.trouble.problem = this.problem;
            this.trouble.hidden = !this.problem;
            this.trouble.replaceChildren(...(this.problem ? this.problemWords() : []));
        }
    }

    problemWords() {
        const { t } = this, isLinked = this.problem.key === "drawingFrom";
        return [
            element("strong", { text: t(isLinked ? "linkedTitle" : "problemTitle") }),
            element("p", { text: t(this.problem.key, this.problem.values) }),
            ...(isLinked ? [] : [element("div", { class: "bw-actions" }, [
                this.button("copyText", null, () => this.copyOut(String(this.host.read()))),
                this.button("startOver", null, () => this.commit(stateOf(""))),
            ])]),
        ];
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

    // --- toolbar --------------------------------------------------------------------------------------------------------

    makeToolbar() {
        const { t } = this;
        this.buttons = {
            addBox: this.button("addBox", "plus", () => this.add()),
            duplicate: this.button("duplicate", "copy", () => this.duplicate(), true),
            remove: this.button("remove", "trash", () => this.remove(), true),
            undo: this.button("undo", "undo", () => this.host.undo(), true),
            redo: this.button("redo", "redo", () => this.host.redo(), true),
        };
        this.buttons.addBox.classList.add("bw-first");
        const arrangements = [...Object.keys(ARRANGEMENTS), "background"].map((name) => (
            element("button", { type: "button", role: "menuitem", class: "bw-item", "data-name": name, text: t(name), on: {
                click: () => {
                    this.closeMenus();
                    this.arrange(name);
                },
            } })
        ));
        return element("div", { class: "bw-toolbar", role: "toolbar", "aria-label": t("editor") }, [
            this.buttons.addBox, this.buttons.duplicate, this.buttons.remove, gap(), this.buttons.undo, this.buttons.redo,
            gap(), this.menu("arrange", "grid", arrangements), this.menu("view", "sliders", this.viewItems()),
            element("span", { class: "bw-push" }),
            this.button("panel", "panel", () => this.togglePanel(), true),
            this.buttons.full = this.button("full", "full", () => this.setFull(!this.isFull), true),
        ]);
    }

    /** In full screen the wheel zooms the drawing, or scrolls what can scroll. */
    fullWheel(event) {
        if (!this.element.contains(event.target)) return;
        event.stopPropagation();
        if (event.target !== this.stage.canvas) return;
        event.preventDefault();
        this.stage.zoomBy(event);
    }

    togglePanel() {
        this.setView({ panel: this.side.offsetHeight ? "off" : "on" });
    }

    /**
     * Fill the window, or go back into the node; with a lens (see Stage) to begin with. The element stays where the
     * host has put it and is lifted above the page.
     */
    setFull(on, lens = null) {
        if (on === this.isFull || (on && !this.element.showPopover)) return;
        this.isFull = on;
        this.element.classList.toggle("bw-full", on);
        if (on) {
            this.element.setAttribute("popover", "manual");
            this.element.setAttribute("tabindex", "-1"); // what is pressed beside the fields shall not reach the graph
            if (this.element.isConnected) this.element.showPopover();
            this.fullOnly = new AbortController();
            const first = { capture: true, passive: false, signal: this.fullOnly.signal }; // before the host moves its graph
            window.addEventListener("wheel", (event) => this.fullWheel(event), first);
            window.addEventListener("focusin", ({ target }) => this.leftFor(target), first);
            for (const type of ["pointerdown", "pointermove", "pointerup"]) {
                window.addEventListener(type, (event) => this.stage.pan(event), first);
            }
        } else {
            this.fullOnly.abort();
            this.notice.hidden = true;
            for (const name of ["popover", "tabindex"]) this.element.removeAttribute(name);
        }
        this.stage.setLens(on ? lens : null);
        this.buttons.full.setAttribute("aria-pressed", String(on));
        if (on && !lens) this.stage.canvas.focus({ preventScroll: true });
        this.render();
    }

    /** What has the focus now lies beneath us, unless it is ours: a dialog or a search of the host's shall be seen. */
    leftFor(target) {
        if (!this.element.contains(target) && target.matches?.(":not(canvas)")) this.setFull(false);
    }

    viewItems() {
        const { t } = this;
        const fade = () => {
            this.host.setOpacity(Number(this.opacity.value));
            this.sync();
        };
        this.opacity = element("input", { type: "range", min: 0, max: 1, step: 0.05, "aria-label": t("opacity"), on: {
            input: fade,
            change: () => {
                fade();
                this.host.settle();
            },
        } });
        const check = (key, words) => {
            const input = element("input", { type: "checkbox", "data-view": key, on: {
                change: () => this.setView({ [key]: input.checked }),
            } });
            return element("label", { class: "bw-item" }, [input, element("span", { text: t(words) })]);
        };
        const choice = (key, words, options, read) => {
            const input = element("select", { "data-view": key, on: { change: () => this.setView({ [key]: read(input.value) }) } },
                options.map(([value, text]) => element("option", { value, text })));
            return element("label", { class: "bw-item" }, [element("span", { text: t(words) }), input]);
        };
        const action = (key, act) => element("button", { type: "button", class: "bw-item", text: t(key), on: {
            click: () => {
                this.closeMenus();
                act();
            },
        } });
        return [
            check("snap", "snap"),
            check("gaps", "showGaps"),
            choice("grid", "grid", GRIDS.map((grid) => [String(grid), grid ? t("pixels", { count: grid }) : t("gridOff")]), Number),
            choice("behind", "behind", [
                ["input", t("behindInput")], ["last", t("behindLast")], ["file", t("behindFile")], ["nothing", t("behindNothing")],
            ], String),
            element("label", { class: "bw-item" }, [element("span", { text: t("opacity") }), this.opacity]),
            action("copyJson", () => this.copyOut(this.clipboardText())),
            action("pasteJson", () => this.pasteIn()),
        ];
    }

    button(key, iconName, act, isIconOnly = false) {
        const words = this.t(key), hint = this.t(`${key}Hint`);
        const content = iconName ? [icon(iconName)] : [];
        if (!isIconOnly) content.push(element("span", { text: words }));
        return element("button", {
            type: "button", class: "bw-button", "data-name": key, "aria-label": words,
            title: hint === `${key}Hint` ? words : hint, on: { click: act },
        }, content);
    }

    menu(key, iconName, items) {
        const list = element("div", { class: "bw-menu", role: "group", "aria-label": this.t(key), hidden: true }, items);
        const button = this.button(key, iconName, () => {
            const opens = list.hidden;
            this.closeMenus();
            list.hidden = !opens;
            button.setAttribute("aria-expanded", String(opens));
            if (opens) this.fillMenus();
        });
        button.append(icon("caret"));
        button.setAttribute("aria-expanded", "false");
        (this.menus ??= []).push({ button, list });
        return element("div", { class: "bw-holder" }, [button, list]);
    }

    /** Whether one was open. */
    closeMenus() {
        const wasOpen = this.menus.some(({ list }) => !list.hidden);
        for (const { button, list } of this.menus) {
            list.hidden = true;
            button.setAttribute("aria-expanded", "false");
        }
        return wasOpen;
    }

    fillMenus() {
        for (const input of this.element.querySelectorAll("[data-view]")) {
            const value = this.view[input.dataset.view];
            if (input.type === "checkbox") input.checked = value;
            else input.value = String(value);
        }
        this.opacity.value = String(this.facts.opacity);
        this.opacity.disabled = this.facts.sources.some(({ key }) => key === "opacity");
        const file = this.element.querySelector('option[value="file"]');
        file.disabled = !this.view.file;
        file.title = this.view.file?.filename ?? "";
    }

    toolbarChanged() {
        const some = this.state.selection.length > 0 && !this.problem;
        this.buttons.addBox.disabled = Boolean(this.problem);
        this.menus[0].button.disabled = Boolean(this.problem);
        this.buttons.duplicate.disabled = !some;
        this.buttons.remove.disabled = !some;
        this.buttons.undo.disabled = !canUndo(this.history) && !this.host.canUndo();
        this.buttons.redo.disabled = !canRedo(this.history) && !this.host.canRedo();
    }
}

/** The same object as long as the same node sends the drawing. */
function linkedProblem(problem, title) {
    return problem?.key === "drawingFrom" && problem.values.title === title ? problem : new Problem("drawingFrom", { title });
}

/** Fails where the page cannot show a file as an image, whatever its name says. */
async function shown(file) {
    const image = new Image();
    image.src = URL.createObjectURL(file);
    try {
        await image.decode();
    } finally {
        URL.revokeObjectURL(image.src);
    }
}

/** What a picture shows in a box, as {image, x, y, width, height}: a copy that is no larger than it need be. */
function cutOut(picture, { x, y, width, height }) {
    const across = picture.naturalWidth, down = picture.naturalHeight;
    const scale = Math.min(1, PINNED / Math.max(width * across, height * down));
    const image = element("canvas", {
        width: Math.max(1, Math.round(width * across * scale)), height: Math.max(1, Math.round(height * down * scale)),
    });
    image.getContext("2d").drawImage(picture, x * across, y * down, width * across, height * down, 0, 0, image.width, image.height);
    return { image, x, y, width, height };
}

function gap() {
    return element("span", { class: "bw-gap" });
}
