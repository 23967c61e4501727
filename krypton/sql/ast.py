"""The statements of the language as plain data: what the parser makes, the printer prints and the binder reads.

Frozen dataclasses of the standard library's values only; nothing is resolved or checked against a model here. A clause
that was not written is None (False for flags, () for options), so that printing says no more than the text did; the
binder fills in the defaults. Sizes and positions are in pixels, rows first: height x width, (top, left, height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Number: TypeAlias = int | float
OptionValue: TypeAlias = bool | int | float | str
Score: TypeAlias = Literal["probability", "logit", "margin"]
Mode: TypeAlias = Literal["naive", "exact", "approximate"]
FillName: TypeAlias = Literal["black", "gray", "white", "mean", "blur", "noise"]
PlanFormat: TypeAlias = Literal["text", "json", "dot", "mermaid"]
Activation: TypeAlias = Literal["softmax", "sigmoid", "none"]
Listing: TypeAlias = Literal["models", "rules", "operators", "kernels", "settings", "tunings", "devices"]


# ---------------------------------------------------------------------------------------------------- operands


@dataclass(frozen=True, slots=True)
class Param:
    """`$name`: a value handed over beside the text."""

    name: str


@dataclass(frozen=True, slots=True)
class PathRef:
    """`'scan.png'`: a file, or where the statement says so a folder or glob."""

    path: str


@dataclass(frozen=True, slots=True)
class Subquery:
    """`(SELECT path FROM ...)`: SQL for DuckDB, verbatim, without the outer parentheses."""

    sql: str


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model registered under a name."""

    name: str


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`'torchvision:resnet18'` or `'net.pt2'`: where a model comes from."""

    source: str


Image: TypeAlias = PathRef | Param | Subquery
ModelRef: TypeAlias = ModelName | ModelSource | Param


# ---------------------------------------------------------------------------------------------------- clauses


@dataclass(frozen=True, slots=True)
class ClassPredicted:
    """FOR CLASS PREDICTED: the class that the model gives the unmodified image."""


@dataclass(frozen=True, slots=True)
class ClassIndex:
    """FOR CLASS 281."""

    index: int


@dataclass(frozen=True, slots=True)
class ClassLabel:
    """FOR CLASS 'tabby'."""

    label: str


@dataclass(frozen=True, slots=True)
class ClassTop:
    """FOR CLASS TOP 3: the most probable classes of the unmodified image."""

    count: int


@dataclass(frozen=True, slots=True)
class ClassAll:
    """FOR CLASS ALL: every class the model has."""


@dataclass(frozen=True, slots=True)
class Size:
    """PATCH and STRIDE: `16` is 16 x 16. Any integers parse; the binder refuses what makes no sense."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Superpixels:
    """MASKS SUPERPIXELS 50: about so many segments, one occlusion each."""

    count: int


@dataclass(frozen=True, slots=True)
class NamedFill:
    """FILL GRAY and its like."""

    name: FillName


@dataclass(frozen=True, slots=True)
class RgbFill:
    """FILL RGB(128, 128, 128): a colour in pixel space, 0 to 255."""

    red: Number
    green: Number
    blue: Number


@dataclass(frozen=True, slots=True)
class Region:
    """IN REGION (top, left, height, width)."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class WithOption:
    """One `name => value` of WITH; names differ within a statement, whatever their case. A bare word is a text."""

    name: str
    value: OptionValue


@dataclass(frozen=True, slots=True)
class IntoFile:
    """INTO 'heat.png'; the path may hold '{image}' and '{class}'."""

    path: str


@dataclass(frozen=True, slots=True)
class IntoTable:
    """INTO TABLE results."""

    name: str


Classes: TypeAlias = ClassPredicted | ClassIndex | ClassLabel | ClassTop | ClassAll
Masks: TypeAlias = Param | PathRef | Superpixels
Fill: TypeAlias = NamedFill | RgbFill | PathRef | Param
Into: TypeAlias = IntoFile | IntoTable


# ---------------------------------------------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True)
class ExplainOcclusion:
    """EXPLAIN OCCLUSION OF <image> USING MODEL <model> and its clauses, in the order of the language."""

    image: Image
    model: ModelRef
    classes: Classes | None = None
    score: Score | None = None
    patch: Size | None = None
    stride: Size | None = None
    masks: Masks | None = None
    fill: Fill | None = None
    region: Region | None = None
    mode: Mode | None = None
    options: tuple[WithOption, ...] = ()
    within: Number | None = None
    device: str | None = None
    into: Into | None = None


@dataclass(frozen=True, slots=True)
class ExplainPlan:
    """EXPLAIN [ANALYZE] [VERBOSE] [(FORMAT ..., COSTS ...)] PLAN FOR <query>."""

    query: ExplainOcclusion
    analyze: bool = False
    verbose: bool = False
    format: PlanFormat | None = None
    costs: bool | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """ESTIMATE <query>."""

    query: ExplainOcclusion


@dataclass(frozen=True, slots=True)
class CreateModel:
    """CREATE MODEL; `input_shape` is (channels, height, width), `mean` and `std` have one number per channel."""

    name: str
    source: ModelSource | Param
    or_replace: bool = False
    input_shape: tuple[int, int, int] | None = None
    mean: tuple[Number, ...] | None = None
    std: tuple[Number, ...] | None = None
    labels: str | None = None
    activation: Activation | None = None
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class DropModel:
    """DROP MODEL [IF EXISTS] <name>."""

    name: str
    if_exists: bool = False


@dataclass(frozen=True, slots=True)
class DescribeModel:
    """DESCRIBE MODEL <name>."""

    name: str


@dataclass(frozen=True, slots=True)
class TuneModel:
    """TUNE MODEL <name> OVER <images> ... FOR SSIM <x>; `sample` is how many of the images to use."""

    model: str
    images: PathRef | Subquery
    ssim: Number
    patch: Size | None = None
    stride: Size | None = None
    fill: Fill | None = None
    sample: int | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Calibrate:
    """CALIBRATE [MODEL <name>] [DEVICE '<device>']."""

    model: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Show:
    """SHOW MODELS and its like."""

    what: Listing


@dataclass(frozen=True, slots=True)
class SetOption:
    """SET krypton.<name> = <value>; the name as written, without the prefix. A bare word is a text."""

    name: str
    value: OptionValue


@dataclass(frozen=True, slots=True)
class ResetOption:
    """RESET krypton.<name>; the name as written, without the prefix."""

    name: str


@dataclass(frozen=True, slots=True)
class DuckDBStatement:
    """Anything else, from its first word to its last, for the embedded DuckDB."""

    text: str


Statement: TypeAlias = (
    ExplainOcclusion
    | ExplainPlan
    | Estimate
    | CreateModel
    | DropModel
    | DescribeModel
    | TuneModel
    | Calibrate
    | Show
    | SetOption
    | ResetOption
    | DuckDBStatement
)
