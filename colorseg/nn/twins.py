"""Classes that differ from another one in a few methods, to swap ``__class__`` and back."""

from typing import Any

from torch import nn

_TWINS: dict[tuple[type[nn.Module], type], type[nn.Module]] = {}


def twin(plain: type[nn.Module], behavior: type) -> type[nn.Module]:
    """A subclass of ``plain`` with the methods of ``behavior``, and its name.

    One per pair, so that identity of classes means something.  Both must be importable for their
    instances to be pickled.
    """
    if (plain, behavior) not in _TWINS:
        members: dict[str, Any] = {
            "plain_class": plain,
            "behavior": behavior,
            "__reduce_ex__": _reduce,
            "__module__": plain.__module__,
        }
        _TWINS[plain, behavior] = type(plain.__name__, (behavior, plain), members)
    return _TWINS[plain, behavior]


def _reduce(self: Any, protocol: int) -> tuple[Any, ...]:
    # a twin has no importable name: pickle what it is made of
    return _restore, (self.plain_class, self.behavior), self.__getstate__()


def _restore(plain: type[nn.Module], behavior: type) -> nn.Module:
    cls = twin(plain, behavior)
    return cls.__new__(cls)
