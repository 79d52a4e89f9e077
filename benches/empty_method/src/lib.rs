//! Methods with the signatures of `MetricsClient`'s that do nothing: what a call into native code costs at the least.

use pyo3::prelude::*;

enum Value<'a, 'py> {
    One,
    Given(#[allow(dead_code)] Borrowed<'a, 'py, PyAny>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Value<'a, 'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        Ok(Self::Given(object))
    }
}

#[pyclass(frozen, weakref, subclass)]
struct Empty;

#[pymethods]
impl Empty {
    #[new]
    fn new() -> Self {
        Self
    }

    #[pyo3(signature = (metric, value=Value::One, tags=None))]
    fn increment(
        &self,
        metric: &Bound<'_, PyAny>,
        value: Value<'_, '_>,
        tags: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        std::hint::black_box((metric, &value, tags));
        Ok(())
    }

    fn nothing(&self) {}
}

#[pymodule(gil_used = false)]
fn empty_method(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Empty>()
}
