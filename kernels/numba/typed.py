"""Python functions on int64 addresses as LLVM IR, with the types that their annotations say.

Numba would infer the types, and optimise and link each function once for every function that calls it: six
seconds for an update. Here all that one entry point calls becomes one module, which Numba optimises once.

What is understood: ``int``, ``float``, ``bool``; assignments, if, while True, for over range with a
positive step, return, break, expressions without comprehensions; ``min``, ``max``, ``np.isnan``; other typed
functions, and Numba's intrinsics. Anything else raises NotImplementedError, with the line.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .ir import DOUBLE, I1, I64, convert, materialise

Const = Any  # of a parameter: known at compile time, where the caller knows it
_RESULTS = {"int": (I64, types.int64), "float": (DOUBLE, types.float64), "bool": (I1, types.boolean)}
_NOTHING = (ir.VoidType(), types.void)
_PYTHON = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
}
_INTEGER = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.BitOr: "or_", ast.BitXor: "xor"}
_INTEGER[ast.BitAnd] = "and_"
_FLOAT = {ast.Add: "fadd", ast.Sub: "fsub", ast.Mult: "fmul", ast.Div: "fdiv"}
_COMPARE = {ast.Lt: ("<", operator.lt), ast.LtE: ("<=", operator.le), ast.Eq: ("==", operator.eq)}
_COMPARE |= {ast.Gt: (">", operator.gt), ast.GtE: (">=", operator.ge), ast.NotEq: ("!=", operator.ne)}


def typed(function: Callable[..., Any], bound: Sequence[Any] = ()) -> Any:
    """``function``, to be called by other typed functions, and by Numba's as an intrinsic.

    Args:
        function: module-level, with annotated parameters; ``Const`` ones are known at compile time.
        bound: values of its last parameters, which the intrinsic then does not have.
    """
    signature = inspect.signature(function)
    names = list(signature.parameters)[: len(signature.parameters) - len(bound)]

    def define(typing_context: Any, *arguments: Any) -> Any:
        result = _RESULTS.get(str(signature.return_annotation), _NOTHING)[1]

        def generate(context: Any, builder: Any, _: Any, values: Sequence[Any]) -> Any:
            known = [getattr(a, "literal_value", v) for a, v in zip(arguments, values, strict=True)]
            value = _call(context, builder, function, [*known, *bound])
            return context.get_dummy_value() if result is types.void else value

        return result(*arguments), generate

    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, positional) for name in ("typing_context", *names)]
    define.__name__ = define.__qualname__ = function.__name__
    define.__signature__ = inspect.Signature(parameters)
    made = intrinsic(prefer_literal=True)(define)
    made.py_func = function
    return made


@cache
def _definitions(file: str) -> dict[str, ast.FunctionDef]:
    module = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}


def _call(context: Any, builder: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Call ``function``, which becomes a part of the module unless it is one for these constants."""
    definition = _definitions(function.__code__.co_filename)[function.__name__]
    constants: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for parameter, value in zip(definition.args.args, arguments, strict=True):
        kind = ast.unparse(parameter.annotation) if parameter.annotation else ""
        if kind == "Const" and not isinstance(value, ir.Value):
            constants[parameter.arg] = value
        else:
            given[parameter.arg] = convert(builder, value, DOUBLE if kind == "float" else I64)
    known = "_".join(getattr(v, "__name__", str(v)) for v in constants.values())
    name = f"{function.__module__}.{function.__name__}.{known}"
    made = builder.module.globals.get(name)
    if made is None:
        result = _RESULTS.get(ast.unparse(definition.returns) if definition.returns else "", _NOTHING)[0]
        kind = ir.FunctionType(result, [value.type for value in given.values()])
        made = ir.Function(builder.module, kind, name)
        made.linkage = "internal"
        made.attributes.add("nounwind")
        _Body(context, made, definition, function.__globals__, constants, list(given))
    return builder.call(made, list(given.values()))


def _numba_type(value: Any) -> Any:
    if isinstance(value, ir.Value):
        return types.float64 if value.type == DOUBLE else types.int64
    return types.float64 if isinstance(value, float) else types.literal(value)


class _Body:
    """The body of one function. Names are memory of the function's own, which LLVM turns into registers."""

    def __init__(
        self,
        context: Any,
        function: Any,
        definition: ast.FunctionDef,
        names: dict[str, Any],
        constants: dict[str, Any],
        parameters: list[str],
    ) -> None:
        self.context, self.names, self.constants = context, names, constants
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.slots: dict[str, Any] = {}
        self.ends: list[Any] = []  # of the loops around
        names_ = [node for node in ast.walk(definition) if isinstance(node, ast.Name)]
        self.stored = Counter(node.id for node in names_ if isinstance(node.ctx, ast.Store))
        for name, value in zip(parameters, function.args, strict=True):
            self.stored[name] += 1
            self.assign(name, value)
        self.suite(definition.body)
        if not self.builder.block.is_terminated:
            nothing = function.function_type.return_type == ir.VoidType()
            self.builder.ret_void() if nothing else self.builder.unreachable()

    def suite(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            if self.builder.block.is_terminated:
                return
            self.handler(statement)(statement)

    def handler(self, node: ast.AST) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(self, f"on_{type(node).__name__.lower()}", None)
        if found is None:
            raise NotImplementedError(f"line {getattr(node, 'lineno', '?')}: {ast.unparse(node)}")
        return found

    def value(self, node: ast.expr) -> Any:
        """An ``ir.Value``, or a Python object that is known here."""
        return self.handler(node)(node)

    def test(self, node: ast.expr) -> Any:
        """A truth value: a bool, or an ``ir.Value`` of one bit."""
        value = self.value(node)
        if not isinstance(value, ir.Value):
            return bool(value)
        return value if value.type == I1 else self.builder.icmp_signed("!=", value, I64(0))

    # statements

    def assign(self, name: str, value: Any) -> None:
        if self.stored[name] == 1 and not isinstance(value, ir.Value):
            self.constants[name] = value
            return
        value = materialise(self.builder, value)
        if name not in self.slots:
            with self.builder.goto_entry_block():
                self.slots[name] = self.builder.alloca(value.type, name=name), value.type
        slot, kind = self.slots[name]
        self.builder.store(convert(self.builder, value, kind), slot)

    def on_assign(self, node: ast.Assign) -> None:
        (target,) = node.targets
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            values = [self.value(each) for each in node.value.elts]
            for each, value in zip(target.elts, values, strict=True):
                self.assign(ast.unparse(each), value)
        else:
            self.assign(ast.unparse(target), self.value(node.value))

    def on_augassign(self, node: ast.AugAssign) -> None:
        name = ast.unparse(node.target)
        self.stored[name] += 1  # what is added to is no constant
        self.assign(name, self.operate(type(node.op), self.named(name), self.value(node.value)))

    def on_expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.value(node.value)

    def on_return(self, node: ast.Return) -> None:
        if node.value is None:
            self.builder.ret_void()
            return
        result = self.builder.function.function_type.return_type
        self.builder.ret(convert(self.builder, self.value(node.value), result))

    def on_break(self, node: ast.Break) -> None:
        self.builder.branch(self.ends[-1])

    def on_if(self, node: ast.If) -> None:
        test = self.test(node.test)
        if not isinstance(test, ir.Value):
            self.suite(node.body if test else node.orelse)
            return
        yes, no, after = (self.builder.append_basic_block(name) for name in ("yes", "no", "after"))
        self.builder.cbranch(test, yes, no)
        for block, statements in ((yes, node.body), (no, node.orelse)):
            self.builder.position_at_end(block)
            self.suite(statements)
            if not self.builder.block.is_terminated:
                self.builder.branch(after)
        self.builder.position_at_end(after)

    def on_while(self, node: ast.While) -> None:
        head, inside, after = (self.builder.append_basic_block(name) for name in ("head", "inside", "after"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch(materialise(self.builder, self.test(node.test)), inside, after)
        self.builder.position_at_end(inside)
        self.loop(node.body, head, after)

    def on_for(self, node: ast.For) -> None:
        bounds = node.iter
        if not isinstance(bounds, ast.Call) or ast.unparse(bounds.func) != "range":
            raise NotImplementedError(f"line {node.lineno}: for over {ast.unparse(bounds)}, want range(...)")
        values = [self.value(each) for each in bounds.args]
        start, stop, step = [0, *values, 1] if len(values) == 1 else [*values, 1][:3]
        start, stop, step = (convert(self.builder, bound, I64) for bound in (start, stop, step))
        name = ast.unparse(node.target)
        self.stored[name] += 1
        before = self.builder.block
        blocks = ("head", "inside", "step", "after")
        head, inside, step_, after = (self.builder.append_basic_block(name) for name in blocks)
        self.builder.branch(head)
        self.builder.position_at_end(head)
        count = self.builder.phi(I64)
        count.add_incoming(start, before)
        self.builder.cbranch(self.builder.icmp_signed("<", count, stop), inside, after)
        self.builder.position_at_end(step_)
        count.add_incoming(self.builder.add(count, step, flags=("nsw",)), step_)
        self.builder.branch(head)
        self.builder.position_at_end(inside)
        self.assign(name, count)
        self.loop(node.body, step_, after)

    def loop(self, body: Sequence[ast.stmt], again: Any, after: Any) -> None:
        self.ends.append(after)
        self.suite(body)
        self.ends.pop()
        if not self.builder.block.is_terminated:
            self.builder.branch(again)
        self.builder.position_at_end(after)

    # expressions

    def on_constant(self, node: ast.Constant) -> Any:
        return node.value

    def on_name(self, node: ast.Name) -> Any:
        return self.named(node.id)

    def named(self, name: str) -> Any:
        if name in self.slots:
            return self.builder.load(self.slots[name][0])
        if name in self.constants:
            return self.constants[name]
        return self.names[name] if name in self.names else getattr(builtins, name)

    def on_attribute(self, node: ast.Attribute) -> Any:
        return getattr(self.value(node.value), node.attr)

    def on_subscript(self, node: ast.Subscript) -> Any:
        """An entry of a tuple that is known here."""
        entries, index = self.value(node.value), self.value(node.slice)
        if not isinstance(index, ir.Value):
            return entries[index]
        chosen = materialise(self.builder, entries[0])
        for k, entry in enumerate(entries[1:], 1):
            here = self.builder.icmp_signed("==", index, I64(k))
            chosen = self.builder.select(here, materialise(self.builder, entry), chosen)
        return chosen

    def on_unaryop(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            value = self.test(node.operand)
            return self.builder.not_(value) if isinstance(value, ir.Value) else not value
        if not isinstance(node.op, ast.USub):
            raise NotImplementedError(f"line {node.lineno}: {ast.unparse(node)}")
        return self.operate(ast.Sub, 0, self.value(node.operand))

    def on_binop(self, node: ast.BinOp) -> Any:
        return self.operate(type(node.op), self.value(node.left), self.value(node.right))

    def operate(self, kind: Any, left: Any, right: Any) -> Any:
        if not isinstance(left, ir.Value) and not isinstance(right, ir.Value):
            return _PYTHON[kind](left, right)
        left, right = materialise(self.builder, left), materialise(self.builder, right)
        if kind is ast.Div or DOUBLE in (left.type, right.type):
            pair = [convert(self.builder, value, DOUBLE) for value in (left, right)]
            return getattr(self.builder, _FLOAT[kind])(*pair)
        if left.type != right.type:
            left, right = (convert(self.builder, value, I64) for value in (left, right))
        if kind in (ast.FloorDiv, ast.Mod):
            return self.divide(kind, left, right)
        return getattr(self.builder, _INTEGER[kind])(left, right)

    def divide(self, kind: Any, left: Any, right: Any) -> Any:
        """Towards minus infinity, as Python does."""
        build = self.builder
        rest = build.srem(left, right)
        other = build.icmp_signed("<", build.xor(rest, right), I64(0))
        below = build.and_(build.icmp_signed("!=", rest, I64(0)), other)
        if kind is ast.Mod:
            return build.select(below, build.add(rest, right), rest)
        quotient = build.sdiv(left, right)
        return build.select(below, build.sub(quotient, I64(1)), quotient)

    def on_compare(self, node: ast.Compare) -> Any:
        (operation,), (right_,) = node.ops, node.comparators
        symbol, compare = _COMPARE[type(operation)]
        left, right = self.value(node.left), self.value(right_)
        if not isinstance(left, ir.Value) and not isinstance(right, ir.Value):
            return compare(left, right)
        left, right = materialise(self.builder, left), materialise(self.builder, right)
        if DOUBLE in (left.type, right.type):
            pair = [convert(self.builder, value, DOUBLE) for value in (left, right)]
            emit = self.builder.fcmp_unordered if symbol == "!=" else self.builder.fcmp_ordered
            return emit(symbol, *pair)
        return self.builder.icmp_signed(
            symbol, *(convert(self.builder, value, I64) for value in (left, right))
        )

    def on_boolop(self, node: ast.BoolOp) -> Any:
        """Truth values; what follows is not evaluated where what comes first decides."""
        first, *rest = node.values
        if not rest:
            return self.test(first)
        others = ast.BoolOp(node.op, rest)
        decided = isinstance(node.op, ast.Or)
        return self.either(
            self.test(first),
            (lambda: decided) if decided else (lambda: self.on_boolop(others)),
            (lambda: self.on_boolop(others)) if decided else (lambda: decided),
        )

    def on_ifexp(self, node: ast.IfExp) -> Any:
        test = self.test(node.test)
        return self.either(test, lambda: self.value(node.body), lambda: self.value(node.orelse))

    def either(self, test: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        if not isinstance(test, ir.Value):
            return yes() if test else no()
        blocks = [self.builder.append_basic_block(name) for name in ("yes", "no")]
        after = self.builder.append_basic_block("after")
        self.builder.cbranch(test, *blocks)
        found = []
        for block, emit in zip(blocks, (yes, no), strict=True):
            self.builder.position_at_end(block)
            value = materialise(self.builder, emit())
            found.append((value, self.builder.block))
            self.builder.branch(after)
        self.builder.position_at_end(after)
        result = self.builder.phi(found[0][0].type)
        for value, block in found:
            result.add_incoming(value, block)
        return result

    def on_call(self, node: ast.Call) -> Any:
        function = self.value(node.func)
        arguments = [self.value(each) for each in node.args]
        if function in (min, max):
            if not any(isinstance(value, ir.Value) for value in arguments):
                return function(*arguments)
            left, right = (convert(self.builder, value, I64) for value in arguments)
            less = self.builder.icmp_signed("<" if function is min else ">", left, right)
            return self.builder.select(less, left, right)
        if function is np.isnan:
            (value,) = arguments
            return self.builder.fcmp_unordered("uno", value, value)
        if hasattr(function, "py_func"):
            return _call(self.context, self.builder, function.py_func, arguments)
        if not hasattr(function, "_defn"):
            raise NotImplementedError(f"line {node.lineno}: {ast.unparse(node)}")
        kinds = [_numba_type(value) for value in arguments]
        signature, generate = function._defn(None, *kinds)
        values = [
            convert(self.builder, value, DOUBLE if kind == types.float64 else I64)
            for kind, value in zip(kinds, arguments, strict=True)
        ]
        return generate(self.context, self.builder, signature, values)
