// Boxes to and from the clipboard, with the keys of the system. The host would copy nodes.

import { removed, selected } from "./model/drawing.js";

export function clipboard(event, editor) {
    if (!event.clipboardData || editor.problem) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.type === "paste" && [...event.clipboardData.files].some((file) => file.type.startsWith("image/"))) {
        editor.takeImage([...event.clipboardData.files]);
        return;
    }
    if (event.type === "paste") {
        editor.paste(event.clipboardData.getData("text/plain"));
        return;
    }
    const boxes = selected(editor.state);
    if (!boxes.length) return;
    event.clipboardData.setData("text/plain", editor.clipboardText(boxes));
    if (event.type === "cut") editor.commit(removed(editor.state));
    else editor.say("copied", { count: boxes.length });
}
