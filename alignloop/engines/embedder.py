"""Embeddings for semantic deduplication and decontamination: one unit vector a text, by one of two kinds of models.

dialogs --mean of the policy's last hidden states, no download--> [N, D]
texts --a sentence-transformers model, from a folder or by its hub id--> [N, D]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.engines.transformers_engine import length_batches, padded
from alignloop.errors import ModelError, UserError
from alignloop.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODULES = "modules.json"
"""What makes a folder a sentence-transformers model: the list of its parts."""
_OWNER = "sentence-transformers"
_BATCHES_A_STEP = 64
"""Batches between two steps of the progress bar."""


def embed_dialogs(
    token_ids: Sequence[tuple[int, ...]], *, checkpoint: Path, batch_tokens: int, progress: Progress
) -> NDArray[np.float32]:
    """One unit vector a dialog, float32 [N, D] in order, D the hidden size: the mean of a model's last hidden states.
    Deterministic on CPU.

    Args:
        token_ids: N dialogs; ValueError where one is empty.
        checkpoint: a Hugging Face directory, read in float32 on a CPU, in bfloat16 on a GPU, where an 8B model and its
            float32 weights would not fit.
        batch_tokens: padded tokens a batch; a longer dialog is a batch of its own.
    """
    import numpy as np
    import torch
    from transformers import AutoModel

    empty = [index for index, ids in enumerate(token_ids) if not ids]
    if empty:
        raise ValueError(f"dialog {empty[0]} has no tokens: there is nothing to embed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = AutoModel.from_pretrained(checkpoint, dtype=dtype, local_files_only=True).to(device).eval()
    embeddings = np.zeros((len(token_ids), int(model.config.get_text_config().hidden_size)), dtype=np.float32)
    with progress.task("embed", total=len(token_ids), unit="dialogs") as advance, torch.inference_mode():
        for indices in length_batches([len(ids) for ids in token_ids], batch_tokens=batch_tokens):
            ids, mask = padded([token_ids[index] for index in indices], device=model.device)
            hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            mean = (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            embeddings[indices] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
            advance(len(indices))
    return embeddings


def embed_texts(
    texts: Sequence[str], *, model: str | Path, batch_size: int = 32, progress: Progress
) -> NDArray[np.float32]:
    """One unit vector a text, float32 [N, D] in order; same texts, same bytes on a CPU. Uses an accelerator if there is
    one.

    A model sees as many first tokens of a text as its window has (256 for all-MiniLM-L6-v2); the number of longer texts
    is reported.

    Args:
        model: folder that sentence-transformers wrote, or a hub id (`all-MiniLM-L6-v2` is short for
            `sentence-transformers/all-MiniLM-L6-v2`), downloaded where it is not on this machine.

    Raises:
        ModelError: no such folder or id, an unreachable hub, or something that is no sentence-transformers model.
        UserError: sentence-transformers is not installed.
        ValueError: batch_size below 1.
    """
    import numpy as np

    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    encoder = _load(locate(model, progress=progress), model)
    found = np.zeros((len(texts), int(encoder.get_embedding_dimension())), dtype=np.float32)
    # Longest first: texts of a batch are of like length, and memory that suffices for the first suffices for all.
    order = sorted(range(len(texts)), key=lambda index: (-len(texts[index]), index))
    num_cut = 0
    with progress.task("embed", total=len(texts), unit="texts") as advance:
        for start in range(0, len(order), batch_size * _BATCHES_A_STEP):
            indices = order[start : start + batch_size * _BATCHES_A_STEP]
            part = [texts[index] for index in indices]
            num_cut += _num_cut(encoder, part)
            found[indices] = encoder.encode(
                part, batch_size=batch_size, convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False
            )
            advance(len(indices))
    if num_cut:
        progress.say(
            f"{num_cut:,} of {len(texts):,} texts are longer than the {encoder.max_seq_length} tokens that {model} "
            "sees: their vectors are those of their beginnings"
        )
    return found


def locate(model: str | Path, *, progress: Progress) -> Path:
    """Folder of a sentence-transformers model; the hub is asked only where the id is not on this machine. Raises
    ModelError."""
    path, name = Path(model).expanduser(), str(model)
    if path.is_dir():
        return _checked(path, name=name)
    if isinstance(model, Path) or path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"{name}: no such folder. An embedder is a folder that sentence-transformers wrote, or a hub id "
            "(owner/name)"
        )
    return _from_hub(name if "/" in name else f"{_OWNER}/{name}", progress=progress)


def _from_hub(name: str, *, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return _checked(Path(snapshot_download(name, local_files_only=True)), name=name)
    except LocalEntryNotFoundError:
        progress.say(f"{name} is not on this machine: asking the hub for it")
    except ValueError as error:
        raise ModelError(f"{name}: neither a folder nor a hub id ({_first_line(error)})") from error
    try:
        return _checked(Path(snapshot_download(name)), name=name)
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{name}: the hub has no model of that id, or it is private. Check the spelling, or give a folder"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{name}: not on this machine, and the hub cannot be reached ({type(error).__name__}). Where there is a "
            f"connection run `hf download {name}`, or copy the model here and give its folder"
        ) from error


def _checked(folder: Path, *, name: str) -> Path:
    if (folder / MODULES).is_file():
        return folder
    what = "a language model's folder" if (folder / "config.json").is_file() else "a folder"
    raise ModelError(
        f"{name}: {what} without {MODULES}, so it is no sentence-transformers model. Give one (for example "
        "all-MiniLM-L6-v2), or take the policy's own states: embedder `policy`"
    )


def _load(folder: Path, model: str | Path) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"{model}: to embed with it sentence-transformers is needed: pip install sentence-transformers ({error})"
        ) from error
    try:
        encoder = SentenceTransformer(str(folder), local_files_only=True)
    except Exception as error:  # whatever a broken file makes the library raise
        raise ModelError(
            f"{model}: sentence-transformers cannot load {folder} ({type(error).__name__}: {_first_line(error)}); "
            "download it again"
        ) from error
    return encoder.float().eval()


def _num_cut(encoder: Any, texts: Sequence[str]) -> int:
    """How many texts have more tokens than the model sees."""
    window, tokenizer = encoder.max_seq_length, getattr(encoder, "tokenizer", None)
    if window is None or tokenizer is None:
        return 0
    # No token is shorter than a byte, but for the two that frame a text; a letter of Korean may be three.
    long = [text for text in texts if len(text.encode()) + 8 > window]
    if not long:
        return 0
    tokens = tokenizer(long, add_special_tokens=True, truncation=False, padding=False, verbose=False)["input_ids"]
    return sum(len(ids) > window for ids in tokens)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
