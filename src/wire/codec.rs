//! How values become bytes: bincode 2 through serde, in this file only.
//!
//! bincode is not self-describing, so what asks the format what comes next fails, with a typed
//! error: untagged enums, `flatten`, `deserialize_any`. What comes in was written by a process
//! that is trusted less than this one, so it is read through [`guard`](super::guard): no length
//! is believed before the bytes are there, and neither nesting nor elements without bytes can be
//! had for free.
//!
//! Integers have their full width: a message goes through memory of this machine, where eight
//! bytes cost less than finding out how few of them would do.

use std::cell::Cell;
use std::marker::PhantomData;

use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::guard::{Allowance, Guarded, elements_for};
use crate::sys::pieces;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_fixed_int_encoding()
}

/// Appends to a vector. bincode's own writer for `Vec` starts a new one.
struct Append<'a>(&'a mut Vec<u8>);

impl Writer for Append<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        pieces::append(self.0, bytes);
        Ok(())
    }
}

/// Appends `value` to `bytes`. After an error `bytes` is as it was.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, bytes: &mut Vec<u8>) -> Result<(), String> {
    let len = bytes.len();
    bincode::serde::encode_into_writer(value, Append(bytes), config()).map_err(|error| {
        bytes.truncate(len);
        describe_encode(error)
    })
}

/// Reads a value that fills `bytes` to the last one.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let elements = Cell::new(elements_for(bytes.len()));
    let seed = Guarded::new(PhantomData::<T>, Allowance::new(&elements));
    match bincode::serde::seed_decode_from_slice(seed, bytes, config()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(format!("{} bytes are left over", bytes.len() - used)),
        Err(error) => Err(describe_decode(error)),
    }
}

fn describe_encode(error: EncodeError) -> String {
    match error {
        EncodeError::OtherString(message) => message,
        other => other.to_string(),
    }
}

fn describe_decode(error: DecodeError) -> String {
    match error {
        DecodeError::OtherString(message) => message,
        DecodeError::UnexpectedEnd { additional } => {
            format!("at least {additional} bytes are missing")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde::Deserialize;

    use super::super::guard::{FREE_ELEMENTS, MAX_DEPTH};
    use super::*;

    fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(value, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_value_comes_back_as_it_was() {
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        enum Shape {
            Unit,
            Newtype(Box<Self>),
            Tuple(u8, i128),
            Struct { text: String, wide: char },
        }
        let shapes = vec![
            Shape::Unit,
            Shape::Newtype(Box::new(Shape::Tuple(3, i128::MIN))),
            Shape::Struct {
                text: "text".to_owned(),
                wide: 'ö',
            },
        ];
        let value = (
            7_u64,
            shapes,
            vec![Some(1.5_f32), None],
            BTreeMap::from([("key".to_owned(), [(); 3])]),
            ((), std::num::Wrapping(-4_i16), [true, false]),
        );

        let back = decode(&encoded(&value)).map(|back| {
            assert_eq!(value, back);
            back
        });

        // The types are told by the comparison.
        assert!(back.is_ok(), "{back:?}");
    }

    /// The first bytes of a sequence that claims `len` elements.
    fn claim(len: u64) -> Vec<u8> {
        len.to_le_bytes().to_vec()
    }

    #[test]
    fn a_length_beyond_the_message_is_an_error_and_reserves_nothing() {
        for len in [1 << 40, 1 << 63, u64::MAX] {
            let bomb = claim(len);

            assert!(decode::<Vec<u8>>(&bomb).is_err());
            assert!(decode::<Vec<[u64; 32]>>(&bomb).is_err());
            assert!(decode::<String>(&bomb).is_err());
            assert!(decode::<Box<str>>(&bomb).is_err());
            assert!(decode::<HashMap<u8, u8>>(&bomb).is_err());
            assert!(decode::<std::ffi::CString>(&bomb).is_err());
            assert!(decode::<Vec<Vec<String>>>(&[claim(1), claim(1), bomb].concat()).is_err());
        }
    }

    #[test]
    fn elements_that_take_no_bytes_are_counted() {
        let free = FREE_ELEMENTS as u64;

        assert!(decode::<Vec<()>>(&claim(free)).is_ok());
        assert_eq!(
            decode::<Vec<()>>(&claim(1 << 60)).unwrap_err(),
            format!(
                "a sequence claims {} elements, more than the message can hold",
                1_u64 << 60
            )
        );
        assert!(decode::<Vec<[(); 4]>>(&claim(free + 100)).is_err());
        assert!(decode::<HashMap<(), ()>>(&claim(1 << 60)).is_err());
        // Many small sequences share one allowance.
        let shared: Vec<u8> =
            [claim(3), claim(free / 2), claim(free / 2), claim(free / 2)].concat();
        assert!(decode::<Vec<Vec<()>>>(&shared).is_err());
    }

    #[test]
    fn elements_that_take_a_byte_are_never_too_many() {
        let small = vec![7_u8; 3 * FREE_ELEMENTS];
        let nested = vec![vec![vec![1_u8]]; FREE_ELEMENTS / 2];

        assert_eq!(decode(&encoded(&small)), Ok(small));
        assert_eq!(decode(&encoded(&nested)), Ok(nested));
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct List(Option<Box<Self>>);

    #[derive(Debug, Serialize, Deserialize)]
    enum Chain {
        End,
        Link(Box<Self>),
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Tree {
        children: Vec<Self>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Directory(BTreeMap<u8, Self>);

    #[test]
    fn nesting_without_end_is_an_error_and_no_stack_overflow() {
        let megabyte = 1 << 20;
        let message = format!("the value is nested deeper than {MAX_DEPTH} levels");

        assert_eq!(decode::<List>(&vec![1; megabyte]).unwrap_err(), message);
        assert_eq!(
            decode::<Chain>(&1_u32.to_le_bytes().repeat(megabyte)).unwrap_err(),
            message
        );
        assert_eq!(
            decode::<Tree>(&claim(1).repeat(megabyte)).unwrap_err(),
            message
        );
        assert_eq!(
            decode::<Directory>(&[claim(1), vec![1]].concat().repeat(megabyte)).unwrap_err(),
            message
        );
    }

    #[test]
    fn nesting_up_to_the_limit_is_no_error() {
        let deepest = MAX_DEPTH as usize - 1;
        let list = |depth: usize| [vec![1; depth], vec![0]].concat();

        assert!(decode::<List>(&list(deepest)).is_ok());
        assert!(decode::<List>(&list(deepest + 1)).is_err());
        // The levels of one element are not those of the next.
        let many = [claim(3), list(deepest - 1).repeat(3)].concat();
        assert!(decode::<Vec<List>>(&many).is_ok());
    }

    #[test]
    fn what_asks_the_format_what_comes_next_is_an_error() {
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            Number(u8),
        }

        assert!(decode::<Untagged>(&encoded(&Untagged::Number(1))).is_err());
        assert!(decode::<serde::de::IgnoredAny>(&[1]).is_err());
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

    #[test]
    fn numbers_come_back_through_the_guard() {
        let floats: Vec<f64> = (0..1000).map(f64::from).collect();

        assert_eq!(decode(&encoded(&floats)), Ok(floats));
    }
}
