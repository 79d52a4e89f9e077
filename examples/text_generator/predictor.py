class PythonPredictor:
    def __init__(self, config, metrics_client):
        self.metrics = metrics_client

    def predict(self, payload):
        result = ...
        self.metrics.increment(metric="my_counter", value=1, tags={"model": "v1"})
        self.metrics.gauge(metric="my_gauge", value=42, tags={"model": "v1"})
        self.metrics.histogram(metric="my_histogram", value=100, tags={"model": "v1"})
