"""What a module computes, as a value that can be compared."""

import copy
import hashlib
import operator
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set)
_ADDITIONS = (operator.add, operator.iadd, torch.add)


def operations(module: nn.Module, cls: type[nn.Module], method: str) -> str | None:
    """A digest of what a method of ``cls`` does with a module, or None if it cannot be followed.

    Equal digests mean the same operations on the same children, in any order that gives the same
    results.  The method runs once in training mode and once in eval mode, without its children and
    on no numbers; one that does something else in each, or leaves traces in the module, is not
    followed.
    """
    children = list(module.modules())
    modes = [child.training for child in children]
    try:
        digests = set()
        for training in (True, False):
            for child in children:
                child.training = training
            graph = _trace(module, cls, method)
            digests.add(None if graph is None else _digest(graph))
    finally:
        for child, training in zip(children, modes, strict=True):
            child.training = training
    return digests.pop() if len(digests) == 1 else None


def _trace(module: nn.Module, cls: type[nn.Module], method: str) -> Any:
    """The graph of a method, or None if it cannot be followed or changes the module."""
    from torch import fx  # takes its time, and only networks with blocks of their own need it

    class Tracer(fx.Tracer):
        traced_func_name = method

        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    stand_in = cls.__new__(cls)  # takes what the method may set
    stand_in.__dict__.update(_copied(vars(module)))
    before = _contents(stand_in)
    sizes = {name: len(value) for name, value in before.items() if isinstance(value, _CONTAINERS)}
    tensors = {name: value.clone() for name, value in before.items() if _is_own(value)}
    try:
        graph = Tracer().trace(stand_in)
    except Exception:  # whatever a forward of its own does with what is no tensor
        return None
    after = _contents(stand_in)
    untouched = (
        before.keys() == after.keys()
        and all(value is after[name] for name, value in before.items())
        and all(len(after[name]) == size for name, size in sizes.items())
        and all(torch.equal(value, after[name]) for name, value in tensors.items())
    )
    return graph if untouched else None


def _digest(graph: Any) -> str:
    from torch import fx

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


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes with containers and tensors of their own, but for parameters."""

    def copied(name: str, value: Any) -> Any:
        if name == "_buffers":
            return _copied(value)
        if _is_own(value):
            return value.clone()
        return copy.copy(value) if isinstance(value, _CONTAINERS) else value

    return {name: copied(name, value) for name, value in attributes.items()}


def _is_own(value: Any) -> bool:
    """Whether it is a tensor that a forward may write to."""
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter)


def _contents(module: nn.Module) -> dict[str, Any]:
    """All attributes of a module, with its parameters, buffers and children."""
    return vars(module) | module._parameters | module._buffers | module._modules
