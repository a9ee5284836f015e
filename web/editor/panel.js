// The list of boxes and the fields of the selected ones. Both show the editor's state and send edits to it.

import { fileAmong, option, reordered, select, selected, set, toggle } from "./model/drawing.js";
import { boxColor, inkOn } from "./model/colors.js";
import { element, show } from "./dom.js";
import { icon } from "./view/icons.js";

const SLIDERS = { strength: "strength", opacity: "cover" }; // field -> its words
const SHAPES = { box: "toolBox", ellipse: "toolEllipse", polygon: "toolPolygon", paint: "painted" };

/** One row per box, in drawing order. Rows are kept as long as their box. */
export class BoxList {
    constructor(editor) {
        this.editor = editor;
        this.rows = new Map(); // id -> what makeRow returns
        this.list = element("ol", { class: "bw-rows", "data-capture-wheel": "true", "aria-label": editor.t("boxes") });
        const head = element("div", { class: "bw-head" }, [
            element("span", { text: editor.t("boxes") }), element("span", { class: "bw-quiet", text: editor.t("orderHint") }),
        ]);
        this.none = element("p", { class: "bw-quiet bw-none", text: editor.t("noBoxes") });
        this.root = element("div", { class: "bw-list" }, [head, this.none, this.list]);
    }

    update() {
        const { state } = this.editor, flags = this.editor.knowledge.flags();
        for (const [id, row] of this.rows) {
            if (state.boxes.some((box) => box.id === id)) continue;
            row.node.remove();
            this.rows.delete(id);
        }
        state.boxes.forEach((box, index) => {
            if (!this.rows.has(box.id)) this.rows.set(box.id, this.makeRow(box.id));
            const row = this.rows.get(box.id);
            if (this.list.children[index] !== row.node) this.list.insertBefore(row.node, this.list.children[index] ?? null);
            this.fill(row, box, index, state.selection.includes(box.id), flags.get(box.id) ?? "");
        });
        this.none.hidden = state.boxes.length > 0;
    }

    fill(row, box, index, isSelected, flag) {
        const { shown } = row, isPinned = this.editor.host.pins().has(box.id);
        if (shown.box === box && shown.index === index && shown.isSelected === isSelected && shown.flag === flag
            && shown.isPinned === isPinned) return;
        row.shown = { box, index, isSelected, flag, isPinned };
        const { t } = this.editor, number = index + 1, color = boxColor(box, index);
        row.node.classList.toggle("bw-selected", isSelected);
        row.node.classList.toggle("bw-off", !option(box, "enabled"));
        row.node.setAttribute("aria-label", this.editor.described(box));
        row.chip.textContent = `${number}`;
        Object.assign(row.chip.style, { background: color, color: inkOn(color) });
        label(row.chip, t("reorder", { number }));
        row.chip.setAttribute("aria-pressed", String(isSelected));
        show(row.phrase, box.phrase);
        label(row.phrase, t("phraseOf", { number }), flag);
        row.phrase.classList.toggle("bw-flagged", Boolean(flag));
        row.enabled.checked = option(box, "enabled");
        label(row.enabled, t("enabledOf", { number }), t("enabled"));
        this.setIcon(row.hidden, number, option(box, "hidden") ? "eyeOff" : "eye", option(box, "hidden"), "show", "hide");
        this.setIcon(row.pinned, number, "pin", isPinned, "unpin", "pin");
        this.setIcon(row.locked, number, option(box, "locked") ? "lock" : "unlock", option(box, "locked"), "unlock", "lock");
    }

    setIcon(button, number, name, pressed, undoKey, doKey) {
        if (button.dataset.icon !== name) button.replaceChildren(icon(name));
        button.dataset.icon = name;
        button.setAttribute("aria-pressed", String(pressed));
        const { t } = this.editor, words = t(pressed ? undoKey : doKey);
        button.title = words;
        button.setAttribute("aria-label", t("ofBox", { number, words })); // the ear has no row to tell them apart by
    }

    makeRow(id) {
        const { editor } = this;
        const change = (values, settled = true) => editor.commit(set(editor.state, [id], values), settled);
        const flip = (key) => () => change({ [key]: !option(editor.box(id), key) });
        const chip = element("button", { class: "bw-chip", type: "button" });
        const phrase = element("input", {
            class: "bw-phrase", type: "text", maxlength: 1000, placeholder: editor.t("phrasePlaceholder"),
            on: {
                input: () => change({ phrase: phrase.value }, false),
                change: () => change({ phrase: phrase.value.trim() }),
                focus: () => editor.commit(select(editor.state, [id]), false),
                keydown: (event) => event.key === "Enter" && !event.ctrlKey && !event.metaKey && phrase.blur(),
            },
        });
        const enabled = element("input", { type: "checkbox", class: "bw-check", on: { change: flip("enabled") } });
        const hidden = element("button", { type: "button", class: "bw-icon", on: { click: flip("hidden") } });
        const locked = element("button", { type: "button", class: "bw-icon", on: { click: flip("locked") } });
        const pinned = element("button", { type: "button", class: "bw-icon", on: { click: () => editor.pin(id) } });
        const node = element("li", { class: "bw-row" }, [chip, phrase, enabled, hidden, locked, pinned]);
        this.makeMovable(chip, id);
        return { node, chip, phrase, enabled, hidden, locked, pinned, shown: {} };
    }

    /** The chip selects on a click, moves its row on a drag, and by Alt with the arrows. */
    makeMovable(chip, id) {
        const { editor } = this;
        let from = null, target = null;
        const indexAt = (y) => {
            const middles = editor.state.boxes.filter((box) => box.id !== id).map((box) => {
                const rect = this.rows.get(box.id).node.getBoundingClientRect();
                return rect.top + rect.height / 2;
            });
            return middles.filter((middle) => middle < y).length;
        };
        chip.addEventListener("pointerdown", (event) => {
            if (event.button !== 0) return;
            event.stopPropagation();
            chip.setPointerCapture(event.pointerId);
            [from, target] = [event.clientY, null];
        });
        chip.addEventListener("pointermove", (event) => {
            if (from === null) return;
            event.stopPropagation();
            if (target === null && Math.abs(event.clientY - from) < 5) return;
            target = indexAt(event.clientY);
            this.markTarget(id, target);
        });
        chip.addEventListener("pointerup", (event) => {
            if (from === null) return;
            event.stopPropagation();
            const moves = target !== null;
            from = null;
            this.markTarget(id, null);
            if (moves) editor.commit(select(reordered(editor.state, id, target), [id]));
            else editor.commit(event.shiftKey || event.ctrlKey || event.metaKey
                ? toggle(editor.state, id) : select(editor.state, [id]));
        });
        chip.addEventListener("lostpointercapture", () => {
            from = null;
            this.markTarget(id, null);
        });
        chip.addEventListener("keydown", (event) => {
            if (event.key === "Enter" || event.key === " ") {
                event.preventDefault();
                event.stopPropagation();
                editor.commit(event.shiftKey ? toggle(editor.state, id) : select(editor.state, [id]));
                return;
            }
            const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
            if (event.key === "Escape" && from !== null) {
                [from, target] = [null, null];
                this.markTarget(id, null);
            } else if (step && event.altKey) {
                const index = editor.state.boxes.findIndex((box) => box.id === id);
                editor.commit(reordered(editor.state, id, index + step));
                chip.focus();
            } else return;
            event.preventDefault();
            event.stopPropagation();
        });
    }

    /** A line where the row would go. */
    markTarget(id, target) {
        const others = this.editor.state.boxes.filter((box) => box.id !== id);
        for (const [each, row] of this.rows) row.node.classList.toggle("bw-moving", target !== null && each === id);
        others.forEach((box, index) => {
            const { classList } = this.rows.get(box.id).node;
            classList.toggle("bw-before", index === target);
            classList.toggle("bw-after", target === others.length && index === target - 1);
        });
    }
}

/** The fields of the selected boxes. With several, the first one's values are shown and an edit goes to all. */
export class Inspector {
    constructor(editor) {
        this.editor = editor;
        const { t } = editor;
        this.note = element("p", { class: "bw-quiet" });
        this.unit = element("select", {
            class: "bw-unit", "aria-label": t("unit"), on: { change: () => editor.setView({ percent: this.unit.value === "%" }) },
        }, ["px", "%"].map((unit) => element("option", { text: unit, value: unit })));
        this.places = ["x", "y", "width", "height"].map((key) => this.placeField(key));
        this.sliders = ["strength", "opacity"].map((key) => this.slider(key));
        this.lora = element("select", { class: "bw-select", "aria-label": t("lora"), on: {
            change: () => this.change({ lora: this.lora.value }),
        } });
        this.loraStrength = numberInput(t("loraStrength"), () => (
            this.readNumber(this.loraStrength, (value) => this.change({ lora_strength: value }))));
        Object.assign(this.loraStrength, { step: "0.05", title: t("loraStrengthHint") });
        this.shape = element("select", { class: "bw-select", "aria-label": t("shape"), on: {
            change: () => this.change({ shape: this.shape.value === "box" ? undefined : { kind: this.shape.value } }),
        } });
        this.options = ["start", "end", "feather"].map((key) => this.optionField(key));
        this.negative = element("input", {
            type: "text", class: "bw-text", maxlength: 1000, placeholder: "—",
            on: {
                input: () => this.change({ negative: this.negative.value }, false),
                change: () => this.change({ negative: this.negative.value.trim() }),
            },
        });
        this.color = element("input", { type: "color", class: "bw-color", "aria-label": t("color"), title: t("color"), on: {
            input: () => this.change({ color: this.color.value }, false), change: () => this.change({ color: this.color.value }),
        } });
        this.automatic = element("button", {
            type: "button", class: "bw-button bw-small", text: t("automatic"), title: t("automaticHint"),
            on: { click: () => this.change({ color: undefined }) },
        });
        this.fields = element("div", { class: "bw-fields" }, [
            element("div", { class: "bw-places" }, [...this.places.map((place) => place.node), this.unit]),
            ...this.sliders.map(({ key, range, number }) => field(t(SLIDERS[key]), t(`${SLIDERS[key]}Hint`), [range, number])),
            element("div", { class: "bw-three" }, this.options.map((each) => each.node)),
            field(t("negative"), t("negativeHint"), [this.negative]),
            field(t("lora"), t("loraHint"), [this.lora, this.loraStrength]),
            field(t("shape"), t("shapeHint"), [this.shape, this.color, this.automatic]),
        ]);
        this.root = element("div", { class: "bw-inspector", "data-capture-wheel": "true" }, [this.note, this.fields]);
    }

    change(values, settled = true) {
        const { editor } = this;
        editor.commit(set(editor.state, editor.state.selection, values), settled);
    }

    update() {
        const { state, size, view, t, host } = this.editor, boxes = selected(state), [first] = boxes, loras = host.loras();
        this.fields.hidden = !first;
        this.root.hidden = state.boxes.length === 0;
        this.note.textContent = !first ? t("selectSome") : boxes.length > 1 ? t("selectedMany", { count: boxes.length }) : "";
        this.note.hidden = boxes.length === 1;
        const isShown = this.shown === first && this.size === size && this.percent === view.percent && this.loras === loras;
        if (!first || isShown) return;
        [this.shown, this.size, this.percent, this.loras] = [first, size, view.percent, loras];
        this.unit.value = view.percent ? "%" : "px";
        for (const { key, input } of this.places) show(input, trimmedNumber(first[key] * this.scale(key)));
        for (const { key, range, number } of this.sliders) {
            show(range, String(option(first, key)));
            show(number, trimmedNumber(option(first, key)));
        }
        this.fillLora(option(first, "lora"), loras);
        show(this.loraStrength, trimmedNumber(option(first, "lora_strength")));
        this.loraStrength.disabled = !option(first, "lora");
        this.fillShape(first.shape?.kind ?? "box");
        for (const { key, input } of this.options) show(input, first[key] === undefined ? "" : trimmedNumber(first[key]));
        show(this.negative, option(first, "negative"));
        show(this.color, boxColor(first, state.boxes.indexOf(first)));
        this.automatic.disabled = first.color === undefined;
    }

    /** The LoRAs that the server has; a name that it lacks is shown as what it is, and can only be taken away. */
    fillLora(name, loras) {
        const { t } = this.editor, found = fileAmong(loras ?? [], name);
        const entries = [["", t("loraNone")], ...(loras ?? []).map((each) => [each, each])];
        if (name && found === undefined) entries.push([name, loras ? t("loraGone", { name }) : name]);
        this.fill(this.lora, entries, found ?? name);
    }

    /** Boxes and ellipses can be chosen; what is drawn by hand can be told, and given up. */
    fillShape(kind) {
        const { t } = this.editor, kinds = ["box", "ellipse", ...(["box", "ellipse"].includes(kind) ? [] : [kind])];
        this.fill(this.shape, kinds.map((each) => [each, t(SHAPES[each])]), kind);
    }

    /** Put [value, words] entries into a list, unless they are there. */
    fill(select, entries, value) {
        const key = JSON.stringify(entries);
        if (select.entries !== key) {
            select.replaceChildren(...entries.map(([each, text]) => element("option", { value: each, text })));
        }
        select.entries = key;
        select.value = value;
    }

    scale(key) {
        const { size, view } = this.editor;
        return view.percent ? 100 : key === "x" || key === "width" ? size.width : size.height;
    }

    placeField(key) {
        const { t } = this.editor, name = { x: "left", y: "top", width: "width", height: "height" }[key];
        const input = numberInput(t(`${name}Hint`), () => this.readNumber(input, (value) => {
            this.change({ [key]: value / this.scale(key) });
        }));
        input.step = "1";
        return { key, input, node: field(t(name), t(`${name}Hint`), [input]) };
    }

    optionField(key) {
        const { t } = this.editor;
        const input = numberInput(t(key), () => {
            if (input.value.trim() === "") this.change({ [key]: undefined });
            else this.readNumber(input, (value) => this.change({ [key]: value }));
        });
        Object.assign(input, { step: "0.05", placeholder: t("asNode") });
        return { key, input, node: field(t(key), t(`${key}Hint`), [input]) };
    }

    slider(key) {
        const { t } = this.editor, words = t(SLIDERS[key]);
        const range = element("input", { type: "range", min: 0, max: 1, step: 0.05, "aria-label": words, on: {
            input: () => this.change({ [key]: Number(range.value) }, false),
            change: () => this.change({ [key]: Number(range.value) }),
        } });
        const number = numberInput(words, () => this.readNumber(number, (value) => this.change({ [key]: value })));
        number.step = "0.05";
        return { key, range, number };
    }

    /** Use what was typed if it is a number; show the value that came of it, or the old one. */
    readNumber(input, use) {
        const value = Number(input.value.replace(",", "."));
        if (input.value.trim() !== "" && Number.isFinite(value)) use(value);
        this.shown = null;
        input.value = "";
        const focused = document.activeElement === input;
        if (focused) input.blur();
        this.update();
        if (focused) input.focus({ preventScroll: true });
    }
}

function numberInput(label, change) {
    return element("input", { type: "number", class: "bw-number", "aria-label": label, on: { change } });
}

function field(name, hint, inputs) {
    return element("label", { class: "bw-field", title: hint || undefined }, [element("span", { text: name }), ...inputs]);
}

function label(node, words, hint = "") {
    node.setAttribute("aria-label", hint && hint !== words ? `${words}. ${hint}` : words);
    node.title = hint || words;
}

/** At most three decimals, none that are zero. */
function trimmedNumber(value) {
    return String(Math.round(value * 1000) / 1000);
}
