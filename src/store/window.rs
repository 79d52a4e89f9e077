//! Windows: successive ticks, open in memory or sealed in the file of a day.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use foldhash::fast::RandomState;
use roaring::RoaringBitmap;

use super::Part;
use super::chunk::{self, Summary};
use super::codec::{put_bytes, put_varint, put_zigzag, take_bytes, take_varint, take_zigzag};
use super::columns::{put_counted, take_counted};
use super::stream;
use crate::model::{Sample, Value};

/// A window covers at most one slot of so many milliseconds.
pub(super) const SLOT_MS: i64 = 2 * 3_600_000;
pub(super) const DAY_MS: i64 = 86_400_000;
const WRITTEN: u64 = 2;
/// A window that claims more ticks is none: two hours at a tick a millisecond.
const TICKS_MAX: usize = 7_200_000;

/// The series of a window, by their number.
pub(super) type Streams = HashMap<u32, Stream, RandomState>;

/// The bytes of one series in a window. What is short, of a series that is new or quiet, has no memory of its own; what is long a query
/// shares, and if it grows meanwhile it is copied.
#[derive(Debug, Clone)]
pub(super) enum Stream {
    Short { length: u8, bytes: [u8; SHORT_MAX] },
    Long(Arc<Vec<u8>>),
}

/// With this, a stream takes 24 bytes: the zero of a new counter and its first values.
const SHORT_MAX: usize = 22;

impl Default for Stream {
    fn default() -> Self {
        Self::Short { length: 0, bytes: [0; SHORT_MAX] }
    }
}

impl Deref for Stream {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        }
    }
}

impl Stream {
    fn extend(&mut self, entry: &[u8]) {
        if let Self::Short { length, bytes } = self {
            let end = usize::from(*length) + entry.len();
            if let Some(free) = bytes.get_mut(usize::from(*length)..end) {
                free.copy_from_slice(entry);
                *length = end as u8;
                return;
            }
            *self = Self::Long(Arc::new(self.to_vec()));
        }
        if let Self::Long(bytes) = self {
            let bytes = Arc::make_mut(bytes);
            if bytes.len() + entry.len() > bytes.capacity() {
                // By half: there are very many of these.
                bytes.reserve_exact(entry.len().max(bytes.capacity() / 2));
            }
            bytes.extend_from_slice(entry);
        }
    }

    /// About what it takes in memory, its place in the map counted.
    fn bytes(&self) -> usize {
        match self {
            Self::Short { .. } => 40,
            Self::Long(bytes) => 104 + bytes.capacity(),
        }
    }
}

/// A window that grows, or waits to be sealed.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenWindow {
    /// The first and the last entry of the log that went into it; 0: none yet.
    pub(super) first_sequence: u64,
    pub(super) last_sequence: u64,
    /// The last entry of the window of ticks before it in the log, 0 if there is none.
    pub(super) previous: u64,
    pub(super) run: u64,
    /// Whether its samples came by remote write, with times of their own.
    pub(super) is_written: bool,
    pub(super) ticks: Vec<i64>,
    /// The least and the greatest time of a sample or a tick.
    pub(super) span: Option<(i64, i64)>,
    pub(super) streams: Streams,
    /// About what the streams take in memory.
    pub(super) bytes: usize,
}

impl OpenWindow {
    pub(super) fn is_empty(&self) -> bool {
        self.last_sequence == 0
    }

    /// The same window without its series.
    pub(super) fn head(&self) -> Self {
        Self { ticks: self.ticks.clone(), streams: Streams::default(), ..*self }
    }

    pub(super) fn includes(&mut self, time_ms: i64) {
        let (least, greatest) = self.span.unwrap_or((time_ms, time_ms));
        self.span = Some((least.min(time_ms), greatest.max(time_ms)));
    }

    /// Grows the stream of a series.
    pub(super) fn grow(&mut self, id: u32, entry: &[u8]) {
        let stream = self.streams.entry(id).or_default();
        let before = if stream.is_empty() { 0 } else { stream.bytes() };
        stream.extend(entry);
        self.bytes += stream.bytes() - before;
    }

    /// The samples of one series in the order of time.
    pub(super) fn samples(&self, id: u32, part: Part) -> Option<Vec<Sample>> {
        stream::read_part(self.streams.get(&id)?, &self.ticks, part)
    }
}

/// A window in the file of a day: everything about it but its chunks.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct SealedWindow {
    /// The day, in days since 1970-01-01.
    pub(super) day: i64,
    /// Its number in the file, from 1.
    pub(super) number: u32,
    pub(super) first_sequence: u64,
    pub(super) last_sequence: u64,
    pub(super) previous: u64,
    pub(super) run: u64,
    pub(super) is_written: bool,
    pub(super) span: (i64, i64),
    pub(super) ticks: Vec<i64>,
    /// The series that have a chunk, and those whose chunk was lost.
    pub(super) present: RoaringBitmap,
    pub(super) lost: RoaringBitmap,
}

impl SealedWindow {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.first_sequence);
        put_varint(out, self.last_sequence);
        put_varint(out, if self.is_written { WRITTEN } else { 0 });
        put_varint(out, self.run);
        put_varint(out, self.previous);
        put_zigzag(out, self.span.0);
        put_zigzag(out, self.span.1);
        put_counted(out, &self.ticks);
        for bitmap in [&self.present, &self.lost] {
            let mut bytes = Vec::with_capacity(bitmap.serialized_size());
            // Writing into memory cannot fail.
            let _ = bitmap.serialize_into(&mut bytes);
            put_bytes(out, &bytes);
        }
    }

    /// The key of a chunk of this window.
    pub(super) fn chunk_key(&self, id: u32) -> i64 {
        chunk_key(self.number, id)
    }

    pub(super) fn take(day: i64, number: u32, mut rest: &[u8]) -> Option<Self> {
        let rest = &mut rest;
        let (first_sequence, last_sequence) = (take_varint(rest)?, take_varint(rest)?);
        let flags = take_varint(rest)?;
        let (run, previous) = (take_varint(rest)?, take_varint(rest)?);
        let span = (take_zigzag(rest)?, take_zigzag(rest)?);
        let ticks = take_counted(rest, TICKS_MAX)?;
        let mut bitmap = || RoaringBitmap::deserialize_from(take_bytes(rest)?).ok();
        let (present, lost) = (bitmap()?, bitmap()?);
        let is_written = flags == WRITTEN;
        let is_sound = (flags == 0 || is_written) && rest.is_empty() && ticks.is_sorted_by(|a, b| a < b);
        is_sound.then_some(Self {
            day,
            number,
            first_sequence,
            last_sequence,
            previous,
            run,
            is_written,
            span,
            ticks,
            present,
            lost,
        })
    }
}

pub(super) fn chunk_key(number: u32, id: u32) -> i64 {
    i64::from(number) << 32 | i64::from(id)
}

pub(super) fn day_of(time_ms: i64) -> i64 {
    time_ms.div_euclid(DAY_MS)
}

pub(super) fn slot_of(time_ms: i64) -> i64 {
    time_ms.div_euclid(SLOT_MS)
}

/// A chunk ready to be written.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) id: u32,
    pub(super) content: Vec<u8>,
    pub(super) summary: Summary,
}

/// What a series was at the end of a window.
#[derive(Debug, Clone)]
pub(super) struct Level {
    pub(super) id: u32,
    /// The time of its last sample.
    pub(super) time_ms: i64,
    /// Whether that one was a stale marker.
    pub(super) is_ended: bool,
    /// Its last value that was no stale marker; `None`: there is none in this window.
    pub(super) value: Option<Value>,
}

/// One window as it goes into the file of a day. The number is the file's to give.
#[derive(Debug)]
pub(super) struct Sealable {
    pub(super) window: SealedWindow,
    pub(super) chunks: Vec<Chunk>,
}

/// The parts of `window` by the days whose files they go to, and the levels at its end. `None` if a stream of it cannot be
/// read, which only a mistake of ours makes.
pub(super) fn sealables(window: &OpenWindow) -> Option<(Vec<Sealable>, Vec<Level>)> {
    let mut ids: Vec<u32> = window.streams.keys().copied().collect();
    ids.sort_unstable();
    let mut levels = Vec::with_capacity(ids.len());
    let sealed = |day: i64, span, chunks: Vec<Chunk>| Sealable {
        window: SealedWindow {
            day,
            number: 0,
            first_sequence: window.first_sequence,
            last_sequence: window.last_sequence,
            previous: window.previous,
            run: window.run,
            is_written: window.is_written,
            span,
            ticks: window.ticks.clone(),
            present: chunks.iter().map(|chunk| chunk.id).collect(),
            lost: RoaringBitmap::new(),
        },
        chunks,
    };
    if !window.is_written {
        let mut chunks = Vec::with_capacity(ids.len());
        for id in ids {
            let stream = window.streams.get(&id)?;
            let (content, summary) = chunk::seal(stream, &window.ticks)?;
            let samples = stream::read(stream, &window.ticks)?;
            levels.extend(level_of(id, samples.into_iter().map(|(_, sample)| sample)));
            chunks.push(Chunk { id, content, summary });
        }
        let (Some(span), Some(first)) = (window.span, window.ticks.first()) else { return Some((Vec::new(), levels)) };
        return Some((vec![sealed(day_of(*first), span, chunks)], levels));
    }
    // Written samples may be of any time: each slot is a window of its own, so that a look at one day reads one day.
    let mut slots: std::collections::BTreeMap<i64, ((i64, i64), Vec<Chunk>)> = std::collections::BTreeMap::new();
    for id in ids {
        let samples = window.samples(id, Part::Whole)?;
        for of_slot in samples.chunk_by(|a, b| slot_of(a.timestamp_ms) == slot_of(b.timestamp_ms)) {
            let (Some(first), Some(last)) = (of_slot.first(), of_slot.last()) else { continue };
            let (content, summary) = chunk::seal_written(of_slot);
            let at = (first.timestamp_ms, last.timestamp_ms);
            let (span, chunks) = slots.entry(slot_of(at.0)).or_insert_with(|| (at, Vec::new()));
            *span = (span.0.min(at.0), span.1.max(at.1));
            chunks.push(Chunk { id, content, summary });
        }
        levels.extend(level_of(id, samples.into_iter()));
    }
    let windows = slots.into_values().map(|(span, chunks)| sealed(day_of(span.0), span, chunks)).collect();
    Some((windows, levels))
}

fn level_of(id: u32, samples: impl Iterator<Item = Sample>) -> Option<Level> {
    samples.fold(None, |level: Option<Level>, sample| {
        let is_ended = sample.value.is_stale();
        let value = if is_ended { level.and_then(|level| level.value) } else { Some(sample.value) };
        Some(Level { id, time_ms: sample.timestamp_ms, is_ended, value })
    })
}

/// Every window there is, for readers and the writer.
#[derive(Debug, Default)]
pub(super) struct Windows {
    /// In the files, in the order of the log.
    pub(super) sealed: Vec<Arc<SealedWindow>>,
    /// Complete, on their way into the files, in the order of the log.
    pub(super) sealing: Vec<Arc<OpenWindow>>,
    /// Of ticks.
    pub(super) open: OpenWindow,
    /// Of samples with times of their own.
    pub(super) written: OpenWindow,
}

impl Windows {
    /// Puts what a file holds in place of what is known of it.
    pub(super) fn replace_day(&mut self, day: i64, windows: Vec<SealedWindow>) {
        self.sealed.retain(|window| window.day != day);
        self.sealed.extend(windows.into_iter().map(Arc::new));
        self.sort();
    }

    pub(super) fn sort(&mut self) {
        self.sealed.sort_by_key(|window| (window.first_sequence, window.span.0, window.number));
    }

    /// Whether there is a tick at this very millisecond.
    pub(super) fn has_tick(&self, time_ms: i64) -> bool {
        let within = |span: (i64, i64)| (span.0..=span.1).contains(&time_ms);
        let sealed = self.sealed.iter().filter(|window| within(window.span)).map(|window| &window.ticks);
        let open = self.sealing.iter().map(|window| &window.ticks).chain([&self.open.ticks]);
        sealed.chain(open).any(|ticks| ticks.binary_search(&time_ms).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_read_back() {
        let window = SealedWindow {
            day: 20_000,
            number: 3,
            first_sequence: 10,
            last_sequence: 300,
            previous: 9,
            run: 2,
            is_written: false,
            span: (-5, 1 << 45),
            ticks: (0..720).map(|i| i * 10_000 + i % 3).collect(),
            present: (0..10_000).collect(),
            lost: [7].into_iter().collect(),
        };
        let mut bytes = Vec::new();
        window.put(&mut bytes);
        assert_eq!(SealedWindow::take(20_000, 3, &bytes).as_ref(), Some(&window));
        for cut in 0..bytes.len() {
            assert_eq!(SealedWindow::take(20_000, 3, &bytes[..cut]), None);
        }
    }
}
