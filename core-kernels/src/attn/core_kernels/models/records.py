"""What a probe has seen: results by field, layer and call."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

Calls = Literal["last", "first", "all"]


class Records(Mapping[int, Any]):
    """The results of one read: the last call's by layer, all that were kept in ``calls``.

    Args:
        names: names of the layers, by index.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self.calls: dict[int, list[Any]] = {}
        """The results that were kept, by layer, oldest first."""

    def __getitem__(self, layer: int) -> Any:
        """The result of the last call kept of a layer.

        Raises:
            KeyError: if there is none.
        """
        if layer not in self.calls:
            why = "was not called in the block" if layer in self.names else f"is not probed: {sorted(self.names)} are"
            raise KeyError(f"layer {layer!r} {why}")
        return self.calls[layer][-1]

    def __iter__(self) -> Iterator[int]:
        """The layers that were called, in order."""
        return iter(sorted(self.calls))

    def __len__(self) -> int:
        """How many layers were called."""
        return len(self.calls)


class Seen:
    """The results of a probe: ``seen.<field>[layer]``, one field per read.

    Args:
        fields: names of the fields.
        names: names of the layers, by index.
        calls: which calls of a layer are kept.
    """

    def __init__(self, fields: Sequence[str], names: Mapping[int, str], calls: Calls) -> None:
        self.layers = dict(names)
        """Names of the layers that are probed, by index."""
        self._calls = calls
        self._fields = {field: Records(self.layers) for field in fields}

    def __getattr__(self, field: str) -> Records:
        """The results of the read with this field."""
        fields: dict[str, Records] = self.__dict__.get("_fields", {})
        if field not in fields:
            raise AttributeError(f"no read has the field {field!r}; there are {sorted(fields)}")
        return fields[field]

    def wants(self, field: str, layer: int) -> bool:
        """Whether another call of a layer is to be read."""
        return self._calls != "first" or layer not in self._fields[field].calls

    def add(self, field: str, layer: int, result: Any) -> None:
        """File the result of a call."""
        kept = self._fields[field].calls.setdefault(layer, [])
        if self._calls == "last":
            kept.clear()
        kept.append(result)
