"""Writes an ONNX model that tells the species of an iris: a logistic regression as one matrix and a softmax."""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

iris = load_iris()
fitted = LogisticRegression(max_iter=1000).fit(iris.data, iris.target)
graph = helper.make_graph(
    [
        helper.make_node("Gemm", ["measurements", "weights", "bias"], ["scores"], transB=1),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
    ],
    "iris",
    [helper.make_tensor_value_info("measurements", TensorProto.FLOAT, [None, 4])],
    [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])],
    [
        numpy_helper.from_array(fitted.coef_.astype(np.float32), "weights"),
        numpy_helper.from_array(fitted.intercept_.astype(np.float32), "bias"),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnx.checker.check_model(model)
onnx.save(model, sys.argv[1])
