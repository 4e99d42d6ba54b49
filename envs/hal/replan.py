"""A mind that carries on when the hardware beneath it changes: CPUs that go offline, and come back."""

from __future__ import annotations

from foreshare.policies.decide import Mind
from foreshare.policies.host import Host, Placement
from foreshare.policies.placement import Placer


def replan(mind: Mind, host: Host, held: Placement) -> None:
    """Carry on on another topology with as many CPUs, from what the VMs hold; what is not there any more is given up.

    What is known of the VMs stays known; only who is where is laid out anew.
    """
    mind.rebind(host)
    mind.placer = Placer(host)
    mind.placer.adopt(held)
