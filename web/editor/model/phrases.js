// Whether a phrase is in the prompt: the rules of attention_patches/core/tokens.py, as far as a hint needs them.

const WORD = /[\p{L}\p{N}\p{M}_]/u;
const UNSPACED = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}\p{sc=Tibetan}]/u;

/** Text without differences of case, width, composition and white space. */
export function folded(text) {
    // Upper, then lower case: what Python's casefold does, so that "straße" is "strasse".
    return text.normalize("NFKD").toUpperCase().toLowerCase().normalize("NFKD").replace(/\s+/gu, " ");
}

/** The prompt as the encoder reads it, more or less: without emphasis marks, weights and escapes. */
export function plainPrompt(prompt) {
    return prompt.replace(/\\([()])|:\s*-?\d*\.?\d+(?=\s*\))|[()]/gu, (match, escaped) => escaped ?? "");
}

/** Whether the phrase stands in the prompt as whole words. */
export function isInPrompt(phrase, prompt) {
    const hay = folded(plainPrompt(prompt));
    return standsIn(hay, folded(phrase).trim()) || standsIn(hay, folded(plainPrompt(phrase)).trim());
}

function standsIn(hay, needle) {
    if (!needle) return true;
    for (let at = hay.indexOf(needle); at >= 0; at = hay.indexOf(needle, at + 1)) {
        if (isBorder(hay, at) && isBorder(hay, at + needle.length)) return true;
    }
    return false;
}

function isBorder(text, position) {
    const left = [...text.slice(Math.max(0, position - 2), position)].pop() ?? "";
    const after = text.codePointAt(position);
    if (!left || after === undefined) return true;
    const next = String.fromCodePoint(after);
    if (/\p{M}/u.test(next)) return false;
    return !(gluesTo(left) && gluesTo(next));
}

function gluesTo(character) {
    return WORD.test(character) && !UNSPACED.test(character);
}
