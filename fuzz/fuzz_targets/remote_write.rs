//! Any bytes as the body of a remote write, compressed already or not: what is taken of it is within its bounds.

#![no_main]

use cortex_metrics::remote_write::{Body, Times};
use libfuzzer_sys::fuzz_target;

const TIMES: Times = Times { oldest_ms: 0, newest_ms: 1 << 50 };

fn check(compressed: &[u8]) {
    let Ok(body) = Body::decode(compressed) else { return };
    let visited: Result<(), ()> = body.for_each_batch(TIMES, |batch| {
        let samples: usize = batch.series.iter().map(|series| series.samples.len()).sum();
        assert!(samples <= 10_000 && (samples > 0 || !batch.refused.is_empty()));
        assert_eq!(batch.refused.is_empty(), batch.example.is_none());
        for series in &batch.series {
            assert!(!series.labels.name().is_empty() && !series.samples.is_empty());
            let within = TIMES.oldest_ms..=TIMES.newest_ms;
            assert!(series.samples.iter().all(|sample| within.contains(&sample.timestamp_ms)));
            for h in series.samples.iter().filter_map(|sample| sample.value.as_histogram()) {
                assert!(h.positive().counts.len() <= 1 << 16 && h.negative().counts.len() <= 1 << 16);
                assert!(h.buckets().iter().all(|bucket| bucket.count > 0.0 && bucket.lower < bucket.upper));
            }
        }
        Ok(())
    });
    assert_eq!(visited, Ok(()));
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&snap::raw::Encoder::new().compress_vec(bytes).expect("short"));
});
