//! Reading: the samples of a series from all windows that have some, as one sample per tick.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::day::{Day, Summaries};
use super::shared::{Index, OPEN_MAX, Shared};
use super::window::{OpenWindow, SealedWindow, Windows, day_of};
use super::{MatchOp, Matcher, Part, Select, SelectedSeries, Selection, StoreError};
use crate::model::{Labels, METRIC_NAME, MetricKind, Sample, Value, values_by_label};

/// So many series, or so many samples, are read before they are visited, and the files are free in between.
const SERIES_AT_ONCE: usize = 64;
const SAMPLES_AT_ONCE: usize = 1 << 16;
/// So many damaged files a query waits for; more, only somebody makes who changes them all the time.
const MENDS_MAX: usize = 10_000;

/// Reads a store that another part of this process writes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
}

/// Series with the same labels: one that this collector counts, one that was written, or both.
struct Group {
    labels: Labels,
    ids: Vec<u32>,
}

impl Reader {
    /// Whether a series of ticks has these labels and is of this kind, be it one that ended.
    pub fn knows(&self, labels: &Labels, kind: MetricKind) -> bool {
        self.shared.index.read().find(labels, Some(kind)).is_some()
    }

    /// The name with the most series, those that ended among them, and of its labels the one with the most values:
    /// how many, of the newest 10,000 series.
    pub fn widest(&self) -> Option<(String, String, usize)> {
        const LOOKED_AT_MAX: usize = 10_000;
        let index = self.shared.index.read();
        let (name, ids) = index.by_name.iter().max_by_key(|(_, ids)| ids.len())?;
        let newest = ids.iter().rev().take(LOOKED_AT_MAX).filter_map(|id| index.series.get(id));
        let values = values_by_label(newest.map(|known| &known.labels));
        let widest = values.iter().max_by_key(|(_, values)| values.len());
        let (label, values) = widest.map_or(("", 0), |(label, values)| (*label, values.len()));
        Some((name.clone(), label.to_owned(), values))
    }

    fn matching(
        &self,
        selection: &Selection,
        look: &dyn Fn() -> Result<(), StoreError>,
    ) -> Result<Vec<Group>, StoreError> {
        let index = self.shared.index.read();
        let name = selection.matchers.iter().find_map(|matcher| match &matcher.op {
            MatchOp::Equal(name) if matcher.name == METRIC_NAME => Some(name),
            _ => None,
        });
        // A regular expression may take long, and a tick that brings new series waits for the index.
        let (slow, quick): (Vec<&Matcher>, Vec<&Matcher>) =
            selection.matchers.iter().partition(|m| matches!(m.op, MatchOp::Regex(_) | MatchOp::NotRegex(_)));
        let mut matching: Vec<(Labels, u32)> = match name {
            Some(name) => {
                index.by_name.get(name).into_iter().flatten().filter_map(|id| pair(&index, *id, &quick)).collect()
            }
            None => index.series.keys().filter_map(|id| pair(&index, *id, &quick)).collect(),
        };
        drop(index);
        if !slow.is_empty() {
            let mut is_ended = Ok(());
            let mut is_first = (0..SERIES_AT_ONCE).cycle().map(|at| at == 0);
            matching.retain(|(labels, _)| {
                if is_first.next().unwrap_or_default() && is_ended.is_ok() {
                    is_ended = look();
                }
                is_ended.is_ok() && slow.iter().all(|matcher| matcher.matches(labels))
            });
            is_ended?;
        }
        matching.sort_unstable();
        let mut groups: Vec<Group> = Vec::with_capacity(matching.len());
        for (labels, id) in matching {
            match groups.last_mut() {
                Some(group) if group.labels == labels => group.ids.push(id),
                _ => groups.push(Group { labels, ids: vec![id] }),
            }
        }
        Ok(groups)
    }

    fn snapshot(&self, groups: &[Group], selection: &Selection) -> Snapshot {
        let windows = self.shared.windows.read();
        let ids = || groups.iter().flat_map(|group| group.ids.iter().copied());
        Snapshot::of(&windows, ids, selection)
    }
}

fn pair(index: &Index, id: u32, matchers: &[&Matcher]) -> Option<(Labels, u32)> {
    let labels = &index.series.get(&id)?.labels;
    matchers.iter().all(|matcher| matcher.matches(labels)).then(|| (labels.clone(), id))
}

impl Select for Reader {
    /// Of the series of which a window tells that they were there: no sample is read, so that one counts for all of the two hours in
    /// which it began or ended.
    fn labels_while(
        &self,
        selection: &Selection,
        look: &dyn Fn() -> Result<(), StoreError>,
    ) -> Result<Vec<Labels>, StoreError> {
        let groups = self.matching(selection, look)?;
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let chunks = Chunks::of(&self.shared.windows.read(), &groups, selection);
        let index = self.shared.index.read();
        let is_ended = |id: u32| index.series.get(&id).is_none_or(|known| known.is_ended);
        let was_there = |group: &Group| group.ids.iter().any(|id| chunks.was_there(*id, is_ended));
        Ok(groups.into_iter().filter(was_there).map(|group| group.labels).collect())
    }

    fn labels(&self, selection: &Selection) -> Result<Vec<Labels>, StoreError> {
        self.labels_while(selection, &|| Ok(()))
    }

    fn for_each(
        &self,
        selection: &Selection,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.for_each_while(selection, &|| Ok(()), visit)
    }

    fn for_each_while(
        &self,
        selection: &Selection,
        look: &dyn Fn() -> Result<(), StoreError>,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let groups = self.matching(selection, look)?;
        if groups.is_empty() {
            return Ok(());
        }
        let mut files = Files::new(&self.shared);
        let mut snapshot = self.snapshot(&groups, selection);
        let (mut read, mut held, mut mends) = (Vec::new(), 0, 0);
        for (at, group) in groups.iter().enumerate() {
            // Of very many series there may be no sample in the time asked for, and then nobody is visited.
            if at % SERIES_AT_ONCE == 0 {
                look()?;
            }
            let samples = loop {
                match snapshot.samples(&mut files, &group.ids, selection) {
                    Err(StoreError::Damaged { what, .. }) if files.last.is_some() && mends < MENDS_MAX => {
                        // Once for each file: what is left of it is sound.
                        let day = files.last.unwrap_or_default();
                        mends += 1;
                        files = Files::new(&self.shared);
                        self.shared.salvage_found(day, &what)?;
                        snapshot = self.snapshot(&groups, selection);
                    }
                    other => break other?,
                }
            };
            // The end of what is no histogram is not the end of a part.
            let is_any = selection.part == Part::Whole || samples.iter().any(|sample| !sample.value.is_stale());
            if samples.is_empty() || !is_any {
                continue;
            }
            held += samples.len();
            read.push(SelectedSeries { labels: group.labels.clone(), samples });
            if read.len() >= SERIES_AT_ONCE || held >= SAMPLES_AT_ONCE {
                files.rest()?;
                read.drain(..).try_for_each(&mut *visit)?;
                held = 0;
            }
        }
        files.rest()?;
        read.into_iter().try_for_each(visit)
    }
}

/// Which series have a chunk in a window that overlaps the time asked for, and in windows of ticks before it, on its first day, and after it.
#[derive(Default)]
struct Chunks {
    within: RoaringBitmap,
    before: RoaringBitmap,
    after: RoaringBitmap,
}

impl Chunks {
    fn of(windows: &Windows, groups: &[Group], selection: &Selection) -> Self {
        let mut chunks = Self::default();
        for window in &windows.sealed {
            if let Some(found) = chunks.at(window.span, window.is_written, selection) {
                *found |= &window.present;
            }
        }
        for window in windows.sealing.iter().map(|window| &**window).chain([&windows.open, &windows.written]) {
            let Some(span) = window.span else { continue };
            let ids = groups.iter().flat_map(|group| &group.ids).filter(|id| window.streams.contains_key(id));
            if let Some(found) = chunks.at(span, window.is_written, selection) {
                found.extend(ids);
            }
        }
        chunks
    }

    fn at(&mut self, span: (i64, i64), is_written: bool, selection: &Selection) -> Option<&mut RoaringBitmap> {
        if span.1 < selection.start_ms {
            let holds = !is_written && day_of(span.0) == day_of(selection.start_ms);
            return holds.then_some(&mut self.before);
        }
        if span.0 <= selection.end_ms { Some(&mut self.within) } else { (!is_written).then_some(&mut self.after) }
    }

    /// Every day begins with all that is alive; from there a value holds without a chunk until it changes or ends.
    fn was_there(&self, id: u32, is_ended: impl Fn(u32) -> bool) -> bool {
        self.within.contains(id) || self.before.contains(id) && (self.after.contains(id) || !is_ended(id))
    }
}

/// The files that a query has open.
struct Files<'a> {
    shared: &'a Shared,
    /// [`Shared::forgotten`] when this began: what was opened before another file came in its place is not given back.
    began: u64,
    open: BTreeMap<i64, Option<Day>>,
    /// The day whose file was read last.
    last: Option<i64>,
    /// Of which series on which day the summaries were read last, and these.
    summaries: Option<(i64, u32, Arc<Summaries>)>,
}

impl<'a> Files<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self { shared, began: shared.forgotten(), open: BTreeMap::new(), last: None, summaries: None }
    }

    /// Lets the sealer write, for as long as it takes whoever is visited.
    fn rest(&self) -> Result<(), StoreError> {
        self.open.values().flatten().try_for_each(Day::rest)
    }

    /// The file of a day, `None` if the retention took it.
    fn day(&mut self, day: i64) -> Result<Option<&Day>, StoreError> {
        self.last = Some(day);
        if !self.open.contains_key(&day) {
            if self.shared.open_files() >= OPEN_MAX {
                // The last one: the next series begins with the first.
                let last = self.open.iter().rev().find_map(|(day, file)| file.is_some().then_some(*day));
                last.and_then(|last| self.open.remove(&last));
            }
            let file = self.shared.day(day)?;
            self.open.insert(day, file);
        }
        Ok(self.open.get(&day).and_then(Option::as_ref))
    }
}

impl Files<'_> {
    /// The summaries of a series on a day, `None` if the retention took the file. Those of a day are read at once.
    fn summaries(&mut self, day: i64, id: u32) -> Result<Option<&Summaries>, StoreError> {
        if self.summaries.as_ref().is_none_or(|(of_day, of, _)| (*of_day, *of) != (day, id)) {
            let of_day = if let Some(kept) = self.shared.summaries(day, id) {
                kept
            } else {
                let Some(file) = self.day(day)? else { return Ok(None) };
                let read = Arc::new(file.summaries(id)?);
                self.shared.keep_summaries(day, id, &read);
                read
            };
            self.summaries = Some((day, id, of_day));
        }
        Ok(self.summaries.as_ref().map(|(_, _, summaries)| &**summaries))
    }
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        if self.shared.forgotten() == self.began {
            std::mem::take(&mut self.open).into_values().flatten().for_each(|day| self.shared.give_back(day));
        }
    }
}

/// A window as a query sees it.
enum Source {
    Sealed(Arc<SealedWindow>),
    Sealing(Arc<OpenWindow>),
    /// Of the window that still grows, the series that are asked for.
    Open(OpenWindow),
}

impl Source {
    fn open(&self) -> Option<&OpenWindow> {
        match self {
            Self::Sealed(_) => None,
            Self::Sealing(window) => Some(window),
            Self::Open(window) => Some(window),
        }
    }

    fn ticks(&self) -> &[i64] {
        match self {
            Self::Sealed(window) => &window.ticks,
            other => other.open().map_or(&[], |window| &window.ticks),
        }
    }

    fn span(&self) -> (i64, i64) {
        match self {
            Self::Sealed(window) => window.span,
            other => other.open().and_then(|window| window.span).unwrap_or((i64::MAX, i64::MIN)),
        }
    }

    fn run(&self) -> u64 {
        match self {
            Self::Sealed(window) => window.run,
            other => other.open().map_or(0, |window| window.run),
        }
    }

    /// Whether values hold from `earlier` on into this window.
    fn follows(&self, earlier: &Self) -> bool {
        let (previous, last) = match (self, earlier) {
            (Self::Sealed(window), Self::Sealed(earlier)) => (window.previous, earlier.last_sequence),
            (later, Self::Sealed(earlier)) => (later.open().map_or(0, |window| window.previous), earlier.last_sequence),
            (Self::Sealed(_), _) => return false,
            (later, earlier) => (
                later.open().map_or(0, |window| window.previous),
                earlier.open().map_or(0, |window| window.last_sequence),
            ),
        };
        previous == last
    }

    fn has(&self, id: u32) -> bool {
        match self {
            Self::Sealed(window) => window.present.contains(id),
            other => other.open().is_some_and(|window| window.streams.contains_key(&id)),
        }
    }

    fn has_lost(&self, id: u32) -> bool {
        matches!(self, Self::Sealed(window) if window.lost.contains(id))
    }

    fn samples(&self, files: &mut Files<'_>, id: u32, part: Part) -> Result<Vec<Sample>, StoreError> {
        match self {
            Self::Sealed(window) => match files.day(window.day)? {
                Some(file) => file.samples(window, id, part),
                None => Ok(Vec::new()),
            },
            // What cannot be read in memory was never written: a stream that we made ourselves.
            other => Ok(other.open().and_then(|window| window.samples(id, part)).unwrap_or_default()),
        }
    }
}

/// Windows of ticks that belong to one run, in the order of the log.
struct Run {
    sources: Vec<Source>,
    /// Which of them overlap the time asked for.
    range: Range<usize>,
    /// Days that lie within that time as a whole, by their first window: of those a summary may tell enough.
    days: BTreeMap<usize, WholeDay>,
}

impl Run {
    /// About how many samples a series has here, if each value is to stand at every tick.
    fn ticks(&self, selection: &Selection) -> usize {
        let sources = self.sources.get(self.range.clone()).unwrap_or_default();
        let ticks: usize = sources.iter().map(|source| source.ticks().len()).sum();
        if selection.repeats { ticks.min(selection.samples_max) } else { 0 }
    }
}

/// All windows of ticks on one day, none of them damaged.
struct WholeDay {
    day: i64,
    range: Range<usize>,
    /// The greatest of their numbers.
    newest: u32,
    span: (i64, i64),
}

impl WholeDay {
    fn of(sources: &[Source], first: usize, windows: &Windows, selection: &Selection) -> Option<Self> {
        let on_day = |source: &Source, day: i64| matches!(source, Source::Sealed(window) if window.day == day);
        let Source::Sealed(window) = sources.get(first)? else { return None };
        let day = window.day;
        if first.checked_sub(1).and_then(|before| sources.get(before)).is_some_and(|before| on_day(before, day)) {
            return None;
        }
        let mut whole = Self { day, range: first..first, newest: 0, span: window.span };
        for source in sources.iter().skip(first).take_while(|source| on_day(source, day)) {
            let Source::Sealed(window) = source else { break };
            if !window.lost.is_empty() {
                return None;
            }
            whole.range.end += 1;
            whole.newest = whole.newest.max(window.number);
            whole.span = (whole.span.0.min(window.span.0), whole.span.1.max(window.span.1));
        }
        // Of a day on which the clock was set back, a run has only some windows.
        let all = windows.sealed.iter().filter(|window| window.day == day && !window.is_written).count();
        let is_within = selection.start_ms <= whole.span.0 && whole.span.1 <= selection.end_ms;
        (is_within && whole.range.len() == all).then_some(whole)
    }
}

/// The windows that a query may need, as they were at one moment.
struct Snapshot {
    runs: Vec<Run>,
    /// Windows of written samples that overlap it, in the order of the log.
    written: Vec<Source>,
}

impl Snapshot {
    fn of<I: Iterator<Item = u32>>(windows: &Windows, ids: impl Fn() -> I, selection: &Selection) -> Self {
        let overlaps = |source: &Source| source.span().0 <= selection.end_ms && source.span().1 >= selection.start_ms;
        let few = |window: &OpenWindow| {
            let streams = ids().filter_map(|id| Some((id, window.streams.get(&id)?.clone()))).collect();
            OpenWindow { streams, ..window.head() }
        };
        let sealed = |is_written: bool| {
            let of_kind = windows.sealed.iter().filter(move |window| window.is_written == is_written);
            of_kind.map(|window| Source::Sealed(Arc::clone(window)))
        };
        let sealing = |is_written: bool| {
            let of_kind = windows.sealing.iter().filter(move |window| window.is_written == is_written);
            of_kind.map(|window| Source::Sealing(Arc::clone(window)))
        };
        let mut written: Vec<Source> = sealed(true).chain(sealing(true)).filter(overlaps).collect();
        if !windows.written.is_empty() {
            written.push(Source::Open(few(&windows.written)));
        }
        let mut runs: Vec<Vec<Source>> = Vec::new();
        let open = (!windows.open.is_empty()).then(|| Source::Open(few(&windows.open)));
        for source in sealed(false).chain(sealing(false)).chain(open) {
            match runs.last_mut() {
                Some(run) if run.last().is_some_and(|last| last.run() == source.run()) => run.push(source),
                _ => runs.push(vec![source]),
            }
        }
        let run = |sources: Vec<Source>| {
            let range = sources.iter().position(overlaps)?..sources.iter().rposition(overlaps)? + 1;
            let whole = |first| Some((first, WholeDay::of(&sources, first, windows, selection)?));
            let days = if selection.repeats { BTreeMap::new() } else { range.clone().filter_map(whole).collect() };
            Some(Run { sources, range, days })
        };
        Self { runs: runs.into_iter().filter_map(run).collect(), written }
    }

    /// The samples of series with the same labels.
    fn samples(&self, files: &mut Files<'_>, ids: &[u32], selection: &Selection) -> Result<Vec<Sample>, StoreError> {
        let mut parts: Vec<Vec<Sample>> = Vec::new();
        for id in ids {
            for run in &self.runs {
                let mut fill = Fill { selection, samples: Vec::with_capacity(run.ticks(selection)), held: None };
                read_run(files, *id, run, &mut fill)?;
                parts.push(fill.samples);
            }
            for source in self.written.iter().filter(|source| source.has(*id)) {
                let mut samples = source.samples(files, *id, selection.part)?;
                samples.retain(|sample| (selection.start_ms..=selection.end_ms).contains(&sample.timestamp_ms));
                parts.push(samples);
            }
        }
        parts.retain(|part| !part.is_empty());
        let mut samples = if parts.len() == 1 { parts.pop().unwrap_or_default() } else { parts.concat() };
        if !samples.is_sorted_by(|a, b| a.timestamp_ms < b.timestamp_ms) {
            // Stable: of equal times the first stays, unless it is the end of a series that goes on as another.
            samples.sort_by_key(|sample| (sample.timestamp_ms, sample.value.is_stale()));
            samples.dedup_by_key(|sample| sample.timestamp_ms);
        }
        if samples.len() > selection.samples_max {
            return Err(StoreError::TooManySamples(selection.samples_max));
        }
        if samples.capacity() / 2 > samples.len() {
            samples.shrink_to_fit(); // whoever is visited may keep it
        }
        Ok(samples)
    }
}

/// Reads a series in those windows of a run that overlap the time asked for.
fn read_run(files: &mut Files<'_>, id: u32, run: &Run, fill: &mut Fill<'_>) -> Result<(), StoreError> {
    let Run { sources, range, days } = run;
    let selection = fill.selection;
    let mut earlier: Option<&Source> = None;
    let mut next = range.start;
    while let Some(source) = sources.get(next).filter(|_| next < range.end) {
        let at = next;
        // What was held before matters to the first samples only.
        let whole = days.get(&at).filter(|_| at == 0 || !fill.samples.is_empty());
        if let Some(whole) = whole
            && fill.whole_day(files, whole, sources, id)?
        {
            next = whole.range.end;
            earlier = sources.get(next - 1);
            continue;
        }
        next += 1;
        if earlier.is_some_and(|earlier| !source.follows(earlier)) || source.has_lost(id) {
            fill.held = None;
        }
        let is_present = source.has(id);
        let is_within = selection.start_ms <= source.span().0 && source.span().1 <= selection.end_ms;
        // Whether what was held before is still there at the first tick, only the samples tell.
        let is_begun = at == 0 || at > range.start && (fill.held.is_none() || !fill.samples.is_empty());
        let extremes = match source {
            Source::Sealed(window) if is_present && is_within && is_begun && !selection.repeats => {
                files.summaries(window.day, id)?.and_then(|day| day.of(window.number)?.extremes(selection.part))
            }
            _ => None,
        };
        if let Some(extremes) = extremes {
            fill.extremes(source.span(), extremes)?;
        } else {
            let samples = if is_present { source.samples(files, id, selection.part)? } else { Vec::new() };
            let begins_later = samples.first().is_none_or(|sample| sample.timestamp_ms > selection.start_ms);
            if at == range.start && begins_later && !source.has_lost(id) {
                fill.held = held_before(files, id, sources, at, selection.part)?;
            }
            fill.window(source.ticks(), samples)?;
        }
        earlier = Some(source);
    }
    Ok(())
}

/// What a series holds at the beginning of a window: its last value in the windows before it, as far back as these follow one another.
fn held_before(
    files: &mut Files<'_>,
    id: u32,
    run: &[Source],
    at: usize,
    part: Part,
) -> Result<Option<Value>, StoreError> {
    for (earlier, later) in run.iter().zip(run.iter().skip(1)).take(at).rev() {
        if !later.follows(earlier) || earlier.has_lost(id) {
            return Ok(None);
        }
        if earlier.has(id) {
            let last = earlier.samples(files, id, part)?.pop();
            return Ok(last.map(|sample| sample.value).filter(|value| !value.is_stale()));
        }
    }
    Ok(None)
}

/// Makes one sample at each tick and each change: the newest value there, until a stale marker ends it. Without
/// `repeats` each value once.
struct Fill<'a> {
    selection: &'a Selection,
    samples: Vec<Sample>,
    held: Option<Value>,
}

impl Fill<'_> {
    fn window(&mut self, ticks: &[i64], changes: Vec<Sample>) -> Result<(), StoreError> {
        let (start, end) = (self.selection.start_ms, self.selection.end_ms);
        let from = ticks.partition_point(|tick| *tick < start);
        let to = ticks.partition_point(|tick| *tick <= end);
        // A value that is given once is given at the first tick, or it is a change.
        let to = if self.selection.repeats { to } else { to.min(from + 1) };
        let mut ticks = ticks.get(from..to).unwrap_or_default();
        self.samples.reserve(changes.len().min(self.selection.samples_max));
        for change in changes {
            let before = ticks.iter().take_while(|tick| **tick < change.timestamp_ms).count();
            let (held, rest) = ticks.split_at(before);
            self.hold(held)?;
            ticks = if rest.first() == Some(&change.timestamp_ms) { rest.get(1..).unwrap_or_default() } else { rest };
            self.change(change)?;
        }
        self.hold(ticks)
    }

    /// What is held, at ticks without a change.
    fn hold(&mut self, ticks: &[i64]) -> Result<(), StoreError> {
        let Some(held) = &self.held else { return Ok(()) };
        if ticks.is_empty() || !(self.selection.repeats || self.samples.is_empty()) {
            return Ok(());
        }
        if self.samples.len() + ticks.len() > self.selection.samples_max {
            return Err(StoreError::TooManySamples(self.selection.samples_max));
        }
        self.samples.extend(ticks.iter().map(|tick| Sample { timestamp_ms: *tick, value: held.clone() }));
        Ok(())
    }

    fn change(&mut self, change: Sample) -> Result<(), StoreError> {
        self.held = (!change.value.is_stale()).then(|| change.value.clone());
        if (self.selection.start_ms..=self.selection.end_ms).contains(&change.timestamp_ms) {
            self.push(change)?;
        }
        Ok(())
    }

    /// The extremes of a whole day, if its summary tells them.
    fn whole_day(
        &mut self,
        files: &mut Files<'_>,
        whole: &WholeDay,
        run: &[Source],
        id: u32,
    ) -> Result<bool, StoreError> {
        if !run.get(whole.range.clone()).into_iter().flatten().any(|source| source.has(id)) {
            return Ok(true);
        }
        let of_day = files.summaries(whole.day, id)?.and_then(|day| day.of_day(whole.newest));
        let Some(extremes) = of_day.and_then(|summary| summary.extremes(self.selection.part)) else { return Ok(false) };
        self.extremes(whole.span, extremes)?;
        Ok(true)
    }

    /// A window, or a day, of which only the extremes matter. When each of them was is not told.
    fn extremes(&mut self, span: (i64, i64), extremes: [Value; 4]) -> Result<(), StoreError> {
        // After whatever is there, and the last at the end.
        let mut timestamp_ms = span.0.max(self.samples.last().map_or(i64::MIN, |sample| sample.timestamp_ms + 1));
        let [.., last] = &extremes;
        self.held = Some(last.clone());
        let at_end = extremes.len() - 1;
        for (at, value) in extremes.into_iter().enumerate() {
            timestamp_ms = if at == at_end { span.1.max(timestamp_ms) } else { timestamp_ms };
            self.push(Sample { timestamp_ms, value })?;
            timestamp_ms += 1;
        }
        Ok(())
    }

    fn push(&mut self, sample: Sample) -> Result<(), StoreError> {
        if self.samples.len() >= self.selection.samples_max {
            return Err(StoreError::TooManySamples(self.selection.samples_max));
        }
        self.samples.push(sample);
        Ok(())
    }
}
