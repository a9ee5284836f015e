// Colours of boxes: automatic ones that everybody can tell apart, and ink that can be read on them.

// Okabe & Ito, "Color Universal Design" (2008), without black; the same list and tints as nodes/parts/drawing.py.
const OKABE_ITO = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]];
const TINTS = [0, 0.45, -0.3, 0.7, -0.5, 0.6, -0.2, -0.4, -0.1, -0.6];

/** "#rrggbb" of the box at an index, 64 and more different ones. */
export function automaticColor(index) {
    const tint = TINTS[Math.floor(index / OKABE_ITO.length) % TINTS.length];
    const goal = tint > 0 ? 255 : 0;
    const parts = OKABE_ITO[index % OKABE_ITO.length].map((part) => Math.round(part + (goal - part) * Math.abs(tint)));
    return `#${parts.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

/** The colour of a box: its own, else the automatic one of its index. */
export function boxColor(box, index) {
    return box.color ?? automaticColor(index);
}

/** WCAG relative luminance of "#rrggbb", 0 to 1. */
export function luminance(color) {
    const [red, green, blue] = [1, 3, 5].map((at) => {
        const part = parseInt(color.slice(at, at + 2), 16) / 255;
        return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

/** WCAG contrast of two colours, 1 to 21. */
export function contrast(a, b) {
    const [low, high] = [luminance(a), luminance(b)].sort((one, two) => one - two);
    return (high + 0.05) / (low + 0.05);
}

/** Black or white, whichever reads better on a colour: always at least 4.5 : 1. */
export function inkOn(color) {
    return contrast(color, "#000000") >= contrast(color, "#ffffff") ? "#000000" : "#ffffff";
}

/** The colour, moved towards black or white until it stands out from `background` by 3 : 1, as WCAG asks of outlines. */
export function lineOn(color, background) {
    const goal = luminance(background) > 0.18 ? 0 : 255;
    const parts = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    for (let share = 0; share < 1; share += 0.1) {
        const mixed = parts.map((part) => Math.round(part + (goal - part) * share).toString(16).padStart(2, "0"));
        const line = `#${mixed.join("")}`;
        if (contrast(line, background) >= 3) return line;
    }
    return goal ? "#ffffff" : "#000000";
}
