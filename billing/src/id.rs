//! Identifiers. The caller mints them, so that a command that is repeated is recognised.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
        /// 1 to 64 characters of `[A-Za-z0-9._-]`; in JSON a string.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// A new id of 128 random bits, in lower-case hexadecimal.
            ///
            /// # Panics
            /// When the operating system has no randomness to give.
            pub fn random() -> Self {
                let bits: [u8; 16] = crate::key::random();
                $name(format!("{:032x}", u128::from_be_bytes(bits)))
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
                check(text).map(|()| $name(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                check(&text).map(|()| $name(text))
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
    fn random_ids_differ() {
        assert_ne!(SessionId::random(), SessionId::random());
    }
}
