// The host's undo and redo, which keep our steps too.

import { app } from "../../../scripts/app.js";

export function tracker() {
    return app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
}

/** Let the host compare the graph with its last snapshot; it keeps a step only if something changed. */
export function snapshot() {
    const current = tracker();
    if (current?.captureCanvasState) current.captureCanvasState();
    else current?.checkState?.();
}

export function run(command) {
    snapshot();
    return app.extensionManager?.command?.execute(command);
}
