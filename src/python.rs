//! The extension module `cortex_metrics._native`: this file and its folder alone name `pyo3`.
//!
//! It turns Python's arguments into what the client takes. Whatever is wrong with them is counted by its reason and told
//! once through `logging`; only a strict client raises.

// The docstrings are Python's, and pyo3 hands over its arguments by value.
#![allow(clippy::doc_link_with_quotes, clippy::doc_markdown, clippy::needless_pass_by_value)]

mod fast;

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyException, PyOverflowError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyMapping, PyString, PyType};

use crate::client::{ClientConfig, DropReason, Endpoint, Identity, Kind, MetricsUrlError, TagText, check_call};

/// The client, and what keeps alive the arguments that it recognizes by their addresses.
type Client = crate::client::Client<Box<[Py<PyAny>]>>;

/// Names that begin so are ours: request metrics and the accounts.
const RESERVED_PREFIXES: [&str; 3] = ["cortex_api_", "cortex_client_", "cortex_collector_"];
/// How long `flush()` and `close()` wait for the network at most: it takes any time only with very many contexts.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// An argument as it came; `value` that was not given is 1.
enum Value<'a, 'py> {
    One,
    Given(Borrowed<'a, 'py, PyAny>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Value<'a, 'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        Ok(Self::Given(object))
    }
}

/// A call that is dropped: why, and what is wrong.
struct Refusal<'py> {
    reason: DropReason,
    wrong: Wrong<'py>,
    is_type_error: bool,
}

/// What is wrong, as far as the words for it need to know beside the arguments themselves.
enum Wrong<'py> {
    Name,
    Reserved,
    Value(Bound<'py, PyAny>),
    Tags(Bound<'py, PyAny>),
    Key(Bound<'py, PyAny>),
    TagValue(Bound<'py, PyAny>, Bound<'py, PyAny>),
    /// The table's or the datagram's limits; with the value.
    Limit(f64),
}

impl<'py> Refusal<'py> {
    fn of_type(reason: DropReason, wrong: Wrong<'py>) -> Self {
        Self { reason, wrong, is_type_error: true }
    }

    fn of_value(reason: DropReason, wrong: Wrong<'py>) -> Self {
        Self { reason, wrong, is_type_error: false }
    }

    fn of_limit(reason: DropReason, value: f64) -> Self {
        Self::of_value(reason, Wrong::Limit(value))
    }

    /// What was got and what is wanted. Made only if somebody is to read it: the `repr` of an argument may cost anything.
    fn words(&self, subject: &str, config: &ClientConfig) -> PyResult<String> {
        Ok(match (&self.wrong, self.reason) {
            (Wrong::Name, _) => format!("got {subject}, want the name as text"),
            (Wrong::Reserved, _) => {
                format!("{subject}: names that start with {} are reserved", RESERVED_PREFIXES.join(", "))
            }
            (Wrong::Value(value), _) => format!("{subject}: got value {}, want a finite number", repr(value)?),
            (Wrong::Tags(tags), _) => {
                format!("{subject}: got tags {}, want a mapping such as {{\"model\": \"v1\"}}", repr(tags)?)
            }
            (Wrong::Key(key), _) => format!(
                "{subject}: got tag key {}, want non-empty text without `:`, `,`, `|`, `#` or control characters",
                repr(key)?
            ),
            (Wrong::TagValue(key, value), _) => {
                format!("{subject}: got {} for tag {}, want something with a text", repr(value)?, repr(key)?)
            }
            (Wrong::Limit(_), DropReason::BadName) => format!(
                "{subject}: want a name that is not empty, does not begin with `_e{{`, and has no `:`, `|`, `@`, `#`, `,` or control characters"
            ),
            (Wrong::Limit(value), DropReason::NotFinite) => {
                format!("{subject}: got value {value}, want a finite number")
            }
            (Wrong::Limit(value), DropReason::NegativeIncrement) => {
                format!("{subject}: got an increment of {value}, want 0 or more: a counter cannot go back")
            }
            (Wrong::Limit(_), DropReason::TooLong) => {
                let max = config.context_bytes_max();
                format!(
                    "{subject}: its name and tags take more than {max} bytes and do not fit into a datagram; payload_bytes_max says how long one may be"
                )
            }
            (Wrong::Limit(_), DropReason::ContextLimit) => {
                let max = config.contexts_max;
                format!("{subject}: more than {max} combinations of name and tags at once; is a tag unbounded?")
            }
            (Wrong::Limit(_), DropReason::Closed) => format!("{subject}: the client is closed"),
            (Wrong::Limit(_), reason) => format!("{subject}: {}", reason.as_str()),
        })
    }

    fn into_error(self, subject: &str, config: &ClientConfig) -> PyErr {
        match self.words(subject, config) {
            Ok(words) if self.is_type_error => PyTypeError::new_err(words),
            Ok(words) => PyValueError::new_err(words),
            Err(error) => error,
        }
    }
}

/// What goes wrong on the way into the table: a refusal, or an exception that is not ours to swallow.
enum Failure<'py> {
    Refusal(Refusal<'py>),
    Raised(PyErr),
}

impl<'py> From<Refusal<'py>> for Failure<'py> {
    fn from(refusal: Refusal<'py>) -> Self {
        Self::Refusal(refusal)
    }
}

impl Failure<'_> {
    fn into_error(self, subject: &str, config: &ClientConfig) -> PyErr {
        match self {
            Self::Refusal(refusal) => refusal.into_error(subject, config),
            Self::Raised(error) => error,
        }
    }
}

/// The start of a text, as long as fits a log line.
fn cut(text: &str) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(60).collect();
    if chars.next().is_some() { start + "…" } else { start }
}

/// `repr(object)`, cut to what fits a log line; of what may hold very much the type alone.
fn repr(object: &Bound<'_, PyAny>) -> PyResult<String> {
    if let Ok(text) = object.cast::<PyString>() {
        return Ok(format!("{:?}", cut(&text.to_string_lossy())));
    }
    if object.len().is_ok_and(|items| items > 20) {
        return Ok(format!("a {} of {} items", object.get_type().name()?, object.len()?));
    }
    match object.repr() {
        Ok(repr) => Ok(cut(&repr.to_string_lossy())),
        Err(error) if error.is_instance_of::<PyException>(object.py()) => Ok("<no repr>".to_owned()),
        Err(error) => Err(error),
    }
}

/// How a metric is spoken of.
fn subject_of(metric: &Bound<'_, PyAny>) -> PyResult<String> {
    match metric.cast::<PyString>() {
        Ok(name) => Ok(format!("metric {:?}", cut(&name.to_string_lossy()))),
        Err(_) => Ok(format!("metric {}", repr(metric)?)),
    }
}

/// An exception of somebody's `__float__` or `__str__` is a bad argument; `KeyboardInterrupt` and `SystemExit` pass on.
fn refusal_of<'py>(py: Python<'py>, error: &PyErr, refusal: Refusal<'py>) -> Failure<'py> {
    if error.is_instance_of::<PyException>(py) {
        Failure::Refusal(refusal)
    } else {
        Failure::Raised(error.clone_ref(py))
    }
}

fn number<'py>(value: &Bound<'py, PyAny>) -> Result<f64, Failure<'py>> {
    if let Ok(float) = value.cast_exact::<PyFloat>() {
        return Ok(float.value());
    }
    value.extract::<f64>().map_err(|error| {
        let wrong = Wrong::Value(value.clone());
        let refusal = if error.is_instance_of::<PyOverflowError>(value.py()) {
            Refusal::of_value(DropReason::NotFinite, wrong)
        } else {
            Refusal::of_type(DropReason::BadValue, wrong)
        };
        refusal_of(value.py(), &error, refusal)
    })
}

#[allow(unsafe_code)]
fn push_tags<'py>(tags: &Bound<'py, PyAny>, text: &mut TagText) -> Result<(), Failure<'py>> {
    if let Ok(dict) = tags.cast_exact::<PyDict>() {
        // Held or copied first: the `__str__` of a value, or another thread, may change the dict meanwhile.
        let mut held = [const { None }; 8];
        let mut places = held.iter_mut();
        // SAFETY: `each_item` shows what the dict holds.
        let own = |object| unsafe { Bound::from_borrowed_ptr(tags.py(), object) };
        let has_place = |key, value| places.next().map(|place| *place = Some((own(key), own(value)))).is_some();
        if each_item(dict, has_place) {
            return held.iter().flatten().try_for_each(|(key, value)| push_tag(key, value, text));
        }
        let copy = dict.copy().map_err(Failure::Raised)?;
        return copy.iter().try_for_each(|(key, value)| push_tag(&key, &value, text));
    }
    let bad = || Refusal::of_type(DropReason::BadTags, Wrong::Tags(tags.clone()));
    let mapping = tags.cast::<PyMapping>().map_err(|_| bad())?;
    let items = mapping.items().map_err(|error| refusal_of(tags.py(), &error, bad()))?;
    for item in items.iter() {
        let (key, value): (Bound<'py, PyAny>, Bound<'py, PyAny>) = item.extract().map_err(|_| bad())?;
        push_tag(&key, &value, text)?;
    }
    Ok(())
}

fn push_tag<'py>(key: &Bound<'py, PyAny>, value: &Bound<'py, PyAny>, text: &mut TagText) -> Result<(), Failure<'py>> {
    if value.is_none() {
        return Ok(());
    }
    let bad_key = |make: fn(DropReason, Wrong<'py>) -> Refusal<'py>| make(DropReason::BadTags, Wrong::Key(key.clone()));
    let bad_value = || Refusal::of_value(DropReason::BadTags, Wrong::TagValue(key.clone(), value.clone()));
    let key_text = key.cast::<PyString>().map_err(|_| bad_key(Refusal::of_type))?;
    let key_text = key_text.to_str().map_err(|_| bad_key(Refusal::of_value))?;
    let pushed = if let Ok(string) = value.cast::<PyString>() {
        text.push(key_text, string.to_str().map_err(|_| bad_value())?)
    } else if let Ok(flag) = value.cast_exact::<PyBool>() {
        text.push(key_text, if flag.is_true() { "true" } else { "false" })
    } else {
        let string = value.str().map_err(|error| refusal_of(value.py(), &error, bad_value()))?;
        text.push(key_text, string.to_str().map_err(|_| bad_value())?)
    };
    pushed.map_err(|reason| match reason {
        DropReason::TooLong => Refusal::of_limit(reason, 0.0).into(),
        _ => bad_key(Refusal::of_value).into(),
    })
}

/// Whether a name begins with `prefix` once the collector has mapped it: `cortex.api.x` becomes `cortex_api_x`.
fn is_mapped_to(name: &str, prefix: &str) -> bool {
    let mut mapped = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    prefix.chars().all(|want| mapped.next() == Some(want))
}

/// A call's arguments as the table takes them.
struct Arguments<'a> {
    name: &'a str,
    value: f64,
}

thread_local! {
    /// The text of the tags of a thread's last call, at most 64 kB, so that the next allocates nothing. Empty while a call is under way:
    /// the `__str__` of a tag may make calls of its own.
    static TAG_BUFFER: Cell<String> = const { Cell::new(String::new()) };
}

fn arguments<'a, 'py>(
    config: &ClientConfig,
    metric: &'a Bound<'py, PyAny>,
    value: &Value<'_, 'py>,
    tags: Option<&Bound<'py, PyAny>>,
    text: &mut TagText,
    is_own: bool,
) -> Result<Arguments<'a>, Failure<'py>> {
    let name = metric.cast::<PyString>().map_err(|_| Refusal::of_type(DropReason::BadName, Wrong::Name))?;
    let name = name.to_str().map_err(|_| Refusal::of_value(DropReason::BadName, Wrong::Name))?;
    if !is_own && name.starts_with("cortex") && RESERVED_PREFIXES.iter().any(|prefix| is_mapped_to(name, prefix)) {
        return Err(Refusal::of_value(DropReason::ReservedName, Wrong::Reserved).into());
    }
    let value = match value {
        Value::One => 1.0,
        Value::Given(value) => number(value)?,
    };
    if let Some(tags) = tags {
        push_tags(tags, text)?;
    }
    if !is_own {
        text.push_text(&config.constant_tags);
    }
    Ok(Arguments { name, value })
}

/// Passes the notices on to `logging`. What a handler raises stays there, unless it is to end the program.
fn log_notices(py: Python<'_>, client: &Client) -> PyResult<()> {
    let _inside = Inside::enter();
    let notices = client.take_notices();
    let logged: PyResult<()> = (|| {
        let logger = py.import("logging")?.call_method1("getLogger", ("cortex_metrics",))?;
        notices.iter().try_for_each(|notice| logger.call_method1("warning", ("%s", notice)).map(drop))
    })();
    match logged {
        Err(error) if error.is_instance_of::<PyException>(py) => {
            error.write_unraisable(py, None);
            Ok(())
        }
        outcome => outcome,
    }
}

/// True from the last flush of the process on.
static IS_ENDING: AtomicBool = AtomicBool::new(false);
/// How many threads are where Python code may run or the interpreter is let go of, below a frame of ours.
static INSIDE: AtomicIsize = AtomicIsize::new(0);

/// A thread that comes back to an interpreter which has ended is ended by CPython where it stands (until 3.14), and with
/// frames of Rust there, that aborts the process. So the end waits for those who are inside, and nobody enters after it.
struct Inside;

impl Inside {
    fn enter() -> Self {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits until no thread is inside a call, at most so many seconds. To be called when all clients are closed.
#[pyfunction]
fn wait_for_calls(py: Python<'_>, timeout: f64) {
    let deadline = Instant::now() + Duration::try_from_secs_f64(timeout).unwrap_or_default();
    py.detach(|| {
        while INSIDE.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(100));
        }
    });
}

/// To be registered with `os.register_at_fork(after_in_child=…)`: whoever was inside is not in the child, unless it forked.
#[pyfunction]
fn after_fork_in_child() {
    INSIDE.store(0, Ordering::SeqCst);
}

/// A value that needs no conversion of its own: a `float`, or an `int` of 64 bits.
#[inline]
fn plain_number(value: &Value<'_, '_>) -> Option<f64> {
    let Value::Given(value) = value else { return Some(1.0) };
    if let Ok(float) = value.cast_exact::<PyFloat>() {
        return Some(float.value());
    }
    let int: i64 = value.cast_exact::<PyInt>().ok()?.extract().ok()?;
    Some(int as f64)
}

/// An identity for the memo that has as yet the name alone.
#[inline]
fn identity_of(kind: Kind, is_own: bool, metric: &Bound<'_, PyAny>) -> Identity {
    let mut identity = Identity::new(2 * kind as usize + usize::from(is_own));
    let _ = identity.push(metric.as_ptr() as usize); // the first has room
    identity
}

/// Adds the addresses of the tags. False if they are no `dict`, or too many.
#[inline]
fn identify_tags(identity: &mut Identity, tags: Option<&Bound<'_, PyAny>>) -> bool {
    let Some(tags) = tags else { return true };
    tags.cast_exact::<PyDict>()
        .is_ok_and(|dict| each_item(dict, |key, value| identity.push(key as usize) && identity.push(value as usize)))
}

/// Shows the addresses of a dict's keys and values until `show` says false; says whether it saw all.
#[allow(unsafe_code)]
#[inline]
fn each_item(dict: &Bound<'_, PyDict>, mut show: impl FnMut(*mut ffi::PyObject, *mut ffi::PyObject) -> bool) -> bool {
    with_critical_section(dict, || {
        let (mut at, mut key, mut value) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: `dict` is a dict and cannot change meanwhile: no Python code runs in between, and other threads are kept
        // out by the GIL, or by the critical section where there is none. The pointers are only compared, or their objects
        // held. The safe iterator counts references up and down for each item, a third of what this call costs, and panics
        // when the dict has grown meanwhile.
        while unsafe { ffi::PyDict_Next(dict.as_ptr(), &raw mut at, &raw mut key, &raw mut value) } != 0 {
            if !show(key, value) {
                return false;
            }
        }
        true
    })
}

/// Whether somebody beside the call itself holds these texts. Those that were made for the call never come again.
#[allow(unsafe_code)]
fn is_held_elsewhere(metric: &Bound<'_, PyAny>, tags: Option<&Bound<'_, PyAny>>) -> bool {
    // SAFETY: the object lives. Where there is no GIL the number may be old: it is only a hint.
    let has_others = |object: *mut ffi::PyObject| unsafe { ffi::Py_REFCNT(object) > 1 };
    // The call holds the name and the dict, the dict the rest.
    let holds_others = |dict: &Bound<'_, PyDict>| {
        has_others(dict.as_ptr()) || each_item(dict, |key, value| has_others(key) && has_others(value))
    };
    has_others(metric.as_ptr()) && tags.and_then(|tags| tags.cast_exact::<PyDict>().ok()).is_none_or(holds_others)
}

/// Has the client recognize these arguments next time, if none of them can ever change.
fn learn(
    client: &Client,
    kind: Kind,
    is_own: bool,
    metric: &Bound<'_, PyAny>,
    tags: Option<&Bound<'_, PyAny>>,
) -> Option<()> {
    let mut identity = identity_of(kind, is_own, metric);
    let mut keep = vec![metric.clone().unbind()];
    let name = metric.cast_exact::<PyString>().ok()?.to_str().ok()?;
    let mut key_bytes = 0;
    let mut text = TagText::default();
    if let Some(dict) = tags {
        for (key, value) in dict.cast_exact::<PyDict>().ok()?.copy().ok()?.iter() {
            let is_constant = value.is_none()
                || value.is_exact_instance_of::<PyString>()
                || value.is_exact_instance_of::<PyBool>()
                || value.is_exact_instance_of::<PyInt>()
                || value.is_exact_instance_of::<PyFloat>();
            if !is_constant {
                return None;
            }
            // Those without a value are kept too, and nothing else has looked at how long they are.
            key_bytes += key.cast_exact::<PyString>().ok()?.to_str().ok()?.len();
            if key_bytes > client.config().context_bytes_max() {
                return None;
            }
            push_tag(&key, &value, &mut text).ok()?;
            if !(identity.push(key.as_ptr() as usize) && identity.push(value.as_ptr() as usize)) {
                return None;
            }
            keep.extend([key.unbind(), value.unbind()]);
        }
    }
    if !is_own {
        text.push_text(&client.config().constant_tags);
    }
    text.sort();
    client.learn(kind, name, &text, identity, keep.into());
    Some(())
}

/// One call of `increment`, `gauge` or `histogram`.
#[inline]
fn call(
    client: &Client,
    strict: bool,
    kind: Kind,
    metric: &Bound<'_, PyAny>,
    value: &Value<'_, '_>,
    tags: Option<&Bound<'_, PyAny>>,
    is_own: bool,
) -> PyResult<()> {
    if client.is_closed() {
        return call_closed(client, strict, metric);
    }
    let mut is_lesson = false;
    let mut identity = identity_of(kind, is_own, metric);
    if let Some(number) = plain_number(value)
        && identify_tags(&mut identity, tags)
    {
        match client.record_known(kind, &identity, number) {
            Ok(Ok(())) if !client.has_notices() => return Ok(()),
            Ok(outcome) => {
                let refusal = outcome.err().map(|reason| Refusal::of_limit(reason, number));
                return tell(client, strict, metric, refusal);
            }
            Err(lesson) => is_lesson = lesson,
        }
    }
    Python::attach(|_| {
        let is_taken = call_anew(client, strict, kind, metric, value, tags, is_own)?;
        if is_taken && is_lesson && is_held_elsewhere(metric, tags) {
            learn(client, kind, is_own, metric, tags);
        }
        Ok(())
    })
}

/// One call whose arguments must be read. True if it was recorded.
fn call_anew(
    client: &Client,
    strict: bool,
    kind: Kind,
    metric: &Bound<'_, PyAny>,
    value: &Value<'_, '_>,
    tags: Option<&Bound<'_, PyAny>>,
    is_own: bool,
) -> PyResult<bool> {
    let _inside = Inside::enter();
    let mut text = TagText::reusing(TAG_BUFFER.take());
    let arguments = arguments(client.config(), metric, value, tags, &mut text, is_own);
    let refusal = match arguments {
        Ok(Arguments { name, value }) => {
            text.sort();
            client.record(kind, name, &text, value).err().map(|reason| Refusal::of_limit(reason, value))
        }
        Err(Failure::Refusal(refusal)) => {
            client.refuse(refusal.reason);
            Some(refusal)
        }
        Err(Failure::Raised(error)) => {
            client.refuse(DropReason::BadValue);
            return Err(error);
        }
    };
    TAG_BUFFER.set(text.into_buffer());
    let is_taken = refusal.is_none();
    tell(client, strict, metric, refusal).map(|()| is_taken)
}

/// One call after the end. Its arguments are not looked at, and at the end of the process nothing is told: a thread that
/// lets go of the interpreter then never comes back.
#[cold]
fn call_closed(client: &Client, strict: bool, metric: &Bound<'_, PyAny>) -> PyResult<()> {
    let reason = client.refuse(DropReason::Closed);
    if IS_ENDING.load(Ordering::SeqCst) {
        return Ok(());
    }
    tell(client, strict, metric, Some(Refusal::of_limit(reason, 0.0)))
}

/// Raises a refusal if the client is strict, and logs it once otherwise, with what else is to be told.
fn tell(client: &Client, strict: bool, metric: &Bound<'_, PyAny>, refusal: Option<Refusal<'_>>) -> PyResult<()> {
    if let Some(refusal) = refusal {
        if strict {
            return Err(refusal.into_error(&subject_of(metric)?, client.config()));
        }
        let reason = refusal.reason.as_str();
        let name = metric.cast::<PyString>().map_or_else(|_| String::new(), |name| cut(&name.to_string_lossy()));
        let mut told = Ok(());
        client.notice_once(&format!("{reason} {name}"), || {
            let words = subject_of(metric).and_then(|subject| refusal.words(&subject, client.config()));
            let words = words.unwrap_or_else(|error| {
                told = Err(error);
                String::new()
            });
            format!("dropped ({reason}): {words}")
        });
        told?;
    }
    if client.has_notices() {
        log_notices(metric.py(), client)?;
    }
    Ok(())
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()).filter(|value| !value.is_empty())
}

fn is_off(value: &str) -> bool {
    ["0", "false", "no", "off"].contains(&value)
}

fn is_on(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// What a process calls around its forks and at its end, for a client that is still there.
#[pyclass(frozen)]
struct Hooks(Weak<Client>);

#[pymethods]
impl Hooks {
    #[getter]
    fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// A flush, and with `is_final` the last one; waits so many seconds for it.
    fn at_exit(&self, py: Python<'_>, is_final: bool, timeout: f64) {
        if is_final {
            IS_ENDING.store(true, Ordering::SeqCst);
        }
        if let Some(client) = self.0.upgrade() {
            let timeout = Duration::try_from_secs_f64(timeout).unwrap_or_default();
            py.detach(|| if is_final { client.close(timeout) } else { client.flush(timeout) });
        }
    }

    /// Logs what is to be told: the last step, since `logging` may have to be imported first.
    fn tell(&self, py: Python<'_>) -> PyResult<()> {
        let client = self.0.upgrade().filter(|client| client.has_notices());
        client.map_or(Ok(()), |client| log_notices(py, &client))
    }

    /// With the GIL held: nobody starts the thread again before the fork.
    fn before_fork(&self) {
        if let Some(client) = self.0.upgrade() {
            client.before_fork();
        }
    }

    fn after_fork(&self) {
        if let Some(client) = self.0.upgrade() {
            client.after_fork();
        }
    }
}

/// The frame that called `os.fork`, and when, while a pending call waits until it has returned.
static FORK: Mutex<Option<(usize, Instant)>> = Mutex::new(None);
/// Should that frame never come along, this is long enough for every hook of the fork.
const FORK_TIMEOUT: Duration = Duration::from_millis(10);

/// To be registered as it is with `os.register_at_fork(after_in_parent=…)`: has the flushers started once `os.fork` has
/// returned. From Python 3.12 on it warns of every thread that the process has at its end, and in 3.13 that is after
/// the hooks.
#[pyfunction]
#[allow(unsafe_code)]
fn after_fork_in_parent(py: Python<'_>) {
    let is_main_thread: PyResult<bool> = (|| {
        let threading = py.import("sys")?.getattr("modules")?.call_method1("get", ("threading",))?;
        // Pending calls are the main thread's. If another one forks, the warning is not of our making.
        Ok(threading.is_none() || threading.call_method0("main_thread")?.is(&threading.call_method0("current_thread")?))
    })();
    // SAFETY: we are attached to the interpreter; the frame is only compared, never followed.
    let frame = unsafe { pyo3::ffi::PyEval_GetFrame() } as usize;
    *FORK.lock().unwrap_or_else(PoisonError::into_inner) = Some((frame, Instant::now()));
    // SAFETY: the function is one of this library, which is never unloaded, and takes no argument.
    let is_pending = is_main_thread.unwrap_or(false)
        && unsafe { pyo3::ffi::Py_AddPendingCall(Some(after_fork_has_returned), std::ptr::null_mut()) } == 0;
    if !is_pending {
        start_flushers(py);
    }
}

#[allow(unsafe_code)]
extern "C" fn after_fork_has_returned(_: *mut c_void) -> c_int {
    Python::attach(|py| {
        // SAFETY: as in `after_fork_in_parent`.
        let frame = unsafe { pyo3::ffi::PyEval_GetFrame() } as usize;
        let fork = *FORK.lock().unwrap_or_else(PoisonError::into_inner);
        // Another frame is that of somebody's hook written in Python: the fork has not returned yet.
        let is_in_hook = fork.is_some_and(|(caller, since)| frame != caller && since.elapsed() < FORK_TIMEOUT);
        // SAFETY: as in `after_fork_in_parent`.
        let is_pending = is_in_hook
            && unsafe { pyo3::ffi::Py_AddPendingCall(Some(after_fork_has_returned), std::ptr::null_mut()) } == 0;
        if !is_pending {
            start_flushers(py);
        }
    });
    0
}

fn start_flushers(py: Python<'_>) {
    let started = py.import("cortex_metrics._exit").and_then(|module| module.call_method0("after_fork"));
    if let Err(error) = started {
        error.write_unraisable(py, None);
    }
}

/// Counts, sets and measures; sends it to the collector beside the process.
///
/// A call costs next to nothing, never waits, and never raises unless the client is strict: what cannot be sent is
/// counted by its reason and told once through ``logging`` (logger ``cortex_metrics``).
///
/// That the collector is away or back is logged by the next call, ``flush()`` or ``close()`` that comes along: the
/// thread that sends never touches Python. While it is away metrics are held in bounded memory and merged.
///
/// Args:
///     url: Where to send: ``udp://host:port`` or ``unix:///path``. Without it the environment decides
///         (``CORTEX_METRICS_URL``, ``DD_DOGSTATSD_URL``, ``DD_AGENT_HOST`` with ``DD_DOGSTATSD_PORT``), and
///         without that ``udp://127.0.0.1:9125``.
///     tags: Tags that every metric of this client carries.
///     flush_interval: Seconds between sends, 0.01 to 3600.
///     contexts_max: Combinations of name and tags in one flush, 1 to 1,000,000; calls for more are dropped and
///         counted.
///     payload_bytes_max: Bytes of a datagram, 512 to 65,507; 1432 over UDP and 8192 over a Unix socket unless given.
///     strict: Raise ``TypeError`` or ``ValueError`` for a call that would be dropped. Without it
///         ``CORTEX_METRICS_STRICT=1`` decides.
///     telemetry: Name this process in each payload and send the account of calls along. Without it the collector
///         cannot know when the process has ended, and its gauges stay.
///
/// Raises:
///     ValueError: One of these arguments is out of its range. The network never raises.
///
/// Example:
///     >>> from cortex_metrics import MetricsClient
///     >>> with MetricsClient() as metrics:
///     ...     metrics.increment("my_counter", 1, {"model": "v1"})
#[pyclass(frozen, weakref, subclass, module = "cortex_metrics")]
struct MetricsClient {
    client: Arc<Client>,
    strict: bool,
}

#[pymethods]
impl MetricsClient {
    #[new]
    #[pyo3(signature = (
        url=None, *, tags=None, flush_interval=1.0, contexts_max=10_000, payload_bytes_max=None, strict=None, telemetry=true
    ))]
    #[allow(clippy::too_many_arguments)] // Python's keywords
    fn new(
        py: Python<'_>,
        url: Option<&str>,
        tags: Option<&Bound<'_, PyAny>>,
        flush_interval: f64,
        contexts_max: usize,
        payload_bytes_max: Option<usize>,
        strict: Option<bool>,
        telemetry: bool,
    ) -> PyResult<Self> {
        let (endpoint, bad_variable) = match url {
            Some(url) => {
                let bad = || PyValueError::new_err(MetricsUrlError { name: "url".into(), got: url.into() }.to_string());
                (Endpoint::parse(url).ok_or_else(bad)?, None)
            }
            None => Endpoint::from_env(variable),
        };
        if !(0.01..=3600.0).contains(&flush_interval) {
            let words = format!("flush_interval: got {flush_interval}, want 0.01 to 3600 seconds");
            return Err(PyValueError::new_err(words));
        }
        if !(1..=1_000_000).contains(&contexts_max) {
            let words = format!("contexts_max: got {contexts_max}, want 1 to 1,000,000");
            return Err(PyValueError::new_err(words));
        }
        if let Some(bytes) = payload_bytes_max.filter(|bytes| !ClientConfig::PAYLOAD_BYTES.contains(bytes)) {
            let words = format!("payload_bytes_max: got {bytes}, want 512 to 65,507 bytes");
            return Err(PyValueError::new_err(words));
        }
        let mut constant = TagText::default();
        if let Some(tags) = tags {
            let limits = ClientConfig::default();
            push_tags(tags, &mut constant).map_err(|failure| failure.into_error("the client", &limits))?;
            constant.sort();
        }
        let api_name = variable("CORTEX_API_NAME").unwrap_or_default();
        let own_api_name =
            constant.as_str().split(',').find_map(|tag| tag.strip_prefix("api_name:")).map(str::to_owned);
        let mut config = ClientConfig {
            endpoint,
            flush_interval: Duration::from_secs_f64(flush_interval),
            constant_tags: constant.as_str().to_owned(),
            telemetry,
            api_name: String::new(),
            contexts_max,
            payload_bytes_max,
        };
        let bytes_max = config.context_bytes_max() / 2;
        if constant.as_str().len() > bytes_max {
            let words = format!("tags: got {} bytes, want at most {bytes_max}", constant.as_str().len());
            return Err(PyValueError::new_err(words));
        }
        let mut notices = Vec::new();
        if let Some(own_api_name) = own_api_name {
            config.api_name = own_api_name;
        } else if constant.as_str().len() + api_name.len() + ",api_name:".len() > bytes_max {
            notices.push(format!(
                "CORTEX_API_NAME: got {} bytes, which with the tags is too much; it is left out",
                api_name.len()
            ));
        } else if !api_name.is_empty() {
            // The key is good and a value is made so: nothing to fail.
            let _ = constant.push("api_name", &api_name);
            constant.sort();
            constant.as_str().clone_into(&mut config.constant_tags);
            config.api_name = api_name;
        }
        if let Some(error) = bad_variable {
            notices.push(format!("{error}; {} is used instead", config.endpoint));
        }
        let strict_variable = variable("CORTEX_METRICS_STRICT").map(|value| value.to_ascii_lowercase());
        if let Some(got) = strict_variable.as_ref().filter(|value| !is_on(value) && !is_off(value)) {
            notices.push(format!("CORTEX_METRICS_STRICT: got {got:?}, want 1 or 0; it is taken as 0"));
        }
        let client = Arc::new(Client::new(config));
        for notice in notices {
            client.notice_once(&notice.clone(), || notice);
        }
        if client.has_notices() {
            log_notices(py, &client)?;
        }
        py.import("cortex_metrics._exit")?.call_method1("watch", (Hooks(Arc::downgrade(&client)),))?;
        let strict = strict.unwrap_or_else(|| strict_variable.is_some_and(|value| is_on(&value)));
        Ok(Self { client, strict })
    }

    /// Adds to a counter.
    ///
    /// Args:
    ///     metric: The counter's name.
    ///     value: How much, 0 or more: anything with ``__float__`` or ``__index__``.
    ///     tags: A mapping of text to text, numbers or flags; a ``None`` leaves its tag out.
    ///
    /// Raises:
    ///     TypeError, ValueError: In a strict client only: an argument that cannot be used.
    ///
    /// Example:
    ///     >>> from cortex_metrics import MetricsClient
    ///     >>> metrics = MetricsClient()
    ///     >>> metrics.increment("predictions")
    ///     >>> metrics.increment("tokens", 17, {"model": "v1"})
    #[pyo3(signature = (metric, value=Value::One, tags=None), text_signature = "($self, metric, value=1, tags=None)")]
    fn increment(
        &self,
        metric: &Bound<'_, PyAny>,
        value: Value<'_, '_>,
        tags: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        call(&self.client, self.strict, Kind::Counter, metric, &value, tags, false)
    }

    /// Sets a gauge. The newest value of all processes that set it counts.
    ///
    /// Args:
    ///     metric: The gauge's name.
    ///     value: A finite number: anything with ``__float__`` or ``__index__``.
    ///     tags: As in ``increment``.
    ///
    /// Raises:
    ///     TypeError, ValueError: In a strict client only: an argument that cannot be used.
    ///
    /// Example:
    ///     >>> from cortex_metrics import MetricsClient
    ///     >>> metrics = MetricsClient()
    ///     >>> metrics.gauge("queue_length", 3, {"queue": "gpu"})
    #[pyo3(signature = (metric, value, tags=None))]
    fn gauge(&self, metric: &Bound<'_, PyAny>, value: Value<'_, '_>, tags: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        call(&self.client, self.strict, Kind::Gauge, metric, &value, tags, false)
    }

    /// Records a value of a distribution, in any unit: percentiles are right to 2.2 % of the value.
    ///
    /// Args:
    ///     metric: The histogram's name.
    ///     value: A finite number: anything with ``__float__`` or ``__index__``.
    ///     tags: As in ``increment``.
    ///
    /// Raises:
    ///     TypeError, ValueError: In a strict client only: an argument that cannot be used.
    ///
    /// Example:
    ///     >>> from cortex_metrics import MetricsClient
    ///     >>> metrics = MetricsClient()
    ///     >>> metrics.histogram("confidence", 0.93, {"model": "v1"})
    #[pyo3(signature = (metric, value, tags=None))]
    fn histogram(
        &self,
        metric: &Bound<'_, PyAny>,
        value: Value<'_, '_>,
        tags: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        call(&self.client, self.strict, Kind::Histogram, metric, &value, tags, false)
    }

    /// Sends what has accumulated now. Not needed: it is sent every ``flush_interval`` and at exit.
    ///
    /// Waits for the sending, which waits for nothing but room in a full Unix socket and a look-up of the host name
    /// that has just begun, at most 40 ms each. What nobody takes is held: see ``stats()``.
    ///
    /// Example:
    ///     >>> from cortex_metrics import MetricsClient
    ///     >>> metrics = MetricsClient()
    ///     >>> metrics.increment("predictions")
    ///     >>> metrics.flush()
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = Inside::enter();
        py.detach(|| self.client.flush(FLUSH_TIMEOUT));
        if self.client.has_notices() { log_notices(py, &self.client) } else { Ok(()) }
    }

    /// Sends what has accumulated and ends. Later calls are dropped and counted; a second ``close()`` does nothing.
    ///
    /// What nobody takes now is lost, counted as dropped (``closed``), and logged. Waits as ``flush()`` does.
    ///
    /// Example:
    ///     >>> from cortex_metrics import MetricsClient
    ///     >>> metrics = MetricsClient()
    ///     >>> metrics.close()
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = Inside::enter();
        self.client.forget_known();
        py.detach(|| self.client.close(FLUSH_TIMEOUT));
        if self.client.has_notices() { log_notices(py, &self.client) } else { Ok(()) }
    }

    /// A context manager and decorator that records seconds in a histogram; see ``Timer``.
    ///
    /// Args:
    ///     metric: The histogram's name; by Prometheus's custom it ends with ``_seconds``.
    ///     tags: As in ``increment``.
    ///
    /// Raises:
    ///     TypeError, ValueError: In a strict client only, when it records: an argument that cannot be used.
    ///
    /// Example:
    ///     >>> from cortex_metrics import MetricsClient
    ///     >>> metrics = MetricsClient()
    ///     >>> with metrics.timer("preprocess_seconds"):
    ///     ...     total = sum(range(1000))
    ///     >>> @metrics.timer("predict_seconds", {"model": "v1"})
    ///     ... async def predict(payload):
    ///     ...     return payload
    #[pyo3(signature = (metric, tags=None))]
    fn timer<'py>(
        slf: &Bound<'py, Self>,
        metric: &Bound<'py, PyAny>,
        tags: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static TIMER: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        TIMER.import(slf.py(), "cortex_metrics._timer", "Timer")?.call1((slf, metric, tags))
    }

    /// The account of this process's calls: ``called = sent + held + sum(dropped.values())``.
    ///
    /// Returns:
    ///     A ``Stats``: ``called``, ``sent`` and ``held`` calls, ``dropped`` calls by reason, ``payloads_sent`` and
    ///     ``payloads_refused``.
    ///
    /// Example:
    ///     >>> from cortex_metrics import MetricsClient
    ///     >>> metrics = MetricsClient()
    ///     >>> metrics.gauge("temperature", float("nan"))
    ///     >>> stats = metrics.stats()
    ///     >>> stats["called"], stats["dropped"]["not_finite"]
    ///     (1, 1)
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let account = self.client.account();
        let dropped = PyDict::new(py);
        for (reason, count) in DropReason::ALL.iter().zip(account.dropped) {
            dropped.set_item(reason.as_str(), count)?;
        }
        let stats = PyDict::new(py);
        stats.set_item("called", account.called)?;
        stats.set_item("sent", account.sent)?;
        stats.set_item("held", account.held)?;
        stats.set_item("dropped", dropped)?;
        stats.set_item("payloads_sent", account.payloads_sent)?;
        stats.set_item("payloads_refused", account.payloads_refused)?;
        Ok(stats)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _exc_type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.close(py)
    }

    /// Whoever copies a predictor wants another predictor and the same client.
    fn __copy__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __deepcopy__(slf: Py<Self>, _memo: &Bound<'_, PyAny>) -> Py<Self> {
        slf
    }

    /// For ``pickle``: in another process it is another client, made with the same arguments.
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((String,), Bound<'py, PyDict>)> {
        let config = self.client.config();
        let (tags, arguments) = (PyDict::new(py), PyDict::new(py));
        for (key, value) in config.constant_tags.split(',').filter_map(|tag| tag.split_once(':')) {
            tags.set_item(key, value)?;
        }
        arguments.set_item("tags", tags)?;
        arguments.set_item("flush_interval", config.flush_interval.as_secs_f64())?;
        arguments.set_item("contexts_max", config.contexts_max)?;
        arguments.set_item("payload_bytes_max", config.payload_bytes_max)?;
        arguments.set_item("strict", self.strict)?;
        arguments.set_item("telemetry", config.telemetry)?;
        Ok(((config.endpoint.to_string(),), arguments))
    }

    /// What this client would make of one call if it were strict: the name, the value, and the tags as text in their order,
    /// its own last. For ``CapturingClient``.
    fn _check(
        &self,
        kind: &str,
        metric: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        tags: Option<&Bound<'_, PyAny>>,
        is_own: bool,
    ) -> PyResult<CheckedCall> {
        let kind = match kind {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            "histogram" => Kind::Histogram,
            _ => return Err(PyValueError::new_err("kind: want counter, gauge or histogram")),
        };
        let config = self.client.config();
        let mut text = TagText::default();
        let value = Value::Given(value.as_borrowed());
        let checked = arguments(config, metric, &value, tags, &mut text, is_own).and_then(|call| {
            check_call(kind, call.name, &text, call.value, config.context_bytes_max())
                .map_err(|reason| Refusal::of_limit(reason, call.value))?;
            Ok(call)
        });
        let Arguments { name, value } = match checked {
            Ok(call) => call,
            Err(failure) => return Err(failure.into_error(&subject_of(metric)?, config)),
        };
        let pairs = text.as_str().split(',').filter_map(|tag| tag.split_once(':'));
        Ok((name.to_owned(), value, pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()))
    }

    fn __repr__(&self) -> String {
        format!("MetricsClient({:?})", self.client.config().endpoint.to_string())
    }

    /// The same client for the names that are ours; without the constant tags. For the package's own middleware.
    #[getter]
    fn _system(&self) -> SystemMetrics {
        SystemMetrics { client: Arc::clone(&self.client) }
    }
}

/// Records under the names that are reserved for the package itself.
#[pyclass(frozen, module = "cortex_metrics._native")]
struct SystemMetrics {
    client: Arc<Client>,
}

#[pymethods]
impl SystemMetrics {
    #[pyo3(signature = (metric, value=Value::One, tags=None), text_signature = "($self, metric, value=1, tags=None)")]
    fn increment(
        &self,
        metric: &Bound<'_, PyAny>,
        value: Value<'_, '_>,
        tags: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        call(&self.client, false, Kind::Counter, metric, &value, tags, true)
    }

    #[pyo3(signature = (metric, value, tags=None))]
    fn gauge(&self, metric: &Bound<'_, PyAny>, value: Value<'_, '_>, tags: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        call(&self.client, false, Kind::Gauge, metric, &value, tags, true)
    }

    #[pyo3(signature = (metric, value, tags=None))]
    fn histogram(
        &self,
        metric: &Bound<'_, PyAny>,
        value: Value<'_, '_>,
        tags: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        call(&self.client, false, Kind::Histogram, metric, &value, tags, true)
    }
}

impl Drop for MetricsClient {
    /// As `close` does, with the interpreter let go of: a client that is dropped without a word may be at the end of the
    /// process, and its last flush takes a moment.
    fn drop(&mut self) {
        if Arc::strong_count(&self.client) == 1 && !self.client.is_closed() {
            self.client.forget_known();
            Python::attach(|py| py.detach(|| self.client.close(crate::client::DROP_TIMEOUT)));
        }
    }
}

impl fast::Records for MetricsClient {
    const IS_OWN: bool = false;

    fn client(&self) -> &Client {
        &self.client
    }

    fn is_strict(&self) -> bool {
        self.strict
    }
}

impl fast::Records for SystemMetrics {
    const IS_OWN: bool = true;

    fn client(&self) -> &Client {
        &self.client
    }

    fn is_strict(&self) -> bool {
        false
    }
}

/// The name, the value, and the tags.
type CheckedCall = (String, f64, Vec<(String, String)>);

/// The native part of `cortex_metrics`.
#[pymodule(name = "_native", gil_used = false)]
fn native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(after_fork_in_parent, module)?)?;
    module.add_function(wrap_pyfunction!(after_fork_in_child, module)?)?;
    module.add_function(wrap_pyfunction!(wait_for_calls, module)?)?;
    module.add_class::<MetricsClient>()?;
    module.add_class::<SystemMetrics>()?;
    fast::install::<MetricsClient>(module.py())?;
    fast::install::<SystemMetrics>(module.py())
}
