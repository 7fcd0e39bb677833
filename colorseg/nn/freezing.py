"""``freeze``: parts of a network that training must not change."""

from collections.abc import Iterable
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from colorseg.nn.twins import twin

Model = TypeVar("Model", bound=nn.Module)
MODES = ("frozen", "drift")


class FrozenStatistics:
    """Mixed in front of a batch norm that stays in eval mode, whatever ``train()`` is told."""

    plain_class: type[_NormBase]

    def train(self: Any, mode: bool = True) -> Any:
        """Stay in eval mode; :func:`freeze` ends it."""
        return self.plain_class.train(self, False)

    def extra_repr(self: Any) -> str:
        """The settings, and that it is frozen, in the printed module."""
        return f"{self.plain_class.extra_repr(self)}, frozen"


FrozenBatchNorm2d = twin(nn.BatchNorm2d, FrozenStatistics)


def freeze(
    model: Model, *, except_: Iterable[str | nn.Module] = (), batch_norm: str = "frozen"
) -> Model:
    """Keep training from changing a model, but for some parts of it, in place.

    Parameters get ``requires_grad=False`` and lose their gradients, so that an optimizer that
    already knows them leaves them alone too.  Batch norms, and all other norms with running
    statistics, normalise by them and keep them, also after ``model.train()``; dropout is not
    touched.  The last call counts: it makes the parts in ``except_`` trainable again, and
    ``freeze(model, except_=[model])`` undoes all.

    Args:
        model: any module.
        except_: parts that are trained: names of submodules, such as "classifier.4", or the
            modules.  Everything inside a part belongs to it; parameters it shares with others are
            trained.
        batch_norm: "frozen", or "drift": running statistics outside ``except_`` still follow the
            batches in training mode, which is what ``requires_grad_(False)`` alone does.

    Returns:
        The same object.

    Raises:
        ValueError: a part is not in the model, or ``batch_norm`` is neither.
    """
    if batch_norm not in MODES:
        raise ValueError(f"batch_norm must be 'frozen' or 'drift', got {batch_norm!r}")
    parts = [except_] if isinstance(except_, str | nn.Module) else list(except_)
    trained = {module for part in parts for module in _part(model, part).modules()}
    kept = {p for module in trained for p in module.parameters(recurse=False)}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in kept)
        if parameter not in kept:
            parameter.grad = None  # a stale one would still move it
    for module in model.modules():
        if isinstance(module, _NormBase):
            _set_frozen(module, batch_norm == "frozen" and module not in trained, model.training)
    return model


def _part(model: nn.Module, part: str | nn.Module) -> nn.Module:
    if isinstance(part, str):
        try:
            return model.get_submodule(part)
        except AttributeError:
            names = ", ".join(name for name, _ in model.named_children())
            raise ValueError(
                f"except_ names {part!r}, which is no submodule of this {type(model).__name__}; "
                f"at the top it has {names or 'none'}"
            ) from None
    if not any(part is module for module in model.modules()):
        raise ValueError(
            f"except_ holds a {type(part).__name__} that is not in this {type(model).__name__}"
        )
    return part


def _set_frozen(norm: Any, frozen: bool, training: bool) -> None:
    if isinstance(norm, FrozenStatistics) != frozen:
        norm.__class__ = twin(type(norm), FrozenStatistics) if frozen else norm.plain_class
        norm.train(training)
