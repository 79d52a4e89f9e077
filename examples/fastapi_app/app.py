"""The iris predictor behind a FastAPI app, with its request metrics."""

from cortex_metrics import MetricsClient
from cortex_metrics.asgi import MetricsMiddleware
from cortex_metrics.predictor import build
from fastapi import FastAPI
from pydantic import BaseModel
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


class PythonPredictor:
    def __init__(self, config, metrics_client):
        iris = load_iris()
        self.species = [str(name) for name in iris.target_names]
        self.model = LogisticRegression(max_iter=config["max_iterations"]).fit(iris.data, iris.target)
        self.metrics = metrics_client

    def predict(self, payload):
        species = self.species[int(self.model.predict([payload])[0])]
        self.metrics.increment("iris_predictions", 1, {"species": species})
        return species


class Iris(BaseModel):
    measurements: tuple[float, float, float, float]


# The tag makes the predictor's own metrics those of this API.
metrics = MetricsClient(tags={"api_name": "iris-fastapi"})
predictor = build(PythonPredictor, config={"max_iterations": 1000}, metrics_client=metrics)
app = FastAPI()
app.add_middleware(MetricsMiddleware, client=metrics, api_name="iris-fastapi", api_id="v1", route_label=True)


@app.post("/irises")
def species_of(iris: Iris) -> str:
    return predictor.predict(iris.measurements)
