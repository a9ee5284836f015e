// The page around an editor: its theme, and its wheel.

import { app } from "../../../scripts/app.js";

/** Dark letters mean a light theme, whatever it is called. */
export function isLight(editor) {
    const parts = getComputedStyle(editor.element).color.match(/[\d.]+/g)?.map(Number) ?? [];
    return parts.length >= 3 && parts[0] * 0.3 + parts[1] * 0.6 + parts[2] * 0.1 < 128;
}

/** The wheel zooms the graph, except over a list that can scroll. */
export function wheel(event, editor) {
    const scroller = event.target.closest?.("[data-capture-wheel]");
    if (scroller && scroller.scrollHeight > scroller.clientHeight && !event.ctrlKey) {
        event.stopPropagation();
        return;
    }
    if (!editor.element.closest(".dom-widget")) return; // the other renderer passes it on by itself
    event.preventDefault();
    event.stopPropagation();
    app.canvas?.processMouseWheel?.(event);
}
