"""FP16 by data flow: matrix products and what lies between them in half precision, norms, sums and positions in FP32.

Each value gets a role, in the order of the graph. What is computed from token positions and masks alone is exact, and
stays FP32. What is squared or summed up outgrows FP16 (a square does from 256 on), so it stays FP32 until a bounded
function ends it, or until it has scaled an activation down, as the root of a mean does in every kind of norm.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

from accel_lib.errors import ConversionError, require

FP16_MAX = 65_504.0
_MASK = 1e4  # stands for what FP16 does not hold in a mask: its exponential is 0, and two of them add up

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
MOVES = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad"),
        *("Reshape", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
        *("Trilu", "Unsqueeze", "Where"),
    }
)
_POINTWISE = frozenset(
    {
        *("Abs", "Add", "Celu", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "PRelu"),
        *("Relu", "Selu", "Sub", "Sum", "Swish", "ThresholdedRelu"),
    }
)
_POINTWISE_FP32 = frozenset({"Clip", "Div"})
_BOUNDED = frozenset({"Erf", "HardSigmoid", "Sigmoid", "Softsign", "Tanh"})
_NORMALIZED = frozenset({"Softmax", "LogSoftmax"})  # and whatever ends in "Normalization"
_SUMS_AND_ROOTS = frozenset({"CumSum", "Reciprocal", "Sqrt"})  # and whatever begins with "Reduce"
_POWERS = frozenset({"Pow", "Exp"})


class Role(enum.Enum):
    """What a float value is, which decides the type it may be computed in."""

    EXACT = "from positions and masks alone"
    PLAIN = "an activation"
    GROWN = "a power of activations"
    SCALE = "a sum or a root of activations"


_SMALL = {Role.EXACT, Role.PLAIN}


def to_fp16(model: Any) -> None:
    """Type a graph of `onnx_ir` in FP16, in place; its inputs and outputs keep their types, its order stays valid.

    Weights are cast when they are written, one at a time.

    Raises
    ------
    ConversionError
        The graph branches or loops, or a weight is beyond FP16.
    """
    _Typing(model.graph).run()


class _Typing:
    """One pass over a graph: a role and a type for each value, and casts where types meet."""

    def __init__(self, graph: Any) -> None:
        self._ir = require("onnx_ir", extra="convert")
        self._full, self._half = self._ir.DataType.FLOAT, self._ir.DataType.FLOAT16
        self._graph = graph
        self._roles: dict[Any, Role] = {}
        self._huge: set[Any] = set()  # exact values that may be beyond FP16, such as masks
        self._casts: dict[Any, Any] = {}

    def run(self) -> None:
        for node in list(self._graph):
            if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()):
                raise ConversionError(
                    "A graph with branches or loops cannot be typed in FP16.",
                    seen=f"{node.op_type} {node.name}",
                    fix='accel.to_onnx(model, precision="fp32")',
                )
            floats = [value for value in node.inputs if value is not None and self._is_float(value)]
            made = [value for value in node.outputs if value.dtype == self._full]
            role = self._role(node, floats)
            half = self._in_half(node, role, floats) if made else all(value.dtype == self._half for value in floats)
            if role is Role.EXACT and any(value in self._huge or _beyond(value) for value in floats):
                self._huge.update(made)
            for index, value in enumerate(node.inputs):
                if value in floats:
                    node.replace_input_with(index, self._typed(value, node, self._half if half else self._full))
            for value in made:
                self._roles[value] = role
                value.dtype = self._half if half else self._full
        for output in self._graph.outputs:
            self._restore(output)
        for name in [name for name, value in self._graph.initializers.items() if not value.uses()]:
            del self._graph.initializers[name]

    def _role(self, node: Any, floats: list[Any]) -> Role:
        """The role of what a node gives."""
        kind, roles = node.op_type, {self._roles[value] for value in floats if value in self._roles}
        if kind in _PRODUCTS or (not roles and _moves_weights(node, floats)):
            return Role.PLAIN
        if roles <= {Role.EXACT}:
            return Role.EXACT
        if kind in _NORMALIZED | _BOUNDED or kind.endswith("Normalization"):
            return Role.PLAIN
        if kind in _SUMS_AND_ROOTS or kind.startswith("Reduce"):
            return Role.SCALE
        if kind in _POWERS or (kind == "Mul" and _origin(node.inputs[0]) is _origin(node.inputs[1])):
            return Role.SCALE if roles <= {Role.EXACT, Role.SCALE} else Role.GROWN
        if roles <= _SMALL or kind not in MOVES | _POINTWISE | _POINTWISE_FP32:
            return Role.PLAIN
        if Role.SCALE not in roles:
            return Role.GROWN
        return Role.PLAIN if kind not in MOVES and roles & {Role.PLAIN, Role.GROWN} else Role.SCALE

    def _in_half(self, node: Any, role: Role, floats: list[Any]) -> bool:
        """Whether a node computes in FP16: a product, or what moves, adds or bends nothing but activations."""
        known = node.op_type in _PRODUCTS | MOVES | _POINTWISE | _BOUNDED
        small = all(self._roles.get(value, Role.PLAIN) in _SMALL for value in floats)
        return node.op_type in _PRODUCTS or (role is Role.PLAIN and known and small)

    def _is_float(self, value: Any) -> bool:
        return value.dtype in (self._full, self._half)

    def _typed(self, value: Any, node: Any, kind: Any) -> Any:
        """A value in a type: itself, or a weight that is cast when it is written, or a cast in front of `node`."""
        if value.dtype == kind:
            return value
        if value not in self._casts:
            self._casts[value] = self._weight(value) if value.is_initializer() else self._cast(value, node, kind)
        return self._casts[value]

    def _cast(self, value: Any, node: Any, kind: Any) -> Any:
        name, source, nodes = f"{value.name}/{kind.name.lower()}", value, []
        if value in self._huge:
            ends = [self._constant(f"accel/mask/{end:g}", end) for end in (-_MASK, _MASK)]
            nodes.append(self._ir.node("Clip", [value, *ends], name=f"{name}/Clip"))
            source = self._made(nodes[-1], f"{value.name}/clipped", value, self._full)
        nodes.append(self._ir.node("Cast", [source], {"to": int(kind)}, name=f"{name}/Cast"))
        self._graph.insert_before(node, nodes)
        return self._made(nodes[-1], name, value, kind)

    def _made(self, node: Any, name: str, like: Any, kind: Any) -> Any:
        made = node.outputs[0]
        made.name, made.shape, made.dtype = name, like.shape, kind
        return made

    def _weight(self, value: Any) -> Any:
        """An FP16 initializer beside an FP32 one, which goes where nothing else takes it."""
        ir, weight, name = self._ir, value.const_value, f"{value.name}/float16"

        def cast() -> Any:
            numbers = weight.numpy()
            if numbers.size == 1:
                numbers = np.where(np.abs(numbers) > FP16_MAX, np.sign(numbers) * _MASK, numbers)
            if not np.abs(numbers).max(initial=0) <= FP16_MAX:
                raise ConversionError(
                    "This model's weights do not fit into FP16.",
                    seen=f"{np.abs(numbers).max():,.0f} in {value.name}; FP16 ends at {FP16_MAX:,.0f}",
                    fix='accel.to_onnx(model, precision="fp32"), or precision="int8" for a CPU',
                )
            return ir.Tensor(numbers.astype(np.float16))

        tensor = ir.LazyTensor(cast, dtype=self._half, shape=weight.shape, name=name)
        made = ir.Value(name=name, shape=weight.shape, type=ir.TensorType(self._half), const_value=tensor)
        self._graph.register_initializer(made)
        return made

    def _constant(self, name: str, number: float) -> Any:
        if name not in self._graph.initializers:
            tensor = self._ir.tensor(np.array(number, dtype=np.float32), name=name)
            kind = self._ir.TensorType(self._full)
            self._graph.register_initializer(
                self._ir.Value(name=name, shape=tensor.shape, type=kind, const_value=tensor)
            )
        return self._graph.initializers[name]

    def _restore(self, output: Any) -> None:
        """Give an output that came to be FP16 its type back, under its name."""
        if output.dtype != self._half:
            return
        node, name = output.producer(), output.name
        cast = self._ir.node("Cast", [output], {"to": int(self._full)}, name=f"{name}/Cast")
        output.name = f"{name}/float16"
        self._graph.insert_after(node, cast)
        self._graph.outputs[list(self._graph.outputs).index(output)] = self._made(cast, name, output, self._full)


def _moves_weights(node: Any, floats: list[Any]) -> bool:
    """Whether a node looks up or turns nothing but weights."""
    if not floats or node.op_type not in MOVES:
        return False
    return node.op_type.startswith("Gather") or all(value is None or value.is_initializer() for value in node.inputs)


def _origin(value: Any) -> Any:
    """Where a value comes from, before it was cast or passed on."""
    while (node := value.producer()) is not None and node.op_type in ("Cast", "Identity"):
        value = node.inputs[0]
    return value


def _beyond(value: Any) -> bool:
    """Whether a value is a small constant that FP16 does not hold."""
    tensor = value.const_value if value.is_initializer() else None
    return tensor is not None and tensor.size <= 16 and not np.abs(tensor.numpy()).max(initial=0) <= _MASK
