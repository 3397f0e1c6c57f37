"""Eigenvalues of a network's features and gradients, and numbers that summarise them: entropy, rank, extreme values.

Legend: `n` observations, `D` variables; `...` any leading batch dimensions.
"""

import torch
from torch import Tensor


def covariance_eigenvalues(observations: Tensor) -> Tensor:
    """Variances along the principal components, (..., n, D) to (..., min(n, D)), ascending.

    If there are fewer observations than variables, the eigenvalues that are 0 for this reason are omitted. Eigenvalues
    that are negative due to rounding are set to 0. If an observation is not finite, all eigenvalues are nan.
    """
    centred = observations - observations.mean(-2, keepdim=True)
    few = centred.shape[-2] < centred.shape[-1]
    products = centred @ centred.mT if few else centred.mT @ centred
    return symmetric_eigenvalues(products / centred.shape[-2]).clamp(min=0)


def correlation_matrix(variables: Tensor) -> Tensor:
    """Pearson correlations of the rows, (..., D, n) to (..., D, D); the correlations of a constant row are 0."""
    centred = variables - variables.mean(-1, keepdim=True)
    lengths = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    rounding = 10 * torch.finfo(variables.dtype).eps * torch.linalg.vector_norm(variables, dim=-1, keepdim=True)
    rows = (centred / lengths).masked_fill(lengths <= rounding, 0)
    correlations: Tensor = rows @ rows.mT
    return correlations


def symmetric_eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues of symmetric matrices, (..., D, D) to (..., D), ascending; all nan if an entry is not finite."""
    if not bool(torch.isfinite(matrices).all()):
        return matrices.new_full(matrices.shape[:-1], torch.nan)
    eigenvalues: Tensor = torch.linalg.eigvalsh(matrices)
    return eigenvalues


def spectral_entropy(eigenvalues: Tensor, *, offset: float = 0.0) -> Tensor:
    """Entropy in nats of normalised eigenvalues, (..., D) to (...). Its exponential is an effective rank.

    Args:
        eigenvalues: Non-negative eigenvalues. If all are 0, the entropy is nan.
        offset: Number added to each normalised eigenvalue in the logarithm.
    """
    shares = eigenvalues / eigenvalues.sum(-1, keepdim=True)
    return -torch.xlogy(shares, shares + offset).sum(-1)


def largest_singular_value(matrices: Tensor) -> Tensor:
    """The spectral norm, (..., D, E) to (...), computed from the smaller Gram matrix in half the time of `svdvals`."""
    products = matrices @ matrices.mT if matrices.shape[-2] < matrices.shape[-1] else matrices.mT @ matrices
    return symmetric_eigenvalues(products)[..., -1].clamp(min=0).sqrt()
