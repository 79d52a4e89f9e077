"""Tells the species of an iris from four measurements in centimetres."""

from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


class PythonPredictor:
    def __init__(self, config, metrics_client):
        self.metrics = metrics_client
        self.fields = config["fields"]
        iris = load_iris()
        self.species = [str(name) for name in iris.target_names]
        self.model = LogisticRegression(max_iter=config["max_iterations"]).fit(iris.data, iris.target)

    def predict(self, payload):
        # A missing field raises: the client gets a 500, the log the traceback.
        measurements = [float(payload[field]) for field in self.fields]
        probabilities = self.model.predict_proba([measurements])[0]
        best = int(probabilities.argmax())
        self.metrics.increment("iris_predictions", 1, {"species": self.species[best]})
        self.metrics.histogram("iris_confidence", probabilities[best])
        return {"species": self.species[best], "confidence": round(float(probabilities[best]), 4)}
