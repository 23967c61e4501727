"""Capture: what it keeps as it was, what it refuses and with which words, and what its plans say of it."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.judge import check_exact, run_plan, settings_of
from torch import Tensor, nn

from krypton.errors import CaptureError
from krypton.ir.occlusions import Grid
from krypton.planner.capture import capture
from krypton.planner.optimizer import plan_query
from krypton.planner.trials import Trial, device_of, evaluating
from krypton.planner.whole import run_whole

IMAGE = (3, 10, 9)
GRID = Grid(IMAGE[1:], (4, 3), (3, 3))


class Model(nn.Module):
    """A convolution, then a function of its result and the image; by default the mean over space."""

    def __init__(self, function: Callable[..., object] = lambda s, x, y: y.mean((2, 3)), **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x, self.conv(x))


def picture() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(IMAGE, generator=generator), torch.randn(IMAGE, generator=generator)


class _TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y).mean((2, 3))


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "batch norm without statistics": (
        Model(lambda s, x, y: s.norm(y).mean((2, 3)), norm=nn.BatchNorm2d(4, track_running_stats=False)),
        r"mixes the examples of a batch.*batch norm.*runs naively",
    ),
    "a mean over the batch": (Model(lambda s, x, y: (y - y.mean(0)).mean((2, 3))), "mixes the examples of a batch"),
    "two inputs": (_TwoInputs(), "missing a required argument: 'y'"),
    "a pair": (Model(lambda s, x, y: (y.mean((2, 3)), y)), "one tensor|one output"),
    "a dict": (Model(lambda s, x, y: {"logits": y.mean((2, 3))}), r"one tensor \(batch, outputs\).*not dict: wrap it"),
    "a map": (Model(lambda s, x, y: y), r"not \(batch, 4, 10, 9\): wrap it"),
    "a number": (Model(lambda s, x, y: y.mean((1, 2, 3))), "one tensor.*wrap it"),
    "branches on data": (Model(lambda s, x, y: y.mean((2, 3)) if y.sum() > 0 else -y.mean((2, 3))), "cannot capture Model: "),
    "python numbers from data": (Model(lambda s, x, y: y.mean((2, 3)) * float(x.max())), "cannot capture Model: "),
    "an exception": (Model(lambda s, x, y: y.nothing), "cannot capture Model: .*nothing"),
    "infinite outputs": (Model(lambda s, x, y: 1 / (y - y).mean((2, 3))), "NaN or infinite outputs"),
    "other sizes only": (Model(lambda s, x, y: s.head(y.flatten(1)), head=nn.Linear(7, 2)), "cannot capture Model: "),
    "dropout that is always on": (Model(lambda s, x, y: F.dropout(y, 0.5, training=True).mean((2, 3))), "random|mixes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_with_the_reason(name: str) -> None:
    model, why = REFUSED[name]
    with pytest.raises(CaptureError, match=why) as caught:
        capture(model, IMAGE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["branches on data", "other sizes only"])  # a graph is printed, a traceback logged
def test_pytorch_is_kept_quiet_and_its_loggers_are_put_back(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(known) for known in ("torch", "torch.__trace", "torch._subclasses.fake_tensor")]
    before = [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers]
    stderr = sys.stderr
    with pytest.raises(CaptureError):
        capture(REFUSED[name][0], IMAGE)
    assert capfd.readouterr() == ("", "")
    assert [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers] == before
    assert sys.stderr is stderr


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["conv.weight", "norm.running_var"])
def test_unsound_weights_are_named(value: float, where: str) -> None:
    model = Model(lambda s, x, y: s.norm(y).mean((2, 3)), norm=nn.BatchNorm2d(4))
    with torch.no_grad():
        dict([*model.named_parameters(), *model.named_buffers()])[where].view(-1)[0] = value
    with pytest.raises(CaptureError, match=f"NaN or infinite values: {where}"):
        capture(model, IMAGE)


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_in_train_mode_is_left_as_it_was(fails: bool) -> None:
    model = Model(lambda s, x, y: s.norm(s.drop(y)) if fails else s.norm(s.drop(y)).mean((2, 3)))
    model.norm, model.drop = nn.BatchNorm2d(4), nn.Dropout(0.9)
    model.train()
    model.drop.eval()  # flags may differ from part to part
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if fails:
        with pytest.raises(CaptureError):
            capture(model, IMAGE)
    else:
        check_exact(model, *picture(), GRID)
    assert (model.training, model.norm.training, model.drop.training) == (True, True, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def chaotic(function: Callable[[Tensor], Tensor] = lambda y: y, times: float = 1e6) -> Model:
    """Blows rounding up, as deep untrained networks do: a million times leaves float32 two digits, 1e15 float64 none."""
    return Model(lambda s, x, y: torch.sin(times * s.head(function(y).flatten(1))), head=nn.Linear(4 * 10 * 9, 5)).eval()


def two_images() -> Tensor:
    return torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("times", [1e6, 1e15])
def test_rounding_is_not_taken_for_mixing(times: float) -> None:
    model, images = chaotic(times=times), two_images()
    with torch.no_grad():
        singles = torch.cat([model(image[None]) for image in images])
        assert (model(images) - singles).abs().max() > 0.01
    assert not Trial(model, images).mixes()
    assert capture(model, IMAGE).outputs == 5


@pytest.mark.parametrize("mixing", [lambda y: y - y.mean(0), nn.BatchNorm2d(4, track_running_stats=False).eval()])
@pytest.mark.parametrize("times", [1e6, 1e15])
def test_mixing_is_found_behind_rounding(mixing: Callable[[Tensor], Tensor], times: float) -> None:
    with pytest.raises(CaptureError, match="mixes the examples of a batch"):
        capture(chaotic(mixing, times), IMAGE)


@pytest.mark.parametrize("model", [Model(), chaotic()])
def test_logits_of_another_function_are_found(model: nn.Module) -> None:
    images = two_images()
    trial = Trial(model, images)
    with torch.no_grad():
        assert trial.agrees(torch.cat([model(image[None]) for image in images]))
        assert not trial.agrees(model(images.flip(2)))
        assert not trial.agrees(model(images[:1]))


def test_large_biases_hide_nothing() -> None:
    """What counts is how much images change, not how large the outputs are."""
    model = Model(lambda s, x, y: (y - y.mean(0)).mean((2, 3)) + 1e4)
    assert Trial(model, two_images()).mixes()
    steady, images = Model(lambda s, x, y: y.mean((2, 3)) + 1e4), two_images()
    assert not Trial(steady, images).mixes()
    with torch.no_grad():
        assert not Trial(steady, images).agrees(steady(images.flip(2)))


def test_models_that_do_not_run_in_float64_are_judged_in_float32() -> None:
    kernel = torch.ones(2, 4, 1, 1)
    model = Model(lambda s, x, y: torch.sin(300 * F.conv2d(y, kernel).mean((2, 3))))
    assert Trial(model, two_images()).precise is None
    assert not Trial(model, two_images()).mixes()
    assert Trial(Model(lambda s, x, y: F.conv2d(y - y.mean(0), kernel).mean((2, 3))), two_images()).mixes()


class _Constant(nn.Module):
    """No parameters, one buffer."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3, 1, 1, device=device))

    def forward(self, x: Tensor) -> Tensor:
        assert x.device == self.scale.device
        return (x * self.scale).mean((2, 3))


def test_a_module_lives_where_its_parameters_or_buffers_are() -> None:
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1, device="meta"))) == torch.device("meta")
    assert device_of(_Constant("meta")) == torch.device("meta")


@pytest.mark.parametrize("module", [_Constant("meta"), nn.Sequential(nn.Conv2d(3, 2, 1, device="meta"), nn.Flatten())])
def test_inputs_are_made_where_the_module_lives(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device that holds no numbers, for every computer has it; what comes after the export wants some."""

    class SeenError(Exception):
        pass

    def export(module: nn.Module, example: tuple[Tensor], **options: object) -> None:
        raise SeenError(example[0].device)

    monkeypatch.setattr(torch.export, "export", export)
    monkeypatch.setattr("krypton.planner.capture.check_weights", lambda module: None)
    with pytest.raises(CaptureError, match="meta"):
        capture(module, IMAGE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_module_on_a_gpu_is_captured_there() -> None:
    model = Model(lambda s, x, y: (2 * s.norm(y) + s.shift).relu().mean((2, 3)), norm=nn.BatchNorm2d(4))
    model.register_buffer("shift", torch.ones(()))
    captured = capture(model.cuda(), IMAGE)
    images = two_images().cuda()
    assert Trial(model, images).agrees(run_whole(captured.graph, captured.weights, images))
    assert device_of(model).type == "cuda"


def test_evaluating_puts_flags_back_after_an_exception() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3).eval())

    def fail() -> None:
        with evaluating(model):
            assert not model[0].training
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [part.training for part in model.modules()] == [True, True, False]


def test_capturing_leaves_the_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    capture(Model(), IMAGE)
    # Model() itself seeds and draws; what capture does comes on top of that
    torch.manual_seed(7)
    model = Model()
    state = torch.get_rng_state()
    capture(model, IMAGE)
    assert torch.equal(torch.get_rng_state(), state)
    assert expected.shape == (2,)


UNUSUAL: dict[str, nn.Module] = {
    "dropout": Model(lambda s, x, y: s.drop(y).mean((2, 3)), drop=nn.Dropout2d(0.5)),
    "no weights": nn.Sequential(nn.AvgPool2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "one output": Model(lambda s, x, y: s.head(y.mean((2, 3))), head=nn.Linear(4, 1)),
    "a softmax of its own": Model(lambda s, x, y: y.mean((2, 3)).softmax(1)),
    "vectors that branch": Model(lambda s, x, y: y.mean((2, 3)) * y.amax((2, 3)) + y.std((2, 3))),
    "sizes read from the image": Model(
        lambda s, x, y: y.reshape(x.shape[0], y.shape[1], -1).sum(2) / (x.shape[2] * x.shape[3])
    ),
    "weights that are tied": Model(lambda s, x, y: F.conv2d(F.relu(y), s.conv.weight.transpose(0, 1)).mean((2, 3))),
    "weights made when it runs": Model(
        lambda s, x, y: s.wide(y).mean((2, 3)), wide=nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    ),
    "half precision inside": Model(lambda s, x, y: (y.bfloat16() * 2).float().mean((2, 3))),
    "what depends on no image": Model(lambda s, x, y: y.mean((2, 3)) + torch.ones(x.shape[0], 4)),
    "a class token": Model(lambda s, x, y: torch.cat([s.token.expand(x.shape[0], -1, -1), y.flatten(2)], 2).mean(2)),
    "attention": Model(lambda s, x, y: F.scaled_dot_product_attention(*[y.flatten(2).transpose(1, 2)] * 3).mean(1)),
    "parts of parts": Model(lambda s, x, y: torch.stack([p.mean((1, 2)) for p in y.unbind(1)], 1)),
}
UNUSUAL["a class token"].token = nn.Parameter(torch.ones(1, 4, 1))


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_are_exact(name: str) -> None:
    model = UNUSUAL[name].train()
    if name == "half precision inside":  # has no float64 to be judged by: equal steps, equal rounding
        captured = capture(model, IMAGE)
        image, fill = picture()
        logits = run_plan(plan_query(captured, GRID, settings=settings_of()), captured, image, fill)
        assert torch.isfinite(logits).all()
        return
    check_exact(model, *picture(), GRID, {"disabled_rules": "full_when_cheaper"})


def test_a_constant_model_has_the_same_answer_everywhere() -> None:
    model = Model(lambda s, x, y: s.token.expand(x.shape[0], 5))
    model.token = nn.Parameter(torch.randn(1, 5))
    captured = capture(model, IMAGE)
    logits = run_plan(plan_query(captured, GRID, settings=settings_of()), captured, *picture())
    assert torch.equal(logits, model.token.detach().expand(GRID.count, 5))


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16])
def test_parts_in_half_precision_stay_as_the_model_has_them(cast: torch.dtype) -> None:
    model = Model(lambda s, x, y: s.small(y.to(cast)).float().mean((2, 3)), small=nn.Conv2d(4, 3, 3).to(cast))
    captured = capture(model, IMAGE)
    images = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(run_whole(captured.graph, captured.weights, images), model(images), rtol=1e-2, atol=1e-3)


def test_weights_in_any_memory_layout_are_captured() -> None:
    model = Model()
    model.conv.weight = nn.Parameter(torch.randn(3, 4, 3, 3).transpose(0, 1))
    check_exact(model, *picture(), GRID)
    check_exact(Model().to(memory_format=torch.channels_last), *picture(), GRID)


def test_nodes_know_the_models_own_names() -> None:
    model = Model(lambda s, x, y: s.blocks(y).mean((2, 3)))
    model.blocks = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 2, 1)))
    graph = capture(model, IMAGE).graph
    assert [node.module for node in graph if node.op == "conv"] == ["conv", "blocks.0", "blocks.2.0"]


def test_a_captured_model_knows_its_sizes() -> None:
    captured = capture(Model(), IMAGE)
    assert captured.input_shape == IMAGE
    assert captured.outputs == 4
    assert capture(Model(), (3, 7, 23)).input_shape == (3, 7, 23)


def test_plans_say_where_increments_end() -> None:
    model = Model(lambda s, x, y: s.late(F.group_norm(y, 2)).mean((2, 3)), late=nn.Conv2d(4, 3, 1))
    plan = plan_query(capture(model, IMAGE), GRID, settings=settings_of({"disabled_rules": "full_when_cheaper"}))
    assert [note for note in plan.notes if "increments end before group norm, 2 groups" in note]


def test_without_a_graph_plans_are_naive_and_say_why() -> None:
    plan = plan_query(None, GRID, reason="it branches on data")
    assert (plan.kind, plan.tensor, plan.notes) == ("naive", None, ("it branches on data",))
