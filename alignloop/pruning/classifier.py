"""A topic classifier: a small model fine-tuned on labelled rows, or one that knows its labels already.

labelled rows --split--> learnt from | measured on
model --AdamW, cross-entropy--> sequence classifier --> a label a text, held-out accuracy

One output a label. Where labels are coarse > fine, the coarse topic of a text is that of the most probability over all
its labels, the fine one the likeliest within it.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.artifacts import fingerprint, write_text
from alignloop.config.pruning import TopicConfig
from alignloop.errors import ModelError, TrainingError, UserError
from alignloop.progress import Progress
from alignloop.pruning.topic import read_labelled, split_label

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "topic_classifier"
MARK = "trained_on.json"
"""Written last: what the classifier in this folder was trained on, and its held-out accuracy."""
_WARMUP_SHARE = 0.1
_WEIGHT_DECAY = 0.01


def classify(
    texts: Sequence[str], config: TopicConfig, *, folder: Path | None, seed: int, progress: Progress
) -> tuple[list[str], dict[str, float], tuple[str, ...]]:
    """Label texts by the configured classifier, fine-tuned first where the config names labelled rows.

    Returns the labels, and metrics and notes that say how far to trust them. A fine-tuned classifier is kept in
    the `topic_classifier` of `folder`, if there is one, and reused where it was made from the same things.

    Raises:
        DataError: labelled rows are wrong.
        ModelError: no model, or it is no classifier and there is nothing to learn from.
        UserError: its held-out accuracy is under `min_accuracy`.
    """
    assert config.model is not None, "the recipe checks that there is one"
    if config.labelled is None:
        ready = Path(config.model).expanduser()
        return _Classifier(ready, classifier_labels(ready), config).labels_of(texts, progress=progress), {}, ()
    classifier, measured = _trained(config, folder=folder, seed=seed, progress=progress)
    right = f"{measured['heldout_accuracy']:.3f} of {measured['num_heldout']:.0f} held-out rows"
    majority = f"always giving the commonest topic: {measured['heldout_majority']:.3f}"
    if measured["heldout_accuracy"] < config.min_accuracy:
        raise UserError(
            f"topic classifier: {right} are right, under prune.topic.min_accuracy ({config.min_accuracy:g}; "
            f"{majority}): label more rows, or take a better prune.topic.model"
        )
    labels = classifier.labels_of(texts, progress=progress)
    fine = measured.get("heldout_fine_accuracy")
    also = "" if fine is None else f", with the fine topic {fine:.3f}"
    return labels, measured, (f"topic classifier: {right} right{also} ({majority})",)


def heldout_rows(labels: Sequence[str], *, fraction: float, seed: int) -> list[int]:
    """Rows to measure on, ascending, drawn with the seed: `fraction` of each label's.

    At least one of each label, but never all: none of a label with a single row.
    """
    held: set[int] = set()
    for label in sorted(set(labels)):
        rows = [index for index, found in enumerate(labels) if found == label]
        number = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held.update(random.Random(f"{seed}/{label}").sample(rows, number))
    return sorted(held)


def classifier_labels(folder: Path) -> tuple[str, ...]:
    """The labels in a classifier's config; a ModelError without folder, classifier, or names of labels."""
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


def _trained(
    config: TopicConfig, *, folder: Path | None, seed: int, progress: Progress
) -> tuple[_Classifier, dict[str, float]]:
    """Fine-tuned, or loaded from `folder`; and its accuracy on held-out rows."""
    rows = read_labelled(Path(str(config.labelled)).expanduser())
    texts, topics = [text for text, _ in rows], [topic for _, topic in rows]
    made_of = config.model_dump(mode="json", exclude={"labelled", "by", "min_accuracy"})
    key = fingerprint([texts, topics, made_of, seed])
    kept = None if folder is None else folder / FOLDER
    if kept is not None and (mark := _read_mark(kept)) is not None and mark["key"] == key:
        return _Classifier(kept, classifier_labels(kept), config), mark["measured"]
    held = heldout_rows(topics, fraction=config.heldout_fraction, seed=seed)
    learnt = sorted(set(range(len(rows))) - set(held))
    classifier = _fine_tuned([rows[index] for index in learnt], config=config, seed=seed, progress=progress)
    wanted = [topics[index] for index in held]
    measured = accuracies(wanted, classifier.labels_of([texts[index] for index in held], progress=progress))
    if kept is not None:
        classifier.save(kept, {"key": key, "measured": measured})
    return classifier, measured


def accuracies(wanted: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """`heldout_accuracy` and `heldout_majority` of coarse topics; of whole labels `heldout_fine_accuracy`, where some
    have a fine topic."""
    coarse = [split_label(label)[0] for label in wanted]
    right = [split_label(label)[0] == own for label, own in zip(found, coarse, strict=True)]
    measured = {
        "heldout_accuracy": sum(right) / len(wanted),
        "heldout_majority": max(Counter(coarse).values()) / len(wanted),
        "num_heldout": float(len(wanted)),
    }
    if any(split_label(label)[1] for label in wanted):
        measured["heldout_fine_accuracy"] = sum(a == b for a, b in zip(wanted, found, strict=True)) / len(wanted)
    return measured


def likeliest(logits: Tensor, *, labels: Sequence[str]) -> list[str]:
    """A label for each of [B, L] rows: within the coarse topic that has the most probability over all its labels."""
    chances = logits.float().softmax(-1)
    names = [split_label(label)[0] for label in labels]
    coarse = chances.new_tensor([names.index(name) for name in names]).long()
    of_coarse = chances.new_zeros(chances.shape).index_add_(1, coarse, chances).argmax(-1, keepdim=True)
    best = chances.masked_fill(coarse != of_coarse, -1.0).argmax(-1)
    return [labels[index] for index in best.tolist()]


def _read_mark(folder: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and {"key", "measured"} <= mark.keys() else None


def _fine_tuned(rows: Sequence[tuple[str, str]], *, config: TopicConfig, seed: int, progress: Progress) -> _Classifier:
    """Deterministic on CPU. A ModelError without model or tokenizer, a TrainingError where the loss is not finite."""
    import torch

    labels = tuple(sorted({topic for _, topic in rows}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = _Classifier(Path(str(config.model)).expanduser(), labels, config)
        model = classifier.model.train()
        ids = classifier.encoded([text for text, _ in rows])
        num_steps = max(1, math.ceil(config.epochs * len(rows) / config.batch_rows))
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY)
        warmup = max(1, round(_WARMUP_SHARE * num_steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup), 1.0)
        )
        with progress.task("topic classifier", total=num_steps, unit="steps") as advance:
            for batch in _batches(len(rows), size=config.batch_rows, number=num_steps, seed=seed):
                logits = classifier.logits([ids[row] for row in batch])
                wanted = torch.tensor([labels.index(rows[row][1]) for row in batch], device=logits.device)
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


def _batches(num_rows: int, *, size: int, number: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    order: list[int] = []
    while len(order) < number * size:
        epoch = list(range(num_rows))
        draw.shuffle(epoch)
        order += epoch
    return [order[start : start + size] for start in range(0, number * size, size)]


class _Classifier:
    """A model with its tokenizer, on its device; `labels` by output. A ModelError where the folder has none."""

    def __init__(self, folder: Path, labels: tuple[str, ...], config: TopicConfig) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from alignloop.training.model import quiet_transformers

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
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
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # The last token that is no pad is where a decoder's classifier reads.
        model.config.get_text_config().pad_token_id = model.config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.padding_side = "right"
        self.model: Any = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.labels, self._config = labels, config

    def labels_of(self, texts: Sequence[str], *, progress: Progress) -> list[str]:
        import torch

        self.model.eval()
        ids = self.encoded(texts)
        found = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda row: -len(ids[row]))  # texts of a length side by side
        size = 4 * self._config.batch_rows
        with torch.inference_mode(), progress.task("topics", total=len(texts), unit="rows") as advance:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                logits = self.logits([ids[row] for row in batch])
                for row, label in zip(batch, likeliest(logits, labels=self.labels), strict=True):
                    found[row] = label
                advance(len(batch))
        return found

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text's beginning; one pad token where it has none."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self._config.max_length)["input_ids"]
        return [list(ids) or [self.tokenizer.pad_token_id] for ids in encoded]

    def logits(self, ids: Sequence[Sequence[int]]) -> Any:
        """[B, L] for B rows of token ids."""
        batch = self.tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(self.model.device)
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def save(self, folder: Path, mark: dict[str, Any]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_text(folder / MARK, json.dumps(mark, indent=1) + "\n")
