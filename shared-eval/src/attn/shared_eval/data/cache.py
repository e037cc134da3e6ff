"""What is made once on a machine and kept in the user's cache folder."""

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile

from platformdirs import user_cache_path


def cached(name: str, key: str, build: Callable[[], bytes], *, folder: Path | None = None) -> bytes:
    """What ``build()`` returns, read from the cache folder if it is there and intact.

    An entry holds the hash of its content. One that is damaged is built again; a folder that cannot be written is done
    without.

    Args:
        name: of the thing, for people who look into the folder.
        key: everything that the content depends on.
        build: makes the content.
        folder: where; None is the user's cache folder for this project.
    """
    folder = user_cache_path("attn") if folder is None else folder
    entry = folder / f"{name}-{sha256(key.encode()).hexdigest()[:16]}"
    with suppress(OSError):
        digest, _, content = entry.read_bytes().partition(b"\n")
        if digest == sha256(content).hexdigest().encode():
            return content
    content = build()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=f".{name}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(sha256(content).hexdigest().encode() + b"\n" + content)
        temporary.replace(entry)
    return content
