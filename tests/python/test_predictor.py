"""Finding and building predictors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from cortex_metrics.predictor import PredictorError, build, load, predict_arguments


def write(folder: Path, text: str, name: str = "predictor.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_constructor_gets_what_it_names() -> None:
    class Neither:
        pass

    class Config:
        def __init__(self, config: Any) -> None:
            self.got = config

    class Client:
        def __init__(self, metrics_client: Any, other: int = 3) -> None:
            self.got = (metrics_client, other)

    class Everything:
        def __init__(self, **kwargs: Any) -> None:
            self.got = kwargs

    build(Neither, config={"a": 1}, metrics_client="m")
    assert build(Config, config={"a": 1}, metrics_client="m").got == {"a": 1}
    assert build(Config).got == {}
    assert build(Client, metrics_client="m").got == ("m", 3)
    assert build(Everything, metrics_client="m", onnx_client="o").got == {
        "config": {},
        "metrics_client": "m",
        "onnx_client": "o",
    }


def test_an_argument_that_nobody_provides_is_named_with_file_and_class() -> None:
    class PythonPredictor:
        def __init__(self, config: Any, bucket: Any) -> None: ...

    with pytest.raises(
        PredictorError, match=r"test_predictor.py: class PythonPredictor: .* wants 'bucket', which nobody"
    ):
        build(PythonPredictor)


def test_a_class_is_found_by_its_name(tmp_path: Path) -> None:
    text = "import beside\nclass Other:\n    def predict(self): ...\nclass ONNXPredictor:\n    def predict(self): return beside.x\n"
    write(tmp_path, "x = 5\n", "beside.py")
    path = write(tmp_path, text)
    assert load(path)().predict() == 5
    assert load(path, "Other").__name__ == "Other"


@pytest.mark.parametrize(
    ("text", "class_name", "message"),
    [
        ("", None, "want a class named PythonPredictor or TensorFlowPredictor or ONNXPredictor"),
        ("", "Mine", "want a class named Mine"),
        ("PythonPredictor = 5", None, "want a class named"),
        ("class PythonPredictor: ...", None, "class PythonPredictor has no method predict"),
        (
            "import no_such_module_x",
            None,
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_module_x'",
        ),
        ("def (", None, "cannot be imported: SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, text: str, class_name: str | None, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PredictorError) as caught:
        load(path, class_name)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_file_never_takes_the_place_of_a_module_that_is_imported(tmp_path: Path) -> None:
    # A predictor named json.py took json away from everything that imported it later.
    path = write(tmp_path, "class PythonPredictor:\n    def predict(self): ...\n", "pickle.py")
    with pytest.raises(PredictorError, match=r"a module named pickle is imported already, from .*: rename the file"):
        load(path)
    assert __import__("pickle") is pickle


def test_a_predictor_can_be_pickled(tmp_path: Path) -> None:
    path = write(tmp_path, "class PythonPredictor:\n    x = 5\n    def predict(self): ...\n", "picklable.py")
    assert pickle.loads(pickle.dumps(load(path)())).x == 5


def test_predict_gets_what_it_names() -> None:
    class Some:
        def predict(self, headers: Any, payload: Any, threshold: float = 0.5) -> None: ...

    class Everything:
        @staticmethod
        def predict(**kwargs: Any) -> None: ...

    class Static:
        @staticmethod
        def predict(payload: Any) -> None: ...

    class Class:
        @classmethod
        def predict(cls, query_params: Any) -> None: ...

    class Unknown:
        def predict(self, data: Any) -> None: ...

    assert predict_arguments(Some) == {"headers", "payload"}
    assert predict_arguments(Everything) == {"payload", "headers", "query_params"}
    assert predict_arguments(Static) == {"payload"}
    assert predict_arguments(Class) == {"query_params"}
    with pytest.raises(PredictorError, match=r"class Unknown: predict wants 'data', .*: have payload, headers, query"):
        predict_arguments(Unknown)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match="no such file"):
        load(tmp_path / "none.py")
