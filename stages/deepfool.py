"""DeepFool: the smallest step, in l2, that makes a model decide otherwise about a picture.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016,
algorithm 2. Around x_i every rival k of the decision y is taken for a hyperplane, m_k + w_k · r = 0, with

    m_k = f_y(x_i) - f_k(x_i)    its margin,  w_k = grad m_k
    r_i = - (m_l / |w_l|²) w_l   for the nearest one, l = argmin_k m_k / |w_k|

and x_i+1 = x_0 + (1 + overshoot) (r_0 + … + r_i), until the decision changes.

A model decides between classes (the highest score), or on labels, each by its own sign (attributes): there the rivals
are the labels, m_k = f_k or - f_k, whichever was positive, and a picture is fooled when one of its labels flips.

Pictures of a batch stop each on its own, and those that stopped cost nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scores = Callable[[Tensor], Tensor]
"""x (N, …) in [0, 1] to scores (N, C), differentiable; no row's scores depend on another row."""

Kind = Literal["classes", "labels"]

NUDGE = 1e-4
"""Added to every step's length, so that steps do not die away just before the boundary (the authors' code has it)."""


@dataclass(frozen=True)
class Fooled:
    """x : (N, …), the pictures moved; success : (N,) bool, decided otherwise; steps : (N,) int64, taken."""

    x: Tensor
    success: Tensor
    steps: Tensor


def decide(scores: Tensor, kind: Kind) -> Tensor:
    """What scores (N, C) decide: (N, 1) int64, the highest's class, or (N, C) int64, 1 where a label is positive."""
    return scores.argmax(dim=1, keepdim=True) if kind == "classes" else (scores > 0).long()


def margins(scores: Tensor, decided: Tensor, kind: Kind) -> Tensor:
    """By how much scores (N, C) hold a decision, per rival: (N, C); positive where they do, infinite at y itself."""
    if kind == "labels":
        return torch.where(decided > 0, scores, -scores)
    return (scores.gather(1, decided) - scores).scatter(1, decided, torch.inf)


def deepfool(
    scores: Scores,
    x: Tensor,
    *,
    kind: Kind = "classes",
    decided: Tensor | None = None,
    candidates: int = 10,
    overshoot: float = 0.02,
    max_iter: int = 50,
    clamp: bool = True,
) -> Fooled:
    """Moves every picture just over the nearest boundary.

    x : (N, …) float, in [0, 1] where ``clamp`` keeps it there
    decided : what is to be decided otherwise, as of ``decide``; by default what the model decides about ``x``
    candidates : rivals looked at are those of the ``candidates`` highest classes at the start, or so many of the labels
        nearest to their flip; every one costs a backward pass

    Returns pictures of which those without ``success`` have moved too. Raises ``ValueError``.
    """
    if candidates < 1 + (kind == "classes") or max_iter < 0 or overshoot < 0:
        raise ValueError("deepfool: needs two candidates (of labels one), and neither max_iter nor overshoot below 0")
    x = x.detach()
    with torch.set_grad_enabled(max_iter > 0):
        at = x.clone().requires_grad_(max_iter > 0)
        found = scores(at)
    decided = decide(found.detach(), kind) if decided is None else decided
    m = margins(found, decided, kind)
    width = min(candidates, m.shape[1]) - (kind == "classes")
    if width < 1:
        raise ValueError(f"deepfool: a model of {m.shape[1]} classes has no other to decide for")
    rivals = m.detach().topk(width, dim=1, largest=False).indices
    out, total, steps = x.clone(), torch.zeros_like(x), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    for step in range(max_iter + 1):
        held = (m.detach() > 0).all(dim=1)
        rows, fell = rows[held], not held.all()
        if step == max_iter or not len(rows):
            break
        if fell:
            # Another forward pass of the rest costs less than the backward passes of those that stopped.
            at = out[rows].requires_grad_()
            with torch.enable_grad():
                m = margins(scores(at), decided[rows], kind)
        total[rows] += _nearest(m, at, rivals[rows])
        moved = x[rows] + (1 + overshoot) * total[rows]
        out[rows] = moved.clamp(0, 1) if clamp else moved
        steps[rows] += 1
        at = out[rows].requires_grad_()
        with torch.set_grad_enabled(step + 1 < max_iter):
            m = margins(scores(at), decided[rows], kind)
    success = torch.ones(len(x), dtype=torch.bool, device=x.device)
    success[rows] = False
    return Fooled(out, success, steps)


def _nearest(m: Tensor, at: Tensor, rivals: Tensor) -> Tensor:
    """The steps r (n, …) onto the nearest of the hyperplanes of ``rivals`` (n, R), from all margins m (n, C)."""
    near = m.gather(1, rivals)
    best, move = near.new_full((len(at),), torch.inf), torch.zeros_like(at)
    for k in range(rivals.shape[1]):
        (w,) = torch.autograd.grad(near[:, k].sum(), at, retain_graph=k + 1 < rivals.shape[1])
        norm = w.flatten(1).norm(dim=1) + 1e-8
        distance = near[:, k].detach().abs() / norm
        shape = (-1, *(1,) * (at.ndim - 1))
        closer = distance < best
        best = torch.where(closer, distance, best)
        step = -((distance + NUDGE) / norm).view(shape) * w
        move = torch.where(closer.view(shape), step, move)
    return move.detach()
