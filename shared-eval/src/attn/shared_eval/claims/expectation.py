"""Expectations: inequalities over named figures, such as ``hedgehog <= 0.5 * t2r``.

An expectation is one comparison (``<=``, ``<``, ``>=``, ``>``) of two expressions made of numbers, names of figures,
``+ - * /``, parentheses, and the functions ``min``, ``max`` and ``abs``. Anything else is refused; nothing is evaluated
by Python itself.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["ExpectationError", "Inequality", "parse"]

_COMPARISONS: dict[type[ast.cmpop], str] = {ast.LtE: "<=", ast.Lt: "<", ast.GtE: ">=", ast.Gt: ">"}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SIGNS: dict[type[ast.unaryop], Callable[[float], float]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max, "abs": abs}
_LONGEST = 300


class ExpectationError(ValueError):
    """A text that is no inequality over figures, or a figure that does not exist."""


@dataclass(frozen=True)
class Inequality:
    """A parsed expectation.

    Attributes:
        text: the inequality as it was written.
        figures: the names of the figures that it reads, in the order of their first appearance.
        strict: whether a margin of zero is too little (``<`` and ``>``).
    """

    text: str
    figures: tuple[str, ...]
    strict: bool
    _smaller: ast.expr
    _larger: ast.expr

    def margin(self, figures: Mapping[str, float]) -> float:
        """By how much the inequality holds: the side that should be larger minus the other, negative if it does not.

        A NaN figure or a division by zero gives NaN, which satisfies nothing.

        Raises:
            ExpectationError: if a figure does not exist; the message lists those that do.
        """
        for name in self.figures:
            if name not in figures:
                have = ", ".join(sorted(figures)) or "none"
                raise ExpectationError(f"unknown figure {name!r} in {self.text!r}; the figures are: {have}")
        if any(math.isnan(figures[name]) for name in self.figures):
            return math.nan
        try:
            return _evaluate(self._larger, figures) - _evaluate(self._smaller, figures)
        except ZeroDivisionError:
            return math.nan

    def met(self, margin: float) -> bool:
        """Whether a margin satisfies the inequality; NaN never does."""
        return margin > 0 if self.strict else margin >= 0


def parse(text: str) -> Inequality:
    """The inequality that a text states.

    Raises:
        ExpectationError: if the text is not one comparison of two expressions of the grammar above.
    """
    if len(text) > _LONGEST:
        raise ExpectationError(f"an expectation must have at most {_LONGEST} characters, got {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError, Warning) as error:
        raise ExpectationError(f"cannot parse {text!r}: {getattr(error, 'msg', error)}") from None
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or type(tree.ops[0]) not in _COMPARISONS:
        raise ExpectationError(f"an expectation must be one comparison with <=, <, >= or >, got {text!r}")
    left, right = tree.left, tree.comparators[0]
    names = dict.fromkeys([*_names(left, text), *_names(right, text)])
    if not names:
        raise ExpectationError(f"an expectation must name a figure, got {text!r}")
    comparison = _COMPARISONS[type(tree.ops[0])]
    smaller, larger = (left, right) if comparison.startswith("<") else (right, left)
    return Inequality(text.strip(), tuple(names), len(comparison) == 1, smaller, larger)


def _names(node: ast.expr, text: str) -> list[str]:
    """The figures of an expression, from left to right; refuses every node that is not of the grammar."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and math.isfinite(value):
            return []
        case ast.Name(id=name) if name not in _FUNCTIONS:
            return [name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _names(left, text) + _names(right, text)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
            return _names(operand, text)
        case ast.Call(func=ast.Name(id="abs"), args=[argument], keywords=[]):
            return _names(argument, text)
        case ast.Call(func=ast.Name(id="min" | "max"), args=[_, _, *_] as arguments, keywords=[]):
            return [name for argument in arguments for name in _names(argument, text)]
    raise ExpectationError(
        f"{ast.unparse(node)!r} in {text!r} is not allowed: an expectation is made of numbers, figures, + - * /, "
        "parentheses, abs(a), min(a, b, ...) and max(a, b, ...)"
    )


def _evaluate(node: ast.expr, figures: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id=name):
            return float(figures[name])
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_evaluate(left, figures), _evaluate(right, figures))
        case ast.UnaryOp(op=op, operand=operand):
            return _SIGNS[type(op)](_evaluate(operand, figures))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_evaluate(argument, figures) for argument in arguments))
    raise AssertionError(ast.dump(node))
