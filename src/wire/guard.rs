//! What a message can make its reader do, bounded: a shell around any serde deserializer.
//!
//! A decoder believes lengths that the sender chose. Three things can then be much larger than
//! the message, and each is cut off here before it costs anything:
//!
//! - *A length ahead of its bytes.* Owned strings and byte buffers are read as borrowed ones, whose
//!   length is compared with what is there before it is copied.
//! - *Elements that take no bytes.* A sequence or map that takes bytes has fewer elements than the
//!   message has bytes, since each element starts at a byte of its own: the length of a nested
//!   sequence stands before its first element. So whatever is beyond the message's length takes no
//!   bytes, and of those [`FREE_ELEMENTS`] are allowed. A sequence is charged as a whole, by the
//!   length that it claims, which costs nothing for each element.
//! - *Nesting.* Each level takes stack. A type that contains itself does so through an option, an
//!   enum, a sequence or a map (through anything else its values would have no end), so only those
//!   are counted, up to [`MAX_DEPTH`]. The level is passed down by value and needs no undoing.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// How deep options, enums, sequences and maps may be nested: as in `serde_json`, and some hundred
/// kilobytes of stack in a debug build.
pub(crate) const MAX_DEPTH: u32 = 128;

/// How many elements of a message may take no bytes: a loop over them takes a millisecond.
pub(crate) const FREE_ELEMENTS: usize = 1 << 20;

/// What is left of a message's allowance.
#[derive(Clone, Copy)]
pub(crate) struct Allowance<'g> {
    levels: u32,
    elements: &'g Cell<usize>,
}

impl<'g> Allowance<'g> {
    /// For a message whose element count, see [`elements_for`], is kept in `elements`.
    pub(crate) fn new(elements: &'g Cell<usize>) -> Self {
        Self {
            levels: MAX_DEPTH,
            elements,
        }
    }

    /// One level down.
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let Some(levels) = self.levels.checked_sub(1) else {
            return Err(E::custom(format_args!(
                "the value is nested deeper than {MAX_DEPTH} levels"
            )));
        };
        Ok(Self { levels, ..self })
    }

    /// Pays for the elements that a sequence or map claims to have.
    fn charge<E: Error>(self, claimed: Option<usize>) -> Result<(), E> {
        let Some(claimed) = claimed else {
            return Err(E::custom("a sequence does not tell its length"));
        };
        let Some(left) = self.elements.get().checked_sub(claimed) else {
            return Err(E::custom(format_args!(
                "a sequence claims {claimed} elements, more than the message can hold"
            )));
        };
        self.elements.set(left);
        Ok(())
    }
}

/// How many elements a message of `len` bytes may claim.
pub(crate) fn elements_for(len: usize) -> usize {
    len.saturating_add(FREE_ELEMENTS)
}

/// A deserializer, visitor, seed or access that keeps to the allowance.
pub(crate) struct Guarded<'g, T> {
    inner: T,
    allowance: Allowance<'g>,
}

impl<'g, T> Guarded<'g, T> {
    /// Guards `inner` and all that is reached through it.
    pub(crate) fn new(inner: T, allowance: Allowance<'g>) -> Self {
        Self { inner, allowance }
    }
}

/// A visitor whose sequence or map has a length that the sender chose.
struct Counted<'g, V>(Guarded<'g, V>);

/// A visitor that wants to own what was read borrowed.
struct Owning<V>(V);

macro_rules! pass_on {
    ($($method:ident)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Guarded<'_, D> {
    type Error = D::Error;

    pass_on! {
        deserialize_any deserialize_bool
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_bytes
        deserialize_unit deserialize_identifier deserialize_ignored_any
    }

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_str(Owning(visitor))
    }

    #[inline]
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_bytes(Owning(visitor))
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let allowance = self.allowance.deeper()?;
        self.inner
            .deserialize_option(Guarded::new(visitor, allowance))
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Guarded::new(visitor, self.allowance);
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let allowance = self.allowance.deeper()?;
        self.inner
            .deserialize_seq(Counted(Guarded::new(visitor, allowance)))
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Guarded::new(visitor, self.allowance);
        self.inner.deserialize_tuple(len, visitor)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Guarded::new(visitor, self.allowance);
        self.inner.deserialize_tuple_struct(name, len, visitor)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let allowance = self.allowance.deeper()?;
        self.inner
            .deserialize_map(Counted(Guarded::new(visitor, allowance)))
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Guarded::new(visitor, self.allowance);
        self.inner.deserialize_struct(name, fields, visitor)
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let allowance = self.allowance.deeper()?;
        let visitor = Guarded::new(visitor, allowance);
        self.inner.deserialize_enum(name, variants, visitor)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Guarded<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    #[inline]
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    #[inline]
    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Guarded::new(inner, self.allowance))
    }

    #[inline]
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner
            .visit_newtype_struct(Guarded::new(inner, self.allowance))
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(Guarded::new(inner, self.allowance))
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(Guarded::new(inner, self.allowance))
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Counted<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.0.allowance.charge(inner.size_hint())?;
        self.0.visit_seq(inner)
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let Self(Guarded {
            inner: visitor,
            allowance,
        }) = self;
        allowance.charge(inner.size_hint())?;
        visitor.visit_map(Guarded::new(inner, allowance))
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Owning<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    #[inline]
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<V::Value, E> {
        self.0.visit_string(text.to_owned())
    }

    #[inline]
    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<V::Value, E> {
        self.0.visit_byte_buf(bytes.to_vec())
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Guarded<'_, S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Guarded::new(inner, self.allowance))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Guarded<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.inner
            .next_element_seed(Guarded::new(seed, self.allowance))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Guarded<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(Guarded::new(seed, self.allowance))
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner
            .next_value_seed(Guarded::new(seed, self.allowance))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'g, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Guarded<'g, A> {
    type Error = A::Error;
    type Variant = Guarded<'g, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let (value, variant) = self.inner.variant_seed(seed)?;
        Ok((value, Guarded::new(variant, self.allowance)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Guarded<'_, A> {
    type Error = A::Error;

    #[inline]
    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner
            .newtype_variant_seed(Guarded::new(seed, self.allowance))
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner
            .tuple_variant(len, Guarded::new(visitor, self.allowance))
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.inner
            .struct_variant(fields, Guarded::new(visitor, self.allowance))
    }
}
