"""`compare-sampling`: what A and B are, the sampling and scoring that recipes need, and what is written.

A, B ─► scored file, or recipe ─► <dir>/a, <dir>/b: sample, score ─► sides ─► SamplingComparison ─► DIR
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from alignloop.alone.model import policy_folder, reward_model_folders
from alignloop.alone.sample import Sampling, sampling_of, scoring_of
from alignloop.artifacts import write_text
from alignloop.comparison.compare import Side, compare, read_side
from alignloop.comparison.printed import comparison_page
from alignloop.comparison.result import SamplingComparison
from alignloop.engines.open import temporary_folder
from alignloop.errors import UserError
from alignloop.progress import Progress
from alignloop.run_dir.layout import locked
from alignloop.stages import score
from alignloop.stages.reward_models import check_members

RECIPE_SUFFIXES = (".yaml", ".yml")
ROW_SUFFIXES = (".jsonl", ".json")
JSON_FILE, PAGE_FILE = "comparison.json", "comparison.html"
OWN_ENTRIES = {JSON_FILE, PAGE_FILE, "a", "b", "run.lock"}


class SideSource(NamedTuple):
    """One side as the user names it: a recipe's file or name with its overrides, or a file of scored candidates."""

    source: str
    overrides: tuple[str, ...] = ()

    @property
    def is_recipe(self) -> bool:
        """By its ending; without a telling one, what is no file is a recipe's name."""
        path = Path(self.source).expanduser()
        if path.suffix in (*RECIPE_SUFFIXES, *ROW_SUFFIXES):
            return path.suffix in RECIPE_SUFFIXES
        return not path.is_file()

    @property
    def name(self) -> str:
        return ", ".join([self.source, *self.overrides])


def compare_sampling(
    a: SideSource,
    b: SideSource,
    *,
    progress: Progress,
    policy: str | None = None,
    reward_model: str | None = None,
    prompts: str | None = None,
    seed: int | None = None,
    out: Path | None = None,
) -> SamplingComparison:
    """Compare two ways to sample; recipes are sampled and scored first.

    Args:
        policy, reward_model, prompts: what recipes are sampled with and scored by.
        seed: the run's seed of both; None: each recipe's own.
        out: folder for comparison.json, the page, and what recipes sampled, which a second call takes over; None:
            nothing is kept.

    Raises:
        UserError: bad input, found before anything is sampled where it can be.
        EngineError: the engine died too often.
    """
    sources = {"a": a, "b": b}
    models = {"--policy": policy, "--reward-model": reward_model, "--prompts": prompts}
    _check_options(sources, models, seed=seed)
    out = None if out is None else _checked_folder(out)
    recipes: dict[str, Sampling] = {}
    if policy is not None and reward_model is not None and prompts is not None:
        policy_dir, scorers = policy_folder(policy), reward_model_folders(reward_model)
        seeds = () if seed is None else (f"seed={seed}",)
        recipes = {
            letter: sampling_of(policy_dir, prompts, one.source, [*one.overrides, *seeds])
            for letter, one in sources.items()
            if one.is_recipe
        }
        _check_scoring(list(recipes.values()), num_models=len(scorers))
    sides = {
        letter: read_side(Path(one.source).expanduser(), name=one.name)
        for letter, one in sources.items()
        if not one.is_recipe
    }
    with _working_folder(out) as folder:
        for letter, sampling in recipes.items():
            progress.say(f"{letter.upper()}  {sources[letter].name}")
            sides[letter] = _made(sampling, scorers, sources[letter].name, folder / letter, progress=progress)
        found = compare(sides["a"], sides["b"])
        if out is not None:
            write_text(out / JSON_FILE, found.model_dump_json(indent=1) + "\n")
            write_text(out / PAGE_FILE, comparison_page(found))
    return found


def _check_options(
    sources: Mapping[str, SideSource], models: Mapping[str, str | None], *, seed: int | None
) -> None:  # fmt: skip
    """Raises UserError that names every option that is missing, or every one of no use."""
    recipes = [one.source for one in sources.values() if one.is_recipe]
    missing = [option for option, value in models.items() if value is None]
    if recipes and missing:
        raise UserError(
            f"{' and '.join(dict.fromkeys(recipes))}: a recipe is sampled and scored here, which takes "
            f"{', '.join(missing)}; a file of scored candidates (.jsonl) takes none of them"
        )
    unused = [option for option, value in {**models, "--seed": seed}.items() if value is not None]
    if not recipes and unused:
        raise UserError(
            f"{', '.join(unused)}: A and B are files of scored candidates, nothing is sampled: leave it out"
        )
    for letter, one in sources.items():
        if one.overrides and not one.is_recipe:
            raise UserError(f"--set-{letter}: {one.source} is a file of scored candidates: only a recipe has settings")


def _check_scoring(sides: Sequence[Sampling], *, num_models: int) -> None:
    """Two recipes must score alike: else their rewards differ for another reason than the sampling."""
    recipes = [side.recipe for side in sides]
    if any(recipe.score != recipes[0].score for recipe in recipes):
        raise UserError(
            "A and B have different `score` sections: their rewards would differ whatever is sampled. Make them the "
            "same, for example with --set-b"
        )
    check_members(recipes[0].score, num_models=num_models)
    for entry in score.unique(recipes[0].score.reward_functions):
        for side in sides:  # what is wrong with it is found before the engine starts
            score.check_function(entry.function, side.prompts)


def _made(sampling: Sampling, reward_models: Sequence[Path], name: str, folder: Path, *, progress: Progress) -> Side:
    """Sample and score a recipe in `folder`; what lies there, made from the same things, is taken over."""
    recipe = sampling.recipe
    folder.mkdir(parents=True, exist_ok=True)
    sampled = sampling.stage(folder).run(folder, progress)
    scored = scoring_of(recipe, sampled.candidates, reward_models).run(folder, progress)
    dropped = {"could not be read": len(sampling.rejected), "left no room for a completion": sampled.counts["dropped"]}
    return read_side(
        scored.candidates.path,
        name=name,
        settings={"engine": recipe.engine.model_dump(mode="json"), "sample": recipe.sample.model_dump(mode="json")},
        notes=tuple(f"{count} prompts {why}" for why, count in dropped.items() if count),
    )


def _checked_folder(out: Path) -> Path:
    """`out` as a folder that is new, empty, or an earlier comparison's."""
    out = out.expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: this is a file; name a folder")
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in OWN_ENTRIES) if out.is_dir() else []
    if others:
        raise UserError(f"--out {out}: holds other things ({', '.join(others[:3])}); name a folder of its own")
    return out


@contextmanager
def _working_folder(out: Path | None) -> Iterator[Path]:
    if out is None:
        with temporary_folder() as folder:
            yield folder
    else:
        with locked(out):
            yield out
