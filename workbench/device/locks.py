"""Hold a device, so that two measurements never share it."""

import json
import os
from pathlib import Path

import filelock

from models.errors import UserError
from workbench.device.machine import Device
from workbench.store import slug


class DeviceLock:
    """Hold a device, so that two measurements never share it; for `with`.

    Raises UserError if it is busy, or if the folder of locks lets nobody find that out.
    """

    def __init__(self, device: Device, folder: Path) -> None:
        self._device = device
        self._path = folder / f"{slug(device.uuid or device.device)}.lock"
        self._holder = self._path.with_suffix(".holder")
        self._lock = filelock.FileLock(self._path, mode=0o666)  # others must be able to ask for it

    def __enter__(self) -> "DeviceLock":
        named = f"{self._device.device} ({self._device.name})"
        try:
            self._make_folder()
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{named} is in use by {self._holder_name()}: wait for it to end, or choose another device"
            ) from None
        except OSError as error:
            raise UserError(
                f"{named} cannot be locked, so another measurement could share it: {self._path}: "
                f"{error.strerror or error}; the owner of that folder can `chmod 0777 {self._path.parent}`, "
                "or remove it while nothing is measured"
            ) from error
        self._name_holder()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._holder.unlink(missing_ok=True)
        except OSError:
            pass  # the next holder writes its own
        self._lock.release()

    def _make_folder(self) -> None:
        folder = self._path.parent
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            return  # as somebody else made it; what is in its place may be a link, whose target is not ours
        # Anybody may add files, and remove what a killed process of another user has left. No sticky bit, as
        # folders for temporary files have: in such a one filelock, and some kernels, refuse others' files.
        folder.chmod(0o777)

    def _name_holder(self) -> None:
        """Leave word of this process for whoever asks; the device is held all the same where that fails."""
        try:
            self._holder.unlink(missing_ok=True)  # of one that was killed, perhaps another user's
            with self._holder.open("x") as file:  # new, so never through a link that another user laid
                os.fchmod(file.fileno(), 0o644)
                json.dump({"pid": os.getpid()}, file)
        except OSError:
            pass

    def _holder_name(self) -> str:
        try:
            return f"another measurement (process {json.loads(self._holder.read_text())['pid']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another measurement"
