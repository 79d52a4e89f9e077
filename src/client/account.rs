//! The client's account: every call is sent, held, or dropped for a reason.

/// Why a call, or what had accumulated from several, was dropped; `as_str` is the `reason` in metrics and in `stats()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The name is empty, not text, or holds characters that a datagram cannot carry.
    BadName,
    /// The name begins with a prefix that is ours.
    ReservedName,
    /// The value is not a number.
    BadValue,
    /// The value is NaN or infinite, or would make a counter's sum so.
    NotFinite,
    /// A counter cannot go back.
    NegativeIncrement,
    /// The tags are not a mapping, or a key or value is not one.
    BadTags,
    /// Name and tags do not fit into a datagram.
    TooLong,
    /// There are more contexts in this flush than the limit.
    ContextLimit,
    /// The call came after `close()`.
    Closed,
    /// It had been given to the operating system, which reported later that nobody took it.
    LateRefusal,
}

impl DropReason {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 10] = [
        Self::BadName,
        Self::ReservedName,
        Self::BadValue,
        Self::NotFinite,
        Self::NegativeIncrement,
        Self::BadTags,
        Self::TooLong,
        Self::ContextLimit,
        Self::Closed,
        Self::LateRefusal,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadName => "bad_name",
            Self::ReservedName => "reserved_name",
            Self::BadValue => "bad_value",
            Self::NotFinite => "not_finite",
            Self::NegativeIncrement => "negative_increment",
            Self::BadTags => "bad_tags",
            Self::TooLong => "too_long",
            Self::ContextLimit => "context_limit",
            Self::Closed => "closed",
            Self::LateRefusal => "late_refusal",
        }
    }
}

/// What became of the calls of one process: `called = sent + held + dropped`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Calls of `increment`, `gauge` and `histogram`.
    pub called: u64,
    /// Calls that left in a payload which the operating system took and nobody refused.
    pub sent: u64,
    /// Calls that wait for the next flush, or for a collector.
    pub held: u64,
    /// Calls dropped, in the order of [`DropReason::ALL`].
    pub dropped: [u64; DropReason::ALL.len()],
    /// Payloads that left.
    pub payloads_sent: u64,
    /// Payloads that were refused; what they held went back into the table.
    pub payloads_refused: u64,
}

impl Account {
    /// Counts `calls` as dropped.
    pub fn drop_calls(&mut self, reason: DropReason, calls: u64) {
        if let Some(count) = self.dropped.get_mut(reason as usize) {
            *count += calls;
        }
    }

    /// All dropped calls.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }
}

/// What a flush changes in the account, gathered while it sends.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Calls that left.
    pub(super) sent: u64,
    pub(super) payloads_sent: u64,
    pub(super) payloads_refused: u64,
    /// Calls that were held and are lost, in the order of [`DropReason::ALL`].
    pub(super) lost: [u64; DropReason::ALL.len()],
    /// Calls that counted as sent and were refused after all.
    pub(super) refused_late: u64,
}

impl Outcome {
    pub(super) fn lose(&mut self, reason: DropReason, calls: u64) {
        if let Some(count) = self.lost.get_mut(reason as usize) {
            *count += calls;
        }
    }
}

impl Account {
    pub(super) fn settle(&mut self, outcome: &Outcome) {
        // What is settled was held: it cannot be more, but a mistake here must not count calls by the quintillion.
        self.held = self.held.saturating_sub(outcome.sent + outcome.lost.iter().sum::<u64>());
        self.sent = self.sent + outcome.sent - outcome.refused_late;
        self.payloads_sent += outcome.payloads_sent;
        self.payloads_refused += outcome.payloads_refused;
        self.dropped.iter_mut().zip(outcome.lost).for_each(|(dropped, lost)| *dropped += lost);
        self.drop_calls(DropReason::LateRefusal, outcome.refused_late);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place() {
        for (at, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{}", reason.as_str());
        }
    }
}
