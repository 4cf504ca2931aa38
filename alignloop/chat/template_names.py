"""The variables that a chat template takes from whoever renders it, told from those it sets itself.

jinja2's `find_undeclared_variables` counts a name that is set in both branches of an `if`, too: what Qwen 3 does with
`content`. So its names are held against the order in which the template reads and sets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignloop.chat.trial import template_environment
from alignloop.errors import ModelError

if TYPE_CHECKING:
    from jinja2 import nodes


def names_read(jinja: str) -> frozenset[str]:
    """The variables that a template reads before anything in it sets them.

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
        """Names that are read where nothing has set them."""
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
