"""What a domain's XML says that matters here. Format: https://libvirt.org/formatdomain.html."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from typing import Any

from .spec import Domain

MOST_XML = 4 << 20
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST = 64


def bare_domain(uuid: str, name: str, number: int) -> Domain | None:
    """Return a domain of which no more is known; None where that is no UUID."""
    if not _UUID.fullmatch(uuid):
        return None
    return Domain(uuid=uuid, name=name[:256], number=number, vcpus=0, disks=(), nics=())


def described(domain: Domain, text: str) -> Domain:
    """Return ``domain`` with what its XML tells.

    As it is, where that is no XML, or declares entities (libvirt's never does), or is huge.
    """
    if len(text) > MOST_XML or "<!" in text:
        return domain
    try:
        root = ET.fromstring(text)  # noqa: S314 - entities were refused above
    except ET.ParseError:
        return domain
    vcpu = root.find("vcpu")
    count = "" if vcpu is None else vcpu.get("current") or vcpu.text or ""
    disks = [source.get("file") or source.get("dev") or source.get("name") or ""
             for source in root.findall("devices/disk/source")]  # fmt: skip
    nics = [target.get("dev") or "" for target in root.findall("devices/interface/target")]
    return dataclasses.replace(
        domain, vcpus=int(count.strip()) if _number(count.strip()) else 0,
        disks=tuple(d[:4096] for d in disks[:_MOST] if d), nics=tuple(n[:64] for n in nics[:_MOST] if n),
    )  # fmt: skip


def to_json(domain: Domain) -> dict[str, Any]:
    """Return JSON values."""
    return {"uuid": domain.uuid, "name": domain.name, "number": domain.number, "vcpus": domain.vcpus,
            "disks": list(domain.disks), "nics": list(domain.nics), "moving": domain.moving}  # fmt: skip


def from_json(data: dict[str, Any]) -> Domain:
    """Return what :func:`to_json` was given."""
    return Domain(**{**data, "disks": tuple(data["disks"]), "nics": tuple(data["nics"])})


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
