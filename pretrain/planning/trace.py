"""One step of a task on tensors without storage: what it would hold at each moment, send to others, and multiply.

Every operation passes a dispatch mode, which notes the birth and the death of each storage and the messages to other
ranks. Tensors whose values decide shapes (which words are hidden) have shadows with real values.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

GATHERED = ("pretrain.distributed", "pretrain.objectives.contrast", "pretrain.objectives.late_interaction")
"""Modules whose tensors are features of all ranks and similarities with them."""
ASIDE = (
    "pretrain.rows",
    "pretrain.flops",
    "pretrain.precision",
    "pretrain.planning.trace",
    "pretrain.planning.kernels",
)
"""Modules that work on behalf of whoever calls them."""


@dataclass
class Piece:
    """One storage: bytes, and when it was there, counted in operations (`death` None: to the end).

    `ready` is when it became the gradient of a parameter, None for everything else.
    """

    bytes: int
    part: str
    birth: int
    death: int | None = None
    ready: int | None = None


@dataclass
class Trace:
    """What one step does on one rank.

    Attributes:
        forward: Number of operations up to the end of the forward, and `backward` to that of the backward.
        flops: Of all products, those that are computed again included.
        sent: Bytes that the objectives hand to each kind of collective, by the name of its operator.
    """

    pieces: list[Piece] = field(default_factory=list)
    forward: int = 0
    backward: int = 0
    flops: int = 0
    sent: Counter[str] = field(default_factory=Counter)

    def name_kept(self) -> None:
        """What outlives the forward is kept for the backward."""
        for piece in self.pieces:
            if piece.part == "workspace" and piece.birth <= self.forward and _at(piece, self.forward):
                piece.part = "activations"

    def timeline(self) -> list[dict[str, int]]:
        """Bytes by part after each operation; gradients are left out (`gradients`)."""
        births, deaths = Counter[tuple[int, str]](), Counter[tuple[int, str]]()
        for piece in self.pieces:
            births[piece.birth, piece.part] += piece.bytes
            end = piece.ready if piece.ready is not None else piece.death
            if end is not None:
                deaths[end, piece.part] += piece.bytes
        parts, held, found = {piece.part for piece in self.pieces}, Counter[str](), []
        for now in range(self.backward + 1):
            for part in parts:
                held[part] += births[now, part] - deaths[now, part]
            found.append(dict(held))
        return found

    def gradients(self) -> list[int]:
        """Bytes of the parameters' gradients that are ready after each operation."""
        ready = Counter[int]()
        for piece in self.pieces:
            if piece.ready is not None:
                ready[piece.ready] += piece.bytes
        total, found = 0, []
        for now in range(self.backward + 1):
            total += ready[now]
            found.append(total)
        return found


def _at(piece: Piece, now: int) -> bool:
    return piece.death is None or piece.death > now


class Recorder(TorchDispatchMode):
    """Fills a trace while operations run inside it, on fake tensors.

    Args:
        shadows: Fake tensors with their values, as far as those decide shapes.
        groups: How many different groups the pairs of all ranks can have.
    """

    def __init__(self, shadows: Iterable[tuple[Tensor, Tensor]] = (), groups: int = 0) -> None:
        super().__init__()
        self.trace, self.now, self._groups = Trace(), 0, groups
        self._pieces = WeakIdKeyDictionary()
        self._shadows = WeakIdKeyDictionary()
        for fake, real in shadows:
            self._shadows[fake] = real

    def hold(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Says what tensors are that exist already."""
        for tensor in tensors:
            self._note(tensor, part)

    def gradient(self, parameter: Tensor) -> None:
        """A parameter's gradient is complete."""
        assert parameter.grad is not None
        piece = self._pieces[parameter.grad.untyped_storage()]
        piece.part, piece.ready = "workspace", self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.now += 1
        if func.namespace == "c10d":
            return self._message(func, args, kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._value(args[0])
        if func is torch.ops.aten.equal.default:
            return True  # nothing but an assertion asks
        output: Any
        if func is torch.ops.aten._unique2.default:  # every pair of all ranks has a group of its own
            output = tuple(torch.empty(min(self._groups, args[0].numel()), dtype=torch.int64) for _ in range(3))
        elif func is torch.ops.aten.nonzero.default:
            output = torch.empty((self._chosen(args[0]), args[0].ndim), dtype=torch.int64, device=args[0].device)
        else:
            output = func(*self._counted(func, args), **kwargs)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        if formula := flop_registry.get(func._overloadpacket):
            self.trace.flops += formula(*args, **kwargs, out_val=output)
        self._shade(func, args, kwargs, output)
        return output

    def _message(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Goes nowhere; what a rank hands over is counted."""
        name = func._overloadpacket.__name__.strip("_")
        inputs = args[1] if name.startswith("allgather") else args[0]
        self.trace.sent[name] += sum(t.nbytes for t in tree_leaves(inputs) if isinstance(t, Tensor))
        if name == "allgather" and args[1][0] in self._shadows:
            for part in args[0][0]:
                self._shadows[part] = self._shadows[args[1][0]]  # the ranks' batches are alike
        return func(*args, **kwargs)

    def _value(self, tensor: Tensor) -> Any:
        """A number that Python asks for."""
        assert tensor in self._shadows, "a number decides that nobody can know before the run"
        with _disable_current_modes():
            return self._shadows[tensor].item()

    def _chosen(self, mask: Tensor) -> int:
        """Places that a mask picks; all where nobody can know it."""
        with _disable_current_modes():
            return int(self._shadows[mask].sum()) if mask in self._shadows else mask.numel()

    def _counted(self, func: Any, args: Any) -> Any:
        """Masks as indices, as many places as their shadows choose."""
        if func._overloadpacket.__name__ not in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return args
        places: list[Tensor | None] = []
        for index in args[1]:
            if index is not None and index.dtype == torch.bool:
                count = self._chosen(index)
                places += [torch.empty(count, dtype=torch.int64, device=index.device) for _ in range(index.ndim)]
            else:
                places.append(index)
        return (args[0], places, *args[2:])

    def _note(self, tensor: Tensor, part: str | None = None) -> None:
        storage = tensor.untyped_storage()
        if storage in self._pieces:
            return
        piece = Piece(storage.nbytes(), part or _asked_by(), self.now)
        self._pieces[storage] = piece
        self.trace.pieces.append(piece)
        weakref.finalize(storage, self._end, piece).atexit = False

    def _end(self, piece: Piece) -> None:
        piece.death = self.now

    def _shade(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """The same operation on shadows, where all that it reads has one."""
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not isinstance(output, Tensor):
            return
        known = all(x in self._shadows or not isinstance(x, FakeTensor) for x in inputs)
        if (value := _constant(func, args, known)) is not None and not output.is_floating_point():
            with _disable_current_modes():
                self._shadows[output] = torch.full(output.shape, value, dtype=output.dtype)
            return
        if not inputs and output.is_floating_point():
            return
        if not known:
            self._shadows.pop(output, None)  # written into, and no longer known
            return
        real_args, real_kwargs = tree_map_only(Tensor, lambda x: self._shadows.get(x, x), (args, kwargs))
        with _disable_current_modes():
            self._shadows[output] = func(*real_args, **real_kwargs)


def _constant(func: Any, args: Any, known: bool) -> float | None:
    """What an operator fills its output with, whatever its inputs hold; None for one that does not.

    Which negative is drawn nobody knows, and it does not matter: the texts of the largest batch are equally long.
    """
    name = func._overloadpacket.__name__.removeprefix("new_").removesuffix("_like")
    if name in ("ones", "zeros") or (name == "searchsorted" and not known):
        return float(name == "ones")
    return args[-1] if name == "full" and isinstance(args[-1], int | float) else None


def _asked_by() -> str:
    """The part that the code belongs to which runs now; `workspace` until it turns out to be kept."""
    frame = sys._getframe(2)
    while frame := frame.f_back:  # type: ignore[assignment]  # None at the outermost
        name = frame.f_globals.get("__name__", "")
        if name.startswith("pretrain.") and name not in ASIDE:
            return "gathered" if name in GATHERED else "workspace"
    return "workspace"
