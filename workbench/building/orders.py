"""The engines that a call of `build` wants: every backend, target and shape, with what shapes each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends import registry
from backends.contract import Chooser, Keeper, Shapes, Target, Tuner, Unsupported
from models.config import DecoderConfig
from models.errors import UserError
from workbench.building.questions import Answer, ask_all
from workbench.building.recipe import TUNES_NOTHING, Form, Recipe, Tuning, make_recipe
from workbench.building.request import BuildRequest
from workbench.building.targets import aim, devices_here, find_here
from workbench.building.work import find_keeper, name_form
from workbench.comparing.request import Named
from workbench.comparing.source import read_model
from workbench.device.machine import Device
from workbench.plan import plan
from workbench.record import backend_name


@dataclass(frozen=True)
class Order:
    """One engine that is wanted."""

    named: Named
    answer: Answer
    """What its backend says of the target."""
    target: str
    aim: Target
    here: Device | None
    """The device of this machine that the target is."""
    model: str
    config: DecoderConfig
    shapes: Shapes

    @property
    def name(self) -> str:
        """The backend as typed."""
        return backend_name(*self.named)

    @property
    def chooser(self) -> bool:
        """Whether a build times kernels where the device is here."""
        backend = registry.find(self.named[0])
        return isinstance(backend, Chooser) and backend.tunes(self.aim, self.named[1])

    @property
    def tuner(self) -> Tuner | None:
        """The backend, if what it times serves builds elsewhere, too."""
        backend = registry.find(self.named[0])
        return backend if self.chooser and isinstance(backend, Tuner) else None

    @property
    def form(self) -> Form:
        """What the backend's engines differ by."""
        return name_form(self.named[0], self.config, self.shapes, self.named[1])

    def recipe(self, tuning: Tuning) -> Recipe:
        """Return what the engine is made of; the backend must have told its compilers."""
        return self._make_recipe(self.form, tuning)

    def data_recipe(self) -> Recipe:
        """Return what tuning data are made of: they are for one target, whoever shares untuned engines."""
        return self._make_recipe(replace(self.form, made_for="card"), TUNES_NOTHING)

    def _make_recipe(self, form: Form, tuning: Tuning) -> Recipe:
        return make_recipe(form, self.aim, self.target, self.here, self.answer.compilers or {}, tuning)


def place_orders(request: BuildRequest) -> list[Order]:
    """List every engine wanted, in the order of backends, targets and shapes; raises UserError."""
    devices = devices_here()
    for name, options in request.backends or ():
        registry.check_options(registry.find(name), options)
    wanted = request.backends or tuple((name, {}) for name in registry.names() if _can_keep(name))
    here = {name: find_here(name, devices) for name in request.targets}
    settings = {name: request.settle(name) for name in request.targets}
    groups = {
        name: plan(read_model(each.model), each.workload, "--max-context") for name, each in settings.items()
    }
    aims = [aim(name, settings[name].dtype, here[name]) for name in request.targets]
    orders = []
    for named, answers in zip(wanted, answer_all(request, wanted, aims), strict=True):
        for name, target, answer in zip(request.targets, aims, answers, strict=True):
            model = settings[name].model
            orders += [
                Order(named, answer, name, target, here[name], model, read_model(model), group.shapes)
                for group in groups[name]
            ]
    if request.backends is None:
        orders = [order for order in orders if order.answer.status != "missing"]
    if not orders:
        raise UserError("no backend that can build ahead is installed: see `python -m workbench backends`")
    return orders


def answer_all(request: BuildRequest, wanted: Sequence[Named], aims: Sequence[Target]) -> list[list[Answer]]:
    """Ask the backends that can keep what they build; the others' answer is why they cannot."""
    answers: dict[int, list[Answer]] = {}
    for index, (name, _) in enumerate(wanted):
        try:
            find_keeper(name)
        except Unsupported as refusal:
            answers[index] = [Answer(None, "unsupported", str(refusal))] * len(aims)
    asked = [index for index in range(len(wanted)) if index not in answers]
    found = ask_all([(wanted[index], request.python(wanted[index][0])) for index in asked], aims)
    answers |= dict(zip(asked, found, strict=True))
    return [answers[index] for index in range(len(wanted))]


def _can_keep(name: str) -> bool:
    try:
        return isinstance(registry.find(name), Keeper)
    except UserError:
        return False  # another distribution's, and broken: `backends` says how
