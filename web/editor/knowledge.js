// What is known about the boxes of an editor: what they cover, and warnings. Worked out once, asked for at every frame.

import { ATTENTION_CELLS, coverage, unfilledGrids } from "./model/geometry.js";
import { fileAmong, option } from "./model/drawing.js";
import { RANGES } from "./model/json.js";
import { isInPrompt } from "./model/phrases.js";

// number -> its words
const NUMBERS = {
    strength: "strength", opacity: "cover", start: "start", end: "end", feather: "feather", lora_strength: "loraStrength",
    start_frame: "startFrame", end_frame: "endFrame",
};

export class Knowledge {
    constructor(editor) {
        this.editor = editor;
        this.known = { flags: null, coverage: null };
    }

    /** See geometry.coverage, of the boxes that take part. Worked out once per state. */
    coverage() {
        const { boxes } = this.editor.state;
        if (this.known.coverage?.boxes !== boxes) {
            const value = coverage(boxes.filter((box) => option(box, "enabled")));
            this.known.coverage = { boxes, value };
        }
        return this.known.coverage.value;
    }

    /** Warnings, box id -> words. Worked out once per state, prompt and size. */
    flags() {
        const { state, size, facts: { prompt } } = this.editor, { flags } = this.known, loras = this.editor.host.loras();
        const asked = { boxes: state.boxes, prompt, size, loras };
        if (flags && Object.keys(asked).every((key) => flags[key] === asked[key])) return flags.value;
        const value = new Map();
        state.boxes.forEach((box, index) => {
            const words = this.outOfRange(box, index)
                || (option(box, "enabled") ? this.warning(box, index, prompt, size, loras) : "");
            if (words) value.set(box.id, words);
        });
        this.known.flags = { ...asked, value };
        return value;
    }

    /** What the text has out of its range is said of boxes that are switched off too: Run reads them all the same. */
    outOfRange(box, index) {
        const [[key, value] = []] = Object.entries(box.given ?? {}), { t } = this.editor;
        if (!key) return "";
        const [low, high] = RANGES[key];
        const shown = box[key] ?? option(box, key);
        return t("flagRange", { number: index + 1, name: t(NUMBERS[key]), value, low, high, shown });
    }

    warning(box, index, prompt, size, loras) {
        const { t } = this.editor;
        if (!box.phrase.trim()) return t("flagEmpty", { number: index + 1 });
        if (prompt?.trim() && !this.isInPrompt(box.phrase, prompt)) return t("flagMissing", { phrase: box.phrase });
        if (box.lora && loras && fileAmong(loras, box.lora) === undefined) {
            return t("flagLora", { phrase: box.phrase, name: box.lora });
        }
        const grids = unfilledGrids(box, size);
        if (grids.length < ATTENTION_CELLS.length) return ""; // one of the grids sees it
        return t("flagSmall", { phrase: box.phrase, grids: grids.map((grid) => grid.join(" × ")).join(", ") });
    }

    /** Remembered per phrase: sixty boxes are asked for at every move of the pointer. */
    isInPrompt(phrase, prompt) {
        if (this.asked?.prompt !== prompt || this.asked.answers.size > 500) this.asked = { prompt, answers: new Map() };
        const { answers } = this.asked;
        if (!answers.has(phrase)) answers.set(phrase, isInPrompt(phrase, prompt));
        return answers.get(phrase);
    }
}
