"""Learning rates and weight decay as pure functions of the images seen.

Nothing depends on steps, ranks or batch, except the peak.
"""

import math


def learning_rate(
    images: int,
    *,
    peak: float,
    final: float,
    warmup_images: int,
    total_images: int,
    warmup_start: float = 0.0,
    cosine_start: int | None = None,
) -> float:
    """Linear warm-up, then half a cosine from its end to the end of training, as in SwAV; `final` ever after.

    Args:
        images: seen before the step.
        peak, final: rates after the warm-up, and at and after `total_images`.
        warmup_images: length of the warm-up, which begins at `warmup_start`; 0 is none.
        total_images: length of the training, warm-up included.
        cosine_start: where the cosine begins; None: at the end of the warm-up. VISSL, and so SEER, has it begin at 0,
            under the warm-up, after which the rate steps down onto its slope.
    """
    if images < warmup_images:
        return _warmup(images, peak, warmup_images, warmup_start)
    if images >= total_images:
        return final
    begin = warmup_images if cosine_start is None else cosine_start
    return half_cosine(peak, final, (images - begin) / (total_images - begin))


def constant_learning_rate(images: int, *, peak: float, warmup_images: int, warmup_start: float = 0.0) -> float:
    """Linear warm-up, then `peak`: for a stream whose length is not known in advance."""
    return _warmup(images, peak, warmup_images, warmup_start) if images < warmup_images else peak


def weight_decay(images: int, *, start: float, final: float, total_images: int) -> float:
    """Half a cosine from `start` to `final` over the training, as in DINO (arXiv 2104.14294); `final` ever after."""
    return half_cosine(start, final, min(1.0, images / total_images))


def half_cosine(start: float, final: float, progress: float) -> float:
    """From `start` at progress 0 to `final` at 1."""
    return final + (start - final) * (1 + math.cos(math.pi * progress)) / 2


def _warmup(images: int, peak: float, warmup_images: int, warmup_start: float) -> float:
    return warmup_start + (peak - warmup_start) * images / warmup_images
