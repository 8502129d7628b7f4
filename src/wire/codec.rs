//! How values become bytes: bincode 2 through serde, in this file only.
//!
//! bincode is not self-describing, so what asks the format what comes next fails, with a typed
//! error: untagged enums, `flatten`, `deserialize_any`. Lengths inside a message are checked
//! against the message: serde reserves at most 1 MiB ahead of the bytes that are there, and a
//! value that asks for more bytes than came is an error.

use serde::Serialize;
use serde::de::DeserializeOwned;

fn config() -> impl bincode::config::Config {
    bincode::config::standard()
}

/// Appends `value` to `bytes`. After an error `bytes` is as it was.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, bytes: &mut Vec<u8>) -> Result<(), String> {
    let len = bytes.len();
    bincode::serde::encode_into_std_write(value, bytes, config())
        .map(drop)
        .map_err(|error| {
            bytes.truncate(len);
            describe_encode(error)
        })
}

/// Reads a value that fills `bytes` to the last one.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bincode::serde::decode_from_slice(bytes, config()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(format!("{} bytes are left over", bytes.len() - used)),
        Err(error) => Err(describe_decode(error)),
    }
}

fn describe_encode(error: bincode::error::EncodeError) -> String {
    match error {
        bincode::error::EncodeError::OtherString(message) => message,
        other => other.to_string(),
    }
}

fn describe_decode(error: bincode::error::DecodeError) -> String {
    match error {
        bincode::error::DecodeError::OtherString(message) => message,
        bincode::error::DecodeError::UnexpectedEnd { additional } => {
            format!("at least {additional} bytes are missing")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_as_it_was() {
        let value = (7_u64, "text".to_owned(), vec![Some(1.5_f32), None]);
        let mut bytes = Vec::new();

        encode(&value, &mut bytes).unwrap();

        assert_eq!(decode::<(u64, String, Vec<Option<f32>>)>(&bytes), Ok(value));
    }

    #[test]
    fn a_length_beyond_the_message_is_an_error_and_reserves_nothing() {
        let bomb = [253, 0, 0, 0, 0, 0, 1, 0, 0];

        assert!(decode::<Vec<u8>>(&bomb).is_err());
        assert!(decode::<String>(&bomb).is_err());
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        assert_eq!(
            decode::<u8>(&[1, 2]),
            Err("1 bytes are left over".to_owned())
        );
    }

    #[test]
    fn a_value_that_does_not_encode_leaves_the_buffer_as_it_was() {
        struct Refuses;
        impl Serialize for Refuses {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("it will not"))
            }
        }
        let mut bytes = vec![1];

        let refused = encode(&("written", Refuses), &mut bytes);

        assert_eq!((refused, bytes), (Err("it will not".to_owned()), vec![1]));
    }
}
