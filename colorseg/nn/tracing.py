"""What a module computes, as a value that can be compared."""

import hashlib
import operator
from typing import Any

import torch
from torch import nn

_ADDITIONS = (operator.add, operator.iadd, torch.add)


def operations(module: nn.Module, cls: type[nn.Module], method: str) -> str | None:
    """A digest of what a method of ``cls`` does with a module, or None if it cannot be followed.

    Equal digests mean the same operations on the same children, in any order that gives the same
    results.  The method runs once, without its children and on no numbers.
    """
    from torch import fx  # takes its time, and only networks with blocks of their own need it

    class Tracer(fx.Tracer):
        traced_func_name = method

        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    before = type(module)
    try:
        module.__class__ = cls
        graph = Tracer().trace(module)
    except Exception:  # whatever a forward of its own does with what is no tensor
        return None
    finally:
        module.__class__ = before
    digests: dict[fx.Node, str] = {}

    def digest_of(value: Any) -> str:
        return digests[value] if isinstance(value, fx.Node) else repr(value)

    for node in graph.nodes:
        args = fx.node.map_aggregate((node.args, node.kwargs), digest_of)
        if node.target in _ADDITIONS:  # in place or not, and in any order
            parts: Any = ("add", sorted(args[0]), args[1])
        elif node.op == "placeholder":  # whatever it is called
            parts = (len(digests), args)
        else:
            parts = (node.op, node.target, args)
        digests[node] = hashlib.sha256(repr(parts).encode()).hexdigest()
    return f"{len(digests)} {list(digests.values())[-1]}"
