"""Import what takes seconds while other work waits for memory or a device."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Thread


@contextmanager
def importing(*names: str) -> Iterator[None]:
    """Import modules in a thread beside the body; when it ends they are there.

    The body should import nothing that they import too: of two threads one may be given half a module. One
    that cannot be imported is left to whoever needs it, who is told why.
    """

    def run() -> None:
        for name in names:
            with suppress(Exception):
                import_module(name)

    thread = Thread(target=run, name="imports")
    thread.start()
    try:
        yield
    finally:
        thread.join()
