//! One message as bytes: four bytes of length, big-endian, then JSON.
//!
//! JSON because either side must read a newer peer's message and skip what it does not know. A length over
//! [`FRAME_BYTES_MAX`] is refused before anything is allocated.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of one message. An inventory of a large server is about 60 KB; payloads never travel in frames.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

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
        fn no_bytes_make_the_decoder_panic(body: Vec<u8>) {
            let _ = decode::<crate::wire::message::FromEngine>(&body);
            let _ = decode::<crate::wire::message::ToEngine>(&body);
        }
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused() {
        assert!(matches!(body_bytes([0xff; 4]), Err(FrameError::TooLong { .. })));
        assert!(encode(&"x".repeat(FRAME_BYTES_MAX)).is_err());
    }
}
