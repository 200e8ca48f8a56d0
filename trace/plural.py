"""How many there are of a thing, in words."""


def plural(n: int, word: str) -> str:
    """`1 stage`, `2 stages`."""
    return f"{n} {word}" + ("" if n == 1 else "s")
