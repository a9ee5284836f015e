// The editor's looks. Colours come from the host's theme, so that light and dark follow it. Every rule is about the
// editor, or about the row of Nodes 2.0 that holds one: what the other rows do not need of a node's height is the editor's.

export const STYLE = `
.bw-editor { --bw-line: color-mix(in srgb, currentColor 16%, transparent); --bw-soft: color-mix(in srgb, currentColor 8%, transparent);
    --bw-accent: #3d8fe0; container-type: size; contain-intrinsic-size: 560px 480px; display: flex; flex-direction: column; gap: 4px; box-sizing: border-box;
    width: 100%; height: 100%; min-height: 0; padding: 0; overflow: hidden; position: relative;
    color: var(--input-text, #ddd); font: 12px/1.35 ui-sans-serif, system-ui, sans-serif; text-align: left; user-select: none; }
.lg-node-widgets:has(> :first-child .bw-editor) { grid-template-rows: minmax(420px, 1fr) !important; }
.bw-editor.bw-full { position: fixed; inset: 0; width: 100vw; height: 100vh; max-width: none; max-height: none; margin: 0; padding: 10px;
    border: 0; outline: 0 !important; background: var(--comfy-menu-bg, #222); pointer-events: auto; }
.bw-editor.bw-full::backdrop { display: none; }
.bw-editor [hidden] { display: none !important; }
.bw-editor *, .bw-editor *::before { box-sizing: border-box; }
.bw-editor button, .bw-editor input, .bw-editor select { font: inherit; color: inherit; margin: 0; }
.bw-editor :focus-visible { outline: 2px solid var(--bw-accent); outline-offset: 1px; }
.bw-editor svg { flex: none; }
.bw-editor svg .line { fill: none; stroke: currentColor; stroke-width: 1.4; stroke-linecap: round; stroke-linejoin: round; }
.bw-toolbar { display: flex; flex: none; flex-wrap: wrap; align-items: center; gap: 3px; }
.bw-push { flex: 1; }
.bw-button[aria-pressed=true] { background: var(--bw-soft); }
.bw-sources { flex: none; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; opacity: .75; }
.bw-editor[data-panel=off] .bw-side { display: none; }
.bw-gap { width: 1px; height: 16px; margin: 0 4px; background: var(--bw-line); }
.bw-button { display: inline-flex; align-items: center; gap: 5px; height: 26px; padding: 0 7px; border: 1px solid transparent;
    border-radius: 6px; background: transparent; cursor: pointer; }
.bw-button:hover { background: var(--bw-soft); }
.bw-button:disabled { opacity: .35; cursor: default; background: transparent; }
.bw-button.bw-first { border-color: var(--bw-line); background: var(--bw-soft); font-weight: 600; }
.bw-button.bw-small { height: 24px; border-color: var(--bw-line); }
.bw-holder { position: relative; }
.bw-menu { position: absolute; z-index: 5; top: 30px; left: 0; display: flex; flex-direction: column; min-width: 190px; padding: 4px;
    border: 1px solid var(--bw-line); border-radius: 8px; background: var(--comfy-menu-bg, #222); box-shadow: 0 6px 20px #0006; }
.bw-holder:last-child .bw-menu { width: 290px; }
.bw-item { display: flex; align-items: center; justify-content: space-between; gap: 8px; min-height: 28px; padding: 3px 8px; border: 0;
    border-radius: 5px; background: transparent; text-align: left; cursor: pointer; }
.bw-item:hover { background: var(--bw-soft); }
.bw-item input[type=checkbox] { order: -1; flex: none; }
.bw-item input + span { flex: 1; }
.bw-item select, .bw-unit { border: 1px solid var(--bw-line); border-radius: 5px; background: var(--comfy-input-bg, #333); padding: 1px 3px; }
.bw-main { position: relative; display: flex; flex: 1; flex-direction: column; gap: 6px; min-height: 0; }
.bw-stage { position: relative; flex: 1 1 0; min-height: 120px; overflow: hidden; border-radius: 8px; background: var(--bw-soft); }
.bw-canvas { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none; outline-offset: -2px !important; }
.bw-tool { position: absolute; z-index: 1; top: 6px; left: 6px; right: 6px; display: flex; align-items: center; gap: 4px 12px;
    width: fit-content; margin: 0 auto; padding: 4px 10px; border: 1px solid var(--bw-line); border-radius: 8px; background: var(--comfy-menu-bg, #222);
    opacity: .94; pointer-events: none; }
.bw-tool .bw-field { flex: none; pointer-events: auto; } /* beside the words, not below: what lies under it cannot be drawn on */
.bw-tool .bw-field input[type=range] { width: 90px; }
.bw-tool.bw-away { opacity: .2; }
.bw-tool[hidden], .bw-tool [hidden] { display: none; }
.bw-item kbd { padding: 0 4px; border: 1px solid var(--bw-line); border-radius: 4px; font: inherit; opacity: .7; }
.bw-item[aria-checked=true] { background: var(--bw-soft); font-weight: 600; }
.bw-select { flex: 1; min-width: 0; height: 24px; border: 1px solid var(--bw-line); border-radius: 5px; background: var(--comfy-input-bg, #222); }
.bw-fields > .bw-field:has(.bw-color) > span { width: auto; }
.bw-field .bw-small { padding: 0 4px; }
.bw-select + .bw-number { flex: none; width: 52px; }
.bw-empty { position: absolute; inset: 0; display: flex; flex-direction: column; align-items: center; justify-content: center; gap: 4px;
    padding: 12px; text-align: center; pointer-events: none; opacity: .75; }
.bw-empty strong { font-size: 14px; font-weight: 600; }
.bw-inline { position: absolute; z-index: 2; height: 26px; padding: 0 7px; border: 2px solid; border-radius: 4px; font-weight: 600 !important;
    background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); user-select: text; }
.bw-side { display: flex; flex: 0 1 40%; flex-direction: column; gap: 6px; min-height: 0; overflow-y: auto; }
.bw-list { display: flex; flex: 1 1 60px; flex-direction: column; min-height: 80px; }
.bw-none { padding: 4px 2px; }
.bw-head { display: flex; justify-content: space-between; padding: 0 2px 3px; font-weight: 600; }
.bw-quiet { font-weight: 400; opacity: .8; margin: 0; }
.bw-rows { flex: 1; min-height: 30px; margin: 0; padding: 0; overflow-y: auto; list-style: none; }
.bw-row { position: relative; display: flex; align-items: center; gap: 4px; height: 28px; padding: 0 3px; border-radius: 6px; }
.bw-row:hover { background: var(--bw-soft); }
.bw-row.bw-selected { background: color-mix(in srgb, var(--bw-accent) 24%, transparent); }
.bw-row.bw-off .bw-phrase { opacity: .5; text-decoration: line-through; }
.bw-row.bw-moving { opacity: .5; }
.bw-row.bw-before::before, .bw-row.bw-after::before { content: ""; position: absolute; left: 0; right: 0; height: 2px; background: var(--bw-accent); }
.bw-row.bw-before::before { top: -1px; }
.bw-row.bw-after::before { bottom: -1px; }
.bw-chip { flex: none; min-width: 24px; height: 24px; padding: 0 4px; border: 0; border-radius: 5px; font-weight: 700 !important; cursor: grab; touch-action: none; }
.bw-phrase { flex: 1; min-width: 0; height: 24px; padding: 0 5px; border: 1px solid transparent; border-radius: 5px; background: transparent; user-select: text; }
.bw-phrase:hover, .bw-phrase:focus { border-color: var(--bw-line); background: var(--comfy-input-bg, #222); }
.bw-phrase.bw-flagged { text-decoration: underline dotted 1.5px; text-underline-offset: 3px; text-decoration-color: #e69f00; }
.bw-icon { display: inline-flex; flex: none; align-items: center; justify-content: center; width: 24px; height: 24px; padding: 0; border: 0;
    border-radius: 5px; background: transparent; opacity: .7; cursor: pointer; }
.bw-icon:hover, .bw-icon[aria-pressed=true], .bw-icon:focus-visible { opacity: 1; background: var(--bw-soft); }
.bw-inspector { flex: none; padding-top: 6px; border-top: 1px solid var(--bw-line); }
.bw-fields { display: flex; flex-direction: column; gap: 5px; }
.bw-places { display: grid; grid-template-columns: repeat(4, 1fr) auto; gap: 5px; }
.bw-three { display: grid; grid-template-columns: repeat(3, 1fr); gap: 5px; }
.bw-field { display: flex; align-items: center; gap: 5px; min-width: 0; }
.bw-field > span { flex: none; opacity: .7; }
.bw-fields > .bw-field > span { width: 62px; }
.bw-three .bw-field { flex-direction: column; align-items: stretch; gap: 1px; }
.bw-three .bw-field > span { width: auto; }
.bw-number, .bw-text { min-width: 0; height: 24px; padding: 0 5px; border: 1px solid var(--bw-line); border-radius: 5px;
    background: var(--comfy-input-bg, #222); user-select: text; appearance: textfield; }
.bw-number::-webkit-inner-spin-button { display: none; }
.bw-number { width: 100%; }
.bw-check { flex: none; width: 16px; height: 16px; }
.bw-field input[type=range] { flex: 1; min-width: 40px; height: 24px; accent-color: var(--bw-accent); }
.bw-field input[type=range] + .bw-number { flex: none; width: 52px; }
.bw-text { flex: 1; }
.bw-color { width: 34px; height: 24px; padding: 1px; border: 1px solid var(--bw-line); border-radius: 5px; background: transparent; }
.bw-status .bw-button { flex: none; height: 24px; border-color: var(--bw-line); }
.bw-status { display: flex; flex: none; align-items: center; justify-content: space-between; gap: 10px; min-height: 16px; opacity: .85; white-space: nowrap; }
.bw-status span { overflow: hidden; text-overflow: ellipsis; }
.bw-status span:first-child { flex: none; }
.bw-warning { color: var(--bw-warn, #f0b04a); }
.bw-editor.bw-light .bw-warning { color: #693c00; }
.bw-speech { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.bw-notice { position: absolute; z-index: 6; left: 50%; bottom: 34px; translate: -50%; max-width: min(60ch, 90%); padding: 8px 12px;
    border: 1px solid var(--bw-warn, #f0b04a); border-radius: 8px; background: var(--comfy-menu-bg, #222); box-shadow: 0 6px 20px #0006; }
.bw-trouble { position: absolute; inset: 0; z-index: 4; display: flex; flex-direction: column; align-items: center; justify-content: center; gap: 8px;
    padding: 20px; text-align: center; border-radius: 8px; background: var(--comfy-menu-bg, #222); }
.bw-trouble strong { font-size: 14px; }
.bw-trouble p { margin: 0; max-width: 46ch; overflow-wrap: anywhere; }
.bw-actions { display: flex; gap: 8px; }
.bw-actions .bw-button { border-color: var(--bw-line); }
@media (pointer: coarse) { /* a finger needs more than the tip of a mouse */
    .bw-row { height: 34px; }
    .bw-chip, .bw-icon { min-width: 30px; height: 30px; }
    .bw-button, .bw-button.bw-small, .bw-phrase, .bw-number, .bw-text, .bw-select, .bw-color, .bw-unit { height: 32px; }
    .bw-item { min-height: 36px; }
    .bw-check, .bw-item input[type=checkbox] { width: 20px; height: 20px; }
}
@container (max-width: 520px) {
    .bw-toolbar .bw-button:not(.bw-first) > span { display: none; }
    .bw-gap { margin: 0 1px; }
    .bw-tool { flex-wrap: wrap; }
}
@container (max-width: 639px) and (max-height: 480px) {
    .bw-editor:not([data-panel=on]) .bw-side { display: none; }
}
@container (min-width: 640px) {
    .bw-main { flex-direction: row; gap: 10px; }
    .bw-side { flex: 0 0 256px; }
    .bw-places { grid-template-columns: 1fr 1fr auto; }
    .bw-unit { grid-column: 3; grid-row: 1; }
}
`;
