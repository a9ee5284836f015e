// Making elements. Words are set as text, never parsed.

/** An element with attributes; `text` becomes its text, `on` its listeners. */
export function element(tag, { text, on = {}, ...attributes } = {}, children = []) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) {
        if (name === "value") node.value = value;
        else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    for (const [type, act] of Object.entries(on)) node.addEventListener(type, act);
    node.append(...children);
    return node;
}

/** Keep an event from everybody else, the page included. */
export function swallow(event) {
    event.preventDefault();
    event.stopPropagation();
}

/** Set an input's value unless somebody is typing in it. */
export function show(input, value) {
    if (document.activeElement !== input && input.value !== value) input.value = value;
}
