//! A disk that refuses, at every write that the store makes: ticks, remote writes, what the sealer moves to the files of days, what the
//! retention removes, what a start repairs. Whatever was committed stays and is read as it was, also after a crash in that very moment;
//! nothing is taken for damage, and as soon as there is room everything goes on.
//!
//! SQLite writes through a layer of our own here, which counts what would change a file and refuses from one point on.
//! `TORTURE_WRITES=1` tries every write in every way (`make torture`); without it some.
#![cfg(feature = "collector")]
#![allow(missing_docs, unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use cortex_metrics::model::{ExponentialHistogram, Labels, METRIC_NAME, MetricKind, Sample, SeriesId, Value};
use cortex_metrics::store::{Part, Select as _, Selection, StartedSeries, Store, StoreError, Tick, WrittenSeries};
use rusqlite::ffi;

// The layer below SQLite --------------------------------------------------------------------------------------------

/// What becomes of the changes to the files of one folder.
#[derive(Debug, Default)]
struct Disk {
    /// How many there were.
    changes: AtomicU64,
    /// From this one on they are refused; 0: none is.
    refuses_from: AtomicU64,
    refused: AtomicU64,
    /// Whether also that is refused for which a disk that is only full has room: what is there already is written anew, synced, cut.
    is_broken: bool,
}

impl Disk {
    fn refuses(&self) -> bool {
        let change = self.changes.fetch_add(1, SeqCst) + 1;
        let from = self.refuses_from.load(SeqCst);
        let refuses = from > 0 && change >= from;
        self.refused.fetch_add(u64::from(refuses), SeqCst);
        refuses
    }

    fn has_refused(&self) -> bool {
        self.refused.load(SeqCst) > 0
    }

    fn has_room_again(&self) {
        self.refuses_from.store(0, SeqCst);
    }
}

/// The folders that are looked after.
static DISKS: Mutex<Vec<(PathBuf, Arc<Disk>)>> = Mutex::new(Vec::new());

fn disk_of(path: &Path) -> Option<Arc<Disk>> {
    DISKS.lock().unwrap().iter().find(|(folder, _)| path.starts_with(folder)).map(|(_, disk)| Arc::clone(disk))
}

/// A file as SQLite sees it; the real one lies behind it in the same memory.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    disk: *mut Option<Arc<Disk>>,
}

/// SAFETY (of all below): SQLite calls these with a file that [`open`] made, in memory of `szOsFile` bytes, from its opening to its closing.
unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    unsafe { file.cast::<File>().add(1).cast() }
}

unsafe fn refuses(file: *mut ffi::sqlite3_file, only_if_broken: bool) -> bool {
    let disk = unsafe { &*(*file.cast::<File>()).disk };
    disk.as_ref().is_some_and(|disk| (disk.is_broken || !only_if_broken) && disk.refuses())
}

macro_rules! pass {
    ($file:ident, $method:ident $(, $argument:expr)*) => {
        unsafe { ((*(*real($file)).pMethods).$method.unwrap())(real($file) $(, $argument)*) }
    };
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let done = pass!(file, xClose);
    drop(unsafe { Box::from_raw((*file.cast::<File>()).disk) });
    done
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, bytes: c_int, at: i64) -> c_int {
    pass!(file, xRead, to, bytes, at)
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, bytes: c_int, at: i64) -> c_int {
    let mut size = 0;
    let known = pass!(file, xFileSize, &raw mut size);
    let grows = known != ffi::SQLITE_OK || at + i64::from(bytes) > size;
    if unsafe { refuses(file, !grows) } { ffi::SQLITE_FULL } else { pass!(file, xWrite, from, bytes, at) }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    if unsafe { refuses(file, true) } { ffi::SQLITE_IOERR_TRUNCATE } else { pass!(file, xTruncate, size) }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    if unsafe { refuses(file, true) } { ffi::SQLITE_IOERR_FSYNC } else { pass!(file, xSync, flags) }
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    pass!(file, xFileSize, size)
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    pass!(file, xLock, level)
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    pass!(file, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    pass!(file, xCheckReservedLock, out)
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, what: c_int, argument: *mut c_void) -> c_int {
    pass!(file, xFileControl, what, argument)
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    pass!(file, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    pass!(file, xDeviceCharacteristics)
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

unsafe fn below(layer: *mut ffi::sqlite3_vfs) -> *mut ffi::sqlite3_vfs {
    unsafe { (*layer).pAppData.cast() }
}

unsafe extern "C" fn open(
    layer: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    unsafe {
        (*file).pMethods = std::ptr::null();
        let path = if name.is_null() { "" } else { CStr::from_ptr(name).to_str().unwrap() };
        let disk = disk_of(Path::new(path));
        let is_made = flags & ffi::SQLITE_OPEN_CREATE != 0 && !Path::new(path).exists();
        if is_made && disk.as_ref().is_some_and(|disk| disk.refuses()) {
            return ffi::SQLITE_CANTOPEN;
        }
        let below = below(layer);
        let done = ((*below).xOpen.unwrap())(below, name, real(file), flags, out);
        if !(*real(file)).pMethods.is_null() {
            (*file).pMethods = &raw const METHODS;
            (*file.cast::<File>()).disk = Box::into_raw(Box::new(disk));
        }
        done
    }
}

unsafe extern "C" fn delete(layer: *mut ffi::sqlite3_vfs, name: *const c_char, is_synced: c_int) -> c_int {
    unsafe { ((*below(layer)).xDelete.unwrap())(below(layer), name, is_synced) }
}

unsafe extern "C" fn access(layer: *mut ffi::sqlite3_vfs, name: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    unsafe { ((*below(layer)).xAccess.unwrap())(below(layer), name, flags, out) }
}

unsafe extern "C" fn full_path(
    layer: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    bytes: c_int,
    out: *mut c_char,
) -> c_int {
    unsafe { ((*below(layer)).xFullPathname.unwrap())(below(layer), name, bytes, out) }
}

/// Puts the layer below every connection of this process.
fn lay() {
    static LAID: Once = Once::new();
    LAID.call_once(|| {
        // SAFETY: what SQLite's own file system is stays where it is; the copy of it is never freed.
        unsafe {
            assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK);
            let below = ffi::sqlite3_vfs_find(std::ptr::null());
            let layer = Box::leak(Box::new(std::ptr::read(below)));
            layer.iVersion = 1;
            layer.szOsFile = size_of::<File>() as c_int + (*below).szOsFile;
            layer.pNext = null_mut();
            layer.zName = c"refusing".as_ptr();
            layer.pAppData = below.cast();
            layer.xOpen = Some(open);
            layer.xDelete = Some(delete);
            layer.xAccess = Some(access);
            layer.xFullPathname = Some(full_path);
            assert_eq!(ffi::sqlite3_vfs_register(layer, 1), ffi::SQLITE_OK);
        }
    });
}

/// A folder with a disk of its own, in memory where that is possible: this test syncs very often.
struct Folder(tempfile::TempDir, Arc<Disk>);

impl Folder {
    fn new(disk: Disk) -> Self {
        lay();
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let disk = Arc::new(disk);
        DISKS.lock().unwrap().push((dir.path().to_owned(), Arc::clone(&disk)));
        Self(dir, disk)
    }

    /// What a crash leaves.
    fn copy(&self) -> Self {
        let copy = Self::new(Disk::default());
        for entry in std::fs::read_dir(self.0.path()).unwrap() {
            let path = entry.unwrap().path();
            // A file that the sealer gives its name just now.
            let copied = std::fs::copy(&path, copy.0.path().join(path.file_name().unwrap()));
            assert!(copied.is_ok() || !path.exists(), "{}", path.display());
        }
        copy
    }

    fn has_aside(&self) -> bool {
        let mut names = std::fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.any(|name| name.to_string_lossy().contains("damaged"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        DISKS.lock().unwrap().retain(|(folder, _)| folder != self.0.path());
    }
}

// What is stored ----------------------------------------------------------------------------------------------------

/// Three ticks make a window of two hours, 36 a day.
const STEP_MS: i64 = 2_400_000;
const DAY_MS: i64 = 86_400_000;
const TICKS: i64 = 84;
const WRITTEN: &str = "written";

/// What must be read, by series and time.
type Model = BTreeMap<(String, i64), String>;

fn shown(value: &Value) -> String {
    match value {
        value if value.is_stale() => "end".to_owned(),
        Value::Float(float) => float.to_string(),
        Value::Histogram(h) => format!("{} {} {:?}", h.count(), h.sum(), h.buckets()),
    }
}

fn labels(name: &str) -> Labels {
    Labels::from_pairs([(METRIC_NAME, name)])
}

/// A recorder in small: what changed since the last tick that was committed goes with the next one.
#[derive(Default, Clone)]
struct Recorder {
    now: BTreeMap<u32, Value>,
    changed: BTreeSet<u32>,
    started: Vec<StartedSeries>,
    model: Model,
    /// What the model is if something that was refused since is there after all: only the sync that comes after a commit was refused then.
    in_flight: Vec<Model>,
    to_write: Vec<Sample>,
}

impl Recorder {
    fn set(&mut self, id: u32, value: Value) {
        self.changed.insert(id);
        self.now.insert(id, value);
    }

    fn start(&mut self, id: u32, kind: MetricKind, start_ms: i64) {
        let (labels, earlier) = (labels(&format!("m{id}")), None);
        self.started.push(StartedSeries { id: SeriesId(id), labels, kind, start_ms, earlier });
    }

    /// The values of the `n`th tick.
    fn step(&mut self, n: i64) {
        if n == 0 {
            self.start(1, MetricKind::Counter, -1);
            self.start(2, MetricKind::Gauge, -1);
            self.start(3, MetricKind::Histogram, -1);
        }
        self.set(1, Value::Float((n / 2) as f64));
        self.set(2, if n % 5 == 4 { Value::stale() } else { Value::Float(n as f64 * 0.37) });
        if n % 3 == 0 {
            let mut h = ExponentialHistogram::default();
            (0..=n).for_each(|i| h.record(0.01 * (i + 1) as f64, 1.0));
            self.set(3, Value::Histogram(Arc::new(h)));
        }
        // A series that begins, and ends four ticks later.
        if n % 6 == 0 {
            let id = 10 + n as u32;
            self.start(id, MetricKind::Gauge, n * STEP_MS - 1);
            self.set(id, Value::Float(n as f64));
        }
        if n >= 4 && (n - 4) % 6 == 0 {
            self.set(10 + (n - 4) as u32, Value::stale());
        }
        if n % 4 == 3 {
            let sample =
                |at| Sample { timestamp_ms: n * STEP_MS - at * 1000, value: Value::Float((n * 10 - at) as f64) };
            self.to_write.extend([sample(3), sample(2), sample(1)]);
        }
    }

    /// Commits as the `n`th tick, and writes what is to be written.
    fn commit(&mut self, store: &mut Store, n: i64) -> Result<(), StoreError> {
        let timestamp_ms = n * STEP_MS;
        let mut model = self.model.clone();
        for started in &self.started {
            let zero = match started.kind {
                MetricKind::Counter => "0".to_owned(),
                MetricKind::Gauge => continue,
                MetricKind::Histogram => shown(&Value::Histogram(Arc::default())),
            };
            model.insert((started.labels.name().to_owned(), started.start_ms), zero);
        }
        for (id, value) in &self.now {
            if !value.is_stale() || self.changed.contains(id) {
                model.insert((format!("m{id}"), timestamp_ms), shown(value));
            }
        }
        self.in_flight.push(model);
        let samples = self.changed.iter().map(|id| (SeriesId(*id), self.now[id].clone())).collect();
        store.append(&Tick { timestamp_ms, started: self.started.clone(), samples, ..Tick::default() })?;
        self.model = self.in_flight.pop().unwrap();
        self.in_flight.clear();
        self.started.clear();
        self.changed.clear();
        if self.to_write.is_empty() {
            return Ok(());
        }
        let mut model = self.model.clone();
        model.extend(self.to_write.iter().map(|s| ((WRITTEN.to_owned(), s.timestamp_ms), shown(&s.value))));
        self.in_flight.push(model);
        let samples = std::mem::take(&mut self.to_write);
        let series = [WrittenSeries { labels: labels(WRITTEN), samples }];
        let written = store.write(&series, 0).inspect_err(|_| self.to_write.clone_from(&series[0].samples))?;
        assert_eq!((written.stored, written.refused), (series[0].samples.len() as u64, 0));
        self.model = self.in_flight.pop().unwrap();
        self.in_flight.clear();
        Ok(())
    }

    /// Lets the first day go, if it is old enough.
    fn expire(&mut self, store: &mut Store, dir: &Path) -> Result<(), StoreError> {
        let done = store.expire(DAY_MS / 2, None);
        if !dir.join("1970-01-01.db").exists() {
            let is_left = |at: &(String, i64)| at.1 >= DAY_MS;
            self.model.retain(|at, _| is_left(at));
            self.in_flight.iter_mut().for_each(|model| model.retain(|at, _| is_left(at)));
        }
        done.map(|_| ())
    }
}

/// All that is read.
fn all(store: &Store) -> Model {
    read_all(store).unwrap()
}

fn read_all(store: &Store) -> Result<Model, StoreError> {
    let selection = Selection {
        matchers: vec![],
        start_ms: i64::MIN / 2,
        end_ms: i64::MAX / 2,
        repeats: true,
        part: Part::Whole,
        samples_max: 1_000_000,
    };
    let series = store.reader().select(&selection)?;
    let of_series = |series: cortex_metrics::store::SelectedSeries| {
        let name = series.labels.name().to_owned();
        series.samples.into_iter().map(move |s| ((name.clone(), s.timestamp_ms), shown(&s.value)))
    };
    Ok(series.into_iter().flat_map(of_series).collect())
}

#[track_caller]
fn assert_same(got: &Model, want: &Model, what: &str) {
    let missing: Vec<_> = want.iter().filter(|(at, value)| got.get(*at) != Some(value)).take(3).collect();
    let made_up: Vec<_> = got.iter().filter(|(at, value)| want.get(*at) != Some(value)).take(3).collect();
    assert!(missing.is_empty() && made_up.is_empty(), "{what}: not there {missing:?}, but there {made_up:?}");
}

/// Waits until everything is in its place, or the disk has refused something.
fn wait_until_sealed(store: &Store, disk: &Disk, what: &str) {
    let until = Instant::now() + Duration::from_secs(120);
    while !store.is_sealed() && (!disk.has_refused() || disk.refuses_from.load(SeqCst) == 0) {
        assert!(Instant::now() < until, "{what}: not sealed: {:?}", store.sealing_error());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Some days on a disk that refuses from one change on, until it has refused for a tick or two. Gives how many changes there were.
fn some_days(refuses_from: u64, is_broken: bool) -> u64 {
    let what = format!("change {refuses_from}{}", if is_broken { ", broken" } else { "" });
    let folder = Folder::new(Disk { refuses_from: refuses_from.into(), is_broken, ..Disk::default() });
    let Folder(dir, disk) = &folder;
    let mut opened = Store::open(dir.path());
    if opened.is_err() && disk.has_refused() {
        disk.has_room_again();
        opened = Store::open(dir.path());
    }
    let (mut store, _) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut recorder = Recorder::default();
    let mut ticks_refused = 0;
    for n in 0..TICKS {
        recorder.step(n);
        let mut done = recorder.commit(&mut store, n);
        if n > 70 && n % 4 == 0 && done.is_ok() && store.is_sealed() {
            done = recorder.expire(&mut store, dir.path());
        }
        match done {
            Ok(()) => {}
            Err(StoreError::Database { .. }) if disk.has_refused() => {}
            Err(other) => panic!("{what}: tick {n}: {other}"),
        }
        if disk.has_refused() && disk.refuses_from.load(SeqCst) > 0 {
            ticks_refused += 1;
            match read_all(&store) {
                Ok(read) => assert_same(&read, &recorder.model, &what),
                // What was begun in a file must be taken back before anybody reads it, and the disk refuses that.
                Err(StoreError::Database { .. }) if is_broken => {}
                Err(other) => panic!("{what}: {other}"),
            }
            if ticks_refused == 2 {
                after_a_crash(&folder.copy(), &recorder, n, &format!("{what}, crashed"));
                damage_journals(&folder, &recorder, &what, refuses_from);
                disk.has_room_again();
            }
        } else if !disk.has_refused() {
            // One after the other, so that each change is tried.
            wait_until_sealed(&store, disk, &what);
        }
    }
    disk.has_room_again();
    wait_until_sealed(&store, disk, &what);
    // Room is found by the tick after it came, and then nothing is held back.
    recorder.step(TICKS);
    recorder.commit(&mut store, TICKS).unwrap();
    assert_same(&all(&store), &recorder.model, &what);
    drop(store);
    let (mut store, restored) = Store::open(dir.path()).unwrap();
    assert_same(&all(&store), &recorder.model, &format!("{what}, opened again"));
    assert_eq!((store.damaged_files(), folder.has_aside()), (0, false), "{what}");
    assert_eq!(restored.series.iter().find(|s| s.id.0 == 1).map(|s| shown(&s.value)), Some((TICKS / 2).to_string()));
    recorder.expire(&mut store, dir.path()).unwrap();
    assert!(!dir.path().join("1970-01-01.db").exists());
    assert_same(&all(&store), &recorder.model, &format!("{what}, a day expired"));
    disk.changes.load(SeqCst)
}

/// What a crash left is opened while the disk is still full, and goes on when there is room.
fn after_a_crash(folder: &Folder, recorder: &Recorder, n: i64, what: &str) {
    let Folder(dir, disk) = folder;
    disk.refuses_from.store(1, SeqCst);
    let (mut store, _) = Store::open(dir.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let left = all(&store);
    let model = if recorder.in_flight.contains(&left) { &left } else { &recorder.model };
    assert_same(&left, model, what);
    disk.has_room_again();
    let mut recorder = Recorder { model: model.clone(), ..recorder.clone() };
    // What is stored is not to be written again.
    recorder.to_write.retain(|sample| !model.contains_key(&(WRITTEN.to_owned(), sample.timestamp_ms)));
    for n in n + 1..n + 9 {
        recorder.step(n);
        recorder.commit(&mut store, n).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    wait_until_sealed(&store, disk, what);
    assert_same(&all(&store), &recorder.model, what);
    drop(store);
    let (store, _) = Store::open(dir.path()).unwrap();
    assert_same(&all(&store), &recorder.model, &format!("{what}, opened again"));
    assert_eq!((store.damaged_files(), folder.has_aside()), (0, false), "{what}");
}

/// A transaction that a crash left half done, and a byte of its journal that is not what it was.
fn damage_journals(folder: &Folder, recorder: &Recorder, what: &str, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..12 {
        let crashed = folder.copy();
        let journals = std::fs::read_dir(crashed.0.path()).unwrap().map(|entry| entry.unwrap().path());
        let is_hot =
            |path: &PathBuf| path.to_string_lossy().ends_with("-journal") && path.metadata().unwrap().len() > 0;
        let Some(journal) = journals.filter(is_hot).min() else { return };
        let mut bytes = std::fs::read(&journal).unwrap();
        // The header is small, and says the most.
        let at = random(if round % 2 == 0 { bytes.len() } else { bytes.len().min(28) });
        bytes[at] ^= 1 << random(8);
        std::fs::write(&journal, bytes).unwrap();
        let what = format!("{what}, {} damaged at {at}", journal.display());
        let (store, _) = Store::open(crashed.0.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let left = all(&store);
        let models = || recorder.in_flight.iter().chain([&recorder.model]);
        let made_up = |(at, value): &(&(String, i64), &String)| !models().any(|model| model.get(*at) == Some(*value));
        let made_up: Vec<_> = left.iter().filter(made_up).take(3).collect();
        assert!(made_up.is_empty(), "{what}: there is {made_up:?}");
        let lost: Vec<_> = recorder.model.keys().filter(|at| !left.contains_key(*at)).collect();
        assert!(lost.is_empty() || store.damaged_files() > 0, "{what}: lost {lost:?} without a word");
        let days: BTreeSet<i64> = lost.iter().map(|(_, at)| at.div_euclid(DAY_MS).max(0)).collect();
        assert!(days.len() <= 1, "{what}: lost from {days:?}");
    }
}

/// Runs `each` for some of the numbers from 1 to `last`, several at a time: the sealer waits for two seconds before it tries again.
fn for_some(last: u64, each: impl Fn(u64) + Sync) {
    const AT_ONCE: u64 = 12;
    let is_long = std::env::var_os("TORTURE_WRITES").is_some();
    let step = if is_long { 1 } else { (last / 30).max(1) };
    std::thread::scope(|scope| {
        for first in 1..=AT_ONCE {
            let each = &each;
            scope.spawn(move || (first * step..=last).step_by((AT_ONCE * step) as usize).for_each(each));
        }
    });
}

#[test]
fn whatever_write_the_disk_refuses_nothing_committed_is_lost_and_everything_goes_on() {
    for is_broken in [false, true] {
        let changes = some_days(0, is_broken);
        assert!(changes > 500, "{changes}");
        for_some(changes, |change| {
            some_days(change, is_broken);
        });
    }
}
