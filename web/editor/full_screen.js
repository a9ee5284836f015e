// The editor over the whole window. The element stays where the host has put it and is lifted above the page.

export class FullScreen {
    constructor(editor) {
        this.editor = editor;
        this.isOn = false;
    }

    /** Fill the window, or go back into the node; with a lens (see Lens) to begin with. */
    set(on, lens = null) {
        const { editor } = this, { element, stage } = editor;
        if (on === this.isOn || (on && !element.showPopover)) return;
        this.isOn = on;
        element.classList.toggle("bw-full", on);
        if (on) {
            element.setAttribute("popover", "manual");
            element.setAttribute("tabindex", "-1"); // what is pressed beside the fields shall not reach the graph
            if (element.isConnected) element.showPopover();
            this.listening = new AbortController();
            const first = { capture: true, passive: false, signal: this.listening.signal }; // before the host moves its graph
            window.addEventListener("wheel", (event) => this.wheel(event), first);
            window.addEventListener("focusin", ({ target }) => this.leftFor(target), first);
            for (const type of ["pointerdown", "pointermove", "pointerup"]) {
                window.addEventListener(type, (event) => stage.lens.pan(event), first);
            }
        } else {
            this.listening.abort();
            editor.notice.hidden = true;
            for (const name of ["popover", "tabindex"]) element.removeAttribute(name);
        }
        stage.lens.set(on ? lens : null);
        editor.toolbar.buttons.full.setAttribute("aria-pressed", String(on));
        if (on && !lens) stage.canvas.focus({ preventScroll: true });
        editor.render();
    }

    /** What has the focus now lies beneath us, unless it is ours: a dialog or a search of the host's shall be seen. */
    leftFor(target) {
        if (!this.editor.element.contains(target) && target.matches?.(":not(canvas)")) this.set(false);
    }

    /** In full screen the wheel zooms the drawing, or scrolls what can scroll. */
    wheel(event) {
        const { element, stage } = this.editor;
        if (!element.contains(event.target)) return;
        event.stopPropagation();
        if (event.target !== stage.canvas) return;
        event.preventDefault();
        stage.lens.zoomBy(event);
    }
}
