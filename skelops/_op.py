"""What makes a dispatcher op of a schema, a reference and a function that allocates the outputs.

    op = Op("squeeze_pool(Tensor x) -> (Tensor, Tensor, Tensor)", reference=..., outputs=...)
    op.differentiable(setup_context, backward)
    op.autocast()

The public functions check their arguments and call the op. torch.compile, autograd, autocast and fake tensors see
``skelops::squeeze_pool``; at run time it asks `skelops._backend` which backend serves the call. A compiled backend is
an op of the same name in a namespace of its own (``skelops_cpu``, ``skelops_cuda``), Triton a function of that name;
both fill outputs allocated here: kernels never allocate results, and every backend returns the same strides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.library import Library

from skelops import _backend, _triton

LIBRARY = Library("skelops", "DEF")
NATIVE = {name: Library(f"skelops_{name}", "FRAGMENT") for name in ("cpu", "cuda")}
REGISTRY: dict[str, Op] = {}
# The public class looks for torch.func's transforms at every call; `_route` has done so already.
_Function: Any = getattr(torch.autograd.function, "_SingleLevelFunction", torch.autograd.Function)

PLAIN = (torch.Tensor, torch.nn.Parameter)
COMMON_DTYPES = (torch.float32, torch.bfloat16)
#: Arguments that are float64 beside maps of any dtype, the gradients of channel sums: they choose no backend.
ALWAYS_DOUBLE = ("grad_sum", "grad_square_sum")


def _deciding_tensor(args: Iterable[Any]) -> torch.Tensor:
    """The first float64 tensor, which no kernel takes; else the first that not every kernel takes, or the first."""
    first = special = None
    for arg in args:
        if not isinstance(arg, torch.Tensor):
            continue
        dtype = arg.dtype
        if dtype in COMMON_DTYPES:
            first = arg if first is None else first
        elif dtype == torch.float64:
            return arg
        elif dtype.is_floating_point:
            special = arg if special is None else special
    found = special if special is not None else first
    if found is None:
        raise TypeError("an op needs at least one floating-point tensor")
    return found


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def _refuse_tangents(args: tuple[Any, ...]) -> None:
    """Refuses forward-mode derivatives, for which the dispatcher would answer zero."""
    for arg in args:
        if isinstance(arg, torch.Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
            raise NotImplementedError(
                "ops of skelops have no forward-mode derivatives (torch.func.jvp, dual tensors); use reverse mode"
            )


def _route(args: tuple[Any, ...]) -> str:
    """How a call reaches the kernel: by the "dispatcher" where a compiler, autocast, a mode or a tensor subclass must
    see it; else by "autograd" alone, or "direct".

    The dispatcher's way through Python costs as much as a small kernel.
    """
    if torch.compiler.is_compiling():
        return "dispatcher"
    if forward_ad._current_level >= 0:
        _refuse_tangents(args)
        return "dispatcher"
    if torch._C._is_any_autocast_enabled() or torch._C._len_torch_dispatch_stack():
        return "dispatcher"
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None:
        return "dispatcher"
    route, grad = "direct", torch.is_grad_enabled()
    for arg in args:
        if isinstance(arg, torch.Tensor):
            if type(arg) not in PLAIN:
                return "dispatcher"
            if grad and arg.requires_grad:
                route = "autograd"
    return route


class Op:
    """A dispatcher op ``skelops::NAME`` with a reference for every device and kernels where they exist.

    Args:
        schema: schema without namespace, e.g. ``"f(Tensor x) -> Tensor"``. An op that writes into its arguments
            annotates them (``Tensor(a!) queue``) and returns ``()``. Not ``str``, of which torch's stable ABI (2.13)
            keeps a copy with every call.
        reference: the definition of the op in eager PyTorch, clean in float64.
        outputs: allocates the results (also the fake implementation); None for an op that writes into its arguments.
        weights: names of arguments that autocast leaves as they are: kernels on the CPU round float32 themselves, and
            give gradients that are not rounded; for all others, they are cast before the kernel.
        eager_wins: says of a call's arguments whether PyTorch's own kernels were measured to be faster there; the
            reference then serves it (unless a backend is forced).
    """

    def __init__(
        self,
        schema: str,
        *,
        reference: Callable[..., Any],
        outputs: Callable[..., Any] | None,
        weights: Collection[str] = (),
        eager_wins: Callable[..., bool] | None = None,
    ) -> None:
        self.name, arguments = schema.split("(", 1)
        self.reference, self.outputs, self.eager_wins = reference, outputs, eager_wins
        #: The package of the op, whose ``triton`` module holds its Triton kernels.
        self.package = reference.__module__.rpartition(".")[0]
        LIBRARY.define(schema)
        arguments = arguments.rsplit("->", 1)[0].strip().removesuffix(")")
        for library in NATIVE.values():
            library.define(f"{self.name}({arguments}{', Tensor(z!)[] outputs' if outputs else ''}) -> ()")
        LIBRARY.impl(self.name, self._run, "CompositeExplicitAutograd")
        fake = outputs or (lambda *args: None)
        torch.library.register_fake(f"skelops::{self.name}", fake, lib=LIBRARY)
        self._overload = getattr(torch.ops.skelops, self.name).default
        self._kernels: dict[str, Callable[..., None]] = {
            name: getattr(getattr(torch.ops, f"skelops_{name}"), self.name).default for name in NATIVE
        }
        self._function: Any = None
        self._weights = [i for i, a in enumerate(self._overload._schema.arguments) if a.name in weights]
        written = (a.alias_info is not None and a.alias_info.is_write for a in self._overload._schema.arguments)
        self._deciding = [i for i, a in enumerate(self._overload._schema.arguments) if a.name not in ALWAYS_DOUBLE]
        self._written = [i for i, is_written in enumerate(written) if is_written]
        REGISTRY[self.name] = self

    def __call__(self, *args: Any) -> Any:
        route = _route(args)
        if route == "direct":
            return self._run(*args)
        if route == "autograd" and self._function:
            return self._function.apply(*args)
        return self._overload(*args)

    def _deciding_kind(self, args: Sequence[Any]) -> tuple[str, torch.dtype]:
        """The device type and dtype of a call, by which its backend is chosen."""
        tensor = _deciding_tensor([args[i] for i in self._deciding])
        return tensor.device.type, tensor.dtype

    def _run(self, *args: Any) -> Any:
        device, dtype = self._deciding_kind(args)
        backend = _backend.resolve(self.package, self.name, device, dtype)
        if self.outputs is None:
            if backend == "reference":
                self.reference(*args)
                return None
            self._kernel(backend)(*args)
            # Kernels write behind autograd's back; a saved tensor that was overwritten must not go unnoticed.
            torch.autograd.graph.increment_version([args[i] for i in self._written if not args[i].is_inference()])
            return None
        if self.eager_wins and _backend.is_auto() and self.eager_wins(*args):
            backend = "reference"
        outputs = self.outputs(*args)
        if self._weights and backend != "cpu":
            args = tuple(_cast(arg, dtype) if i in self._weights else arg for i, arg in enumerate(args))
        flat = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        if backend == "reference":
            results = self.reference(*args)
            results = [results] if isinstance(results, torch.Tensor) else results
            # The reference computes in whatever layout and dtype comes, and may hand an argument on; what was promised
            # to the compiler is returned, in memory of its own.
            taken = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
            flat = [
                r
                if (r.stride(), r.dtype) == (o.stride(), o.dtype) and r.untyped_storage().data_ptr() not in taken
                else o.copy_(r)
                for r, o in zip(results, flat, strict=True)
            ]
        else:
            self._kernel(backend)(*args, flat)
        return flat[0] if isinstance(outputs, torch.Tensor) else tuple(flat)

    def _kernel(self, backend: str) -> Callable[..., None]:
        kernel = self._kernels.get(backend) or _triton.find(self.package, self.name)
        assert kernel is not None, "a backend without a kernel was chosen"
        self._kernels[backend] = kernel
        return kernel

    def differentiable(self, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
        """Registers the gradient, as torch.library.register_autograd does."""
        torch.library.register_autograd(f"skelops::{self.name}", backward, setup_context=setup_context, lib=LIBRARY)

        def forward(ctx: Any, *args: Any) -> Any:
            output = self._run(*args)
            setup_context(ctx, args, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._function = type(self.name, (_Function,), methods)

    def not_differentiable(self) -> None:
        """For a backward op: asking for its own gradient is an error that says so, not a silent zero."""

        def refuse(ctx: Any, *grads: torch.Tensor) -> Any:
            raise RuntimeError(f"skelops::{self.name} has no gradient: double backward is not supported")

        torch.library.register_autograd(f"skelops::{self.name}", refuse, lib=LIBRARY)

    def autocast(self, keep: Collection[str] = ()) -> None:
        """Under autocast, casts every floating-point argument (but float64) to the autocast dtype, as conv2d does.

        Args:
            keep: names of arguments that stay as they are, beside the weights.
        """
        kept = [a.name in keep or i in self._weights for i, a in enumerate(self._overload._schema.arguments)]
        for device in ("CPU", "CUDA"):
            key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

            def lowered(*args: Any, device: str = device, key: Any = key) -> Any:
                dtype = torch.get_autocast_dtype(device.lower())
                with torch._C._ExcludeDispatchKeyGuard(key):
                    return self._overload(
                        *(arg if keep else _cast(arg, dtype) for arg, keep in zip(args, kept, strict=False))
                    )

            LIBRARY.impl(self.name, lowered, f"Autocast{device}")
