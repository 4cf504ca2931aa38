"""The rules of the project that no single package can check: import boundaries, packaging, what may stand in a file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "alignloop"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

HEAVY = {"torch", "transformers", "vllm", "lm_eval", "trl", "peft", "accelerate", "datasets", "sklearn"}
HEAVY_ROOMS = {"engines", "training", "evaluation", "objectives", "packing"}
ENGINE_ONLY = {"vllm", "ray"}

ORDER = [
    {"environment", "errors", "progress", "records", "streams", "temporary", "terminal"},
    {"artifacts"},
    {"config"},
    {"chat", "objectives"},
    {"data", "engines", "packing", "sampling"},
    {"evaluation", "judging", "run_dir"},
    {"rewards", "training"},
    {"quickstart"},
    {"pruning"},
    {"stages"},
    {"report"},
    {"loop"},
    {"look"},
    {"alone"},
    {"comparison"},
    {"__init__", "__main__", "cli"},
]
"""A package imports only from lines above its own; the modules of the first line, and of the last, each other too."""
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(node: ast.AST) -> list[str]:
    """Dotted names an import statement brings in; empty for any other statement."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        return inner if node.module == "alignloop" else [node.module]
    return []


def imports_in(tree: ast.AST, *, eager: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of the imports that run: with `eager` when the module is imported, else at any time."""
    for node in ast.iter_child_nodes(tree):
        if eager and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        for name in imported_names(node):
            yield node.lineno, name  # type: ignore[attr-defined]
        yield from imports_in(node, eager=eager)


def all_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, those inside functions and for type checkers too."""
    for node in ast.walk(parsed(path)):
        for name in imported_names(node):
            yield node.lineno, name  # type: ignore[attr-defined]


def run_python(program: str, *, cwd: Path = ROOT, options: tuple[str, ...] = ()) -> str:
    """Output of a Python program, which must succeed and must not write to stderr."""
    done = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def project_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_command_line_config_data_and_stages_load_without_heavy_libraries() -> None:
    light = [f"alignloop{name}" for name in ("", ".cli.app", ".config", ".records", ".quickstart.annotator")]
    for path in modules():
        if room_of(path) in ("data", "stages"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            light.append(name.removesuffix(".__init__"))
    program = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = sorted({HEAVY!r} & set(sys.modules))\n"
        "    if heavy: sys.exit(f'{name} imports {heavy}')\n"
    )
    run_python(program)


def test_help_answers_without_heavy_libraries() -> None:
    program = (
        "import sys\n"
        "from alignloop.cli.app import main\n"
        "sys.argv = ['alignloop', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        f"heavy = sorted(({HEAVY!r} | {{'numpy', 'pandas', 'pyarrow'}}) & set(sys.modules))\n"
        "if heavy: sys.exit(f'--help imports {heavy}')\n"
    )
    assert "plan" in run_python(program)


def test_heavy_libraries_are_imported_eagerly_in_their_rooms_only() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        if room_of(path) not in HEAVY_ROOMS
        for line, name in imports_in(parsed(path), eager=True)
        if name.split(".")[0] in HEAVY
    ]
    assert found == []


def test_engine_libraries_are_imported_in_engines_only() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        if room_of(path) != "engines"
        for line, name in all_imports(path)
        if name.split(".")[0] in ENGINE_ONLY
    ]
    assert found == []


def test_imports_point_one_way() -> None:
    unknown = {room_of(path) for path in modules()} - LEVEL.keys()
    assert not unknown, f"no place in ORDER for {sorted(unknown)}"
    against = []
    for path in modules():
        for line, name in all_imports(path):
            first, _, rest = name.partition(".")
            target = rest.split(".")[0] or "__init__"
            # A name of the package itself (`from alignloop import run`) is its __init__'s.
            own, other = LEVEL[room_of(path)], LEVEL.get(target, LEVEL["__init__"])
            same_line_goes = target == room_of(path) or own in (0, len(ORDER) - 1)
            if first == "alignloop" and (other > own or (other == own and not same_line_goes)):
                against.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert against == []


def test_packages_import_each_other_in_no_circle() -> None:
    assert circles(package_imports()) == set()


def test_circles_by_hand() -> None:
    graph = {"a": {"b", "c"}, "b": {"a", "d"}, "c": {"d"}, "d": {"c", "a"}}
    assert circles(graph) == {("a", "b"), ("a", "b", "d"), ("a", "c", "d"), ("c", "d")}
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == set()


def package_imports() -> dict[str, set[str]]:
    """Package or loose module -> those it imports, anywhere in its code."""
    known = {room_of(path) for path in modules()}
    graph: dict[str, set[str]] = {name: set() for name in known}
    for path in modules():
        for _, name in imports_in(parsed(path), eager=False):
            first, _, rest = name.partition(".")
            if first == "alignloop":
                target = rest.split(".")[0]
                graph[room_of(path)].add(target if target in known else "__init__")
    return {name: targets - {name} for name, targets in graph.items()}


def circles(graph: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """Every way round that comes back without meeting a node twice, each once: from its first node on."""
    found = set()
    ways = [(start,) for start in graph]
    while ways:
        way = ways.pop()
        if way[0] in graph[way[-1]]:
            found.add(way)
        # Nodes before the start in the alphabet are left to the ways that start at them.
        ways += [(*way, target) for target in graph[way[-1]] if target > way[0] and target not in way]
    return found


PURE = [
    "objectives",
    "sampling/best_of_k.py",
    "sampling/pairs.py",
    *(f"pruning/{name}.py" for name in ("benchmark_index", "text_units", "vectors")),
]
VERDICTS = [
    ("clean", "clean"),
    ("clean", "language_mismatch"),
    ("quality", "top_or_best_rated"),
    ("quality", "is_code"),
    ("difficulty", "difficulty_window"),
    ("near_duplicates", "near_duplicates"),
    ("semantic_dedup", "semantic_dedup"),
    ("decontaminate", "decontaminate"),
    ("mix", "mix_by_share"),
    ("mix", "mix_by_epochs"),
]
"""The rule of each pruning step, as (module, function)."""
IMPURE = {"config", "artifacts", "progress", "engines", "judging", "data"}
IMPURE_MODULES = {"alignloop.pruning.step", "alignloop.pruning.items", "alignloop.pruning.models"}
OF_A_RULE = {"Pruned", "drop", "pruned"}
"""A rule answers with these, which stand in `pruning/step.py`."""


def is_impure(name: str) -> bool:
    return name in {"logging", "pathlib", *IMPURE_MODULES} or (
        name.startswith("alignloop.") and name.split(".")[1] in IMPURE
    )


@pytest.mark.parametrize("folder_or_file", PURE)
def test_math_is_pure(folder_or_file: str) -> None:
    files = [path for path in modules() if (PACKAGE / folder_or_file) in (path, *path.parents)]
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in all_imports(path)
        if is_impure(name)
    ]
    assert found == []


@pytest.mark.parametrize(("module", "function"), VERDICTS)
def test_the_rule_of_a_pruning_step_takes_values_and_reads_nothing(module: str, function: str) -> None:
    """Neither it nor what it calls of its module names anything of a config, a file, a model or the screen."""
    tree = parsed(PACKAGE / "pruning" / f"{module}.py")
    impure = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and is_impure(str(node.module))
        for alias in node.names
    }
    assert impure, "the step below reads its config"
    of_module = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    queue, named = [function], set()
    for name in queue:
        used = {node.id for node in ast.walk(of_module[name]) if isinstance(node, ast.Name)}
        named |= used
        queue += [other for other in sorted(used & of_module.keys()) if other not in queue]
    assert named & (impure - OF_A_RULE | {"open"}) == set()


def test_functions_stay_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > 60
    ]
    assert long == []


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "common", "helpers", "misc"}
    assert [path for path in project_files() if path.suffix == ".py" and path.stem in drawers] == []


def test_no_file_names_this_machine_or_a_registry() -> None:
    machine = re.compile(r"(^|[\s\"'(=:\[])/(work|root|home|Users|farm)/")
    # Written with a class of one letter each, so that this file does not hold what it looks for.
    registry = re.compile(r"py[p]i\.|python[h]osted|download\.py[t]orch|npm[j]s")
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if machine.search(line) or registry.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def pins(name: str) -> dict[str, str]:
    """Canonical package name -> version of a pinned list."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in rows}


def test_pins_leave_out_what_text_models_do_not_need() -> None:
    assert not {"torchvision", "torchaudio", "torchcodec"} & (pins("cpu.txt").keys() | pins("dev.txt").keys())


def test_no_package_is_pinned_twice() -> None:
    assert not pins("cpu.txt").keys() & pins("dev.txt").keys()


def test_pins_satisfy_the_ranges() -> None:
    pinned = pins("cpu.txt") | pins("dev.txt")
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *extras["cpu"], *extras["dev"]]]
    unmet = [
        f"{requirement} but {pinned.get(canonicalize_name(requirement.name), 'nothing')} is pinned"
        for requirement in wanted
        if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"))
    ]
    assert unmet == []


NOT_IMPORTED = {
    "tensorboard": "torch.utils.tensorboard writes with it",
    "math-verify": "TRL's accuracy_reward reads and compares with it",
}
"""Declared all the same, each with its reason."""


def test_declared_dependencies_are_the_imported_libraries() -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    own = sys.stdlib_module_names | {"alignloop"} | ENGINE_ONLY
    tops = {name.split(".")[0] for path in modules() for _, name in all_imports(path)} - own
    distributions = packages_distributions()
    providers = {top: {canonicalize_name(name) for name in distributions.get(top, [])} for top in tops}
    assert sorted(top for top, names in providers.items() if not declared & names) == []
    assert declared - set().union(*providers.values()) == NOT_IMPORTED.keys()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run_python(f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})")
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_package_recipes_and_quickstart(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    own = {path.relative_to(ROOT).as_posix() for path in project_files() if PACKAGE in path.parents}
    recipes = {f"alignloop/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert {"alignloop/recipes/quickstart.yaml", "alignloop/quickstart/base/config.json"} <= own | recipes
    assert own | recipes <= held
    assert {name.split("/")[0] for name in held} == {"alignloop"}


def test_bundled_recipes_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    # `-S` leaves out .pth files, so that no editable installation answers in the wheel's place.
    found = run_python(
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {sysconfig.get_path('purelib')!r}]\n"
        "from alignloop.config import find_recipe, load_recipe\n"
        "load_recipe('quickstart')\n"
        "print(find_recipe('quickstart'))\n",
        cwd=tmp_path,
        options=("-S",),
    )
    assert Path(found.strip()) == tmp_path / "alignloop" / "recipes" / "quickstart.yaml"
