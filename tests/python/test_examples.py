"""The examples as their READMEs say, before a real collector."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support import BIN, ROOT, Collector, Process, free_port, post, until

SETOSA = b'{"measurements": [5.1, 3.5, 1.4, 0.2]}'


def test_an_onnx_model_is_served_by_onnxruntime(
    serve: Callable[..., Process], collector: Collector, tmp_path: Path
) -> None:
    folder = shutil.copytree(ROOT / "examples" / "onnx_classifier", tmp_path / "onnx")
    model = tmp_path / "iris.onnx"
    subprocess.run([sys.executable, "make_model.py", model], cwd=folder, check=True)
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("iris.onnx", str(model)))
    process = serve(
        *(folder / "predictor.py", "--api-name", "iris-onnx", "--config", folder / "config.yaml"),
        *("--provide", "onnx_client=clients:onnx_client", "--collector-url", collector.url),
    )
    url = process.line(r"serving \S+ at (http://\S+)")
    code, text = post(url, SETOSA)
    assert (code, text[:22]) == (200, '{"species": "setosa", ')
    assert post(url, b'{"measurements": [6.3, 3.3, 6.0, 2.5]}')[1].startswith('{"species": "virginica"')
    predictions = "sum by (species) (iris_predictions)"
    until(lambda: collector.query(predictions) == {"species=setosa": 1, "species=virginica": 1})
    assert collector.query("histogram_count(inference_seconds)") == {"api_name=iris-onnx": 2}
    assert collector.rows()["iris-onnx"]["responses"] == {"200": 2}


def test_a_predictor_in_a_fastapi_app_is_measured(collector: Collector, tmp_path: Path) -> None:
    port = free_port()
    command = (BIN / "uvicorn", "app:app", "--workers", "2", "--port", str(port))
    folder = ROOT / "examples" / "fastapi_app"
    env = {"PYTHONPATH": str(folder), "CORTEX_METRICS_URL": collector.url, "PYTHONDONTWRITEBYTECODE": "1"}
    process = Process(tmp_path / "app.log", *command, env=env)
    try:
        process.line("(Application startup complete)")
        url = f"http://127.0.0.1:{port}/irises"
        assert post(url, SETOSA) == (200, '"setosa"')
        assert post(url, b"{}")[0] == 422
        until(lambda: collector.query("iris_predictions") == {"api_name=iris-fastapi,species=setosa": 1})
        requests = 'cortex_api_requests_total{route="/irises"}'
        until(lambda: len(collector.query(requests)) == 2)
        assert collector.rows()["iris-fastapi"]["responses"] == {"200": 1, "422": 1}
        assert collector.rows()["iris-fastapi"]["up_to_date"] == 1
    finally:
        process.stop()
