"""Makes `fixtures/sentences.onnx` and `fixtures/sentences_vocab.txt`: a model with the inputs and outputs of a sentence encoder of the
BERT family, small enough for a test. Its weights are random numbers, so all that it knows of a sentence is which words are in it.

    pip install numpy onnx
    python make_model.py ../../fixtures
"""

import string
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, HEADS, LAYERS, INNER, POSITIONS = 32, 2, 2, 64, 128

WORDS = """the a an and or of in on at to with for from by is are was were be been it he she they we you not no man woman child children
dog cat horse bird car train boat house street garden river city food bread water music book song game play play eat eat drink read write walk
run ride sing sleep swim drive small large big old young new red green blue white black good bad fast slow one two three four five some
many all this that there here who what where when how why day night morning evening summer winter sun rain snow wind""".split()

PIECES = "s es ed er ers ing ly ness less ful able ment tion".split()


def vocabulary():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation]
    tokens += [prefix + c for prefix in ("", "##") for c in string.ascii_lowercase + string.digits]
    tokens += ["é", "##é", *WORDS, *("##" + piece for piece in PIECES)]
    return list(dict.fromkeys(tokens))


class Builder:
    def __init__(self):
        self.nodes, self.constants, self.random = [], [], np.random.default_rng(20261201)

    def constant(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weights(self, name, *shape, scale=None):
        scale = shape[0] ** -0.5 if scale is None else scale
        return self.constant(name, self.random.normal(0, scale, shape).astype(np.float32))

    def op(self, kind, *inputs, name=None, **attributes):
        name = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def linear(self, x, name, inputs, outputs):
        product = self.op("MatMul", x, self.weights(name + ".weight", inputs, outputs), name=name)
        return self.op("Add", product, self.weights(name + ".bias", outputs, scale=0.02))

    def norm(self, x, norm, **output):
        ones, zeros = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)
        scale, bias = self.constant(norm + ".weight", ones), self.constant(norm + ".bias", zeros)
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12, **output)

    def embeddings(self, tokens):
        words = self.op("Gather", self.weights("embeddings.word", tokens, HIDDEN, scale=1.0), "input_ids")
        types = self.op("Gather", self.weights("embeddings.type", 2, HIDDEN, scale=0.1), "token_type_ids")
        zero, one = self.constant("zero", np.int64(0)), self.constant("one", np.int64(1))
        length = self.op("Gather", self.op("Shape", "input_ids"), one)
        positions = self.op("Gather", self.weights("embeddings.position", POSITIONS, HIDDEN, scale=0.1), self.op("Range", zero, length, one))
        return self.norm(self.op("Add", self.op("Add", words, types), positions), "embeddings.norm")

    def mask(self):
        axes, far = self.constant("mask.axes", [1, 2]), self.constant("mask.far", np.float32(-1e9))
        kept = self.op("Unsqueeze", self.op("Cast", "attention_mask", to=TensorProto.FLOAT), axes)
        return self.op("Mul", self.op("Sub", self.constant("mask.one", np.float32(1)), kept), far)

    def layer(self, x, mask, layer, **output):
        def heads(what, order):
            shape = self.constant(f"{layer}.{what}.shape", [0, 0, HEADS, HIDDEN // HEADS])
            return self.op("Transpose", self.op("Reshape", self.linear(x, f"{layer}.{what}", HIDDEN, HIDDEN), shape), perm=order)

        query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
        scale = self.constant(f"{layer}.scale", np.float32((HIDDEN // HEADS) ** -0.5))
        weights = self.op("Softmax", self.op("Add", self.op("Mul", self.op("MatMul", query, key), scale), mask), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, value), perm=[0, 2, 1, 3])
        mixed = self.op("Reshape", mixed, self.constant(f"{layer}.mixed.shape", [0, 0, HIDDEN]))
        x = self.norm(self.op("Add", x, self.linear(mixed, f"{layer}.output", HIDDEN, HIDDEN)), f"{layer}.norm1")
        inner = self.linear(x, f"{layer}.up", HIDDEN, INNER)
        half, root = self.constant(f"{layer}.half", np.float32(0.5)), self.constant(f"{layer}.root", np.float32(0.5**0.5))
        erf = self.op("Add", self.op("Erf", self.op("Mul", inner, root)), self.constant(f"{layer}.unit", np.float32(1)))
        gelu = self.op("Mul", self.op("Mul", inner, erf), half)
        return self.norm(self.op("Add", x, self.linear(gelu, f"{layer}.down", INNER, HIDDEN)), f"{layer}.norm2", **output)


def model(tokens):
    b = Builder()
    x, mask = b.embeddings(tokens), b.mask()
    for i in range(LAYERS):
        x = b.layer(x, mask, f"layer.{i}", **({"name": "last_hidden_state"} if i == LAYERS - 1 else {}))
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "seq"]) for n in ("input_ids", "attention_mask", "token_type_ids")]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", "seq", HIDDEN])]
    graph = helper.make_graph(b.nodes, "sentences", inputs, outputs, b.constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    words = vocabulary()
    (folder / "sentences_vocab.txt").write_text("".join(word + "\n" for word in words), encoding="utf-8")
    onnx.save(model(len(words)), folder / "sentences.onnx")
