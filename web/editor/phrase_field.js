// Writing the words of a box in place: a field that lies over the canvas, on its box.

import { cycled, set } from "./model/drawing.js";
import { boxColor, inkOn } from "./model/colors.js";
import { element, swallow } from "./dom.js";
import { frameOf } from "./view/scene.js";

const HEIGHT = 28, LEAST_WIDTH = 130; // CSS pixels

export class PhraseField {
    constructor(stage) {
        this.stage = stage;
        this.editor = stage.editor;
        this.open = null; // {node, id, before, isNew} while there is a field
    }

    /** Write the words of a box in place. `isNew`: the box is on the screen only and is kept together with its words. */
    edit(id, isNew = false) {
        this.close();
        const { editor, stage } = this;
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
        this.open = { node: input, id, before, isNew };
        input.addEventListener("input", () => this.typed(input.value));
        input.addEventListener("blur", () => this.close());
        input.addEventListener("keydown", (event) => this.inputKey(event, input, before));
        for (const type of ["pointerdown", "pointermove", "pointerup", "dblclick", "copy", "cut", "paste", "keyup"]) {
            input.addEventListener(type, (event) => event.stopPropagation());
        }
        stage.root.append(input);
        this.place();
        input.focus({ preventScroll: true });
        input.select();
        stage.draw();
        return true;
    }

    typed(phrase) {
        const next = set(this.editor.state, [this.open.id], { phrase });
        if (this.open.isNew) this.editor.show(next);
        else this.editor.commit(next, false);
    }

    inputKey(event, input, before) {
        const undoes = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !event.shiftKey;
        if (undoes && input.value === before) { // nothing was typed: the last thing done is the box itself
            swallow(event);
            this.close();
            this.stage.canvas.focus({ preventScroll: true });
            this.editor.host.undo();
            return;
        }
        if (event.isComposing) return;
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return this.close(); // the host's Run
        event.stopPropagation();
        if (event.key !== "Enter" && event.key !== "Escape" && event.key !== "Tab") return;
        event.preventDefault();
        if (event.key === "Escape" && input.value !== before) this.typed(before);
        this.close();
        this.stage.canvas.focus({ preventScroll: true });
        if (event.key === "Tab") {
            this.editor.commit(cycled(this.editor.state, event.shiftKey ? -1 : 1));
            this.edit(this.editor.state.selection[0]);
        }
    }

    place() {
        const box = this.open && this.editor.state.boxes.find((each) => each.id === this.open.id);
        if (!box) return;
        const { area, canvas } = this.stage, width = canvas.offsetWidth, height = canvas.offsetHeight;
        const frame = frameOf(box, area);
        const wide = Math.max(LEAST_WIDTH, frame.width);
        Object.assign(this.open.node.style, {
            left: `${Math.max(0, Math.min(frame.x, width - wide))}px`,
            top: `${Math.max(0, Math.min(frame.y, height - HEIGHT))}px`,
            width: `${Math.min(wide, width)}px`,
        });
    }

    close() {
        if (!this.open) return;
        const { id } = this.open;
        const box = this.editor.state.boxes.find((each) => each.id === id);
        const trimmed = box?.phrase.trim();
        this.drop();
        if (box && trimmed !== box.phrase) this.editor.commit(set(this.editor.state, [id], { phrase: trimmed }));
        else this.editor.commit(this.editor.state);
    }

    /** Take the field away; what was typed is in the drawing already. */
    drop() {
        const node = this.open?.node;
        this.open = null; // first: taking a field with the focus away closes it again
        node?.remove();
    }
}
