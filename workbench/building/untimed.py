"""Which backends `build --tune` times nothing by, and what they would be asked for instead."""

from collections.abc import Sequence

from backends import registry
from backends.contract import Tuner
from workbench.building.orders import Order
from workbench.record import backend_name


def tell_untimed(orders: Sequence[Order]) -> str | None:
    """Phrase by which backends nothing is timed that could be kept; None if something is by all."""
    able = [order for order in orders if order.answer.compilers is not None]
    found = dict.fromkeys(
        f"{order.name} for {order.target}{_hint(order)}" for order in able if not order.tuner
    )
    return f"--tune times nothing by {', '.join(found)}" if found else None


def _hint(order: Order) -> str:
    if order.chooser:
        return " (each build of it does)"
    name = order.named[0]
    backend = registry.find(name)
    if isinstance(backend, Tuner):
        for option, description in backend.options.items():
            for value in description.values:
                if backend.tunes(order.aim, {option: value}):
                    return f" ({backend_name(name, {option: value})} does)"
    return ""
