//! API keys: shown once, stored as a hash, revocable at once.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::audit::Digest;
use crate::id::{AccountId, KeyId};
use crate::time::Timestamp;

const PREFIX: &str = "ufb_";
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Digits that 256 bits take in base 62.
const DIGITS: usize = 43;

/// The longest label of a key, in bytes.
pub const LABEL_MAX: usize = 100;

/// An API key as its account keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its name, which is no secret.
    pub id: KeyId,
    /// SHA-256 of the key. Its 256 random bits need no salt and no slow hash.
    pub hash: Digest,
    /// What its owner calls it.
    pub label: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
}

impl Key {
    /// A new key and its secret, which is kept nowhere else.
    pub(crate) fn mint(label: String, now: Timestamp) -> (Key, Secret) {
        let secret = Secret::random();
        let hash = secret.hash();
        (Key { id: KeyId::random(), hash, label, created_at: now, revoked_at: None }, secret)
    }
}

/// An API key in the clear: `ufb_` and 43 characters, 256 random bits in base 62.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    fn random() -> Secret {
        Secret(format!("{PREFIX}{}", base62(random())))
    }

    /// What a client presents, where it has the shape of a key.
    pub(crate) fn parse(presented: &str) -> Option<Secret> {
        let digits = presented.strip_prefix(PREFIX)?;
        let valid = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
        valid.then(|| Secret(presented.to_owned()))
    }

    pub(crate) fn hash(&self) -> Digest {
        Digest(Sha256::digest(&self.0).into())
    }

    /// The key itself, to be shown to its owner once and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(ufb_***)")
    }
}

/// Who a client is: the account, and the key it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The account.
    pub account: AccountId,
    /// The key.
    pub key: KeyId,
}

/// Random bytes from the operating system, which gives them whenever it runs at all.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

/// The bytes as one big-endian number, in exactly as many digits as the greatest needs.
fn base62(mut number: [u8; 32]) -> String {
    let mut digits = [b'0'; DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[divide(&mut number, 62)];
    }
    digits.iter().copied().map(char::from).collect()
}

/// Divides a big-endian number in place; gives the remainder.
fn divide(number: &mut [u8], by: usize) -> usize {
    number.iter_mut().fold(0, |remainder, byte| {
        let value = remainder * 256 + usize::from(*byte);
        *byte = (value / by) as u8; // below 256, since the remainder is below `by`
        value % by
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base62_is_positional_and_of_fixed_length() {
        let mut number = [0; 32];
        assert_eq!(base62(number), "0".repeat(43));
        number[30..].copy_from_slice(&[0x0f, 0x04]); // 3,844 is 62²
        assert_eq!(base62(number), format!("{}100", "0".repeat(40)));
        // int.from_bytes(b"\xff" * 32) in Python, divided down by 62.
        assert_eq!(base62([0xff; 32]), MAX_DIGITS);
    }

    const MAX_DIGITS: &str = "yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp1";

    #[test]
    fn a_secret_parses_back_and_never_shows() {
        let (key, secret) = Key::mint("ci".to_owned(), Timestamp::from_millis(0));
        assert_eq!(Secret::parse(secret.expose()).unwrap().hash(), key.hash);
        assert!(!format!("{secret:?} {key:?}").contains(secret.expose()));
        for presented in ["", "ufb_", "ufb_short", &secret.expose()[4..], &format!("{}x", secret.expose())] {
            assert!(Secret::parse(presented).is_none(), "{presented}");
        }
    }
}
