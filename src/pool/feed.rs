//! Where a stream's items come from, as far as the stream cares: something that fills chunks with
//! encoded items. The items' type ends here.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use serde::Serialize;

use super::chunk::CHUNK_BYTES;
use crate::wire::fds;

/// A source of encoded items.
pub(crate) trait Feed {
    /// Adds items until the chunk is full or there are none.
    fn fill(&mut self, chunk: &mut Filling, cx: &mut Context<'_>) -> Filled;

    /// The fewest items that will come.
    fn at_least(&self) -> usize;
}

/// Why a feed stopped filling.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// The chunk is full.
    Full,
    /// The next item is not there yet.
    Pending,
    /// There are no more items.
    End,
    /// The next item cannot be encoded, and why.
    Refused(String),
}

/// A chunk in the making: length (4 bytes) and bytes of each item.
#[derive(Debug)]
pub(crate) struct Filling {
    pub(crate) items: Vec<u8>,
    pub(crate) len: u32,
    /// Descriptors that the last item holds.
    pub(crate) fds: Vec<Arc<OwnedFd>>,
    /// The most items.
    max: u32,
    /// The most bytes of an item.
    limit: usize,
}

impl Filling {
    pub(crate) fn new(max: u32, limit: usize) -> Self {
        Self {
            items: Vec::new(),
            len: 0,
            fds: Vec::new(),
            max,
            limit,
        }
    }

    #[inline]
    fn is_full(&self) -> bool {
        !self.fds.is_empty() || self.len >= self.max || self.items.len() >= CHUNK_BYTES
    }

    /// Adds an item; without success the chunk is as it was.
    fn push<A: Serialize>(&mut self, item: &A) -> Result<(), String> {
        let start = self.items.len();
        self.items.extend_from_slice(&[0; 4]);
        let encoded = fds::encode_with_fds(item, &mut self.items);
        let len = self.items.len() - start - 4;
        let result = encoded.and_then(|outgoing| Ok((outgoing, check_len(len, self.limit)?)));
        match result {
            Ok((outgoing, len)) => {
                if !outgoing.is_empty() {
                    // A chunk with descriptors ends here, so that they can only be this item's.
                    self.fds = outgoing.commit();
                }
                self.items[start..start + 4].copy_from_slice(&len.to_le_bytes());
                self.len += 1;
                Ok(())
            }
            Err(error) => {
                self.items.truncate(start);
                Err(error)
            }
        }
    }
}

/// The length of an encoded argument for the wire, if it is allowed.
#[inline]
pub(crate) fn check_len(len: usize, limit: usize) -> Result<u32, String> {
    match u32::try_from(len) {
        Ok(short) if len <= limit => Ok(short),
        _ => Err(format!(
            "it takes {len} bytes, more than the limit of {limit}"
        )),
    }
}

/// Items of an iterator.
#[derive(Debug)]
pub(crate) struct FromIterator<I>(pub(crate) I);

impl<I: Iterator<Item: Serialize>> Feed for FromIterator<I> {
    fn fill(&mut self, chunk: &mut Filling, _: &mut Context<'_>) -> Filled {
        while !chunk.is_full() {
            let Some(item) = self.0.next() else {
                return Filled::End;
            };
            if let Err(error) = chunk.push(&item) {
                return Filled::Refused(error);
            }
        }
        Filled::Full
    }

    fn at_least(&self) -> usize {
        self.0.size_hint().0
    }
}

/// Items of a stream.
#[derive(Debug)]
pub(crate) struct FromStream<S>(pub(crate) Pin<Box<S>>);

impl<S: Stream<Item: Serialize>> Feed for FromStream<S> {
    fn fill(&mut self, chunk: &mut Filling, cx: &mut Context<'_>) -> Filled {
        while !chunk.is_full() {
            match self.0.as_mut().poll_next(cx) {
                Poll::Pending => return Filled::Pending,
                Poll::Ready(None) => return Filled::End,
                Poll::Ready(Some(item)) => {
                    if let Err(error) = chunk.push(&item) {
                        return Filled::Refused(error);
                    }
                }
            }
        }
        Filled::Full
    }

    fn at_least(&self) -> usize {
        self.0.size_hint().0
    }
}

impl Feed for Box<dyn Feed + Send> {
    fn fill(&mut self, chunk: &mut Filling, cx: &mut Context<'_>) -> Filled {
        (**self).fill(chunk, cx)
    }

    fn at_least(&self) -> usize {
        (**self).at_least()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::protocol::slice_of_items;

    struct Refuses;

    impl Serialize for Refuses {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }

    #[test]
    fn an_item_that_cannot_be_encoded_leaves_the_chunk_as_it_was() {
        let mut chunk = Filling::new(9, 100);
        chunk.push(&"fine").unwrap();

        let refused = chunk.push(&("begun", Refuses));

        assert_eq!(refused, Err("no".to_owned()));
        assert_eq!(
            slice_of_items(&chunk.items, 0, 1),
            Some(0..chunk.items.len())
        );
    }

    #[test]
    fn a_chunk_takes_so_many_items_and_no_more() {
        let mut feed = FromIterator(0_u8..3);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut chunk = Filling::new(2, 100);

        assert_eq!(feed.fill(&mut chunk, &mut cx), Filled::Full);
        assert_eq!(chunk.len, 2);

        let mut chunk = Filling::new(2, 100);
        assert_eq!(feed.fill(&mut chunk, &mut cx), Filled::End);
        assert_eq!(chunk.len, 1);
    }

    #[test]
    fn an_item_beyond_the_limit_is_refused() {
        let mut chunk = Filling::new(2, 3);
        assert!(chunk.push(&"longer than that").is_err());
    }
}
