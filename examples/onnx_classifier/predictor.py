"""Tells the species of an iris from four measurements in centimetres, with a model in ONNX."""


class ONNXPredictor:
    def __init__(self, onnx_client, config, metrics_client):
        self.session = onnx_client
        self.species = config["species"]
        self.metrics = metrics_client

    def predict(self, payload):
        with self.metrics.timer("inference_seconds"):
            (probabilities,) = self.session.run(None, {"measurements": [payload["measurements"]]})
        best = int(probabilities[0].argmax())
        self.metrics.increment("iris_predictions", 1, {"species": self.species[best]})
        return {"species": self.species[best], "confidence": round(float(probabilities[0][best]), 4)}
