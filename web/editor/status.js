// What the editor says about itself: the line at the foot, where wired values come from, and why a drawing is not shown.

import { element } from "./dom.js";
import { Problem } from "./model/json.js";
import { stateOf } from "./model/drawing.js";

const SOURCES = {
    width: "sourceWidth", height: "sourceHeight", prompt: "sourcePrompt", boxes: "sourceBoxes", opacity: "opacity",
};

export class Status {
    constructor(editor) {
        this.editor = editor;
        this.line = element("div", { class: "bw-status" });
        this.sources = element("div", { class: "bw-sources", hidden: true });
        this.trouble = element("div", { class: "bw-trouble", role: "alert", hidden: true });
    }

    update() {
        this.showStatus();
        this.showProblem();
    }

    showStatus() {
        const { state, problem, knowledge, t } = this.editor, { boxes } = state, { covered, overlapped } = knowledge.coverage();
        const percent = (share) => String(Math.round(share * 100));
        const parts = [boxes.length === 1 ? t("statusBox") : t("statusBoxes", { count: boxes.length })];
        parts.push(t("statusCovered", { percent: percent(covered) }));
        if (overlapped > 0.005) parts.push(t("statusOverlap", { percent: percent(overlapped) }));
        const [id] = state.selection, flags = knowledge.flags();
        const warning = flags.get(id) ?? flags.values().next().value ?? "";
        const text = boxes.length && !problem ? parts.join(" · ") : "", mends = boxes.some((box) => box.given);
        const key = `${text}\n${warning}\n${mends}`;
        if (this.line.dataset.key === key) return;
        this.line.dataset.key = key;
        this.line.replaceChildren(
            element("span", { text }), element("span", { class: "bw-warning", text: warning, title: warning || undefined }),
            ...(mends ? [this.editor.toolbar.button("mend", null, () => this.editor.mend())] : []),
        );
    }

    /** Where the values of wired inputs come from. */
    showSources() {
        const { facts, t } = this.editor;
        const words = facts.sources.map(({ key, title, how }) => (
            t({ wire: "fromWire", run: "fromRun", unknown: "fromUnknown", input: "fromInput" }[how], {
                name: t(SOURCES[key]), title, value: facts[key],
            })
        )).join(" · ");
        if (this.sources.textContent === words) return;
        this.sources.textContent = this.sources.title = words;
        this.sources.hidden = !words;
    }

    showProblem() {
        const { problem } = this.editor;
        if (this.trouble.hidden !== !problem || this.trouble.problem !== problem) {
            this.trouble.problem = problem;
            this.trouble.hidden = !problem;
            this.trouble.replaceChildren(...(problem ? this.problemWords(problem) : []));
        }
    }

    problemWords(problem) {
        const { editor } = this, { t } = editor, isLinked = problem.key === "drawingFrom";
        return [
            element("strong", { text: t(isLinked ? "linkedTitle" : "problemTitle") }),
            element("p", { text: t(problem.key, problem.values) }),
            ...(isLinked ? [] : [element("div", { class: "bw-actions" }, [
                editor.toolbar.button("copyText", null, () => editor.copyOut(String(editor.host.read()))),
                editor.toolbar.button("startOver", null, () => editor.commit(stateOf(""))),
            ])]),
        ];
    }
}

/** The same object as long as the same node sends the drawing. */
export function linkedProblem(problem, title) {
    return problem?.key === "drawingFrom" && problem.values.title === title ? problem : new Problem("drawingFrom", { title });
}
