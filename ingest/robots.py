"""robots.txt by RFC 9309, and nothing beyond it."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from ingest.url import quoted

LONGEST = 500 << 10  # bytes that are read
UNRESERVED = re.compile(r"[A-Za-z0-9\-._~]")


class Rules:
    """What a robots.txt says to ``agent``: the groups that name it, or else those for ``*``."""

    def __init__(self, text: str, agent: str) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        names: list[str] = []
        said = False  # whether the group has a rule already, so that another agent begins the next one
        for line in text.lstrip("\ufeff").splitlines():
            key, colon, value = line.partition("#")[0].partition(":")
            key, value = key.strip().lower(), value.strip()
            if not colon:
                continue
            if key == "user-agent":
                names = [] if said else names
                said = False
                token = re.match(r"[A-Za-z_-]+", value)
                names.append("*" if value.startswith("*") else token[0].lower() if token else "")
                groups.setdefault(names[-1], [])
            elif key in ("allow", "disallow"):
                said = True
                for name in set(names):
                    groups[name].append((key, value))
        found = groups.get(agent.lower(), groups.get("*", []))
        # the longest rule that fits counts, and of equal ones the one that allows
        ordered = sorted(found, key=lambda rule: (len(normal(rule[1])), rule[0] == "allow"), reverse=True)
        self._rules = [(key == "allow", pattern(value)) for key, value in ordered if value]

    def allows(self, path: str) -> bool:
        """Whether ``path``, with its query, may be asked for."""
        path = normal(path)
        return next((allow for allow, rule in self._rules if rule.match(path)), True)


def pattern(value: str) -> re.Pattern[str]:
    end = value.endswith("$")
    parts = normal(value.removesuffix("$") if end else value).split("*")
    # as many of any characters as it takes, and never fewer than were tried: time stays linear in each part
    first, *rest = map(re.escape, parts)
    return re.compile(first + "".join(f"(?>.*?{part})" for part in rest[:-1]) + last(rest, end), re.DOTALL)


def last(rest: list[str], end: bool) -> str:
    if not rest:
        return r"\Z" if end else ""
    return f".*{rest[-1]}\\Z" if end else f".*?{rest[-1]}"


def normal(path: str) -> str:
    """A path in which equal ones are written alike: unreserved characters as they are, all others quoted."""

    def written(found: re.Match[str]) -> str:
        character = unquote_to_bytes(found[0]).decode("latin-1")
        return character if UNRESERVED.fullmatch(character) else found[0].upper()

    return re.sub(r"%[0-9A-Fa-f]{2}", written, quoted(path))
