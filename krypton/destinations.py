"""INTO: where the maps of a query go, files named from a pattern or one table.

Files are written as their maps are finished; a table is made when all are. An interrupted query leaves what it has
beside the name that was asked for: `heat.partial.png`, `results_partial`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from krypton.bound import BoundQuery
from krypton.images import LoadedImage
from krypton.results import Heatmap
from krypton.results.classes import label_of
from krypton.results.files import check_target, expand_name
from krypton.results.tables import columns
from krypton.sql.ast import IntoFile, IntoTable


class Tables(Protocol):
    """What is asked of a catalog."""

    def write_table(self, name: str, parts: Sequence[Mapping[str, Any]], *, replace: bool = False) -> None: ...


@dataclass
class Destination:
    """Where one run of a query writes; nothing happens where the query says no INTO."""

    query: BoundQuery
    tables: Tables
    _parts: list[dict[str, Any]] = field(default_factory=list)

    def check(self, index: int, targets: Sequence[int]) -> None:
        """Whether the maps of an image can be written, now that their classes are known; raises as `check_target`."""
        if isinstance(self.query.into, IntoFile):
            for target in targets:
                check_target(self._name(self.query.into.path, index, target))

    def take(self, index: int, heatmaps: Sequence[Heatmap]) -> list[Heatmap]:
        """Write the finished maps of an image, or note their rows; returns them with `info["written"]`."""
        into = self.query.into
        if isinstance(into, IntoFile):
            return [self._save(heatmap, self._name(into.path, index, heatmap.target)) for heatmap in heatmaps]
        if isinstance(into, IntoTable):
            self._parts += [columns(heatmap) for heatmap in heatmaps]
            return [_written(heatmap, f"table {into.name}") for heatmap in heatmaps]
        return list(heatmaps)

    def finish(self) -> None:
        """Make the table of all maps."""
        if isinstance(self.query.into, IntoTable):
            self.tables.write_table(self.query.into.name, self._parts)

    def keep_partial(self, index: int, heatmap: Heatmap) -> Heatmap:
        """Write what an interrupted query has, beside the name that was asked for."""
        into = self.query.into
        if isinstance(into, IntoFile):
            path = Path(self._name(into.path, index, heatmap.target))
            return self._save(heatmap, str(path.with_name(f"{path.stem}.partial{path.suffix}")))
        if isinstance(into, IntoTable):
            name = f"{into.name}_partial"
            self.tables.write_table(name, [*self._parts, columns(heatmap)], replace=True)
            return _written(heatmap, f"table {name}")
        return heatmap

    def _save(self, heatmap: Heatmap, path: str) -> Heatmap:
        return _written(heatmap, str(heatmap.save(path)))

    def _name(self, pattern: str, index: int, target: int) -> str:
        """The file's name; images and classes of equal names are told apart by their number."""
        names = [Path(image.name if isinstance(image, LoadedImage) else image).stem for image in self.query.images]
        image = names[index]
        if Counter(names)[image] > 1:
            image = f"{image}-{index + 1}"
        # The suffix keeps `expand_name` from taking a dot in the stem for one.
        return expand_name(pattern, f"{image}.image", self._class_names[target])

    @cached_property
    def _class_names(self) -> list[str]:
        model = self.query.model
        labels = [label_of(index, model.labels, model.outputs) for index in range(model.outputs)]
        written = [expand_name("{class}", "", label).lower() for label in labels]
        count = Counter(written)
        pairs = enumerate(zip(labels, written, strict=True))
        return [f"{label}-{index}" if count[name] > 1 else label for index, (label, name) in pairs]


def _written(heatmap: Heatmap, where: str) -> Heatmap:
    return replace(heatmap, info={**heatmap.info, "written": where})
