import onnxruntime


def onnx_client(config):
    return onnxruntime.InferenceSession(config["model"])
