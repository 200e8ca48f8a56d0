"""Chat: messages -> ids, by the model file's own Jinja template.

A template is a stranger's program. It runs in Jinja's immutable sandbox, cut down to what chat templates need (below),
and every value that it makes is charged against a budget, so that neither time nor memory can run away. Why that is
enough: macros, includes, multiplication and lists of variables are refused, so values cannot hold each other and grow
only by `+`, `~`, slices, calls, filters and output, all of which are charged; a turn of a loop costs the text in it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from functools import wraps
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ..quant.errors import BadInput
from .tokenizer import Tokenizer

TEMPLATE_CHARS = 65536
CPU_SECONDS = 0.5
PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))  # Unicode 15, section 23.5
ARGUMENT_CHARS = 256  # str.strip(chars) and the like are quadratic

# What a template may use. The names are Jinja's (classes of jinja2.nodes, filters, tests) and Python's (methods).
# fmt: off
NODES = [
    "Template", "Output", "TemplateData", "If", "For", "Assign", "AssignBlock", "Break", "Continue", "Name", "NSRef",
    "Const", "List", "Tuple", "Dict", "Pair", "Keyword", "Getattr", "Getitem", "Slice", "Call", "Filter", "Test",
    "Compare", "Operand", "And", "Or", "Not", "Neg", "Add", "Sub", "Mod", "Concat", "CondExpr",
]
FILTERS = [
    "count", "d", "default", "first", "items", "last", "length", "lower", "upper",
]
TESTS = [
    "!=", "==", "boolean", "defined", "eq", "equalto", "even", "false", "in", "integer", "iterable", "mapping", "ne",
    "none", "number", "odd", "sequence", "string", "true", "undefined",
]
METHODS = [
    "endswith", "get", "items", "keys", "lower", "lstrip", "rstrip", "split", "startswith", "strip", "title", "upper",
    "values",
]
# fmt: on

Message = dict[str, Any]


def render(
    template: str | None,
    messages: list[Message],
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
) -> str:
    """The conversation as the template writes it. Messages as in Hugging Face's apply_chat_template: role, content.

    Raises BadInput: no template, a template that is wrong, refuses the messages, or wants more than its budget.
    """
    if not template:
        raise BadInput("the model file has no chat template: give the prompt without --chat")
    if len(template) > TEMPLATE_CHARS:
        raise BadInput(f"chat template: {len(template)} characters, more than {TEMPLATE_CHARS}")
    given: dict[str, Any] = {"messages": messages, "bos_token": bos_token, "eos_token": eos_token, "tools": None}
    env = _Sandbox(budget=2_000_000 + 32 * len(str(messages)))
    try:
        tree = env.parse(template)
        code = env.compile(_Meter().visit(tree))
        program = jinja2.Template.from_code(env, code, env.globals)
        return program.render(**given, add_generation_prompt=add_generation_prompt)
    except BadInput:
        raise
    except Exception as e:
        # Whatever a stranger's program may raise, SyntaxError and RecursionError of its compilation included.
        line = f", line {e.lineno}" if isinstance(e, jinja2.TemplateSyntaxError) else ""
        what = (
            "nested too deeply" if isinstance(e, RecursionError) else " ".join(str(e).split())[:200] or type(e).__name__
        )
        raise BadInput(f"chat template{line}: {what}") from None


def chat_ids(
    tokenizer: Tokenizer, template: str | None, messages: list[Message], add_generation_prompt: bool = True
) -> list[int]:
    """Ids of a conversation. Control tokens come from the template only: <|im_end|> in a message is text.

    Equal to Hugging Face's apply_chat_template where no message holds a control token (there it counts as one).
    How: a mark that occurs nowhere else breaks such text; the rendered whole is cut at the control tokens left in it,
    and the mark taken out again. Raises BadInput as `render` does.
    """
    everything = json.dumps(messages, ensure_ascii=False) + (template or "")
    mark = next((c for c in map(chr, PRIVATE_USE) if c not in everything), None)
    if mark is None:
        raise BadInput("the messages hold every private-use character; one is needed to tell control tokens from text")

    def spoil(text: str) -> str:
        parts = (
            tokenizer.name(p)[0] + mark + tokenizer.name(p)[1:] if isinstance(p, int) else p
            for p in tokenizer.split(text)
        )
        return "".join(parts)

    text = render(
        template,
        _map_text(spoil, messages),
        add_generation_prompt,
        bos_token="" if tokenizer.bos_id is None else tokenizer.name(tokenizer.bos_id),
        eos_token=tokenizer.name(tokenizer.eos_ids[0]) if tokenizer.eos_ids else "",
    )
    ids: list[int] = []
    for part in tokenizer.split(text):
        ids += [part] if isinstance(part, int) else tokenizer.encode(part.replace(mark, ""))
    return ids


def _map_text(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(change, v) for v in value]
    return {k: _map_text(change, v) for k, v in value.items()} if isinstance(value, dict) else value


class _Undefined(jinja2.Undefined):
    __str__ = jinja2.StrictUndefined.__str__  # may be asked about, as in Hugging Face, but not printed


class _Namespace(Namespace):
    def __repr__(self) -> str:  # Jinja's writes all that is inside, which may be namespaces in namespaces
        return "namespace()"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Hugging Face's settings; only the filters, tests, functions and methods above; everything made is charged."""

    intercepted_binops = frozenset(["+", "%"])

    def __init__(self, budget: int):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            undefined=_Undefined,
            finalize=self.text,
            cache_size=0,
        )
        self._budget, self._deadline = budget, time.thread_time() + CPU_SECONDS
        functions = {
            "range": safe_range,
            "raise_exception": _raise,
            "strftime_now": _strftime_now,
            "namespace": _Namespace,
        }
        self._functions = [*functions.values(), self.charge, self.glue, self.cut]
        self.globals = dict(functions)
        filters = {name: DEFAULT_FILTERS[name] for name in FILTERS} | {"trim": _trim, "tojson": _tojson}
        self.filters = {name: self._charged(f) for name, f in filters.items()} | {
            "join": self.join,
            "string": self.text,
        }
        self.tests = {name: DEFAULT_TESTS[name] for name in TESTS}

    def charge(self, size: int) -> None:
        self._budget -= size + 1
        if self._budget < 0:
            raise BadInput("chat template: it does or writes far too much for these messages")
        if time.thread_time() > self._deadline:
            raise BadInput(f"chat template: it takes longer than {CPU_SECONDS:g} s")

    def text(self, value: Any) -> str:
        """What `{{ value }}` writes."""
        if not isinstance(value, str | int | float | None | jinja2.Undefined):
            raise BadInput(f"chat template: it prints a {type(value).__name__}, which only tojson may")
        text = str(value)
        self.charge(len(text))
        return text

    def glue(self, *values: Any) -> str:
        return "".join(map(self.text, values))

    def join(self, values: Any, between: str = "") -> str:
        texts = [self.text(v) for v in values]
        self.charge(len(between) * len(texts))
        return between.join(texts)

    def cut(self, value: Any, *bounds: int | None) -> Any:
        return value[slice(*bounds)]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.charge(len(left) + len(right))
        elif any(isinstance(x, jinja2.Undefined) for x in (left, right)):
            pass  # it says itself what is undefined
        elif not all(isinstance(x, int | float) for x in (left, right)):
            raise BadInput(f"chat template: {type(left).__name__} {operator} {type(right).__name__} is not supported")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (Jinja's own signature)
        self, obj = __self, __obj
        if isinstance(obj, BuiltinMethodType) and isinstance(obj.__self__, str | dict) and obj.__name__ in METHODS:
            if any(isinstance(a, str) and len(a) > ARGUMENT_CHARS for a in args):
                raise BadInput(f"chat template: {obj.__name__}() with more than {ARGUMENT_CHARS} characters")
            self.charge(len(obj.__self__))
        elif obj not in self._functions:
            name = getattr(obj, "__name__", None) or getattr(obj, "_undefined_name", None) or type(obj).__name__
            raise BadInput(f"chat template: calling {name!r} is not supported")
        return self._charged(super().call)(__context, obj, *args, **kwargs)

    def _charged(self, f: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(f)  # the marks that Jinja's pass_context and the like leave on a filter
        def charged(*args: Any, **kwargs: Any) -> Any:
            result = f(*args, **kwargs)
            self.charge(len(result) if isinstance(result, str | list | dict | range) else 0)
            return result

        return charged


class _Meter(NodeTransformer):
    """Refuses what is not in NODES and puts the charges where Jinja has no hook: loops, slices and `~`."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        kind = type(node).__name__
        refused = kind not in NODES or (kind == "For" and node.recursive)  # type: ignore[attr-defined]
        if isinstance(node, nodes.List | nodes.Tuple | nodes.Dict) and getattr(node, "ctx", "load") == "load":
            refused = not all(isinstance(n, nodes.Literal | nodes.Pair | nodes.Neg) for n in node.find_all(nodes.Node))
            kind += " of variables"
        if refused:
            raise BadInput(f"chat template, line {node.lineno}: {kind} is not supported")
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (Jinja's name)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        turn = nodes.ExprStmt(_ours("charge", nodes.Const(text)))
        self.generic_visit(node)
        node.body.insert(0, turn)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        return _ours("glue", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        return _ours(
            "cut", node.node, *(b or nodes.Const(None) for b in (node.arg.start, node.arg.stop, node.arg.step))
        )


def _ours(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


def _trim(value: Any) -> str:
    return str(value).strip()


def _tojson(value: Any, indent: int | None = None) -> str:
    """Hugging Face's: no HTML escapes, no ASCII escapes."""
    if indent is not None and not 0 <= indent <= 16:
        raise BadInput(f"chat template: tojson(indent={indent})")
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > 100 or re.search("%[^A-Za-z%]", form):  # %2000000000d
        raise BadInput(f"chat template: strftime_now({form[:40]!r})")
    return time.strftime(form)
