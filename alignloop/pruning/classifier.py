"""A topic classifier: a small model fine-tuned on labelled rows, or one that knows its labels already.

labelled rows --split--> learnt from | measured on
model --AdamW, cross-entropy--> sequence classifier --> a label a text, held-out accuracy
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.artifacts import fingerprint, write_text
from alignloop.config.pruning import TopicConfig
from alignloop.errors import ModelError, TrainingError, UserError
from alignloop.progress import Progress
from alignloop.pruning.labelled import Labelled, read_labelled
from alignloop.selection.topics import accuracy, heldout_places, majority_share

FOLDER = "topic_classifier"
MARK = "trained_on.json"
"""Written last into the folder: what it was trained on, and how well it did."""
_WARMUP_SHARE = 0.1
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Classified:
    """A label a text; metrics and notes say how far to trust them."""

    labels: list[str]
    metrics: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classifier:
    """A model with its tokenizer, on its device; `labels` by output."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]


def classify(
    texts: Sequence[str], config: TopicConfig, *, folder: Path | None, seed: int, progress: Progress
) -> Classified:
    """Label texts by the classifier that the config names, fine-tuned first where it names labelled rows.

    Args:
        folder: a fine-tuned classifier is kept in its `topic_classifier`, and taken over from there where it was made
            from the same things; None: it is not kept.

    Raises:
        DataError: labelled rows are wrong.
        ModelError: no model there, or it is no classifier and there is nothing to learn from.
        UserError: its held-out accuracy is under `min_accuracy`.
    """
    assert config.model is not None, "the recipe checks that there is one"
    if config.labelled is None:
        classifier = load_classifier(Path(config.model).expanduser())
        return Classified(predict(classifier, texts, config=config, progress=progress), {})
    rows = read_labelled(Path(config.labelled).expanduser())
    classifier, measured = _trained(rows, config, folder=folder, seed=seed, progress=progress)
    if measured["heldout_accuracy"] < config.min_accuracy:
        raise UserError(
            f"topic classifier: {measured['heldout_accuracy']:.3f} of {measured['num_heldout']:.0f} held-out rows are "
            f"right, under prune.topic.min_accuracy ({config.min_accuracy:g}; always giving the commonest topic: "
            f"{measured['heldout_majority']:.3f}): label more rows, or take a better prune.topic.model"
        )
    note = (
        f"topic classifier: {measured['heldout_accuracy']:.3f} of {measured['num_heldout']:.0f} held-out rows right "
        f"(always giving the commonest topic: {measured['heldout_majority']:.3f})"
    )
    return Classified(predict(classifier, texts, config=config, progress=progress), measured, (note,))


def _trained(
    rows: Labelled, config: TopicConfig, *, folder: Path | None, seed: int, progress: Progress
) -> tuple[Classifier, dict[str, float]]:
    """Fine-tuned, or taken over from `folder`."""
    source = Path(str(config.model)).expanduser()
    key = fingerprint(
        [rows.texts, rows.topics, config.model_dump(mode="json", exclude={"labelled", "by", "min_accuracy"}), seed]
    )
    place = None if folder is None else folder / FOLDER
    if place is not None and (known := _read_mark(place)) is not None and known["key"] == key:
        return load_classifier(place), known["measured"]
    held = heldout_places(rows.topics, fraction=config.heldout_fraction, seed=seed)
    learnt = [index for index in range(len(rows.texts)) if index not in held]
    classifier = fine_tune(
        source,
        [rows.texts[index] for index in learnt],
        [rows.topics[index] for index in learnt],
        config=config,
        seed=seed,
        progress=progress,
    )
    order = sorted(held)
    wanted = [rows.topics[index] for index in order]
    given = predict(classifier, [rows.texts[index] for index in order], config=config, progress=progress)
    measured = {
        "heldout_accuracy": accuracy(wanted, given),
        "heldout_majority": majority_share(wanted),
        "num_heldout": float(len(wanted)),
    }
    if place is not None:
        _keep(classifier, place, {"key": key, "measured": measured})
    return classifier, measured


def fine_tune(
    source: Path, texts: Sequence[str], topics: Sequence[str], *, config: TopicConfig, seed: int, progress: Progress
) -> Classifier:
    """Train a sequence classifier from a model's weights. Deterministic on CPU.

    Raises:
        ModelError: no model or tokenizer there.
        TrainingError: the loss is not finite.
    """
    import torch

    labels = tuple(sorted(set(topics)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = _load(source, labels)
        model = classifier.model.train()
        ids = _encoded(classifier, texts, max_length=config.max_length)
        targets = [labels.index(topic) for topic in topics]
        num_steps = max(1, math.ceil(config.epochs * len(texts) / config.batch_rows))
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY)
        warmup = max(1, round(_WARMUP_SHARE * num_steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup), 1.0)
        )
        batches = _batches(len(texts), size=config.batch_rows, number=num_steps, seed=seed)
        with progress.task("topic classifier", total=num_steps, unit="steps") as advance:
            for batch in batches:
                logits = _logits(classifier, [ids[index] for index in batch])
                wanted = torch.tensor([targets[index] for index in batch], device=logits.device)
                loss = torch.nn.functional.cross_entropy(logits.float(), wanted)
                if not bool(torch.isfinite(loss)):
                    raise TrainingError(
                        "topic classifier: the loss is not finite: lower prune.topic.learning_rate, or change its model"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                advance(1)
    return classifier


def predict(classifier: Classifier, texts: Sequence[str], *, config: TopicConfig, progress: Progress) -> list[str]:
    """The likeliest label of each text."""
    import torch

    model = classifier.model.eval()
    ids = _encoded(classifier, texts, max_length=config.max_length)
    found = [""] * len(texts)
    order = sorted(range(len(texts)), key=lambda index: -len(ids[index]))  # texts of a length side by side
    size = 4 * config.batch_rows
    with torch.inference_mode(), progress.task("topics", total=len(texts), unit="rows") as advance:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            best = _logits(Classifier(model, classifier.tokenizer, classifier.labels), [ids[index] for index in batch])
            for index, label in zip(batch, best.argmax(-1).tolist(), strict=True):
                found[index] = classifier.labels[label]
            advance(len(batch))
    return found


def load_classifier(folder: Path) -> Classifier:
    """A sequence classifier that knows its labels.

    Raises:
        ModelError: it is none.
    """
    labels = classifier_labels(folder)
    return _load(folder, labels)


def classifier_labels(folder: Path) -> tuple[str, ...]:
    """The labels in a classifier's config; loads nothing.

    Raises:
        ModelError: no such folder, no classifier, or labels without names.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"prune.topic.model: {folder}: no Hugging Face model folder ({error})") from error
    names = [str(name) for name in config.get("architectures") or []]
    id2label = config.get("id2label") or {}
    if not any(name.endswith("ForSequenceClassification") for name in names) or len(id2label) < 2:
        raise ModelError(
            f"prune.topic.model: {folder} is no classifier with labels: name the rows it can learn from in "
            "prune.topic.labelled, or a model that was fine-tuned already"
        )
    return tuple(str(id2label[str(index)]) for index in range(len(id2label)))


def _load(folder: Path, labels: tuple[str, ...]) -> Classifier:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from alignloop.training.models import quiet_transformers

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                local_files_only=True,
            )
    except (OSError, ValueError) as error:
        raise ModelError(f"prune.topic.model: {folder}: no usable model and tokenizer: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # The last token that is no pad is where a decoder's classifier reads.
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"
    return Classifier(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, labels)


def _encoded(classifier: Classifier, texts: Sequence[str], *, max_length: int) -> list[list[int]]:
    if not texts:
        return []
    encoded = classifier.tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [list(ids) or [classifier.tokenizer.pad_token_id] for ids in encoded]


def _logits(classifier: Classifier, ids: Sequence[Sequence[int]]) -> Any:
    """[B, L] for a batch of token ids."""
    batch = classifier.tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(classifier.model.device)
    return classifier.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def _batches(num_rows: int, *, size: int, number: int, seed: int) -> list[list[int]]:
    """`number` batches of rows, each epoch in an order of its own."""
    import random

    draw = random.Random(seed)
    order: list[int] = []
    while len(order) < number * size:
        epoch = list(range(num_rows))
        draw.shuffle(epoch)
        order += epoch
    return [order[start : start + size] for start in range(0, number * size, size)]


def _keep(classifier: Classifier, place: Path, mark: dict[str, Any]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    classifier.model.save_pretrained(place)
    classifier.tokenizer.save_pretrained(place)
    write_text(place / MARK, json.dumps(mark, indent=1) + "\n")


def _read_mark(place: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads((place / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and {"key", "measured"} <= mark.keys() else None
