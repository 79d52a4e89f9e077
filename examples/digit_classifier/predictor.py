"""Reads a handwritten digit from an image of 8 x 8 pixels, each from 0 (white) to 16 (black)."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC


class PythonPredictor:
    def __init__(self, config, metrics_client):
        self.metrics = metrics_client
        digits = load_digits()
        self.model = SVC(gamma=config["gamma"]).fit(digits.data, digits.target)
        self.metrics.gauge("digit_training_images", len(digits.data))

    def predict(self, payload):
        image = np.asarray(payload["image"], dtype=float).reshape(8, 8)
        digit = int(self.model.predict([image.ravel()])[0])
        self.metrics.increment("digit_predictions", tags={"digit": digit})
        self.metrics.histogram("digit_ink", image.sum() / (16 * 64))
        return {"digit": digit}
