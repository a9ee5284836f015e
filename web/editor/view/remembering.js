/** A function that remembers its last answers: the same labels and colours are asked for at every frame. */
export function remembering(answer, limit = 512) {
    const known = new Map();
    return (key, ...rest) => {
        if (!known.has(key)) {
            if (known.size >= limit) known.clear();
            known.set(key, answer(key, ...rest));
        }
        return known.get(key);
    };
}
