"""multi_scale_conv by the kernels of temporal_conv and temporal_max_pool, each on its slice of the channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

#: Finds a kernel of a backend by the name of its op.
Kernels = Callable[[str], Callable[..., None]]


def _shares(weight: Tensor) -> Iterator[slice]:
    """The channels of every branch in the result."""
    G, W = weight.shape[:2]
    return (slice(i * W, (i + 1) * W) for i in range(G + 2))


def forward(kernel: Kernels) -> Callable[..., None]:
    """The forward pass, out of the kernels of a backend."""

    def run(
        narrow: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        plain_weight: Tensor,
        plain_bias: Tensor,
        scale: Tensor,
        shift: Tensor,
        dilations: list[int],
        stride: int,
        stats: bool,
        outputs: list[Tensor],
    ) -> None:
        y, *sums = outputs
        conv = kernel("temporal_conv")
        *dilated, pooled, plain = _shares(weight)

        def results(share: slice) -> list[Tensor]:
            return [y[:, share], *(part[share] for part in sums)]

        for g, share in enumerate(dilated):
            of_branch = narrow[:, share], weight[g], bias[g], scale[share], shift[share]
            conv(*of_branch, stride, dilations[g], 1, stats, results(share))
        kernel("temporal_max_pool")(narrow[:, pooled], scale[pooled], shift[pooled], stride, stats, results(pooled))
        conv(x, plain_weight[..., None], plain_bias, None, None, stride, 1, 1, stats, results(plain))

    return run


def backward(kernel: Kernels) -> Callable[..., None]:
    """The backward pass, out of the kernels of a backend."""

    def run(
        grad: Tensor,
        narrow: Tensor,
        x: Tensor,
        weight: Tensor,
        plain_weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        y: Tensor | None,
        grad_sum: Tensor | None,
        grad_square_sum: Tensor | None,
        dilations: list[int],
        stride: int,
        outputs: list[Tensor],
    ) -> None:
        of_narrow, of_x, of_weight, of_bias, of_plain_weight, of_plain_bias, of_scale, of_shift = outputs
        conv = kernel("temporal_conv_backward")
        *dilated, pooled, plain = _shares(weight)

        def upstream(share: slice) -> list[Tensor | None]:
            parts = (grad_sum, grad_square_sum)
            return [None if y is None else y[:, share], *(None if part is None else part[share] for part in parts)]

        for g, share in enumerate(dilated):
            of_branch = grad[:, share], narrow[:, share], weight[g], scale[share], shift[share]
            results = [of_narrow[:, share], of_weight[g], of_bias[g], of_scale[share], of_shift[share]]
            conv(*of_branch, *upstream(share), stride, dilations[g], 1, *(True,) * 4, results)
        kernel("temporal_max_pool_backward")(
            grad[:, pooled],
            narrow[:, pooled],
            scale[pooled],
            shift[pooled],
            *upstream(pooled)[1:],
            stride,
            [of_narrow[:, pooled], of_scale[pooled], of_shift[pooled]],
        )
        none = scale.new_empty(0)
        results = [of_x, of_plain_weight[..., None], of_plain_bias, none, none]
        of_plain = grad[:, plain], x, plain_weight[..., None], None, None
        conv(*of_plain, *upstream(plain), stride, 1, 1, True, True, True, False, results)

    return run
