//! Columns: whole numbers and doubles in as few bits as their growth needs. The layout is in `docs/storage-format.md`,
//! "Chunk".

use super::codec::{put_bytes, put_varint, put_zigzag, take, take_bytes, take_varint, take_zigzag, unzigzag, zigzag};

/// So many ones say that a number follows as it is.
const ESCAPE: u32 = 32;
/// A column of which nothing remains after the differences.
const ALL_ZERO: u8 = 255;
const K_MAX: u8 = 62;
/// Powers of ten that doubles may be whole multiples of the inverse of.
const DECIMALS_MAX: u8 = 9;
const XOR: u8 = 16;
/// Beyond, a double has no room for every whole number.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// Writes a bit string, the highest bit of each byte first.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    /// The lowest `pending` bits are not in `bytes` yet.
    bits: u128,
    pending: u32,
}

impl BitWriter {
    /// Appends the lowest `count` bits, at most 64.
    pub(super) fn put(&mut self, value: u64, count: u32) {
        let mask = u128::MAX >> (128 - count.clamp(1, 64));
        if count == 0 {
            return;
        }
        self.bits = (self.bits << count) | (u128::from(value) & mask);
        self.pending += count;
        while self.pending >= 8 {
            self.pending -= 8;
            self.bytes.push((self.bits >> self.pending) as u8);
        }
    }

    pub(super) fn rice(&mut self, value: u64, k: u8) {
        let upper = value.checked_shr(u32::from(k)).unwrap_or(0);
        if upper < u64::from(ESCAPE) {
            let ones = upper as u32;
            self.put(((1 << ones) - 1) << 1, ones + 1);
            self.put(value, u32::from(k));
        } else {
            self.put(u64::from(u32::MAX), ESCAPE);
            self.put(value, 64);
        }
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) {
        if self.pending > 0 {
            self.put(0, 8 - self.pending);
        }
        put_bytes(out, &self.bytes);
    }
}

/// Reads a bit string.
#[derive(Debug)]
pub(super) struct BitReader<'a> {
    rest: &'a [u8],
    /// The highest `held` bits are the next ones, those below them are zero.
    bits: u64,
    held: u32,
}

impl<'a> BitReader<'a> {
    /// Takes a bit string with its length from the front of `rest`.
    pub(super) fn take(rest: &mut &'a [u8]) -> Option<Self> {
        Some(Self { rest: take_bytes(rest)?, bits: 0, held: 0 })
    }

    fn fill(&mut self) {
        // All bytes that fit at once, as long as there are eight.
        if let Some(eight) = self.rest.first_chunk::<8>() {
            let bytes = (63 - self.held) / 8;
            let fresh = u64::from_be_bytes(*eight) >> self.held;
            let taken = self.held + bytes * 8;
            self.bits |= fresh & !(u64::MAX.checked_shr(taken).unwrap_or(0));
            self.held = taken;
            self.rest = self.rest.get(bytes as usize..).unwrap_or_default();
            return;
        }
        while self.held <= 56 {
            let Some((byte, rest)) = self.rest.split_first() else { return };
            self.bits |= u64::from(*byte) << (56 - self.held);
            self.held += 8;
            self.rest = rest;
        }
    }

    /// The next `count` bits, at most 64.
    pub(super) fn get(&mut self, count: u32) -> Option<u64> {
        if count > 32 {
            let upper = self.get(count - 32)?;
            return Some((upper << 32) | self.get(32)?);
        }
        if count == 0 {
            return Some(0);
        }
        if self.held < count {
            self.fill();
            if self.held < count {
                return None;
            }
        }
        let value = self.bits >> (64 - count);
        self.bits <<= count;
        self.held -= count;
        Some(value)
    }

    pub(super) fn rice(&mut self, k: u8) -> Option<u64> {
        if self.held <= ESCAPE {
            self.fill();
        }
        let ones = self.bits.leading_ones().min(ESCAPE);
        if ones == ESCAPE {
            self.get(ESCAPE)?;
            return self.get(64);
        }
        self.get(ones + 1)?;
        Some((u64::from(ones) << k) | self.get(u32::from(k))?)
    }
}

/// How many bits the Rice code of all of `values` takes, for the best parameter, and which one that is.
pub(super) fn best_k<I: Iterator<Item = u64> + Clone>(values: &I) -> (u8, u64) {
    let (mut sum, mut length) = (0u128, 0u128);
    values.clone().for_each(|value| {
        sum += u128::from(value);
        length += 1;
    });
    let mean = sum / length.max(1);
    // The best one is near the logarithm of the mean; a few large numbers draw the mean up, never down.
    let guess = (128 - mean.leading_zeros()) as u8;
    let cost = |k: u8| {
        values.clone().fold(0u64, |cost, value| {
            let upper = value >> k;
            let bits = if upper < u64::from(ESCAPE) { upper + 1 + u64::from(k) } else { 96 };
            cost.saturating_add(bits)
        })
    };
    let range = guess.saturating_sub(3).min(K_MAX)..=guess.min(K_MAX);
    range.map(|k| (k, cost(k))).min_by_key(|(_, bits)| *bits).unwrap_or((0, 0))
}

/// Writes a column of whole numbers. How many there are is the reader's to know.
pub(super) fn put_column(out: &mut Vec<u8>, values: &[i64]) {
    // What is the cheapest: cost in bits, order, what was taken off, parameter.
    let mut best = (u64::MAX, 0, None, ALL_ZERO);
    let (mut remaining, mut firsts) = (values.to_vec(), Vec::new());
    for order in 0..3 {
        if order > 0 {
            let Some(first) = remaining.first() else { break };
            firsts.push(*first);
            remaining = differences(&remaining);
        }
        if remaining.iter().all(|value| *value == 0) {
            best = (0, order, None, ALL_ZERO);
            break;
        }
        let head: u64 = firsts.iter().map(|first| significant_bits(*first)).sum();
        let (k, bits) = best_k(&remaining.iter().map(|value| zigzag(*value)));
        if head + bits < best.0 {
            best = (head + bits, order, None, k);
        }
        let least = remaining.iter().copied().min().unwrap_or(0);
        let (k, bits) = best_k(&remaining.iter().map(|value| value.wrapping_sub(least).cast_unsigned()));
        let head = head + significant_bits(least);
        if head + bits < best.0 {
            best = (head + bits, order, Some(least), k);
        }
    }
    let (_, order, least, k) = best;
    out.push(order as u8 + 4 * u8::from(least.is_some()));
    out.push(k);
    firsts.iter().take(order).for_each(|first| put_zigzag(out, *first));
    if k == ALL_ZERO {
        return;
    }
    let mut remaining = values.to_vec();
    (0..order).for_each(|_| remaining = differences(&remaining));
    let mut bits = BitWriter::default();
    if let Some(least) = least {
        put_zigzag(out, least);
        remaining.iter().for_each(|value| bits.rice(value.wrapping_sub(least).cast_unsigned(), k));
    } else {
        remaining.iter().for_each(|value| bits.rice(zigzag(*value), k));
    }
    bits.finish(out);
}

fn differences(values: &[i64]) -> Vec<i64> {
    values.iter().zip(values.iter().skip(1)).map(|(earlier, later)| later.wrapping_sub(*earlier)).collect()
}

fn significant_bits(value: i64) -> u64 {
    u64::from(64 - zigzag(value).leading_zeros())
}

/// Reads a column of `count` whole numbers.
pub(super) fn take_column(rest: &mut &[u8], count: usize) -> Option<Vec<i64>> {
    let [form, k] = take::<2>(rest)?;
    let order = usize::from(form & 3);
    if form > 7 || order > 2 || (k > K_MAX && k != ALL_ZERO) {
        return None;
    }
    let mut firsts = Vec::with_capacity(order);
    for _ in 0..order.min(count) {
        firsts.push(take_zigzag(rest)?);
    }
    let remaining = count - firsts.len();
    let mut values = Vec::with_capacity(count);
    let (mut value, mut step) = match *firsts {
        [first] => (first, 0),
        [first, step] => (first.wrapping_add(step), step),
        _ => (0, 0),
    };
    // The second number is the first and its growth.
    values.extend(firsts.first());
    if firsts.len() == 2 {
        values.push(value);
    }
    let mut grow = |rest: i64| {
        match order {
            0 => value = rest,
            1 => value = value.wrapping_add(rest),
            _ => {
                step = step.wrapping_add(rest);
                value = value.wrapping_add(step);
            }
        }
        values.push(value);
    };
    if k == ALL_ZERO {
        (0..remaining).for_each(|_| grow(0));
        return Some(values);
    }
    let least = if form & 4 == 0 { None } else { Some(take_zigzag(rest)?) };
    let mut bits = BitReader::take(rest)?;
    for _ in 0..remaining {
        let whole = bits.rice(k)?;
        grow(least.map_or_else(|| unzigzag(whole), |least| least.wrapping_add(whole.cast_signed())));
    }
    Some(values)
}

/// Writes a column of doubles, bit for bit.
pub(super) fn put_floats(out: &mut Vec<u8>, values: &[f64]) {
    let mut xor = Vec::new();
    let as_whole = (0..=DECIMALS_MAX).find_map(|decimals| whole(values, decimals).map(|whole| (decimals, whole)));
    if let Some((decimals, whole)) = as_whole {
        let mut column = vec![decimals];
        put_column(&mut column, &whole);
        // Few decimals of large numbers may be no shorter than their bits.
        if decimals > 0 {
            put_xor(&mut xor, values);
        }
        out.extend_from_slice(if decimals == 0 || column.len() <= xor.len() { &column } else { &xor });
    } else {
        put_xor(&mut xor, values);
        out.extend_from_slice(&xor);
    }
}

/// Reads a column of `count` doubles.
pub(super) fn take_floats(rest: &mut &[u8], count: usize) -> Option<Vec<f64>> {
    match take::<1>(rest)? {
        [decimals] if decimals <= DECIMALS_MAX => {
            let column = take_column(rest, count)?;
            let power = power_of_ten(decimals);
            Some(column.into_iter().map(|whole| whole as f64 / power).collect())
        }
        [XOR] => take_xor(rest, count),
        _ => None,
    }
}

fn power_of_ten(decimals: u8) -> f64 {
    10f64.powi(i32::from(decimals))
}

/// The numbers times a power of ten, if dividing gives back each bit for bit.
fn whole(values: &[f64], decimals: u8) -> Option<Vec<i64>> {
    let power = power_of_ten(decimals);
    values
        .iter()
        .map(|value| {
            let whole = (value * power).round();
            let is_exact = whole.abs() <= EXACT_MAX && (whole as i64 as f64 / power).to_bits() == value.to_bits();
            is_exact.then_some(whole as i64)
        })
        .collect()
}

fn put_xor(out: &mut Vec<u8>, values: &[f64]) {
    out.push(XOR);
    let mut bits = BitWriter::default();
    let mut last: Option<u64> = None;
    let (mut leading, mut trailing) = (u32::MAX, 0);
    for value in values {
        let value = value.to_bits();
        let Some(earlier) = last.replace(value) else {
            bits.put(value, 64);
            continue;
        };
        let xor = earlier ^ value;
        if xor == 0 {
            bits.put(0, 1);
            continue;
        }
        let (zeros, zeros_below) = (xor.leading_zeros().min(31), xor.trailing_zeros());
        if leading != u32::MAX && zeros >= leading && zeros_below >= trailing {
            bits.put(0b10, 2);
        } else {
            (leading, trailing) = (zeros, zeros_below);
            bits.put(0b11, 2);
            bits.put(u64::from(leading), 5);
            bits.put(u64::from((64 - leading - trailing) % 64), 6);
        }
        bits.put(xor >> trailing, 64 - leading - trailing);
    }
    bits.finish(out);
}

fn take_xor(rest: &mut &[u8], count: usize) -> Option<Vec<f64>> {
    let mut bits = BitReader::take(rest)?;
    let mut values = Vec::with_capacity(count);
    let (mut last, mut trailing, mut length) = (None, 0, 0);
    for _ in 0..count {
        let value = match last {
            None => bits.get(64)?,
            Some(last) if bits.get(1)? == 0 => last,
            Some(last) => {
                if bits.get(1)? == 1 {
                    let leading = bits.get(5)? as u32;
                    length = match bits.get(6)? as u32 {
                        0 => 64,
                        length => length,
                    };
                    trailing = 64u32.checked_sub(leading + length)?;
                }
                if length == 0 {
                    return None;
                }
                last ^ (bits.get(length)? << trailing)
            }
        };
        last = Some(value);
        values.push(f64::from_bits(value));
    }
    Some(values)
}

/// Writes how many numbers there are, and then their column.
pub(super) fn put_counted(out: &mut Vec<u8>, values: &[i64]) {
    put_varint(out, values.len() as u64);
    put_column(out, values);
}

/// Reads what [`put_counted`] wrote, if there are at most `most` numbers.
pub(super) fn take_counted(rest: &mut &[u8], most: usize) -> Option<Vec<i64>> {
    let count = usize::try_from(take_varint(rest)?).ok().filter(|count| *count <= most)?;
    take_column(rest, count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn column_bytes(values: &[i64]) -> Vec<u8> {
        let mut out = Vec::new();
        put_column(&mut out, values);
        let mut rest = &out[..];
        assert_eq!(take_column(&mut rest, values.len()).as_deref(), Some(values));
        assert!(rest.is_empty());
        out
    }

    fn floats_bytes(values: &[f64]) -> usize {
        let mut out = Vec::new();
        put_floats(&mut out, values);
        let mut rest = &out[..];
        let read = take_floats(&mut rest, values.len()).unwrap();
        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read), bits(values));
        assert!(rest.is_empty());
        out.len()
    }

    #[test]
    fn what_is_regular_costs_next_to_nothing() {
        assert_eq!(column_bytes(&[]).len(), 2);
        assert_eq!(column_bytes(&[0; 720]).len(), 2);
        assert_eq!(column_bytes(&[5; 720]).len(), 3);
        assert!(column_bytes(&(0..720).map(|i| 1_000_000 + 10_000 * i).collect::<Vec<_>>()).len() <= 10);
        assert!(floats_bytes(&[0.1; 720]) <= 5);
        // A counter that grows by 0 to 15: four bits each.
        let mut at = 0;
        let counter: Vec<f64> = (0..720u32)
            .map(|i| {
                at += i.wrapping_mul(2_654_435_761) >> 28;
                f64::from(at)
            })
            .collect();
        assert!(floats_bytes(&counter) < 720 * 5 / 8 + 16, "{}", floats_bytes(&counter));
    }

    #[test]
    fn the_ends_of_the_range_are_read_back() {
        for values in [vec![i64::MIN, i64::MAX, 0, i64::MIN], vec![i64::MAX], vec![i64::MIN; 3], vec![-1, i64::MAX]] {
            column_bytes(&values);
        }
        floats_bytes(&[0.0, -0.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE / 2.0, 9_007_199_254_740_993.0, -1e300]);
        floats_bytes(&[-0.0]);
    }

    proptest! {
        #[test]
        fn property_test_columns_are_read_back(
            values in prop::collection::vec(prop_oneof![any::<i64>(), -100i64..100, 0i64..4], 0..200),
            is_sum in any::<bool>(),
        ) {
            let mut sum = 0i64;
            let sums: Vec<i64> = values.iter().map(|v| { sum = sum.wrapping_add(*v); sum }).collect();
            column_bytes(if is_sum { &sums } else { &values });
        }

        #[test]
        fn property_test_floats_are_read_back_bit_for_bit(
            values in prop::collection::vec(prop_oneof![prop::num::f64::ANY, (-1000i32..1000).prop_map(|i| f64::from(i) / 100.0)], 0..100),
            decimals in prop::collection::vec((-100_000i32..100_000).prop_map(|i| f64::from(i) / 1000.0), 0..100),
        ) {
            floats_bytes(&values);
            floats_bytes(&decimals);
        }

        #[test]
        fn property_test_rice_is_read_back(values in prop::collection::vec((any::<u64>(), 0u8..=62), 0..100)) {
            let mut bits = BitWriter::default();
            values.iter().for_each(|(value, k)| bits.rice(*value, *k));
            let mut out = Vec::new();
            bits.finish(&mut out);
            let mut rest = &out[..];
            let mut bits = BitReader::take(&mut rest).unwrap();
            for (value, k) in values {
                prop_assert_eq!(bits.rice(k), Some(value));
            }
        }

        #[test]
        fn property_test_any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), count in 0usize..200) {
            let _ = take_column(&mut &bytes[..], count);
            let _ = take_floats(&mut &bytes[..], count);
            let _ = take_counted(&mut &bytes[..], count);
        }
    }
}
