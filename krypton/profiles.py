"""What a session knows of its devices: profiles, measured by CALIBRATE and refined by queries; and how long queries took.

Both are kept in the catalog, by what the device is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from krypton.catalog import Catalog
from krypton.errors import PlanError
from krypton.ir.plan import QueryPlan
from krypton.planner.calibration import Progress, calibrate, device_name
from krypton.planner.correction import Finished
from krypton.planner.profile import DeviceProfile, KernelRate
from krypton.sensitivities import Sensitivities

MOST_QUERIES = 200
"""So many of a device's finished queries are kept to correct estimates: machines change."""


class Profiles:
    """Profiles by device ("cpu", "cuda:0"), the default one where nothing was measured; `sensitivities` are of models there."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog, self.sensitivities = catalog, Sensitivities(catalog)
        self._known: dict[str, DeviceProfile] = {}

    def of(self, device: str) -> DeviceProfile:
        """The profile that plans for this device are priced with."""
        if device not in self._known:
            self._known[device] = self._kept(device) or DeviceProfile()
        return self._known[device]

    def measure(self, device: str, plans: Sequence[QueryPlan] = (), progress: Progress | None = None) -> DeviceProfile:
        """CALIBRATE: a new profile, kept in the catalog; an interrupt leaves the earlier one.

        Finished queries are forgotten: what they say is how wrong the earlier profile was.
        """
        profile = self._keep(device, calibrate(torch.device(device), plans, progress))
        self._catalog.forget_queries(device_name(torch.device(device)))
        return profile

    def learn(self, device: str, rates: Sequence[KernelRate]) -> None:
        """What a finished query saw. Only measured profiles are refined: the default one is not of this device."""
        if rates and self._kept(device) is not None:
            self._keep(device, self.of(device).learn(rates))

    def finished(self, device: str, threads: int | None = None) -> list[Finished]:
        """The queries that ended on a device, with so many threads (None: as it is), the latest first."""
        rows = self._catalog.finished_queries(device_name(torch.device(device), threads))
        return [Finished(model, json.loads(milliseconds), seconds) for model, milliseconds, seconds in rows]

    def remember(self, device: str, query: Finished, threads: int | None = None) -> None:
        """Note a query that ended."""
        name = device_name(torch.device(device), threads)
        self._catalog.put_query(name, query.model, json.dumps(dict(query.milliseconds)), query.seconds, MOST_QUERIES)

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
