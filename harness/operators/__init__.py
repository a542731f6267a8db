"""What the harness knows about each operator: how cases are drawn, built, called, judged and put into words."""

from harness.operators.base import Operator, SequenceOperator, TokenOperator
from harness.operators.registry import OPERATORS, get

__all__ = ["OPERATORS", "Operator", "SequenceOperator", "TokenOperator", "get"]
