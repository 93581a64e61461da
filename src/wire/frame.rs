//! One message as bytes: four bytes of length, big-endian, then JSON; or, with the length's highest bit set, a piece
//! of a payload that is pushed: four bytes with the number of the request it belongs to, then the bytes as they are.
//!
//! JSON because either side must read a newer peer's message and skip what it does not know. A length over
//! [`FRAME_BYTES_MAX`], or [`CHUNK_BYTES_MAX`] for a piece, is refused before anything is allocated.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of one message. An inventory of a large server is about 60 KB.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Most payload bytes of one piece: two TLS records, so that a question never waits long behind one.
pub const CHUNK_BYTES_MAX: usize = 32 * 1024;

/// Set in the length of a piece.
const CHUNK: u32 = 1 << 31;

/// Bytes of the request's number in front of a piece.
pub const CHUNK_ID_BYTES: usize = 4;

/// Bytes of the length in front.
pub const HEADER_BYTES: usize = 4;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The announced or produced length is over the limit.
    #[error("a message of {bytes} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong {
        /// The length.
        bytes: usize,
    },
    /// Not the JSON that was expected.
    #[error("a message that is not understood")]
    Json(#[source] serde_json::Error),
}

/// The message as one frame.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Json)?;
    let bytes = frame.len() - HEADER_BYTES;
    let length = u32::try_from(bytes).ok().filter(|_| bytes <= FRAME_BYTES_MAX);
    let length = length.ok_or(FrameError::TooLong { bytes })?;
    for (to, from) in frame.iter_mut().zip(length.to_be_bytes()) {
        *to = from;
    }
    Ok(frame)
}

/// The body's length that a header announces.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn body_bytes(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let bytes = u32::from_be_bytes(header) as usize;
    if bytes > FRAME_BYTES_MAX { Err(FrameError::TooLong { bytes }) } else { Ok(bytes) }
}

/// What a header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A message of so many bytes.
    Message(usize),
    /// A piece of a payload; so many bytes with its number.
    Chunk(usize),
}

/// What a header announces, where pieces are expected too.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn head(header: [u8; HEADER_BYTES]) -> Result<Head, FrameError> {
    let length = u32::from_be_bytes(header);
    if length & CHUNK == 0 {
        return body_bytes(header).map(Head::Message);
    }
    let bytes = (length & !CHUNK) as usize;
    if bytes > CHUNK_BYTES_MAX + CHUNK_ID_BYTES {
        Err(FrameError::TooLong { bytes })
    } else {
        Ok(Head::Chunk(bytes))
    }
}

/// A piece of the payload that request `id` pushes.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode_chunk(id: u32, bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    let length = bytes.len() + CHUNK_ID_BYTES;
    let announced = u32::try_from(length).ok().filter(|_| bytes.len() <= CHUNK_BYTES_MAX);
    let announced = announced.ok_or(FrameError::TooLong { bytes: length })? | CHUNK;
    Ok([&announced.to_be_bytes()[..], &id.to_be_bytes(), bytes].concat())
}

/// The message in a frame's body.
///
/// # Errors
/// [`FrameError::Json`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(FrameError::Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_survives_the_round_trip(text in ".*") {
            let frame = encode(&text).unwrap();
            let (header, body) = frame.split_at(HEADER_BYTES);
            prop_assert_eq!(body_bytes(header.try_into().unwrap()).unwrap(), body.len());
            prop_assert_eq!(decode::<String>(body).unwrap(), text);
        }

        #[test]
        fn a_piece_survives_the_round_trip_and_is_no_message(id: u32, bytes: Vec<u8>) {
            let frame = encode_chunk(id, &bytes).unwrap();
            let (header, body) = frame.split_at(HEADER_BYTES);
            let header = header.try_into().unwrap();
            prop_assert_eq!(head(header).unwrap(), Head::Chunk(body.len()));
            prop_assert!(body_bytes(header).is_err());
            prop_assert_eq!(body.split_at(CHUNK_ID_BYTES), (&id.to_be_bytes()[..], &bytes[..]));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(body: Vec<u8>) {
            let _ = decode::<crate::wire::message::FromEngine>(&body);
            let _ = decode::<crate::wire::message::ToEngine>(&body);
        }
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused() {
        assert!(matches!(body_bytes([0xff; 4]), Err(FrameError::TooLong { .. })));
        assert!(encode(&"x".repeat(FRAME_BYTES_MAX)).is_err());
        assert!(encode_chunk(1, &vec![0; CHUNK_BYTES_MAX + 1]).is_err());
        assert!(head((CHUNK | 0xffff).to_be_bytes()).is_err());
    }
}
