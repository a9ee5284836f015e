// Small line icons, 16 x 16, drawn with the colour of the text around them.

const PATHS = {
    plus: "M8 3v10M3 8h10",
    copy: "M6 6h7v7H6zM3 10V3h7",
    trash: "M3 4.5h10M6.5 4V2.5h3V4M4.5 4.5l.6 9h5.8l.6-9M6.8 7v4M9.2 7v4",
    undo: "M6 3 3 6l3 3M3 6h6a4 4 0 0 1 0 8H7",
    redo: "M10 3l3 3-3 3M13 6H7a4 4 0 0 0 0 8h2",
    grid: "M2.5 2.5h11v11h-11zM8 2.5v11M2.5 8h11",
    sliders: "M2 5h7M12 5h2M2 11h2M7 11h7M9 3v4M4.5 9v4",
    square: "M2.5 3.5h11v9h-11z",
    ellipse: "M2 8a6 4.5 0 1 0 12 0A6 4.5 0 1 0 2 8z",
    polygon: "M8 2l6 4.5-2.3 7H4.3L2 6.5z",
    brush: "M13.5 2.5 7 9M5.5 8.5l2 2c0 2-1.5 3-5 3 1.5-1 1-2 1.2-3.3.2-1 .9-1.6 1.8-1.7z",
    eraser: "M6 13.5h7.5M3 10.5l7-7 3.5 3.5-6.5 6.5H5zM6.5 7l3.5 3.5",
    eye: "M1.5 8S4 3.5 8 3.5 14.5 8 14.5 8 12 12.5 8 12.5 1.5 8 1.5 8zM8 6a2 2 0 1 0 0 4 2 2 0 0 0 0-4",
    eyeOff: "M2 2l12 12M6 3.9A6 6 0 0 1 8 3.5c4 0 6.5 4.5 6.5 4.5a12 12 0 0 1-2 2.4M10 11.9a6 6 0 0 1-2 .6C4 12.5 1.5 8 1.5 8a12 12 0 0 1 2.3-2.7",
    lock: "M4 7.5h8v6H4zM5.5 7.5V5a2.5 2.5 0 0 1 5 0v2.5",
    unlock: "M4 7.5h8v6H4zM5.5 7.5V5a2.5 2.5 0 0 1 4.8-1",
    grip: "M6 3.5h.1M10 3.5h.1M6 8h.1M10 8h.1M6 12.5h.1M10 12.5h.1",
    pin: "M6 2.5h4l-.6 4 2.1 2.5h-7L6.6 6.5zM8 9v4.5",
    panel: "M2.5 3h11v10h-11zM9.5 3v10M11.2 6h.8M11.2 8.5h.8",
    full: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
    caret: "M4.5 6.5 8 10l3.5-3.5",
};

/** An SVG element; readers are told to skip it, the button around it has the words. */
export function icon(name) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [key, value] of Object.entries({ viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" })) {
        svg.setAttribute(key, value);
    }
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", PATHS[name]);
    path.setAttribute("class", name === "grip" ? "dots" : "line");
    svg.append(path);
    return svg;
}
