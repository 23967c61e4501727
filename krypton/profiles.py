"""The device profiles of a session: kept in the catalog by what the device is, measured by CALIBRATE, refined by queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from krypton.catalog import Catalog
from krypton.errors import PlanError
from krypton.ir.plan import QueryPlan
from krypton.planner.calibration import Progress, calibrate, device_name
from krypton.planner.profile import DeviceProfile, KernelRate


class Profiles:
    """Profiles by device ("cpu", "cuda:0"); the default one where nothing was measured."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[str, DeviceProfile] = {}

    def of(self, device: str) -> DeviceProfile:
        """The profile that plans for this device are priced with."""
        if device not in self._known:
            self._known[device] = self._kept(device) or DeviceProfile()
        return self._known[device]

    def measure(self, device: str, plans: Sequence[QueryPlan] = (), progress: Progress | None = None) -> DeviceProfile:
        """CALIBRATE: a new profile, kept in the catalog; an interrupt leaves the earlier one."""
        return self._keep(device, calibrate(torch.device(device), plans, progress))

    def learn(self, device: str, rates: Sequence[KernelRate]) -> None:
        """What a finished query saw. Only measured profiles are refined: the default one is not of this device."""
        if rates and self._kept(device) is not None:
            self._keep(device, self.of(device).learn(rates))

    def _kept(self, device: str) -> DeviceProfile | None:
        text = self._catalog.get_profile(device_name(torch.device(device)))
        try:
            return DeviceProfile.from_json(text) if text else None
        except PlanError:
            return None  # of another version: as if there were none

    def _keep(self, device: str, profile: DeviceProfile) -> DeviceProfile:
        self._known[device] = profile
        self._catalog.put_profile(device_name(torch.device(device)), profile.to_json())
        return profile
