//! The way into `increment`, `gauge` and `histogram` that costs least.
//!
//! Half the time of an empty method that is called with keywords goes into matching them by their text. The keywords of a
//! call site are interned, so here they are matched by address; what does not match takes the method that pyo3 made, with
//! its checks and its errors. So these methods, laid over pyo3's, cost less than empty ones would.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::OnceLock;

use pyo3::PyClass;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi::{self, Py_ssize_t, PyObject};
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

use super::{Client, Value, call};
use crate::client::Kind;

/// A class whose methods record.
pub(super) trait Records: PyClass<Frozen = True> + Sync {
    /// Whether it may use the names that are ours.
    const IS_OWN: bool;

    fn client(&self) -> &Client;

    fn is_strict(&self) -> bool;
}

/// The methods, by the number that `method` is made for.
const METHODS: [(&str, Kind); 3] =
    [("increment", Kind::Counter), ("gauge", Kind::Gauge), ("histogram", Kind::Histogram)];

/// What the methods of one class need of Python, for as long as the process lives.
struct Known {
    /// The interned names of the arguments, in their order.
    names: [Py<PyString>; 3],
    /// The methods that pyo3 made.
    methods: [Py<PyAny>; 3],
}

fn known<T: Records>() -> &'static OnceLock<Known> {
    static OF_USERS: OnceLock<Known> = OnceLock::new();
    static OWN: OnceLock<Known> = OnceLock::new();
    if T::IS_OWN { &OWN } else { &OF_USERS }
}

/// Lays the methods over those that pyo3 made for `T`.
pub(super) fn install<T: Records>(py: Python<'_>) -> PyResult<()> {
    let class = py.get_type::<T>();
    let [(increment, _), (gauge, _), (histogram, _)] = METHODS;
    let method = |name| class.getattr(name).map(Bound::unbind);
    let names = ["metric", "value", "tags"].map(|name| PyString::intern(py, name).unbind());
    let methods = [method(increment)?, method(gauge)?, method(histogram)?];
    let Known { methods: [increment, gauge, histogram], .. } = known::<T>().get_or_init(|| Known { names, methods });
    lay(&class, increment.bind(py), method_of::<T, 0>)?;
    lay(&class, gauge.bind(py), method_of::<T, 1>)?;
    lay(&class, histogram.bind(py), method_of::<T, 2>)
}

/// Replaces `method` of `class` by `function`, which has its name and its documentation.
fn lay(
    class: &Bound<'_, PyType>,
    method: &Bound<'_, PyAny>,
    function: ffi::PyCFunctionFastWithKeywords,
) -> PyResult<()> {
    let attribute = |name| Ok::<_, PyErr>(method.getattr(name)?.extract::<Option<String>>()?.unwrap_or_default());
    let name = attribute("__name__")?;
    // As CPython's own methods have it: from the first line inspect.signature reads.
    let doc = format!("{name}{}\n--\n\n{}", attribute("__text_signature__")?, attribute("__doc__")?);
    let definition = Box::leak(Box::new(ffi::PyMethodDef {
        ml_name: CString::new(name.as_str())?.into_raw(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: function },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: CString::new(doc)?.into_raw(),
    }));
    // SAFETY: `class` is a type, and `definition`, which is never freed, says how `function` is to be called. The
    // descriptor that this makes calls it with an instance of `class`.
    let descriptor =
        unsafe { Bound::from_owned_ptr_or_err(class.py(), ffi::PyDescr_NewMethod(class.as_type_ptr(), definition))? };
    class.setattr(name, descriptor)
}

/// What Python calls: `args` are `count` positional arguments and then one for each of `keywords`, a tuple or null.
unsafe extern "C" fn method_of<T: Records, const METHOD: usize>(
    this: *mut PyObject,
    args: *const *mut PyObject,
    count: Py_ssize_t,
    keywords: *mut PyObject,
) -> *mut PyObject {
    // A panic must not unwind into Python, and is nothing that a prediction should fail of: its hook has told of it.
    let called = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: Python calls us with the interpreter attached, with an instance of the class that the descriptor was
        // made for, and with as many arguments as it says.
        unsafe {
            let py = Python::assume_attached();
            let this = Borrowed::from_ptr(py, this);
            let arguments = match_arguments::<T>(args, count, keywords);
            call_method::<T, METHOD>(&this, arguments.as_ref(), || gather(py, args, count, keywords))
        }
    }));
    match called {
        // SAFETY: as above; None is returned as a reference of the caller's own.
        Ok(Ok(())) | Err(_) => unsafe { ffi::Py_NewRef(ffi::Py_None()) },
        Ok(Err(error)) => Python::attach(|py| {
            error.restore(py);
            ptr::null_mut()
        }),
    }
}

/// The arguments in their order, null where none was given; `None` if the keywords are none that a call site would use.
///
/// # Safety
/// As `method_of` is called.
#[inline]
unsafe fn match_arguments<T: Records>(
    args: *const *mut PyObject,
    count: Py_ssize_t,
    keywords: *mut PyObject,
) -> Option<[*mut PyObject; 3]> {
    let names = &known::<T>().get()?.names;
    let mut given = [ptr::null_mut(); 3];
    let count = usize::try_from(count).ok().filter(|count| *count <= given.len())?;
    for (at, argument) in given.iter_mut().take(count).enumerate() {
        // SAFETY: there are `count`.
        *argument = unsafe { *args.add(at) };
    }
    if keywords.is_null() {
        return Some(given);
    }
    // SAFETY: `keywords` is a tuple, and there is an argument for each of its items.
    for at in 0..unsafe { ffi::PyTuple_Size(keywords) } {
        let (name, value) = unsafe { (ffi::PyTuple_GetItem(keywords, at), *args.add(count + at as usize)) };
        let place = names.iter().position(|known| known.as_ptr() == name)?;
        let argument = given.get_mut(place).filter(|argument| argument.is_null())?;
        *argument = value;
    }
    Some(given)
}

/// The call itself. `gather` makes of the arguments what pyo3's method is called with.
///
/// # Safety
/// `this` is a `T`, and the pointers are objects that live as long as the call.
#[inline]
unsafe fn call_method<'py, T: Records, const METHOD: usize>(
    this: &Bound<'py, PyAny>,
    arguments: Option<&[*mut PyObject; 3]>,
    gather: impl FnOnce() -> PyResult<(Vec<Bound<'py, PyAny>>, Bound<'py, PyDict>)>,
) -> PyResult<()> {
    let py = this.py();
    let kind = METHODS.get(METHOD).map_or(Kind::Counter, |(_, kind)| *kind);
    // SAFETY: the caller's word.
    let object = |pointer: *mut PyObject| unsafe { Borrowed::from_ptr_or_opt(py, pointer) };
    if let Some([metric, value, tags]) = arguments
        && let Some(metric) = object(*metric)
        && let Some(value) = object(*value).map(Value::Given).or((kind == Kind::Counter).then_some(Value::One))
    {
        let tags = object(*tags).filter(|tags| !tags.is_none());
        // SAFETY: the caller's word.
        let this = unsafe { this.cast_unchecked::<T>() }.get();
        return call(this.client(), this.is_strict(), kind, &metric, &value, tags.as_deref(), T::IS_OWN);
    }
    Python::attach(|py| {
        let method = known::<T>().get().and_then(|known| known.methods.get(METHOD));
        let method = method.ok_or_else(|| PyTypeError::new_err("the module was not initialized"))?.bind(py);
        let (mut positional, named) = gather()?;
        positional.insert(0, this.clone());
        method.call(PyTuple::new(py, positional)?, Some(&named)).map(drop)
    })
}

/// The arguments as Python code would pass them on.
///
/// # Safety
/// As `method_of` is called.
unsafe fn gather(
    py: Python<'_>,
    args: *const *mut PyObject,
    count: Py_ssize_t,
    keywords: *mut PyObject,
) -> PyResult<(Vec<Bound<'_, PyAny>>, Bound<'_, PyDict>)> {
    let count = usize::try_from(count)?;
    // SAFETY: there are `count`, and then one for each keyword.
    let argument = |at: usize| unsafe { Borrowed::from_ptr(py, *args.add(at)) }.to_owned();
    let named = PyDict::new(py);
    // SAFETY: `keywords` is a tuple or null.
    if let Some(keywords) = unsafe { Borrowed::from_ptr_or_opt(py, keywords) } {
        for (at, name) in keywords.cast::<PyTuple>()?.iter().enumerate() {
            named.set_item(name, argument(count + at))?;
        }
    }
    Ok(((0..count).map(argument).collect(), named))
}
