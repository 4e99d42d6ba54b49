"""The learned policy's network as an ONNX graph, written node by node.

The same bytes for the same weights, no dependence on how an exporter of the day traces, and a hundredth of its time;
that it is the trained network is for the parity gate to say (:mod:`.parity`), not for the writer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from foreshare.policies.allocators.corrected import ACTIONS
from foreshare.policies.features import F, G, schema_hash
from foreshare.policies.learned.network import Network

OPSET, IR_VERSION = 20, 10
INPUTS, OUTPUT = ("vms", "mask", "host"), "actions"


class _Graph:
    """Nodes and constants so far; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        if all(c.name != name for c in self.constants):
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        from onnx import helper

        out = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out


def onnx_of(network: Network) -> bytes:
    """Return the network as one ONNX file: normalisation inside, any batch and any number of VMs from 1 on."""
    import onnx
    from onnx import TensorProto, helper

    g, a, (e, c, d) = _Graph(), network.arrays, network.widths

    def weight(name: str) -> str:
        return g.constant(name, a[name])

    def of_one(name: str, value: float) -> str:
        return g.constant(name, np.float32(value))

    first, last = g.constant("axis_vms", np.array([1])), g.constant("axis_last", np.array([-1]))
    zero, one, least = of_one("zero", 0.0), of_one("one", 1.0), of_one("least", -1.0)
    x = g.add("Mul", g.add("Sub", "vms", weight("vm_mean")), weight("vm_scale"), name="x")
    alive = g.add("Greater", "mask", zero)
    there = g.add("Unsqueeze", alive, last, name="there")
    out = g.add("Add", g.add("MatMul", x, weight("lin_w")), weight("out_b"))
    code = context = ""
    if e:
        code = g.add("Tanh", g.add("Add", g.add("MatMul", x, weight("enc_w")), weight("enc_b")), name="h")
    if c:
        seen = g.add("Mul", g.add("Sub", "host", weight("host_mean")), weight("host_scale"), name="g")
        if e:
            count = g.add("ReduceSum", g.add("Cast", alive, to=TensorProto.FLOAT), first, keepdims=1)
            total = g.add("ReduceSum", g.add("Where", there, code, zero), first, keepdims=0)
            mean = g.add("Div", total, g.add("Max", count, one))
            most = g.add("ReduceMax", g.add("Where", there, code, least), first, keepdims=0)
            most = g.add("Where", g.add("Greater", count, zero), most, zero)
            seen = g.add("Concat", mean, most, seen, axis=-1)
        context = g.add("Tanh", g.add("Add", g.add("MatMul", seen, weight("ctx_w")), weight("ctx_b")), name="c")
    if d:
        before = weight("head_b")
        if c:  # the same for all VMs of a host: once
            part = g.add("MatMul", context, g.constant("head_w_context", a["head_w"][e:]))
            before = g.add("Unsqueeze", g.add("Add", part, before), first)
        if e:
            before = g.add("Add", g.add("MatMul", code, g.constant("head_w_code", a["head_w"][:e])), before)
        out = g.add("Add", out, g.add("MatMul", g.add("Tanh", before, name="z"), weight("out_w")))
    g.add("Where", there, g.add("Tanh", out), zero, name=OUTPUT)
    used = {i for node in g.nodes for i in node.input}
    shapes = {"vms": ("B", "N", F), "mask": ("B", "N"), "host": ("B", G), OUTPUT: ("B", "N", ACTIONS)}
    value = {k: helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in shapes.items()}
    graph = helper.make_graph(
        g.nodes, "foreshare policy", [value[k] for k in INPUTS], [value[OUTPUT]],
        [constant for constant in g.constants if constant.name in used],
    )  # fmt: skip
    model = helper.make_model(
        graph, producer_name="foreshare", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    model.metadata_props.add(key="foreshare.schema", value=schema_hash())
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
