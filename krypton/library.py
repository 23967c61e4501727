"""The models of a session: definitions from the catalog, loaded when first asked for; live modules; sources named inline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from krypton.catalog import Catalog
from krypton.errors import BindError, CatalogError, unknown
from krypton.models import Definition, Loaded, Model, make_model, quietly
from krypton.sources import absolute, file_of, load

_Stamp = tuple[int, int] | None


class Library:
    """Finds and loads models by name or source; each is loaded once, and again when its file has changed."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._live: dict[str, Model] = {}
        self._loaded: dict[Definition, tuple[_Stamp, Model]] = {}

    def named(self, name: str) -> Model:
        """The model of that name, in any case; BindError for an unknown one, CatalogError for one that was not kept."""
        definition = self.definition(name)
        live = self.live(name)
        if live is not None:
            return live
        if definition.source is None:
            raise CatalogError(
                f"model {definition.name} was a live module of an earlier session, and those are not kept: register it again, "
                f"or drop it with DROP MODEL {definition.name}"
            )
        return self._load(definition)

    def definitions(self) -> list[Definition]:
        """What was said about all models, by name."""
        return self._catalog.models()

    def definition(self, name: str) -> Definition:
        """What was said about the model of that name; raises BindError for an unknown one."""
        definition = self._catalog.find_model(name)
        if definition is None:
            raise BindError(
                f"{unknown('model', name, [known.name for known in self.definitions()])} Make one with "
                f"CREATE MODEL {name} FROM '<source>', or name a source in quotes: 'torchvision:resnet18', 'net.pt2'"
            )
        return definition

    def live(self, name: str) -> Model | None:
        """The live module registered under that name in this session, if any."""
        return self._live.get(name.lower())

    def from_source(self, source: str) -> Model:
        """The model behind a source, as `sources.load` takes them."""
        file = file_of(source)
        if file is not None and not file.exists() and self._catalog.find_model(source) is not None:
            raise BindError(f"unknown model source '{source}': names of registered models are written without single quotes")
        return self._load(Definition(source, source))

    def from_object(self, given: Any, definition: Definition | None = None) -> Model:
        """The model of a live module, exported program, or source."""
        if isinstance(given, str):
            return self.from_source(given)
        if isinstance(given, ExportedProgram):
            with quietly():
                loaded = Loaded(given.module(), given)
        elif isinstance(given, nn.Module):
            loaded = Loaded(given)
        else:
            raise BindError(f"a model is a torch.nn.Module, or a text that names a source, not {type(given).__name__}")
        return make_model(loaded, definition or Definition(type(loaded.module).__name__))

    def register(self, definition: Definition, module: Any) -> Model:
        """Make a live module known under a name, in the place of whatever had it."""
        model = self.from_object(module, replace(definition, source=None))
        self._catalog.put_model(replace(definition, source=None, input_shape=model.preprocessing.shape))
        self._live[definition.name.lower()] = model
        return model

    def create(self, definition: Definition, given: Any, *, or_replace: bool) -> Model:
        """Load a new model, from `definition.source` or else the live module `given`, and keep it. The name must be free."""
        existing = self._catalog.find_model(definition.name)
        # A live module of an earlier session is but a name, and a script that is run again means to fill it.
        if existing is not None and not or_replace and (existing.source is not None or self.live(definition.name)):
            raise CatalogError(
                f"model {existing.name} exists already: write CREATE OR REPLACE MODEL, choose another name, "
                f"or drop it with DROP MODEL {existing.name}"
            )
        if definition.source is None and not isinstance(given, str):
            return self.register(definition, given)
        source = absolute(definition.source or given)
        definition = replace(definition, source=source)
        model = self._load(definition)
        self._catalog.put_model(definition)
        self._live.pop(definition.name.lower(), None)
        return model

    def drop(self, name: str, *, if_exists: bool) -> bool:
        """Forget a model; whether there was one. BindError for an unknown one, unless `if_exists`."""
        if if_exists and self._catalog.find_model(name) is None:
            return False
        self._catalog.drop_model(self.definition(name).name)
        self._live.pop(name.lower(), None)
        return True

    def _load(self, definition: Definition) -> Model:
        assert definition.source is not None
        file = file_of(definition.source)
        stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file is not None and file.is_file() else None
        known = self._loaded.get(definition)
        if known is not None and known[0] == stamp:
            return known[1]
        model = make_model(load(definition.source, trusted=definition.trusted), definition)
        self._loaded[definition] = stamp, model
        return model
