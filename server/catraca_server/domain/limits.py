"""What the operator's policy and the API's field rules allow."""


def format_duration(milliseconds: int) -> str:
    """Returns a duration as operators write it, in its largest whole unit: `30d`, `90s`, `250ms`."""
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size_ms == 0:
            return f"{milliseconds // size_ms}{unit}" if milliseconds else "0s"
    return f"{milliseconds}ms"
