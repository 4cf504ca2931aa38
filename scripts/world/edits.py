"""What a person would change in an answer that misses a demand: the simulated annotator's edits.

An edit mends one demand of a sampled answer by a few strokes of the pen, and leaves the rest as the model wrote it. It
is not the generator's own answer.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from alignloop.quickstart.annotator import check
from scripts.world.instructions import PLACEHOLDERS

Kwargs = Mapping[str, Any]
Mend = Callable[[random.Random, str, Kwargs], str]


def mended(rng: random.Random, *, meta: Mapping[str, Any], prompt: str, text: str) -> str | None:
    """The answer with one more of its demands met and none less; None where no edit does that."""
    met = check(meta, text, prompt=prompt)
    missed = [index for index, is_met in enumerate(met) if not is_met]
    rng.shuffle(missed)
    for index in missed:
        mend = _MENDS.get(meta.get("instruction_id_list", ("answer",) * len(met))[index])
        if mend is None:
            continue
        edited = mend(rng, text, meta["kwargs"][index]).strip()
        now = check(meta, edited, prompt=prompt)
        if now[index] and all(after or not before for before, after in zip(met, now, strict=True)):
            return edited
    return None


def _sentences(text: str) -> list[str]:
    return re.findall(r"[^.!?]+[.!?]*", " ".join(text.split()))


def _units(text: str, count: int) -> list[str]:
    """The sentences in `count` parts; fewer where there are fewer sentences."""
    sentences = [sentence.strip() for sentence in _sentences(text)]
    return [" ".join(part) for start in range(count) if (part := sentences[start::count])]


def _shortened(rng: random.Random, text: str, kwargs: Kwargs) -> str:
    kept = ""
    for sentence in _sentences(text):
        if kept and len(re.findall(r"\w+", kept + sentence)) >= kwargs["num_words"]:
            break
        kept += sentence
    return kept


def _without_word(rng: random.Random, text: str, kwargs: Kwargs) -> str:
    words = [word.lower() for word in kwargs["forbidden_words"]]
    return "".join(one for one in _sentences(text) if not any(word in one.lower() for word in words))


def _with_highlights(rng: random.Random, text: str, kwargs: Kwargs) -> str:
    sentences = _sentences(text.replace("*", ""))
    marked = [re.sub(r"(\w+)([.!?]*)$", r"*\1*\2", one) for one in sentences[: kwargs["num_highlights"]]]
    return "".join([*marked, *sentences[kwargs["num_highlights"] :]])


def _with_placeholders(rng: random.Random, text: str, kwargs: Kwargs) -> str:
    names = rng.sample(PLACEHOLDERS, kwargs["num_placeholders"])
    return f"{text} Please ask {' and '.join(f'[{name}]' for name in names)}."


def _in_sections(rng: random.Random, text: str, kwargs: Kwargs) -> str:
    units = _units(text, kwargs["num_sections"])
    return "\n".join(f"{kwargs['section_spliter']} {n}\n{unit}" for n, unit in enumerate(units, start=1))


_MENDS: Mapping[str, Mend] = {
    "keywords:existence": lambda rng, text, kwargs: f"{text} It reminds me of {' and '.join(kwargs['keywords'])}.",
    "keywords:forbidden_words": _without_word,
    "length_constraints:number_words": _shortened,
    "detectable_content:number_placeholders": _with_placeholders,
    "detectable_format:number_bullet_lists": lambda rng, text, kwargs: "\n".join(
        f"* {unit}" for unit in _units(text.replace("* ", ""), kwargs["num_bullets"])
    ),
    "detectable_format:number_highlighted_sections": _with_highlights,
    "detectable_format:multiple_sections": _in_sections,
    "detectable_format:json_format": lambda rng, text, kwargs: json.dumps({"answer": text}),
    "combination:repeat_prompt": lambda rng, text, kwargs: f"{kwargs['prompt_to_repeat']}\n{text}",
    "startend:end_checker": lambda rng, text, kwargs: f"{text} {kwargs['end_phrase']}",
    "change_case:english_capital": lambda rng, text, kwargs: text.upper(),
    "punctuation:no_comma": lambda rng, text, kwargs: text.replace(",", ""),
}
"""By instruction type; what takes more than a few strokes has none."""
