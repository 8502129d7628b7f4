//! The numbers that every supported machine reads and writes in one piece.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use bytemuck::Pod;

use crate::sys::memfd::Region;

/// A number that lies in memory as one atomic word: the integers up to 64 bits, `f32` and `f64`.
///
/// It cannot be implemented outside this crate.
pub trait Atomic: Pod + sealed::Sealed {}

pub(crate) mod sealed {
    use super::Region;

    /// Memory, as far as the trait's signatures have to name it.
    #[derive(Clone, Copy, Debug)]
    pub struct Place<'a>(pub(crate) &'a Region, pub(crate) usize);

    pub trait Sealed: Sized {
        fn load(at: Place<'_>) -> Self;
        fn store(at: Place<'_>, value: Self);
        /// Replaces the value by what `next` makes of it; comes back with the old one.
        fn update(at: Place<'_>, next: impl FnMut(Self) -> Option<Self>) -> Result<Self, Self>;
    }
}

macro_rules! atomic {
    ($($number:ty: $word:ident as $bits:ty, $to:expr, $from:expr;)*) => {$(
        impl Atomic for $number {}

        impl sealed::Sealed for $number {
            #[inline]
            fn load(sealed::Place(region, offset): sealed::Place<'_>) -> Self {
                // Acquire: pairs with the release of `store` and `update`.
                $from(region.$word(offset).load(Acquire))
            }

            #[inline]
            fn store(sealed::Place(region, offset): sealed::Place<'_>, value: Self) {
                region.$word(offset).store($to(value), Release);
            }

            #[inline]
            fn update(
                sealed::Place(region, offset): sealed::Place<'_>,
                mut next: impl FnMut(Self) -> Option<Self>,
            ) -> Result<Self, Self> {
                let word = region.$word(offset);
                let mut seen = word.load(Relaxed);
                loop {
                    let Some(value) = next($from(seen)) else { return Err($from(seen)) };
                    match word.compare_exchange_weak(seen, $to(value), AcqRel, Acquire) {
                        Ok(seen) => return Ok($from(seen)),
                        Err(now) => seen = now,
                    }
                }
            }
        }
    )*};
}

atomic! {
    u8: word8 as u8, |value: Self| value, |bits: u8| bits;
    u16: word16 as u16, |value: Self| value, |bits: u16| bits;
    u32: word32 as u32, |value: Self| value, |bits: u32| bits;
    u64: word64 as u64, |value: Self| value, |bits: u64| bits;
    usize: word64 as u64, |value: Self| value as u64, |bits: u64| bits as Self;
    i8: word8 as u8, Self::cast_unsigned, u8::cast_signed;
    i16: word16 as u16, Self::cast_unsigned, u16::cast_signed;
    i32: word32 as u32, Self::cast_unsigned, u32::cast_signed;
    i64: word64 as u64, Self::cast_unsigned, u64::cast_signed;
    isize: word64 as u64, |value: Self| value as u64, |bits: u64| bits as Self;
    f32: word32 as u32, Self::to_bits, Self::from_bits;
    f64: word64 as u64, Self::to_bits, Self::from_bits;
}
