"""Hold a device, so that two measurements never share it."""

import json
import os
from pathlib import Path

import filelock

from models.errors import UserError
from workbench.machine import Device
from workbench.store import slug


class DeviceLock:
    """Hold a device, so that two measurements never share it; for `with`. Raises UserError if it is busy."""

    def __init__(self, device: Device, folder: Path) -> None:
        self._device = device
        self._path = folder / f"{slug(device.uuid or device.device)}.lock"
        self._holder = self._path.with_suffix(".holder")
        self._lock = filelock.FileLock(self._path, mode=0o666)  # others must be able to ask for it

    def __enter__(self) -> "DeviceLock":
        if not self._path.parent.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.parent.chmod(0o1777)  # as the folder for temporary files itself: anybody may add
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{self._device.device} ({self._device.name}) is in use by {self._holder_name()}: "
                "wait for it to end, or choose another device"
            ) from None
        self._holder.write_text(json.dumps({"pid": os.getpid()}))
        return self

    def __exit__(self, *error: object) -> None:
        self._holder.unlink(missing_ok=True)
        self._lock.release()

    def _holder_name(self) -> str:
        try:
            return f"another measurement (process {json.loads(self._holder.read_text())['pid']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another measurement"
