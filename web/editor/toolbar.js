// The buttons and menus above the canvas.

import { canRedo, canUndo } from "./model/drawing.js";
import { GRIDS } from "./model/view.js";
import { element, swallow } from "./dom.js";
import { TOOL_KEYS, TOOLS } from "./freehand.js";
import { icon } from "./view/icons.js";

export const ARRANGEMENTS = {
    columns2: [2, 1], columns3: [3, 1], rows2: [1, 2], rows3: [1, 3], grid22: [2, 2], grid33: [3, 3],
};

const TOOL_ICONS = { box: "square", ellipse: "ellipse", polygon: "polygon", brush: "brush", eraser: "eraser" };
const TOOL_WORDS = { box: "toolBox", ellipse: "toolEllipse", polygon: "toolPolygon", brush: "toolBrush", eraser: "toolEraser" };
const TOOL_LETTERS = Object.fromEntries(Object.entries(TOOL_KEYS).map(([key, tool]) => [tool, key.toUpperCase()]));

export class Toolbar {
    constructor(editor) {
        this.editor = editor;
        this.t = editor.t;
        this.menus = [];
        this.root = this.make();
    }

    make() {
        const { editor, t } = this;
        this.buttons = {
            addBox: this.button("addBox", "plus", () => editor.add()),
            duplicate: this.button("duplicate", "copy", () => editor.duplicate(), true),
            remove: this.button("remove", "trash", () => editor.remove(), true),
            undo: this.button("undo", "undo", () => editor.host.undo(), true),
            redo: this.button("redo", "redo", () => editor.host.redo(), true),
        };
        this.buttons.addBox.classList.add("bw-first");
        const arrangements = [...Object.keys(ARRANGEMENTS), "background"].map((name) => (
            element("button", { type: "button", role: "menuitem", class: "bw-item", "data-name": name, text: t(name), on: {
                click: () => {
                    this.closeMenus();
                    editor.arrange(name);
                },
            } })
        ));
        return element("div", { class: "bw-toolbar", role: "toolbar", "aria-label": t("editor") }, [
            this.buttons.addBox, this.buttons.duplicate, this.buttons.remove, gap(), this.buttons.undo, this.buttons.redo,
            gap(), this.menu("tool", "square", this.toolItems(), "menu"), this.menu("arrange", "grid", arrangements, "menu"),
            this.menu("view", "sliders", this.viewItems(), "group"),
            element("span", { class: "bw-push" }),
            this.button("panel", "panel", () => this.togglePanel(), true),
            this.buttons.full = this.button("full", "full", () => editor.setFull(!editor.isFull), true),
        ]);
    }

    /** What the next drag draws. */
    toolItems() {
        const { editor, t } = this;
        return TOOLS.map((name) => element("button", {
            type: "button", role: "menuitemradio", class: "bw-item", "data-tool": name, on: { click: () => {
                this.closeMenus();
                editor.stage.freehand.choose(name);
                editor.stage.canvas.focus({ preventScroll: true });
            } },
        }, [
            icon(TOOL_ICONS[name]), element("span", { text: t(TOOL_WORDS[name]) }), element("kbd", { text: TOOL_LETTERS[name] }),
        ]));
    }

    togglePanel() {
        this.editor.setView({ panel: this.editor.side.offsetHeight ? "off" : "on" });
    }

    viewItems() {
        const { editor, t } = this;
        const fade = () => {
            editor.host.setOpacity(Number(this.opacity.value));
            editor.sync();
        };
        this.opacity = element("input", { type: "range", min: 0, max: 1, step: 0.05, "aria-label": t("opacity"), on: {
            input: fade,
            change: () => {
                fade();
                editor.host.settle();
            },
        } });
        const check = (key, words) => {
            const input = element("input", { type: "checkbox", "data-view": key, on: {
                change: () => editor.setView({ [key]: input.checked }),
            } });
            return element("label", { class: "bw-item" }, [input, element("span", { text: t(words) })]);
        };
        const choice = (key, words, options, read) => {
            const change = () => editor.setView({ [key]: read(input.value) });
            const input = element("select", { "data-view": key, on: { change } },
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
            choice("grid", "grid", GRIDS.map((count) => [String(count), count ? t("pixels", { count }) : t("gridOff")]), Number),
            choice("behind", "behind", [
                ["input", t("behindInput")], ["last", t("behindLast")], ["file", t("behindFile")],
                ["nothing", t("behindNothing")],
            ], String),
            element("label", { class: "bw-item" }, [element("span", { text: t("opacity") }), this.opacity]),
            action("copyJson", () => editor.copyOut(editor.clipboardText())),
            action("pasteJson", () => editor.pasteIn()),
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

    /** `role`: "menu" of items to choose one from, where the arrows go from one to the next; or a "group" of settings. */
    menu(key, iconName, items, role) {
        const list = element("div", { class: "bw-menu", role, "aria-label": this.t(key), hidden: true }, items);
        if (role === "menu") list.addEventListener("keydown", (event) => step(event, items));
        const button = this.button(key, iconName, ({ detail }) => {
            const opens = list.hidden;
            this.closeMenus();
            list.hidden = !opens;
            button.setAttribute("aria-expanded", String(opens));
            if (!opens) return;
            this.fillMenus();
            if (detail === 0) list.querySelector("button, input, select").focus({ preventScroll: true }); // opened by key
        });
        button.append(icon("caret"));
        if (role === "menu") button.setAttribute("aria-haspopup", "menu");
        button.setAttribute("aria-expanded", "false");
        this.menus.push({ button, list });
        return element("div", { class: "bw-holder" }, [button, list]);
    }

    /** Whether one was open. Its button takes the focus that would go with it. */
    closeMenus() {
        const wasOpen = this.menus.some(({ list }) => !list.hidden);
        for (const { button, list } of this.menus) {
            if (list.contains(document.activeElement)) button.focus({ preventScroll: true });
            list.hidden = true;
            button.setAttribute("aria-expanded", "false");
        }
        return wasOpen;
    }

    fillMenus() {
        const { facts, view } = this.editor;
        for (const input of this.root.querySelectorAll("[data-view]")) {
            const value = view[input.dataset.view];
            if (input.type === "checkbox") input.checked = value;
            else input.value = String(value);
        }
        this.opacity.value = String(facts.opacity);
        this.opacity.disabled = facts.sources.some(({ key }) => key === "opacity");
        const file = this.root.querySelector('option[value="file"]');
        file.disabled = !view.file;
        file.title = view.file?.filename ?? "";
    }

    update() {
        const { state, problem, history, host, stage } = this.editor, some = state.selection.length > 0 && !problem;
        this.buttons.addBox.disabled = Boolean(problem);
        for (const { button } of this.menus.slice(0, 2)) button.disabled = Boolean(problem);
        this.showTool(stage.freehand.tool);
        this.buttons.duplicate.disabled = !some;
        this.buttons.remove.disabled = !some;
        this.buttons.undo.disabled = !canUndo(history) && !host.canUndo();
        this.buttons.redo.disabled = !canRedo(history) && !host.canRedo();
    }

    /** The menu's button says which tool is on. */
    showTool(tool) {
        const [{ button, list }] = this.menus;
        if (button.dataset.tool === tool) return;
        button.dataset.tool = tool;
        button.setAttribute("aria-pressed", String(tool !== "box"));
        button.replaceChild(icon(TOOL_ICONS[tool]), button.firstChild);
        button.querySelector("span").textContent = this.t(tool === "box" ? "tool" : TOOL_WORDS[tool]);
        for (const item of list.children) item.setAttribute("aria-checked", String(item.dataset.tool === tool));
    }
}

/** From item to item by the arrows, around the ends. */
function step(event, items) {
    const at = items.indexOf(document.activeElement), last = items.length - 1;
    const next = { ArrowDown: at < last ? at + 1 : 0, ArrowUp: at > 0 ? at - 1 : last, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    swallow(event);
    items[next].focus({ preventScroll: true });
}

function gap() {
    return element("span", { class: "bw-gap" });
}
