//! The fields of a protobuf message, one after the other, without a copy.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::BodyError;

/// What is left of a message.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

/// The value of a field.
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    /// None of ours has four bytes.
    Fixed32,
}

impl<'a> Fields<'a> {
    /// The next field with its number, `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Field<'a>)>, BodyError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let wrong = |_| BodyError::Protobuf("a field has no key, or no length");
        let (number, wire_type) = decode_key(&mut self.0).map_err(wrong)?;
        let field = match wire_type {
            WireType::Varint => Field::Varint(decode_varint(&mut self.0).map_err(wrong)?),
            WireType::SixtyFourBit => Field::Fixed64(self.take(8)?.get_u64_le()),
            WireType::LengthDelimited => {
                let length = decode_varint(&mut self.0).map_err(wrong)?;
                Field::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            WireType::ThirtyTwoBit => {
                self.take(4)?;
                Field::Fixed32
            }
            WireType::StartGroup | WireType::EndGroup => return Err(BodyError::Protobuf("it has groups")),
        };
        Ok(Some((number, field)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], BodyError> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or(BodyError::Protobuf("a field is longer than the message"))?;
        self.0 = rest;
        Ok(taken)
    }
}
