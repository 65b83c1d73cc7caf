"""What code reads, keeps and changes, by its bytecode."""

from __future__ import annotations

import dis
import types
from typing import Any

from torch import Tensor, nn

__all__ = ["changed_names", "global_names", "left_by_a_run"]

# Methods by which containers change.
_CHANGING = frozenset(
    (
        *("add", "append", "clear", "discard", "extend", "insert", "pop", "popitem"),
        *("remove", "setdefault", "update"),
    )
)


def global_names(code: types.CodeType) -> set[str]:
    """Names of the globals that code reads, inner functions included."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= global_names(constant)
    return names


def changed_names(code: types.CodeType) -> set[str]:
    """Names of the globals and attributes into which code puts things, as memos do."""
    changed = set()
    instructions = list(dis.get_instructions(code))
    for i, start in enumerate(instructions):
        if start.opname not in ("LOAD_GLOBAL", "LOAD_ATTR"):
            continue
        above = 0  # how many values lie on top of the container
        for instruction in instructions[i + 1 :]:
            kind, name = instruction.opname, instruction.argval
            is_read = above == 0 and kind in ("LOAD_ATTR", "LOAD_METHOD")
            if (is_read and name in _CHANGING) or (
                kind == "STORE_SUBSCR" and above == 1
            ):
                changed.add(start.argval)
            if is_read:
                break  # from here on it is another object
            if instruction.arg is None or instruction.opcode < dis.HAVE_ARGUMENT:
                above += dis.stack_effect(instruction.opcode)
            else:
                above += dis.stack_effect(instruction.opcode, instruction.arg)
            if above < 0 or kind.startswith(("RETURN", "JUMP", "POP_JUMP")):
                break
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            changed |= changed_names(constant)
    return changed


def left_by_a_run(module: nn.Module, name: str, value: Any) -> bool:
    """Say whether a tensor is an activation that `forward` keeps and does not read."""
    if not isinstance(value, Tensor) or (value.is_leaf and not value.is_inference()):
        return False
    reached: dict[str, types.CodeType] = {}
    waiting = ["forward"]
    while waiting:
        method = getattr(type(module), waiting.pop(), None)
        if isinstance(method, types.FunctionType) and method.__name__ not in reached:
            reached[method.__name__] = method.__code__
            waiting += method.__code__.co_names
    uses = {
        (i.opname == "STORE_ATTR", i.argval)
        for code in reached.values()
        for i in dis.get_instructions(code)
        if i.opname in ("STORE_ATTR", "LOAD_ATTR", "LOAD_METHOD")
    }
    return (True, name) in uses and (False, name) not in uses
