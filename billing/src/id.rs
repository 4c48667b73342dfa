//! Identifiers. The caller mints them, so that a command that is repeated is recognised.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest identifier, in characters.
pub const ID_MAX: usize = 64;

/// A text that is no identifier: empty, too long, or with a character outside `[A-Za-z0-9._-]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is 1 to {ID_MAX} characters of A-Z a-z 0-9 . _ -")]
pub struct InvalidId;

fn check(text: &str) -> Result<(), InvalidId> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let valid = (1..=ID_MAX).contains(&text.len()) && text.bytes().all(allowed);
    if valid { Ok(()) } else { Err(InvalidId) }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 1 to 64 characters of `[A-Za-z0-9._-]`; in JSON a string. Clones share the text: a session's id is in many places.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// A new id of 128 random bits, in lower-case hexadecimal.
            ///
            /// # Panics
            /// When the operating system has no randomness to give.
            pub fn random() -> Self {
                let bits: [u8; 16] = crate::key::random();
                $name(format!("{:032x}", u128::from_be_bytes(bits)).into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                check(text).map(|()| $name(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                check(&text).map(|()| $name(text.into()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

id! {
    /// Names an account, that is, a customer.
    AccountId
}
id! {
    /// Names an API key. It is no secret.
    KeyId
}
id! {
    /// Names a session within its account: two accounts may use the same one.
    SessionId
}
id! {
    /// Names one run of one gateway.
    GatewayId
}
id! {
    /// A customer's own name for what a session is part of: a test run, a job. Many sessions may have the same.
    TrackingId
}
id! {
    /// Names a webhook.
    WebhookId
}
id! {
    /// Names a command within its account, so that a repeat of it is recognised.
    CommandId
}

/// Names one hold of a session's id. The id is free again when its session was given up before it began, so it does not
/// tell which of its sessions a command speaks of; this does.
///
/// In JSON 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldId(u64);

impl HoldId {
    /// A new one.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    pub fn random() -> Self {
        HoldId(u64::from_ne_bytes(crate::key::random()))
    }
}

impl fmt::Display for HoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for HoldId {
    type Err = InvalidHoldId;

    fn from_str(text: &str) -> Result<Self, InvalidHoldId> {
        let is_whole = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| is_whole).map(HoldId).ok_or(InvalidHoldId)
    }
}

/// A text that names no hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hold's id is 16 hexadecimal digits")]
pub struct InvalidHoldId;

impl Serialize for HoldId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HoldId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Mints the holds of one process: numbers that follow each other from a random one on, so that none of them costs a call
/// of the operating system, and no other process has the same for the same session.
#[derive(Debug)]
pub(crate) struct HoldIds {
    next: AtomicU64,
}

impl HoldIds {
    pub(crate) fn new() -> Self {
        HoldIds::from(HoldId::random().0)
    }

    pub(crate) fn mint(&self) -> HoldId {
        HoldId(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// From that one on.
impl From<u64> for HoldIds {
    fn from(first: u64) -> Self {
        HoldIds { next: first.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_parsed() {
        for text in ["a", "cus_1.B-2", &"x".repeat(ID_MAX)] {
            assert_eq!(text.parse::<AccountId>().unwrap().as_str(), text);
        }
        for text in ["", " ", "a b", "a/b", "ä", &"x".repeat(ID_MAX + 1)] {
            assert_eq!(text.parse::<AccountId>(), Err(InvalidId), "{text:?}");
            assert!(serde_json::from_value::<AccountId>(text.into()).is_err());
        }
    }

    #[test]
    fn holds_are_minted_and_named() {
        let holds = HoldIds::from(u64::MAX);
        let [last, first] = [holds.mint(), holds.mint()];
        assert_eq!(
            (last.to_string().as_str(), first.to_string().as_str()),
            ("ffffffffffffffff", "0000000000000000")
        );
        for hold in [last, first] {
            assert_eq!(hold.to_string().parse(), Ok(hold));
            assert_eq!(serde_json::from_value::<HoldId>(serde_json::to_value(hold).unwrap()).unwrap(), hold);
        }
        for text in ["", "0", "+000000000000001", "00000000000000000"] {
            assert_eq!(text.parse::<HoldId>(), Err(InvalidHoldId), "{text:?}");
        }
        assert_ne!(HoldIds::new().mint(), HoldIds::new().mint());
    }

    #[test]
    fn random_ids_differ() {
        assert_ne!(SessionId::random(), SessionId::random());
    }
}
