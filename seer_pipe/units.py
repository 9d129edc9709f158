"""Numbers with their units, as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """41 as 41 s, 250 as 4 min 10 s, 3725 as 1 h 02 min, 200000 as 2 d 7 h 33 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole >= 10 or not seconds else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hours} h {minutes:02d} min"
