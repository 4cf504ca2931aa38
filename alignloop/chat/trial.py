"""A chat template is a program of somebody else's: it is tried in a process of its own before it runs in this one.

A template that loops without end, or multiplies its text until memory is full, is stopped there in seconds. And the
variables that it takes from whoever renders it are told from those it sets itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from alignloop.chat.reasoning import join_reasoning
from alignloop.chat.template_defaults import SWITCHES
from alignloop.errors import ModelError

if TYPE_CHECKING:
    import jinja2
    import jinja2.parser
    from jinja2 import nodes

CPU_SECONDS = 5
_MEMORY_BYTES = 1 << 30
_MAX_CHARACTERS = 1_000_000
"""Around dialogs of one word a turn."""
_WALL_SECONDS = 60
"""On a machine that is busy with other things."""
_TOO_LONG, _NO_MEMORY = 3, 4
_LONG_DIALOG = 32
"""Turns of each side: what doubles with every turn shows."""


def check_ends(jinja: str, *, name: str) -> None:
    """Try a template on a few dialogs, under limits of time and memory, with reasoning asked for and without.

    The kwargs of a recipe count where they stand at its head (`with_defaults`). What else is wrong with it shows when
    it is rendered. `name` is for the error.

    Raises:
        ModelError: it does not come to an end, or writes texts without measure.
    """
    try:
        reason = _tried(jinja)
    except UnicodeEncodeError as error:
        raise ModelError(f"{name}: the chat template is no text: character {error.start + 1} is half a pair") from None
    if reason is not None:
        raise ModelError(f"{name}: the chat template {reason}. Look for a loop or a product in it that has no bound")


@lru_cache(maxsize=64)
def _tried(jinja: str) -> str | None:
    """What is wrong with a template; None where all is well."""
    program = [sys.executable, "-m", "alignloop.chat.trial", str(CPU_SECONDS)]
    try:
        code = subprocess.run(
            program, input=jinja.encode(), capture_output=True, timeout=_WALL_SECONDS, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return f"did not come to an end within {_WALL_SECONDS} s"
    if code == _TOO_LONG:
        return f"writes more than {_MAX_CHARACTERS:,} characters around a dialog of a few words"
    if code == _NO_MEMORY:
        return f"fills {_MEMORY_BYTES >> 30} GiB of memory with a dialog of a few words"
    if code < 0:
        return f"did not come to an end within {CPU_SECONDS} s"
    return None


def template_environment() -> jinja2.Environment:
    """As transformers makes it for chat templates."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` around what an assistant wrote; here it is its content."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: str(form)}
    return environment


def _tojson(value: Any, **options: Any) -> str:
    return json.dumps(value, **({"ensure_ascii": False} | options))


def _dialogs() -> list[list[dict[str, str]]]:
    system, user, assistant = ({"role": role, "content": "word"} for role in ("system", "user", "assistant"))
    thought = assistant | dict.fromkeys(("reasoning_content", "thinking", "reasoning"), "word")
    tagged = assistant | {"content": join_reasoning("word", "word")}
    answered = [[user, answer] for answer in (assistant, thought, tagged)]
    return [[user], [system, user], *answered, [user, thought] * _LONG_DIALOG]


def _renderings() -> Iterator[dict[str, Any]]:
    """What the template is rendered with here: the switches, too, which a recipe may set and which are tried for it."""
    switched = [{key: value} for key in SWITCHES for value in (True, False)]
    for kwargs in ({}, *switched):
        for prompt in (False, True):
            for dialog in _dialogs():
                yield {"messages": dialog, "add_generation_prompt": prompt, **kwargs}


def _try(jinja: str, cpu_seconds: int) -> int:
    """Runs in the child: the code it exits with."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    try:
        template = template_environment().from_string(jinja)
        for rendering in _renderings():
            try:
                text = template.render(tools=None, bos_token="", eos_token="", **rendering)
            except MemoryError:
                return _NO_MEMORY
            except Exception:
                continue
            if len(text) > _MAX_CHARACTERS:
                return _TOO_LONG
    except MemoryError:
        return _NO_MEMORY
    except Exception:  # likewise: a syntax error
        return 0
    return 0


def names_read(jinja: str) -> frozenset[str]:
    """The variables that a template reads before anything in it sets them.

    jinja2's `find_undeclared_variables` counts a name that is set in both branches of an `if`, too: what Qwen 3 does
    with `content`. So its names are held against the order in which the template reads and sets them.

    Raises:
        ModelError: it is no Jinja template.
    """
    from jinja2 import TemplateError, meta

    try:
        template = template_environment().parse(jinja)
        undeclared = meta.find_undeclared_variables(template)
    except TemplateError as error:
        raise ModelError(f"the chat template cannot be read: {error}") from None
    return frozenset(undeclared) & _Reads().of(template)


class _Reads:
    """Goes through a template in the order in which it runs.

    A name that only one branch sets is taken for the template's own behind the `if`, too. Attributes of a namespace
    are no names: a recipe gives texts and numbers.
    """

    def __init__(self) -> None:
        self._free: set[str] = set()
        self._macros: list[tuple[nodes.Macro | nodes.CallBlock, set[str]]] = []

    def of(self, template: nodes.Template) -> set[str]:
        self._all(template.body, set())
        # A macro runs where it is called: what is set behind its definition is set by then.
        while self._macros:
            macro, own = self._macros.pop()
            inner = own | {"caller", "varargs", "kwargs"}
            self._all([*macro.args, *macro.body], inner)
        return self._free

    def _all(self, found: Sequence[nodes.Node], own: set[str]) -> set[str]:
        for node in found:
            self._visit(node, own)
        return own

    def _visit(self, node: nodes.Node, own: set[str]) -> None:
        """`own`: what the template has set so far; what the node sets is added."""
        from jinja2 import nodes

        if isinstance(node, nodes.Name):
            if node.ctx == "load" and node.name not in own:
                self._free.add(node.name)
            elif node.ctx != "load":
                own.add(node.name)
        elif isinstance(node, nodes.Assign):
            self._all([node.node, node.target], own)
        elif isinstance(node, nodes.AssignBlock):
            self._all([*node.body, *([node.filter] if node.filter else []), node.target], own)
        elif isinstance(node, nodes.If):
            self._visit(node.test, own)
            branches: list[Sequence[nodes.Node]] = [node.body, *([other] for other in node.elif_), node.else_]
            own.update(*[self._all(branch, set(own)) for branch in branches])
        elif isinstance(node, nodes.For):
            self._visit(node.iter, own)
            self._all(node.else_, set(own))
            inner = self._all([node.target], own | {"loop"})
            self._all([*([node.test] if node.test else []), *node.body], inner)
        elif isinstance(node, nodes.With):
            self._all(node.values, own)
            self._all([*node.targets, *node.body], set(own))
        elif isinstance(node, nodes.Macro | nodes.CallBlock):
            self._all(node.defaults, own)
            self._macros.append((node, own))
            if isinstance(node, nodes.Macro):
                own.add(node.name)
            else:
                self._visit(node.call, own)
        else:
            self._all(list(node.iter_child_nodes()), own)


if __name__ == "__main__":
    sys.exit(_try(sys.stdin.read(), int(sys.argv[1])))
