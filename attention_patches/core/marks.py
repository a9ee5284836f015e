"""What people write into prompts beside words: emphasis, LoRA tags, BREAK, choices. Pure text work, no host."""

from __future__ import annotations

import re

# LoRA tags and BREAK are orders to other programs: no text encoder follows them, and as text they are noise.
LORA = r"<(?:lora|lyco|loha|hypernet):[^<>]*>"
BREAK = r"(?<![^\s,])BREAK(?![^\s,])"
# Read as it stands, because other programs or nodes put something in its place: a choice, a file of words, a schedule.
PLACEHOLDER = re.compile(r"\{[^{}|]*\|[^{}]*\}|\b__[\w/*.-]{1,80}?__(?!\w)|\[[^\[\]:]*:[^\[\]:]*:\s*[\d.]+\s*\]")

EMPHASIS = re.compile(r"(?<!\\)\([^()\\]*:\s*[\d.]+\s*\)")  # with a weight: (word:1.3)


def without_orders(text: str) -> tuple[str, list[str]]:
    """The text without LoRA tags and BREAK, and those, in order, each once. A BREAK becomes a comma."""
    orders = list(dict.fromkeys(re.findall(f"{LORA}|{BREAK}", text)))
    if not orders:
        return text, []
    kept, *parts = re.split(LORA, text)
    for part in parts:
        kept = kept.rstrip()
        if part.lstrip()[:1] in ("", ","):  # two commas, or one at the end, would be left
            kept = kept.removesuffix(",")
        kept += part
    return ", ".join(filter(None, (part.strip().strip(",").strip() for part in re.split(BREAK, kept)))), orders


def notes_on(name: str, text: str) -> list[str]:
    """What of a text is left out, and what is read as it stands although it may be meant otherwise, a sentence each."""
    orders = without_orders(text)[1]
    notes = []
    if tags := [order for order in orders if order != "BREAK"]:
        notes.append(f"{name}: {', '.join(tags)} left out. A text loads no LoRA: use a LoRA loader.")
    if "BREAK" in orders:
        notes.append(f"{name}: BREAK left out, a comma put in its place. Regions keep texts apart.")
    if found := list(dict.fromkeys(PLACEHOLDER.findall(text))):
        notes.append(f"{name}: {', '.join(found)} is read as it stands; nothing is put in its place here.")
    return notes


def without_emphasis(text: str) -> str:
    """The text less the marks of emphasis, its weights and the backslashes of literal parentheses.

    For names of words only: which marks an encoder reads as emphasis, it alone knows.
    """
    return re.sub(r"\\([()])|:\s*[-+]?[\d.]+\s*(?=\))|[()]", lambda mark: mark[1] or "", text)


def is_balanced(text: str) -> bool:
    """Whether every parenthesis that is not literal has its partner: such texts can follow one another."""
    level = 0
    for mark in re.findall(r"[()]", re.sub(r"\\[()]", "", text)):
        level += 1 if mark == "(" else -1
        if level < 0:
            return False
    return level == 0


def escaped(text: str) -> str:
    """The text as every tokenizer of the host reads it literally: parentheses are no emphasis."""
    return text.replace("(", "\\(").replace(")", "\\)")
